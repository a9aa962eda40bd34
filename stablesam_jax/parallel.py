"""Several devices and hosts with one program: the only file that knows `jax.pmap` and `jax.distributed`.

Batches are cut along their first axis into equal shards, parameters are the same on every device, gradients and
measurements are means over the devices. A host makes its own share of a batch and holds its own devices' copies; what
is read from a run's folder comes from the first.
"""

import json
import os
import re
import sys
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from stablesam_jax.errors import InputError

AXIS = "devices"
MOST_CPU_DEVICES = 4  # each holds a copy of all parameters


def join_hosts(coordinator: str, hosts: int | None, host: int | None) -> None:
    """Makes this process one of several that work together; before JAX's first operation.

    Args:
        coordinator: HOST:PORT of the first, the same for all; or "auto", which takes this and what follows from the
            cluster, as JAX finds it (Slurm, Open MPI, Kubernetes, Cloud TPU).
        hosts: how many there are.
        host: which of them this is, from 0.

    Raises:
        InputError: they do not fit together, no cluster is found, or the others do not come.
    """
    if coordinator == "auto":
        settings: dict[str, Any] = {}
    elif re.fullmatch(r".+:\d+", coordinator) is None:
        raise InputError(f"--coordinator {coordinator}: write HOST:PORT of the first host, or auto on a cluster.")
    elif hosts is None or host is None or not 0 <= host < hosts:
        raise InputError(
            f"--hosts {hosts}, --host {host}: with --coordinator say how many there are, and which this is, from 0."
        )
    else:
        settings = {"coordinator_address": coordinator, "num_processes": hosts, "process_id": host}
    try:
        jax.distributed.initialize(**settings)
    except (RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0].rstrip(".")
        raise InputError(f"--coordinator {coordinator}: the hosts did not come together ({reason}).") from None


def split_cpu(batch_size: int) -> None:
    """Shows JAX the cores of the processor as devices, as many as divide the batch, before its first operation.

    XLA leaves many operations of a training step to one core; with parts of the batch, every core has some. Measured on
    two cores: twice as fast beside other jobs, 1.05 to 1.2 times on a quiet machine. Where JAX runs on accelerators, or
    JAX_NUM_CPU_DEVICES is set, nothing changes.

    Args:
        batch_size: pictures per step.
    """
    if "JAX_NUM_CPU_DEVICES" in os.environ:
        return
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    most = min(cores, MOST_CPU_DEVICES)
    fitting = [count for count in range(1, most + 1) if batch_size % count == 0]
    jax.config.update("jax_num_cpu_devices", max(fitting, default=1))


def choose_devices(count: int | None) -> list[jax.Device]:
    """The first `count` devices of every host, or all; in the same order on all hosts.

    Raises:
        InputError: a host has fewer.
    """
    by_host: dict[int, list[jax.Device]] = {}
    for device in jax.devices():
        by_host.setdefault(device.process_index, []).append(device)
    fewest = min(map(len, by_host.values()))
    if count is not None and not 1 <= count <= fewest:
        raise InputError(f"--devices {count}: this machine shows JAX {fewest} device(s); ask for 1 to {fewest}.")
    return [device for host in sorted(by_host) for device in by_host[host][:count]]


def of_this_host(devices: list[jax.Device]) -> list[jax.Device]:
    """Those that this process feeds."""
    return [device for device in devices if device.process_index == jax.process_index()]


def from_first_host(tree: Any) -> Any:
    """The first host's leaves, as numpy arrays; all hosts call it together."""
    return tree if jax.process_count() == 1 else jax.device_get(multihost_utils.broadcast_one_to_all(tree))


def on_any_host(flag: bool) -> bool:
    """Whether it is true on one of the hosts; all call it together, and wait for each other."""
    return flag if jax.process_count() == 1 else bool(multihost_utils.process_allgather(np.array(flag)).any())


def gather(value: Any) -> list[Any]:
    """What JSON can hold, from all hosts in their order; all call it together."""
    if jax.process_count() == 1:
        return [value]
    data = np.frombuffer(json.dumps(value).encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.array(data.size))
    every = multihost_utils.process_allgather(np.pad(data, (0, int(sizes.max()) - data.size)))
    return [json.loads(row[:size].tobytes()) for row, size in zip(every, sizes, strict=True)]


def check_same_on_hosts(digest: bytes, what: str) -> None:
    """Raises an InputError on every host if they do not agree on `digest` of `what`."""
    if jax.process_count() > 1:
        every = multihost_utils.process_allgather(np.frombuffer(digest, np.uint8))
        if (every != every[:1]).any():
            raise InputError(f"the hosts differ in {what}; start all with the same command on the same files.")


def check_divides(batch_size: int, devices: int) -> None:
    """Raises an InputError where a batch cannot be cut into equal shards of one picture or more."""
    if batch_size < 1 or batch_size % devices:
        fitting = max(batch_size // devices * devices, devices)
        raise InputError(
            f"--batch-size {batch_size} cannot be divided among {devices} devices; take {fitting}, or set --devices."
        )


def replicate(tree: Any, devices: list[jax.Device]) -> Any:
    """A copy of every leaf on each of this host's devices, laid out as `run_on_all` returns it, to compile once."""
    devices = of_this_host(devices)
    sharding = NamedSharding(Mesh(np.array(devices), (AXIS,)), PartitionSpec(AXIS))

    def copies(leaf: Any) -> jax.Array:
        return jax.device_put(np.broadcast_to(leaf, (len(devices), *np.shape(leaf))), sharding)

    return jax.tree.map(copies, tree)


def unreplicate(tree: Any) -> Any:
    """The first device's copy of every leaf, as numpy arrays."""
    # The dots keep a number an array: Orbax saves numpy's scalars and then cannot restore them.
    return jax.tree.map(lambda leaf: np.asarray(leaf.addressable_data(0))[0, ...], tree)


def shard(tree: Any, devices: list[jax.Device]) -> Any:
    """This host's (B, ...) leaves -> (its devices, B / its devices, ...); `check_divides` comes first."""
    count = len(of_this_host(devices))
    return jax.tree.map(lambda leaf: leaf.reshape(count, leaf.shape[0] // count, *leaf.shape[1:]), tree)


def mean(tree: Any) -> Any:
    """The mean of every leaf over the devices; inside a function run by `run_on_all`."""
    return jax.lax.pmean(tree, AXIS)


def run_on_all(function: Callable[..., Any], devices: list[jax.Device], *, donate: tuple[int, ...] = ()) -> Callable:
    """Runs `function` on every device with its own shard of each argument.

    Args:
        function: called with leaves without the devices' axis.
        devices: where, over all hosts; each passes and gets the rows of its own.
        donate: positions of arguments whose memory may be reused.
    """
    return jax.pmap(function, axis_name=AXIS, devices=devices, donate_argnums=donate)
