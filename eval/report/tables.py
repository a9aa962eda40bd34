"""Results of evaluations as JSON, as Markdown and as tables on the terminal."""

import dataclasses
import json
import math
import os
import pathlib
import shlex
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import rich.box
import rich.markup
from rich.console import Console
from rich.table import Table

from eval.journal import JOURNAL
from eval.loop import METRICS, Summary
from eval.report.bootstrap import FEWEST, Interval
from stablesam_jax.errors import InputError
from stablesam_jax.files.disk import write_text

NOISE = "≈"
MEAN = "mean"  # unweighted mean of the data sets
TITLES = {
    "miou": "mIoU", "mbiou": "mBIoU", "msf": "mSF", "ap": "AP", "ap50": "AP50", "boundary_ap": "boundary AP",
    "tight": "tight IoU", "worst": "worst IoU", "best": "best IoU", "delta": "best - worst",
    "auc": "AUC", "true": "mean of true boxes", "sloppy": "of sloppy boxes",
    "user": "users' boxes", "user_worst": "worst user's box",
    "single": "single mask", "three": "best of three by predicted IoU", "three_scored": "by it x stability score",
    "four": "best of four by predicted IoU", "four_scored": "by it x stability score",
    "best_of_three": "truly best of three", "best_of_four": "truly best of four",
    "first": "IoU after one click", "noc80": "NoC80", "noc85": "NoC85", "noc90": "NoC90",
}  # fmt: skip
COUNTS = ("noc80", "noc85", "noc90")  # metrics that are numbers of clicks; all others are fractions
RESULT_FILES = ("results.json", "results.md", "per_image.csv", "per_object.csv", "per_class.csv", "wobble.md")
Results = Mapping[str, Mapping[str, Summary]]  # system -> data set or mean -> kind -> metric -> fraction or nan
SummaryIntervals = Mapping[str, Mapping[str, Interval]]  # kind -> metric -> interval


@dataclasses.dataclass(frozen=True, kw_only=True)
class Uncertainty:
    """Bootstrap intervals of the results."""

    intervals: Mapping[str, Mapping[str, SummaryIntervals]]  # system -> data set or mean
    differences: Mapping[tuple[str, str], Mapping[str, SummaryIntervals]]  # two systems -> data set or mean

    def differences_from(self, system: str) -> dict[str, Mapping[str, SummaryIntervals]]:
        """Differences of the later systems from this one, by system."""
        return {other: sets for (one, other), sets in self.differences.items() if one == system}


def mean_of_sets(sets: Mapping[str, Summary]) -> Summary:
    """The unweighted mean over data sets, as in the paper's tables (sec. 5.1); nan is left out."""
    kinds = next(iter(sets.values()))
    return {
        kind: {metric: _mean([summary[kind][metric] for summary in sets.values()]) for metric in metrics}
        for kind, metrics in kinds.items()
    }


def table(rows: Mapping[str, Summary], *, title: str, first: str, metrics: Sequence[str] = METRICS) -> Table:
    """A table with a row for each entry and a column for each kind of prompt; four kinds fit 80 columns."""
    kinds = list(next(iter(rows.values())))
    result = Table(title=title, box=rich.box.SIMPLE_HEAD, caption=legend(metrics))
    result.add_column(first, min_width=6, overflow="fold")
    for kind in kinds:
        result.add_column(kind, justify="right", no_wrap=True)
    for name, summary in rows.items():
        narrow = [cell(summary[kind], metrics).replace(" / ", "/") for kind in kinds]
        result.add_row(rich.markup.escape(name), *narrow)
    return result


def show(tables: list[Table]) -> None:
    """Prints tables, unwrapped where the output is not a terminal."""
    console = Console(width=None if os.isatty(1) else 400)
    for entry in tables:
        console.print(entry)


def markdown(rows: Mapping[str, Summary], *, first: str, metrics: Sequence[str] = METRICS) -> str:
    """The same table for a README."""
    kinds = list(next(iter(rows.values())))
    lines = [f"| {first} | " + " | ".join(kinds) + " |", "|---" * (len(kinds) + 1) + "|"]
    lines += [
        f"| {name} | " + " | ".join(cell(summary[kind], metrics) for kind in kinds) + " |"
        for name, summary in rows.items()
    ]
    return "\n".join(lines) + "\n"


def described(meta: Mapping[str, Any]) -> dict[str, str]:
    """What results are of, in words: title -> text. What `meta` does not have is left out."""
    data = meta.get("data", {})
    of_each = [f"{name}: {one['pictures']:,} pictures in {one['groups']:,} groups" for name, one in data.items()]
    size = meta.get("image_size")
    lines = {
        "Data": "; ".join(of_each),
        "Prompts": ", ".join(meta.get("prompts", ())),
        "Of each random kind": f"{meta['count']} for each object, seed {meta.get('seed')}" if "count" in meta else "",
        "Input": f"{size} pixels" if size else "the size of each system's model" if data else "",
        "Version": meta.get("version", ""),
        "Command": " ".join(map(shlex.quote, meta.get("run", {}).get("command", ())[1:])),
    }
    if lines["Command"]:
        lines["Command"] = f"{meta['run']['command'][0]} {lines['Command']}"
    return {title: text for title, text in lines.items() if text}


def differences_markdown(rows: Mapping[str, Mapping[str, Mapping[str, Interval]]], metrics: Sequence[str]) -> str:
    """Differences from a system, in points of a percent or clicks; those whose interval contains 0 have `NOISE`."""
    kinds = list(next(iter(rows.values())))
    lines = [f"| system | metric | {' | '.join(kinds)} |", "|---" * (len(kinds) + 2) + "|"]
    lines += [
        f"| {name} | {TITLES[metric]} | {' | '.join(difference_cell(row[kind][metric], metric) for kind in kinds)} |"
        for name, row in rows.items()
        for metric in metrics
    ]
    return "\n".join(lines) + "\n"


def write_results(
    folder: pathlib.Path,
    results: Results,
    meta: Mapping[str, object],
    *,
    metrics: Sequence[str] = METRICS,
    uncertainty: Uncertainty | None = None,
    more: Mapping[str, object] | None = None,
) -> None:
    """Writes results.md (percent) and results.json (fractions; null for nan), each atomically.

    results.json comes last: where it exists, everything is written.

    Args:
        folder: created if needed.
        results: of every system.
        meta: settings and versions that made the results.
        metrics: shown in tables.
        uncertainty: makes the entries `intervals` ([low, high]) and `differences` (from a system, of a later one).
        more: other entries of results.json.
    """
    entries: dict[str, object] = {"systems": results}
    if uncertainty is not None:
        entries["intervals"] = _mapped(uncertainty.intervals, lambda one: [one.low, one.high])
        entries["differences"] = {
            first: _mapped(rows, lambda one: one._asdict())
            for first in results
            if (rows := uncertainty.differences_from(first))
        }
    text = json.dumps(_without_nan({**entries, **(more or {}), "meta": meta}), indent=2, allow_nan=False) + "\n"
    sections = [
        f"## {dataset}\n\n"
        + markdown({system: sets[dataset] for system, sets in results.items()}, first="system", metrics=metrics)
        for dataset in next(iter(results.values()))
    ]
    for first in results if uncertainty is not None else ():
        if not (rows := uncertainty.differences_from(first)):
            continue
        sections.append(
            f"## Differences from {first}\n\nIn {_unit(metrics)}, with 95 % intervals over groups of pictures "
            f"(bootstrap, paired). {NOISE}: the interval contains 0, so it may be noise; or it is not known, where a "
            f"set has fewer than {FEWEST} groups.\n"
        )
        sections += [
            f"### {dataset}\n\n" + differences_markdown({name: sets[dataset] for name, sets in rows.items()}, metrics)
            for dataset in next(iter(rows.values()))
        ]
    about = "".join(
        f"- {title}: {f'`{text}`' if title == 'Command' else text}\n" for title, text in described(meta).items()
    )
    write_text(folder / "results.md", f"{legend(metrics)}.\n\n{about}\n" + "\n".join(sections))
    write_text(folder / "results.json", text)


def short_names(systems: Sequence[str]) -> list[str]:
    """Names of systems for figures: the last two parts of a path, or the whole where these are ambiguous."""
    short = [
        "+".join("/".join(pathlib.PurePath(part.removesuffix(".safetensors")).parts[-2:]) for part in system.split("+"))
        for system in systems
    ]
    return short if len(set(short)) == len(short) else list(systems)


def check_output(folder: pathlib.Path) -> None:
    """Checks that results can be written, before hours of work; creates nothing.

    Raises:
        InputError: the folder holds results, or cannot be created or written to. Results beside a journal are allowed:
            that evaluation was killed while it wrote them.
    """
    if not (folder / JOURNAL).exists() and any((folder / name).exists() for name in RESULT_FILES):
        raise InputError(f"{folder}: holds results already, and nothing is overwritten; give another --output.")
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder}: is a file; give a folder as --output.")
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise InputError(f"{folder}: {existing} is no folder that can be written to; give another --output.")


def legend(metrics: Sequence[str]) -> str:
    units: dict[str, list[str]] = {"percent": [], "clicks": []}
    for metric in metrics:
        units["clicks" if metric in COUNTS else "percent"].append(TITLES[metric])
    return ", ".join(f"{' / '.join(titles)} in {unit}" for unit, titles in units.items() if titles)


def _unit(metrics: Sequence[str]) -> str:
    """Of differences."""
    return "points of a percent, and clicks" if set(COUNTS) & set(metrics) else "points of a percent"


def cell(values: Mapping[str, float], metrics: Sequence[str]) -> str:
    return " / ".join("-" if math.isnan(values[metric]) else _figure(values[metric], metric) for metric in metrics)


def difference_cell(one: Interval, metric: str) -> str:
    value, low, high = (_figure(bound, metric, "+") for bound in one)
    text = value if math.isnan(one.low) else f"{value} ({low} to {high})"
    return f"{NOISE} {text}" if one.is_noise else text


def _figure(value: float, metric: str, sign: str = "") -> str:
    return format(value, f"{sign}.2f") if metric in COUNTS else format(100 * value, f"{sign}.1f")


def _mapped(value: Any, change: Callable[[Interval], object]) -> object:
    """Nested mappings with `change` applied to every interval."""
    if isinstance(value, Interval):
        return change(value)
    return {key: _mapped(entry, change) for key, entry in value.items()}


def _mean(values: Sequence[float]) -> float:
    defined = [value for value in values if not math.isnan(value)]
    return sum(defined) / len(defined) if defined else math.nan


def _without_nan(value: object) -> object:
    """Replaces nan, which JSON has not, by None."""
    if isinstance(value, Mapping):
        return {key: _without_nan(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(entry) for entry in value]
    return None if isinstance(value, float) and math.isnan(value) else value
