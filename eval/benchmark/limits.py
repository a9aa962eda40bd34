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

from stablesam_jax.config import Dtype

_SIDE = 3072  # of the products, as wide as a ViT's layers
_MOVED = 1 << 26  # numbers that are copied: 256 MiB, beyond every cache
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


def measure_limits(dtype: Dtype = "float32") -> Limits:
    """Products by whichever of XLA and PyTorch is faster, and copies of large arrays."""
    matrix = np.random.default_rng(0).standard_normal((_SIDE, _SIDE), np.float32)
    ours, theirs = jnp.asarray(matrix, dtype), torch.from_numpy(matrix).to(getattr(torch, dtype))
    product = jax.jit(functools.partial(jnp.matmul, preferred_element_type=jnp.float32))
    times = [
        _best(lambda: product(ours, ours).block_until_ready()),
        _best(lambda: torch.mm(theirs, theirs)),
    ]
    source, target = np.ones(_MOVED, np.float32), np.ones(_MOVED, np.float32)
    copy = _best(lambda: np.copyto(target, source))
    return Limits(flops_per_second=2 * _SIDE**3 / min(times), bytes_per_second=2 * source.nbytes / copy)


def cost_of(function: Callable[..., Any], *arguments: Any, axis_env: Any = None) -> Cost:
    """Counts a program's products without running it.

    XLA's own analysis takes the body of a loop once, however often it runs.

    Args:
        function: what JAX can trace.
        arguments: arrays or `jax.ShapeDtypeStruct`s.
        axis_env: names and sizes of the axes that it takes means over.
    """
    traced = jax.make_jaxpr(function, axis_env=axis_env)(*arguments)
    moved = sum(np.prod(aval.shape) * aval.dtype.itemsize for aval in (*traced.in_avals, *traced.out_avals))
    return Cost(flops=_flops(traced), bytes=float(moved))


def _best(work: Callable[[], Any]) -> float:
    times = []
    for _ in range(1 + _TRIES):
        start = time.perf_counter()
        work()
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
