"""Data parallelism over devices and hosts: the only file that uses pmap, shard_map and `jax.distributed`.

Batches are split along their first axis into equal shards, parameters are replicated, gradients and measurements are
averaged over devices. Each host makes its share of a batch and has the copies of its own devices; only the first host
reads a run's folder and broadcasts the contents. Two engines run the same program with the same bits.
"""

import abc
import dataclasses
import json
import os
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from stablesam_jax.errors import InputError

EngineName = Literal["pmap", "jit"]
AXIS = "devices"
MOST_CPU_DEVICES = 4  # each has a copy of all parameters in memory
ROWS = 8  # pictures that an accelerator encodes at a time (docs/speed.md)


def join_hosts(coordinator: str | None, hosts: int | None, host: int | None) -> None:
    """Joins this process to several hosts. Must be called before JAX's first operation.

    Args:
        coordinator: HOST:PORT of the first host, the same on all; or "auto", which takes all three arguments from the
            cluster that JAX detects (Slurm, Open MPI, Kubernetes, Cloud TPU). None: this host is alone.
        hosts: number of hosts.
        host: index of this one, from 0.

    Raises:
        InputError: the arguments are inconsistent, no cluster is detected, or the other hosts do not answer.
    """
    if coordinator in (None, "auto") and (hosts, host) != (None, None):
        raise InputError(f"--hosts {hosts}, --host {host}: belong to --coordinator HOST:PORT; give it, or neither.")
    if coordinator is None:
        return
    if coordinator == "auto":
        settings: dict[str, Any] = {}
    elif re.fullmatch(r".+:\d+", coordinator) is None:
        raise InputError(f"--coordinator {coordinator}: write HOST:PORT of the first host, or auto on a cluster.")
    elif hosts is None or host is None or not 0 <= host < hosts:
        raise InputError(
            f"--hosts {hosts}, --host {host}: with --coordinator give their number, and the index of this one, from 0."
        )
    else:
        settings = {"coordinator_address": coordinator, "num_processes": hosts, "process_id": host}
    try:
        jax.distributed.initialize(**settings)
    except (RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0].rstrip(".")
        raise InputError(f"--coordinator {coordinator}: the hosts did not connect ({reason}).") from None


def count_cores() -> int:
    """Cores that this process may use: under taskset, Slurm or a container's cpuset fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def split_cpu(batch_size: int) -> None:
    """Makes JAX treat CPU cores as devices, as many as divide the batch. Must be called before JAX's first operation.

    XLA runs many operations of a training step on one core; with a shard of the batch per device all cores are busy.
    Measured on two cores: 2 times as fast beside other jobs, 1.05 to 1.2 times on an idle machine. Nothing changes if
    JAX runs on accelerators or JAX_NUM_CPU_DEVICES is set.

    Args:
        batch_size: pictures per step.
    """
    if "JAX_NUM_CPU_DEVICES" in os.environ:
        return
    most = min(count_cores(), MOST_CPU_DEVICES)
    fitting = [count for count in range(1, most + 1) if batch_size % count == 0]
    jax.config.update("jax_num_cpu_devices", max(fitting, default=1))


def choose_devices(count: int | None) -> list[jax.Device]:
    """The first `count` devices of every host, or all of them, in the same order on all hosts.

    Raises:
        InputError: a host has fewer.
    """
    by_host: dict[int, list[jax.Device]] = {}
    for device in jax.devices():
        by_host.setdefault(device.process_index, []).append(device)
    fewest = min(map(len, by_host.values()))
    if count is not None and not 1 <= count <= fewest:
        raise InputError(f"--devices {count}: JAX has {fewest} device(s) on this machine; give 1 to {fewest}.")
    return [device for host in sorted(by_host) for device in by_host[host][:count]]


def of_this_host(devices: Sequence[jax.Device]) -> list[jax.Device]:
    """The devices of this process."""
    return [device for device in devices if device.process_index == jax.process_index()]


def on_each(tree: Any, devices: Sequence[jax.Device]) -> list[tuple[jax.Device, Any]]:
    """Each of this host's devices with a copy of every leaf; the tree itself for a single device, wherever it is."""
    if len(devices) == 1:
        return [(devices[0], tree)]
    return [(device, jax.device_put(tree, device)) for device in devices]


def spread(function: Callable[[Any, Any], Any], shared: Any, devices: Sequence[jax.Device]) -> Callable[[Any], Any]:
    """Compiles a function of single rows to run on all devices of this host at once.

    Every call of a device has the same number of rows, the last ones repeated where some are missing, so that one
    program is compiled and a row's result depends neither on the other rows nor on the number of devices. That number
    is 1 on a CPU, as in a program for a single picture, and `ROWS` on accelerators, which a single picture does not
    fill.

    Args:
        function: (shared, (n, ...) rows) -> tree of (n, ...) arrays.
        shared: tree of arrays, copied to each device.
        devices: of this host.

    Returns:
        (N, ...) numpy rows, any N -> tree of (N, ...) numpy arrays.
    """
    rows = 1 if devices[0].platform == "cpu" else ROWS
    engine = PmapEngine(devices)
    program = jax.pmap(function, axis_name=AXIS, devices=devices)
    placed = engine.replicate(shared)
    together = rows * len(devices)

    def run(inputs: np.ndarray) -> Any:
        parts = []
        for start in range(0, len(inputs), together):
            taken = inputs[np.minimum(np.arange(start, start + together), len(inputs) - 1)]
            parts.append(program(placed, taken.reshape(len(devices), rows, *taken.shape[1:])))
        fetched = jax.device_get(parts)
        return jax.tree.map(
            lambda *leaves: np.concatenate([leaf.reshape(together, *leaf.shape[2:]) for leaf in leaves])[: len(inputs)],
            *fetched,
        )

    return run


def from_first_host(tree: Any) -> Any:
    """Broadcasts the first host's leaves, as numpy arrays. A collective: all hosts must call it."""
    return tree if jax.process_count() == 1 else jax.device_get(multihost_utils.broadcast_one_to_all(tree))


def on_any_host(flag: bool) -> bool:
    """Whether the flag is true on any host. A collective and a barrier: all hosts must call it."""
    return flag if jax.process_count() == 1 else bool(multihost_utils.process_allgather(np.array(flag)).any())


def gather(value: Any) -> list[Any]:
    """Gathers values that JSON can hold from all hosts, in their order. A collective: all hosts must call it."""
    if jax.process_count() == 1:
        return [value]
    data = np.frombuffer(json.dumps(value).encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.array(data.size))
    every = multihost_utils.process_allgather(np.pad(data, (0, int(sizes.max()) - data.size)))
    return [json.loads(row[:size].tobytes()) for row, size in zip(every, sizes, strict=True)]


def check_same_on_hosts(digest: bytes, what: str) -> None:
    """Raises an InputError on every host if the hosts have different digests of `what`."""
    if jax.process_count() > 1:
        every = multihost_utils.process_allgather(np.frombuffer(digest, np.uint8))
        if (every != every[:1]).any():
            raise InputError(f"the hosts differ in {what}; start all with the same command on the same files.")


def check_divides(batch_size: int, devices: int) -> None:
    """Raises an InputError if a batch cannot be split into equal shards of at least one picture."""
    if batch_size < 1 or batch_size % devices:
        fitting = max(batch_size // devices * devices, devices)
        raise InputError(
            f"--batch-size {batch_size} cannot be divided among {devices} devices; take {fitting}, or set --devices."
        )


def mean(tree: Any) -> Any:
    """The mean of every leaf over the devices. For use inside a function that an engine runs."""
    return jax.lax.pmean(tree, AXIS)


@dataclasses.dataclass(frozen=True)
class Engine(abc.ABC):
    """Runs functions on all devices, and places arrays on them.

    Arrays that an engine has placed or returned are only for its own methods; inputs and results are numpy arrays.
    """

    devices: Sequence[jax.Device]  # of all hosts, as `choose_devices` gives them

    @abc.abstractmethod
    def replicate(self, tree: Any) -> Any:
        """Copies every leaf to each device, in the layout that `run_on_all` returns, so that it compiles once."""

    @abc.abstractmethod
    def unreplicate(self, tree: Any) -> Any:
        """One copy of every leaf of a replicated or returned tree, as numpy arrays."""

    @abc.abstractmethod
    def shard(self, tree: Any) -> Any:
        """Splits this host's (B, ...) leaves into equal shards for its devices. Call `check_divides` before."""

    @abc.abstractmethod
    def run_on_all(
        self, function: Callable[..., Any], *, sharded: tuple[int, ...], donate: tuple[int, ...] = ()
    ) -> Callable[..., Any]:
        """Compiles `function` to run on every device. Calls do not wait for the result.

        Args:
            function: called with the leaves of one device. Its results must be equal on all devices, by `mean`.
            sharded: positions of the arguments from `shard`; the others come from `replicate` or are results.
            donate: positions of arguments whose memory may be reused.
        """


class PmapEngine(Engine):
    """`jax.pmap`: all arrays, replicated ones too, have a leading axis over this host's devices."""

    def replicate(self, tree: Any) -> Any:
        devices = of_this_host(self.devices)
        sharding = NamedSharding(Mesh(np.array(devices), (AXIS,)), PartitionSpec(AXIS))

        def copies(leaf: Any) -> jax.Array:
            return jax.device_put(np.broadcast_to(leaf, (len(devices), *np.shape(leaf))), sharding)

        return jax.tree.map(copies, tree)

    def unreplicate(self, tree: Any) -> Any:
        # The ellipsis keeps a scalar an array of rank 0: Orbax saves numpy scalars but cannot restore them.
        return jax.tree.map(lambda leaf: leaf[0, ...], _first_shards(tree))

    def shard(self, tree: Any) -> Any:
        devices = of_this_host(self.devices)
        count, sharding = len(devices), NamedSharding(Mesh(np.array(devices), (AXIS,)), PartitionSpec(AXIS))

        def place(leaf: np.ndarray) -> jax.Array:
            return jax.device_put(leaf.reshape(count, leaf.shape[0] // count, *leaf.shape[1:]), sharding)

        return jax.tree.map(place, tree)

    def run_on_all(
        self, function: Callable[..., Any], *, sharded: tuple[int, ...], donate: tuple[int, ...] = ()
    ) -> Callable[..., Any]:
        return jax.pmap(function, axis_name=AXIS, devices=self.devices, donate_argnums=donate)


class JitEngine(Engine):
    """`jax.jit` of `jax.shard_map`: arrays are global; batches are sharded along the first axis, others replicated."""

    def replicate(self, tree: Any) -> Any:
        return self._place(tree, PartitionSpec())

    def unreplicate(self, tree: Any) -> Any:
        return _first_shards(tree)

    def shard(self, tree: Any) -> Any:
        return self._place(tree, PartitionSpec(AXIS))

    def run_on_all(
        self, function: Callable[..., Any], *, sharded: tuple[int, ...], donate: tuple[int, ...] = ()
    ) -> Callable[..., Any]:
        def program(*arguments: Any) -> Any:
            specs = [PartitionSpec(AXIS) if index in sharded else PartitionSpec() for index in range(len(arguments))]
            # With check_vma, JAX sums the gradient of a replicated argument over the devices, and `mean` of these equal
            # sums would still be the sum.
            mapped = jax.shard_map(
                function, mesh=self._mesh, in_specs=tuple(specs), out_specs=PartitionSpec(), check_vma=False
            )
            return mapped(*arguments)

        # Explicit, because XLA may describe the same layout differently, and then the second step compiles again.
        everywhere = NamedSharding(self._mesh, PartitionSpec())
        return jax.jit(program, donate_argnums=donate, out_shardings=everywhere)

    @property
    def _mesh(self) -> Mesh:
        return Mesh(np.array(self.devices), (AXIS,))

    def _place(self, tree: Any, spec: PartitionSpec) -> Any:
        return jax.make_array_from_process_local_data(NamedSharding(self._mesh, spec), tree)


ENGINES: dict[EngineName, type[Engine]] = {"pmap": PmapEngine, "jit": JitEngine}


def _first_shards(tree: Any) -> Any:
    """The shard of every leaf on this host's first device, as numpy arrays, fetched in one transfer."""
    return jax.device_get(jax.tree.map(lambda leaf: leaf.addressable_data(0), tree))
