"""Masks of a picture before the picture itself, which can then be decoded at the size that is needed."""

import functools
from collections.abc import Callable

import numpy as np

from stablesam_jax.data.readers import Joined, Pictures, Reader, Selection


def masks_first(pictures: Pictures, index: int) -> tuple[np.ndarray, Callable[[int], np.ndarray]]:
    """Masks of a picture and a function that reads it.

    Args:
        pictures: any source; one without files has the picture at once.
        index: of the picture.

    Returns:
        masks (M, H, W) bool, and reduction -> picture, see `Reader.picture`.

    Raises:
        InputError: the label cannot be read.
    """
    if isinstance(pictures, Selection):
        return masks_first(pictures.source, pictures.indices[index])
    if isinstance(pictures, Joined):
        return masks_first(*pictures.places[index])
    if isinstance(pictures, Reader):
        return pictures.label(index, None).masks, functools.partial(pictures.picture, index)
    labelled = pictures[index]
    return labelled.masks, lambda reduction: labelled.picture
