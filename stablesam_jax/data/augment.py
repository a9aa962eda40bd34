"""Augmentation: large-scale jitter and flip, into the square frame of the model (sec. 9).

HQ-SAM, `train/utils/dataloader.py`: scale 0.1 to 2.0 of the frame's side, padding 128, flip with probability 1/2. Here
the picture is cropped before it is resized, which has the same result in a fraction of the time.
"""

import dataclasses
from collections.abc import Callable

import cv2
import numpy as np

PADDING = 128  # grey level beyond the picture
TRIES = 10  # draws of a crop until one contains an object
MIN_AREA = 5e-4  # least share of the frame that an object must cover to be prompted
REDUCTIONS = (8, 4, 2)  # of which a JPEG file can be decoded
MIN_VISIBLE = 0.3  # least share of an object that must be inside the crop


def resize_masks(masks: np.ndarray, size_hw: tuple[int, int]) -> np.ndarray:
    """Resizes masks bilinearly without antialias, as HQ-SAM, threshold 1/2: (M, H, W) bool -> (M, h, w) bool.

    Objects thinner than a pixel of the new size may break or vanish.
    """
    if masks.shape[1:] == size_hw:
        return masks
    resized = np.empty((len(masks), *size_hw), bool)
    for mask, result in zip(masks, resized, strict=True):
        grey = cv2.resize(
            _contiguous(mask).view(np.uint8) * np.uint8(255), size_hw[::-1], interpolation=cv2.INTER_LINEAR
        )
        np.greater(grey, 127, out=result)
    return resized


@dataclasses.dataclass(frozen=True)
class Cut:
    """What is taken of a picture, and how large it becomes."""

    crop: tuple[slice, slice]  # rows and columns of the picture
    size_hw: tuple[int, int]  # in the frame
    flip: bool  # left to right, after the crop
    masks: np.ndarray  # (M', h, w) bool of size_hw, M' >= 1, none empty

    @property
    def reduction(self) -> int:
        """The largest of `REDUCTIONS` at which the crop is not smaller than in the frame; 1 without any."""
        sides = [(part.stop - part.start) // side for part, side in zip(self.crop, self.size_hw, strict=True)]
        return next((reduction for reduction in REDUCTIONS if reduction <= min(sides)), 1)

    def of(self, picture: np.ndarray) -> np.ndarray:
        """Cuts out of the picture, (H, W, 3) uint8 -> (h, w, 3) uint8."""
        return self._flipped(_resize_picture(picture[self.crop], self.size_hw))

    def read(self, read: Callable[[int], np.ndarray], picture_hw: tuple[int, int]) -> np.ndarray:
        """The same of a picture that is decoded no larger than the frame needs it.

        Args:
            read: reduction -> the picture, with sides of 1/reduction, rounded up, or in full size.
            picture_hw: its full size.

        Raises:
            ValueError: what was read has neither size.
        """
        reduction = self.reduction
        picture = read(reduction)
        if picture.shape[:2] == picture_hw:
            return self.of(picture)
        if picture.shape[:2] != tuple(-(-side // reduction) for side in picture_hw):
            raise ValueError(f"a picture of {picture_hw} has {picture.shape[:2]} at 1/{reduction}")
        # The crop may begin within a pixel of the reduced picture, so that slices would move it against its masks.
        matrix = np.zeros((2, 3))
        for axis, part, side in zip((1, 0), self.crop, self.size_hw, strict=True):
            step = (part.stop - part.start) / side / reduction
            matrix[axis, axis], matrix[axis, 2] = step, part.start / reduction + step / 2 - 0.5
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        taken = cv2.warpAffine(picture, matrix, self.size_hw[::-1], flags=flags, borderMode=cv2.BORDER_REPLICATE)
        return self._flipped(taken)

    def _flipped(self, picture: np.ndarray) -> np.ndarray:
        return picture[:, ::-1] if self.flip else picture


def draw_cut(rng: np.random.Generator, masks: np.ndarray, *, size: int, scale_range: tuple[float, float]) -> Cut:
    """Draws flip, scale and crop of a picture, so that it fits into the frame, see `pad`.

    Draws without an object of `MIN_AREA` and `MIN_VISIBLE` are repeated; after `TRIES` the whole picture is taken.

    Args:
        rng: advanced by the call.
        masks: (M, H, W) bool, M >= 1, none empty.
        size: S, side of the frame in pixels.
        scale_range: bounds of the longest side as a share of S.

    Returns:
        The cut, with h, w <= S.
    """
    flip = rng.random() < 0.5
    height, width = masks.shape[1:]
    areas = np.array([np.count_nonzero(mask) for mask in masks])
    for _ in range(TRIES):
        scale = size * rng.uniform(*scale_range) / max(height, width)
        (rows, shown_h), (columns, shown_w) = (_crop(rng, side, scale, size) for side in (height, width))
        crop = rows, columns
        visible = np.array([np.count_nonzero(mask[crop]) for mask in masks])
        kept = (visible * scale**2 >= MIN_AREA * size**2) & (visible >= MIN_VISIBLE * areas)
        if not kept.any():
            continue
        left_over = resize_masks(masks[:, *crop][kept], (shown_h, shown_w))
        left_over = left_over[left_over.any((1, 2))]  # thin ones may vanish
        if len(left_over):
            return Cut(crop, (shown_h, shown_w), flip, left_over[:, :, ::-1] if flip else left_over)
    left_over = _whole_masks(masks, size)
    crop = slice(0, height), slice(0, width)
    return Cut(crop, left_over.shape[1:], flip, left_over[:, :, ::-1] if flip else left_over)


def _crop(rng: np.random.Generator, side: int, scale: float, size: int) -> tuple[slice, int]:
    """The crop along one side of the picture, and its length in pixels of the frame, at most `size`."""
    scaled = max(round(side * scale), 1)
    taken = side if scaled <= size else min(max(round(size / scale), 1), side)
    start = int(rng.integers(side - taken + 1))
    return slice(start, start + taken), min(scaled, size)


def whole_picture(picture: np.ndarray, masks: np.ndarray, *, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Resizes a picture to the longest side `size`. Masks that vanish are dropped, unless all do.

    Args:
        picture: (H, W, 3) uint8.
        masks: (M, H, W) bool, M >= 1, none empty.
        size: S, side of the frame in pixels.

    Returns:
        picture (h, w, 3) uint8 with h, w <= S, and the remaining masks, (M', h, w) bool with M' >= 1, none empty.
    """
    kept = _whole_masks(masks, size)
    return _resize_picture(picture, kept.shape[1:]), kept


def _whole_masks(masks: np.ndarray, size: int) -> np.ndarray:
    scale = size / max(masks.shape[1:])
    size_hw = max(round(masks.shape[1] * scale), 1), max(round(masks.shape[2] * scale), 1)
    resized = resize_masks(masks, size_hw)
    if not resized.any():  # all objects are thinner than a pixel of the new size: map their pixels to the nearest
        resized = np.zeros_like(resized)
        index, rows, columns = np.nonzero(masks)
        resized[index, np.minimum(rows * scale, size_hw[0] - 1).astype(int),
                np.minimum(columns * scale, size_hw[1] - 1).astype(int)] = True  # fmt: skip
    return resized[resized.any((1, 2))]


def pad(picture: np.ndarray, masks: np.ndarray, *, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Pads a picture on the right and at the bottom to the square frame.

    Args:
        picture: (h, w, 3) uint8.
        masks: (M, h, w) bool.
        size: S, at least h and w.

    Returns:
        (S, S, 3) uint8, `PADDING` beyond the picture, and (M, S, S) bool.
    """
    height, width = picture.shape[:2]
    frame, placed = np.full((size, size, 3), PADDING, np.uint8), np.zeros((len(masks), size, size), bool)
    frame[:height, :width], placed[:, :height, :width] = picture, masks
    return frame, placed


def _resize_picture(picture: np.ndarray, size_hw: tuple[int, int]) -> np.ndarray:
    """Resizes without aliasing: area means for half the size or less. Halving first takes a quarter of their time."""
    (height, width), picture = size_hw, _contiguous(picture)
    while picture.shape[0] >= 2 * height and picture.shape[1] >= 2 * width:
        rows, columns = picture.shape[:2]
        if rows % 2 or columns % 2:
            return cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA)
        picture = cv2.resize(picture, (columns // 2, rows // 2), interpolation=cv2.INTER_AREA)
    return cv2.resize(picture, (width, height), interpolation=cv2.INTER_LINEAR)


def _contiguous(array: np.ndarray) -> np.ndarray:
    """Copies a mirrored array: OpenCV accepts the strides of crops but not negative ones."""
    return array if min(array.strides) > 0 else np.ascontiguousarray(array)
