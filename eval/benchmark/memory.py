"""Peak memory of one side of a row, in a process of its own."""

import concurrent.futures
import ctypes
import dataclasses
import gc
import itertools
import multiprocessing
import pathlib
import re

import torch

from eval.benchmark.case import Options, Rows


@dataclasses.dataclass(frozen=True)
class Peak:
    """What a process took at its highest while it worked, in MiB."""

    absolute: float  # all, with the libraries of both sides and the weights of this one
    above_base: float  # beyond what it holds between two works


def peak(rows: Rows, options: Options, index: int, side: str) -> Peak:
    """Runs one side of the case of that index twice in a new process, and watches the second."""
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, context) as pool:
        return pool.submit(_watch, rows, options, index, side).result()


def _watch(rows: Rows, options: Options, index: int, side: str) -> Peak:
    torch.set_num_threads(options.threads)  # the processors are those of the parent
    case = next(itertools.islice(rows(options), index, None))
    work = {"ours": case.ours, **case.theirs}[side]
    work()
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what was freed is no part of the base
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far, of compiling and of loading
    base = _status("VmRSS")
    work()
    highest = _status("VmHWM")
    return Peak(absolute=highest, above_base=highest - base)


def _status(field: str) -> float:
    """MiB."""
    text = pathlib.Path("/proc/self/status").read_text()
    found = re.search(rf"^{field}:\s+(\d+) kB$", text, re.MULTILINE)
    assert found is not None
    return int(found[1]) / 1024
