"""Pictures with object masks, from plain folders.

The layout "pairs": `im/STEM.jpg` (or any common format) and `gt/STEM.png` of the same size. A mask holds 0 for the
background and 255 for one object, or one number per object (1 to 254; 255 is then "ignore").
"""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import NoReturn, Protocol

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from stablesam_jax.errors import InputError

PICTURE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"})
IGNORE = 255


@dataclasses.dataclass(frozen=True)
class LabelledPicture:
    """A picture and the masks of its objects."""

    name: str  # identifies the picture: prompts of an evaluation are drawn from it
    picture: np.ndarray  # (H, W, 3) uint8 RGB
    masks: np.ndarray  # (M, H, W) bool, none empty


class Pictures(Protocol):
    """A source of labelled pictures whose names are known without reading them."""

    names: list[str]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> LabelledPicture: ...


def read_picture(path: pathlib.Path) -> np.ndarray:
    """Reads a picture as (H, W, 3) uint8 RGB, turned upright as its EXIF data say.

    Raises:
        InputError: the file is missing, broken, cut short, or too large to be a picture.
    """
    try:
        with Image.open(path) as picture:
            return np.asarray(ImageOps.exif_transpose(picture).convert("RGB"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        _refuse(path, error)


def read_masks(path: pathlib.Path, size_hw: tuple[int, int]) -> np.ndarray:
    """Reads the mask of a picture of `size_hw` as (M, H, W) bool, one mask per object.

    Raises:
        InputError: unreadable file, another size than the picture's, more than one channel, or no object.
    """
    try:
        with Image.open(path) as picture:
            label = np.asarray(picture if picture.mode in ("L", "P", "I", "I;16") else picture.convert("L"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        _refuse(path, error)
    if label.shape != size_hw:
        (height, width), (rows, columns) = label.shape, size_hw
        raise InputError(
            f"{path}: the mask is {width} x {height} pixels, its picture {columns} x {rows}; make them equal."
        )
    values = np.unique(label)
    numbers = values[values > 0]
    if len(numbers) == 0:
        raise InputError(f"{path}: the mask is empty; draw an object (any value above 0) or remove the pair.")
    if not (len(numbers) == 1 and numbers[0] == IGNORE):
        numbers = numbers[numbers != IGNORE]
    if len(numbers) > 1 and _looks_soft(numbers):
        raise InputError(
            f"{path}: the mask has {len(numbers)} grey levels, more than objects can have; "
            "store 0 and 255, or one number per object (1, 2, 3, ...) in a lossless file."
        )
    return np.stack([label == number for number in numbers])


def _looks_soft(numbers: np.ndarray) -> bool:
    """Anti-aliased or JPEG-compressed binary masks fill the scale up to white; indices count from 1 without gaps."""
    return len(numbers) > 100 or (len(numbers) > 3 and numbers[-1] >= 250)


def _refuse(path: pathlib.Path, error: Exception) -> NoReturn:
    reason = "not a picture" if isinstance(error, UnidentifiedImageError) else str(error).split("\n")[0]
    raise InputError(f"{path}: cannot be read ({reason}); replace the file or remove the pair.") from error


class PairsFolder:
    """The pictures of one folder in the layout "pairs", in the order of their names."""

    def __init__(self, folder: pathlib.Path):
        """Lists the pairs without reading them.

        Raises:
            InputError: no such folder, no `im/` or `gt/`, no picture, or pictures without a mask.
        """
        self.folder = pathlib.Path(folder)
        if not self.folder.is_dir():
            raise InputError(f"{folder}: no such folder; give one that holds im/ (pictures) and gt/ (masks).")
        missing = [name for name in ("im", "gt") if not (self.folder / name).is_dir()]
        if missing:
            raise InputError(
                f"{folder}: holds no {' and no '.join(f'{name}/' for name in missing)}; "
                "pictures go to im/NAME.jpg, their masks to gt/NAME.png."
            )
        pictures = sorted(p for p in (self.folder / "im").iterdir() if p.suffix.lower() in PICTURE_SUFFIXES)
        if not pictures:
            raise InputError(f"{self.folder / 'im'}: holds no picture ({', '.join(sorted(PICTURE_SUFFIXES))}).")
        self.names = [f"{self.folder.name}/{picture.stem}" for picture in pictures]
        self.pairs = [(picture, self.folder / "gt" / f"{picture.stem}.png") for picture in pictures]
        orphans = [picture.name for picture, mask in self.pairs if not mask.is_file()]
        if orphans:
            shown = ", ".join(orphans[:5]) + (", ..." if len(orphans) > 5 else "")
            raise InputError(
                f"{self.folder}: {len(orphans)} of {len(pictures)} pictures have no mask in gt/ ({shown}); "
                "add gt/NAME.png or remove them."
            )

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> LabelledPicture:
        picture_path, mask_path = self.pairs[index]
        picture = read_picture(picture_path)
        return LabelledPicture(self.names[index], picture, read_masks(mask_path, picture.shape[:2]))


class Selection:
    """Some of the pictures of a source, in a given order."""

    def __init__(self, source: Pictures, indices: Sequence[int]):
        """Takes the pictures at `indices`."""
        self.source, self.indices = source, indices
        self.names = [source.names[index] for index in indices]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> LabelledPicture:
        return self.source[self.indices[index]]


class Joined:
    """Several sources, one after the other."""

    def __init__(self, sources: Sequence[Pictures]):
        """Joins the sources."""
        self.places = [(source, index) for source in sources for index in range(len(source))]
        self.names = [source.names[index] for source, index in self.places]

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> LabelledPicture:
        source, inner = self.places[index]
        return source[inner]


def open_folders(folders: Sequence[pathlib.Path]) -> Joined:
    """The pictures of several folders in the layout "pairs".

    Raises:
        InputError: a folder that cannot be used, or two with the same name, whose pictures could not be told apart.
    """
    names = [pathlib.Path(folder).resolve().name for folder in folders]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"{name}: two data folders have this name; rename one, results are kept by that name.")
    return Joined([PairsFolder(folder) for folder in folders])
