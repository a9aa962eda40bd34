"""Pictures as training sees them: large-scale jitter and flip, into the square frame of the model (sec. 9).

HQ-SAM, `train/utils/dataloader.py`: scale 0.1 to 2.0 of the frame's side, padding 128, flip with probability 1/2.
"""

import cv2
import numpy as np

PADDING = 128  # grey level beyond the picture
TRIES = 10  # crops until one keeps an object
MIN_AREA = 5e-4  # share of the frame that an object must cover to be worth a prompt
MIN_VISIBLE = 0.3  # share of an object that must survive the crop


def resize_masks(masks: np.ndarray, size_hw: tuple[int, int]) -> np.ndarray:
    """Bilinear without antialias, as in HQ-SAM, then the threshold 1/2: (M, H, W) bool -> (M, h, w) bool.

    What is thinner than a pixel of the new size may break or vanish.
    """
    if masks.shape[1:] == size_hw:
        return masks
    size = size_hw[::-1]
    resized = [cv2.resize(mask.astype(np.uint8) * 255, size, interpolation=cv2.INTER_LINEAR) for mask in masks]
    return np.stack(resized) > 127


def large_scale_jitter(
    rng: np.random.Generator,
    picture: np.ndarray,
    masks: np.ndarray,
    *,
    size: int,
    scale_range: tuple[float, float],
) -> tuple[np.ndarray, np.ndarray]:
    """Flips, scales, crops and pads a picture and its masks.

    A draw that leaves no object worth a prompt is redrawn; after `TRIES` draws the whole picture is taken.

    Args:
        rng: advanced by the call.
        picture: (H, W, 3) uint8.
        masks: (M, H, W) bool, M >= 1, none empty.
        size: S, side of the frame in pixels.
        scale_range: bounds of the longest side as a share of S.

    Returns:
        picture (S, S, 3) uint8 and the masks that are left, (M', S, S) bool with M' >= 1, none empty.
    """
    if rng.random() < 0.5:
        picture, masks = picture[:, ::-1], masks[:, :, ::-1]
    height, width = picture.shape[:2]
    for _ in range(TRIES):
        scale = size * rng.uniform(*scale_range) / max(height, width)
        new_h, new_w = max(round(height * scale), 1), max(round(width * scale), 1)
        top, left = rng.integers(max(new_h - size, 0) + 1), rng.integers(max(new_w - size, 0) + 1)
        scaled = resize_masks(masks, (new_h, new_w))
        cropped = scaled[:, top : top + size, left : left + size]
        area = cropped.sum((1, 2))
        kept = (area >= MIN_AREA * size**2) & (area >= MIN_VISIBLE * scaled.sum((1, 2)))
        if kept.any():
            frame = _place(
                _resize_picture(picture, (new_h, new_w))[top : top + size, left : left + size], size, PADDING
            )
            return frame, np.stack([_place(mask, size, False) for mask in cropped[kept]])
    return whole_picture(picture, masks, size=size)


def whole_picture(picture: np.ndarray, masks: np.ndarray, *, size: int) -> tuple[np.ndarray, np.ndarray]:
    """The picture with its longest side at `size`, padded; masks that vanish thereby are dropped, but never all.

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
    if not resized.any():  # an object thinner than a cell of the new grid: nearest neighbours of its own pixels
        resized = np.zeros_like(resized)
        index, rows, columns = np.nonzero(masks)
        resized[index, np.minimum(rows * scale, size_hw[0] - 1).astype(int),
                np.minimum(columns * scale, size_hw[1] - 1).astype(int)] = True  # fmt: skip
    resized = resized[resized.any((1, 2))]
    return _place(_resize_picture(picture, size_hw), size, PADDING), np.stack([_place(m, size, False) for m in resized])


def _resize_picture(picture: np.ndarray, size_hw: tuple[int, int]) -> np.ndarray:
    shrinking = size_hw[0] * size_hw[1] < picture.shape[0] * picture.shape[1]
    interpolation = cv2.INTER_AREA if shrinking else cv2.INTER_LINEAR
    return cv2.resize(np.ascontiguousarray(picture), size_hw[::-1], interpolation=interpolation)


def _place(crop: np.ndarray, size: int, fill: int | bool) -> np.ndarray:
    frame = np.full((size, size, *crop.shape[2:]), fill, crop.dtype)
    frame[: crop.shape[0], : crop.shape[1]] = crop
    return frame
