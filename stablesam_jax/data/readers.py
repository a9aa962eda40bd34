"""Pictures with object masks: the interface of all sources, and folders with a picture and a mask file each.

The layout "pairs": `im/STEM.jpg` (or any common format) and `gt/STEM.png` of the same size, also in subfolders. A mask
holds 0 for the background and one other number for one object (255, say), or one number per object (255 is then
"ignore"). Picture and mask are each rotated by their own EXIF orientation.
"""

import abc
import dataclasses
import functools
import os
import pathlib
import unicodedata
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol, TypeVar

import numpy as np

from stablesam_jax.data.findings import Finding, Findings, cannot_be_read, tell
from stablesam_jax.data.label_file import SizeHW, read_masks, read_soft_mask
from stablesam_jax.errors import InputError, shown
from stablesam_jax.files.picture_file import (
    CONVERT,
    SIDEWAYS,
    SUFFIXES,
    UNREAD,
    Header,
    read_header,
    read_picture,
    unread,
)

MASK_SUFFIXES = frozenset({".bmp", ".gif", ".pbm", ".pgm", ".png", ".tif", ".tiff"})  # of lossless formats
IM, GT = "im", "gt"  # subfolders of the layout "pairs"

Listing = Mapping[str, Sequence[pathlib.Path]]  # path without suffix -> files
Result = TypeVar("Result")


@dataclasses.dataclass(frozen=True)
class Objects:
    """The objects of a picture."""

    masks: np.ndarray  # (M, H, W) bool, none empty
    numbers: tuple[int, ...] = ()  # M, of each object in the source: number in the mask, or annotation id
    categories: tuple[str, ...] = ()  # M, category of each object, if the source has them


@dataclasses.dataclass(frozen=True)
class LabelledPicture:
    """A picture and the masks of its objects."""

    name: str  # unique; seeds the prompts of an evaluation
    picture: np.ndarray  # (H, W, 3) uint8 RGB
    masks: np.ndarray  # as in `Objects`
    numbers: tuple[int, ...] = ()
    categories: tuple[str, ...] = ()


class Named(Protocol):
    """A source of pictures of any kind; names are available without reading the files."""

    names: list[str]

    def __len__(self) -> int: ...


class Pictures(Named, Protocol):
    """A source of labelled pictures."""

    def __getitem__(self, index: int) -> LabelledPicture: ...


class Reader(abc.ABC):
    """Base of sources whose pictures and labels can be read separately."""

    name: str  # of the set; begins the names of its pictures
    names: list[str]
    own_labels = True  # whether each picture has its own label file
    groups: Mapping[str, str] = {}  # name of a picture -> its group, see `data.groups`

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Any:
        picture = self.picture(index)
        objects = self.label(index, picture.shape[:2])
        return LabelledPicture(self.names[index], picture, objects.masks, objects.numbers, objects.categories)

    @abc.abstractmethod
    def picture_file(self, index: int) -> pathlib.Path:
        """The path of a picture."""

    @abc.abstractmethod
    def label_file(self, index: int) -> pathlib.Path:
        """The path of a picture's label file."""

    @abc.abstractmethod
    def files(self) -> Iterable[pathlib.Path]:
        """All files of the source, including unusable ones."""

    @abc.abstractmethod
    def label(self, index: int, size_hw: SizeHW | None) -> Any:
        """Reads the label of a picture.

        Args:
            index: of the picture.
            size_hw: size of the picture; None to accept the label's.

        Raises:
            InputError: the label cannot be used.
        """

    def label_header(self, index: int) -> Header | None:
        """Size and orientation of the label; None if it has neither.

        Raises:
            InputError: the label cannot be read.
        """
        return None

    def picture(self, index: int, reduce: int = 1) -> np.ndarray:
        """The picture alone, (H, W, 3) uint8 RGB; a JPEG at 1/`reduce` of its size, see `read_picture`."""
        return read_picture(self.picture_file(index), reduce=reduce)

    def signature(self, index: int) -> list[int] | None:
        """Numbers that change with the files of a picture: size, time of change, inode; None if they cannot be told."""
        try:
            states = [file.stat() for file in (self.picture_file(index), self.label_file(index))]
        except OSError:
            return None
        return [value for state in states for value in (state.st_size, state.st_mtime_ns, state.st_ino)]

    def every_picture(self) -> list[tuple[pathlib.Path, Callable[[], np.ndarray]]]:
        """All pictures, including those without objects: the path and a function that reads it."""
        return [(self.picture_file(index), functools.partial(self.picture, index)) for index in range(len(self))]

    def check(self, findings: Findings) -> None:
        """Adds the findings of `look` for every picture, on all cores."""
        for found in on_all_cores(self.look, range(len(self))):
            findings += found

    def look(self, index: int) -> Findings:
        """Checks the headers of a picture and its label: unreadable files, different sizes, and labels that may have
        been drawn before the picture was rotated by its EXIF orientation.
        """
        name, picture_file, label_file = self.names[index], self.picture_file(index), self.label_file(index)
        found: Findings = []
        picture = label = None
        try:
            picture = read_header(picture_file)
        except InputError as error:
            found.append(cannot_be_read("picture", self.name, name, picture_file, error))
        try:
            label = self.label_header(index)
        except InputError as error:
            found.append(cannot_be_read("mask", self.name, name, label_file, error))
        if picture is not None and label is not None:
            found += disagreements(picture_file, picture, label_file, label, source=self.name, picture_name=name)
        return found


def disagreements(
    file: pathlib.Path,
    picture: Header,
    label_file: pathlib.Path,
    label: Header,
    *,
    says_size: bool = True,
    source: str,
    picture_name: str,
) -> Iterator[Finding]:
    """Findings about different sizes or EXIF orientations of a picture and its label.

    Args:
        file, picture: the picture.
        label_file, label: the label.
        says_size: the label's size is its own, not taken from the picture.
        source, picture_name: what both are called.
    """
    if label.size != picture.size:
        turn = f", {_times(picture.stored_size)} before its EXIF data turn it" if picture.orientation != 1 else ""
        drawn = picture.orientation != 1 and label.size == picture.stored_size
        what = "the label was drawn without them: remove the orientation" if drawn else "make them equal"
        if drawn and label_file.suffix == ".json":  # Label Studio scales what was drawn upright by the stored sides
            what = "export from Label Studio as YOLO; of other tools, remove the orientation if the label is drawn so"
        text = f"is {_times(picture.size)} pixels{turn}, and {_times(label.size)} in {label_file}; {what}."
        yield Finding("size", source, picture_name, file, text)
    elif picture.orientation != label.orientation:
        width, height = picture.size
        sideways = (picture.orientation in SIDEWAYS) != (label.orientation in SIDEWAYS)
        if not (sideways and says_size and width != height):  # else the size shows that it was drawn upright
            of_picture, of_label = (
                header.orientation if header.orientation != 1 else "none" for header in (picture, label)
            )
            text = (
                f"has the EXIF orientation {of_picture}, {label_file} {of_label}; make sure that the label was drawn "
                "on the picture as it is shown upright."
            )
            yield Finding("turned", source, picture_name, file, text)


def on_all_cores(function: Callable[[Any], Result], items: Iterable[Any]) -> Iterator[Result]:
    """Results in order. Threads suffice, since reading files mostly releases the interpreter lock."""
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        yield from threads.map(function, items)


def list_files(folder: pathlib.Path, suffixes: Collection[str], *, within: bool = False) -> Listing:
    """Lists the visible files of a folder with one of the suffixes, by path without suffix, ordered by full name.

    Args:
        folder: to list.
        suffixes: in lower or upper case.
        within: whether subfolders are listed too.

    Raises:
        InputError: the folder does not exist or cannot be listed.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder.")
    endings = [suffix.lower() for suffix in suffixes]
    found: dict[str, list[pathlib.Path]] = {}
    for path in sorted(_files(folder, within=within, above=frozenset())):
        suffix = next((ending for ending in endings if path.name.lower().endswith(ending)), None)
        if suffix is not None:
            found.setdefault(path.relative_to(folder).as_posix()[: -len(suffix)], []).append(path)
    return found


def _files(folder: pathlib.Path, *, within: bool, above: frozenset[str]) -> Iterator[pathlib.Path]:
    """Files of a folder. `above` has the real paths of its parents, because a symbolic link may form a loop."""
    above |= {os.path.realpath(folder)}
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if not entry.is_dir():
                    yield pathlib.Path(entry.path)
                elif within and os.path.realpath(entry.path) not in above:
                    yield from _files(pathlib.Path(entry.path), within=within, above=above)
    except OSError as error:
        raise InputError(
            f"{error.filename or folder}: cannot be listed ({error.strerror}); check its rights."
        ) from None


def twins(pictures: Collection[str], labels: Collection[str]) -> dict[str, str]:
    """Stem of a picture -> stem of its label, which may have another Unicode form, as macOS writes names."""
    forms: dict[str, list[str]] = {}
    for stem in labels:
        forms.setdefault(unicodedata.normalize("NFC", stem), []).append(stem)
    pairs = {stem: stem for stem in pictures if stem in labels}
    for stem in pictures:
        same = forms.get(unicodedata.normalize("NFC", stem), [])
        if stem not in pairs and len(same) == 1 and same[0] not in pictures:
            pairs[stem] = same[0]
    return pairs


def unread_pictures(name: str, folder: pathlib.Path, *, within: bool = False) -> Iterator[Finding]:
    """Findings about pictures of a folder in unsupported formats."""
    for path in sorted(_files(folder, within=within, above=frozenset())):
        if (what := unread(path)) is not None:
            stem = path.relative_to(folder).with_suffix("").as_posix()
            text = f"is {what}, {CONVERT}."
            yield Finding("picture", name, f"{name}/{shown(stem)}", path, text)


class LabelledFiles(Reader):
    """Base of readers of pictures and label files with the same size and name, in the order of the names."""

    def __init__(self, name: str, pictures: Listing, labels: Listing, *, labels_in: pathlib.Path, findings: Findings):
        """Pairs the files without reading them.

        Args:
            name: of the set; begins the names of its pictures.
            pictures: files by stem.
            labels: files by stem.
            labels_in: folder of the labels, for messages.
            findings: gets files with no counterpart or several.
        """
        self.name, self.pictures, self.labels = name, pictures, labels
        self.names: list[str] = []
        self.pairs: list[tuple[pathlib.Path, pathlib.Path]] = []
        twin = twins(pictures, labels)
        for stem, files in pictures.items():
            of_picture = labels.get(twin.get(stem, ""), [])
            usable = [file for file in of_picture if file.suffix.lower() in MASK_SUFFIXES]
            picture = f"{name}/{shown(stem)}"
            for several in (files, usable):
                if len(several) > 1:
                    text = f"{' and '.join(file.name for file in several)} differ in suffix alone; remove all but one."
                    findings.append(Finding("suffix", name, picture, several[0], text))
            if not of_picture:
                text = f"has no mask in {labels_in}; add it or remove the picture."
                findings += [Finding("no mask", name, picture, file, text) for file in files]
            elif not usable:
                what = unread(of_picture[0]) or "of a format that may blur a mask"
                text = f"is {what}; store 0 and 255, or a number per object, as PNG."
                findings.append(Finding("mask", name, picture, of_picture[0], text))
            elif len(files) == len(usable) == 1:
                self.names.append(picture)
                self.pairs.append((files[0], usable[0]))
        for stem in sorted(labels.keys() - twin.values()):
            text = "the mask has no picture; add it or remove the mask."
            findings += [Finding("no picture", name, f"{name}/{shown(stem)}", file, text) for file in labels[stem]]

    def picture_file(self, index: int) -> pathlib.Path:
        """The path of a picture."""
        return self.pairs[index][0]

    def label_file(self, index: int) -> pathlib.Path:
        """The path of a picture's mask."""
        return self.pairs[index][1]

    def label_header(self, index: int) -> Header:
        """Size and orientation of the mask."""
        return read_header(self.pairs[index][1])

    def files(self) -> Iterable[pathlib.Path]:
        """All pictures and masks."""
        return (file for listing in (self.pictures, self.labels) for files in listing.values() for file in files)

    def every_picture(self) -> list[tuple[pathlib.Path, Callable[[], np.ndarray]]]:
        """All pictures, including those without a mask."""
        files = (file for files in self.pictures.values() for file in files)
        return [(file, functools.partial(read_picture, file)) for file in files]


class PairsFolder(LabelledFiles):
    """The pictures of one folder in the layout "pairs"."""

    def __init__(self, folder: pathlib.Path, findings: Findings | None = None, *, name: str | None = None):
        """Lists the pairs without reading them.

        Args:
            folder: with `im/` and `gt/`.
            findings: gets pictures and masks without a counterpart, and unsupported pictures; None: they raise.
            name: of the set; default: the folder's.

        Raises:
            InputError: no `im/` or `gt/`, or no picture.
        """
        found: Findings = []
        missing = [part for part in (IM, GT) if not (folder / part).is_dir()]
        if missing:
            raise InputError(
                f"{folder}: holds no {' and no '.join(f'{part}/' for part in missing)}; "
                "pictures go to im/NAME.jpg, their masks to gt/NAME.png."
            )
        name = folder_name(folder) if name is None else name
        pictures = list_files(folder / IM, SUFFIXES, within=True)
        unread = list(unread_pictures(name, folder / IM, within=True))
        found += unread
        if not pictures and not unread:
            raise InputError(f"{folder / IM}: holds no picture ({', '.join(sorted(SUFFIXES))}).")
        labels = dict(list_files(folder / GT, SUFFIXES, within=True))
        for stem, files in list_files(folder / GT, UNREAD, within=True).items():
            if stem in pictures:
                labels.setdefault(stem, files)  # named as a mask that is not read
        super().__init__(name, pictures, labels, labels_in=folder / GT, findings=found)
        if findings is None:
            tell(found)
        else:
            findings += found

    def label(self, index: int, size_hw: SizeHW | None) -> Objects:
        """The objects of the mask."""
        return Objects(*read_masks(self.label_file(index), size_hw))


class Beside(LabelledFiles):
    """The pictures of one folder with the mask NAME.png beside NAME.jpg."""

    def __init__(self, folder: pathlib.Path, findings: Findings, *, name: str | None = None):
        """Lists the pairs without reading them; arguments as of `PairsFolder`."""
        name = folder_name(folder) if name is None else name
        findings += unread_pictures(name, folder)
        super().__init__(
            name,
            list_files(folder, SUFFIXES - {".png"}),
            list_files(folder, {".png"}),
            labels_in=folder,
            findings=findings,
        )

    def label(self, index: int, size_hw: SizeHW | None) -> Objects:
        """The objects of the mask."""
        return Objects(*read_masks(self.label_file(index), size_hw))


class SoftPairs(LabelledFiles):
    """Pictures of one object each, with masks that are soft at their edges, from two folders or one."""

    def __init__(self, name: str, pictures_in: pathlib.Path, masks_in: pathlib.Path, findings: Findings):
        """Lists NAME.jpg and NAME.png without reading them.

        Args:
            name: of the set.
            pictures_in: folder of the pictures.
            masks_in: folder of the masks; may be the same.
            findings: gets pictures and masks without a counterpart.

        Raises:
            InputError: a folder is missing or holds no picture.
        """
        pictures = list_files(pictures_in, {".jpg"})
        if not pictures:
            raise InputError(f"{pictures_in}: holds no picture NAME.jpg.")
        super().__init__(name, pictures, list_files(masks_in, {".png"}), labels_in=masks_in, findings=findings)

    def label(self, index: int, size_hw: SizeHW | None) -> Objects:
        """The object of the mask."""
        return Objects(read_soft_mask(self.label_file(index), size_hw)[None], (1,))


class Selection:
    """Some of the pictures of a source, in a given order."""

    def __init__(self, source: Pictures, indices: Sequence[int], names: Sequence[str] | None = None):
        """Selects the pictures at `indices`, with `names` if given."""
        self.source, self.indices = source, indices
        self.names = [source.names[index] for index in indices] if names is None else list(names)

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> LabelledPicture:
        return self.source[self.indices[index]]


class Joined:
    """Several sources, concatenated."""

    def __init__(self, sources: Sequence[Pictures]):
        """Concatenates the sources."""
        self.places = [(source, index) for source in sources for index in range(len(source))]
        self.names = [source.names[index] for source, index in self.places]

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> LabelledPicture:
        source, inner = self.places[index]
        return source[inner]

    def signature(self, index: int) -> list[int] | None:
        """See `Reader.signature`."""
        source, inner = self.places[index]
        return source.signature(inner) if isinstance(source, Reader | Joined) else None


def folder_name(folder: pathlib.Path) -> str:
    """The last part of a folder's absolute path, so that "." and "a/.." have a name too."""
    return shown(os.path.basename(os.path.abspath(folder)))


def _times(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]}"
