"""Peak memory of one side of a row, in a process of its own: of the process on a CPU, of the device on a GPU."""

import concurrent.futures
import ctypes
import dataclasses
import gc
import itertools
import multiprocessing
import pathlib
import re

import jax
import torch

from bench.case import Options, Rows, Work
from bench.device import finished, set_up, torch_device
from stablesam_jax import parallel

_MEBIBYTE = 1 << 20


@dataclasses.dataclass(frozen=True)
class Peak:
    """Peak memory during a work, in MiB."""

    absolute: float  # in all, with the weights of this side; on a CPU also with the libraries of both sides
    above_base: float  # above what is allocated between two works


def peak(rows: Rows, options: Options, index: int, side: str) -> Peak:
    """Runs one side of the case at `index` twice in a new process, and measures the second run."""
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, context) as pool:
        return pool.submit(_watch, rows, options, index, side).result()


def _watch(rows: Rows, options: Options, index: int, side: str) -> Peak:
    torch.set_num_threads(options.threads)  # XLA's threads follow the processor affinity inherited from the parent
    parallel.split_cpu(options.batch_size)
    set_up(options.dtype)
    case = next(itertools.islice(rows(options), index, None))
    work = {"ours": case.ours, **case.theirs}[side]
    finished(work())
    gc.collect()
    base, highest = _watch_cpu(work) if torch_device().type == "cpu" else _watch_gpu(work)
    return Peak(absolute=highest, above_base=highest - base)


def _watch_cpu(work: Work) -> tuple[float, float]:
    """MiB of the process before the work, and at its peak."""
    ctypes.CDLL(None).malloc_trim(0)  # returns freed memory to the system, which would count as base
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM, which has the peak of compiling and loading
    base = _status("VmRSS")
    finished(work())
    return base, _status("VmHWM")


def _watch_gpu(work: Work) -> tuple[float, float]:
    """MiB of all arrays of the working library before the work, and at its peak.

    JAX cannot reset its peak, so ours is that of the whole process: loading weights and two runs. The process takes
    compiled programs from the parent's cache (see `set_up`), because autotuning allocates memory for its trials.
    """
    if torch.cuda.memory_allocated():
        torch.cuda.reset_peak_memory_stats()
        base = torch.cuda.memory_allocated()
        finished(work())
        highest = torch.cuda.max_memory_allocated()
    else:
        device = jax.devices()[0]
        base = device.memory_stats()["bytes_in_use"]
        finished(work())
        highest = device.memory_stats()["peak_bytes_in_use"]
    return base / _MEBIBYTE, highest / _MEBIBYTE


def _status(field: str) -> float:
    """A field of /proc/self/status in MiB."""
    text = pathlib.Path("/proc/self/status").read_text()
    found = re.search(rf"^{field}:\s+(\d+) kB$", text, re.MULTILINE)
    assert found is not None
    return int(found[1]) / 1024
