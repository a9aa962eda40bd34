"""Who is prompted how at evaluation (sec. 3.2, 5).

Every prompt is a function of (picture, object, kind, seed, index) and of the true mask alone: two systems, two machines
and two orders of the pictures get the same prompts.
"""

import hashlib
import json
from typing import NamedTuple

import numpy as np

from stablesam_jax import prompts

PROMPTS_PER_OBJECT = 20  # of each random kind (sec. 3.2)


class PromptKind(NamedTuple):
    """How the prompts of one kind are drawn: as points, else as a noisy box, else as the true box."""

    points: int  # drawn uniformly from the object; 0: none
    box_iou: tuple[float, float] | None  # IoU of a noisy box with the true box; None: no noise


PROMPT_KINDS = {
    # kind                   points  box_iou
    "gt-box":     PromptKind(0,      None),
    "noisy-box":  PromptKind(0,      (0.0, 1.0)),  # not rejected: only training asks for IoU >= 0.5 (sec. 9)
    "1-point":    PromptKind(1,      None),
    "3-points":   PromptKind(3,      None),
    "5-points":   PromptKind(5,      None),
    "10-points":  PromptKind(10,     None),
    "n-box-50":   PromptKind(0,      (0.5, 0.6)),  # "N-Box (0.5-0.6)" of Tables 3, 10, 11; "Noisy box" of Table 4
    "n-box-60":   PromptKind(0,      (0.6, 0.7)),  # "N-Box (0.6-0.7)"
}  # fmt: skip


def draw_prompts(
    kind: str, mask: np.ndarray, *, picture_id: str, object_id: int, seed: int, count: int = PROMPTS_PER_OBJECT
) -> list[prompts.Prompt]:
    """The prompts with which an object is evaluated.

    Args:
        kind: one of PROMPT_KINDS.
        mask: (H, W) bool, the true mask, in the frame in which the prompts are wanted.
        picture_id: unique among the pictures of all data sets, e.g. "DIS5K-VD/0012".
        object_id: unique among the objects of a picture.
        seed: of the evaluation.
        count: number of prompts; `gt-box` has only one, whatever the count.

    Returns:
        Prompts in the order of their index: the first n of 20 are the n of `count=n`.

    Raises:
        ValueError: unknown kind, or empty mask.
    """
    if kind not in PROMPT_KINDS:
        raise ValueError(f"unknown prompt kind {kind!r}; known: {', '.join(PROMPT_KINDS)}")
    points, box_iou = PROMPT_KINDS[kind]
    rngs = (_rng(picture_id, object_id, kind, seed, index) for index in range(count))
    if points:
        labels = np.ones(points, np.int32)
        return [prompts.Prompt(points=prompts.random_points(rng, mask, points), labels=labels) for rng in rngs]
    box = prompts.gt_box(mask)
    if box_iou is None:
        return [prompts.Prompt(box=box)]
    return [prompts.Prompt(box=prompts.noisy_box(rng, box, size_hw=mask.shape, iou_range=box_iou)) for rng in rngs]


def _rng(picture_id: str, object_id: int, kind: str, seed: int, index: int) -> np.random.Generator:
    # JSON keeps the fields apart, whatever characters a picture's name has; sha256 is the same on every machine.
    key = json.dumps([picture_id, int(object_id), kind, int(seed), index])
    return np.random.default_rng(int.from_bytes(hashlib.sha256(key.encode()).digest(), "big"))
