"""Figures of masks, prompts and the plugin's resampling; the only file of the library that imports matplotlib.

Every function returns a Figure and neither shows nor saves it; `figure.savefig("name.png", dpi=100)` fits a README. In
all figures the object is green, prompts are magenta, masks blue, and the plugin's positions orange. The colours differ
in lightness too.
"""

import dataclasses
import math
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.collections import EllipseCollection
from matplotlib.colors import Normalize, to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.text import Text

from stablesam_jax.files.disk import whole_file
from stablesam_jax.metrics import stability
from stablesam_jax.predict.explain import Explanation
from stablesam_jax.prompts import Prompt

WIDTH = 8.3  # inches
TEXT = 9  # points
TITLE = 0.24  # inches above a picture
HEAT = "magma"  # for weights in [0, 1] on a black ground
SHARES = "YlGnBu"  # for the share of masks that contain a pixel, 0 to 1, over the picture
TARGET_COLOUR, PROMPT_COLOUR, MASK_COLOUR, PLUGIN_COLOUR = "#27e0a3", "#e5007d", "#1e88e5", "#f07800"
UNION_COLOUR = "#202020"
# Several masks on one picture: Okabe and Ito's palette, neighbours differing in lightness.
MASK_COLOURS = ("#56b4e9", "#d55e00", "#f0e442", "#0072b2", "#e69f00", "#009e73", "#cc79a7")
LARGEST_CIRCLE = 1.3  # cells, radius for the largest attention weight
SHEET_COLUMNS = 8  # of training samples
MOST_ARROWS = 32  # along the longer side


@dataclasses.dataclass(frozen=True, kw_only=True)
class Wobble:
    """One object, several prompts of one kind, and the masks of each system."""

    picture: np.ndarray  # (H, W, 3) uint8
    target: np.ndarray  # (H, W) bool
    kind: str  # of the prompts, as "noisy-box"
    prompts: Sequence[Prompt]  # in pixels of the picture
    masks: dict[str, np.ndarray]  # system -> (len(prompts), H, W) bool
    captions: dict[str, str]  # system -> text behind its name


def wobble_figure(rows: Sequence[Wobble]) -> Figure:
    """Draws how masks vary with the prompt: a row for each object, a column for each system, all on one scale.

    Over the grey picture each pixel has the colour of the share of the masks that contain it. A stable system has one
    dark colour on the object and none beside it.

    Args:
        rows: at least one; all with the same systems.
    """
    systems = list(rows[0].masks)
    columns = 1 + len(systems)
    heights = [_ratio(row.picture) for row in rows]
    figure = Figure(figsize=(3.2 * columns + 0.8, 3.2 * sum(heights) + 0.35 * len(rows) + 0.6), layout="constrained")
    axes = figure.subplots(len(rows), columns, squeeze=False, height_ratios=heights)
    colours = ScalarMappable(Normalize(0, 1), SHARES)
    for row, line in zip(rows, axes, strict=True):
        show(line[0], row.picture, f"{len(row.prompts)} prompts: {row.kind}")
        for prompt in row.prompts:
            _draw_prompt(line[0], prompt, size=0.5)
        for axis, system in zip(line[1:], systems, strict=True):
            share = row.masks[system].mean(axis=0)
            opacity = (0.8 * (share > 0))[..., None]
            coloured = (1 - opacity) * _muted(row.picture) + opacity * colours.to_rgba(share)[..., :3]
            show(axis, coloured, f"{system}\n{row.captions[system]}")
        for axis in line:
            outline(axis, row.target, TARGET_COLOUR)
    bar = figure.colorbar(colours, ax=axes, fraction=0.05, pad=0.01, aspect=30)
    bar.set_label("share of the masks that contain the pixel", fontsize=TEXT)
    bar.ax.tick_params(labelsize=TEXT - 1)
    figure.suptitle(
        "Masks of several prompts (magenta) for one object (green). Stable: one dark colour on it, none beside it.",
        fontsize=TEXT + 1,
    )
    return figure


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sample:
    """One prompt of training and its target."""

    picture: np.ndarray  # (S, S, 3) uint8, the frame that the model sees
    target: np.ndarray  # (S, S) bool
    others: np.ndarray  # (M, S, S) bool, all other objects, including a pasted occluder
    prompt: Prompt  # in pixels of the frame
    caption: str


def samples_figure(samples: Sequence[Sample]) -> Figure:
    """Draws training samples: the target green, other objects outlined in orange, the prompt magenta.

    Args:
        samples: at least one.
    """
    columns = min(len(samples), SHEET_COLUMNS)
    rows = math.ceil(len(samples) / columns)
    side = 2 * WIDTH / SHEET_COLUMNS
    figure = Figure(figsize=(columns * side, rows * (side + TITLE)), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis, sample in zip(axes, samples, strict=False):
        show(axis, tinted(sample.picture / np.float32(255), 0.35 * sample.target, TARGET_COLOUR), sample.caption)
        for other in sample.others:
            outline(axis, other, PLUGIN_COLOUR)
        outline(axis, sample.target, TARGET_COLOUR)
        if sample.prompt.mask is not None:
            factor = len(sample.target) // len(sample.prompt.mask)
            outline(axis, np.kron(sample.prompt.mask > 0, np.ones((factor, factor), bool)), PROMPT_COLOUR)
        _draw_prompt(axis, sample.prompt, size=0.7)
    for axis in axes[len(samples) :]:
        axis.set_axis_off()
    return figure


def save_figure(figure: Figure, path: pathlib.Path) -> None:
    """Writes or replaces a picture file atomically, in the format of its suffix.

    Raises:
        InputError: it cannot be written.
    """
    _make_texts_plain(figure)
    with whole_file(path, replace=True) as temporary:
        figure.savefig(temporary, dpi=110, format=path.suffix.removeprefix("."))


def pixels(figure: Figure) -> np.ndarray:
    """The figure as (H, W, 3) uint8."""
    _make_texts_plain(figure)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3]


def _make_texts_plain(figure: Figure) -> None:
    """Lets texts hold any name: matplotlib takes what is between two `$` for a formula, and no font has surrogates."""
    for text in figure.findobj(Text):
        text.set_parse_math(False)
        text.set_text(text.get_text().encode(errors="backslashreplace").decode())


def masks_figure(picture: np.ndarray, prompts: Sequence[Prompt], masks: np.ndarray) -> Figure:
    """Draws masks and their prompts on the picture: dots on the object, crosses beside it, boxes.

    Args:
        picture: (H, W, 3) uint8.
        prompts: N, in pixels of the picture. If there are several, each has the colour of its mask.
        masks: (N, H, W) bool.
    """
    figure = Figure(figsize=(WIDTH, WIDTH * _ratio(picture)), layout="constrained")
    axis = figure.subplots()
    colours = [MASK_COLOURS[index % len(MASK_COLOURS)] for index in range(len(masks))]
    shown = picture / np.float32(255)
    for mask, colour in zip(masks, colours, strict=True):
        shown = tinted(shown, 0.5 * mask, colour)
    show(axis, shown)
    for mask, prompt, colour in zip(masks, prompts, colours, strict=True):
        outline(axis, mask, colour)
        _draw_prompt(axis, prompt, PROMPT_COLOUR if len(masks) == 1 else colour)
    return figure


def attention_figure(
    picture: np.ndarray, explanation: Explanation, index: int = 0, target: np.ndarray | None = None
) -> Figure:
    """Draws the attention of the output mask token as the paper's orange circles, without the plugin and with it.

    Each cell has a circle where its features are read: at its centre without the plugin, at the sampled position with
    it. The radius shows the attention weight, on one scale for both.

    Args:
        picture: (H, W, 3) uint8.
        explanation: from `explain`.
        index: of the prompt.
        target: (H, W) bool, the object: outlined, and the title has the share of the attention on it.
    """
    figure = Figure(figsize=(WIDTH, WIDTH / 2 * _ratio(picture) + TITLE), layout="constrained")
    panels = {
        "Without the plugin": (explanation.cells, explanation.before[index]),
        "With it": (explanation.positions[index], explanation.after[index]),
    }
    cell = 2 * (explanation.cells[0, 0, 0] + 0.5)  # pixels; the first centre is half a cell from the edge
    scale = LARGEST_CIRCLE * cell / max(weights.max() for _, weights in panels.values())
    for axis, (title, (places, weights)) in zip(figure.subplots(1, 2), panels.items(), strict=True):
        if target is not None:
            title += f": {_share_on(target, places, weights):.0%} of the attention on the object"
        show(axis, _muted(picture), title)
        if target is not None:
            outline(axis, target, TARGET_COLOUR)
        diameters = 2 * scale * weights.ravel()
        circles = EllipseCollection(
            diameters,
            diameters,
            np.zeros_like(diameters),
            units="xy",
            offsets=places.reshape(-1, 2),
            offset_transform=axis.transData,
            facecolors=PLUGIN_COLOUR,
            edgecolors="black",
            linewidths=0.6 * np.sqrt(weights.ravel() / weights.max()),  # thinner, so that zero weights draw no dots
            alpha=0.8,
        )
        axis.add_collection(circles)
        _draw_prompt(axis, explanation.prompts[index])
    return figure


def offsets_figure(
    picture: np.ndarray, explanation: Explanation, index: int = 0, target: np.ndarray | None = None
) -> Figure:
    """Draws the plugin's offsets as arrows from the centre of a cell to its sampled position.

    Of large maps every second or third row and column is drawn.

    Args:
        picture: (H, W, 3) uint8.
        explanation: from `explain`.
        index: of the prompt.
        target: (H, W) bool, the object, outlined.
    """
    figure = Figure(figsize=(WIDTH, WIDTH * _ratio(picture)), layout="constrained")
    axis = figure.subplots()
    show(axis, _muted(picture))
    if target is not None:
        outline(axis, target, TARGET_COLOUR)
    step = math.ceil(max(explanation.cells.shape) / MOST_ARROWS)
    start, end = explanation.cells[::step, ::step], explanation.positions[index, ::step, ::step]
    axis.quiver(
        *np.moveaxis(start, -1, 0),
        *np.moveaxis(end - start, -1, 0),
        color=PLUGIN_COLOUR,
        angles="xy",
        scale_units="xy",
        scale=1,
        width=0.0022,
        headwidth=4.5,
        headlength=5,
        headaxislength=4.5,
        minlength=0,
    )
    _draw_prompt(axis, explanation.prompts[index])
    return figure


def stability_figure(picture: np.ndarray, prompts: Sequence[Prompt], masks: np.ndarray) -> Figure:
    """Draws the masks of several prompts for one object and their union, and shows mSF, the share that they fill.

    Args:
        picture: (H, W, 3) uint8.
        prompts: N, in pixels of the picture.
        masks: (N, H, W) bool.
    """
    union: np.ndarray = np.any(masks, axis=0)
    area = max(1, int(np.count_nonzero(union)))
    columns = round(math.sqrt(1.25 * len(masks)))
    rows = math.ceil(len(masks) / columns)
    # The two pictures on the left are together as high as the rows of small ones on the right.
    ratio, share = _ratio(picture), rows / columns
    left = (share * WIDTH * ratio + (rows - 2) * TITLE) / (ratio * (2 + share))
    left = min(max(left, 0.25 * WIDTH), 0.5 * WIDTH)
    height = max(2 * (left * ratio + TITLE), rows * ((WIDTH - left) / columns * ratio + TITLE))
    figure = Figure(figsize=(WIDTH, height + 1.5 * TITLE), layout="constrained")
    figure.suptitle(
        f"mSF {stability(masks):.2f}: how much of the union (dark outline) a mask (blue) fills, on average",
        fontsize=TEXT + 1,
    )
    beside, grid = figure.subfigures(1, 2, squeeze=False, width_ratios=[left, WIDTH - left])[0]
    upper, lower = beside.subplots(2, 1)
    show(upper, picture, f"{len(prompts)} prompts")
    for prompt in prompts:
        _draw_prompt(upper, prompt, size=0.5)
    muted = _muted(picture)
    show(lower, tinted(muted, 0.9 * masks.mean(axis=0), MASK_COLOUR), "all masks, and their union")
    outline(lower, union, UNION_COLOUR)
    _zoom(lower, union)
    panels = grid.subplots(rows, columns, squeeze=False).ravel()
    for axis, mask in zip(panels, masks, strict=False):
        filled = np.count_nonzero(mask) / area
        show(axis, tinted(muted, 0.7 * mask, MASK_COLOUR), f"{filled:.2f}")
        outline(axis, union, UNION_COLOUR)
        _zoom(axis, union)
    for axis in panels[len(masks) :]:
        axis.set_axis_off()
    return figure


def alpha_figure(picture: np.ndarray, explanations: Mapping[str, Explanation]) -> Figure:
    """Draws the router's alpha_1: a row for each kind of prompt, a dot for each prompt.

    Args:
        picture: (H, W, 3) uint8.
        explanations: kind -> from `explain`.
    """
    height = max(1.1, 0.25 * WIDTH * _ratio(picture))
    figure = Figure(figsize=(WIDTH, len(explanations) * (height + TITLE) + 0.5), layout="constrained")
    axes = figure.subplots(len(explanations), 2, squeeze=False, width_ratios=[1, 3])
    most = max(1.0, *(float(explanation.alpha.sum(axis=1).max()) for explanation in explanations.values()))
    for (left, right), (kind, explanation) in zip(axes, explanations.items(), strict=True):
        show(left, picture, kind)
        for prompt in explanation.prompts:
            _draw_prompt(left, prompt, size=0.5)
        deformed = explanation.alpha[:, 0]
        right.axvline(deformed.mean(), color="black", linewidth=0.8)
        right.plot(
            deformed,
            np.arange(len(deformed)),
            "o",
            color=PLUGIN_COLOUR,
            markersize=4,
            markeredgecolor="black",
            markeredgewidth=0.4,
            clip_on=False,
        )
        right.set_title(f"{deformed.min():.3f} to {deformed.max():.3f}, mean {deformed.mean():.3f}", fontsize=TEXT)
        right.set(xlim=(0, most), ylim=(len(deformed), -1), yticks=[])
        right.tick_params(labelsize=TEXT - 1, labelbottom=False)
        right.grid(axis="x", linewidth=0.4)
        right.spines[["left", "right", "top"]].set_visible(False)
    right.tick_params(labelbottom=True)
    right.set_xlabel("α₁, weight of the features read at the sampled positions", fontsize=TEXT)
    return figure


def _ratio(picture: np.ndarray) -> float:
    return picture.shape[0] / picture.shape[1]


def show(axis: Axes, picture: np.ndarray, title: str = "") -> None:
    """Draws a picture, or shares in [0, 1] as a heat map, without ticks and frame; fixes the limits of the axes."""
    axis.imshow(picture, cmap=HEAT, vmin=0, vmax=1)
    axis.set_title(title, fontsize=TEXT)
    axis.set(xticks=[], yticks=[], autoscale_on=False)
    axis.spines[:].set_visible(False)


def _zoom(axis: Axes, mask: np.ndarray) -> None:
    """Limits the axes to the surroundings of a mask, with the aspect ratio of the picture."""
    if not mask.any():
        return
    size = np.array(mask.shape)
    place = np.argwhere(mask)
    first, last = place.min(axis=0), place.max(axis=0) + 1
    shown = size * min(1, 1.1 * ((last - first) / size).max())
    top, left = np.clip((first + last - shown) / 2, 0, size - shown) - 0.5
    axis.set(xlim=(left, left + shown[1]), ylim=(top + shown[0], top))


def _muted(picture: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 -> (H, W, 3) float32 in light grey, on which colours are visible."""
    grey = picture @ np.array([0.299, 0.587, 0.114], np.float32) / 255
    return np.repeat((0.4 + 0.55 * grey)[..., None], 3, axis=-1)


def tinted(picture: np.ndarray, opacity: np.ndarray, colour: str) -> np.ndarray:
    """(H, W, 3) float32 and opacity (H, W) in [0, 1] -> the picture under a colour of that opacity."""
    opacity = opacity[..., None].astype(np.float32)
    return (1 - opacity) * picture + opacity * np.array(to_rgb(colour), np.float32)


def _share_on(target: np.ndarray, places: np.ndarray, weights: np.ndarray) -> float:
    """The share of the weights (h, w), at places (h, w, 2), that is on the object."""
    height, width = target.shape
    x, y = np.rint(places).astype(int).reshape(-1, 2).T
    on = target[np.clip(y, 0, height - 1), np.clip(x, 0, width - 1)]
    return float(weights.ravel()[on].sum() / weights.sum())


def _draw_prompt(axis: Axes, prompt: Prompt, colour: str = PROMPT_COLOUR, *, size: float = 1.0) -> None:
    """Draws box and points: a dot on the object, a cross beside it, nothing for the label "not a point"."""
    if prompt.box is not None:
        x0, y0, x1, y1 = prompt.box
        axis.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, edgecolor=colour, linewidth=1.6 * size))
    for label, marker in ((1, "o"), (0, "X")):
        points = prompt.points[prompt.labels == label]
        if len(points):
            axis.plot(
                *points.T, marker, color=colour, markersize=8 * size, markeredgecolor="white", markeredgewidth=size
            )


def outline(axis: Axes, mask: np.ndarray, colour: str) -> None:
    """Draws the edge of a mask, along the picture's border too; nothing if the mask is empty."""
    if not mask.any():
        return  # matplotlib 3.10 warns about a contour without lines
    height, width = mask.shape
    framed = np.pad(mask, 1).astype(np.float32)
    axis.contour(np.arange(-1, width + 1), np.arange(-1, height + 1), framed, [0.5], colors=colour, linewidths=0.9)
