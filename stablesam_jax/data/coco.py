"""Object masks from a COCO json: polygons and both kinds of run lengths, decoded as pycocotools decodes them.

Crowds, annotations without a mask and masks without a pixel are not objects. They are left out and counted. Masks of
CVAT's brush are objects, though CVAT marks them as crowds.
"""

import array
import collections
import contextlib
import copy
import dataclasses
import functools
import pathlib
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from stablesam_jax.data import outlines
from stablesam_jax.data.findings import Finding, Findings, left_out
from stablesam_jax.data.json_file import COCO, kind_of, read_json
from stablesam_jax.data.label_file import OtherSizeError, SizeHW
from stablesam_jax.data.picture_index import PictureIndex, clean_path
from stablesam_jax.data.readers import Objects, Reader, list_files
from stablesam_jax.data.rle import CompressedRunLengths
from stablesam_jax.errors import InputError, shown
from stablesam_jax.files.picture_file import MAX_PIXELS, SUFFIXES, Header, read_header, read_picture

PICTURES, ANNOTATIONS = "images", "annotations"  # folders; the latter is also the name of a json
SLACK = 1.0  # pixels by which a box may exceed its picture, because annotation tools round
Id = Any  # an integer or a string: tools use both for pictures and categories


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Annotation:
    """An annotation of the file."""

    annotation_id: int  # unique among the objects of a picture
    image_id: Id
    category_id: Id  # None if the file has none
    bbox_xywh: tuple[float, float, float, float]  # pixels
    area: float  # pixels, from the file; COCO's AP by size uses it
    iscrowd: bool
    run_lengths: CompressedRunLengths

    @property
    def pixels(self) -> int:
        """Number of pixels that it covers."""
        return outlines.area(self.run_lengths)

    def mask(self) -> np.ndarray:
        """The mask, (H, W) bool."""
        return outlines.mask(self.run_lengths)


@dataclasses.dataclass(frozen=True, slots=True)
class _Image:
    name: str
    file: str  # a pathlib.Path takes three times the memory
    size: tuple[int, int]  # W, H


def jsons(folder: pathlib.Path) -> list[pathlib.Path]:
    """The COCO jsons of a folder or of its `annotations/`, without jsons of single pictures.

    `annotations.json` is the only one that counts where it is there.
    """
    if kind_of(folder / f"{ANNOTATIONS}.json") == COCO:
        return [folder / f"{ANNOTATIONS}.json"]
    stems = list_files(folder, SUFFIXES)
    found = [file for stem, files in list_files(folder, {".json"}).items() if stem not in stems for file in files]
    if (folder / ANNOTATIONS).is_dir():
        found += [file for files in list_files(folder / ANNOTATIONS, {".json"}).values() for file in files]
    return [file for file in found if kind_of(file) == COCO]


def root_of(annotations: pathlib.Path) -> pathlib.Path:
    """The folder of the data set to which a json belongs; the json may be in its `annotations/`."""
    return annotations.parent.parent if annotations.parent.name == ANNOTATIONS else annotations.parent


class CocoPictures(Reader):
    """The pictures of a COCO json that have objects, in the order of the file."""

    own_labels = False

    def __init__(self, name: str, pictures_in: pathlib.Path, annotations: pathlib.Path, findings: Findings):
        """Reads the json, and the headers of pictures whose size it lacks.

        Args:
            name: of the set; begins the names of its pictures.
            pictures_in: folder of the pictures, which may be in subfolders.
            annotations: the json.
            findings: gets unusable pictures and annotations, pictures without objects, and the number of annotations
                left out.

        Raises:
            InputError: the json cannot be read, or is not a COCO json.
        """
        self.name, self.annotations_file = name, annotations
        content = read_coco(annotations)
        self.categories = category_names(content.get("categories"))
        images, unusable = self._images(content.pop("images"), pictures_in, findings)
        by_image: dict[Id, list[Annotation]] = {image_id: [] for image_id in images}
        passed_over: collections.Counter[str] = collections.Counter()
        crowds = brushed = 0
        entries = content.pop("annotations")
        entries.reverse()
        while entries:  # popped, so that the memory of each entry is freed; there may be a million
            entry = entries.pop()
            try:
                image_id = id_of(entry, "image_id")
                if image_id in unusable:
                    continue  # its picture has a finding already
                if image_id not in images:
                    raise ValueError(f"is of picture {image_id}, which is not listed")
                if (reason := _without_mask(entry)) is not None:
                    passed_over[reason] += 1
                    continue
                annotation = _annotation(entry, image_id, images[image_id].size, len(by_image[image_id]) + 1)
            except (KeyError, ValueError) as error:
                label = f"annotation {entry.get('id')}"
                text = f"{label} {_reason(error)}; correct or remove it."
                findings.append(Finding("mask", name, shown(f"{name}, {label}"), annotations, text))
                continue
            by_image[image_id].append(annotation)
            crowds += annotation.iscrowd
            brushed += is_brushed(entry)
            passed_over["masks without a pixel"] += not annotation.iscrowd and not annotation.pixels
        for image_id, found in by_image.items():
            if len({one.annotation_id for one in found}) < len(found):
                numbered = enumerate(found, start=1)
                by_image[image_id] = [dataclasses.replace(one, annotation_id=number) for number, one in numbered]
        findings += left_out(name, annotations, passed_over)
        if crowds:
            findings.append(Finding("crowds", name, name, annotations, f"holds {crowds} crowds; they are left out."))
        if brushed:
            text = f"holds {brushed} masks that CVAT marks as crowds, as all of its brush; they are read as objects."
            findings.append(Finding("brush", name, name, annotations, text))
        self._images_by_id, self._annotations_by_id = images, by_image
        self._list(image_id for image_id, found in by_image.items() if _objects(found))
        for image_id in images.keys() - set(self.image_ids):
            image, text = images[image_id], "has no object; it is left out."
            findings.append(Finding("no object", name, image.name, pathlib.Path(image.file), text))

    def with_empty_pictures(self) -> "CocoPictures":
        """Returns a copy with the pictures without objects, in which average precision counts false detections."""
        every = copy.copy(self)
        every._list(self._images_by_id)
        return every

    def _list(self, image_ids: Iterable[Id]) -> None:
        self.image_ids = list(image_ids)
        self._listed = [self._images_by_id[image_id] for image_id in self.image_ids]
        self.names = [image.name for image in self._listed]
        # Crowds included, since average precision needs them.
        self.annotations = [tuple(self._annotations_by_id[image_id]) for image_id in self.image_ids]

    def objects(self, index: int) -> list[Annotation]:
        """The objects of a picture, in the order of its masks."""
        return _objects(self.annotations[index])

    def picture_file(self, index: int) -> pathlib.Path:
        """The path of a picture."""
        return pathlib.Path(self._listed[index].file)

    def label_file(self, index: int) -> pathlib.Path:
        """The json."""
        return self.annotations_file

    def files(self) -> Iterable[pathlib.Path]:
        """The json and all pictures."""
        yield self.annotations_file
        yield from (pathlib.Path(image.file) for image in self._images_by_id.values())

    def every_picture(self) -> list[tuple[pathlib.Path, Callable[[], np.ndarray]]]:
        """All pictures, including those without objects."""
        files = (pathlib.Path(image.file) for image in self._images_by_id.values())
        return [(file, functools.partial(read_picture, file)) for file in files]

    def size_hw(self, index: int) -> tuple[int, int]:
        """Height and width of the picture, from the json."""
        width, height = self._listed[index].size
        return height, width

    def label_header(self, index: int) -> Header:
        """The size of the picture, from the json."""
        return Header(self._listed[index].size)

    def label(self, index: int, size_hw: SizeHW | None) -> Objects:
        """The objects of a picture."""
        said = self.size_hw(index)
        if size_hw is not None and size_hw != said:
            raise OtherSizeError(
                f"{self.picture_file(index)}: is {size_hw[1]} x {size_hw[0]} pixels, and {said[1]} x {said[0]} in "
                f"{self.annotations_file}; make them equal."
            )
        objects = self.objects(index)
        categories = tuple(self.categories.get(one.category_id, "") for one in objects)
        return Objects(
            outlines.masks(self.picture_file(index), [one.run_lengths for one in objects], said),
            tuple(one.annotation_id for one in objects),
            categories if any(categories) else (),
        )

    def check_for_detection(self, findings: Findings) -> None:
        """Checks what average precision needs beyond masks: categories, and integers as ids.

        Args:
            findings: gets one for each annotation or picture that lacks them.
        """
        for image_id, annotations in self._annotations_by_id.items():
            about = (self.name, self._images_by_id[image_id].name, self.annotations_file)
            if not isinstance(image_id, int):
                text = f"picture {image_id} has no whole number as id; number the pictures."
                findings.append(Finding("mask", *about, text))
            for one in annotations:
                if one.category_id not in self.categories or not isinstance(one.category_id, int):
                    label = f"annotation {one.annotation_id} of picture {image_id}"
                    text = f"{label} is of category {one.category_id}, which is not listed by a number; correct it."
                    findings.append(Finding("mask", *about, text))

    def _images(
        self, entries: list[dict[str, Any]], folder: pathlib.Path, findings: Findings
    ) -> tuple[dict[Id, _Image], set[Id]]:
        """The usable pictures by id, and the ids of the others."""
        subset = self.annotations_file.stem.removeprefix("instances_")  # COCO and CVAT name the folder so too
        bases = (folder / PICTURES / subset, folder / subset, folder / PICTURES, self.annotations_file.parent)
        index = PictureIndex(folder, bases)
        images: dict[Id, _Image] = {}
        unusable: set[Id] = set()
        files: set[str] = set()
        for entry in entries:
            said = entry.get("file_name")
            try:
                image_id = id_of(entry, "id")
                if image_id in images or image_id in unusable:
                    raise ValueError(f"has the id {image_id}, which another has")
                unusable.add(image_id)
                if not isinstance(said, str) or not clean_path(said):
                    raise ValueError("has no file_name")
                file = str(index.find(said))
                if file in files:
                    raise ValueError("is listed twice")
                images[image_id] = _Image(clean_path(said), file, _size(entry, file))
            except (KeyError, ValueError) as error:
                name = shown(f"{self.name}/{clean_path(str(said))}")
                text = f"picture {said} {_reason(error)}; correct or remove it."
                findings.append(Finding("picture", self.name, name, self.annotations_file, text))
                continue
            unusable.remove(image_id)
            files.add(file)
        # Names have no suffix, unless two pictures differ in it alone.
        stems = [pathlib.PurePosixPath(image.name).with_suffix("") for image in images.values()]
        names = stems if len(set(stems)) == len(stems) else [image.name for image in images.values()]
        return {
            image_id: dataclasses.replace(image, name=f"{self.name}/{shown(str(name))}")
            for (image_id, image), name in zip(images.items(), names, strict=True)
        }, unusable


def read_coco(path: pathlib.Path) -> dict[str, Any]:
    """Reads the json and checks its two lists of dictionaries."""
    content = read_json(path, _compact)
    lists = ("images", "annotations")
    if not isinstance(content, dict) or not all(
        isinstance(content.get(key), list) and all(isinstance(entry, dict) for entry in content[key]) for key in lists
    ):
        raise InputError(f"{path}: is no COCO json, which holds the lists {' and '.join(lists)}.")
    return content


def _compact(entry: dict[str, Any]) -> dict[str, Any]:
    """Stores the polygons of an entry as arrays, 8 bytes a value, a quarter of Python's lists."""
    polygons = entry.get("segmentation")
    if isinstance(polygons, list) and all(isinstance(polygon, list) for polygon in polygons):
        with contextlib.suppress(TypeError, OverflowError):  # values that are no numbers are reported later
            entry["segmentation"] = [array.array("d", polygon) for polygon in polygons]
    return entry


def category_names(entries: Any) -> dict[Id, str]:
    """The name of each category by its id; empty if there are none, which training does not need."""
    if isinstance(entries, dict):  # some tools write id -> name
        entries = [{"id": key, "name": name} for key, name in entries.items()]
    found: dict[Id, str] = {}
    for entry in entries if isinstance(entries, list) else ():
        if isinstance(entry, str):
            found[entry] = entry
        elif isinstance(entry, dict):
            with contextlib.suppress(KeyError, ValueError):
                key = id_of(entry, "id")
                found[key] = str(entry.get("name", key))
    return found


def _objects(annotations: Sequence[Annotation]) -> list[Annotation]:
    return [entry for entry in annotations if not entry.iscrowd and entry.pixels]


def _without_mask(entry: Mapping[str, Any]) -> str | None:
    """The kind of an annotation without a mask; None if it has one."""
    segmentation = entry.get("segmentation")
    if segmentation and not (isinstance(segmentation, list) and not any(map(_holds_something, segmentation))):
        return None
    if entry.get("keypoints"):
        return "keypoints without a mask"
    return "rectangles without a mask" if entry.get("bbox") else "annotations without a mask"


def _holds_something(part: Any) -> bool:
    return len(part) > 0 if isinstance(part, list | array.array) else True


def _annotation(entry: Mapping[str, Any], image_id: Id, size: tuple[int, int], place: int) -> Annotation:
    """Checks an annotation. Missing box and area, or zeros, are measured on the mask; a missing id is its place in the
    picture.

    Raises:
        ValueError: its mask is malformed.
    """
    try:
        lengths = outlines.run_lengths(entry["segmentation"], size)
    except ValueError as error:
        raise ValueError(f"has {error}") from None
    number, area = _id_or(entry, "id", place), entry.get("area", 0)
    return Annotation(
        annotation_id=number if isinstance(number, int) else place,
        image_id=image_id,
        category_id=_id_or(entry, "category_id", None),
        bbox_xywh=_box(entry.get("bbox"), size) or outlines.box_xywh(lengths),
        area=float(area if is_number(area) and area > 0 else outlines.area(lengths)),
        iscrowd=is_crowd(entry),
        run_lengths=lengths,
    )


def is_crowd(entry: Mapping[str, Any]) -> bool:
    """Whether an annotation is a crowd, which is no single object."""
    return _marked_as_crowd(entry) and not is_brushed(entry)


def is_brushed(entry: Mapping[str, Any]) -> bool:
    """Whether an annotation is a mask of CVAT's brush.

    CVAT marks all run lengths as crowds (datumaro, `coco/exporter.py`). Unlike crowds of COCO itself they have
    attributes.
    """
    return _marked_as_crowd(entry) and "attributes" in entry and isinstance(entry.get("segmentation"), dict)


def _marked_as_crowd(entry: Mapping[str, Any]) -> bool:
    value = entry.get("iscrowd")
    return bool(value) and str(value).lower() not in ("0", "false")


def id_of(entry: Mapping[str, Any], key: str) -> Id:
    """An integer or a string id; `12.0` and `"12"`, which some programs write, are 12.

    Raises:
        KeyError, ValueError: it is missing, or of another type.
    """
    value = entry[key]
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, str) and value.isascii() and value.isdigit() and str(int(value)) == value:
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int | str) or (isinstance(value, int) and abs(value) >= 2**63):
        raise ValueError(f"has {value!r} as {key}, neither a number nor a name")
    return value


def _id_or(entry: Mapping[str, Any], key: str, otherwise: Any) -> Any:
    try:
        return id_of(entry, key)
    except (KeyError, ValueError):
        return otherwise


def _size(entry: Mapping[str, Any], file: str) -> tuple[int, int]:
    """W, H of a picture from the entry, or else from the file.

    Raises:
        ValueError: the entry's is not a size.
    """
    width, height = entry.get("width"), entry.get("height")
    if width is None or height is None:
        return read_header(file).size
    if not (is_number(width) and is_number(height)) or width != int(width) or height != int(height):
        raise ValueError(f"has {width!r} x {height!r} pixels")
    width, height = int(width), int(height)
    if min(width, height) < 1 or width * height > MAX_PIXELS:
        raise ValueError(f"has {width} x {height} pixels")
    return width, height


def is_number(value: Any) -> bool:
    """Whether a value of JSON is a number that a float can hold."""
    return type(value) in (int, float) and abs(value) <= sys.float_info.max


def _box(value: Any, size: tuple[int, int]) -> tuple[float, float, float, float] | None:
    """X, y, width, height of a box; None if it is malformed, outside its picture or a point."""
    if not isinstance(value, list) or len(value) != 4 or not all(map(is_number, value)):
        return None
    left, top, width, height = map(float, value)
    inside = left + width <= size[0] + SLACK and top + height <= size[1] + SLACK
    sound = min(left, top) >= -SLACK and min(width, height) >= 0 and max(width, height) > 0
    return (left, top, width, height) if sound and inside else None


def _reason(error: KeyError | ValueError) -> str:
    return f"lacks {error}" if isinstance(error, KeyError) else str(error)
