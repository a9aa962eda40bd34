"""Masks in the forms that clients ask for."""

import base64
from collections.abc import Sequence
from typing import Literal

import cv2
import numpy as np

from serve.schemas import Schema, array, integer, record, text
from stablesam_jax.data import rle

Form = Literal["rle", "polygons", "png"]
FORMS: tuple[Form, ...] = ("rle", "polygons", "png")
SCHEMAS: dict[str, Schema] = {
    "rle": record({"size": array(integer(1, 10**6), 2, 2), "counts": text("compressed, as in COCO")}),
    "polygons": array(array({"type": "number"}, 6)) | {"description": "outer outlines x, y, x, y, ... largest first"},
    "png": text("base64 of a PNG file, 255 on the object"),
}

Polygon = list[list[int]]  # (x, y)


def write(mask: np.ndarray, form: Form) -> object:
    """A mask (H, W) bool as JSON."""
    match form:
        case "rle":
            return dict(rle.compress(rle.encode(mask)))
        case "polygons":
            return [[value for point in outline for value in point] for outline in outlines(mask)]
        case "png":
            _, file = cv2.imencode(".png", mask.astype(np.uint8) * 255)
            return base64.b64encode(file.tobytes()).decode("ascii")


def outlines(mask: np.ndarray, *, holes: bool = False) -> list[Polygon]:
    """The outlines of a mask through the centres of its edge pixels, largest first; of at least three points.

    Args:
        mask: (H, W) bool.
        holes: whether those of holes are among them, as an even-odd filling needs.
    """
    which = cv2.RETR_CCOMP if holes else cv2.RETR_EXTERNAL
    found, _ = cv2.findContours(mask.astype(np.uint8), which, cv2.CHAIN_APPROX_SIMPLE)
    ordered: Sequence[np.ndarray] = sorted(found, key=cv2.contourArea, reverse=True)
    return [outline[:, 0].tolist() for outline in ordered if len(outline) > 2]


def xyxy(mask: np.ndarray) -> list[int] | None:
    """The box around a mask, from its first to its last pixel; None if it is empty."""
    x, y, width, height = cv2.boundingRect(mask.astype(np.uint8))
    return [x, y, x + width - 1, y + height - 1] if width else None
