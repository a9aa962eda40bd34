"""Masks as run lengths, in the two forms of COCO (cocoapi, `common/maskApi.c`).

Pixels are counted column by column. The first run is background, so a mask whose first pixel is foreground begins with
a run of 0.
"""

from typing import TypedDict

import numpy as np

_GROUP_BITS = 5  # of one character; the sixth says that more follow
_GROUPS = 7  # characters of the longest run: 35 bits


class RunLengths(TypedDict):
    """The uncompressed form."""

    size: list[int]  # [H, W]
    counts: list[int]  # lengths of background and foreground runs in turn


class CompressedRunLengths(TypedDict):
    """The compressed form, as pycocotools reads it once `counts` are bytes, and JSON as they are."""

    size: list[int]  # [H, W]
    counts: str


def encode(mask: np.ndarray) -> RunLengths:
    """Run lengths of a mask.

    Args:
        mask: (H, W) bool, with at least one pixel.

    Returns:
        Equal to segment_anything's `mask_to_rle_pytorch`.

    >>> encode(np.array([[False, True], [False, True]]))
    {'size': [2, 2], 'counts': [2, 2]}
    """
    pixels = mask.ravel(order="F")
    changes = np.flatnonzero(pixels[1:] != pixels[:-1]) + 1
    starts = np.concatenate([[0] * (1 + int(pixels[0])), changes])
    return {"size": list(mask.shape), "counts": np.diff(starts, append=pixels.size).tolist()}


def decode(run_lengths: RunLengths) -> np.ndarray:
    """The mask of run lengths: (H, W) bool."""
    counts = run_lengths["counts"]
    pixels = np.repeat(np.arange(len(counts)) % 2 == 1, counts)
    return pixels.reshape(run_lengths["size"], order="F")


def compress(run_lengths: RunLengths) -> CompressedRunLengths:
    """The compressed form.

    From the fourth on, a count is replaced by its difference to the last but one, which is that of the same kind. Each
    is written as two's complement in groups of 5 bits, the lowest first, as many as its sign needs.
    """
    counts = np.array(run_lengths["counts"], np.int64)
    numbers = counts.copy()
    numbers[3:] -= counts[1:-2]
    shifts = _GROUP_BITS * np.arange(_GROUPS)
    # A group is followed by another unless what is left of the number is its sign alone.
    follows = (numbers[:, None] >> (shifts + _GROUP_BITS - 1)) != np.where(numbers < 0, -1, 0)[:, None]
    written = np.concatenate([np.ones_like(follows[:, :1]), follows[:, :-1]], axis=1)
    groups = (numbers[:, None] >> shifts) & (2**_GROUP_BITS - 1) | (follows << _GROUP_BITS)
    return {"size": run_lengths["size"], "counts": (groups + 48)[written].astype(np.uint8).tobytes().decode("ascii")}
