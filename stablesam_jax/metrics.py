"""Accuracy and stability of masks: IoU, boundary IoU, the paper's mSF, and the IoU of classes.

On the host, in numpy. Masks are (H, W) bool at the picture's own size; results are fractions, as Python floats. The
caller takes the means: over prompts, then pictures, then data sets, each unweighted (sec. 3.2).
"""

import math
from collections.abc import Iterable

import cv2
import numpy as np


def mask_iou(predicted: np.ndarray, target: np.ndarray) -> float:
    """Intersection over union.

    Args:
        predicted, target: (H, W) bool.

    Returns:
        In [0, 1]; nan if both are empty, as in HQ-SAM (`compute_iou`).

    Raises:
        ValueError: not two bool masks of one shape.
    """
    _check(predicted, target)
    union = int(np.count_nonzero(predicted | target))
    return int(np.count_nonzero(predicted & target)) / union if union else math.nan


def boundary_iou(predicted: np.ndarray, target: np.ndarray, *, dilation_ratio: float = 0.02) -> float:
    """IoU of the two masks' inner boundary bands, in which errors at the edge of a large object count.

    The band is the foreground within d px (chessboard distance) of background or of the picture's border, with
    d = max(1, round(dilation_ratio * picture diagonal)): 16 px at 480 x 640, 88 px at 2160 x 3840. Equal to the
    reference's d erosions by a 3 x 3 square (bowenc0221/boundary-iou-api, `mask_to_boundary`).

    Args:
        predicted, target: (H, W) bool.
        dilation_ratio: share of the diagonal.

    Returns:
        In [0, 1]; nan only if both masks are empty, because any other mask has a band.

    Raises:
        ValueError: not two bool masks of one shape.
    """
    _check(predicted, target)
    distance = max(1, round(dilation_ratio * math.hypot(*target.shape)))
    return mask_iou(_boundary(predicted, distance), _boundary(target, distance))


def stability(masks: Iterable[np.ndarray]) -> float:
    """How much the masks of one object, one per prompt, agree with each other: mSF of one object.

    Implements eq. 1 (sec. 3.1).

    The mean over the masks of |mask| / |union of all|, which is their IoU with the union. It does not use the true
    mask.

    Args:
        masks: B masks, (H, W) bool, B >= 1. Consumed one at a time: only the union is kept.

    Returns:
        In [1/B, 1]; 1 if all are equal. 0 if all are empty, which the paper does not define: a model that finds
        nothing must not count as stable.

    Raises:
        ValueError: no masks.
    """
    areas: list[int] = []
    union = np.zeros((), bool)
    for mask in masks:
        areas.append(int(np.count_nonzero(mask)))
        union = union | mask
    if not areas:
        raise ValueError("stability of no masks; expected at least one")
    return sum(areas) / (len(areas) * max(1, int(np.count_nonzero(union))))


def confusion(predicted: np.ndarray, target: np.ndarray, *, classes: int, ignore: int) -> np.ndarray:
    """Confusion matrix of a class map; the matrices of several pictures may be summed.

    Args:
        predicted: (H, W) integers below `classes`.
        target: (H, W) integers below `classes`, or `ignore` for pixels that do not count.
        classes: C.
        ignore: label of pixels without a class.

    Returns:
        (C, C) int64 counts of pixels: row the predicted class, column the true one.

    Raises:
        ValueError: not two maps of one shape, or a value that is not a class.
    """
    if predicted.shape != target.shape:
        raise ValueError(f"expected two class maps of one shape, got {predicted.shape} and {target.shape}")
    counted = target != ignore
    pairs = np.stack([predicted[counted], target[counted]]).astype(np.int64)
    if pairs.size and not 0 <= pairs.min() <= pairs.max() < classes:
        raise ValueError(f"expected classes from 0 to {classes - 1}, got {pairs.min()} to {pairs.max()}")
    return np.bincount(classes * pairs[0] + pairs[1], minlength=classes**2).reshape(classes, classes)


def class_iou(confused: np.ndarray) -> np.ndarray:
    """IoU of each class over a whole data set, as in detectron2's SemSegEvaluator.

    Args:
        confused: (C, C) from `confusion`.

    Returns:
        (C,) float64; 0 for a class that is only predicted or only labelled, nan for one that is neither.
    """
    agreed = confused.diagonal()
    union = confused.sum(axis=0) + confused.sum(axis=1) - agreed
    return np.divide(agreed, union, out=np.full(len(confused), math.nan), where=union > 0)


def class_miou(confused: np.ndarray) -> float:
    """Mean of `class_iou` over the classes that are labelled or predicted, background included; nan without any."""
    iou = class_iou(confused)
    defined = iou[~np.isnan(iou)]
    return float(defined.mean()) if defined.size else math.nan


def _boundary(mask: np.ndarray, distance: int) -> np.ndarray:
    # OpenCV separates one large square into a row and a column: 24 ms at 2160 x 3840; 88 erosions by 3 x 3 take 152 ms.
    square = np.ones((2 * distance + 1, 2 * distance + 1), np.uint8)
    inside = cv2.erode(mask.view(np.uint8), square, borderType=cv2.BORDER_CONSTANT, borderValue=0)
    return mask & ~inside.view(bool)


def _check(predicted: np.ndarray, target: np.ndarray) -> None:
    if predicted.shape != target.shape or predicted.dtype != bool or target.dtype != bool:
        raise ValueError(
            f"expected two bool masks of one shape, got {predicted.dtype} {predicted.shape} and {target.dtype} "
            f"{target.shape}; threshold logits at > 0, resize to the picture's size"
        )
