"""Checks of pictures and masks: all findings in all files, where a reader stops at the first.

A mask that a reader cannot use is a fault. The rules here find masks that can be read but are suspicious, mostly by
measured bounds.
"""

import collections
import dataclasses
import functools
import hashlib
import pathlib
from collections.abc import Callable, Container, Iterator, Sequence

import cv2
import numpy as np

from stablesam_jax.data import near_duplicates
from stablesam_jax.data.findings import Finding, Findings, cannot_be_read
from stablesam_jax.data.label_file import OtherSizeError
from stablesam_jax.data.readers import Objects, Pictures, Reader, on_all_cores
from stablesam_jax.errors import InputError
from stablesam_jax.files.picture_file import DEPTHS, count_frames, read_header, read_stored

# Measured on the 11,566 objects of 32 real sets: the largest covers 94.8 % of its picture, and none covers more than
# 88.4 % of the picture's edge (a table). So neither rule has a false alarm there. The second rule detects 93.7 % of the
# same masks inverted; the others touch the edge. Usually all masks of a folder are inverted, seldom a single one.
WHOLE = 0.98  # of the picture
EDGE = 0.9  # of the outermost pixels
# 195 of the objects have several large pieces. Of 36 that were inspected, 27 were several objects with one number, the
# others one object behind another. So it is a hint, not a fault.
PIECE = 0.5  # of the largest piece
LARGE = 0.01  # of the picture


@dataclasses.dataclass(frozen=True)
class Examined:
    """What is kept in memory of a picture after it has been read."""

    source: str
    name: str
    picture: pathlib.Path
    label: pathlib.Path | None  # file that findings about its masks name
    findings: Findings
    thumbnail: np.ndarray | None  # (32, 36) uint8, None if the picture cannot be read
    masks: bytes | None = None  # digest of all masks, None if there are none


@dataclasses.dataclass(frozen=True)
class Reading:
    """Result of reading a picture and its masks: a digest or a fault."""

    digest: str | None = None  # SHA-256 of pixels and masks, whatever form they are stored in
    fault: str | None = None  # one line


def read_all(source: Pictures, indices: Sequence[int] | None = None) -> list[Reading]:
    """Reads pictures with their masks, on all cores, one per core in memory at a time.

    Args:
        source: of the pictures.
        indices: of the pictures; None: all.
    """
    places = range(len(source)) if indices is None else indices
    return list(on_all_cores(functools.partial(_read, source), places))


def _read(source: Pictures, index: int) -> Reading:
    try:
        labelled = source[index]
    except InputError as error:
        return Reading(fault=str(error))
    sha = hashlib.sha256(repr((labelled.picture.shape, labelled.masks.shape)).encode())
    sha.update(np.ascontiguousarray(labelled.picture).data)
    sha.update(np.packbits(labelled.masks).data)
    return Reading(digest=sha.hexdigest())


def examine(reader: Reader, index: int) -> Examined:
    """Reads one picture and its masks, and checks both."""
    file, name = reader.picture_file(index), reader.names[index]
    findings: Findings = []
    picture = label = None
    try:
        picture = reader.picture(index)
        findings += [Finding(kind, reader.name, name, file, text) for kind, text in oddities(file)]
    except InputError as error:
        findings.append(cannot_be_read("picture", reader.name, name, file, error))
    where = reader.label_file(index) if reader.own_labels else file
    try:
        label = reader.label(index, None if picture is None else picture.shape[:2])
    except OtherSizeError as error:
        findings.append(cannot_be_read("size", reader.name, name, where, error))
    except InputError as error:
        findings.append(cannot_be_read("mask", reader.name, name, where, error))
    masks = label.masks if isinstance(label, Objects) else None
    if masks is not None:
        findings += [Finding(kind, reader.name, name, where, text) for kind, text in remarks(masks)]
    return Examined(
        reader.name,
        name,
        file,
        where,
        findings,
        None if picture is None else near_duplicates.thumbnail(picture),
        None if masks is None else hashlib.sha256(np.packbits(masks).tobytes() + repr(masks.shape).encode()).digest(),
    )


def look(file: pathlib.Path, read: Callable[[], np.ndarray]) -> Examined:
    """Reads a picture without its masks."""
    try:
        return Examined("", "", file, None, [], near_duplicates.thumbnail(read()))
    except InputError as error:
        return Examined("", "", file, None, [cannot_be_read("picture", "", "", file, error)], None)


def oddities(file: pathlib.Path) -> Iterator[tuple[str, str]]:
    """Findings about how a picture is stored, as (kind, text); none for a record of a built set."""
    if not file.is_file():
        return
    if (frames := count_frames(file)) > 1:
        yield "frames", f"holds {frames} frames or pages; the first is the picture."
    if read_header(file).deep and (bits := read_stored(file).white.bit_length()) < DEPTHS[-1]:
        yield "bits", f"has values of {bits} bits in a file of 16; white is {2**bits - 1}."


def remarks(masks: np.ndarray) -> Iterator[tuple[str, str]]:
    """Findings about the masks of one picture, (M, H, W) bool, as (kind, text)."""
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
    """The share of the outermost pixels of a mask (H, W) bool that belongs to the object."""
    return float(np.concatenate([mask[0], mask[-1], mask[1:-1, 0], mask[1:-1, -1]]).mean())


def large_pieces(mask: np.ndarray) -> int:
    """Number of 8-connected pieces of a mask (H, W) bool above `LARGE` and above `PIECE` of its largest piece."""
    if not mask.any():
        return 0
    pixels = mask.astype(np.uint8)
    left, top, width, height = cv2.boundingRect(pixels)
    inside = np.ascontiguousarray(pixels[top : top + height, left : left + width])
    _, _, stats, _ = cv2.connectedComponentsWithStats(inside, connectivity=8)
    sizes = stats[1:, cv2.CC_STAT_AREA]
    return int((sizes >= max(PIECE * sizes.max(), LARGE * mask.size)).sum())


def compare(examined: Sequence[Examined], against: Sequence[Examined]) -> Iterator[Finding]:
    """Findings about duplicate pictures, pictures that are also in `against`, and equal masks; one for each file."""
    read, thumbnails = _pictures(examined)
    others, other_thumbnails = _pictures(against)
    duplicates, leaks = set(), set()
    for earlier, later, mirrored in near_duplicates.within(thumbnails):
        if later not in duplicates:
            duplicates.add(later)
            text = f"shows the same as {read[earlier].picture}{_mirrored(mirrored)}; keep one, all objects in its mask."
            yield _equal("duplicate", read[later], read[earlier], text)
    for index, other, mirrored in near_duplicates.between(thumbnails, other_thumbnails):
        if index not in leaks:
            leaks.add(index)
            what = f"shows the same as {others[other].picture}{_mirrored(mirrored)}"
            text = f"{what}; remove one, or the test contains a training picture."
            yield _equal("twin", read[index], others[other], text)
    yield from _equal_masks(examined, {read[later].picture for later in duplicates})


def _equal(kind: str, one: Examined, other: Examined, text: str) -> Finding:
    return Finding(kind, one.source, one.name, one.picture, text, other.picture)


def _pictures(examined: Sequence[Examined]) -> tuple[list[Examined], np.ndarray]:
    """The pictures that could be read, and their thumbnails (N, 32, 36)."""
    read = [one for one in examined if one.thumbnail is not None]
    thumbnails = np.array([one.thumbnail for one in read], np.uint8)
    return read, thumbnails.reshape(-1, near_duplicates.ROWS, near_duplicates.COLUMNS)


def _mirrored(mirrored: bool) -> str:
    return ", mirrored" if mirrored else ""


def _equal_masks(examined: Sequence[Examined], duplicates: Container[pathlib.Path]) -> Iterator[Finding]:
    groups = collections.defaultdict(list)
    for one in examined:
        if one.masks is not None and one.picture not in duplicates:
            groups[one.masks].append(one)
    for first, *rest in groups.values():
        for one in rest:
            assert one.label is not None
            text = f"equals {first.label}, pixel by pixel; make sure that it belongs to its picture."
            yield Finding("equal masks", one.source, one.name, one.label, text, first.label)
