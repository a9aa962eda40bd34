"""What a row is, and how its sides are timed."""

import dataclasses
import functools
import os
import pathlib
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

import jax
import numpy as np
import torch

from eval.benchmark.limits import Cost, Limits
from stablesam_jax.config import MODELS, Dtype, SamConfig
from stablesam_jax.errors import InputError

GRID, CHANNELS = 64, 256  # SAM's image embedding

Family = Literal["sampler", "plugin", "data", "train", "encoder", "decode", "predict", "stability", "startup"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Compares our speed with that of others."""

    rows: tuple[Family, ...] = ("sampler", "plugin")
    """What to compare. sampler: bilinear sampling of 64 x 64 x 256 features, against plain JAX and grid_sample. plugin:
    a SAM with the plugin against the same without. data: training batches from files, against decoding the files.
    train: a training step, against HQ-SAM's loop. encoder: one picture. decode: prompts on an embedding, of SAM and
    HQ-SAM, and of Stable-SAM against plain SAM. predict: 12 megapixels and a box to a mask. stability: a picture and 20
    boxes. startup: from nothing to a first mask."""
    models: tuple[str, ...] = ("sam_vit_b",)
    """Of train and what follows it: models of segment_anything, or mobile_sam, which is the quickest to try."""
    image_size: tuple[int, ...] = ()
    """Side of their input in pixels, rows for each; by default their own."""
    dtype: Dtype = "float32"
    """What both sides compute in, of encoder, decode, predict and stability. In bfloat16 PyTorch has its weights in it
    in the encoder and autocast elsewhere, the faster way of each."""
    pictures: tuple[int, ...] = (1,)
    """Pictures that the encoder is given at once."""
    batch_size: int = 4
    """Pictures of a training step."""
    compile: bool = False
    """Compare with PyTorch's compiled models, too: each takes minutes to compile."""
    keras_hub: bool = False
    """Compare encoder, and decoder of SAM, with keras-hub's on JAX, too; it must be installed."""
    memory: bool = False
    """Measure peak memory, too, of each side in a process of its own; on Linux."""
    data_dir: tuple[pathlib.Path, ...] = ()
    """For data: folders with im/ and gt/, a row each."""
    prompts: tuple[int, ...] = (1, 20, 64)
    """Prompts on one picture."""
    repeats: int = 9
    """Turns; the median of each is taken."""
    threads: int = len(os.sched_getaffinity(0))
    """Processors for all sides; by default all that there are."""
    json: pathlib.Path | None = None
    """File to write everything to; a table and a figure lie beside it, as FILE.md and FILE.png."""

    def configs(self) -> dict[str, SamConfig]:
        """The models at the sizes that are asked for, by what to call them."""
        own = {name: dataclasses.replace(MODELS[name], dtype=self.dtype) for name in self.models}
        if not self.image_size:
            return own
        return {
            f"{name}, {size} px": dataclasses.replace(config, image_size=size)
            for name, config in own.items()
            for size in self.image_size
        }


Work = Callable[[], Any]


@dataclasses.dataclass(frozen=True)
class Point:
    """Where a row stands on a curve of time."""

    curve: str
    axis: str  # what grows along it
    at: int


@dataclasses.dataclass(frozen=True)
class Case:
    """One row: the same work by us and by others. Functions return when the work is done."""

    name: str
    ours: Work
    theirs: Mapping[str, Work]  # by whose it is
    model: str = ""
    difference: Callable[[Any, Any], float] | None = None  # of what ours and one of theirs return
    bound: float = 0.0  # that it must not exceed
    cost: Callable[[], Cost] | None = None  # what the work asks of the machine
    points: tuple[Point, ...] = ()


@dataclasses.dataclass(frozen=True)
class Result:
    """Medians of one row."""

    name: str
    seconds: float  # ours
    ratios: Mapping[str, float]  # theirs / ours: above 1 we are faster
    model: str = ""
    differences: Mapping[str, float] = dataclasses.field(default_factory=dict)  # of theirs from ours
    share_of_limit: float | None = None  # the least time on this machine / ours
    points: tuple[Point, ...] = ()


def measure(case: Case, repeats: int, limits: Limits) -> Result:
    """Runs all sides once unmeasured and then in turns, so that what else the machine does befalls all of them.

    Every other turn goes backwards: who comes after whom makes a difference, by what is left in caches and of memory.

    Args:
        case: the row.
        repeats: turns.
        limits: of the machine.

    Raises:
        InputError: the sides did not do the same work.
    """
    sides = {"ours": case.ours, **case.theirs}
    first = {side: work() for side, work in sides.items()}
    differences = check(case, first)
    del first
    times: dict[str, list[float]] = {side: [] for side in sides}
    for turn in range(repeats):
        for side, work in list(sides.items())[:: 1 if turn % 2 else -1]:
            start = time.perf_counter()
            work()
            times[side].append(time.perf_counter() - start)
    medians = {side: statistics.median(values) for side, values in times.items()}
    ratios = {side: medians[side] / medians["ours"] for side in case.theirs}
    share = limits.seconds(case.cost()) / medians["ours"] if case.cost is not None else None
    return Result(case.name, medians["ours"], ratios, case.model, differences, share, case.points)


def check(case: Case, results: Mapping[str, Any]) -> dict[str, float]:
    """How far each of theirs is from ours, where the case can tell.

    Raises:
        InputError: further than the case allows.
    """
    if case.difference is None:
        return {}
    differences = {side: case.difference(results["ours"], results[side]) for side in case.theirs}
    for side, difference in differences.items():
        if not difference <= case.bound:  # nan is none
            raise InputError(f"{case.name}: {side} differs from ours by {difference:.2g}, allowed is {case.bound:.2g}.")
    return differences


def prepared(prepare: Callable[[], Work]) -> Work:
    """Work that is prepared when it is first done, which does not count: models are read when their row comes."""
    once = functools.cache(prepare)
    return lambda: once()()


def peers(options: Options, theirs: Callable[[Callable[[Any], Any]], Work], name: str = "PyTorch") -> dict[str, Work]:
    """One of theirs as it is and, where that is asked for, compiled.

    Args:
        options: of the command.
        theirs: what wraps a function or module of PyTorch -> their work.
        name: whose it is.
    """
    found = {name: prepared(functools.partial(theirs, lambda function: function))}
    if options.compile:
        found[f"{name}, compiled"] = prepared(functools.partial(theirs, torch.compile))
    return found


def torch_device() -> torch.device:
    """Where PyTorch computes: on the kind of device that JAX computes on.

    Raises:
        InputError: that is a GPU, for which this PyTorch was not built.
    """
    if jax.default_backend() == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise InputError(
            "JAX computes on a GPU and this PyTorch cannot; install PyTorch's build for it, or set JAX_PLATFORMS=cpu."
        )
    return torch.device("cuda")


def share_of_flips(ours: np.ndarray, theirs: np.ndarray) -> float:
    """The share of pixels in which masks, or the masks of logits, differ."""
    return float(np.mean((ours > 0) != (theirs > 0)))


def count_of(what: str, count: int) -> str:
    """ "1 prompt", "20 prompts"."""
    return f"{count} {what}{'s' if count > 1 else ''}"


Rows = Callable[[Options], Iterator[Case]]
