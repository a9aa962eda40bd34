"""Results of a benchmark as tables, as JSON and as a figure."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import rich.box
from matplotlib.figure import Figure
from rich.table import Table

from bench.case import Result
from bench.device import Precision
from bench.memory import Peak

_WIDTH, _BAR, _PANEL = 8.3, 0.28, 2.6  # inches
_OURS = "stablesam_jax"


def table(title: str, results: Sequence[Result]) -> Table:
    """A table of our times in milliseconds, theirs / ours, and the share of the machine's limit that ours reach."""
    others = list(dict.fromkeys(other for row in results for other in row.ratios))
    result = Table(title=title, box=rich.box.SIMPLE_HEAD, caption="theirs / ours: above 1 we are faster")
    result.add_column("")
    headers = ["model", "ours, ms", *(f"{other} / ours" for other in others), "of the limit"]
    rates = any(row.pictures_per_second is not None for row in results)
    for header in [*headers, "pictures / s"] if rates else headers:
        result.add_column(header, justify="right", no_wrap=True)
    for row in results:
        ratios = (f"{row.ratios[other]:.2f}" if other in row.ratios else "" for other in others)
        limit = "" if row.share_of_limit is None else f"{100 * row.share_of_limit:.0f} %"
        rate = [] if row.pictures_per_second is None else [f"{row.pictures_per_second:.1f}"]
        result.add_row(row.name, row.model, f"{1e3 * row.seconds:.1f}", *ratios, limit, *rate)
    return result


def memory_table(title: str, results: Sequence[Result], peaks: Sequence[Mapping[str, Peak]]) -> Table:
    """A table of the peak memory of every side, above the process's base and in all."""
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


def entries(
    family: str, results: Sequence[Result], peaks: Sequence[Mapping[str, Peak]], dtype: Precision
) -> list[dict[str, Any]]:
    """One entry for each comparison, as values that JSON can hold; none for a row without a peer."""
    return [
        {
            "row": family,
            "case": row.name,
            "model": row.model,
            "dtype": dtype,
            "ours_s": row.seconds,
            "peer": peer,
            "peer_s": ratio * row.seconds,
            "ratio": ratio,
            "difference": row.differences.get(peer),
            "share_of_limit": row.share_of_limit,
            "ours_pictures_per_s": row.pictures_per_second,
            "ours_peak_mib": dataclasses.asdict(found["ours"]) if found else None,
            "peer_peak_mib": dataclasses.asdict(found[peer]) if found else None,
        }
        for row, found in zip(results, peaks, strict=True)
        for peer, ratio in row.ratios.items()
    ]


def markdown(found: Sequence[Mapping[str, Any]]) -> str:
    """The entries of all families as one table."""
    lines = ["| row | model | ours, ms | theirs | theirs / ours | of the limit | peak above base, MiB: ours, theirs |"]
    lines.append("|---|---|---|---|---|---|---|")
    for entry in found:
        share = "" if entry["share_of_limit"] is None else f"{entry['share_of_limit']:.0%}"
        peaks = ""
        if entry["ours_peak_mib"] is not None:
            peaks = ", ".join(f"{entry[side]['above_base']:.0f}" for side in ("ours_peak_mib", "peer_peak_mib"))
        cells = (
            entry["case"],
            entry["model"],
            f"{1e3 * entry['ours_s']:.1f}",
            entry["peer"],
            f"{entry['ratio']:.2f}",
            share,
            peaks,
        )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def figure(results: Sequence[Result]) -> Figure:
    """Ratios as bars, and below them time over size for rows that differ in size alone.

    Args:
        results: at least one with a ratio.
    """
    bars = [(f"{row.name} {row.model}".strip(), other, ratio) for row in results for other, ratio in row.ratios.items()]
    panels = _curves(results)
    heights = [_BAR * len(bars) + 0.4, *[_PANEL] * len(panels)]
    result = Figure(figsize=(_WIDTH, sum(heights)), layout="constrained")
    first, *others = result.subplots(len(heights), squeeze=False, height_ratios=heights)[:, 0]
    names = [f"{name}, {other}" for name, other, _ in bars]
    shown = first.barh(range(len(bars)), [ratio for *_, ratio in bars], color="#1e88e5")
    first.bar_label(shown, fmt=" %.2f", fontsize=8)
    first.set(yticks=range(len(bars)), xlabel="theirs / ours: above 1 we are faster")
    first.set_yticklabels(names, fontsize=8)
    first.invert_yaxis()
    first.axvline(1, color="black", linewidth=0.8)
    for axis, (grows, curves) in zip(others, panels.items(), strict=True):
        for name, points in curves.items():
            xs, seconds = zip(*sorted(points.items()), strict=True)
            axis.loglog(xs, seconds, "o-", markersize=3, label=name)
        axis.set(xlabel=grows, ylabel="seconds")
        axis.grid(linewidth=0.4)
        axis.legend(fontsize=7)
    return result


def _curves(results: Sequence[Result]) -> dict[str, dict[str, dict[int, float]]]:
    """Axis -> curve and side -> size -> seconds, for curves with at least two sizes."""
    panels: dict[str, dict[str, dict[int, float]]] = {}
    for row in results:
        seconds = {_OURS: row.seconds, **{side: ratio * row.seconds for side, ratio in row.ratios.items()}}
        for point in row.points:
            for side, taken in seconds.items():
                panels.setdefault(point.axis, {}).setdefault(f"{point.curve}, {side}", {})[point.at] = taken
    long = {axis: {name: of for name, of in curves.items() if len(of) > 1} for axis, curves in panels.items()}
    return {axis: curves for axis, curves in long.items() if curves}
