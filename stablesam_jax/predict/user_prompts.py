"""Checks SamPredictor's prompt arguments and converts them to a list of prompts.

A prompt has points (k, 2) with labels (k,), a box (4,), and a mask input (1, 4G, 4G), as in segment_anything. A list of
N prompts, also of 0 or 1, has one more leading axis: points (N, k, 2) or N arrays of different lengths, labels alike,
boxes (N, 4) or (N, 1, 4), mask inputs (N, 4G, 4G) or (N, 1, 4G, 4G). A mask input (1, 4G, 4G) without other arguments
is one prompt, (1, 1, 4G, 4G) a list of one.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from stablesam_jax.errors import InputError
from stablesam_jax.prompts import Prompt

LABELS = (1, 0, -1)  # of points: object, background, none

Points = ArrayLike | Sequence[ArrayLike]


def read_prompts(
    point_coords: Points | None,
    point_labels: Points | None,
    box: ArrayLike | None,
    mask_input: ArrayLike | None,
    *,
    size_hw: tuple[int, int],
    mask_size: int,
    margin: float = 0,
) -> tuple[list[Prompt], bool]:
    """Checks and converts the arguments.

    Nothing is clipped, as in the reference: a box may extend beyond the picture, and a point may be a pixel outside. A
    point farther out, or a box with no part inside, is refused as a mistake in coordinates.

    Args:
        point_coords: (x, y) in pixels of the picture.
        point_labels: 1 for a point on the object, 0 for one beside it, -1 for no point, whose token still takes part in
            attention.
        box: XYXY in pixels of the picture.
        mask_input: logits in the model's frame, `low_res_masks` of an earlier prediction.
        size_hw: of the picture.
        mask_size: 4G.
        margin: further pixels by which coordinates may be outside because of rounding.

    Returns:
        the prompts, coordinates in float64, and whether they are a list; if not, there is one.

    Raises:
        InputError: no prompt, or malformed arguments.
    """
    if (point_coords is None) != (point_labels is None):
        given, missing = ("point_labels", "point_coords") if point_coords is None else ("point_coords", "point_labels")
        raise InputError(f"{given} is given without {missing}; give both, a label for each point.")
    fields: dict[str, tuple[list[np.ndarray], bool | None]] = {}
    if point_coords is not None and point_labels is not None:
        fields["point_coords"] = _sets("point_coords", point_coords, "(k, 2) or (N, k, 2)", axes=2)
        fields["point_labels"] = _sets("point_labels", point_labels, "(k,) or (N, k)", axes=1)
        if not fields["point_coords"][0] and not any(map(np.size, fields["point_labels"][0])):
            fields["point_labels"] = [], True  # [] is read as labels of an empty list of prompts
    if box is not None:
        fields["box"] = _items("box", box, (4,), "(4,), (N, 4) or (N, 1, 4)")
    if mask_input is not None:
        side = mask_size
        shapes = f"(1, {side}, {side}), (N, {side}, {side}) or (N, 1, {side}, {side})"
        fields["mask_input"] = _items("mask_input", mask_input, (side, side), shapes)
        if np.asarray(mask_input).dtype == bool:
            raise InputError("mask_input is boolean; give logits, the low_res_masks of an earlier prediction.")
    if not fields:
        raise InputError("no prompt is given; give point_coords with point_labels, box or mask_input.")

    is_list = any(listed is True for _, listed in fields.values())
    lengths = {name: len(items) for name, (items, _) in fields.items()}
    single = [name for name, (_, listed) in fields.items() if listed is False]
    if len(set(lengths.values())) == 1 and is_list and single:
        raise InputError(f"{', '.join(single)}: of one prompt, while other arguments are lists; give a list for each.")
    if len(set(lengths.values())) > 1:
        counts = ", ".join(f"{name} {count}" for name, count in lengths.items())
        raise InputError(f"the arguments are not for the same prompts ({counts}); give a list of N for each, or one.")

    prompts = []
    for index in range(next(iter(lengths.values()))):
        place = f"[{index}]" if is_list else ""
        chosen: dict[str, Any] = {name: items[index] for name, (items, _) in fields.items()}
        for name, array in chosen.items():
            if not np.isfinite(array).all():
                raise InputError(f"{name}{place} holds values that are not finite; give numbers.")
        prompts.append(
            Prompt(
                **_points(chosen.get("point_coords"), chosen.get("point_labels"), place, size_hw, margin),
                box=_box(chosen.get("box"), place, size_hw, margin),
                mask=chosen.get("mask_input"),
            )
        )
    return prompts, is_list


def _points(
    coords: np.ndarray | None, labels: np.ndarray | None, place: str, size_hw: tuple[int, int], margin: float
) -> dict[str, np.ndarray]:
    if coords is None or labels is None:
        return {}
    if coords.shape[1] != 2 or len(coords) == 0 or labels.shape != coords.shape[:1]:
        raise InputError(
            f"point_coords{place} has shape {coords.shape} and point_labels{place} {labels.shape}; "
            "expected (k, 2) and (k,) with k of at least 1."
        )
    if not np.isin(labels, LABELS).all():
        raise InputError(
            f"point_labels{place} holds {np.setdiff1d(labels, LABELS)[0]:g}; "
            "expected 1 (on the object), 0 (not on it) or -1 (no point)."
        )
    height, width = size_hw
    outside = ((coords < -1 - margin) | (coords > (width + margin, height + margin))).any(axis=1) & (labels != -1)
    if outside.any():
        x, y = coords[outside.argmax()]
        raise InputError(
            f"point_coords{place} holds ({x:g}, {y:g}), which lies outside the picture of {width} x {height} pixels; "
            "points are (x, y) in its pixels."
        )
    return {"points": coords, "labels": labels.astype(np.int32)}


def _box(box: np.ndarray | None, place: str, size_hw: tuple[int, int], margin: float) -> np.ndarray | None:
    if box is None:
        return None
    (x0, y0, x1, y1), (height, width) = box, size_hw
    shown = f"box{place} ({x0:g}, {y0:g}, {x1:g}, {y1:g})"
    if x1 < x0 or y1 < y0:
        raise InputError(f"{shown} is inverted; give (x0, y0, x1, y1), which is (x, y, x + w, y + h) of an XYWH box.")
    if x1 < -margin or y1 < -margin or x0 > width + margin or y0 > height + margin:
        raise InputError(f"{shown} lies outside the picture of {width} x {height} pixels; give XYXY in its pixels.")
    return box


def _sets(name: str, value: Any, shapes: str, *, axes: int) -> tuple[list[np.ndarray], bool]:
    """Converts to a list of arrays with `axes` axes, which may differ in length, and whether a list was given."""
    try:
        array = np.asarray(value, np.float64)
    except (TypeError, ValueError):
        try:
            arrays = [np.asarray(item, np.float64) for item in value]
        except (TypeError, ValueError):
            raise InputError(f"{name} is no array of numbers; expected {shapes}.") from None
        if all(array.ndim == axes for array in arrays):
            return arrays, True
        raise InputError(f"{name} holds arrays of different depths; expected {shapes}.") from None
    if array.shape == (0,) and axes > 1:
        return [], True
    if array.ndim == axes:
        return [array], False
    if array.ndim == axes + 1:
        return list(array), True
    raise InputError(f"{name} has shape {array.shape}; expected {shapes}.")


def _items(name: str, value: Any, shape: tuple[int, ...], shapes: str) -> tuple[list[np.ndarray], bool | None]:
    """Converts to arrays of one shape, and whether a list was given; None if a first axis of 1 is ambiguous."""
    try:
        array = np.asarray(value, np.float64)
    except (TypeError, ValueError):
        raise InputError(f"{name} is no array of numbers; expected {shapes}.") from None
    if array.ndim == len(shape) + 2 and array.shape[1:] == (1, *shape):
        return list(array[:, 0]), True
    if array.ndim == len(shape) + 1 and array.shape[1:] == shape:
        return list(array), None if shape != (4,) and len(array) == 1 else True
    if array.shape == (4,) == shape:
        return [array], False
    if array.shape == (0,):
        return [], True
    raise InputError(f"{name} has shape {array.shape}; expected {shapes}.")
