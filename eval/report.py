"""Results as a file for programs and as a table for people."""

import json
import os
import pathlib
from collections.abc import Mapping

import rich.box
import rich.markup
from rich.console import Console
from rich.table import Table

from eval.loop import METRICS, Summary
from stablesam_jax.errors import InputError
from stablesam_jax.text_file import write_text

MEAN = "mean"  # unweighted mean of the data sets
TITLES = {"miou": "mIoU", "mbiou": "mBIoU", "msf": "mSF"}
RESULT_FILES = ("results.json", "results.md", "per_image.csv")
Results = Mapping[str, Mapping[str, Summary]]  # system -> data set or MEAN -> kind -> metric -> fraction


def mean_of_sets(sets: Mapping[str, Summary]) -> Summary:
    """The unweighted mean over data sets, as the paper's tables have it (sec. 5.1)."""
    kinds = next(iter(sets.values()))
    return {
        kind: {metric: sum(summary[kind][metric] for summary in sets.values()) / len(sets) for metric in METRICS}
        for kind in kinds
    }


def table(rows: Mapping[str, Summary], *, title: str, first: str) -> Table:
    """One row for each entry, mIoU / mBIoU / mSF in percent for each kind of prompt."""
    kinds = list(next(iter(rows.values())))
    result = Table(title=title, box=rich.box.SIMPLE_HEAD, caption="mIoU / mBIoU / mSF in percent")
    result.add_column(first)
    for kind in kinds:
        result.add_column(kind, justify="right", no_wrap=True)
    for name, summary in rows.items():
        result.add_row(rich.markup.escape(name), *[_cell(summary[kind]) for kind in kinds])
    return result


def show(tables: list[Table]) -> None:
    """Prints tables; wide enough for all columns where the output is no terminal."""
    console = Console(width=None if os.isatty(1) else 400)
    for entry in tables:
        console.print(entry)


def markdown(rows: Mapping[str, Summary], *, first: str) -> str:
    """The same table for a README."""
    kinds = list(next(iter(rows.values())))
    lines = [f"| {first} | " + " | ".join(kinds) + " |", "|---" * (len(kinds) + 1) + "|"]
    lines += [
        f"| {name} | " + " | ".join(_cell(summary[kind]) for kind in kinds) + " |" for name, summary in rows.items()
    ]
    return "\n".join(lines) + "\n"


def write_results(folder: pathlib.Path, results: Results, meta: Mapping[str, object]) -> None:
    """Writes results.json (fractions) and results.md (percent), each as a whole."""
    text = json.dumps({"systems": results, "meta": meta}, indent=2) + "\n"
    sections = [
        f"## {dataset}\n\n" + markdown({system: sets[dataset] for system, sets in results.items()}, first="system")
        for dataset in next(iter(results.values()))
    ]
    note = "mIoU / mBIoU / mSF in percent.\n\n"
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "results.md", note + "\n".join(sections))
    write_text(folder / "results.json", text)


def check_output(folder: pathlib.Path) -> None:
    """Looks whether results can be written, hours before they are; makes nothing.

    Raises:
        InputError: the folder holds results already, or cannot be made or written to.
    """
    if any((folder / name).exists() for name in RESULT_FILES):
        raise InputError(f"{folder}: holds results already, and nothing is overwritten; give another --output.")
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise InputError(f"{folder}: {existing} is no folder that can be written to; give another --output.")


def _cell(metrics: Mapping[str, float]) -> str:
    return " / ".join(f"{100 * metrics[metric]:.1f}" for metric in METRICS)
