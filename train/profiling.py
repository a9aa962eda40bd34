"""A trace of some steps for Perfetto or TensorBoard: how long programs and transfers take on every device."""

import pathlib
from collections.abc import Iterator, Sequence
from typing import TypeVar

import jax
import jax.numpy as jnp

SKIPPED = 2  # steps before the trace: the first ones compile and fill the pipeline

Item = TypeVar("Item")


def profiled(items: Iterator[Item], folder: pathlib.Path, count: int, devices: Sequence[jax.Device]) -> Iterator[Item]:
    """Yields the items of a loop, and traces `count` turns of it.

    Args:
        items: of the loop, one for each step.
        folder: gets the trace.
        count: of steps; with 0 nothing is traced.
        devices: of this host, which must have finished these steps before the trace ends.
    """
    tracing = False
    try:
        for number, item in enumerate(items):
            if tracing and number == SKIPPED + count:
                tracing = _stop(devices)
            if count and number == SKIPPED:
                jax.profiler.start_trace(str(folder))
                tracing = True
            yield item
    finally:
        if tracing:
            _stop(devices)


def _stop(devices: Sequence[jax.Device]) -> bool:
    for device in devices:  # a device works in order, so that this comes after the traced steps
        jax.block_until_ready(jax.device_put(jnp.zeros(()), device) + 1)
    jax.profiler.stop_trace()
    return False
