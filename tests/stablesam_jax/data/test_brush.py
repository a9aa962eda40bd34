"""Brush run lengths are those of Label Studio's own library, byte by byte, and come back as the mask they were."""

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from stablesam_jax.data import brush

# label_studio_sdk 2.1.2 (converter/brush.py): mask2rle(255 * mask)
RECORDED = {  # length, first 16 digits of SHA-256, first bytes
    "one pixel": (9, "d87e7df7f4007cbe", [0, 0, 0, 4, 57, 27, 252, 127, 224]),
    "a row": (12, "0c79852e5e9c5a4e", [0, 0, 0, 20, 57, 27, 252, 96, 19, 255, 206, 0]),
    "noise": (
        123,
        "3bbbdb21fe525acc",
        [0, 0, 1, 212, 57, 27, 252, 224, 19, 255, 223, 0, 143, 254, 112, 8, 255, 227, 0, 183],
    ),
    "a long run": (
        21,
        "b9e0d479f7e93099",
        [0, 3, 169, 128, 57, 27, 255, 255, 255, 0, 255, 255, 224, 31, 255, 252, 3, 212, 191, 128],
    ),
    "exactly 2**16 values": (11, "cbf970f8bde8fab6", [0, 1, 0, 0, 57, 27, 255, 255, 255, 255, 0]),
    "a block": (
        686,
        "9020c67249c126ed",
        [0, 2, 191, 32, 57, 27, 255, 94, 95, 0, 224, 99, 255, 252, 6, 60, 3, 129, 143, 255],
    ),
}

masks = arrays.arrays(bool, arrays.array_shapes(min_dims=2, max_dims=2, max_side=40), elements=st.booleans())


def drawn(name):
    rng = np.random.default_rng(3)
    return {
        "one pixel": np.ones((1, 1), bool),
        "a row": np.array([[False, True, True, False, False]]),
        "noise": rng.random((9, 13)) > 0.5,
        "a long run": np.zeros((200, 300), bool),  # 240,000 values, more than 16 bits count
        "exactly 2**16 values": np.ones((128, 128), bool),
        "a block": np.pad(np.ones((100, 200), bool), ((20, 30), (40, 60))),
    }[name]


@pytest.mark.parametrize("name", RECORDED)
def test_the_bytes_are_those_of_the_sdk(name):
    length, digest, begins = RECORDED[name]
    found = brush.encode(drawn(name))
    assert found[: len(begins)] == begins
    assert (len(found), hashlib.sha256(bytes(found)).hexdigest()[:16]) == (length, digest)


@given(masks)
def test_a_mask_comes_back(mask):
    np.testing.assert_array_equal(brush.decode(brush.encode(mask), mask.shape), mask)


def test_runs_of_different_values_are_read_too():
    # Two pixels, the second opaque: one run of 8 values, each written; sizes of 1, 2, 3 and 4 bits.
    fields = [(8, 32), (7, 5), (0, 4), (1, 4), (2, 4), (3, 4), (0, 1), (2, 2), (7, 3)]
    values = [(0, 8), (0, 8), (0, 8), (0, 8), (9, 8), (9, 8), (9, 8), (255, 8)]
    bits = "".join(f"{number:0{width}b}" for number, width in fields + values)
    stream = [int(bits[start : start + 8].ljust(8, "0"), 2) for start in range(0, len(bits), 8)]
    np.testing.assert_array_equal(brush.decode(stream, (1, 2)), [[False, True]])


def test_a_stream_of_another_size_or_cut_short_is_refused():
    stream = brush.encode(drawn("noise"))
    with pytest.raises(ValueError, match="of 117 pixels, not 10 x 13"):
        brush.decode(stream, (13, 10))
    with pytest.raises(ValueError, match="cut short"):
        brush.decode(stream[:20], (9, 13))
