"""Roofline of the machine, its matmul rate and memory bandwidth, and the arithmetic and traffic of a program."""

import dataclasses
import functools
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from jax.extend import core

from bench.device import Precision, dtype_of, finished, torch_device

_SIDE = {"cpu": 3072, "cuda": 8192}  # of the matrices: that of a ViT's layers; enough to fill a GPU
_MOVED = {"cpu": 1 << 26, "cuda": 1 << 28}  # float32 values that are copied: 256 MiB and 1 GiB, larger than any cache
_TRIES = 5  # the fastest counts, since the limit is the best that the machine reaches


@dataclasses.dataclass(frozen=True)
class Cost:
    """Lower bounds of a program's arithmetic and memory traffic."""

    flops: float  # of matmuls and convolutions, where a multiply-add is two
    bytes: float  # of all inputs and outputs, each moved once


@dataclasses.dataclass(frozen=True)
class Limits:
    """Rates that the machine reaches."""

    flops_per_second: float
    bytes_per_second: float

    def seconds(self, cost: Cost) -> float:
        """The least time for a cost: of arithmetic or of traffic, whichever is longer."""
        return max(cost.flops / self.flops_per_second, cost.bytes / self.bytes_per_second)


def measure_limits(precision: Precision = "float32") -> Limits:
    """Measures matmuls, by whichever of XLA and PyTorch is faster, and copies of large arrays, on the device.

    Args:
        precision: of the matmuls. On a GPU `set_up` must have been called with the same.
    """
    device, dtype = torch_device(), dtype_of(precision)
    side, moved = _SIDE[device.type], _MOVED[device.type]
    matrix = np.random.default_rng(0).standard_normal((side, side), np.float32)
    ours, theirs = jnp.asarray(matrix, dtype), torch.from_numpy(matrix).to(device, getattr(torch, dtype))
    matmul = jax.jit(functools.partial(jnp.matmul, preferred_element_type=jnp.float32))
    times = [
        _best(lambda: matmul(ours, ours)),
        _best(lambda: torch.mm(theirs, theirs)),
    ]
    copy = _best(_copy_of_host(moved) if device.type == "cpu" else _copy_of_device(moved, device))
    moved_bytes = moved * np.dtype(np.float32).itemsize
    return Limits(flops_per_second=2 * side**3 / min(times), bytes_per_second=2 * moved_bytes / copy)


def _copy_of_host(moved: int) -> Callable[[], Any]:
    source, target = np.ones(moved, np.float32), np.ones(moved, np.float32)
    return lambda: np.copyto(target, source)


def _copy_of_device(moved: int, device: torch.device) -> Callable[[], Any]:
    source, target = (torch.ones(moved, device=device) for _ in range(2))
    return lambda: target.copy_(source)


def cost_of(function: Callable[..., Any], *arguments: Any, axis_env: Any = None) -> Cost:
    """Counts the matmuls and convolutions of a program without running it.

    XLA's own analysis counts the body of a loop once, however often it runs. Where the program depends on the device,
    the CPU's is counted: it has less arithmetic, and cuDNN's kernels are opaque to tracing.

    Args:
        function: what JAX can trace.
        arguments: arrays or `jax.ShapeDtypeStruct`s.
        axis_env: names and sizes of the mapped axes over which it reduces.
    """
    with jax.default_device(jax.devices("cpu")[0]):
        traced = jax.make_jaxpr(function, axis_env=axis_env)(*arguments)
    moved = sum(np.prod(aval.shape) * aval.dtype.itemsize for aval in (*traced.in_avals, *traced.out_avals))
    return Cost(flops=_flops(traced), bytes=float(moved))


def _best(work: Callable[[], Any]) -> float:
    times = []
    for _ in range(1 + _TRIES):
        start = time.perf_counter()
        finished(work())
        times.append(time.perf_counter() - start)
    return min(times[1:])


def _flops(jaxpr: core.Jaxpr | core.ClosedJaxpr) -> float:
    total = 0.0
    for equation in jaxpr.eqns:
        match equation.primitive.name:
            case "dot_general":
                (contracted, _), _ = equation.params["dimension_numbers"]
                depth = np.prod([equation.invars[0].aval.shape[axis] for axis in contracted])
                total += 2 * np.prod(equation.outvars[0].aval.shape) * depth
            case "conv_general_dilated":
                kernel = equation.invars[1].aval.shape
                outputs = equation.params["dimension_numbers"].rhs_spec[0]
                total += 2 * np.prod(equation.outvars[0].aval.shape) * np.prod(kernel) / kernel[outputs]
            case "cond":
                total += min(_flops(branch) for branch in equation.params["branches"])
            case _:
                inner = sum(_flops(part) for part in core.jaxprs_in_params(equation.params))
                total += inner * equation.params.get("length", 1)  # of a scan
    return float(total)
