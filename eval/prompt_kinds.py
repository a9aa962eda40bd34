"""Prompts of the evaluation (sec. 3.2, 5).

Every prompt is a function of (picture, object, kind, seed, index) and the true mask alone, so all systems, machines and
orders of pictures get the same prompts.
"""

import functools
from typing import NamedTuple

import cv2
import numpy as np

from eval.draw import rng_of
from eval.noises import BOX_DRAWS, CLICK_DRAWS
from stablesam_jax import prompts

PROMPTS_PER_OBJECT = 20  # of each random kind (sec. 3.2)
HQ_SAM_INPUT = 1024  # pixels; HQ-SAM draws boxes in its input, whatever the size of picture and model


class PromptKind(NamedTuple):
    """How prompts of one kind are drawn: points if `points` > 0, else a noisy box if `box_iou`, else the true box."""

    points: int  # drawn uniformly from the object; 0: none
    box_iou: tuple[float, float] | None  # IoU of a noisy box with the true box; None: no noise
    scale: float = prompts.NOISE_SCALE  # of the noise, as a share of the box's side


PROMPT_KINDS = {
    # kind                   points  box_iou
    "gt-box":     PromptKind(0,      None),
    "noisy-box":  PromptKind(0,      (0.0, 1.0)),  # any IoU: only training rejects boxes below IoU 0.5 (sec. 9)
    "1-point":    PromptKind(1,      None),
    "3-points":   PromptKind(3,      None),
    "5-points":   PromptKind(5,      None),
    "10-points":  PromptKind(10,     None),
    "n-box-50":   PromptKind(0,      (0.5, 0.6)),  # "N-Box (0.5-0.6)" of Tables 3, 10, 11; "Noisy box" of Table 4
    "n-box-60":   PromptKind(0,      (0.6, 0.7)),  # "N-Box (0.6-0.7)"
}  # fmt: skip
# More levels for the protocol `wobble`, not in the paper: noise-10 is noise of 10 % of the box's side.
WOBBLE_KINDS = {
    "2-points":   PromptKind(2,      None),
    "noise-10":   PromptKind(0,      (0.0, 1.0), 0.1),
    "noise-20":   PromptKind(0,      (0.0, 1.0), 0.2),
    "noise-30":   PromptKind(0,      (0.0, 1.0), 0.3),
    "noise-50":   PromptKind(0,      (0.0, 1.0), 0.5),
    "noise-60":   PromptKind(0,      (0.0, 1.0), 0.6),
}  # fmt: skip
_KINDS = PROMPT_KINDS | WOBBLE_KINDS
BOX_KINDS = tuple(kind for kind, row in PROMPT_KINDS.items() if not row.points)
REGION_KINDS = ("oracle-point", "oracle-box", "random-point", "noisy-box")  # MESS (Table 8)


def draw_prompts(
    kind: str, mask: np.ndarray, *, picture_id: str, object_id: int, seed: int, count: int = PROMPTS_PER_OBJECT
) -> list[prompts.Prompt]:
    """Draws the prompts of one kind for an object from its true mask.

    Args:
        kind: one of PROMPT_KINDS, WOBBLE_KINDS, or BOX_DRAWS or CLICK_DRAWS of `noises`.
        mask: (H, W) bool, the true mask; prompts are in its pixels. Boxes are HQ-SAM's, see `in_hq_sam_input`.
        picture_id: unique among the pictures of all data sets, e.g. "DIS5K-VD/0012".
        object_id: unique among the objects of a picture.
        seed: of the evaluation.
        count: number of prompts; ignored for `gt-box`, which gives one.

    Returns:
        Prompts by index: those of `count=n` are the first n of any larger count.

    Raises:
        ValueError: unknown kind, or empty mask.
    """
    rngs = (_rng(picture_id, object_id, kind, seed, index) for index in range(count))
    if kind in CLICK_DRAWS:
        return [prompts.Prompt(points=CLICK_DRAWS[kind](rng, mask), labels=np.ones(1, np.int32)) for rng in rngs]
    if kind in BOX_DRAWS:
        (true,) = draw_prompts("gt-box", mask, picture_id=picture_id, object_id=object_id, seed=seed)
        return [prompts.Prompt(box=BOX_DRAWS[kind](rng, true.box, size_hw=mask.shape)) for rng in rngs]
    if kind not in _KINDS:
        raise ValueError(f"unknown prompt kind {kind!r}; known: {', '.join(_KINDS)}")
    points = _KINDS[kind].points
    if points:
        labels = np.ones(points, np.int32)
        return [prompts.Prompt(points=prompts.random_points(rng, mask, points), labels=labels) for rng in rngs]
    boxes = draw_boxes(
        kind,
        prompts.gt_box(in_hq_sam_input(mask)),
        size_hw=(HQ_SAM_INPUT, HQ_SAM_INPUT),
        picture_id=picture_id,
        object_id=object_id,
        seed=seed,
        count=count,
    )
    scale = np.tile(HQ_SAM_INPUT / np.array(mask.shape[::-1]), 2)
    return [prompts.Prompt(box=((box + 0.5) / scale - 0.5).astype(np.float32)) for box in boxes]


def point_count(kind: str) -> int:
    """Number of points of a kind's prompts; 0 for boxes."""
    return _KINDS[kind].points if kind in _KINDS else int(kind in CLICK_DRAWS)


def in_hq_sam_input(mask: np.ndarray) -> np.ndarray:
    """A mask as HQ-SAM's evaluation sees it, squeezed to its input (`train/train.py`, `misc.masks_to_boxes`).

    The box around that mask is wider than the one around the picture's mask by half a pixel of the picture less half a
    pixel of the input, on each side: 1.2 pixels of the input for a picture of 300.

    Args:
        mask: (H, W) bool.

    Returns:
        (HQ_SAM_INPUT, HQ_SAM_INPUT) bool: resized bilinearly without antialiasing, above half. An object so small that
        nothing is left is resized to the nearest pixel instead, where HQ-SAM fails.

    Raises:
        ValueError: the mask is empty.
    """
    if not mask.any():
        raise ValueError(f"mask of shape {mask.shape} is empty; a box needs at least one foreground pixel")
    size = (HQ_SAM_INPUT, HQ_SAM_INPUT)
    resized = cv2.resize(mask.astype(np.float32), size, interpolation=cv2.INTER_LINEAR) > 0.5
    if not resized.any():
        rows, columns = np.nonzero(mask)
        places = (np.stack([rows, columns]) + 0.5) * HQ_SAM_INPUT / np.array([mask.shape]).T
        resized[tuple(places.astype(np.int64))] = True
    return resized


def draw_boxes(
    kind: str,
    box: np.ndarray,
    *,
    size_hw: tuple[int, int],
    picture_id: str,
    object_id: int,
    seed: int,
    count: int = PROMPTS_PER_OBJECT,
) -> list[np.ndarray]:
    """Draws the boxes of one kind for an object from its true box.

    Args:
        kind: one of BOX_KINDS, or of WOBBLE_KINDS without points.
        box: (4,) XYXY, the true box.
        size_hw: of the picture.
        picture_id, object_id, seed, count: see `draw_prompts`.

    Returns:
        (4,) float32 each; `gt-box` gives the true box alone.
    """
    _, box_iou, scale = _KINDS[kind]
    if box_iou is None:
        return [np.asarray(box, np.float32)]
    rngs = (_rng(picture_id, object_id, kind, seed, index) for index in range(count))
    return [prompts.noisy_box(rng, box, size_hw=size_hw, scale=scale, iou_range=box_iou) for rng in rngs]


def draw_region_prompt(
    kind: str,
    mask: np.ndarray,
    *,
    corner: tuple[int, int],
    size_hw: tuple[int, int],
    picture_id: str,
    object_id: int,
    seed: int,
) -> prompts.Prompt:
    """Draws one prompt for a connected region of a class, as MESS does (SAM-MESS, `model/visual_prompts.py`).

    The paper's random points and noisy boxes (sec. 7.1) are drawn per region too.

    Args:
        kind: one of REGION_KINDS.
        mask: (h, w) bool, the region within its bounding rectangle.
        corner: (x, y) of the rectangle's upper left pixel in the frame.
        size_hw: of the frame.
        picture_id, object_id, seed: see `draw_prompts`.

    Returns:
        A prompt in the frame, equal to that of the same region within a mask of the whole frame.
    """
    rng = _rng(picture_id, object_id, kind, seed, 0)
    offset = np.array(corner, np.float32)
    if kind in ("oracle-point", "random-point"):
        draw = prompts.oracle_point if kind == "oracle-point" else functools.partial(prompts.random_points, count=1)
        return prompts.Prompt(points=draw(rng, mask) + offset, labels=np.ones(1, np.int32))
    box = prompts.oracle_box(mask) + np.tile(offset, 2)
    return prompts.Prompt(box=box if kind == "oracle-box" else prompts.noisy_box(rng, box, size_hw=size_hw))


def _rng(picture_id: str, object_id: int, kind: str, seed: int, index: int) -> np.random.Generator:
    return rng_of(picture_id, int(object_id), kind, int(seed), index)
