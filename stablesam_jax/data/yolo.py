"""Annotations of YOLO for segmentation: a text file for each picture, a line for each object.

A line has the class and the outline as x, y, x, y, ..., as shares of the picture's width and height. A line of five
numbers is a rectangle and has no mask. Names of classes are in `data.yaml` or `classes.txt`, in the folder or above it.
Where `data.yaml` has `kpt_shape`, lines have a rectangle and keypoints, and no mask either.
"""

import collections
import contextlib
import math
import pathlib
from collections.abc import Iterator, Mapping

import yaml  # type: ignore[import-untyped]

from stablesam_jax.data.annotated import Drawing, Drawn
from stablesam_jax.errors import InputError

IMAGES, LABELS = "images", "labels"  # folders
YAML, CLASSES = ("data.yaml", "data.yml", "dataset.yaml"), ("classes.txt", "obj.names")
FAULTS = (TypeError, ValueError, LookupError, AttributeError, RecursionError, yaml.YAMLError)  # of other contents
FAR = 1.0  # shares of the picture by which an outline may exceed it and is clipped; larger values are pixels, a fault


def read_classes(folder: pathlib.Path) -> Mapping[int, str]:
    """Names of classes by number, from a file in this folder or up to two levels above; empty without one."""
    for name, content in _settings(folder):
        try:
            names = content.splitlines() if name in CLASSES else yaml.safe_load(content)["names"]
            entries = names.items() if isinstance(names, dict) else enumerate(names)
            # The text of lists that hold each other by YAML's aliases may take gigabytes.
            return {int(number): str(name).strip() for number, name in entries if isinstance(name, str | int | float)}
        except FAULTS:
            continue
    return {}


def has_keypoints(folder: pathlib.Path) -> bool:
    """Whether lines have keypoints in place of an outline, as a file in the same places says."""
    for name, content in _settings(folder):
        with contextlib.suppress(*FAULTS):
            if name in YAML and "kpt_shape" in yaml.safe_load(content):
                return True
    return False


def _settings(folder: pathlib.Path) -> Iterator[tuple[str, str]]:
    """Name and text of each file that may describe a folder."""
    for place in (folder, folder.parent, folder.parent.parent):
        for name in (*YAML, *CLASSES):
            with contextlib.suppress(OSError):
                yield name, (place / name).read_text(encoding="utf-8-sig", errors="replace")


def parse(path: pathlib.Path, size: tuple[int, int], *, classes: Mapping[int, str], keypoints: bool = False) -> Drawing:
    """Parses a text file of YOLO for a picture of W x H pixels.

    Args:
        path: of the file.
        size: W, H.
        classes: names by number.
        keypoints: whether lines have keypoints in place of an outline.

    Raises:
        InputError, ValueError: it is not one, or a line is malformed; names the line.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}).") from None
    except UnicodeDecodeError:
        raise ValueError("is no text of YOLO") from None
    objects: list[Drawn] = []
    left_out: collections.Counter[str] = collections.Counter()
    for number, line in enumerate(text.splitlines(), start=1):
        if not (words := line.split()):
            continue
        try:
            kind, *shares = map(float, words)
        except ValueError:
            raise ValueError(f"line {number} is not a class and the numbers of an outline") from None
        if not all(map(math.isfinite, (kind, *shares))) or kind != int(kind) or kind < 0:
            raise ValueError(f"line {number} is not a class and the numbers of an outline")
        if len(shares) == 4:
            left_out["rectangles without a mask"] += 1
            continue
        if keypoints:
            left_out["keypoints without a mask"] += 1
            continue
        if len(shares) % 2 or len(shares) < 6:
            raise ValueError(f"line {number} has {len(shares)} numbers after the class, not three or more pairs")
        if not all(-FAR <= share <= 1 + FAR for share in shares):
            raise ValueError(f"line {number} has numbers that are no shares of the picture, from 0 to 1")
        outline = [share * size[place % 2] for place, share in enumerate(shares)]
        objects.append(Drawn([outline], number, classes.get(int(kind), str(int(kind)))))
    return Drawing(objects, left_out)
