"""Pictures with a class for every pixel, for the evaluation of semantic segmentation (MESS).

Layout of a folder: `im/STEM.jpg`, `gt/STEM.png` (the class of each pixel; 255 is "ignore") and `classes.json`, the name
of each class by its number: `{"0": "soil", "1": "crop", "2": "weed"}`. The background, the class of pixels where
nothing is found, is 0, or the value of `"background"` there; null is none.
"""

import dataclasses
import pathlib
from typing import Protocol

import numpy as np

from stablesam_jax.data.findings import Findings
from stablesam_jax.data.json_file import read_json
from stablesam_jax.data.label_file import IGNORE, SizeHW, read_classes
from stablesam_jax.data.readers import LabelledFiles, folder_name, list_files
from stablesam_jax.errors import InputError
from stablesam_jax.files.picture_file import SUFFIXES

CLASSES_FILE = "classes.json"


@dataclasses.dataclass(frozen=True)
class ClassMap:
    """A picture and the class of each pixel."""

    name: str
    picture: np.ndarray  # (H, W, 3) uint8 RGB
    label: np.ndarray  # (H, W) uint8, a class or 255 for ignore


class ClassMaps(Protocol):
    """A source of class maps."""

    name: str
    names: list[str]
    classes: int  # numbered from 0
    background: int | None  # class of pixels where nothing is found

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> ClassMap: ...


class ClassMapFiles(LabelledFiles):
    """Class maps from any two folders."""

    def __init__(
        self,
        name: str,
        pictures_in: pathlib.Path,
        labels_in: pathlib.Path,
        *,
        picture_suffixes: frozenset[str],
        label_suffix: str,
        classes: int,
        background: int | None,
        more_pictures: bool = False,
        findings: Findings,
    ):
        """Lists the files without reading them.

        Args:
            name: of the set.
            pictures_in: folder of the pictures.
            labels_in: folder of the class maps.
            picture_suffixes: endings of a picture's name after the stem.
            label_suffix: ending of a class map's name after the stem.
            classes: number of classes.
            background: the background class, or None.
            more_pictures: whether the folder has pictures of other sets too; those without a class map are ignored.
            findings: gets pictures and class maps without a counterpart.

        Raises:
            InputError: a folder is missing or holds no picture.
        """
        self.classes, self.background = classes, background
        pictures, labels = list_files(pictures_in, picture_suffixes), list_files(labels_in, {label_suffix})
        if more_pictures:
            pictures = {stem: path for stem, path in pictures.items() if stem in labels}
        if not pictures:
            raise InputError(f"{pictures_in}: holds no picture NAME{' or NAME'.join(sorted(picture_suffixes))}.")
        super().__init__(name, pictures, labels, labels_in=labels_in, findings=findings)

    def __getitem__(self, index: int) -> ClassMap:
        picture = self.picture(index)
        return ClassMap(self.names[index], picture, self.label(index, picture.shape[:2]))

    def label(self, index: int, size_hw: SizeHW | None) -> np.ndarray:
        """The class of each pixel, (H, W) uint8."""
        return read_classes(self.label_file(index), size_hw, classes=self.classes)


def open_folder(folder: pathlib.Path, findings: Findings) -> ClassMapFiles:
    """The class maps of a folder with `im/`, `gt/` and `classes.json`.

    Args:
        folder: with the three.
        findings: gets pictures and class maps without a counterpart.

    Raises:
        InputError: one of the three is missing, or the file names no classes.
    """
    path = folder / CLASSES_FILE
    if not path.is_file():
        raise InputError(
            f"{folder}: holds no {CLASSES_FILE}; give a folder of class maps, with im/, gt/ and {CLASSES_FILE}."
        )
    named = read_json(path)
    try:
        background = named.get("background", 0)
        numbers = sorted(int(number) for number in named.keys() - {"background", str(IGNORE)})
    except (ValueError, AttributeError) as error:
        raise InputError(f'{path}: names no classes ({error}); write {{"0": "soil", "1": "crop"}}.') from None
    if numbers != list(range(len(numbers))) or len(numbers) < 2 or background not in (None, *numbers):
        raise InputError(f"{path}: number at least two classes from 0 up without a gap, the background among them.")
    return ClassMapFiles(
        folder_name(folder),
        folder / "im",
        folder / "gt",
        picture_suffixes=SUFFIXES,
        label_suffix=".png",
        classes=len(numbers),
        background=background,
        findings=findings,
    )
