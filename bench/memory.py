"""Peak memory of one side of a row, in a process of its own: the process's on a CPU, the device's on a GPU."""

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
    """What a process took at its highest while it worked, in MiB."""

    absolute: float  # all, with the weights of this side; on a CPU with the libraries of both, too
    above_base: float  # beyond what it holds between two works


def peak(rows: Rows, options: Options, index: int, side: str) -> Peak:
    """Runs one side of the case of that index twice in a new process, and watches the second."""
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, context) as pool:
        return pool.submit(_watch, rows, options, index, side).result()


def _watch(rows: Rows, options: Options, index: int, side: str) -> Peak:
    torch.set_num_threads(options.threads)  # the processors are those of the parent
    parallel.split_cpu(options.batch_size)
    set_up(options.dtype)
    case = next(itertools.islice(rows(options), index, None))
    work = {"ours": case.ours, **case.theirs}[side]
    finished(work())
    gc.collect()
    base, highest = _watch_cpu(work) if torch_device().type == "cpu" else _watch_gpu(work)
    return Peak(absolute=highest, above_base=highest - base)


def _watch_cpu(work: Work) -> tuple[float, float]:
    """MiB of the process before and, at the highest, in the work."""
    ctypes.CDLL(None).malloc_trim(0)  # what was freed is no part of the base
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far, of compiling and of loading
    base = _status("VmRSS")
    finished(work())
    return base, _status("VmHWM")


def _watch_gpu(work: Work) -> tuple[float, float]:
    """MiB of all arrays of the library that works before and, at the highest, in the work.

    JAX cannot forget a peak. So ours is that of the whole process, which has loaded weights and has worked once, with
    programs that the parent has compiled and `set_up` lets it find: compiling tries algorithms, and memory for them.
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
    """MiB."""
    text = pathlib.Path("/proc/self/status").read_text()
    found = re.search(rf"^{field}:\s+(\d+) kB$", text, re.MULTILINE)
    assert found is not None
    return int(found[1]) / 1024
