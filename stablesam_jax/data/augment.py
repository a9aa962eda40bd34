"""Augmentation: large-scale jitter and flip, into the square frame of the model (sec. 9).

HQ-SAM, `train/utils/dataloader.py`: scale 0.1 to 2.0 of the frame's side, padding 128, flip with probability 1/2. Here
the picture is cropped before it is resized, which has the same result in a fraction of the time.
"""

import cv2
import numpy as np

PADDING = 128  # grey level beyond the picture
TRIES = 10  # draws of a crop until one contains an object
MIN_AREA = 5e-4  # least share of the frame that an object must cover to be prompted
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


def large_scale_jitter(
    rng: np.random.Generator,
    picture: np.ndarray,
    masks: np.ndarray,
    *,
    size: int,
    scale_range: tuple[float, float],
) -> tuple[np.ndarray, np.ndarray]:
    """Flips, scales and crops a picture and its masks to fit into the frame, see `pad`.

    Draws without an object of `MIN_AREA` and `MIN_VISIBLE` are repeated; after `TRIES` the whole picture is taken.

    Args:
        rng: advanced by the call.
        picture: (H, W, 3) uint8.
        masks: (M, H, W) bool, M >= 1, none empty.
        size: S, side of the frame in pixels.
        scale_range: bounds of the longest side as a share of S.

    Returns:
        picture (h, w, 3) uint8 with h, w <= S, and the remaining masks, (M', h, w) bool with M' >= 1, none empty.
    """
    flip = rng.random() < 0.5
    height, width = picture.shape[:2]
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
            part = _resize_picture(picture[crop], (shown_h, shown_w))
            return (part[:, ::-1], left_over[:, :, ::-1]) if flip else (part, left_over)
    whole, left_over = whole_picture(picture, masks, size=size)
    return (whole[:, ::-1], left_over[:, :, ::-1]) if flip else (whole, left_over)


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
        As `large_scale_jitter`.
    """
    scale = size / max(picture.shape[:2])
    size_hw = max(round(picture.shape[0] * scale), 1), max(round(picture.shape[1] * scale), 1)
    resized = resize_masks(masks, size_hw)
    if not resized.any():  # all objects are thinner than a pixel of the new size: map their pixels to the nearest
        resized = np.zeros_like(resized)
        index, rows, columns = np.nonzero(masks)
        resized[index, np.minimum(rows * scale, size_hw[0] - 1).astype(int),
                np.minimum(columns * scale, size_hw[1] - 1).astype(int)] = True  # fmt: skip
    return _resize_picture(picture, size_hw), resized[resized.any((1, 2))]


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
