"""Object masks from a COCO json: polygons and both kinds of run lengths, decoded as pycocotools decodes them.

Crowds are not objects, and neither is an annotation that covers no pixel.
"""

import copy
import dataclasses
import json
import math
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from faster_coco_eval.core import mask as mask_api

from stablesam_jax.data.readers import LabelledPicture, Refused, settle
from stablesam_jax.data.rle import CompressedRunLengths
from stablesam_jax.errors import InputError
from stablesam_jax.files.picture_file import MAX_PIXELS, read_header, read_picture

PICTURES, ANNOTATIONS = "images", "annotations.json"  # of a folder of one's own
SLACK = 1.0  # pixels that a box or polygon may reach outside its picture: annotation tools round


@dataclasses.dataclass(frozen=True, kw_only=True)
class Annotation:
    """An object as the file has it."""

    annotation_id: int
    image_id: int
    category_id: int
    bbox_xywh: tuple[float, float, float, float]  # pixels
    area: float  # pixels, as the file says: decides whether an object is small
    iscrowd: bool
    run_lengths: CompressedRunLengths

    def mask(self) -> np.ndarray:
        """The mask, (H, W) bool."""
        return mask_api.decode(self.run_lengths).astype(bool)


@dataclasses.dataclass(frozen=True)
class _Image:
    name: str
    path: pathlib.Path
    size: tuple[int, int]  # W, H


class CocoPictures:
    """The pictures of a COCO json that have objects, in the order of the file."""

    def __init__(self, name: str, pictures_in: pathlib.Path, annotations: pathlib.Path, refused: Refused | None = None):
        """Reads the json; no picture is opened.

        Args:
            name: of the set; begins the names of its pictures.
            pictures_in: folder of the pictures.
            annotations: the json.
            refused: gets the pictures and annotations that cannot be used, also those without any pixel; None: the
                former are an error, the latter are passed over.

        Raises:
            InputError: the json cannot be read or has no objects; or, all in one line, pictures that are missing and
                annotations that are wrong.
        """
        self.name, self.annotations_file = name, annotations
        content = _read(annotations)
        faults: Refused = {}
        passed_over: Refused = {}
        self.categories: dict[int, str] = {entry["id"]: str(entry["name"]) for entry in content["categories"]}
        images = self._images(content["images"], pictures_in, faults)
        unusable = {entry["id"] for entry in content["images"] if isinstance(entry.get("id"), int)} - images.keys()
        by_image: dict[int, list[Annotation]] = {image_id: [] for image_id in images}
        known: set[int] = set()
        for entry in content["annotations"]:
            label = f"{name}, annotation {entry.get('id')}"
            try:
                image_id = _whole(entry, "image_id")
                if image_id in unusable:
                    continue  # that is named already
                annotation = self._annotation(entry, images.get(image_id), known)
            except (KeyError, ValueError) as error:
                reason = f"lacks {error}" if isinstance(error, KeyError) else str(error)
                faults[label] = f"{annotations}: annotation {entry.get('id')} {reason}; mend or remove it."
                continue
            by_image[image_id].append(annotation)
            if not mask_api.area(annotation.run_lengths):
                passed_over[label] = f"{annotations}: annotation {annotation.annotation_id} covers no pixel."
        # A picture that a fault has emptied is named by that fault.
        with_objects = [image_id for image_id, found in by_image.items() if _objects(found)]
        for image_id in images.keys() - set(with_objects):
            passed_over.setdefault(images[image_id].name, f"{images[image_id].path}: has no object.")
        settle(faults, refused)
        if refused is not None:
            settle(passed_over, refused)
        if not with_objects:
            raise InputError(f"{annotations}: holds no picture with an object.")
        self._images_by_id, self._annotations_by_id = images, by_image
        self._list(with_objects)

    def with_empty_pictures(self) -> "CocoPictures":
        """The same with the pictures that have no object: evaluation counts what a detector finds there."""
        every = copy.copy(self)
        every._list(self._images_by_id)
        return every

    def _list(self, image_ids: Iterable[int]) -> None:
        self.image_ids = list(image_ids)
        self._listed = [self._images_by_id[image_id] for image_id in self.image_ids]
        self.names = [image.name for image in self._listed]
        # With crowds, as evaluation has them.
        self.annotations = [tuple(self._annotations_by_id[image_id]) for image_id in self.image_ids]

    def __len__(self) -> int:
        return len(self.names)

    def objects(self, index: int) -> list[Annotation]:
        """The objects of a picture, in the order of its masks."""
        return _objects(self.annotations[index])

    def picture_file(self, index: int) -> pathlib.Path:
        """Where the picture is."""
        return self._listed[index].path

    def size_hw(self, index: int) -> tuple[int, int]:
        """Height and width of the picture, as the json says."""
        width, height = self._listed[index].size
        return height, width

    def picture(self, index: int) -> np.ndarray:
        """The picture alone, (H, W, 3) uint8 RGB."""
        image = self._listed[index]
        picture = read_picture(image.path)
        if picture.shape[1::-1] != image.size:
            raise InputError(self._wrong_size(image, picture.shape[1::-1]) + ".")
        return picture

    def __getitem__(self, index: int) -> LabelledPicture:
        objects = self.objects(index)
        masks = np.zeros((*self.size_hw(index), 0), np.uint8)
        if objects:
            masks = mask_api.decode([entry.run_lengths for entry in objects])  # (H, W, M)
        return LabelledPicture(
            self.names[index],
            self.picture(index),
            np.ascontiguousarray(np.moveaxis(masks, -1, 0)).astype(bool),
            tuple(entry.annotation_id for entry in objects),
            tuple(self.categories[entry.category_id] for entry in objects),
        )

    def check(self) -> None:
        """Opens every picture as far as its header.

        Raises:
            InputError: one line with the files that are no pictures, and those of another size than the json says.
        """
        faults = {}
        for image in self._listed:
            try:
                size = read_header(image.path).size
            except InputError as error:
                faults[image.name] = str(error)
                continue
            if size != image.size:
                faults[image.name] = self._wrong_size(image, size)
        settle(faults, None)

    def _wrong_size(self, image: _Image, size: tuple[int, int]) -> str:
        says = f"{self.annotations_file} says {image.size[0]} x {image.size[1]}"
        return f"{image.path}: the picture is {size[0]} x {size[1]} pixels, {says} (make them equal)"

    def _images(self, entries: list[dict[str, Any]], folder: pathlib.Path, faults: Refused) -> dict[int, _Image]:
        """The usable pictures by id."""
        images: dict[int, _Image] = {}
        names: set[str] = set()
        for entry in entries:
            file = entry.get("file_name")
            label = f"{self.name}/{file}"
            try:
                if not isinstance(file, str) or pathlib.PurePath(file).is_absolute() or ".." in file.split("/"):
                    raise ValueError("has a file_name that is no path below the folder of pictures")
                width, height, image_id = (_whole(entry, key) for key in ("width", "height", "id"))
                if not 0 < width * height <= MAX_PIXELS or width < 0:
                    raise ValueError(f"has {width} x {height} pixels")
                image = _Image(f"{self.name}/{pathlib.PurePath(file).with_suffix('')}", folder / file, (width, height))
                if image_id in images or image.name in names:
                    raise ValueError("is listed twice, by its id or its name")
                if not image.path.is_file():
                    raise ValueError(f"is missing in {folder}")
            except (KeyError, ValueError) as error:
                reason = f"lacks {error}" if isinstance(error, KeyError) else str(error)
                faults[label] = f"{self.annotations_file}: picture {file} {reason}; mend or remove it."
                continue
            images[image_id] = image
            names.add(image.name)
        return images

    def _annotation(self, entry: Mapping[str, Any], image: _Image | None, known: set[int]) -> Annotation:
        """An annotation, checked.

        Raises:
            KeyError, ValueError: what is wrong with it.
        """
        annotation_id, category_id = _whole(entry, "id"), _whole(entry, "category_id")
        if image is None:
            raise ValueError(f"is of picture {entry['image_id']}, which is not listed")
        if annotation_id in known:
            raise ValueError("has an id that another has")
        known.add(annotation_id)
        if category_id not in self.categories:
            raise ValueError(f"is of category {category_id}, which is not listed")
        run_lengths = _run_lengths(entry["segmentation"], image.size)
        box = entry.get("bbox")
        if box is None:
            box = mask_api.toBbox(run_lengths).tolist()
        if not _numbers(box) or len(box) != 4 or min(box[2:]) < 0:
            raise ValueError(f"has the box {box}, which is not x, y, width, height")
        x, y, width, height = map(float, box)
        _check_inside("box", [x, x + width], [y, y + height], image.size)
        area = entry.get("area")
        return Annotation(
            annotation_id=annotation_id,
            image_id=entry["image_id"],
            category_id=category_id,
            bbox_xywh=(x, y, width, height),
            area=float(mask_api.area(run_lengths) if area is None else area),
            iscrowd=bool(entry.get("iscrowd", 0)),
            run_lengths=run_lengths,
        )


def _read(path: pathlib.Path) -> dict[str, Any]:
    """The json, with the three lists of dictionaries that it must have."""
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}).") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: is no JSON, or cut short ({error}); copy or export it again.") from None
    lists = ("images", "annotations", "categories")
    if not isinstance(content, dict) or not all(
        isinstance(content.get(key), list) and all(isinstance(entry, dict) for entry in content[key]) for key in lists
    ):
        raise InputError(f"{path}: is no COCO json, which holds the lists {', '.join(lists)}.")
    if not all(isinstance(entry.get("id"), int) and "name" in entry for entry in content["categories"]):
        raise InputError(f"{path}: a category lacks a number as id, or a name; add them.")
    return content


def _objects(annotations: tuple[Annotation, ...] | list[Annotation]) -> list[Annotation]:
    return [entry for entry in annotations if not entry.iscrowd and mask_api.area(entry.run_lengths)]


def _run_lengths(segmentation: Any, size: tuple[int, int]) -> CompressedRunLengths:
    """The mask as compressed run lengths, whatever form it has."""
    width, height = size
    if isinstance(segmentation, list):
        if not segmentation:
            raise ValueError("has no segmentation; a box alone is no mask")
        for polygon in segmentation:
            if not _numbers(polygon) or len(polygon) % 2:
                raise ValueError("has a polygon that is not x, y, x, y, ...")
            if len(polygon) < 6:
                raise ValueError(f"has a polygon of {len(polygon) // 2} points, fewer than 3")
            _check_inside("polygon", polygon[::2], polygon[1::2], size)
    elif not isinstance(segmentation, dict) or segmentation.get("size") != [height, width]:
        said = segmentation.get("size") if isinstance(segmentation, dict) else None
        raise ValueError(f"has run lengths for a size of {said}, not [{height}, {width}]")
    elif isinstance(counts := segmentation.get("counts"), list):
        if not _numbers(counts) or min(counts, default=-1) < 0 or sum(counts) != width * height:
            raise ValueError("has run lengths that do not fill its picture")
    elif not isinstance(counts, str):
        raise ValueError("has no run lengths")
    try:
        run_lengths = mask_api.segmToRle(segmentation, width, height)
        if isinstance(segmentation, dict):
            mask_api.decode(run_lengths)  # the library checks their sum only here
    except (ValueError, RuntimeError, TypeError) as error:
        raise ValueError(f"has a broken mask ({str(error).splitlines()[0].rstrip('.')})") from None
    return run_lengths


def _check_inside(what: str, columns: list[float], rows: list[float], size: tuple[int, int]) -> None:
    width, height = size
    if min(*columns, *rows) < -SLACK or max(columns) > width + SLACK or max(rows) > height + SLACK:
        raise ValueError(f"has a {what} that reaches outside its picture of {width} x {height} pixels")


def _numbers(values: Any) -> bool:
    return isinstance(values, list) and all(
        isinstance(value, int | float) and math.isfinite(value) and not isinstance(value, bool) for value in values
    )


def _whole(entry: Mapping[str, Any], key: str) -> int:
    if not isinstance(value := entry[key], int):
        raise ValueError(f"has {value!r} as {key}, not a whole number")
    return value
