"""How fast are we? Every figure is a ratio, theirs / ours, of times that were taken in turns in one run.

    python -m eval.benchmark --rows encoder decode predict stability startup train

A family of rows is a function that yields cases; `ROWS` names them.
"""

import dataclasses
import importlib.metadata
import json
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import rich.box
import torch
import tyro
from rich.table import Table

from eval.benchmark.case import Family, Options, Result, Rows, measure
from eval.benchmark.data import data_cases
from eval.benchmark.inference import decode_cases, encoder_cases, predict_cases, stability_cases
from eval.benchmark.limits import measure_limits
from eval.benchmark.memory import Peak, peak
from eval.benchmark.plugin import plugin_cases
from eval.benchmark.sampler import sampler_cases
from eval.benchmark.startup import startup_cases
from eval.benchmark.train import train_cases
from eval.tables import show
from stablesam_jax.config import MODELS
from stablesam_jax.errors import InputError, exit_on_input_error
from stablesam_jax.text_file import write_text

ROWS: Mapping[Family, Rows] = {
    "sampler": sampler_cases,
    "plugin": plugin_cases,
    "data": data_cases,
    "train": train_cases,
    "encoder": encoder_cases,
    "decode": decode_cases,
    "predict": predict_cases,
    "stability": stability_cases,
    "startup": startup_cases,
}
WITH_TWIN = [name for name, config in MODELS.items() if not (config.hq or config.plugin or name == "sam_nano")]


def table(title: str, results: Sequence[Result]) -> Table:
    """Times in milliseconds, theirs / ours, and the share of the machine's limit that ours reach."""
    others = list(dict.fromkeys(other for row in results for other in row.ratios))
    result = Table(title=title, box=rich.box.SIMPLE_HEAD, caption="theirs / ours: above 1 we are faster")
    result.add_column("")
    for header in ("model", "ours, ms", *(f"{other} / ours" for other in others), "of the limit"):
        result.add_column(header, justify="right", no_wrap=True)
    for row in results:
        ratios = (f"{row.ratios[other]:.2f}" if other in row.ratios else "" for other in others)
        limit = "" if row.share_of_limit is None else f"{100 * row.share_of_limit:.0f} %"
        result.add_row(row.name, row.model, f"{1e3 * row.seconds:.1f}", *ratios, limit)
    return result


def memory_table(title: str, results: Sequence[Result], peaks: Sequence[Mapping[str, Peak]]) -> Table:
    """Peak memory of every side, above what its process holds between two works, and in all."""
    sides = list(dict.fromkeys(side for row in peaks for side in row))
    result = Table(title=title, box=rich.box.SIMPLE_HEAD, caption="MiB above the process's base / in all")
    result.add_column("")
    for side in ("model", *sides):
        result.add_column(side, justify="right", no_wrap=True)
    for row, found in zip(results, peaks, strict=True):
        cells = (
            f"{found[side].above_base:.0f} / {found[side].absolute:.0f}" if side in found else "" for side in sides
        )
        result.add_row(row.name, row.model, *cells)
    return result


def entries(family: str, results: Sequence[Result], peaks: Sequence[Mapping[str, Peak]]) -> list[dict[str, Any]]:
    """One for each comparison, as JSON holds it."""
    return [
        {
            "row": family,
            "case": row.name,
            "model": row.model,
            "dtype": "float32",
            "ours_s": row.seconds,
            "peer": peer,
            "peer_s": ratio * row.seconds,
            "ratio": ratio,
            "difference": row.differences.get(peer),
            "share_of_limit": row.share_of_limit,
            "ours_peak_mib": dataclasses.asdict(found["ours"]) if found else None,
            "peer_peak_mib": dataclasses.asdict(found[peer]) if found else None,
        }
        for row, found in zip(results, peaks, strict=True)
        for peer, ratio in row.ratios.items()
    ]


def check_options(options: Options) -> None:
    """Raises an InputError that names the first option that cannot be used."""
    if options.json is not None and not os.access(options.json.absolute().parent, os.W_OK):
        raise InputError(f"--json {options.json}: there is no such folder, or it cannot be written to.")
    available = len(os.sched_getaffinity(0))
    if not 1 <= options.threads <= available:
        raise InputError(f"--threads {options.threads}: there are 1 to {available} processors to be had.")
    if ("data" in options.rows) != bool(options.data_dir):
        raise InputError("--rows data and --data-dir go together: give folders with im/ and gt/.")
    if min(options.repeats, options.batch_size, min(options.prompts, default=0)) < 1:
        raise InputError("--repeats, --batch-size and --prompts must be 1 or more.")
    for name in options.models:
        if name not in WITH_TWIN:
            raise InputError(f"--models {name}: no model with an official twin; there are {', '.join(WITH_TWIN)}.")
    options.configs()  # refuses a size


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    options = tyro.cli(Options, args=arguments, prog="python -m eval.benchmark")
    with exit_on_input_error():
        check_options(options)
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.threads])  # XLA has a thread for each
        torch.set_num_threads(options.threads)
        device, load = jax.devices()[0].device_kind, os.getloadavg()[0]
        limits = measure_limits()
        print(
            f"{device}, {options.threads} threads, load {load:.1f} when it began; limits: "
            f"{limits.flops_per_second / 1e9:.0f} GFLOP/s, {limits.bytes_per_second / 1e9:.0f} GB/s"
        )
        found = []
        for family in dict.fromkeys(options.rows):
            results, peaks = [], []
            for index, case in enumerate(ROWS[family](options)):
                print(f"{family}: {case.name}", flush=True)
                results.append(measure(case, options.repeats, limits))
                sides = ("ours", *case.theirs) if options.memory and family != "startup" else ()
                peaks.append({side: peak(ROWS[family], options, index, side) for side in sides})
            show([table(f"{family}: medians of {options.repeats} turns", results)])
            if options.memory:
                show([memory_table(f"{family}: peak memory", results, peaks)])
            found += entries(family, results, peaks)
    if options.json is not None:
        facts = {
            "threads": options.threads,
            "repeats": options.repeats,
            "load": load,
            "device": device,
            "limits": dataclasses.asdict(limits),
            "versions": {name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "torch")},
            "rows": found,
        }
        write_text(options.json, json.dumps(facts, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
