"""Pictures with one annotation file each, which has outlines of the objects: labelme, YOLO and SA-1B.

Only the names of the files are kept in memory, so that a million pictures need no more than their list.
"""

import collections
import dataclasses
import functools
import pathlib
from collections.abc import Callable, Iterable, Mapping

import numpy as np

from stablesam_jax.data import outlines
from stablesam_jax.data.findings import Finding, Findings, cannot_be_read, left_out
from stablesam_jax.data.label_file import SizeHW
from stablesam_jax.data.picture_index import PictureIndex
from stablesam_jax.data.readers import (
    Objects,
    Reader,
    disagreements,
    list_files,
    on_all_cores,
    twins,
    unread_pictures,
)
from stablesam_jax.data.rle import CompressedRunLengths
from stablesam_jax.errors import InputError, shown
from stablesam_jax.files.picture_file import SUFFIXES, Header, read_header, read_picture

EMPTY = "masks without a pixel"


@dataclasses.dataclass(frozen=True)
class Drawn:
    """The outline of an object in a file."""

    segmentation: outlines.Segmentation  # pixels
    number: int
    category: str = ""


@dataclasses.dataclass(frozen=True)
class Drawing:
    """Contents of an annotation file."""

    objects: list[Drawn]
    left_out: Mapping[str, int] = dataclasses.field(default_factory=dict)  # kind of annotation -> number left out
    size: tuple[int, int] | None = None  # W, H of the picture, if the file has it
    picture: str | None = None  # path of the picture in the file


# Reads an annotation file of a picture of W x H pixels; raises an InputError, or a ValueError that says what the file
# "has" or "is".
Parse = Callable[[pathlib.Path, tuple[int, int]], Drawing]


@dataclasses.dataclass(frozen=True)
class _Pair:
    name: str
    picture: pathlib.Path
    label: pathlib.Path


class AnnotatedFolder(Reader):
    """The pictures of a folder whose annotation files have objects, in the order of these files."""

    def __init__(
        self,
        name: str,
        pictures_in: pathlib.Path,
        labels_in: pathlib.Path,
        suffix: str,
        parse: Parse,
        findings: Findings,
    ):
        """Reads every annotation file and the header of every picture.

        Args:
            name: of the set; begins the names of its pictures.
            pictures_in: folder of the pictures, which may be in subfolders.
            labels_in: folder of the annotation files, in subfolders of the same names; may equal `pictures_in`.
            suffix: of the annotation files.
            parse: reads one annotation file.
            findings: gets unusable files, pictures without objects, and the number of annotations left out.
        """
        self.name, self.parse = name, parse
        self.pictures = list_files(pictures_in, SUFFIXES, within=True)
        self.labels = list_files(labels_in, {suffix}, within=True)
        findings += unread_pictures(name, pictures_in, within=True)
        pairs = self._pairs(PictureIndex(pictures_in, [labels_in]), findings)
        alone = {file: stem for stem, files in self.pictures.items() for file in files}
        for pair in pairs:
            alone.pop(pair.picture, None)
        for file, stem in alone.items():
            text = f"has no {suffix} file; it is left out."
            findings.append(Finding("no object", name, f"{name}/{shown(stem)}", file, text))
        self.used: list[_Pair] = []
        passed_over: collections.Counter[str] = collections.Counter()
        for pair, (usable, found, counts) in zip(pairs, on_all_cores(self._look, pairs), strict=True):
            findings += found
            passed_over.update(counts)
            if usable:
                self.used.append(pair)
        self.names = [pair.name for pair in self.used]
        findings += left_out(name, labels_in, passed_over)

    def picture_file(self, index: int) -> pathlib.Path:
        """The path of a picture."""
        return self.used[index].picture

    def label_file(self, index: int) -> pathlib.Path:
        """The path of a picture's annotation file."""
        return self.used[index].label

    def files(self) -> Iterable[pathlib.Path]:
        """All pictures and annotation files."""
        return (file for listing in (self.pictures, self.labels) for files in listing.values() for file in files)

    def every_picture(self) -> list[tuple[pathlib.Path, Callable[[], np.ndarray]]]:
        """All pictures, including those without objects."""
        files = (file for files in self.pictures.values() for file in files)
        return [(file, functools.partial(read_picture, file)) for file in files]

    def label(self, index: int, size_hw: SizeHW | None) -> Objects:
        """The objects of a picture."""
        pair = self.used[index]
        size = read_header(pair.picture).size if size_hw is None else size_hw[::-1]
        objects, _ = self._read(pair.label, size)
        categories = tuple(drawn.category for drawn, _ in objects)
        return Objects(
            outlines.masks(pair.label, [lengths for _, lengths in objects], size[::-1]),
            tuple(drawn.number for drawn, _ in objects),
            categories if any(categories) else (),
        )

    def look(self, index: int) -> Findings:
        """Nothing: the constructor has checked everything."""
        return []

    def _read(
        self, label: pathlib.Path, size: tuple[int, int]
    ) -> tuple[list[tuple[Drawn, CompressedRunLengths]], Drawing]:
        """The objects of an annotation file that cover at least one pixel, and all its contents.

        Raises:
            InputError: it cannot be used.
        """
        try:
            drawing = self.parse(label, size)
            objects = []
            for drawn in drawing.objects:
                try:
                    lengths = outlines.run_lengths(drawn.segmentation, size)
                except ValueError as error:
                    raise ValueError(f"object {drawn.number} has {error}") from None
                if outlines.area(lengths):
                    objects.append((drawn, lengths))
        except ValueError as error:
            raise _fault(label, error) from None
        return objects, drawing

    def _pairs(self, index: PictureIndex, findings: Findings) -> list[_Pair]:
        """Pairs each annotation file with the picture of the same name, or else with the picture that it names."""
        stems = {label: picture for picture, label in twins(self.pictures, self.labels).items()}
        pairs: dict[pathlib.Path, _Pair] = {}
        last_names = {pathlib.PurePath(picture).name for picture in self.pictures}
        for stem, (label, *_) in self.labels.items():
            name = f"{self.name}/{shown(stem)}"
            of_name = self.pictures.get(stems.get(stem, ""), ())
            picture = of_name[0] if len(of_name) == 1 else None
            if picture is None:
                try:
                    drawing = self.parse(label, (1, 1))
                except ValueError as error:
                    if pathlib.PurePath(stem).name in last_names:  # it should hold the objects of that picture
                        findings.append(cannot_be_read("mask", self.name, name, label, _fault(label, error)))
                        continue
                    drawing = Drawing([])
                if not of_name and not drawing.objects and not drawing.left_out:
                    continue  # a file of another kind, such as settings of a tool
                said = drawing.picture
                try:
                    if said is None:
                        raise ValueError("has no picture of its name, or several")
                    picture = index.find(said)
                except ValueError as error:
                    text = f"{error if said is None else f'its picture {said} {error}'}; add it or remove the file."
                    findings.append(Finding("suffix" if of_name else "no picture", self.name, name, label, text))
                    continue
            if picture in pairs:
                text = f"is of {shown(picture.name)}, as is {shown(pairs[picture].label.name)}; make one file of both."
                findings.append(Finding("suffix", self.name, name, label, text))
                continue
            pairs[picture] = _Pair(name, picture, label)
        return list(pairs.values())

    def _look(self, pair: _Pair) -> tuple[bool, Findings, Mapping[str, int]]:
        """Whether a picture can be used, findings about it, and counts of annotations left out."""
        try:
            header = read_header(pair.picture)
        except InputError as error:
            return False, [cannot_be_read("picture", self.name, pair.name, pair.picture, error)], {}
        try:
            objects, drawing = self._read(pair.label, header.size)
        except InputError as error:
            return False, [cannot_be_read("mask", self.name, pair.name, pair.label, error)], {}
        said = Header(drawing.size or header.size)
        found = list(
            disagreements(
                pair.picture,
                header,
                pair.label,
                said,
                says_size=drawing.size is not None,
                source=self.name,
                picture_name=pair.name,
            )
        )
        if not objects:
            text = "has no object; it is left out."
            found.append(Finding("no object", self.name, pair.name, pair.picture, text))
        counts = {**drawing.left_out, EMPTY: len(drawing.objects) - len(objects)}
        return bool(objects) and all(finding.kind != "size" for finding in found), found, counts


def _fault(label: pathlib.Path, error: ValueError) -> InputError:
    """The error of an annotation file that cannot be used."""
    return error if isinstance(error, InputError) else InputError(f"{label}: {error}; correct or remove it.")
