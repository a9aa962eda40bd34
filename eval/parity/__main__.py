"""Compares a model with its official PyTorch implementation on one picture, and bounds the difference at every stage.

    python -m eval.parity --random hq_sam_vit_b
    python -m eval.parity --checkpoint sam_vit_b_01ec64.pth --image dog.jpg

Exit status 1 where a bound is exceeded, 2 for bad input.
"""

import dataclasses
import hashlib
import importlib.metadata
import json
import math
import pathlib
import platform
import sys
from collections.abc import Sequence
from typing import Any, Literal

import jax
import numpy as np
import rich.console
import rich.table
import torch
import tyro
from PIL import Image

from convert.rules import to_flax
from convert.sam_to_flax import recognise
from convert.torch_file import read_state
from eval.parity import torch_sam, twins
from eval.parity.differences import (
    BFLOAT16_FLIPS,
    BOUNDS,
    FLIPS,
    SAM2_BOUNDS,
    MaskRow,
    Row,
    compare,
    compare_masks,
)
from stablesam_jax.build import assemble, load_model, shapes
from stablesam_jax.commands import called, command_line
from stablesam_jax.config import MODELS, Dtype, SamConfig
from stablesam_jax.data.collage import ASSETS
from stablesam_jax.data.readers import read_picture
from stablesam_jax.errors import InputError, exit_on_input_error
from stablesam_jax.files.compilation_cache import keep_compiled_programs
from stablesam_jax.files.disk import check_writable, write_text
from stablesam_jax.params import Params, flatten, unflatten
from stablesam_jax.prompts import Prompt
from stablesam_jax.version import __version__

# 451 x 216 pixels, so that preprocessing both enlarges and pads it.
IMAGE = ASSETS / "im/chelsea.jpg"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Compares a model with that of segment_anything, segment_anything_hq or sam2, and a plugin with that of
    stablesam_torch, stage by stage. Give --random or --checkpoint."""

    random: str | None = None
    """Name of a model, which gets random weights."""
    checkpoint: str | None = None
    """Weights to compare: an official file, whose model is recognised; or a checkpoint folder or a shipped model, each
    with or without +PLUGIN_FILE."""
    image: pathlib.Path = IMAGE
    """Picture file to compare on."""
    image_size: int | None = None
    """Side of the model's input in pixels, with --random only. Default: the model's own."""
    dtype: Dtype = "float32"
    """Compute dtype of our side. --reference is that of the official side."""
    reference: Literal["float32", "float64"] = "float32"
    """Compute dtype of the official side. float64 takes twice the memory; the bounds are then at least 4 times the
    float32 error of the official model itself, because trained weights may lose more digits than random ones."""
    seed: int = 0
    """Seed of the random weights and of the prompts."""
    threads: int = 1
    """Number of threads of PyTorch; its results depend on it."""
    json: pathlib.Path | None = None
    """File for all values."""


def draw_prompts(seed: int, size_hw: tuple[int, int], mask_size: int) -> list[Prompt]:
    """One prompt of each form that the model distinguishes: box, points, points and box, mask, box and mask."""
    rng = np.random.default_rng(seed)
    height, width = size_hw

    def points(*labels: int) -> dict[str, Any]:
        points = rng.uniform(0, (width, height), (len(labels), 2))
        return {"points": points, "labels": np.array(labels, np.int32)}

    box = (np.array([[0.21, 0.17], [0.74, 0.83]]) * (width, height)).reshape(4)
    mask = 8 * smooth_noise(rng, mask_size)
    return [
        Prompt(box=box),
        Prompt(**points(1)),
        Prompt(**points(1, 0, 1)),
        Prompt(**points(1, -1, 0), box=box),
        Prompt(mask=mask),
        Prompt(box=box, mask=mask),
    ]


def smooth_noise(rng: np.random.Generator, side: int) -> np.ndarray:
    """(side, side) float32 of mean 0 and standard deviation 1, smooth over an eighth of the side, like coarse masks."""
    coarse = Image.fromarray(rng.standard_normal((9, 9), np.float32))
    noise = np.asarray(coarse.resize((side, side), Image.Resampling.BICUBIC))
    return (noise - noise.mean()) / noise.std()


def load(options: Options) -> tuple[SamConfig, Params]:
    """Loads the model that the options name, and its weights.

    Raises:
        InputError: not exactly one model is named, or what is named cannot be used.
    """
    resized_checkpoint = options.checkpoint is not None and options.image_size is not None
    if (options.random is None) == (options.checkpoint is None) or resized_checkpoint:
        raise InputError("Give either --random MODEL, with or without --image-size, or --checkpoint.")
    if options.random is not None:
        if options.random not in MODELS:
            raise InputError(f"--random {options.random}: no such model here; there are {', '.join(MODELS)}.")
        config = MODELS[options.random]
        if options.image_size is not None:
            config = dataclasses.replace(config, image_size=options.image_size)
        return config, draw_params(config, options.seed)
    assert options.checkpoint is not None
    if pathlib.Path(options.checkpoint).is_file():
        return _read(pathlib.Path(options.checkpoint))
    sam, params = load_model(options.checkpoint)
    return sam.config, jax.device_get(params)


def draw_params(config: SamConfig, seed: int) -> Params:
    """Random weights for which every term of the model affects its output."""
    official = twins.build_official(config)
    torch_sam.randomise(official, seed)
    params = twins.convert(official.state_dict(), config)
    rng = np.random.default_rng(seed)
    rest = {path: leaf for path, leaf in flatten(shapes(assemble(config))).items() if path not in flatten(params)}
    return params | unflatten({path: _draw(rng, path, leaf.shape) for path, leaf in rest.items()})


def _draw(rng: np.random.Generator, path: str, shape: tuple[int, ...]) -> np.ndarray:
    """Random values for parameters without a twin. Kernels preserve the scale of features; no plugin is an identity."""
    deviation = 1 / math.prod(shape[:-1]) ** 0.5 if path.endswith("kernel") else 0.2
    mean = 1.0 if path.endswith("scale") else 0.0
    return (mean + deviation * rng.standard_normal(shape)).astype(np.float32)


def _read(file: pathlib.Path) -> tuple[SamConfig, Params]:
    state, _ = read_state(file)
    try:
        config = recognise({name: array.shape for name, array in state.items()})
        return config, to_flax(state, shapes(assemble(config)))
    except InputError as error:
        raise InputError(f"{file}: {error}") from None


def print_table(rows: Sequence[Row], masks: MaskRow, missing: Sequence[str]) -> None:
    """Prints one row for each quantity, and one line for the masks."""
    table = rich.table.Table("quantity", "s", "max abs", "max / s", "bound", "rms", "rms / s", "bound", "")
    lines = {quantity: [quantity, *[""] * 7, "no twin"] for quantity in missing}
    for row in rows:
        unit = row.deviation or 1.0  # gradients of a plugin that changes no mask are zero on both sides
        largest = (row.largest, row.largest / unit, row.largest_bound)
        rms = (row.rms, row.rms / unit, row.rms_bound)
        lines[row.quantity] = [row.quantity, *map(_figure, (row.deviation, *largest, *rms)), _verdict(row.ok)]
    for quantity in twins.in_order(lines):
        table.add_row(*lines[quantity])
    console = rich.console.Console(width=120)
    console.print(table)
    console.print(
        f"masks: {100 * (1 - masks.share):.5f} % of {masks.pixels:,} pixels equal, "
        f"{100 * (1 - masks.share_bound):g} % required; largest logit of one that differs "
        f"{_figure(masks.largest_logit)}, bound {_figure(masks.logit_bound)}: {_verdict(masks.ok)}",
        highlight=False,
        soft_wrap=True,
    )


def _figure(number: float | None) -> str:
    return "none" if number is None else f"{number:.2g}"


def _verdict(ok: bool) -> str:
    return "ok" if ok else "FAIL"


def describe(options: Options, config: SamConfig, rows: Sequence[Row], masks: MaskRow, missing: Sequence[str]) -> dict:
    """Everything about one comparison, as values that JSON can hold."""
    packages = ("jax", "flax", "torch", "segment-anything", "segment-anything-hq", "sam2", "numpy", "pillow")
    return {
        "model": config.name,
        "image_size": config.image_size,
        "weights": options.checkpoint or "random",
        "seed": options.seed,
        "dtype": options.dtype,
        "reference": options.reference,
        "threads": options.threads,
        "device": jax.devices()[0].device_kind,
        "image": {"file": options.image.name, "sha256": hashlib.sha256(options.image.read_bytes()).hexdigest()},
        "versions": {
            "python": platform.python_version(),
            "stablesam-jax": __version__,
            **{name: importlib.metadata.version(name) for name in packages},
        },
        "rows": [dataclasses.asdict(row) | {"ok": row.ok} for row in rows],
        "masks": dataclasses.asdict(masks) | {"share": masks.share, "ok": masks.ok},
        "without_twin": list(missing),
        "ok": masks.ok and all(row.ok for row in rows),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    keep_compiled_programs()
    with exit_on_input_error():
        options = tyro.cli(Options, args=command_line(arguments), prog=called("parity"))
        for option, value, least in (("threads", options.threads, 1), ("seed", options.seed, 0)):
            if value < least:
                raise InputError(f"--{option} {value}: must be at least {least}.")
        torch.set_num_threads(options.threads)
        if options.json is not None:
            check_writable(options.json, "--json")
        picture = read_picture(options.image)
        config, params = load(options)
    prompts = draw_prompts(options.seed, picture.shape[:2], config.mask_size)

    # One model after the other, so that they are never in memory together.
    sam = assemble(dataclasses.replace(config, dtype=options.dtype))
    with jax.default_matmul_precision("highest"):  # a GPU's default, TF32, is not float32
        ours = twins.run_ours(sam, params, picture, prompts)
    official = twins.load_official(config, params)
    del params
    theirs, own = twins.run_official(official, picture, prompts, ours), None
    if options.reference == "float64":
        own = theirs
        theirs = twins.run_official(twins.to_float64(official), picture, prompts, ours)

    exact = options.dtype == "float32"
    bounds = SAM2_BOUNDS if config.sam2 else BOUNDS
    rows = compare(ours, theirs, own=own, bounds=bounds if exact else {})
    logit_bound = next(row.largest_bound for row in rows if row.quantity == twins.FULL_RES)
    share_bound = FLIPS if exact else BFLOAT16_FLIPS
    masks = compare_masks(ours, theirs, own=own, share_bound=share_bound, logit_bound=logit_bound)
    missing = [quantity for quantity in ours if quantity not in theirs]
    print_table(rows, masks, missing)
    found = describe(options, config, rows, masks, missing)
    if options.json is not None:
        write_text(options.json, json.dumps(found, indent=1) + "\n")
    return 0 if found["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())
