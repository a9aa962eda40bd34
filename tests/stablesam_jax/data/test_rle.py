"""Run lengths are COCO's: they decode to the mask, and COCO's own code reads and writes the same."""

import numpy as np
import pytest
import torch
from faster_coco_eval import mask as coco

from eval.parity import torch_sam  # noqa: F401  provides torchvision where there is none
from stablesam_jax.data import rle

from segment_anything.utils import amg  # isort: skip

RNG = np.random.default_rng(0)
MASKS = {
    "noise": RNG.random((37, 53)) > 0.5,  # differences of both signs
    "noise that begins inside": RNG.random((5, 4)) > np.eye(5, 4),
    "empty": np.zeros((3, 4), bool),
    "full": np.ones((3, 4), bool),
    "one pixel": np.ones((1, 1), bool),
    "one row": RNG.random((1, 300)) > 0.5,
    "long runs": np.pad(np.ones((3, 1000), bool), ((20, 1500), (1900, 7))),  # several groups of 5 bits
    "runs about a group's limits": np.repeat([False, True], [15, 16])[:, None] | np.eye(31, 40, dtype=bool),
}


@pytest.fixture(params=MASKS)
def mask(request):
    return MASKS[request.param]


def test_run_lengths_decode_to_the_mask(mask):
    decoded = rle.decode(rle.encode(mask))
    assert decoded.dtype == bool
    np.testing.assert_array_equal(decoded, mask)


def test_run_lengths_are_those_of_segment_anything(mask):
    assert rle.encode(mask) == amg.mask_to_rle_pytorch(torch.from_numpy(mask)[None])[0]


def test_the_compressed_form_is_that_of_coco(mask):
    ours = rle.compress(rle.encode(mask))
    theirs = coco.encode(np.asfortranarray(mask, np.uint8))
    assert ours["counts"] == theirs["counts"].decode("ascii")
    assert ours["size"] == list(theirs["size"])


def test_coco_decodes_the_compressed_form_to_the_mask(mask):
    np.testing.assert_array_equal(coco.decode(rle.compress(rle.encode(mask))) == 1, mask)


def test_pixels_are_counted_down_the_columns():
    assert rle.encode(np.array([[0, 1, 0], [0, 1, 1]], bool)) == {"size": [2, 3], "counts": [2, 2, 1, 1]}


def test_a_mask_that_begins_inside_begins_with_a_run_of_nothing():
    assert rle.encode(np.array([[1, 0]], bool))["counts"] == [0, 1, 1]


@pytest.mark.parametrize("count", [15, 16, 511, 512, 2**24, 2**31])
def test_a_run_of_any_length_survives_compression(count):
    # The pixels of a 12000 x 9000 picture need 27 bits. Without pixels: COCO's code takes counts as they are.
    counts = [count, 1, 3, count + 1, 2, 1, count]
    expected = coco.frPyObjects({"size": [1, sum(counts)], "counts": counts}, 1, sum(counts))
    assert rle.compress({"size": [1, 1], "counts": counts})["counts"] == expected["counts"].decode("ascii")
