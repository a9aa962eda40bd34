"""Reads which objects are asked for: boxes or points from a CSV file, boxes from a COCO json.

A fault in the file is refused before any work, with its line. Whether a picture is there, and whether a box is in it,
is seen only when the picture is read.
"""

import csv
import dataclasses
import io
import math
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from stablesam_jax.data.coco import Id, category_names, id_of, is_crowd, is_number, read_coco
from stablesam_jax.data.picture_index import clean_path
from stablesam_jax.errors import InputError
from stablesam_jax.prompts import Prompt

FILE, X, Y, LABEL, OBJECT, ID = "file", "x", "y", "label", "object", "id"
EDGES = ("x1", "y1", "x2", "y2")
BOXES, POINTS = (FILE, *EDGES), (FILE, X, Y, LABEL, OBJECT)  # columns that must be there
DELIMITERS = ",;\t"  # a spreadsheet chooses by the country that it is set to
UNNAMED = "object"  # the category of what has no label


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Target:
    """One object to segment."""

    annotation_id: int  # unique in the file, for COCO
    name: str  # the user's own, unique in the picture
    category_id: Id
    prompt: Prompt  # pixels of the upright picture


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Request:
    """The objects of one picture."""

    file: str  # as the file names the picture, cleaned
    image_id: Id
    size: tuple[int, int] | None  # W, H, if the file has them
    targets: Sequence[Target]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Requests:
    """All objects of a file."""

    pictures: Sequence[Request]
    categories: Mapping[Id, str]


@dataclasses.dataclass(frozen=True)
class _Row:
    number: int  # of the line
    cells: Mapping[str, str]


class _Fault(ValueError):
    """What is wrong with a line."""


def read_boxes(path: pathlib.Path) -> Requests:
    """Reads `file,x1,y1,x2,y2[,id,label]`: a box a line, in pixels; `label` is its category.

    Raises:
        InputError: the file cannot be read, lacks a column, holds no box, or a line is malformed; the first is named.
    """
    categories: dict[str, int] = {}
    lines: dict[tuple[str, str], int] = {}
    pictures: dict[str, list[Target]] = {}

    def take(row: _Row) -> None:
        box = [_number(row.cells, edge) for edge in EDGES]
        if box[2] <= box[0] or box[3] <= box[1]:
            raise _Fault(f"the box ({', '.join(f'{value:g}' for value in box)}) has no area; x1 < x2 and y1 < y2")
        targets = pictures.setdefault(_file(row.cells), [])
        name = _named(row.cells, ID) if ID in row.cells else str(len(targets) + 1)
        before = lines.setdefault((_file(row.cells), name), row.number)
        if before != row.number:
            raise _Fault(f"the id {name} of {_file(row.cells)} is that of line {before}, too; give each object its own")
        label = row.cells.get(LABEL) or UNNAMED
        category = categories.setdefault(label, len(categories) + 1)
        prompt = Prompt(box=np.array(box))
        targets.append(Target(annotation_id=len(lines), name=name, category_id=category, prompt=prompt))

    _take_all(path, _rows(path, BOXES), take)
    return _requests(pictures, {number: label for label, number in categories.items()})


def read_points(path: pathlib.Path) -> Requests:
    """Reads `file,x,y,label,object`: a point a line, in pixels; label 1 is on the object, 0 beside it.

    Raises:
        InputError: as `read_boxes`, or an object has no point on it.
    """
    found: dict[str, dict[str, list[tuple[float, float, int]]]] = {}

    def take(row: _Row) -> None:
        label = row.cells[LABEL]
        if label not in ("0", "1"):
            raise _Fault(f"the label is {label!r}; 1 is a point on the object, 0 one beside it")
        point = _number(row.cells, X), _number(row.cells, Y), int(label)
        found.setdefault(_file(row.cells), {}).setdefault(_named(row.cells, OBJECT), []).append(point)

    _take_all(path, _rows(path, POINTS), take)
    pictures: dict[str, list[Target]] = {}
    count = 0
    for file, objects in found.items():
        for name, points in objects.items():
            if not any(label for _, _, label in points):
                raise InputError(f"{path}: object {name} of {file} has no point on it (label 1); add one.")
            count += 1
            prompt = Prompt(
                points=np.array([point[:2] for point in points]),
                labels=np.array([label for _, _, label in points], np.int32),
            )
            target = Target(annotation_id=count, name=name, category_id=1, prompt=prompt)
            pictures.setdefault(file, []).append(target)
    return _requests(pictures, {1: UNNAMED})


def read_coco_boxes(path: pathlib.Path) -> tuple[Requests, int]:
    """Reads the boxes of a COCO json; masks are not needed, and not read.

    Returns:
        the objects under their own ids, and the number of crowds, which are left out.

    Raises:
        InputError: the file cannot be read, is no COCO json or holds no box; or an entry is malformed, and named.
    """
    content = read_coco(path)
    categories = category_names(content.get("categories"))
    images: dict[Id, Request] = {}
    targets: dict[Id, list[Target]] = {}
    annotation_ids: set[int] = set()
    crowds = 0
    for place, entry in enumerate(content["images"], start=1):
        try:
            image_id, said = id_of(entry, "id"), entry.get("file_name")
            if image_id in images:
                raise _Fault(f"has the id {image_id}, which another has")
            if not isinstance(said, str) or not clean_path(said):
                raise _Fault("has no file_name")
            images[image_id] = Request(file=said, image_id=image_id, size=_size(entry), targets=())
        except (KeyError, ValueError) as error:
            raise _entry_error(path, f"picture {place}", error) from None
    for place, entry in enumerate(content["annotations"], start=1):
        try:
            if is_crowd(entry):
                crowds += 1
                continue
            number, image_id, category = (id_of(entry, key) for key in ("id", "image_id", "category_id"))
            if image_id not in images:
                raise _Fault(f"is of picture {image_id}, which is not listed")
            if not isinstance(number, int) or number in annotation_ids:
                raise _Fault(f"has the id {number}, which is no whole number of its own")
            if category not in categories:
                raise _Fault(f"is of category {category}, which is not listed")
            annotation_ids.add(number)
            prompt = Prompt(box=_box(entry.get("bbox")))
            target = Target(annotation_id=number, name=str(number), category_id=category, prompt=prompt)
            targets.setdefault(image_id, []).append(target)
        except (KeyError, ValueError) as error:
            raise _entry_error(path, f"annotation {place} (id {entry.get('id')})", error) from None
    if not targets:
        raise InputError(f"{path}: holds no box; give one with annotations.")
    asked = [dataclasses.replace(images[image_id], targets=found) for image_id, found in targets.items()]
    return Requests(pictures=asked, categories=categories), crowds


def _entry_error(path: pathlib.Path, what: str, error: KeyError | ValueError) -> InputError:
    return InputError(
        f"{path}: {what} {f'lacks {error}' if isinstance(error, KeyError) else error}; correct or remove it."
    )


def _size(entry: Mapping[str, object]) -> tuple[int, int] | None:
    width, height = entry.get("width"), entry.get("height")
    return (width, height) if type(width) is int and type(height) is int else None


def _box(value: object) -> np.ndarray:
    """XYXY of a `bbox`."""
    if not isinstance(value, list) or len(value) != 4 or not all(map(is_number, value)):
        raise _Fault(f"has the bbox {value!r}; x, y, width and height are four numbers")
    x, y, width, height = map(float, value)
    if width <= 0 or height <= 0:
        raise _Fault(f"has a bbox without area, {value}")
    return np.array([x, y, x + width, y + height])


def _requests(pictures: Mapping[str, Sequence[Target]], categories: Mapping[Id, str]) -> Requests:
    numbered = enumerate(pictures.items(), start=1)
    listed = [Request(file=file, image_id=number, size=None, targets=found) for number, (file, found) in numbered]
    return Requests(pictures=listed, categories=categories)


def _rows(path: pathlib.Path, columns: Sequence[str]) -> Iterator[_Row]:
    """The lines below the header, cells by their column; blank lines are passed over."""
    example = f"its first line must name the columns {','.join(columns)}"
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}).") from None
    except UnicodeDecodeError:
        raise InputError(f"{path}: is no text in UTF-8; save it as CSV in UTF-8.") from None
    if not text.strip():
        raise InputError(f"{path}: is empty; {example}.")
    head = text.splitlines()[0]
    lines = csv.reader(io.StringIO(text, newline=""), delimiter=max(DELIMITERS, key=head.count), strict=True)
    try:
        names = [cell.strip().lower() for cell in next(lines)]
        missing = [name for name in columns if name not in names]
        if missing or len(set(names)) < len(names):
            word = "columns" if len(missing) > 1 else "column"
            fault = f"lacks the {word} {', '.join(missing)}" if missing else "names a column twice"
            raise InputError(f"{path}: {fault}; {example}, and names {','.join(names)}.")
        empty = True
        for cells in lines:
            if not any(cell.strip() for cell in cells):
                continue
            if len(cells) != len(names):
                raise InputError(
                    f"{path}, line {lines.line_num}: has {len(cells)} cells, the first line {len(names)}; write "
                    "numbers with a decimal point, and quote a cell that contains the separator."
                )
            empty = False
            yield _Row(lines.line_num, dict(zip(names, (cell.strip() for cell in cells), strict=True)))
    except csv.Error as error:
        raise InputError(f"{path}, line {lines.line_num}: is no CSV ({error}).") from None
    if empty:
        raise InputError(f"{path}: has a header and no line below it; give a line for each box or point.")


def _take_all(path: pathlib.Path, rows: Iterator[_Row], take: Callable[[_Row], None]) -> None:
    """Takes every line.

    Raises:
        InputError: lines are malformed; says what is wrong with the first, and how many others there are.
    """
    faults: list[str] = []
    for row in rows:
        try:
            take(row)
        except _Fault as fault:
            faults.append(f"line {row.number}: {fault}")
    if faults:
        more = f" ({len(faults) - 1} more lines have faults)" if len(faults) > 1 else ""
        raise InputError(f"{path}, {faults[0]}{more}.")


def _file(cells: Mapping[str, str]) -> str:
    if not clean_path(cells[FILE]):
        raise _Fault("names no picture")
    return cells[FILE]


def _named(cells: Mapping[str, str], column: str) -> str:
    if not cells[column]:
        raise _Fault(f"the {column} is empty")
    return cells[column]


def _number(cells: Mapping[str, str], column: str) -> float:
    try:
        value = float(cells[column])
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise _Fault(f"{column} is {cells[column]!r}, which is no number (pixels, with a decimal point)")
    return value
