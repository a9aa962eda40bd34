"""Pictures with object masks, from plain folders.

The layout "pairs": `im/STEM.jpg` (or any common format) and `gt/STEM.png` of the same size. A mask holds 0 for the
background and one other number for one object (255, say), or one number per object (1 to 254; 255 is then "ignore").
Picture and mask are each turned upright as their own EXIF data say.
"""

import dataclasses
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Protocol

import cv2
import numpy as np
from PIL import Image

from stablesam_jax.errors import InputError
from stablesam_jax.picture_file import open_upright, read_picture, upright_size

PICTURE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"})
MASK_SUFFIXES = frozenset({".png"})
IGNORE = 255
MOST_FAULTS = 5  # named in one message


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


def read_masks(path: pathlib.Path, size_hw: tuple[int, int]) -> np.ndarray:
    """Reads the mask of a picture of `size_hw` as (M, H, W) bool, one mask per object in the order of their numbers.

    A palette's indices are the numbers; its colours mean nothing. Colour files are accepted where they show greys only.

    Raises:
        InputError: unreadable file, another size than the picture's, colours, grey levels, or no object.
    """
    label = _grey(path, open_upright(path))
    if label.shape != size_hw:
        raise InputError(f"{path}: {other_size(label.shape, size_hw)}")
    counts = _counts(label)
    numbers = np.array([number for number in counts if number > 0])
    if len(numbers) == 0:
        raise InputError(f"{path}: the mask is empty; draw an object (any value above 0) or remove the pair.")
    if len(numbers) > 1:
        if numbers[-1] > IGNORE:
            raise InputError(
                f"{path}: the mask holds numbers up to {numbers[-1]}; number the objects from 1 to 254 at most."
            )
        numbers = numbers[numbers != IGNORE]
        if _looks_soft(label, numbers, counts):
            shown = ", ".join(str(number) for number in numbers[:3]) + (", ..." if len(numbers) > 3 else "")
            raise InputError(
                f"{path}: the mask has grey levels ({shown}), as soft edges, JPEG or an unknown zone leave them; "
                "threshold it to 0 and 255, or give each object a number (1, 2, 3, ...)."
            )
    masks = np.empty((len(numbers), *size_hw), bool)
    for mask, number in zip(masks, numbers, strict=True):
        np.equal(label, number, out=mask)
    return masks


def other_size(mask_hw: tuple[int, ...], picture_hw: tuple[int, ...]) -> str:
    """What is wrong with a mask whose size is not its picture's."""
    turned = " (one is turned; mind the EXIF orientation)" if mask_hw == picture_hw[::-1] else ""
    mask, picture = _times(mask_hw[::-1]), _times(picture_hw[::-1])
    return f"the mask is {mask} pixels, its picture {picture}{turned}; make them equal."


def _grey(path: pathlib.Path, picture: Image.Image) -> np.ndarray:
    """The numbers (H, W) of a mask file, where every channel that could differ does not."""
    if picture.format == "JPEG":
        raise InputError(f"{path}: is a JPEG file, which blurs a mask; store the mask in a lossless format, as PNG.")
    if picture.mode in ("L", "P", "I") or picture.mode.startswith("I;16"):
        return np.asarray(picture)
    if picture.mode == "1":
        return np.asarray(picture.convert("L"))
    if picture.mode not in ("LA", "RGB", "RGBA"):
        raise InputError(f"{path}: the mask has pixels of mode {picture.mode}; store one grey channel of 8 bits.")
    *colours, alpha = np.moveaxis(np.asarray(picture.convert("RGBA")), -1, 0)
    if any((colour != colours[0]).any() for colour in colours):
        raise InputError(
            f"{path}: the mask is coloured, so that its numbers are not known; "
            "store one channel with a number per object (1, 2, 3, ...)."
        )
    if (alpha != 255).any():
        raise InputError(f"{path}: the mask is transparent in places; store one grey channel, 0 where no object is.")
    return colours[0]


def _counts(label: np.ndarray) -> dict[int, int]:
    """number -> pixels that have it, in the order of the numbers."""
    if label.dtype != np.uint8:
        return dict(zip(*(found.tolist() for found in np.unique(label, return_counts=True)), strict=True))
    histogram = cv2.calcHist([label], [0], None, [256], [0, 256]).ravel().astype(int)  # a tenth of the time
    return {number: int(count) for number, count in enumerate(histogram) if count}


def _looks_soft(label: np.ndarray, numbers: np.ndarray, counts: Mapping[int, int]) -> bool:
    """Whether the numbers besides 0 and 255 are shades of one object's edge, not objects.

    Shades lie in thin bands: fewer than half of them fill a square of 3 x 3 pixels anywhere. And some are bright, or
    all are rare beside white. Measured: of 1,528 masks of several objects or classes, each has at least 89 % of its
    numbers fill a square; of 300 masks after resizing, slight blur or JPEG, at most 33 %. A lone 127 or 128 beside
    white is the unknown zone of a trimap, however wide.
    """
    white = counts.get(IGNORE, 0)
    if white and len(numbers) == 1 and numbers[0] in (127, 128):
        return True
    if numbers[-1] < 128 and white <= sum(counts[number] for number in numbers):
        return False
    square, label = np.ones((3, 3), np.uint8), label.astype(np.uint8)
    uniform = cv2.erode(label, square) == cv2.dilate(label, square)
    filling = _counts(label[uniform][None])
    return float(np.mean([number in filling for number in numbers])) < 0.5


def _times(size: tuple[int, ...]) -> str:
    return f"{size[0]} x {size[1]}"


def by_stem(folder: pathlib.Path, suffixes: frozenset[str]) -> dict[str, list[pathlib.Path]]:
    """The visible files of a folder with one of the suffixes, by name without suffix, in the order of full names."""
    found: dict[str, list[pathlib.Path]] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in suffixes and not path.name.startswith(".") and not path.is_dir():
            found.setdefault(path.stem, []).append(path)
    return found


def _by_stem(folder: pathlib.Path, suffixes: frozenset[str]) -> dict[str, pathlib.Path]:
    """The files of `by_stem`, one for each stem.

    Raises:
        InputError: two files that differ in their suffix alone.
    """
    found = by_stem(folder, suffixes)
    for paths in found.values():
        if len(paths) > 1:
            raise InputError(f"{folder}: {paths[0].name} and {paths[1].name} differ in suffix alone; remove one.")
    return {stem: path for stem, (path,) in found.items()}


def _name(folder: pathlib.Path) -> str:
    """The last part of a folder's path, of "." and "a/.." too."""
    return os.path.basename(os.path.abspath(folder))


class PairsFolder:
    """The pictures of one folder in the layout "pairs", in the order of their names."""

    def __init__(self, folder: pathlib.Path):
        """Lists the pairs without reading them.

        Raises:
            InputError: no such folder, no `im/` or `gt/`, no picture, two of one name, or pictures without a mask.
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
        pictures = _by_stem(self.folder / "im", PICTURE_SUFFIXES)
        if not pictures:
            raise InputError(f"{self.folder / 'im'}: holds no picture ({', '.join(sorted(PICTURE_SUFFIXES))}).")
        masks = _by_stem(self.folder / "gt", MASK_SUFFIXES)
        orphans = [picture.name for stem, picture in pictures.items() if stem not in masks]
        if orphans:
            shown = ", ".join(orphans[:5]) + (", ..." if len(orphans) > 5 else "")
            raise InputError(
                f"{self.folder}: {len(orphans)} of {len(pictures)} pictures have no mask in gt/ ({shown}); "
                "add gt/NAME.png or remove them."
            )
        self.names = [f"{_name(self.folder)}/{stem}" for stem in pictures]
        self.pairs = [(picture, masks[stem]) for stem, picture in pictures.items()]

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> LabelledPicture:
        picture_path, mask_path = self.pairs[index]
        picture = read_picture(picture_path)
        return LabelledPicture(self.names[index], picture, read_masks(mask_path, picture.shape[:2]))

    def check(self) -> None:
        """Opens every file as far as its header, which takes well under a millisecond each.

        Raises:
            InputError: one line with the files that are no pictures, and masks of another size than their picture.
        """
        faults = []
        for picture, mask in self.pairs:
            try:
                size, mask_size = upright_size(picture), upright_size(mask)
            except InputError as error:
                faults.append(str(error))
                continue
            if size != mask_size:
                faults.append(
                    f"{mask}: the mask is {_times(mask_size)} pixels, its picture {_times(size)} (make them equal)"
                )
        if faults:
            more = f"; and {len(faults) - MOST_FAULTS} more" if len(faults) > MOST_FAULTS else ""
            raise InputError("; ".join(fault.rstrip(".") for fault in faults[:MOST_FAULTS]) + more + ".")


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
        InputError: a folder that cannot be used, files that `PairsFolder.check` finds, or two folders with the same
            name, whose pictures could not be told apart.
    """
    names = [_name(folder) for folder in folders]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"{name}: two data folders have this name; rename one, results are kept by that name.")
    opened = [PairsFolder(folder) for folder in folders]
    for folder in opened:
        folder.check()
    return Joined(opened)
