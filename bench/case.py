"""A row of a benchmark, and how its sides are timed."""

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

Family = Literal[
    "sampler",
    "plugin",
    "data",
    "train",
    "encoder",
    "point",
    "decode",
    "predict",
    "stability",
    "startup",
    "box_search",
    "onnx",
]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Compares the speed of this package with that of other implementations."""

    rows: tuple[Family, ...] = ("sampler", "plugin")
    """Rows to measure. sampler: bilinear sampling of 64 x 64 x 256 features, against plain JAX and grid_sample.
    plugin: a SAM with the plugin, against the same SAM without. data: training batches from files, against decoding the
    files. train: a training step, against HQ-SAM's loop. encoder: pictures to embeddings. point: pictures with one
    point each to low-resolution masks. decode: prompts on an embedding, of SAM and HQ-SAM, and of Stable-SAM against
    plain SAM. predict: 12 megapixels and a box to a mask. stability: a picture and 20 boxes. startup: from starting
    Python to the first mask. box_search: the worst box of objects by gradient, as in BREPS. onnx: the shipped model
    with its plugin in onnxruntime, on the CPU."""
    models: tuple[str, ...] = ("sam_vit_b",)
    """Models for train, encoder, point, decode, predict, stability and startup: of segment_anything, or mobile_sam,
    which is the fastest. For encoder and decode also of SAM 2, such as sam2_hiera_t."""
    image_size: tuple[int, ...] = ()
    """One or more sides of the model's input in pixels. Default: the model's own."""
    dtype: Precision = "float32"
    """Compute dtype of both sides for encoder, point, decode, predict and stability. In bfloat16 PyTorch has bfloat16
    weights in the encoder and autocast elsewhere. tf32 is float32 with matmuls in TF32, for a GPU."""
    pictures: tuple[int, ...] = (1,)
    """One or more numbers of pictures in a batch, for encoder and point."""
    batch_size: int = 4
    """Pictures per training step."""
    compile: bool = False
    """Also compare with torch.compile; each model takes minutes to compile."""
    keras_hub: bool = False
    """Also compare encoder and SAM's decoder with keras-hub on JAX, which must be installed."""
    memory: bool = False
    """Also measure peak memory, with each side in its own process; on Linux."""
    data_dir: tuple[pathlib.Path, ...] = ()
    """Folders with im/ and gt/ for the rows data."""
    prompts: tuple[int, ...] = (1, 20, 64)
    """One or more numbers of prompts on a picture."""
    repeats: int = 9
    """Number of measurements of each side, of which the median is taken."""
    threads: int = len(os.sched_getaffinity(0))
    """Number of CPU threads of each side. Default: one for each available core."""
    json: pathlib.Path | None = None
    """File for all results; a table and a figure are written beside it, as FILE.md and FILE.png."""

    def configs(self) -> dict[str, SamConfig]:
        """Configurations of the models at the sizes of the options, by name for the table."""
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
    """A point of a curve of time over size."""

    curve: str
    axis: str  # the size that varies along the curve
    at: int


@dataclasses.dataclass(frozen=True)
class Case:
    """One row: the same work by us and by others. Works may return before the device is done, see `finished`."""

    name: str
    ours: Work
    theirs: Mapping[str, Work]  # by name of the implementation
    model: str = ""
    difference: Callable[[Any, Any], float] | None = None  # of the result of ours and the result of one of theirs
    bound: float = 0.0  # of that difference
    cost: Callable[[], Cost] | None = None  # arithmetic and traffic that the work needs
    points: tuple[Point, ...] = ()
    pictures: int | None = None  # per work, where the table shows pictures per second


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
    """Runs all sides once unmeasured and then alternately, so that other load on the machine affects all of them.

    The order is reversed every other time, because a side leaves caches and allocators in a state that affects the
    next. A PyTorch side that does not fit into the GPU's memory is reported and left out.

    Args:
        case: the row.
        repeats: measurements of each side.
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
    """The difference of each of theirs from ours, if the case defines one.

    Raises:
        InputError: a difference exceeds the bound of the case.
    """
    if case.difference is None:
        return {}
    others = [side for side in results if side != "ours"]
    differences = {side: case.difference(results["ours"], results[side]) for side in others}
    for side, difference in differences.items():
        if not difference <= case.bound:  # also true for nan
            raise InputError(f"{case.name}: {side} differs from ours by {difference:.2g}, allowed is {case.bound:.2g}.")
    return differences


def prepared(prepare: Callable[[], Work]) -> Work:
    """Work that is prepared in its first run, which is not measured: models load only when their row is reached."""
    once = functools.cache(prepare)
    return lambda: once()()


def peers(options: Options, theirs: Callable[[Callable[[Any], Any]], Work], name: str = "PyTorch") -> dict[str, Work]:
    """A PyTorch side in eager mode and, with `options.compile`, compiled.

    Args:
        options: of the command.
        theirs: wrapper of PyTorch functions and modules -> work. The wrapper is the identity or torch.compile.
        name: of the implementation.
    """
    found = {name: prepared(functools.partial(theirs, lambda function: function))}
    if options.compile:
        found[f"{name}, compiled"] = prepared(functools.partial(theirs, torch.compile))
    return found


def share_of_flips(ours: Any, theirs: Any) -> float:
    """The share of pixels in which two arrays of masks or logits differ after thresholding at 0; shapes may differ."""
    ours, theirs = (on_host(side).ravel() > 0 for side in (ours, theirs))
    return float(np.mean(ours != theirs))


def count_of(what: str, count: int) -> str:
    """ "1 prompt", "20 prompts"."""
    return f"{count} {what}{'s' if count > 1 else ''}"


Rows = Callable[[Options], Iterator[Case]]
