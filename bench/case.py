"""What a row is, and how its sides are timed."""

import dataclasses
import functools
import os
import pathlib
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

import numpy as np
import torch

from bench.device import Precision, dtype_of, finished, free_unused, on_host
from bench.limits import Cost, Limits
from stablesam_jax.config import MODELS, SamConfig
from stablesam_jax.errors import InputError

GRID, CHANNELS = 64, 256  # SAM's image embedding

Family = Literal["sampler", "plugin", "data", "train", "encoder", "point", "decode", "predict", "stability", "startup"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Compares our speed with that of others."""

    rows: tuple[Family, ...] = ("sampler", "plugin")
    """What to compare. sampler: bilinear sampling of 64 x 64 x 256 features, against plain JAX and grid_sample. plugin:
    a SAM with the plugin against the same without. data: training batches from files, against decoding the files.
    train: a training step, against HQ-SAM's loop. encoder: pictures. point: pictures with a point each to
    low-resolution masks. decode: prompts on an embedding, of SAM and HQ-SAM, and of Stable-SAM against plain
    SAM. predict: 12 megapixels and a box to a mask. stability: a picture and 20 boxes. startup: from nothing to a first
    mask."""
    models: tuple[str, ...] = ("sam_vit_b",)
    """Of train and what follows it: models of segment_anything, or mobile_sam, which is the quickest to try."""
    image_size: tuple[int, ...] = ()
    """Side of their input in pixels, rows for each; by default their own."""
    dtype: Precision = "float32"
    """What both sides compute in, of encoder, point, decode, predict and stability. In bfloat16 PyTorch has its weights
    in it in the encoder and autocast elsewhere, the faster way of each. tf32 is for a GPU: float32 whose products keep
    ten bits."""
    pictures: tuple[int, ...] = (1,)
    """Pictures at once, of encoder and point."""
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
        own = {name: dataclasses.replace(MODELS[name], dtype=dtype_of(self.dtype)) for name in self.models}
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
    """One row: the same work by us and by others. What works return may still be computed, see `finished`."""

    name: str
    ours: Work
    theirs: Mapping[str, Work]  # by whose it is
    model: str = ""
    difference: Callable[[Any, Any], float] | None = None  # of what ours and one of theirs return
    bound: float = 0.0  # that it must not exceed
    cost: Callable[[], Cost] | None = None  # what the work asks of the machine
    points: tuple[Point, ...] = ()
    pictures: int | None = None  # in the work, where it is their rate that counts


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
    pictures_per_second: float | None = None  # ours


def measure(case: Case, repeats: int, limits: Limits) -> Result:
    """Runs all sides once unmeasured and then in turns, so that what else the machine does befalls all of them.

    Every other turn goes backwards: who comes after whom makes a difference, by what is left in caches and of memory.
    A side of PyTorch's that a GPU has no memory for is said to be so, and left out.

    Args:
        case: the row.
        repeats: turns.
        limits: of the machine.

    Raises:
        InputError: the sides did not do the same work.
    """
    sides, first = {"ours": case.ours}, {"ours": finished(case.ours())}
    for side, work in case.theirs.items():
        try:
            first[side] = finished(work())
            sides[side] = work
        except torch.OutOfMemoryError:
            print(f"{case.name}: the GPU has too little memory for {side}.")
    free_unused()
    differences = check(case, first)
    del first
    times: dict[str, list[float]] = {side: [] for side in sides}
    for turn in range(repeats):
        for side, work in list(sides.items())[:: 1 if turn % 2 else -1]:
            start = time.perf_counter()
            finished(work())
            times[side].append(time.perf_counter() - start)
    medians = {side: statistics.median(values) for side, values in times.items()}
    seconds = medians.pop("ours")
    ratios = {side: median / seconds for side, median in medians.items()}
    share = limits.seconds(case.cost()) / seconds if case.cost is not None else None
    rate = case.pictures / seconds if case.pictures is not None else None
    free_unused()
    return Result(case.name, seconds, ratios, case.model, differences, share, case.points, rate)


def check(case: Case, results: Mapping[str, Any]) -> dict[str, float]:
    """How far each of theirs is from ours, where the case can tell.

    Raises:
        InputError: further than the case allows.
    """
    if case.difference is None:
        return {}
    others = [side for side in results if side != "ours"]
    differences = {side: case.difference(results["ours"], results[side]) for side in others}
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


def share_of_flips(ours: Any, theirs: Any) -> float:
    """The share of pixels in which masks, or the masks of logits, differ; arrays of as many numbers, in any shape."""
    ours, theirs = (on_host(side).ravel() > 0 for side in (ours, theirs))
    return float(np.mean(ours != theirs))


def count_of(what: str, count: int) -> str:
    """ "1 prompt", "20 prompts"."""
    return f"{count} {what}{'s' if count > 1 else ''}"


Rows = Callable[[Options], Iterator[Case]]
