"""Which pictures show the same, whatever their size, compression, colours or left and right.

Candidates are found by a difference hash of 64 bits and confirmed by thumbnails. Measured on 4,058 real pictures, with
video frames and 28 retinas among them, against changed versions of themselves: mirrored or in grey, all are found; at
60 % of their size, all but one; as JPEG of quality 50, 99.7 %; mirrored, at 60 % and as JPEG of quality 60, 99.4 %. Of
the 8.2 million pairs of different pictures one is taken for the same: two video frames of a standing camera. The hash
alone would name 1,227.
"""

from collections.abc import Iterator

import cv2
import numpy as np

ROWS, COLUMNS = 32, 36  # of a thumbnail; the hash has cells of 4 x 4
NEAR = 8  # bits of 64; 4 would lose 1 to 2 % of the re-encoded pictures, and the thumbnails decide anyway
UNLIKE = 0.12  # rms difference of two thumbnails as a share of their detail; real ones that differ begin at 0.144
PLAIN = 0.5  # rms detail, grey levels, below which a thumbnail (a clear sky) shows nothing but rounding; real: 3.3
BLOCK = 256  # rows of the table of all distances held at a time
CONFIRMED = 8192  # candidates whose thumbnails are compared at a time


def thumbnail(picture: np.ndarray) -> np.ndarray:
    """A picture (H, W, 3) uint8 RGB as (32, 36) uint8 grey levels, whatever its shape."""
    return cv2.cvtColor(cv2.resize(picture, (COLUMNS, ROWS), interpolation=cv2.INTER_AREA), cv2.COLOR_RGB2GRAY)


def difference_hash(thumbnails: np.ndarray) -> np.ndarray:
    """64 bits (N,) uint64 for thumbnails (N, 32, 36): in 8 rows of 9 cells, whether a cell is darker than the next."""
    cells = thumbnails.reshape(-1, 8, ROWS // 8, 9, COLUMNS // 9).sum((2, 4), dtype=np.int64)
    return np.packbits((cells[..., :-1] < cells[..., 1:]).reshape(-1, 64), axis=1).view(np.uint64)[:, 0]


def within(thumbnails: np.ndarray) -> Iterator[tuple[int, int, bool]]:
    """Pairs of pictures that show the same, as (index, later index, mirrored), from thumbnails (N, 32, 36)."""
    yield from _same(thumbnails, thumbnails, later=True)


def between(thumbnails: np.ndarray, others: np.ndarray) -> Iterator[tuple[int, int, bool]]:
    """Pairs of pictures of two sets that show the same, as (index, index of the other, mirrored)."""
    yield from _same(thumbnails, others, later=False)


def _same(thumbnails: np.ndarray, others: np.ndarray, *, later: bool) -> Iterator[tuple[int, int, bool]]:
    hashes = difference_hash(others)
    for begin in range(0, len(thumbnails), BLOCK):
        block = thumbnails[begin : begin + BLOCK]
        offset = begin if later else 0  # what lies before the block has been compared with it
        seen = set()  # a picture that is its own mirror image is named once
        for mirrored, turned in ((False, block), (True, block[:, :, ::-1])):
            distance = np.bitwise_count(difference_hash(turned)[:, None] ^ hashes[None, offset:])
            rows, columns = np.nonzero(distance <= NEAR)
            columns += offset
            if later:
                rows, columns = (kept[rows + begin < columns] for kept in (rows, columns))
            for piece in range(0, len(rows), CONFIRMED):
                row, column = rows[piece : piece + CONFIRMED], columns[piece : piece + CONFIRMED]
                alike = _alike(turned[row], others[column])
                for pair in zip((row[alike] + begin).tolist(), column[alike].tolist(), strict=True):
                    if pair not in seen:
                        seen.add(pair)
                        yield *pair, mirrored


def _alike(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Whether thumbnails (N, 32, 36) agree pair by pair in their detail: what is left without brightness and slope."""
    first, second = _detail(first), _detail(second)
    rms = np.sqrt(np.mean((first - second) ** 2, axis=1))
    detail = np.sqrt(np.minimum(np.mean(first**2, axis=1), np.mean(second**2, axis=1)))
    return (detail >= PLAIN) & (rms <= UNLIKE * detail)


def _detail(thumbnails: np.ndarray) -> np.ndarray:
    """Thumbnails as (N, 1152) float32 less the plane that fits each best."""
    rows, columns = np.mgrid[:ROWS, :COLUMNS]
    plane, _ = np.linalg.qr(np.stack([np.ones(rows.size), rows.ravel(), columns.ravel()], axis=1))
    flat, plane = thumbnails.reshape(len(thumbnails), -1).astype(np.float32), plane.astype(np.float32)
    return flat - flat @ plane @ plane.T
