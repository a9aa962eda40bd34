"""Masks as Label Studio's brush stores them (label-studio-sdk, `converter/brush.py`; thi.ng's rle-pack).

A stream of bits: the number of values (32 bits), bits of a value less one (5), and of four run sizes less one (4 each).
Runs follow: a bit that is 1 if all its values are equal, the index of its size (2), its length less one (that size),
and one value, or each of them. A mask is four values for each pixel (RGBA), in row-major order; alpha counts.
"""

from collections.abc import Sequence

import numpy as np

VALUE_BITS = 8
SIZES = (3, 4, 8, 16)  # bits of a run's length
LONGEST = 1 << SIZES[-1]  # values in a run
HEADER = (32, 5, 4, 4, 4, 4)  # bits of the fields before the first run
CHANNELS = 4


def encode(mask: np.ndarray) -> list[int]:
    """Encodes a mask.

    Args:
        mask: (H, W) bool, with at least one pixel.

    Returns:
        bytes, equal to those of the SDK's `mask2rle(255 * mask)`.
    """
    pixels = mask.ravel()
    starts = np.concatenate([[0], np.flatnonzero(pixels[1:] != pixels[:-1]) + 1])
    lengths = CHANNELS * np.diff(starts, append=pixels.size)
    # The SDK splits a run after each LONGEST values, and leaves at least one for the last part.
    parts = -(-lengths // LONGEST)
    split = np.full(parts.sum(), LONGEST)
    split[np.cumsum(parts) - 1] = lengths - LONGEST * (parts - 1)
    values = np.repeat(np.where(pixels[starts], 255, 0), parts)
    index = np.searchsorted(1 << np.array(SIZES), split)
    widths = np.stack([np.full(len(split), 3), np.array(SIZES)[index], np.full(len(split), VALUE_BITS)], axis=1)
    runs = np.stack([4 + index, split - 1, values], axis=1)  # 4: the bit of a run of equal values
    fields = [CHANNELS * pixels.size, VALUE_BITS - 1, *(size - 1 for size in SIZES)]
    bits = np.concatenate([_bits(np.array(fields), np.array(HEADER)), _bits(runs.ravel(), widths.ravel())])
    padded = np.pad(bits, (0, 8 - len(bits) % 8))  # as the SDK: a whole byte where none is needed
    return np.packbits(padded).tolist()


def decode(rle: Sequence[int], size_hw: tuple[int, int]) -> np.ndarray:
    """Decodes a mask.

    Args:
        rle: bytes of Label Studio's `value.rle`.
        size_hw: height and width, `original_height` and `original_width`.

    Returns:
        (H, W) bool, where alpha is above 0.

    Raises:
        ValueError: the stream is cut short, or of another size.
    """
    bits = np.unpackbits(np.array(rle, np.uint8))
    weights = 1 << np.arange(31, -1, -1, dtype=np.int64)
    place = 0

    def read(width: int) -> int:
        nonlocal place
        field = bits[place : place + width]
        if len(field) < width:
            raise ValueError("the run lengths are cut short")
        place += width
        return int(field @ weights[32 - width :])

    count, value_bits, *sizes = (read(width) for width in HEADER)
    height, width = size_hw
    if count != CHANNELS * height * width:
        raise ValueError(f"the run lengths are of {count // CHANNELS} pixels, not {width} x {height}")
    values = np.zeros(count, bool)
    filled = 0
    while filled < count:
        equal = read(1)
        end = min(filled + 1 + read(sizes[read(2)] + 1), count)
        if equal:
            values[filled:end] = read(value_bits + 1) > 0
        else:
            values[filled:end] = [read(value_bits + 1) > 0 for _ in range(end - filled)]
        filled = end
    return values.reshape(height, width, CHANNELS)[..., -1]


def _bits(numbers: np.ndarray, widths: np.ndarray) -> np.ndarray:
    """Concatenates the binary forms of numbers, each of its own width, most significant bit first."""
    ends = np.cumsum(widths)
    shifts = np.repeat(ends, widths) - 1 - np.arange(ends[-1])
    return (np.repeat(numbers, widths) >> shifts & 1).astype(np.uint8)
