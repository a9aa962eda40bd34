"""What no program can beat on this machine: its matrix rate and its memory bandwidth, and what a work asks of them."""

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

_SIDE = {"cpu": 3072, "cuda": 8192}  # of the products: as wide as a ViT's layers; what fills a GPU
_MOVED = {"cpu": 1 << 26, "cuda": 1 << 28}  # numbers that are copied: 256 MiB and 1 GiB, beyond every cache
_TRIES = 5  # the best counts: a limit is what was reached once


@dataclasses.dataclass(frozen=True)
class Cost:
    """What a work asks of a machine at the least."""

    flops: float  # of matrix products and convolutions, a multiplication and an addition being two
    bytes: float  # of all that goes in and comes out, once


@dataclasses.dataclass(frozen=True)
class Limits:
    """What a machine gives."""

    flops_per_second: float
    bytes_per_second: float

    def seconds(self, cost: Cost) -> float:
        """The least time."""
        return max(cost.flops / self.flops_per_second, cost.bytes / self.bytes_per_second)


def measure_limits(precision: Precision = "float32") -> Limits:
    """Products by whichever of XLA and PyTorch is faster, and copies of large arrays, on the device.

    Args:
        precision: of the products; on a GPU `set_up` must have been told the same.
    """
    device, dtype = torch_device(), dtype_of(precision)
    side, moved = _SIDE[device.type], _MOVED[device.type]
    matrix = np.random.default_rng(0).standard_normal((side, side), np.float32)
    ours, theirs = jnp.asarray(matrix, dtype), torch.from_numpy(matrix).to(device, getattr(torch, dtype))
    product = jax.jit(functools.partial(jnp.matmul, preferred_element_type=jnp.float32))
    times = [
        _best(lambda: product(ours, ours)),
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
    """Counts a program's products without running it.

    XLA's own analysis takes the body of a loop once, however often it runs. Where devices have programs of their own,
    the CPU's counts: it is the shorter arithmetic, and a GPU's kernels do not show theirs.

    Args:
        function: what JAX can trace.
        arguments: arrays or `jax.ShapeDtypeStruct`s.
        axis_env: names and sizes of the axes that it takes means over.
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
