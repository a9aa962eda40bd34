"""Stability of a mask: whether slightly different prompts give the same mask."""

import dataclasses
import itertools
from collections.abc import Callable, Iterable

import numpy as np

from stablesam_jax.metrics import stability
from stablesam_jax.prompts import JITTER_LIMIT, Prompt, jittered_box, random_points

JITTERS = 20  # the paper's number of prompts per object
POINT_JITTER = 0.01  # standard deviation of a jittered point, as a share of the picture's longer side
# Masks with a lower stability need review. Measured with sam_nano on 98 pictures of seven sets (true box, noisy box,
# one point): flags 75 % of the masks with an IoU below 0.6, and 6 % of those with 0.8 or more. At 0.90 these are 62 %
# and 3 %, at 0.95 87 % and 16 %.
STABLE = 0.92
# The same for points without a box, whose masks change less. One click on 80 objects (results/review.md): finds 74 % of
# the masks with an IoU below 0.75, and 13 % of the others; 0.92 finds 44 to 47 %, and 2 %.
STABLE_POINTS = 0.98


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class StableMask:
    """A mask, and its stability under small changes of the prompt."""

    mask: np.ndarray  # (H, W) bool, for the user's own prompt
    iou_prediction: float  # the model's estimate of the mask's IoU; may be outside 0..1
    low_res_mask: np.ndarray  # (1, 4G, 4G) float32 logits, a mask_input for the next call
    stability: float  # mSF of this mask and those of the jittered prompts, in (0, 1]; 0 if all are empty
    needs_review: bool  # whether the stability is below the threshold
    ambiguity: float | None = None  # spread over other clicks on the object, see `ambiguity`; None if not asked for

    @property
    def sensitivity(self) -> float:
        """Spread of the masks over small slips of the prompt, in [0, 1]: 1 - stability."""
        return 1 - self.stability


# (N, H, W) bool masks, read one at a time; (N, 1, 4G, 4G) float32 logits; (N, 1) float32 predicted IoU
Singles = tuple[Iterable[np.ndarray], np.ndarray, np.ndarray]


def stable_mask(
    predict: Callable[[list[Prompt]], Singles],
    prompt: Prompt,
    size_hw: tuple[int, int],
    *,
    jitters: int,
    threshold: float | None,
    clicks: int,
    seed: int,
) -> StableMask:
    """Compares the mask of the user's prompt with those of its jittered copies, and with those of clicks on it.

    Args:
        predict: N prompts -> their single masks.
        prompt: the user's, with points or a box.
        size_hw: of the picture.
        jitters, threshold, clicks, seed: see `Predictor.predict_stable`.
    """
    if threshold is None:
        threshold = review_limit(has_box=prompt.box is not None)
    rng = np.random.default_rng(seed)
    masks, logits, iou_predictions = predict([prompt, *(jittered(rng, prompt, size_hw) for _ in range(jitters))])
    remaining = iter(masks)
    mask = next(remaining)
    share = stability(itertools.chain([mask], remaining))
    others = other_clicks(rng, mask, clicks)
    return StableMask(
        mask=mask,
        iou_prediction=float(iou_predictions[0, 0]),
        low_res_mask=logits[0],
        stability=share,
        needs_review=share < threshold,
        ambiguity=ambiguity(mask, predict(others)[0] if others else ()) if clicks else None,
    )


def review_limit(*, has_box: bool) -> float:
    """The stability below which the mask of a prompt needs review."""
    return STABLE if has_box else STABLE_POINTS


def other_clicks(rng: np.random.Generator, mask: np.ndarray, count: int) -> list[Prompt]:
    """Single clicks drawn evenly from a predicted mask; none from an empty one.

    Args:
        rng: advanced by the call.
        mask: (H, W) bool.
        count: number of clicks.
    """
    if count == 0 or not mask.any():
        return []
    return [Prompt(points=point[None], labels=np.ones(1, np.int32)) for point in random_points(rng, mask, count)]


def ambiguity(mask: np.ndarray, of_clicks: Iterable[np.ndarray]) -> float:
    """How far the masks of different clicks on one object differ: 1 - mSF of a mask and those of other clicks on it.

    Small slips of one prompt measure something else, the sensitivity; the two correlate little (arXiv 2603.13369).

    Args:
        mask: (H, W) bool, of the user's prompt.
        of_clicks: (H, W) bool, of the prompts of `other_clicks`; read one at a time.

    Returns:
        In [0, 1]; 1 of an empty mask, which has no clicks.
    """
    return 1 - stability(itertools.chain([mask], of_clicks))


def jittered(rng: np.random.Generator, prompt: Prompt, size_hw: tuple[int, int]) -> Prompt:
    """A slightly different prompt, within the picture; a mask input is unchanged.

    Each edge of a box is moved as in SAM's own training (normal, 10 % of the side, at most 2 % of the picture's longer
    side), each point by normal noise of 1 % of the longer side (at most 2 %).

    Args:
        rng: advanced by the call.
        prompt: in pixels of the picture.
        size_hw: of the picture.
    """
    longest, limit = max(size_hw), np.array(size_hw[::-1])
    noise = np.clip(POINT_JITTER * rng.standard_normal(prompt.points.shape), -JITTER_LIMIT, JITTER_LIMIT)
    points = np.clip(prompt.points + noise * longest, 0, limit - 1)
    box = None if prompt.box is None else jittered_box(rng, prompt.box, size_hw=size_hw)
    return dataclasses.replace(prompt, points=points, box=box)
