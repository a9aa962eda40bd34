"""Training pictures among test pictures."""

import functools
from collections.abc import Mapping

import numpy as np

from stablesam_jax.commands import called
from stablesam_jax.data import near_duplicates
from stablesam_jax.data.readers import Pictures, on_all_cores
from stablesam_jax.errors import InputError


def refuse_leaks(training: Mapping[str, Pictures], test: Mapping[str, Pictures]) -> None:
    """Reads all pictures and compares them, see `near_duplicates`.

    Args:
        training, test: data sets by name.

    Raises:
        InputError: a test picture is a training picture too, resized, recompressed, recoloured or mirrored, say; or a
            picture cannot be read.
    """
    (names, thumbnails), (test_names, test_thumbnails) = _thumbnails(training), _thumbnails(test)
    pairs = {index: other for index, other, _ in near_duplicates.between(test_thumbnails, thumbnails)}
    if pairs:
        index, other = next(iter(pairs.items()))
        raise InputError(
            f"{len(pairs)} of {len(test_names)} test pictures are among the training pictures: {test_names[index]} "
            f"shows the same as {names[other]}. Remove them from either; "
            f"`{called('check')} TRAINING --against TEST` lists all."
        )


def _thumbnails(sources: Mapping[str, Pictures]) -> tuple[list[str], np.ndarray]:
    """Names of the pictures, and (N, 32, 36) uint8."""
    names = [name for source in sources.values() for name in source.names]
    found = [
        thumbnail
        for source in sources.values()
        for thumbnail in on_all_cores(functools.partial(_thumbnail, source), range(len(source)))
    ]
    return names, np.array(found, np.uint8).reshape(-1, near_duplicates.ROWS, near_duplicates.COLUMNS)


def _thumbnail(source: Pictures, index: int) -> np.ndarray:
    return near_duplicates.thumbnail(source[index].picture)
