"""Converts outlines of objects, polygons or run lengths, to the same masks as pycocotools.

Parts outside the picture are clipped as in pycocotools. faster-coco-eval's mask API is the same code.
"""

import array
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from faster_coco_eval.core import mask as mask_api

from stablesam_jax.data.label_file import empty_masks
from stablesam_jax.data.rle import CompressedRunLengths, compress

# pycocotools allocates five points for each pixel of an outline and counts them in 32 bits. Without bounds a single
# huge value in a file would exhaust the memory or overflow.
FARTHEST = 1e6  # pixels, largest distance from the picture's corner
LONGEST = 5e6  # pixels, largest length of one outline

Polygon = Sequence[float]  # x, y, x, y, ...
Segmentation = Any  # polygons, or run lengths in either form, as JSON holds them


def run_lengths(segmentation: Segmentation, size: tuple[int, int]) -> CompressedRunLengths:
    """The run lengths of an object.

    Args:
        segmentation: a list of polygons, whose union is taken; a single polygon, also as a list of points; or run
            lengths. A polygon of fewer than three points is empty.
        size: W, H of the picture.

    Raises:
        ValueError: it is malformed; the message follows "has".
    """
    if isinstance(segmentation, list):
        return _of_polygons(segmentation, size)
    return _of_run_lengths(segmentation, size)


def area(lengths: CompressedRunLengths) -> int:
    """Number of pixels of an object."""
    return int(mask_api.area(lengths))


def box_xywh(lengths: CompressedRunLengths) -> tuple[float, float, float, float]:
    """The box around an object: x, y, width, height."""
    x, y, width, height = mask_api.toBbox(lengths).tolist()
    return x, y, width, height


def mask(lengths: CompressedRunLengths) -> np.ndarray:
    """The mask of an object, (H, W) bool."""
    return mask_api.decode(lengths).astype(bool)


def masks(path: pathlib.Path, objects: Sequence[CompressedRunLengths], size_hw: tuple[int, int]) -> np.ndarray:
    """The masks (M, H, W) bool of the objects of a picture.

    Raises:
        InputError: they take too much memory; names `path`.
    """
    result = empty_masks(path, len(objects), size_hw)
    for place, lengths in enumerate(objects):
        result[place] = mask_api.decode(lengths)
    return result


def _of_polygons(segmentation: list[Any], size: tuple[int, int]) -> CompressedRunLengths:
    width, height = size
    if segmentation and not any(isinstance(part, list | array.array) for part in segmentation):
        segmentation = [segmentation]
    if len(segmentation) > 2 and all(isinstance(part, list | array.array) and len(part) == 2 for part in segmentation):
        segmentation = [[number for point in segmentation for number in point]]
    polygons = [polygon for polygon in map(_numbers, segmentation) if len(polygon) >= 6]
    for polygon in polygons:
        if len(polygon) % 2:
            raise ValueError("a polygon that is not x, y, x, y, ...")
        if np.abs(polygon).max() > FARTHEST or _length(polygon) > LONGEST:
            raise ValueError("a polygon that reaches too far outside its picture, or is too long")
    if not polygons:
        return compress({"size": [height, width], "counts": [height * width]})
    lengths = mask_api.segmToRle([polygon.tolist() for polygon in polygons], width, height)
    return {"size": [height, width], "counts": lengths["counts"].decode("ascii")}


def _numbers(polygon: Any) -> np.ndarray:
    """x, y, x, y, ... as float64.

    Raises:
        ValueError: a value is not a finite number.
    """
    if isinstance(polygon, list) and not all(type(value) in (int, float) for value in polygon):
        raise ValueError("a polygon that is not x, y, x, y, ...")
    try:
        numbers = np.array(polygon, np.float64)
    except (TypeError, ValueError, OverflowError):
        raise ValueError("a polygon that is not x, y, x, y, ...") from None
    if numbers.ndim != 1 or not np.isfinite(numbers).all():
        raise ValueError("a polygon that is not x, y, x, y, ...")
    return numbers


def _length(polygon: np.ndarray) -> float:
    points = polygon.reshape(-1, 2)
    return float(np.abs(points - np.roll(points, 1, axis=0)).max(axis=1).sum())


def _of_run_lengths(segmentation: Any, size: tuple[int, int]) -> CompressedRunLengths:
    width, height = size
    said, size_hw = segmentation.get("size") if isinstance(segmentation, dict) else None, [height, width]
    if said != size_hw:
        raise ValueError(f"run lengths for a size of {said}, not {size_hw}")
    counts = segmentation.get("counts")
    if isinstance(counts, list):
        if not all(type(count) is int and count >= 0 for count in counts) or sum(counts) != width * height:
            raise ValueError("run lengths that do not fill its picture")
        return compress({"size": size_hw, "counts": counts})
    if not isinstance(counts, str) or not counts.isascii():
        raise ValueError("no run lengths")
    lengths: CompressedRunLengths = {"size": size_hw, "counts": counts}
    try:
        mask_api.decode(lengths)  # the library checks their sum only here
    except (ValueError, RuntimeError, TypeError) as error:
        raise ValueError(f"a broken mask ({str(error).splitlines()[0].rstrip('.')})") from None
    return lengths
