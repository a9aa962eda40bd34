"""Benchmarks: every result is a ratio, theirs / ours, of times measured alternately in one run.

    python -m bench --rows encoder point decode predict stability startup train

`ROWS` has, for each family of rows, the function that yields its cases.
"""

import dataclasses
import importlib.metadata
import json
import os
import sys
from collections.abc import Mapping, Sequence

import jax
import torch
import tyro

from bench.box_search import box_search_cases
from bench.case import Family, Options, Rows, measure
from bench.data import data_cases
from bench.device import set_up, share_gpu, torch_device
from bench.inference import decode_cases, encoder_cases, point_cases, predict_cases, stability_cases
from bench.limits import measure_limits
from bench.memory import peak
from bench.onnx_peer import onnx_cases
from bench.output import entries, figure, markdown, memory_table, table
from bench.plugin import plugin_cases
from bench.sampler import sampler_cases
from bench.startup import startup_cases
from bench.train import train_cases
from eval.report.tables import show
from stablesam_jax import parallel
from stablesam_jax.commands import called, command_line
from stablesam_jax.config import MODELS
from stablesam_jax.errors import InputError, exit_on_input_error
from stablesam_jax.files.disk import check_writable, write_text
from stablesam_jax.visualize import save_figure

ROWS: Mapping[Family, Rows] = {
    "sampler": sampler_cases,
    "plugin": plugin_cases,
    "data": data_cases,
    "train": train_cases,
    "encoder": encoder_cases,
    "point": point_cases,
    "decode": decode_cases,
    "predict": predict_cases,
    "stability": stability_cases,
    "startup": startup_cases,
    "box_search": box_search_cases,
    "onnx": onnx_cases,
}
IN_ANY_DTYPE: tuple[Family, ...] = ("encoder", "point", "decode", "predict", "stability")
WITH_TWIN = [name for name, config in MODELS.items() if not (config.hq or config.plugin or name == "sam_nano")]
OF_SAM2: tuple[Family, ...] = ("encoder", "decode")


def check_options(options: Options) -> None:
    """Raises an InputError that names the first option that cannot be used."""
    if options.json is not None:
        check_writable(options.json, "--json")
    available = len(os.sched_getaffinity(0))
    if not 1 <= options.threads <= available:
        raise InputError(f"--threads {options.threads}: must be from 1 to {available}, the available processors.")
    if ("data" in options.rows) != bool(options.data_dir):
        raise InputError("--rows data and --data-dir go together: give folders with im/ and gt/.")
    if min(options.repeats, options.batch_size, *(options.prompts or [0]), *(options.pictures or [0])) < 1:
        raise InputError("--repeats, --batch-size, --prompts and --pictures must be 1 or more.")
    for name in options.models:
        if name not in WITH_TWIN:
            raise InputError(
                f"--models {name}: no model that is compared with a twin; there are {', '.join(WITH_TWIN)}."
            )
        if MODELS[name].sam2 and (others := [row for row in options.rows if row not in OF_SAM2]):
            raise InputError(f"--models {name}: {others[0]} has no SAM 2; {' and '.join(OF_SAM2)} have.")
    if options.dtype != "float32" and (others := [row for row in options.rows if row not in IN_ANY_DTYPE]):
        raise InputError(
            f"--dtype {options.dtype}: {others[0]} is compared in float32 only; {', '.join(IN_ANY_DTYPE)} in any dtype."
        )
    if options.dtype == "tf32" and torch_device().type == "cpu":
        raise InputError("--dtype tf32: is for a GPU; a CPU has no TF32.")
    options.configs()  # raises for an input size that a model cannot have


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    with exit_on_input_error():
        options = tyro.cli(Options, args=command_line(arguments), prog=called("bench"))
        share_gpu()
        check_options(options)
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.threads])  # XLA starts one thread for each
        torch.set_num_threads(options.threads)
        parallel.split_cpu(options.batch_size)  # as train.main does; a program on one of the devices has all threads
        set_up(options.dtype)
        device, load = jax.devices()[0].device_kind, os.getloadavg()[0]
        limits = measure_limits(options.dtype)
        print(
            f"{device}, {options.threads} threads, load {load:.1f} at the start; limits: "
            f"{limits.flops_per_second / 1e9:.0f} GFLOP/s, {limits.bytes_per_second / 1e9:.0f} GB/s"
        )
        found, measured = [], []
        for family in dict.fromkeys(options.rows):
            results, peaks = [], []
            for index, case in enumerate(ROWS[family](options)):
                print(f"{family}: {case.name}", flush=True)
                results.append(measure(case, options.repeats, limits))
                sides = ("ours", *results[-1].ratios) if options.memory and family != "startup" else ()
                peaks.append({side: peak(ROWS[family], options, index, side) for side in sides})
            show([table(f"{family}: medians of {options.repeats} turns", results)])
            if options.memory:
                show([memory_table(f"{family}: peak memory", results, peaks)])
            found += entries(family, results, peaks, options.dtype)
            measured += results
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
        write_text(options.json.with_name(f"{options.json.name}.md"), markdown(found))
        save_figure(figure(measured), options.json.with_name(f"{options.json.name}.png"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
