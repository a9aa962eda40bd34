"""How fast are we? Every figure is a ratio, theirs / ours, of times that were taken in turns in one run.

    python -m eval.benchmark --rows sampler plugin

A family of rows is a function that yields cases; `ROWS` names them.
"""

import concurrent.futures
import dataclasses
import functools
import importlib.metadata
import itertools
import json
import os
import pathlib
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import rich.box
import torch
import tyro
from PIL import Image
from rich.table import Table

from eval.parity import IMAGE, draw_params
from eval.tables import show
from stablesam_jax import compiled
from stablesam_jax.build import assemble
from stablesam_jax.config import MODELS, SamConfig
from stablesam_jax.data.pipeline import BatchConfig, Feeding, ViewConfig, Views, batches
from stablesam_jax.data.readers import PairsFolder
from stablesam_jax.errors import InputError, exit_on_input_error
from stablesam_jax.model.mask_decoder import Masks
from stablesam_jax.model.prompt_encoder import Prompts
from stablesam_jax.model.sam import ImageEmbedding
from stablesam_jax.picture_file import read_picture
from stablesam_jax.plugin.sampling import bilinear_sample
from stablesam_jax.predictor import Predictor
from stablesam_jax.text_file import write_text

GRID, CHANNELS = 64, 256  # SAM's image embedding
DATA_BATCHES = 48  # a stream makes four more ahead, which nobody waits for
ROBUST_KINDS = {"gt-box": 1.0, "noisy-box": 1.0, "points": 1.0, "coarse-mask": 1.0}
REACH = 8  # cells; the plugin's default bound on offsets


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Compares our speed with that of others."""

    rows: tuple[Literal["sampler", "plugin", "data"], ...] = ("sampler", "plugin")
    """What to compare. sampler: bilinear sampling of 64 x 64 x 256 features, against plain JAX and grid_sample. plugin:
    a SAM with the plugin against the same without. data: training batches from files, against decoding the files."""
    data_dir: tuple[pathlib.Path, ...] = ()
    """For data: folders with im/ and gt/, a row each."""
    prompts: tuple[int, ...] = (1, 20, 64)
    """Prompts on one picture."""
    repeats: int = 9
    """Turns; the median of each is taken."""
    threads: int = len(os.sched_getaffinity(0))
    """Processors for all sides; by default all that there are."""
    json: pathlib.Path | None = None
    """File to write everything to."""


@dataclasses.dataclass(frozen=True)
class Case:
    """One row: the same work by us and by others. Functions return when the work is done."""

    name: str
    ours: Callable[[], Any]
    theirs: Mapping[str, Callable[[], Any]]  # by whose it is


@dataclasses.dataclass(frozen=True)
class Result:
    """Medians of one row."""

    name: str
    seconds: float  # ours
    ratios: Mapping[str, float]  # theirs / ours: above 1 we are faster


def measure(case: Case, repeats: int) -> Result:
    """Runs all sides once unmeasured and then in turns, so that what else the machine does befalls all of them.

    Every other turn goes backwards: who comes after whom makes a difference, by what is left in caches and of memory.
    """
    sides = {"ours": case.ours, **case.theirs}
    times: dict[str, list[float]] = {side: [] for side in sides}
    for turn in range(1 + repeats):
        for side, work in list(sides.items())[:: -1 if turn % 2 else 1]:
            start = time.perf_counter()
            work()
            if turn > 0:
                times[side].append(time.perf_counter() - start)
    medians = {side: statistics.median(values) for side, values in times.items()}
    return Result(case.name, medians["ours"], {side: medians[side] / medians["ours"] for side in case.theirs})


def sampler_cases(options: Options) -> Iterator[Case]:
    """Deformable sampling in decoder layer 2, where every prompt has its features, and in layer 1, where all share one.

    PyTorch gets channels first, as it likes them best, and shared features expanded, without a copy.
    """
    for count in options.prompts:
        for maps in sorted({count, 1}, reverse=True):
            yield from _sampler_cases(count, maps)


def _sampler_cases(count: int, maps: int) -> Iterator[Case]:
    rng = np.random.default_rng(0)
    cells = np.stack(np.meshgrid(*[np.arange(GRID, dtype=np.float32)] * 2), axis=-1)
    features = rng.standard_normal((maps, GRID, GRID, CHANNELS), np.float32)
    positions = cells + REACH * np.tanh(rng.standard_normal((count, GRID, GRID, 2), np.float32))
    cotangent = rng.standard_normal((count, GRID, GRID, CHANNELS), np.float32)
    arrays = [jnp.asarray(array) for array in (features, positions, cotangent)]
    maps_first, grid, gradient = (
        torch.from_numpy(features).permute(0, 3, 1, 2).contiguous().requires_grad_(),
        torch.from_numpy(positions * 2 / (GRID - 1) - 1).requires_grad_(),
        torch.from_numpy(cotangent).permute(0, 3, 1, 2).contiguous(),
    )

    def jitted(sample: Callable, *, backward: bool) -> Callable[[], Any]:
        def both(features: jax.Array, positions: jax.Array, cotangent: jax.Array) -> Any:
            samples, pull_back = jax.vjp(sample, features, positions)
            return samples, pull_back(cotangent)

        compiled = jax.jit(both if backward else sample).lower(*arrays[: 3 if backward else 2]).compile()
        return lambda: jax.block_until_ready(compiled(*arrays[: 3 if backward else 2]))

    def grid_sample() -> torch.Tensor:
        expanded = maps_first.expand(count, -1, -1, -1)
        return torch.nn.functional.grid_sample(expanded, grid, "bilinear", "border", align_corners=True)

    def forward() -> None:
        with torch.no_grad():
            grid_sample()

    def forward_and_backward() -> None:
        torch.autograd.grad(grid_sample(), (maps_first, grid), gradient)

    kind = _prompts(count) + (", shared features" if maps < count else "")
    for name, backward, theirs in (("forward", False, forward), ("forward + backward", True, forward_and_backward)):
        yield Case(
            f"{kind}: {name}",
            jitted(bilinear_sample, backward=backward),
            {"plain JAX": jitted(plain_sample, backward=backward), "PyTorch": theirs},
        )


def plain_sample(features: jax.Array, positions: jax.Array) -> jax.Array:
    """Bilinear sampling as one would write it: (R, H, W, C), (N, H', W', 2) -> (N, H', W', C), R = N or 1."""
    height, width = features.shape[1:3]
    features = jnp.broadcast_to(features, (len(positions), *features.shape[1:]))
    x, y = jnp.clip(positions[..., 0], 0, width - 1), jnp.clip(positions[..., 1], 0, height - 1)
    left, top = jnp.floor(x).astype(jnp.int32), jnp.floor(y).astype(jnp.int32)
    right, bottom = jnp.minimum(left + 1, width - 1), jnp.minimum(top + 1, height - 1)
    x_share, y_share = (x - left.astype(x.dtype))[..., None], (y - top.astype(y.dtype))[..., None]
    read = jax.vmap(lambda maps, rows, columns: maps[rows, columns])
    upper = (1 - x_share) * read(features, top, left) + x_share * read(features, top, right)
    lower = (1 - x_share) * read(features, bottom, left) + x_share * read(features, bottom, right)
    return (1 - y_share) * upper + y_share * lower


def plugin_cases(options: Options) -> Iterator[Case]:
    """Decoding on the map of a SAM of 1024 pixels, and the whole way from a picture to one mask, with the plugin
    and without.

    sam_nano has every SAM's decoder and the smallest encoder: nowhere is the plugin a larger part of the way. Weights
    are random, so the plugin reads all over its reach.
    """
    stable = dataclasses.replace(MODELS["stable_sam_nano"], image_size=16 * GRID)
    params = draw_params(stable, seed=0)
    rng = np.random.default_rng(0)
    embedding = ImageEmbedding(jnp.asarray(rng.standard_normal((1, GRID, GRID, CHANNELS), np.float32)))
    for count in options.prompts:
        prompts = Prompts(
            coords=jnp.asarray(rng.uniform(0, stable.image_size, (1, count, 2, 2)), jnp.float32),
            labels=jnp.broadcast_to(jnp.array([2, 3], jnp.int32)[None, None], (1, count, 2)),
            valid=jnp.ones((1, count, 2), bool),
        )

        def decode(config: SamConfig, prompts: Prompts = prompts) -> Masks:
            return jax.block_until_ready(compiled.decoder(assemble(config))(params, embedding, prompts))

        yield _with_and_without(f"decode, {_prompts(count)}", decode, stable)

    picture = read_picture(IMAGE)
    predictors: dict[SamConfig, Predictor] = {}

    def predict(config: SamConfig) -> np.ndarray:
        predictor = predictors.setdefault(config, Predictor(assemble(config), params))
        predictor.set_image(picture)
        return predictor.predict(box=[20, 20, 200, 200], multimask_output=False)[0]

    yield _with_and_without("picture to mask, sam_nano at 512 px", predict, MODELS["stable_sam_nano"])


def data_cases(options: Options) -> Iterator[Case]:
    """Batches of the paper's recipe at 1024 pixels, occlusion included, against what nobody is spared: decoding the
    files of as many pictures into arrays, with as many threads."""
    config = BatchConfig(pictures=8, prompts_per_picture=4, kinds=ROBUST_KINDS, mask_size=256, seed=0)
    for folder in options.data_dir:
        pictures = PairsFolder(folder)
        views = Views(pictures, ViewConfig(size=1024, scale_range=(0.1, 2.0), views=1, occlusion=0.5, seed=0))
        for number in range(len(views.cutouts)):
            views.cutouts[number]  # read once in a run, not once in a batch

        def make(views: Views = views) -> None:
            stream = batches(views, config, Feeding(threads=options.threads))
            for _ in itertools.islice(stream, DATA_BATCHES):
                pass

        def decode(index: int, pictures: PairsFolder = pictures) -> None:
            for file in pictures.pairs[index % len(pictures)]:
                with Image.open(file) as opened:
                    np.asarray(opened)

        def decode_all(decode: Callable[[int], None] = decode) -> None:
            with concurrent.futures.ThreadPoolExecutor(options.threads) as pool:
                list(pool.map(decode, range(DATA_BATCHES * config.pictures)))

        yield Case(f"{DATA_BATCHES * config.pictures} pictures of {folder.name}", make, {"decoding alone": decode_all})


def _with_and_without(name: str, work: Callable[[SamConfig], Any], stable: SamConfig) -> Case:
    without = {"without plugin": functools.partial(work, dataclasses.replace(stable, plugin=None))}
    return Case(name, functools.partial(work, stable), without)


def _prompts(count: int) -> str:
    return f"{count} prompt{'s' if count > 1 else ''}"


ROWS: Mapping[str, Callable[[Options], Iterator[Case]]] = {
    "sampler": sampler_cases,
    "plugin": plugin_cases,
    "data": data_cases,
}


def table(title: str, results: Sequence[Result]) -> Table:
    """Times in milliseconds, and theirs / ours."""
    others = list(results[0].ratios)
    result = Table(title=title, box=rich.box.SIMPLE_HEAD, caption="theirs / ours: above 1 we are faster")
    result.add_column("")
    for header in ("ours, ms", *(f"{other} / ours" for other in others)):
        result.add_column(header, justify="right", no_wrap=True)
    for row in results:
        ratios = (f"{row.ratios[other]:.2f}" for other in others)
        result.add_row(row.name, f"{1e3 * row.seconds:.1f}", *ratios)
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    options = tyro.cli(Options, args=arguments, prog="python -m eval.benchmark")
    with exit_on_input_error():
        if options.json is not None and not os.access(options.json.absolute().parent, os.W_OK):
            raise InputError(f"--json {options.json}: there is no such folder, or it cannot be written to.")
        available = sorted(os.sched_getaffinity(0))
        if not 1 <= options.threads <= len(available):
            raise InputError(f"--threads {options.threads}: there are 1 to {len(available)} processors to be had.")
        if ("data" in options.rows) != bool(options.data_dir):
            raise InputError("--rows data and --data-dir go together: give folders with im/ and gt/.")
        if options.repeats < 1 or min(options.prompts, default=0) < 1:
            raise InputError("--repeats and --prompts must be 1 or more.")
    os.sched_setaffinity(0, available[: options.threads])  # XLA has as many threads as the process has processors
    torch.set_num_threads(options.threads)
    load = os.getloadavg()[0]
    found = {}
    for rows in dict.fromkeys(options.rows):
        found[rows] = [measure(case, options.repeats) for case in ROWS[rows](options)]
        title = f"{rows}: medians of {options.repeats} turns, {options.threads} threads, {jax.devices()[0].device_kind}"
        show([table(f"{title}; load {load:.1f} when it began", found[rows])])
    if options.json is not None:
        facts = {
            "threads": options.threads,
            "repeats": options.repeats,
            "load": load,
            "device": jax.devices()[0].device_kind,
            "versions": {name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "torch")},
            "rows": {rows: [dataclasses.asdict(result) for result in results] for rows, results in found.items()},
        }
        write_text(options.json, json.dumps(facts, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
