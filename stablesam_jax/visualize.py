"""Figures of masks; the only file that imports matplotlib."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from stablesam_jax.prompts import Prompt

HEAT = "magma"  # share of the masks that hold a pixel, 0 to 1
TARGET_COLOUR, PROMPT_COLOUR = "#27e0a3", "#ffb000"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Wobble:
    """One object, several prompts of one kind, and what each system made of them."""

    picture: np.ndarray  # (H, W, 3) uint8
    target: np.ndarray  # (H, W) bool
    kind: str  # of the prompts, as "noisy-box"
    prompts: Sequence[Prompt]  # in pixels of the picture
    masks: dict[str, np.ndarray]  # system -> (len(prompts), H, W) bool
    captions: dict[str, str]  # system -> figures under its name


def wobble_figure(rows: Sequence[Wobble]) -> Figure:
    """How much masks wobble with the prompt: a row for each object, a heat map for each system.

    A stable system's map is white inside the object and black outside; grey is disagreement between prompts.

    Args:
        rows: at least one; all with the same systems.

    Returns:
        A figure, not shown or saved.
    """
    systems = list(rows[0].masks)
    columns = 1 + len(systems)
    heights = [row.picture.shape[0] / row.picture.shape[1] for row in rows]
    figure = Figure(figsize=(3.2 * columns, 3.2 * sum(heights) + 0.35 * len(rows) + 0.6), layout="constrained")
    axes = figure.subplots(len(rows), columns, squeeze=False, height_ratios=heights)
    for row, line in zip(rows, axes, strict=True):
        line[0].imshow(row.picture)
        for prompt in row.prompts:
            if prompt.box is not None:
                x0, y0, x1, y1 = prompt.box
                box = Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, edgecolor=PROMPT_COLOUR, linewidth=0.8)
                line[0].add_patch(box)
            line[0].plot(*prompt.points.T, "o", color=PROMPT_COLOUR, markersize=3, markeredgecolor="black")
        line[0].set_title(f"{len(row.prompts)} prompts: {row.kind}", fontsize=9)
        for axis, system in zip(line[1:], systems, strict=True):
            axis.imshow(row.masks[system].mean(axis=0), cmap=HEAT, vmin=0, vmax=1)
            axis.set_title(f"{system}: {row.captions[system]}", fontsize=9)
        for axis in line:
            _outline(axis, row.target)
            axis.set_xticks([])
            axis.set_yticks([])
            axis.set_xlim(-0.5, row.picture.shape[1] - 0.5)
            axis.set_ylim(row.picture.shape[0] - 0.5, -0.5)
    figure.suptitle("Green: the object. Heat: share of the masks, one per prompt, that hold the pixel.", fontsize=9)
    return figure


def _outline(axis: Axes, mask: np.ndarray) -> None:
    """Draws the edge of a mask, along the picture's border too; nothing where the mask is empty."""
    if not mask.any():
        return  # matplotlib 3.10 warns of a contour of nothing
    height, width = mask.shape
    framed = np.pad(mask, 1).astype(np.float32)
    axis.contour(
        np.arange(-1, width + 1), np.arange(-1, height + 1), framed, levels=[0.5], colors=TARGET_COLOUR, linewidths=0.9
    )
