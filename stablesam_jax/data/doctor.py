"""What is wrong with folders of pictures and masks: every fault of every file, where a reader stops at the first.

A fault spoils training or evaluation; a hint is worth a look, and often right as it is.
"""

import collections
import dataclasses
import functools
import hashlib
import itertools
import os
import pathlib
from collections.abc import Container, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np

from stablesam_jax.data import near_duplicates
from stablesam_jax.data.label_file import other_size, read_masks
from stablesam_jax.data.readers import MASK_SUFFIXES, PICTURE_SUFFIXES, Pictures, by_stem
from stablesam_jax.errors import InputError
from stablesam_jax.files.picture_file import read_header, read_picture

KINDS = {  # of findings, in the order in which they are shown -> (severity, title)
    "not checked": ("hint", "pictures in no known layout"),
    "pieces": ("hint", "several large pieces under one number"),
    "equal masks": ("hint", "masks equal to that of another picture"),
    "picture": ("fault", "pictures that cannot be read"),
    "mask": ("fault", "masks that cannot be used"),
    "suffix": ("fault", "files that differ in suffix alone"),
    "no mask": ("fault", "pictures without a mask"),
    "no picture": ("fault", "masks without a picture"),
    "size": ("fault", "masks of another size than their picture"),
    "whole": ("fault", "masks that cover the whole picture"),
    "inverted": ("fault", "masks that seem to be inverted"),
    "duplicate": ("fault", "pictures that are there twice"),
    "twin": ("fault", "pictures that are in --against too"),
}

# Measured on the 11,566 objects of 32 real sets: the largest covers 94.8 % of its picture; the one that covers most of
# the picture's edge (a table) covers 88.4 % of it. So neither rule has a false alarm there. Of the same masks inverted,
# the second finds 93.7 %: the rest touch the edge themselves. Masks are inverted by the folder, seldom one by one.
WHOLE = 0.98  # of the picture
EDGE = 0.9  # of the outermost pixels
# 195 of the objects have such pieces. Of 36 looked at, 27 were several things under one number, the rest one thing
# cut by another in front of it: a hint, no fault.
PIECE = 0.5  # of the largest piece
LARGE = 0.01  # of the picture


@dataclasses.dataclass(frozen=True, kw_only=True)
class Finding:
    """Something wrong with one file."""

    kind: str  # of KINDS
    file: pathlib.Path
    text: str  # one line: what is wrong, and what to do
    other: pathlib.Path | None = None  # the file that it is equal to

    @property
    def severity(self) -> str:
        """ "fault" or "hint"."""
        return KINDS[self.kind][0]


@dataclasses.dataclass(frozen=True)
class Pair:
    """The files of one picture; either may be missing."""

    picture: pathlib.Path | None
    mask: pathlib.Path | None = None


@dataclasses.dataclass(frozen=True)
class Folder:
    """The files of one folder."""

    path: pathlib.Path
    labelled: bool  # whether its layout says which mask belongs to which picture
    pairs: list[Pair]
    findings: list[Finding]  # that the names alone tell


@dataclasses.dataclass(frozen=True)
class Examined:
    """What is kept of a pair once it has been read."""

    pair: Pair
    findings: list[Finding]
    thumbnail: np.ndarray | None  # (32, 36) uint8, None where there is no picture to be read
    masks: bytes | None  # a digest of all masks, None where there are none


def unusable(source: Pictures) -> dict[int, str]:
    """Reads every picture and its masks, on all cores.

    Returns:
        number of each picture that cannot be used -> why, in one line.
    """
    with ThreadPoolExecutor(os.cpu_count()) as threads:  # decoding releases Python's lock
        reasons = threads.map(functools.partial(_reason, source), range(len(source)))
        return {index: reason for index, reason in enumerate(reasons) if reason is not None}


def _reason(source: Pictures, index: int) -> str | None:
    try:
        source[index]
    except InputError as error:
        return str(error)
    return None


def find_folders(root: pathlib.Path) -> list[Folder]:
    """Every folder of pictures at or below `root`, in the order of their paths.

    Known layouts are "pairs" (`im/` and `gt/`) and that of HQ-SAM's cascade_psp: `NAME.jpg` beside its mask `NAME.png`.

    Raises:
        InputError: no such folder, one that cannot be listed, or no picture.
    """
    if not root.is_dir():
        raise InputError(f"{root}: no such folder; give one that holds im/ (pictures) and gt/ (masks).")
    try:
        found = list(_folders(root, frozenset()))
    except OSError as error:
        raise InputError(f"{error.filename}: cannot be listed ({error.strerror}); check its rights.") from None
    if not any(folder.pairs for folder in found):
        raise InputError(f"{root}: holds no picture ({', '.join(sorted(PICTURE_SUFFIXES))}).")
    return found


def examine(pair: Pair) -> Examined:
    """Reads one picture and its mask whole."""
    findings = []
    picture = masks = mask_hw = None
    if pair.picture is not None:
        try:
            picture = read_picture(pair.picture)
        except InputError as error:
            findings.append(_refusal("picture", pair.picture, error))
    if pair.mask is not None:
        try:
            mask_hw = read_header(pair.mask).size[::-1]
            masks, _ = read_masks(pair.mask, mask_hw)
        except InputError as error:
            findings.append(_refusal("mask", pair.mask, error))
        if picture is not None and mask_hw is not None and mask_hw != picture.shape[:2]:
            findings.append(Finding(kind="size", file=pair.mask, text=other_size(mask_hw, picture.shape[:2])))
        if masks is not None:
            findings += [Finding(kind=kind, file=pair.mask, text=text) for kind, text in remarks(masks)]
    return Examined(
        pair,
        findings,
        None if picture is None else near_duplicates.thumbnail(picture),
        None if masks is None else hashlib.sha256(np.packbits(masks).tobytes() + repr(masks.shape).encode()).digest(),
    )


def remarks(masks: np.ndarray) -> Iterator[tuple[str, str]]:
    """What is odd about the masks of one picture, (M, H, W) bool, as (kind, text)."""
    for number, mask in enumerate(masks, 1):
        which = "the mask" if len(masks) == 1 else f"object {number} of {len(masks)}"
        covered, on_edge = mask.mean(), edge_share(mask)
        swap = "swap 0 and the number if the mask is inverted"
        if covered >= WHOLE:
            yield "whole", f"{which} covers {covered:.1%} of the picture; {swap}, or outline the object."
        elif on_edge >= EDGE:
            how = f"{which} covers {on_edge:.0%} of the picture's edge, as a background does"
            yield "inverted", f"{how}; {swap}, or set the background to 0."
        elif (pieces := large_pieces(mask)) > 1:
            yield "pieces", f"{which} has {pieces} large pieces; give each its own number if they are several things."


def edge_share(mask: np.ndarray) -> float:
    """The share of the outermost pixels of a mask (H, W) bool that is set."""
    return float(np.concatenate([mask[0], mask[-1], mask[1:-1, 0], mask[1:-1, -1]]).mean())


def large_pieces(mask: np.ndarray) -> int:
    """How many pieces of a mask (H, W) bool, connected by sides or corners, are LARGE, and PIECE of its largest."""
    if not mask.any():
        return 0
    pixels = mask.astype(np.uint8)
    left, top, width, height = cv2.boundingRect(pixels)
    inside = np.ascontiguousarray(pixels[top : top + height, left : left + width])
    _, _, stats, _ = cv2.connectedComponentsWithStats(inside, connectivity=8)
    sizes = stats[1:, cv2.CC_STAT_AREA]
    return int((sizes >= max(PIECE * sizes.max(), LARGE * mask.size)).sum())


def compare(examined: Sequence[Examined], against: Sequence[Examined]) -> Iterator[Finding]:
    """Pictures that are there twice, or in `against` too, and masks that equal another's. Names each file once."""
    pictures, thumbnails = _pictures(examined)
    others, other_thumbnails = _pictures(against)
    duplicates, leaks = set(), set()
    for earlier, later, mirrored in near_duplicates.within(thumbnails):
        if later not in duplicates:
            duplicates.add(later)
            yield Finding(
                kind="duplicate",
                file=pictures[later],
                text=f"shows the same as {pictures[earlier]}{_mirrored(mirrored)}; keep one, all objects in its mask.",
                other=pictures[earlier],
            )
    for index, other, mirrored in near_duplicates.between(thumbnails, other_thumbnails):
        if index not in leaks:
            leaks.add(index)
            yield Finding(
                kind="twin",
                file=pictures[index],
                text=f"shows the same as {others[other]}{_mirrored(mirrored)}; remove one, lest training see the test.",
                other=others[other],
            )
    yield from _equal_masks(examined, {pictures[later] for later in duplicates})


def _folders(path: pathlib.Path, above: frozenset[pathlib.Path]) -> Iterator[Folder]:
    """`above` are the real paths of the folders that led here: a link may lead back."""
    if (path / "im").is_dir() and (path / "gt").is_dir():
        masks = by_stem(path / "gt", PICTURE_SUFFIXES)
        yield _labelled(path, by_stem(path / "im", PICTURE_SUFFIXES), masks)
        return
    files = by_stem(path, PICTURE_SUFFIXES)
    masks = {stem: kept for stem, paths in files.items() if (kept := [file for file in paths if _is_mask(file)])}
    pictures = {stem: kept for stem, paths in files.items() if (kept := [file for file in paths if not _is_mask(file)])}
    if masks.keys() & pictures.keys():
        yield _labelled(path, pictures, masks)
    elif files:
        text = f"holds {len(files)} pictures, but no im/ with gt/ and no masks beside them; not checked."
        pairs = [Pair(file) for paths in files.values() for file in paths]
        yield Folder(path, False, pairs, [Finding(kind="not checked", file=path, text=text)])
    above |= {path.resolve()}
    for child in sorted(path.iterdir()):
        if child.is_dir() and not child.name.startswith(".") and child.resolve() not in above:
            yield from _folders(child, above)


def _labelled(
    path: pathlib.Path, pictures: dict[str, list[pathlib.Path]], masks: dict[str, list[pathlib.Path]]
) -> Folder:
    pairs, findings = [], []
    for stem in sorted(pictures.keys() | masks.keys()):
        of_stem = pictures.get(stem, [])
        usable = [file for file in masks.get(stem, []) if _is_mask(file)]
        for files in (of_stem, usable):
            if len(files) > 1:
                text = f"{' and '.join(file.name for file in files)} differ in suffix alone; remove all but one."
                findings.append(Finding(kind="suffix", file=files[0], text=text))
        if not usable and stem in masks:
            text = "is no PNG file, as masks must be; store 0 and 255, or a number per object, as PNG."
            findings.append(Finding(kind="mask", file=masks[stem][0], text=text))
        elif not usable:
            text = f"has no mask; add {stem}.png, or remove the picture."
            findings += [Finding(kind="no mask", file=file, text=text) for file in of_stem]
        if not of_stem:
            text = "has no picture; add it, or remove the mask."
            findings += [Finding(kind="no picture", file=file, text=text) for file in masks[stem]]
        pairs += [Pair(*files) for files in itertools.zip_longest(of_stem, usable)]
    return Folder(path, True, pairs, findings)


def _is_mask(file: pathlib.Path) -> bool:
    return file.suffix.lower() in MASK_SUFFIXES


def _refusal(kind: str, file: pathlib.Path, error: InputError) -> Finding:
    return Finding(kind=kind, file=file, text=str(error).removeprefix(f"{file}: "))


def _pictures(examined: Sequence[Examined]) -> tuple[list[pathlib.Path], np.ndarray]:
    """The pictures that could be read, and their thumbnails (N, 32, 36)."""
    read = [(one.pair.picture, one.thumbnail) for one in examined if one.pair.picture and one.thumbnail is not None]
    thumbnails = np.array([thumbnail for _, thumbnail in read], np.uint8).reshape(
        -1, near_duplicates.ROWS, near_duplicates.COLUMNS
    )
    return [picture for picture, _ in read], thumbnails


def _mirrored(mirrored: bool) -> str:
    return ", mirrored" if mirrored else ""


def _equal_masks(examined: Sequence[Examined], duplicates: Container[pathlib.Path | None]) -> Iterator[Finding]:
    groups = collections.defaultdict(list)
    for one in examined:
        if one.pair.mask and one.masks is not None and one.pair.picture not in duplicates:
            groups[one.masks].append(one.pair.mask)
    for first, *rest in groups.values():
        for mask in rest:
            yield Finding(
                kind="equal masks",
                file=mask,
                text=f"equals {first}, pixel by pixel; make sure that it belongs to its picture.",
                other=first,
            )
