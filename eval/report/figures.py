"""Figures of evaluations. Every function returns a Figure and neither shows nor saves it."""

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from eval.report.signals import risk_coverage
from eval.report.tables import TITLES
from stablesam_jax.visualize import MASK_COLOUR, TARGET_COLOUR, TEXT, WIDTH, outline, show, tinted

# Okabe and Ito's palette without yellow; markers distinguish lines in print.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000")
MARKERS = "osD^vPX"
PANEL = WIDTH / 3  # inches
SHEET_COLUMNS = 5
RISK_SHOWN = 1.8  # upper end of the axis, times the risk by chance; a signal that ranks good masks last exceeds it

Curves = Mapping[str, Sequence[float]]  # name -> a value at each place


@dataclasses.dataclass(frozen=True, kw_only=True)
class Panel:
    """Curves of every system over one axis."""

    title: str
    places: Sequence[str]  # tick labels of the x axis, from good prompts to bad ones
    axis: str
    curves: Curves  # percent


@dataclasses.dataclass(frozen=True, kw_only=True)
class RiskCoverage:
    """Signals of one system, for its curves of risk over coverage."""

    system: str
    signals: Mapping[str, np.ndarray]  # name -> (N,) confidence
    iou: np.ndarray  # (N,)


def curves_figure(panels: Sequence[Panel], risks: Sequence[RiskCoverage] = ()) -> Figure:
    """Draws accuracy against the quality of prompts, three panels a row; below, risk against coverage on one scale.

    Args:
        panels: at least one; all with the same systems.
        risks: one for each system, or none.
    """
    rows = math.ceil(len(panels) / 3) + math.ceil(len(risks) / 3)
    figure = Figure(figsize=(WIDTH + 1.2, rows * (PANEL + 0.3) + 0.5), layout="constrained")
    axes = figure.subplots(rows, 3, squeeze=False)
    first = math.ceil(len(panels) / 3)
    above, below = axes[:first].ravel(), axes[first:].ravel()
    for axis, panel in zip(above, panels, strict=False):
        for (name, values), colour, marker in _styled(panel.curves):
            axis.plot(panel.places, values, marker=marker, markersize=4, color=colour, linewidth=1.4, label=name)
        _label(axis, panel.title, panel.axis, "percent")
        if max(map(len, panel.places)) > 4:
            axis.tick_params(axis="x", labelrotation=25)
    highest = RISK_SHOWN * max((100 * (1 - one.iou).mean() for one in risks), default=0)
    for axis, one in zip(below, risks, strict=False):
        coverage = 100 * np.arange(1, len(one.iou) + 1) / len(one.iou)
        axis.plot(
            coverage, 100 * risk_coverage(one.iou, one.iou), color="black", linewidth=1, linestyle=":", label="at best"
        )
        axis.axhline(100 * (1 - one.iou).mean(), color="black", linewidth=1, linestyle="--", label="chance")
        for (name, values), colour, _ in _styled(one.signals):
            axis.plot(coverage, 100 * risk_coverage(values, one.iou), color=colour, linewidth=1.4, label=name)
        _label(axis, f"Error, {one.system}", "% of masks, the most confident", "mean 1 - IoU, percent")
        axis.set_ylim(0, highest)
        axis.legend(fontsize=TEXT - 2, frameon=False, loc="upper left")
    for axis in (*above[len(panels) :], *below[len(risks) :]):
        axis.set_axis_off()
    handles, labels = above[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=min(len(labels), 3), fontsize=TEXT, frameon=False)
    return figure


def histogram_figure(values: Mapping[str, Mapping[str, np.ndarray]], metric: str) -> Figure:
    """Draws the histogram of a metric over pictures: a panel for each kind of prompt, a step line for each system.

    Args:
        values: system -> kind -> (P,) fractions.
        metric: its name.
    """
    kinds = list(next(iter(values.values())))
    rows = math.ceil(len(kinds) / 3)
    figure = Figure(figsize=(WIDTH + 1.2, rows * PANEL + 0.5), layout="constrained")
    axes = figure.subplots(rows, min(3, len(kinds)), squeeze=False).ravel()
    bins = np.linspace(0, 100, 21)
    for axis, kind in zip(axes, kinds, strict=False):
        for (name, of), colour, _ in _styled(values):
            counts, _ = np.histogram(100 * of[kind], bins)
            axis.stairs(counts, bins, color=colour, fill=True, alpha=0.15)
            axis.stairs(counts, bins, color=colour, linewidth=1.4, label=name)
        _label(axis, kind, f"{TITLES[metric]}, percent", "pictures")
        axis.set_xlim(0, 100)
        axis.yaxis.set_major_locator(MaxNLocator(integer=True))
    for axis in axes[len(kinds) :]:
        axis.set_axis_off()
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=3, fontsize=TEXT, frameon=False)
    return figure


def alpha_figure(alphas: Mapping[str, Mapping[str, np.ndarray]]) -> Figure:
    """Draws alpha_1 by quality of prompts (sec. 5.2): a panel for each system with a plugin, a box for each kind.

    Args:
        alphas: system -> kind -> (N,) alpha_1 of each object.
    """
    figure = Figure(figsize=(WIDTH, len(alphas) * PANEL + 0.2), layout="constrained")
    for axis, (system, kinds) in zip(figure.subplots(len(alphas), squeeze=False).ravel(), alphas.items(), strict=True):
        axis.boxplot(
            list(kinds.values()),
            tick_labels=list(kinds),
            widths=0.5,
            medianprops={"color": COLOURS[1], "linewidth": 1.6},
            flierprops={"markersize": 2},
        )
        _label(axis, system, "", "α₁, weight of the deformed features")
    return figure


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shown:
    """A picture, its object, and the masks of a system."""

    picture: np.ndarray  # (H, W, 3) uint8
    target: np.ndarray  # (H, W) bool
    share: np.ndarray  # (H, W), share of the masks that contain the pixel
    caption: str


def sheet_figure(title: str, shown: Sequence[Shown]) -> Figure:
    """Draws pictures in a grid: the object outlined in green, masks in blue, deeper where more of them overlap.

    Args:
        title: over all.
        shown: at least one.
    """
    columns = min(SHEET_COLUMNS, len(shown))
    rows = math.ceil(len(shown) / columns)
    side = WIDTH / SHEET_COLUMNS
    figure = Figure(figsize=(columns * side, rows * (0.85 * side + 0.25) + 0.4), layout="constrained")
    figure.suptitle(title, fontsize=TEXT, wrap=True)  # wider than one or two pictures
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis, one in zip(axes, shown, strict=False):
        show(axis, tinted(one.picture / np.float32(255), 0.7 * one.share, MASK_COLOUR))
        axis.set_title(one.caption, fontsize=TEXT - 3)
        outline(axis, one.target, TARGET_COLOUR)
    for axis in axes[len(shown) :]:
        axis.set_axis_off()
    return figure


def _styled(values: Mapping[str, Any]) -> Iterable[tuple[tuple[str, Any], str, str]]:
    return zip(values.items(), COLOURS * len(values), MARKERS * len(values), strict=False)


def _label(axis: Axes, title: str, along: str, up: str) -> None:
    axis.set_title(title, fontsize=TEXT)
    axis.set_xlabel(along, fontsize=TEXT - 1)
    axis.set_ylabel(up, fontsize=TEXT - 1)
    axis.tick_params(labelsize=TEXT - 2)
    axis.grid(linewidth=0.3)
    axis.spines[["right", "top"]].set_visible(False)
