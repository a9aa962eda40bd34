"""Label files: which pixels belong to which object or class.

Exact masks (the layout "pairs") hold one number per object; an ambiguous one is refused. The masks of the official
releases are soft at their edges and are thresholded. Class maps hold one class per pixel.
"""

import pathlib
from collections.abc import Mapping

import cv2
import numpy as np

from stablesam_jax.commands import called
from stablesam_jax.errors import InputError
from stablesam_jax.files.picture_file import Stored, count_frames, read_stored

IGNORE = 255  # belongs to no object and no class
IGNORE_16 = 65535  # the same in a mask with numbers above 255
THRESHOLD = 128  # of soft masks: larger values are object (protocol: HQ-SAM, train/utils/misc.py)
LOSSY = ("JPEG", "MPO", "AVIF")
FEW_BITS = tuple(f"L;{bits}" for bits in range(2, 8))  # raw modes that Pillow scales to 8 bits
MOST_MASK_BYTES = 2**32  # largest memory for the masks of one picture
SizeHW = tuple[int, int]


class OtherSizeError(InputError):
    """A picture and its label are not of one size."""


def read_masks(path: pathlib.Path, size_hw: SizeHW | None) -> tuple[np.ndarray, tuple[int, ...]]:
    """Reads the exact mask file of a picture.

    In a file with a palette the indices are the numbers, and the colours are ignored. Colour files are accepted if all
    pixels are grey.

    Args:
        path: 0 is background. One other number is one object. Several are one object each, and 255 is then "ignore", or
            65535 if there are numbers above 255.
        size_hw: the picture's size; None: any.

    Returns:
        masks (M, H, W) bool, one per object in the order of their numbers, and the numbers.

    Raises:
        InputError: unreadable file, another size than the picture's, colours, grey levels, too many objects, or none.
    """
    stored = _read(path)
    label = _numbers(path, stored)
    _check_size(path, label, size_hw)
    counts = _counts(label)
    numbers = np.array([number for number in counts if number > 0])
    if len(numbers) == 0:
        raise InputError(f"{path}: the mask is empty; draw an object (any value above 0) or remove the pair.")
    if len(numbers) > 1:
        if stored.raw in FEW_BITS:
            raise InputError(
                f"{path}: the mask has {stored.raw[-1]} bits a pixel, so that its numbers are not known; store 8 bits."
            )
        ignore = IGNORE if numbers[-1] <= IGNORE else IGNORE_16
        numbers = numbers[numbers != ignore]
        if _looks_soft(label, numbers, counts, white=ignore):
            shown = ", ".join(str(number) for number in numbers[:3]) + (", ..." if len(numbers) > 3 else "")
            raise InputError(
                f"{path}: the mask has grey levels ({shown}), as soft edges, JPEG or an unknown zone leave them; "
                f"threshold it to 0 and {ignore}, or give each object a number (1, 2, 3, ...)."
            )
    masks = empty_masks(path, len(numbers), label.shape)
    for mask, number in zip(masks, numbers, strict=True):
        np.equal(label, number, out=mask)
    return masks, tuple(numbers.tolist())


def empty_masks(path: pathlib.Path, count: int, size_hw: tuple[int, ...]) -> np.ndarray:
    """Allocates (M, H, W) bool for the objects of a picture.

    Raises:
        InputError: it would take more than `MOST_MASK_BYTES`.
    """
    height, width = size_hw
    if count * height * width > MOST_MASK_BYTES:
        raise InputError(
            f"{path}: holds {count:,} objects of a picture of {width} x {height} pixels, whose masks would take "
            f"{count * height * width / 2**30:.0f} GiB; cut the picture into smaller ones."
        )
    return np.empty((count, height, width), bool)


def read_soft_mask(path: pathlib.Path, size_hw: SizeHW | None) -> np.ndarray:
    """Reads the mask of one object as (H, W) bool: the first channel above `THRESHOLD`.

    Raises:
        InputError: unreadable file, another size than the picture's, or no value above the threshold.
    """
    stored = _read(path)
    picture = stored.image
    if picture.mode in ("1", "P"):
        picture = picture.convert("L" if picture.mode == "1" else "RGB")
    values = np.asarray(picture) if stored.deep is None else stored.deep // 257
    values = values[..., 0] if values.ndim == 3 else values
    _check_size(path, values, size_hw)
    mask = values > THRESHOLD
    if not mask.any():
        raise InputError(
            f"{path}: the mask is empty (its largest value is {values.max()}, an object is above {THRESHOLD}); "
            f"remove the pair, or build the set with `{called('build')}`, which leaves it out."
        )
    return mask


def read_classes(path: pathlib.Path, size_hw: SizeHW | None, *, classes: int) -> np.ndarray:
    """Reads a class map as (H, W) uint8: classes from 0 up, or `IGNORE`.

    Raises:
        InputError: unreadable file, another size than the picture's, colours, or a number that is not a class.
    """
    label = _numbers(path, _read(path))
    _check_size(path, label, size_hw)
    unknown = [value for value in _counts(label) if value != IGNORE and not 0 <= value < classes]
    if unknown:
        shown = ", ".join(map(str, unknown[:3])) + (", ..." if len(unknown) > 3 else "")
        raise InputError(
            f"{path}: holds {shown}, which is no class; give numbers from 0 to {classes - 1}, or {IGNORE} for ignore."
        )
    return label.astype(np.uint8)


def _check_size(path: pathlib.Path, label: np.ndarray, size_hw: SizeHW | None) -> None:
    if size_hw is not None and label.shape != size_hw:
        raise OtherSizeError(f"{path}: {other_size(label.shape, size_hw)}")


def other_size(mask_hw: tuple[int, ...], picture_hw: tuple[int, ...]) -> str:
    """The message for a mask whose size differs from its picture's."""
    turned = " (one is turned; mind the EXIF orientation)" if mask_hw == picture_hw[::-1] else ""
    (height, width), (rows, columns) = mask_hw, picture_hw
    return f"the mask is {width} x {height} pixels, its picture {columns} x {rows}{turned}; make them equal."


def _read(path: pathlib.Path) -> Stored:
    """Reads a file and checks that it has a single frame."""
    stored = read_stored(path)
    if (frames := count_frames(path)) > 1:
        raise InputError(f"{path}: the mask has {frames} frames or pages; store one.")
    return stored


def _numbers(path: pathlib.Path, stored: Stored) -> np.ndarray:
    """The numbers (H, W) of a mask file, if it is lossless and its colour channels are equal."""
    picture = stored.image
    if picture.format in LOSSY:
        raise InputError(
            f"{path}: is a {picture.format} file, which blurs a mask; store the mask in a lossless format, as PNG."
        )
    if stored.deep is not None:
        values = stored.deep
    elif picture.mode == "1":
        values = np.asarray(picture).astype(np.uint8)
    elif picture.mode in ("LA", "RGB", "RGBA"):
        values = np.asarray(picture.convert("RGBA"))
    elif picture.mode in ("L", "P", "I"):
        values = np.asarray(picture)
    else:
        raise InputError(f"{path}: the mask has pixels of mode {picture.mode}; store one grey channel of 8 bits.")
    if values.ndim == 2:
        return values
    colours, alpha = np.moveaxis(values[..., :3], -1, 0), values[..., 3:]
    if any((colour != colours[0]).any() for colour in colours):
        raise InputError(
            f"{path}: the mask is coloured, so that its numbers are not known; "
            "store one channel with a number per object (1, 2, 3, ...)."
        )
    if (alpha != np.iinfo(values.dtype).max).any():
        raise InputError(f"{path}: the mask is transparent in places; store one grey channel, 0 where no object is.")
    return colours[0]


def _counts(label: np.ndarray) -> dict[int, int]:
    """number -> count of its pixels, in the order of the numbers."""
    if label.dtype != np.uint8:
        return dict(zip(*(found.tolist() for found in np.unique(label, return_counts=True)), strict=True))
    histogram = cv2.calcHist([label], [0], None, [256], [0, 256]).ravel().astype(int)  # a tenth of np.unique's time
    return {number: int(count) for number, count in enumerate(histogram) if count}


def _looks_soft(label: np.ndarray, numbers: np.ndarray, counts: Mapping[int, int], *, white: int) -> bool:
    """Whether the values other than 0 and white are grey levels of one object's soft edge, not numbers of objects.

    Grey levels of an edge are in thin bands: fewer than half of the values fill a square of 3 x 3 pixels anywhere.
    Measured: in each of 1,528 masks of several objects or classes at least 89 % of the values fill a square, in 300
    masks after resizing, slight blur or JPEG at most 33 %. Further, edges have bright levels, or white has more pixels.
    A single value of 127 or 128 beside white is the unknown zone of a trimap, whatever its width.

    Thin objects with a border of white, "ignore", differ from an edge: their values are small, and white has at most 20
    times their pixels, as for an object 1 pixel wide with borders of 10 pixels.
    """
    whites, others = counts.get(white, 0), sum(counts[number] for number in numbers)
    if whites and len(numbers) == 1 and numbers[0] in (white // 2, white // 2 + 1):
        return True
    if numbers[-1] <= white // 2 and whites <= others:
        return False
    if numbers[-1] <= white // 8 and others * 20 >= whites:
        return False
    if numbers[-1] > IGNORE_16:
        return False
    label = label.astype(np.uint8 if white == IGNORE else np.uint16)
    square = np.ones((3, 3), np.uint8)
    uniform = cv2.erode(label, square) == cv2.dilate(label, square)
    filling = _counts(label[uniform][None])
    return float(np.mean([number in filling for number in numbers])) < 0.5
