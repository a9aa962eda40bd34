"""Pictures with object masks, from folders that hold a file of each: what every source of pictures looks like.

The layout "pairs": `im/STEM.jpg` (or any common format) and `gt/STEM.png` of the same size. A mask holds 0 for the
background and one other number for one object (255, say), or one number per object (1 to 254; 255 is then "ignore").
Picture and mask are each turned upright as their own EXIF data say.
"""

import dataclasses
import os
import pathlib
from collections.abc import Collection, Mapping, Sequence
from typing import Protocol

import numpy as np

from stablesam_jax.data.label_file import read_masks, read_soft_mask
from stablesam_jax.errors import InputError
from stablesam_jax.files.picture_file import read_header, read_picture

PICTURE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"})
MASK_SUFFIXES = frozenset({".png"})
MOST_FAULTS = 5  # named in one message

Refused = dict[str, str]  # picture or object -> why it is left out


@dataclasses.dataclass(frozen=True)
class LabelledPicture:
    """A picture and the masks of its objects."""

    name: str  # identifies the picture: prompts of an evaluation are drawn from it
    picture: np.ndarray  # (H, W, 3) uint8 RGB
    masks: np.ndarray  # (M, H, W) bool, none empty
    numbers: tuple[int, ...] = ()  # M, what the source calls each object: number in the mask, or annotation id
    categories: tuple[str, ...] = ()  # M, what each object is, where the source tells


class Pictures(Protocol):
    """A source of labelled pictures whose names are known without reading them."""

    names: list[str]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> LabelledPicture: ...


def list_files(folder: pathlib.Path, suffixes: Collection[str]) -> dict[str, pathlib.Path]:
    """The visible files of a folder that end in one of the suffixes, by what is before it, ordered by full name.

    Raises:
        InputError: no such folder, or two files that differ in their suffix alone.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder.")
    found = by_stem(folder, suffixes)
    for paths in found.values():
        if len(paths) > 1:
            raise InputError(f"{folder}: {paths[0].name} and {paths[1].name} differ in suffix alone; remove one.")
    return {stem: path for stem, (path,) in found.items()}


def by_stem(folder: pathlib.Path, suffixes: Collection[str]) -> dict[str, list[pathlib.Path]]:
    """The files of `list_files`, where several may differ in their suffix alone."""
    found: dict[str, list[pathlib.Path]] = {}
    for path in sorted(folder.iterdir()):
        suffix = next((suffix for suffix in suffixes if path.name.lower().endswith(suffix.lower())), None)
        if suffix is not None and not path.name.startswith(".") and not path.is_dir():
            found.setdefault(path.name[: -len(suffix)], []).append(path)
    return found


def settle(faults: Mapping[str, str], refused: Refused | None) -> None:
    """Raises one error for all faults, or adds them to what is refused where that is gathered.

    Raises:
        InputError: one line with the first few reasons.
    """
    if refused is not None:
        refused.update(faults)
    elif faults:
        reasons = [reason.rstrip(".") for reason in faults.values()]
        more = f"; and {len(reasons) - MOST_FAULTS} more" if len(reasons) > MOST_FAULTS else ""
        raise InputError("; ".join(reasons[:MOST_FAULTS]) + more + ".")


class LabelledFiles:
    """Pictures and label files of the same size and name, in the order of their names; the base of what reads them."""

    def __init__(
        self,
        name: str,
        pictures: Mapping[str, pathlib.Path],
        labels: Mapping[str, pathlib.Path],
        *,
        labels_in: pathlib.Path,
        refused: Refused | None,
    ):
        """Pairs the files without reading them.

        Args:
            name: of the set; begins the names of its pictures.
            pictures: file by stem.
            labels: file by stem.
            labels_in: folder of the labels, for messages.
            refused: gets what has no twin; None: a picture without a label is an error.

        Raises:
            InputError: pictures without a label.
        """
        self.name = name
        orphans = {stem: path for stem, path in pictures.items() if stem not in labels}
        if refused is not None:
            for stem, path in orphans.items():
                refused[f"{name}/{stem}"] = f"{path}: has no mask in {labels_in}; add it or remove the picture."
            for stem in labels.keys() - pictures.keys():
                refused[f"{name}/{stem}"] = f"{labels[stem]}: the mask has no picture; add it or remove the mask."
        elif orphans:
            shown = ", ".join(path.name for path in list(orphans.values())[:5]) + (", ..." if len(orphans) > 5 else "")
            raise InputError(
                f"{labels_in}: {len(orphans)} of {len(pictures)} pictures have no mask here ({shown}); "
                "add them or remove the pictures."
            )
        stems = [stem for stem in pictures if stem in labels]
        self.names = [f"{name}/{stem}" for stem in stems]
        self.pairs = [(pictures[stem], labels[stem]) for stem in stems]

    def __len__(self) -> int:
        return len(self.pairs)

    def picture_file(self, index: int) -> pathlib.Path:
        """Where the picture is."""
        return self.pairs[index][0]

    def check(self) -> None:
        """Opens every file as far as its header, which takes well under a millisecond each.

        Raises:
            InputError: one line with the files that are no pictures, and masks of another size than their picture.
        """
        faults = {}
        for name, (picture, label) in zip(self.names, self.pairs, strict=True):
            try:
                size, label_size = read_header(picture).size, read_header(label).size
            except InputError as error:
                faults[name] = str(error)
                continue
            if size != label_size:
                faults[name] = (
                    f"{label}: the mask is {_times(label_size)} pixels, its picture {_times(size)} (make them equal)"
                )
        settle(faults, None)


class PairsFolder(LabelledFiles):
    """The pictures of one folder in the layout "pairs"."""

    def __init__(self, folder: pathlib.Path, refused: Refused | None = None):
        """Lists the pairs without reading them.

        Args:
            folder: holds `im/` and `gt/`.
            refused: gets pictures and masks without a twin; None: a picture without a mask is an error.

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
        pictures = list_files(self.folder / "im", PICTURE_SUFFIXES)
        if not pictures:
            raise InputError(f"{self.folder / 'im'}: holds no picture ({', '.join(sorted(PICTURE_SUFFIXES))}).")
        labels = list_files(self.folder / "gt", MASK_SUFFIXES)
        super().__init__(folder_name(folder), pictures, labels, labels_in=self.folder / "gt", refused=refused)

    def __getitem__(self, index: int) -> LabelledPicture:
        picture_path, mask_path = self.pairs[index]
        picture = read_picture(picture_path)
        masks, numbers = read_masks(mask_path, picture.shape[:2])
        return LabelledPicture(self.names[index], picture, masks, numbers)


class SoftPairs(LabelledFiles):
    """Pictures of one object each, whose masks are soft at their edges, from any two folders or one."""

    def __init__(self, name: str, pictures_in: pathlib.Path, masks_in: pathlib.Path, refused: Refused | None = None):
        """Lists NAME.jpg and NAME.png without reading them.

        Args:
            name: of the set.
            pictures_in: folder of the pictures.
            masks_in: folder of the masks, the same perhaps.
            refused: gets pictures and masks without a twin; None: a picture without a mask is an error.

        Raises:
            InputError: a folder is missing or holds no picture, or pictures have no mask.
        """
        pictures = list_files(pictures_in, {".jpg"})
        if not pictures:
            raise InputError(f"{pictures_in}: holds no picture NAME.jpg.")
        super().__init__(name, pictures, list_files(masks_in, {".png"}), labels_in=masks_in, refused=refused)

    def __getitem__(self, index: int) -> LabelledPicture:
        picture_path, mask_path = self.pairs[index]
        picture = read_picture(picture_path)
        return LabelledPicture(self.names[index], picture, read_soft_mask(mask_path, picture.shape[:2])[None], (1,))


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


def folder_name(folder: pathlib.Path) -> str:
    """The last part of a folder's path, of "." and "a/.." too."""
    return os.path.basename(os.path.abspath(folder))


def _times(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]}"
