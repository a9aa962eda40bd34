"""Masks as run lengths, in the two forms of COCO (cocoapi, `common/maskApi.c`).

Pixels are in column-major order. The first run is background; a mask whose first pixel is foreground begins with a run
of length 0.
"""

from typing import TypedDict

import numpy as np

_GROUP_BITS = 5  # bits of a character; the sixth bit marks that another character follows
_GROUPS = 7  # most characters of a run: 35 bits


class RunLengths(TypedDict):
    """The uncompressed form."""

    size: list[int]  # [H, W]
    counts: list[int]  # lengths of alternating background and foreground runs


class CompressedRunLengths(TypedDict):
    """The compressed form, a string as in JSON; pycocotools wants `counts` as bytes."""

    size: list[int]  # [H, W]
    counts: str


def encode(mask: np.ndarray) -> RunLengths:
    """Encodes a mask as run lengths.

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
    """Decodes run lengths to a mask (H, W) bool."""
    counts = run_lengths["counts"]
    pixels = np.repeat(np.arange(len(counts)) % 2 == 1, counts)
    return pixels.reshape(run_lengths["size"], order="F")


def compress(run_lengths: RunLengths) -> CompressedRunLengths:
    """Converts to the compressed form.

    From the fourth on, a count is replaced by its difference to the last but one, the previous run of the same kind.
    Each is written in two's complement as groups of 5 bits, lowest first, the fewest that keep its sign.
    """
    counts = np.array(run_lengths["counts"], np.int64)
    numbers = counts.copy()
    numbers[3:] -= counts[1:-2]
    shifts = _GROUP_BITS * np.arange(_GROUPS)
    # Another group follows unless the remaining bits all equal the sign bit.
    follows = (numbers[:, None] >> (shifts + _GROUP_BITS - 1)) != np.where(numbers < 0, -1, 0)[:, None]
    written = np.concatenate([np.ones_like(follows[:, :1]), follows[:, :-1]], axis=1)
    groups = (numbers[:, None] >> shifts) & (2**_GROUP_BITS - 1) | (follows << _GROUP_BITS)
    return {"size": run_lengths["size"], "counts": (groups + 48)[written].astype(np.uint8).tobytes().decode("ascii")}
