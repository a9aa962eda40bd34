"""What the record of a picture is of: digests of its files, which a resumed evaluation compares."""

import functools
import hashlib
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import numpy as np

from eval.journal import Record
from stablesam_jax.data.readers import Named, on_all_cores
from stablesam_jax.errors import InputError

Source = TypeVar("Source", bound=Named)
Identify = Callable[[Source, int], Mapping[str, str]]  # index of a picture -> `identity` of what its files hold now
TRUTH, PIXELS = "truth", "pixels"


def annotation_digest(*arrays: np.ndarray) -> str:
    """SHA-256 over the annotations of a picture: shape, dtype and bytes of each array."""
    sha = hashlib.sha256()
    for array in arrays:
        sha.update(f"{array.dtype} {array.shape}".encode())
        sha.update((np.packbits(array) if array.dtype == bool else array).tobytes())
    return sha.hexdigest()


def identity(picture: np.ndarray, *annotations: np.ndarray) -> dict[str, str]:
    """Digests of a picture and its annotations, by which a resumed evaluation notices that one has changed."""
    return {TRUTH: annotation_digest(*annotations), PIXELS: annotation_digest(picture)}


def identity_of_objects(source: Any, index: int) -> dict[str, str]:
    """The identity of a labelled picture with the masks of its objects."""
    labelled = source[index]
    return identity(labelled.picture, labelled.masks)


def check_unchanged(source: Source, identify: Identify[Source], records: Mapping[int, Record]) -> None:
    """Compares records of an earlier run with what the files hold now.

    Raises:
        InputError: one has changed.
    """
    now = on_all_cores(functools.partial(identify, source), records)
    for (index, record), entries in zip(records.items(), now, strict=True):
        if any(record.get(name) != entry for name, entry in entries.items()):
            raise InputError(
                f"{source.names[index]}: the picture or its labels have changed since this evaluation was begun. "
                "Give another --output, or the earlier files."
            )
