"""Synthetic occlusion (sec. 4.4): pastes an object of another picture in front of an object, or behind it.

The paper gives no recipe. Here half of the occluded pictures have the cut-out in front, where it hides a part of the
object, and half behind, where the object hides a part of it. Masks contain the visible pixels, and the cut-out becomes
one more object of the picture. So the model is trained on objects in both roles.
"""

import functools
from typing import NamedTuple

import cv2
import numpy as np

from stablesam_jax.data.readers import Pictures

CUTOUT_EVERY = 16  # pictures for each cut-out of a seed, between the two bounds; each is decoded once and kept
FEWEST_CUTOUTS, MOST_CUTOUTS = 128, 1024
LONGEST_CUTOUT = 512  # pixels; 1024 of them take 1 GB at most
CUTOUT_AREA = (0.005, 0.6)  # share of its picture that a cut-out covers, which excludes specks and backgrounds
FRAGMENT = 0.8  # least share of an object in its largest piece, which excludes objects that others divide
RELATIVE_SIZE = (0.3, 1.2)  # longest side of a cut-out relative to that of the target object
MOST_HIDDEN = 0.5  # largest share of any object, the cut-out included, that may be hidden
LEAST_HIDDEN = 0.03  # least share of the rear one of the two that must be hidden
TRIES = 10
EDGE = 0.7  # pixels, sigma of the blur of a cut-out's edge


class Cutout(NamedTuple):
    """An object cut out of its picture."""

    picture: np.ndarray  # (h, w, 3) uint8, cropped to its box
    mask: np.ndarray  # (h, w) bool


class Cutouts:
    """Objects to occlude with, a function of (pictures, seed, number). Read on first access, and kept."""

    def __init__(self, pictures: Pictures, seed: int):
        """Reads nothing."""
        self.pictures, self.seed = pictures, seed
        self._kept = functools.lru_cache(len(self))(self._cut)

    def __len__(self) -> int:
        return min(max(len(self.pictures) // CUTOUT_EVERY, FEWEST_CUTOUTS), MOST_CUTOUTS)

    def __getitem__(self, number: int) -> Cutout | None:
        """Cut-out `number`; None if ten pictures have no suitable object, as in a set of textures."""
        return self._kept(number)

    def __reduce__(self):
        return type(self), (self.pictures, self.seed)  # pickled without the cut-outs: a worker process reads its own

    def _cut(self, number: int) -> Cutout | None:
        rng = np.random.default_rng([self.seed, number])
        for _ in range(TRIES):
            labelled = self.pictures[int(rng.integers(len(self.pictures)))]
            mask = labelled.masks[rng.integers(len(labelled.masks))]
            if (cutout := cut_out(labelled.picture, mask)) is not None:
                return cutout
        return None


def cut_out(picture: np.ndarray, mask: np.ndarray) -> Cutout | None:
    """Cuts an object out, reduced to `LONGEST_CUTOUT`; None if it is unsuitable, see `CUTOUT_AREA` and `FRAGMENT`.

    Args:
        picture: (H, W, 3) uint8.
        mask: (H, W) bool.
    """
    _, labels, statistics, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8))
    areas = statistics[1:, cv2.CC_STAT_AREA]
    share = mask.mean()
    if not CUTOUT_AREA[0] <= share <= CUTOUT_AREA[1] or areas.max() < FRAGMENT * areas.sum():
        return None
    piece = 1 + int(areas.argmax())
    x, y, width, height = (int(value) for value in statistics[piece, :4])
    box = slice(y, y + height), slice(x, x + width)
    scale = min(1.0, LONGEST_CUTOUT / max(width, height))
    return Cutout(_resize_picture(picture[box], scale), _resize_mask(labels[box] == piece, scale))


def occlude(
    rng: np.random.Generator, picture: np.ndarray, masks: np.ndarray, cutout: Cutout
) -> tuple[np.ndarray, np.ndarray]:
    """Pastes a cut-out over an object of the picture, or behind it, at a random size and place.

    No object loses more than `MOST_HIDDEN` of its area, the cut-out included. Other places are drawn again; after
    `TRIES` draws the picture is unchanged.

    Args:
        rng: advanced by the call.
        picture: (H, W, 3) uint8.
        masks: (M, H, W) bool, M >= 1, none empty.
        cutout: from another picture.

    Returns:
        picture (H, W, 3) uint8, and the masks of visible pixels, (M + 1, H, W) bool with the cut-out last, or the given
        masks if nothing was pasted.
    """
    height, width = picture.shape[:2]
    target = int(rng.integers(len(masks)))
    areas = np.array([np.count_nonzero(mask) for mask in masks])
    in_front = rng.random() < 0.5
    if rng.random() < 0.5:
        cutout = Cutout(cutout.picture[:, ::-1], cutout.mask[:, ::-1])
    columns, rows = np.flatnonzero(masks[target].any(axis=0)), np.flatnonzero(masks[target].any(axis=1))
    near, far = np.array([columns[0], rows[0]]), np.array([columns[-1], rows[-1]]) + 1
    for _ in range(TRIES):
        longest = rng.uniform(*RELATIVE_SIZE) * (far - near).max()
        scale = longest / max(cutout.mask.shape)
        pasted = _resize_mask(cutout.mask, scale)
        centre = rng.uniform(near, far)
        h, w = pasted.shape
        left, top = (int(value) for value in np.rint(centre - np.array([w, h]) / 2))
        inside = slice(max(-top, 0), min(height - top, h)), slice(max(-left, 0), min(width - left, w))
        window = slice(max(top, 0), min(top + h, height)), slice(max(left, 0), min(left + w, width))
        shape, here = pasted[inside], masks[:, *window]
        covered = shape if in_front else shape & ~here[target]
        hidden = np.array([np.count_nonzero(mask & covered) for mask in here]) / areas
        # Share of the cut-out that is hidden by the target or beyond the picture's border.
        own = 1 - np.count_nonzero(covered) / max(int(np.count_nonzero(pasted)), 1)
        met = hidden[target] if in_front else own
        if met < LEAST_HIDDEN or hidden.max() > MOST_HIDDEN or own > MOST_HIDDEN:
            continue
        picture = picture.copy()
        _blend(picture[window], _resize_picture(cutout.picture, scale)[inside], covered)
        visible = np.concatenate([masks, np.zeros((1, height, width), bool)])
        visible[:, *window] &= ~covered
        visible[-1, *window] = covered
        return picture, visible
    return picture, masks


def _resize_picture(picture: np.ndarray, scale: float) -> np.ndarray:
    height, width = (max(round(side * scale), 1) for side in picture.shape[:2])
    interpolation = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    return cv2.resize(np.ascontiguousarray(picture), (width, height), interpolation=interpolation)


def _resize_mask(mask: np.ndarray, scale: float) -> np.ndarray:
    return _resize_picture(mask.astype(np.uint8) * np.uint8(255), scale) > 127


def _blend(below: np.ndarray, above: np.ndarray, mask: np.ndarray) -> None:
    """Pastes `above` into `below`, both (h, w, 3) uint8, where mask (h, w) is set, with a soft edge."""
    opacity = cv2.GaussianBlur(mask.astype(np.float32), (0, 0), EDGE)
    below[...] = cv2.blendLinear(np.ascontiguousarray(above), np.ascontiguousarray(below), opacity, 1 - opacity)
