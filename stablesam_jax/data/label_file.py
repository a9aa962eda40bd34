"""Label files: which pixels belong to which object or class.

Exact masks (the layout "pairs") hold one number per object and are never guessed at. The masks of the official releases
are soft at their edges and are thresholded. Class maps hold one class per pixel.
"""

import pathlib
from collections.abc import Mapping

import cv2
import numpy as np
from PIL import Image

from stablesam_jax.commands import called
from stablesam_jax.errors import InputError
from stablesam_jax.files.picture_file import open_upright

IGNORE = 255  # belongs to no object and no class
THRESHOLD = 128  # of soft masks: above it is object (protocol: HQ-SAM, train/utils/misc.py)


def read_masks(path: pathlib.Path, size_hw: tuple[int, int]) -> tuple[np.ndarray, tuple[int, ...]]:
    """Reads the exact mask file of a picture.

    A palette's indices are the numbers; its colours mean nothing. Colour files are accepted where they show greys only.

    Args:
        path: 0 is background; one other number is one object, several are one object each, and 255 is then "ignore".
        size_hw: the picture's size.

    Returns:
        masks (M, H, W) bool, one per object in the order of their numbers, and the numbers.

    Raises:
        InputError: unreadable file, another size than the picture's, colours, grey levels, or no object.
    """
    label = _numbers(path, open_upright(path))
    _check_size(path, label, size_hw)
    counts = _counts(label)
    numbers = np.array([number for number in counts if number > 0])
    if len(numbers) == 0:
        raise InputError(f"{path}: the mask is empty; draw an object (any value above 0) or remove the pair.")
    if len(numbers) > 1:
        if numbers[-1] > IGNORE:
            raise InputError(
                f"{path}: the mask holds numbers up to {numbers[-1]}; number the objects from 1 to 254 at most."
            )
        numbers = numbers[numbers != IGNORE]
        if _looks_soft(label, numbers, counts):
            shown = ", ".join(str(number) for number in numbers[:3]) + (", ..." if len(numbers) > 3 else "")
            raise InputError(
                f"{path}: the mask has grey levels ({shown}), as soft edges, JPEG or an unknown zone leave them; "
                "threshold it to 0 and 255, or give each object a number (1, 2, 3, ...)."
            )
    masks = np.empty((len(numbers), *size_hw), bool)
    for mask, number in zip(masks, numbers, strict=True):
        np.equal(label, number, out=mask)
    return masks, tuple(numbers.tolist())


def read_soft_mask(path: pathlib.Path, size_hw: tuple[int, int]) -> np.ndarray:
    """Reads the mask of one object by its first channel as (H, W) bool: what is above `THRESHOLD`.

    Raises:
        InputError: unreadable file, another size than the picture's, or nothing is above the threshold.
    """
    picture = open_upright(path)
    if picture.mode in ("1", "P"):
        picture = picture.convert("L" if picture.mode == "1" else "RGB")
    values = np.asarray(picture)
    values = values[..., 0] if values.ndim == 3 else values
    _check_size(path, values, size_hw)
    mask = values > THRESHOLD
    if not mask.any():
        raise InputError(
            f"{path}: the mask is empty (its largest value is {values.max()}, an object is above {THRESHOLD}); "
            f"remove the pair, or build the set with `{called('build')}`, which leaves it out."
        )
    return mask


def read_classes(path: pathlib.Path, size_hw: tuple[int, int], *, classes: int) -> np.ndarray:
    """Reads a class map as (H, W) uint8: classes from 0 up, or `IGNORE`.

    Raises:
        InputError: unreadable file, another size than the picture's, colours, or a number that is no class.
    """
    label = _numbers(path, open_upright(path))
    _check_size(path, label, size_hw)
    strangers = [value for value in _counts(label) if value != IGNORE and not 0 <= value < classes]
    if strangers:
        shown = ", ".join(map(str, strangers[:3])) + (", ..." if len(strangers) > 3 else "")
        raise InputError(
            f"{path}: holds {shown}, which is no class; give numbers from 0 to {classes - 1}, or {IGNORE} for ignore."
        )
    return label.astype(np.uint8)


def _check_size(path: pathlib.Path, label: np.ndarray, size_hw: tuple[int, int]) -> None:
    if label.shape != size_hw:
        raise InputError(f"{path}: {other_size(label.shape, size_hw)}")


def other_size(mask_hw: tuple[int, ...], picture_hw: tuple[int, ...]) -> str:
    """What is wrong with a mask whose size is not its picture's."""
    turned = " (one is turned; mind the EXIF orientation)" if mask_hw == picture_hw[::-1] else ""
    (height, width), (rows, columns) = mask_hw, picture_hw
    return f"the mask is {width} x {height} pixels, its picture {columns} x {rows}{turned}; make them equal."


def _numbers(path: pathlib.Path, picture: Image.Image) -> np.ndarray:
    """The numbers (H, W) of a mask file, where every channel that could differ does not."""
    if picture.format == "JPEG":
        raise InputError(f"{path}: is a JPEG file, which blurs a mask; store the mask in a lossless format, as PNG.")
    if picture.mode in ("L", "P", "I") or picture.mode.startswith("I;16"):
        return np.asarray(picture)
    if picture.mode == "1":
        return np.asarray(picture).astype(np.uint8)
    if picture.mode not in ("LA", "RGB", "RGBA"):
        raise InputError(f"{path}: the mask has pixels of mode {picture.mode}; store one grey channel of 8 bits.")
    *colours, alpha = np.moveaxis(np.asarray(picture.convert("RGBA")), -1, 0)
    if any((colour != colours[0]).any() for colour in colours):
        raise InputError(
            f"{path}: the mask is coloured, so that its numbers are not known; "
            "store one channel with a number per object (1, 2, 3, ...)."
        )
    if (alpha != 255).any():
        raise InputError(f"{path}: the mask is transparent in places; store one grey channel, 0 where no object is.")
    return colours[0]


def _counts(label: np.ndarray) -> dict[int, int]:
    """number -> pixels that have it, in the order of the numbers."""
    if label.dtype != np.uint8:
        return dict(zip(*(found.tolist() for found in np.unique(label, return_counts=True)), strict=True))
    histogram = cv2.calcHist([label], [0], None, [256], [0, 256]).ravel().astype(int)  # a tenth of the time
    return {number: int(count) for number, count in enumerate(histogram) if count}


def _looks_soft(label: np.ndarray, numbers: np.ndarray, counts: Mapping[int, int]) -> bool:
    """Whether the numbers besides 0 and 255 are shades of one object's edge, not objects.

    Shades lie in thin bands: fewer than half of them fill a square of 3 x 3 pixels anywhere. And some are bright, or
    all are rare beside white. Measured: of 1,528 masks of several objects or classes, each has at least 89 % of its
    numbers fill a square; of 300 masks after resizing, slight blur or JPEG, at most 33 %. A lone 127 or 128 beside
    white is the unknown zone of a trimap, however wide.
    """
    white = counts.get(IGNORE, 0)
    if white and len(numbers) == 1 and numbers[0] in (127, 128):
        return True
    if numbers[-1] < 128 and white <= sum(counts[number] for number in numbers):
        return False
    square, label = np.ones((3, 3), np.uint8), label.astype(np.uint8)
    uniform = cv2.erode(label, square) == cv2.dilate(label, square)
    filling = _counts(label[uniform][None])
    return float(np.mean([number in filling for number in numbers])) < 0.5
