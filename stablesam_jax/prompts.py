"""Prompts of given quality, drawn from the mask of an object: boxes, points and coarse masks.

On the host, in numpy. Every function is pure in its arguments and the state of `rng`. Coordinates are (x, y) in pixels
of the mask; an integer is a pixel's index, and the prompt encoder adds the half pixel to its centre. "HQ-SAM" below is
SysCV/sam-hq, `train/utils/misc.py`.
"""

import dataclasses
from typing import Literal

import cv2
import numpy as np

NOISE_SCALE = 0.4  # noise of noisy boxes in training and evaluation, as a share of the box's side (sec. 3.2, 4.4)
MIN_TRAINING_IOU = 0.5  # least IoU of a noisy box with the true box in training (sec. 9)
POINT_COUNTS = (1, 3, 5, 10)  # points of a training prompt (sec. 9; sec. 4.4 leaves out the 5)

BOX_TRIES = 100  # IoU 0.5-0.6 takes 2.3 draws on average, 8.2 for a box of the whole picture; all fail in 2e-6
JITTER_SCALE, JITTER_LIMIT = 0.1, 20 / 1024  # shares of the box's side and of the picture's (SAM paper, appendix A)
ORACLE_DEPTH = 1.7  # a candidate's distance to the background is above the largest one divided by this (RITM)
CLICK_SLICE = 0.1  # share of the probability of clicks that is "likely", and that is "unlikely"
COARSE_FACTOR = 8  # a coarse mask loses the detail that 1/8 of its resolution cannot represent (HQ-SAM)
COARSE_RESIDUE = 0.01  # reconstruction error from which a pixel counts as detail (HQ-SAM)

ClickDensity = Literal["distance", "uniform", "likely", "unlikely"]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Prompt:
    """Selects one object of a picture by any of points, a box and a mask."""

    points: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros((0, 2), np.float32))  # (K, 2), (x, y)
    labels: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, np.int32))  # (K,), 1 object, 0 not
    box: np.ndarray | None = None  # (4,) float32 XYXY
    mask: np.ndarray | None = None  # (4G, 4G) float32 logits of an approximate mask


def gt_box(mask: np.ndarray) -> np.ndarray:
    """The box around a mask, from its first to its last foreground pixel.

    Args:
        mask: (H, W) bool.

    Returns:
        (4,) float32 XYXY, inclusive pixel indices: the box of one pixel has width 0. As in HQ-SAM, `masks_to_boxes`.

    Raises:
        ValueError: the mask is empty.
    """
    columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
    if columns.size == 0:
        raise ValueError(f"mask of shape {mask.shape} is empty; a box needs at least one foreground pixel")
    return np.array([columns[0], rows[0], columns[-1], rows[-1]], np.float32)


def box_iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Intersection over union of boxes with real-valued edges.

    Args:
        a, b: (..., 4) XYXY; leading axes broadcast. Width is x1 - x0, without the +1 of pixel counts.

    Returns:
        (...) float64 in [0, 1]; 0 where both boxes have no area.
    """
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    overlap = np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2])
    intersection = np.maximum(overlap, 0).prod(-1)
    union = (a[..., 2:] - a[..., :2]).prod(-1) + (b[..., 2:] - b[..., :2]).prod(-1) - intersection
    return np.divide(intersection, union, out=np.zeros_like(union), where=union > 0)


def noisy_box(
    rng: np.random.Generator,
    box: np.ndarray,
    *,
    size_hw: tuple[int, int],
    scale: float = NOISE_SCALE,
    iou_range: tuple[float, float] = (0.0, 1.0),
) -> np.ndarray:
    """A box with its centre moved and its sides stretched at random, as a careless user draws it.

    With four independent u ~ U(-1, 1): centre += scale * u * side / 2, side *= 1 + scale * u, then clamped to the
    picture (HQ-SAM, `box_noise`). A side under 1 px is first widened to 1 px about its middle, inside the picture. At
    scale 0.4 the IoU with an unclamped `box` is 0.60 on average and never below 0.36; clamping raises it.

    Args:
        box: (4,) XYXY.
        size_hw: height and width of the picture, the clamps of y and x.
        scale: share of the side; 0.4 is the paper's.
        iou_range: lowest and highest accepted IoU with the (widened) box. The first of `BOX_TRIES` draws inside it is
            taken; if there is none, the one nearest to it.

    Returns:
        (4,) float32 XYXY within [0, W] x [0, H].
    """
    box, limit = np.asarray(box, np.float64), np.array(size_hw[::-1], np.float64)
    near, side = box[:2], box[2:] - box[:2]
    near = np.where(side < 1, np.clip(near + (side - 1) / 2, 0, limit - 1), near)
    side = np.maximum(side, 1)

    noise = rng.uniform(-1, 1, (BOX_TRIES, 2, 2))
    centres = near + side / 2 + scale * noise[:, 0] * side / 2
    halves = side * (1 + scale * noise[:, 1]) / 2
    # Rounded to float32 before the IoU is computed, so that it holds for the returned box.
    boxes = np.concatenate([centres - halves, centres + halves], axis=1)
    boxes = np.clip(boxes, 0, np.tile(limit, 2)).astype(np.float32)

    iou = box_iou(boxes, np.concatenate([near, near + side]))
    low, high = iou_range
    distance = np.maximum(np.maximum(low - iou, iou - high), 0)
    return boxes[distance.argmin()]  # argmin gives the first minimum: the first draw in range, if there is one


def jittered_box(
    rng: np.random.Generator, box: np.ndarray, *, size_hw: tuple[int, int], strength: float = 1.0
) -> np.ndarray:
    """The good box of SAM's own training: normal noise on each edge, 10 % of the side, at most 2 % of the picture.

    For pre-training a base model, which sees good prompts only. SAM paper, appendix A. What is "to a maximum of 20
    pixels" is ambiguous there; here it bounds the noise, as a share of the longer side of SAM's 1024 px, since at a
    smaller input 20 px would make the boxes sloppy.

    Args:
        box: (4,) XYXY.
        size_hw: height and width of the picture, the clamps of y and x.
        strength: multiplies both the noise and its bound.

    Returns:
        (4,) float32 XYXY within [0, W] x [0, H].
    """
    box = np.asarray(box, np.float64)
    std = JITTER_SCALE * np.tile(box[2:] - box[:2], 2)
    most = JITTER_LIMIT * max(size_hw)
    noise = strength * np.clip(std * rng.standard_normal(4), -most, most)
    return _within(box + noise, size_hw)


def uneven_box(
    rng: np.random.Generator, box: np.ndarray, *, size_hw: tuple[int, int], share: float = 0.1
) -> np.ndarray:
    """A box whose edges are each moved by uniform noise, up to a share of its shorter side.

    CDConcepts-Eval (arXiv 2412.01240), whose share is 0.1.

    Args:
        rng: advanced by the call.
        box: (4,) XYXY.
        size_hw: height and width of the picture, the clamps of y and x.
        share: of the shorter side, at most 0.5, so that edges do not change places.

    Returns:
        (4,) float32 XYXY within [0, W] x [0, H].
    """
    box = np.asarray(box, np.float64)
    return _within(box + share * (box[2:] - box[:2]).min() * rng.uniform(-1, 1, 4), size_hw)


def outward_box(rng: np.random.Generator, box: np.ndarray, *, size_hw: tuple[int, int], most: int = 50) -> np.ndarray:
    """A box whose edges are each moved outward by 0 to `most` - 1 whole pixels, all as likely.

    PP-SAM (arXiv 2405.16740), whose `most` is 50, in pixels of the picture whatever its size.

    Args:
        rng: advanced by the call.
        box: (4,) XYXY.
        size_hw: height and width of the picture, the clamps of y and x.
        most: at least 1.

    Returns:
        (4,) float32 XYXY within [0, W] x [0, H].
    """
    return _within(np.asarray(box, np.float64) + rng.integers(0, most, 4) * [-1, -1, 1, 1], size_hw)


def shifted_box(
    rng: np.random.Generator,
    box: np.ndarray,
    *,
    size_hw: tuple[int, int],
    scale: float = 0.3,
    min_iou: float = 0.5,
) -> np.ndarray:
    """A box of the same size at another place, both axes moved by uniform noise up to a share of their side.

    BREPS (arXiv 2601.15123), whose jitter has a share of 0.3 and an IoU above 0.5.

    Args:
        rng: advanced by the call.
        box: (4,) XYXY.
        size_hw: height and width of the picture, the clamps of y and x.
        scale: share of the side.
        min_iou: the first of `BOX_TRIES` draws with a higher IoU with `box` is taken; if there is none, the nearest.

    Returns:
        (4,) float32 XYXY within [0, W] x [0, H].
    """
    box = np.asarray(box, np.float64)
    shifts = scale * (box[2:] - box[:2]) * rng.uniform(-1, 1, (BOX_TRIES, 2))
    boxes = _within(box + np.tile(shifts, 2), size_hw)
    iou = box_iou(boxes, box)
    inside = iou > min_iou
    return boxes[(inside if inside.any() else iou).argmax()]


def _within(boxes: np.ndarray, size_hw: tuple[int, int]) -> np.ndarray:
    """Clamps boxes (..., 4) to a picture, as float32."""
    return np.clip(boxes, 0, np.tile(np.array(size_hw[::-1], np.float64), 2)).astype(np.float32)


def random_points(rng: np.random.Generator, mask: np.ndarray, count: int) -> np.ndarray:
    """Points drawn uniformly from the foreground, without replacement.

    If the mask has fewer than `count` pixels, they are drawn with replacement; HQ-SAM fails there.

    Args:
        mask: (H, W) bool.
        count: K, number of points.

    Returns:
        (K, 2) float32 with integer (x, y), all on the foreground. As in HQ-SAM, `masks_sample_points`.

    Raises:
        ValueError: the mask is empty.
    """
    _check_not_empty(mask)
    pixels = np.flatnonzero(mask)
    return _pixels(rng.choice(pixels, count, replace=pixels.size < count), mask)


def oracle_point(rng: np.random.Generator, mask: np.ndarray) -> np.ndarray:
    """A point in the middle of the object, as the first click of a careful user: uniform where the object is thickest.

    Candidates are the pixels whose distance to the background, the picture's border included, is above the largest one
    divided by 1.7. MESS's point prompt (SAM-MESS, `model/visual_prompts.py`; RITM, `isegm/data/points_sampler.py`).

    Args:
        rng: advanced by the call.
        mask: (H, W) bool.

    Returns:
        (1, 2) float32 with integer (x, y) on the foreground.

    Raises:
        ValueError: the mask is empty.
    """
    distance = depth(mask)
    return random_points(rng, distance > distance.max() / ORACLE_DEPTH, 1)


def depth(mask: np.ndarray) -> np.ndarray:
    """Distance of each pixel of a mask to the background, which the outside of the picture belongs to.

    Args:
        mask: (H, W) bool.

    Returns:
        (H, W) float32 in pixels, 0 in the background.
    """
    padded = np.pad(mask.astype(np.uint8), 1)
    return cv2.distanceTransform(padded, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)[1:-1, 1:-1]


def click_density(distance: np.ndarray, kind: ClickDensity) -> np.ndarray:
    """The probability of a click at each pixel of a region.

    RClicks (arXiv 2410.11722) has "distance" and "uniform" beside its model of real clicks. It takes its groups of
    likely and unlikely clicks by that model, here they are by "distance".

    Args:
        distance: (H, W) from `depth`, positive somewhere.
        kind: distance: in proportion to the distance to the border. uniform: even. likely, unlikely: "distance", within
            the `CLICK_SLICE` of its mass where it is highest, or lowest.

    Returns:
        (H, W) float64 of sum 1.
    """
    density = (distance > 0 if kind == "uniform" else distance).astype(np.float64).ravel()
    density /= density.sum()
    if kind in ("likely", "unlikely"):
        order = np.argsort(density, kind="stable")
        mass = np.cumsum(density[order])
        outside = mass - density[order] >= CLICK_SLICE if kind == "unlikely" else mass <= 1 - CLICK_SLICE
        density[order[outside]] = 0
        density /= density.sum()
    return density.reshape(distance.shape)


def drawn_click(rng: np.random.Generator, mask: np.ndarray, *, kind: ClickDensity) -> np.ndarray:
    """A click on an object as people might make it, see `click_density`.

    Args:
        rng: advanced by the call.
        mask: (H, W) bool.
        kind: of density.

    Returns:
        (1, 2) float32 with integer (x, y) on the foreground.

    Raises:
        ValueError: the mask is empty.
    """
    _check_not_empty(mask)
    density = click_density(depth(mask), kind)
    return _pixels(rng.choice(density.size, 1, p=density.ravel()), mask)


def slipped_click(rng: np.random.Generator, mask: np.ndarray, *, most: float = 10) -> np.ndarray:
    """The click in the middle of an object, missed by uniform noise in x and in y.

    CDConcepts-Eval (arXiv 2412.01240), whose noise is up to 10 pixels of the picture. The middle is the pixel farthest
    from the background, the first one of several.

    Args:
        rng: advanced by the call.
        mask: (H, W) bool.
        most: in pixels.

    Returns:
        (1, 2) float32 (x, y) within the picture, maybe beside the object.

    Raises:
        ValueError: the mask is empty.
    """
    _check_not_empty(mask)
    middle = _pixels(np.array([depth(mask).argmax()]), mask)
    limit = np.array(mask.shape[::-1]) - 1
    return np.clip(middle + most * rng.uniform(-1, 1, (1, 2)), 0, limit).astype(np.float32)


def _check_not_empty(mask: np.ndarray) -> None:
    if not mask.any():
        raise ValueError(f"mask of shape {mask.shape} is empty; points need at least one foreground pixel")


def _pixels(flat: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Flat indices (K,) of a mask -> (K, 2) float32 (x, y)."""
    rows, columns = np.unravel_index(flat, mask.shape)
    return np.stack([columns, rows], axis=1).astype(np.float32)


def oracle_box(mask: np.ndarray) -> np.ndarray:
    """MESS's box prompt: around the mask, to the far edge of its last pixel; `gt_box` ends one pixel before.

    Args:
        mask: (H, W) bool.

    Returns:
        (4,) float32 XYXY, exclusive at the far end.

    Raises:
        ValueError: the mask is empty.
    """
    return gt_box(mask) + np.array([0, 0, 1, 1], np.float32)


def coarse_mask(rng: np.random.Generator, mask: np.ndarray, *, size: int) -> np.ndarray:
    """A mask with a ragged edge, as of a weak model or a hasty brush.

    The mask is resized to `size`. Where 1/8 of that resolution cannot represent it, N(0, 1) noise is added before the
    threshold 0.5. This is a band along the edge in which a pixel flips with probability 0.31. Around a disc it is 11 to
    13 px wide on average, locally 8 to 16, at any `size`; so smaller objects have worse masks. Empty and full masks are
    unchanged. HQ-SAM, `masks_noise`, at its size 256, which passes the result to the prompt encoder as 0 and 255
    instead of logits.

    Args:
        mask: (S', S') bool, the whole square picture that the model sees.
        size: S, side of the mask input; a multiple of 8.

    Returns:
        (S, S) bool.

    Raises:
        ValueError: the mask is not square, or `size` is not a multiple of 8.
    """
    if mask.shape[0] != mask.shape[1] or size % COARSE_FACTOR:
        raise ValueError(f"expected a square mask and a size divisible by {COARSE_FACTOR}, got {mask.shape} and {size}")
    soft = _resize(mask.astype(np.float32), size)
    residue = np.abs(soft - _resize(_resize(soft, size // COARSE_FACTOR), size))
    noise = rng.standard_normal((size, size), np.float32)
    return soft + noise * (residue >= COARSE_RESIDUE) > 0.5


def _resize(picture: np.ndarray, size: int) -> np.ndarray:
    # Bilinear without antialias, pixel centres at halves, as torch's F.interpolate with align_corners=False.
    return cv2.resize(picture, (size, size), interpolation=cv2.INTER_LINEAR)
