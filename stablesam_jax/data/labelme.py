"""Annotations of labelme: a json for each picture.

A polygon, a rectangle, a circle or a mask is an object; shapes with the same label and group are one object. Points and
lines have no area and are left out. The embedded picture (`imageData`) is ignored.
"""

import base64
import binascii
import collections
import io
import math
import pathlib
from typing import Any, NamedTuple

import numpy as np

from stablesam_jax.data import outlines, rle
from stablesam_jax.data.annotated import Drawing, Drawn
from stablesam_jax.data.json_file import read_json
from stablesam_jax.errors import InputError, shown
from stablesam_jax.files.picture_file import read_stored

POLYGONS = ("polygon", "rotation", "oriented_rectangle", "quadrilateral")  # shape types whose points are the outline
POINTS = ("point", "points", "line", "linestrip", "ai_points")
WITHOUT_AREA = dict.fromkeys(POINTS, "points and lines") | {"text": "texts"}
ROUND = 0.02  # pixels, largest error of the polygon that approximates a circle


class _Group(NamedTuple):
    """The shapes of an object."""

    number: int  # of the first
    label: str
    polygons: list[list[float]]
    masks: list[rle.RunLengths]


def parse(path: pathlib.Path, size: tuple[int, int]) -> Drawing:
    """Parses a json of labelme for a picture of W x H pixels.

    Raises:
        InputError, ValueError: it is not one, or a shape is malformed; names the shape.
    """
    content = read_json(path)
    shapes = content.get("shapes") if isinstance(content, dict) else None
    if not isinstance(shapes, list) or not all(isinstance(shape, dict) for shape in shapes):
        raise ValueError("is no json of labelme")
    left_out: collections.Counter[str] = collections.Counter()
    groups: dict[tuple[str, Any], _Group] = {}
    for number, shape in enumerate(shapes, start=1):
        kind, label = str(shape.get("shape_type") or "polygon"), str(shape.get("label") or "")
        try:
            outline = _mask(shape, size) if kind == "mask" else _polygon(kind, shape.get("points"))
        except ValueError as error:
            raise ValueError(f"shape {number} {error}") from None
        if outline is None:
            left_out[WITHOUT_AREA.get(kind, f"shapes of the type {shown(kind)}")] += 1
            continue
        together = shape.get("group_id")
        key = (label, str(together)) if together is not None else ("", number)
        group = groups.setdefault(key, _Group(number, label, [], []))
        if isinstance(outline, list):
            group.polygons.append(outline)
        else:
            group.masks.append(outline)
    objects = [Drawn(_united(group, size), group.number, group.label) for group in groups.values()]
    said = content.get("imageWidth"), content.get("imageHeight")
    picture = content.get("imagePath")
    return Drawing(
        objects,
        left_out,
        size=said if all(type(side) is int and side > 0 for side in said) else None,
        picture=picture if isinstance(picture, str) and picture else None,
    )


def _united(group: _Group, size: tuple[int, int]) -> Any:
    """The polygons of an object, or the run lengths of all its shapes.

    Raises:
        ValueError: a polygon beside a mask is malformed.
    """
    if not group.masks:
        return group.polygons
    parts = [*group.masks, *([group.polygons] if group.polygons else [])]
    if len(parts) == 1:
        return parts[0]
    return rle.encode(np.any([outlines.mask(outlines.run_lengths(part, size)) for part in parts], axis=0))


def _polygon(kind: str, points: Any) -> list[float] | None:
    """The outline of a shape as x, y, x, y, ...; None if it has no area.

    Raises:
        ValueError: it is malformed.
    """
    try:
        corners = np.array(points, np.float64).reshape(-1, 2)
    except (TypeError, ValueError, OverflowError):
        raise ValueError("has points that are not x, y") from None
    if not np.isfinite(corners).all():
        raise ValueError("has points that are not x, y")
    if kind in POLYGONS:
        return corners.ravel().tolist()
    if kind not in ("rectangle", "circle"):
        return None
    if kind == "rectangle" and len(corners) == 4:  # newer versions of labelme write all four corners
        return corners.ravel().tolist()
    if len(corners) != 2:
        raise ValueError(f"is a {kind} of {len(corners)} points, not 2")
    (left, top), (right, bottom) = corners.tolist()
    if kind == "rectangle":
        return [left, top, right, top, right, bottom, left, bottom]
    radius = math.hypot(right - left, bottom - top)
    sides = 12 if radius < 1 else math.ceil(math.pi / math.acos(1 - min(ROUND / radius, 1)))
    angles = np.arange(sides) * (2 * math.pi / sides)
    return np.stack([left + radius * np.cos(angles), top + radius * np.sin(angles)], axis=-1).ravel().tolist()


def _mask(shape: dict[str, Any], size: tuple[int, int]) -> rle.RunLengths:
    """The run lengths of a mask, which the file stores cropped to its box.

    Raises:
        ValueError: it is malformed.
    """
    try:
        corners = np.array(shape.get("points"), np.float64).reshape(2, 2)
        data = base64.b64decode(shape["mask"], validate=True)
        pixels = np.asarray(read_stored(io.BytesIO(data)).image.convert("L")) > 0
    except (KeyError, TypeError, InputError, binascii.Error, ValueError, OverflowError):
        raise ValueError("has a mask that is no PNG file, or no box") from None
    if not np.isfinite(corners).all() or np.abs(corners).max() > 2**31:
        raise ValueError("has a mask that is no PNG file, or no box")
    left, top = np.floor(corners.min(axis=0)).astype(int)
    whole = np.zeros(size[::-1], bool)
    rows, columns = np.nonzero(pixels)
    inside = (rows + top >= 0) & (rows + top < size[1]) & (columns + left >= 0) & (columns + left < size[0])
    whole[rows[inside] + top, columns[inside] + left] = True
    return rle.encode(whole)
