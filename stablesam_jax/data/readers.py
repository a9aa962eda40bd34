"""Pictures with object masks, from plain folders.

The layout "pairs": `im/STEM.jpg` (or any common format) and `gt/STEM.png` of the same size. A mask holds 0 for the
background and 255 for one object, or one number per object (1 to 254; 255 is then "ignore").
"""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import NoReturn

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
        raise InputError(f"{path}: the mask is {width} x {height} pixels, its picture {columns} x {rows}; make them equal.")
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


class PairsFolder(Sequence[LabelledPicture]):
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

    def __getitem__(self, index):
        picture_path, mask_path = self.pairs[index]
        picture = read_picture(picture_path)
        masks = read_masks(mask_path, picture.shape[:2])
        return LabelledPicture(f"{self.folder.name}/{picture_path.stem}", picture, masks)
