"""What `predict` writes: masks and overlays of each picture, then tables of all.

    masks/PICTURE/1.png       0 and 255, for object 1, 2, ... of a picture, in the order of the file of prompts
    overlays/PICTURE/1.jpg    its surroundings with mask and prompt
    objects.csv               a line for each object, what needs review first
    review.html               the same with its overlays
    coco.json                 masks as run lengths
    faults.csv                pictures that could not be done; absent if there are none

PICTURE is the path of the picture with its suffix, so that no two pictures share a folder.
"""

import csv
import dataclasses
import html
import io
import json
import pathlib
import urllib.parse
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import cv2
import numpy as np

from predict.prompt_files import Request, Target
from stablesam_jax.data import rle
from stablesam_jax.data.coco import Id
from stablesam_jax.data.outlines import area, box_xywh
from stablesam_jax.errors import shown
from stablesam_jax.files.disk import whole_file, write_text
from stablesam_jax.prompts import Prompt
from stablesam_jax.visualize import masks_figure, save_figure

OBJECTS, REVIEW, COCO, FAULTS = "objects.csv", "review.html", "coco.json", "faults.csv"
AROUND = 0.4  # of the object's longer side, shown on each side of it
LEAST_AROUND = 24  # pixels
MOST_SHOWN = 720  # pixels, longer side of an overlay's picture
STYLE = """
:root { color-scheme: light dark } body { font: 15px/1.5 system-ui, sans-serif; margin: 1.5rem }
main { display: grid; grid-template-columns: repeat(auto-fill, minmax(17rem, 1fr)); gap: 1rem }
figure { margin: 0; border: 1px solid #8885; border-radius: 6px; overflow: hidden }
img { width: 100%; height: 15rem; object-fit: contain; background: #8882 } figcaption { padding: 0.4rem 0.7rem }
.name { overflow-wrap: anywhere } .review { border: 2px solid #e5007d }
"""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Done:
    """A picture whose masks are written."""

    name: str  # path in the folder of pictures
    request: Request
    size_hw: tuple[int, int]
    objects: Sequence[Mapping[str, Any]]  # segmentation, stability, needs_review, predicted_iou of each target


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class _Line:
    picture: Done
    place: int  # of the object in its picture, from 1
    target: Target
    facts: Mapping[str, Any]


def mask_file(name: str, place: int) -> str:
    """The path of a mask in the output."""
    return f"masks/{name}/{place}.png"


def overlay_file(name: str, place: int) -> str:
    """The path of an overlay in the output."""
    return f"overlays/{name}/{place}.jpg"


def write_mask(output: pathlib.Path, name: str, place: int, mask: np.ndarray) -> rle.CompressedRunLengths:
    """Writes a mask (H, W) bool as PNG atomically; returns its run lengths."""
    with whole_file(output / mask_file(name, place), replace=True) as temporary:
        temporary.write_bytes(cv2.imencode(".png", mask.astype(np.uint8) * 255)[1].tobytes())
    return rle.compress(rle.encode(mask))


def write_overlay(
    output: pathlib.Path, name: str, place: int, picture: np.ndarray, prompt: Prompt, mask: np.ndarray
) -> None:
    """Writes the surroundings of mask and prompt as a figure, atomically."""
    shown_picture, shown_prompt, shown_mask = surroundings(picture, prompt, mask)
    save_figure(masks_figure(shown_picture, [shown_prompt], shown_mask[None]), output / overlay_file(name, place))


def surroundings(picture: np.ndarray, prompt: Prompt, mask: np.ndarray) -> tuple[np.ndarray, Prompt, np.ndarray]:
    """Cuts out what is around mask and prompt, and shrinks it to at most MOST_SHOWN pixels.

    Args:
        picture: (H, W, 3) uint8.
        prompt: in its pixels.
        mask: (H, W) bool.
    """
    y, x = np.nonzero(mask)
    corners = [*prompt.points, *(() if prompt.box is None else prompt.box.reshape(2, 2))]
    corners += [(x.min(), y.min()), (x.max(), y.max())] if len(x) else []
    first, last = np.min(corners, axis=0), np.max(corners, axis=0)
    margin = max(AROUND * (last - first).max(), LEAST_AROUND)
    size = np.array(mask.shape[::-1])
    left, top = np.clip(first - margin, 0, size - 1).astype(int)
    right, bottom = np.clip(np.ceil(last + margin), 1, size).astype(int)
    cut, cut_mask = picture[top:bottom, left:right], mask[top:bottom, left:right]
    factor = min(1, MOST_SHOWN / max(cut_mask.shape))
    width, height = (max(1, round(factor * side)) for side in cut_mask.shape[::-1])
    moved = {
        "points": (prompt.points - (left, top)) * factor,
        "box": None if prompt.box is None else (prompt.box - (left, top, left, top)) * factor,
    }
    return (
        cv2.resize(cut, (width, height), interpolation=cv2.INTER_AREA),
        dataclasses.replace(prompt, **moved),
        cv2.resize(cut_mask.astype(np.uint8), (width, height), interpolation=cv2.INTER_NEAREST) > 0,
    )


def write_tables(output: pathlib.Path, done: Sequence[Done], categories: Mapping[Id, str]) -> None:
    """Writes or replaces the tables of all objects."""
    write_text(output / COCO, json.dumps(coco(done, categories)) + "\n")
    write_text(output / OBJECTS, _csv(_objects(_lines(done), categories)))


def write_review(
    output: pathlib.Path, done: Sequence[Done], categories: Mapping[Id, str], faults: Mapping[str, str]
) -> None:
    """Writes or replaces the review sheet and the table of faults, which is absent if there are none.

    Args:
        faults: name of a picture -> what is wrong with it.
    """
    write_text(output / REVIEW, page(_lines(done), categories, faults))
    if faults:
        write_text(output / FAULTS, _csv([{"file": shown(file), "fault": text} for file, text in faults.items()]))
    else:
        (output / FAULTS).unlink(missing_ok=True)


def _lines(done: Sequence[Done]) -> list[_Line]:
    """All objects, the least stable first."""
    lines = [
        _Line(picture=picture, place=place, target=target, facts=facts)
        for picture in done
        for place, (target, facts) in enumerate(zip(picture.request.targets, picture.objects, strict=True), start=1)
    ]
    return sorted(lines, key=lambda line: (not line.facts["needs_review"], line.facts["stability"]))


def coco(done: Sequence[Done], categories: Mapping[Id, str]) -> dict[str, Any]:
    """The COCO json of all masks, with the ids of the file of prompts where it has them."""
    annotations = []
    for picture in done:
        for target, facts in zip(picture.request.targets, picture.objects, strict=True):
            annotations.append(
                {
                    "id": target.annotation_id,
                    "image_id": picture.request.image_id,
                    "category_id": target.category_id,
                    "segmentation": facts["segmentation"],
                    "bbox": list(box_xywh(facts["segmentation"])),
                    "area": area(facts["segmentation"]),
                    "iscrowd": 0,
                    "object": target.name,
                    **{key: facts[key] for key in ("stability", "needs_review", "predicted_iou")},
                }
            )
    return {
        "images": [
            {
                "id": picture.request.image_id,
                "file_name": shown(picture.name),
                "width": picture.size_hw[1],
                "height": picture.size_hw[0],
            }
            for picture in done
        ],
        "categories": [{"id": number, "name": name} for number, name in categories.items()],
        "annotations": annotations,
    }


def _objects(lines: Sequence[_Line], categories: Mapping[Id, str]) -> list[dict[str, object]]:
    return [
        {
            "file": shown(line.picture.name),
            "object": line.target.name,
            "label": categories[line.target.category_id],
            "needs_review": "yes" if line.facts["needs_review"] else "no",
            "stability": f"{line.facts['stability']:.4f}",
            "predicted_iou": f"{line.facts['predicted_iou']:.4f}",
            "pixels": area(line.facts["segmentation"]),
            "mask": shown(mask_file(line.picture.name, line.place)),
            "overlay": shown(overlay_file(line.picture.name, line.place)),
        }
        for line in lines
    ]


def _csv(rows: Sequence[Mapping[str, object]]) -> str:
    file = io.StringIO(newline="")
    writer = csv.DictWriter(file, list(rows[0]) if rows else ["file"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()


def page(lines: Sequence[_Line], categories: Mapping[Id, str], faults: Mapping[str, str]) -> str:
    """The review sheet as HTML: a figure for each object, in the order of `lines`, and what could not be done."""
    review = sum(line.facts["needs_review"] for line in lines)
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Review</title><style>{STYLE}</style></head><body><h1>Review</h1>"
        f"<p>{review} of {len(lines)} objects need review. First come the least stable masks, which change most when "
        "their prompt is moved a little. Blue: mask. Magenta: prompt.</p>"
        f"{_missing(faults)}<main>{''.join(_cards(lines, categories))}</main></body></html>\n"
    )


def _missing(faults: Mapping[str, str]) -> str:
    """A list of the pictures that have no masks, or nothing."""
    if not faults:
        return ""
    entries = "".join(f"<li>{html.escape(shown(text))}</li>" for text in faults.values())
    return f"<details open><summary>Pictures without masks: {len(faults)}</summary><ul>{entries}</ul></details>"


def _cards(lines: Sequence[_Line], categories: Mapping[Id, str]) -> Iterator[str]:
    for line in lines:
        source = html.escape(urllib.parse.quote(overlay_file(line.picture.name, line.place), errors="surrogateescape"))
        name = html.escape(f"{shown(line.picture.name)}, {categories[line.target.category_id]} {line.target.name}")
        kind = ' class="review"' if line.facts["needs_review"] else ""
        yield (
            f'<figure{kind}><a href="{source}"><img loading="lazy" alt="{name}" src="{source}"></a><figcaption>'
            f'<div class="name">{name}</div>stability {line.facts["stability"]:.3f}, predicted IoU '
            f"{line.facts['predicted_iou']:.2f}</figcaption></figure>\n"
        )
