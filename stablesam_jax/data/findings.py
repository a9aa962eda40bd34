"""Findings about a data set: faults, and hints at what may be wrong.

Readers do not raise for a single file. They collect findings, and the caller decides: a fault stops training and
evaluation, or leaves out its picture with the option for that; a hint becomes a warning.
"""

import collections
import dataclasses
import pathlib
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, NamedTuple

from stablesam_jax.errors import InputError, InputWarning, shown

MOST_FAULTS = 5  # named in one message


class Kind(NamedTuple):
    """A kind of finding."""

    severity: Literal["fault", "hint"]
    title: str
    stops: bool = False  # whether it stops training and evaluation, unless the picture may be left out


KINDS = {  # in the order in which they are printed
    "not checked": Kind("hint", "pictures in no known layout"),
    "parts": Kind("hint", "folders of several parts"),
    "left out": Kind("hint", "annotations that are left out"),
    "crowds": Kind("hint", "crowds, which are no objects"),
    "brush": Kind("hint", "masks of a brush that are marked as crowds"),
    "no object": Kind("hint", "pictures without an object"),
    "turned": Kind("hint", "pictures that are turned by their EXIF data, unlike their masks"),
    "bits": Kind("hint", "pictures of 16 bits whose values need fewer"),
    "frames": Kind("hint", "pictures of several frames or pages"),
    "pieces": Kind("hint", "several large pieces under one number"),
    "equal masks": Kind("hint", "masks equal to that of another picture"),
    "groups": Kind("hint", "names in groups.json that no picture has"),
    "picture": Kind("fault", "pictures that cannot be read", stops=True),
    "mask": Kind("fault", "masks that cannot be used", stops=True),
    "suffix": Kind("fault", "files of one name", stops=True),
    "no mask": Kind("fault", "pictures without a mask", stops=True),
    "no picture": Kind("fault", "masks without a picture"),
    "size": Kind("fault", "masks of another size than their picture", stops=True),
    "whole": Kind("fault", "masks that cover the whole picture"),
    "inverted": Kind("fault", "masks that seem to be inverted"),
    "duplicate": Kind("fault", "pictures that are there twice"),
    "twin": Kind("fault", "pictures that are in --against too"),
}


@dataclasses.dataclass(frozen=True)
class Finding:
    """A fault of one file, or a hint about it."""

    kind: str  # key of KINDS
    source: str  # name of the data set
    picture: str  # name of the picture, or of the set
    file: pathlib.Path
    text: str  # one line: what is wrong, and what to do
    other: pathlib.Path | None = None  # of a duplicate, the file that it equals

    @property
    def severity(self) -> str:
        """ "fault" or "hint"."""
        return KINDS[self.kind].severity

    @property
    def line(self) -> str:
        """File and text in one line, escaped for any terminal."""
        return shown(f"{self.file}: {self.text}")


Findings = list[Finding]


def tell(findings: Iterable[Finding]) -> None:
    """Raises an error for findings that stop a command, and warns about the others.

    Raises:
        InputError: a finding stops the command; one line with the first ones.
    """
    findings = list(findings)
    refuse([finding.line for finding in findings if KINDS[finding.kind].stops])
    groups = collections.defaultdict(list)
    for finding in findings:
        groups[finding.source, finding.kind].append(finding.line)
    for (source, _), (first, *more) in groups.items():
        text = f"{first.rstrip('.')} ({len(more) + 1:,} such in {source})." if more else first
        warnings.warn(InputWarning(text), stacklevel=2)


def refuse(faults: Sequence[str]) -> None:
    """Raises one error for all faults, if there are any.

    Raises:
        InputError: one line with the first few.
    """
    if faults:
        reasons = [fault.rstrip(".") for fault in faults[:MOST_FAULTS]]
        more = f"; and {len(faults) - MOST_FAULTS} more" if len(faults) > MOST_FAULTS else ""
        raise InputError("; ".join(reasons) + more + ".")


def cannot_be_read(kind: str, source: str, picture: str, file: pathlib.Path, error: InputError) -> Finding:
    """Turns the error of reading a file into a finding."""
    return Finding(kind, source, picture, file, str(error).removeprefix(f"{shown(file)}: "))


def left_out(source: str, file: pathlib.Path, counts: Mapping[str, int]) -> Findings:
    """A hint with the annotations of a file or folder that are left out, counted by kind; none if there are none."""
    shares = ", ".join(f"{what} {count:,}" for what, count in counts.items() if count)
    return [Finding("left out", source, source, file, f"left out: {shares}.")] if shares else []
