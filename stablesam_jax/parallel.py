"""Several devices with one program: the only file that knows `jax.pmap`.

Batches are cut along their first axis into equal shards, parameters are the same on every device, gradients and
measurements are means over the devices.
"""

import os
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from stablesam_jax.errors import InputError

AXIS = "devices"
MOST_CPU_DEVICES = 4  # each holds a copy of all parameters


def split_cpu(batch_size: int) -> None:
    """Shows JAX the cores of the processor as devices, as many as divide the batch, before its first operation.

    XLA leaves many operations of a training step to one core; with parts of the batch, every core has some. Measured on
    two cores: twice as fast beside other jobs, no faster on a quiet machine. Where JAX runs on accelerators, or
    JAX_NUM_CPU_DEVICES is set, nothing changes.

    Args:
        batch_size: pictures per step.
    """
    if "JAX_NUM_CPU_DEVICES" in os.environ:
        return
    most = min(os.cpu_count() or 1, MOST_CPU_DEVICES)
    fitting = [count for count in range(1, most + 1) if batch_size % count == 0]
    jax.config.update("jax_num_cpu_devices", max(fitting, default=1))


def choose_devices(count: int | None) -> list[jax.Device]:
    """The first `count` local devices, or all.

    Raises:
        InputError: there are fewer.
    """
    devices = jax.local_devices()
    if count is None:
        return devices
    if not 1 <= count <= len(devices):
        raise InputError(
            f"--devices {count}: this machine shows JAX {len(devices)} device(s); ask for 1 to {len(devices)}."
        )
    return devices[:count]


def check_divides(batch_size: int, devices: int) -> None:
    """Raises an InputError where a batch cannot be cut into equal shards of one picture or more."""
    if batch_size < 1 or batch_size % devices:
        fitting = max(batch_size // devices * devices, devices)
        raise InputError(
            f"--batch-size {batch_size} cannot be divided among {devices} devices; take {fitting}, or set --devices."
        )


def replicate(tree: Any, devices: list[jax.Device]) -> Any:
    """A copy of every leaf on every device, laid out as `run_on_all` returns it, so that no step compiles twice."""
    sharding = NamedSharding(Mesh(np.array(devices), (AXIS,)), PartitionSpec(AXIS))

    def copies(leaf: Any) -> jax.Array:
        return jax.device_put(np.broadcast_to(leaf, (len(devices), *np.shape(leaf))), sharding)

    return jax.tree.map(copies, tree)


def unreplicate(tree: Any) -> Any:
    """The first device's copy of every leaf, as numpy arrays."""
    # The dots keep a number an array: Orbax saves numpy's scalars and then cannot restore them.
    return jax.tree.map(lambda leaf: np.asarray(leaf.addressable_data(0))[0, ...], tree)


def shard(tree: Any, devices: int) -> Any:
    """(B, ...) leaves -> (devices, B / devices, ...); `check_divides` comes first."""
    return jax.tree.map(lambda leaf: leaf.reshape(devices, leaf.shape[0] // devices, *leaf.shape[1:]), tree)


def mean(tree: Any) -> Any:
    """The mean of every leaf over the devices; inside a function run by `run_on_all`."""
    return jax.lax.pmean(tree, AXIS)


def run_on_all(function: Callable[..., Any], devices: list[jax.Device], *, donate: tuple[int, ...] = ()) -> Callable:
    """Runs `function` on every device with its own shard of each argument.

    Args:
        function: called with leaves without the devices' axis.
        devices: where.
        donate: positions of arguments whose memory may be reused.
    """
    return jax.pmap(function, axis_name=AXIS, devices=devices, donate_argnums=donate)
