"""ResizeLongestSide does what the official one does, to pictures, coordinates and boxes, arrays and tensors."""

import numpy as np
import pytest
import torch

from eval.parity import torch_sam
from stablesam_jax.compat import ResizeLongestSide

SIZES = [(333, 500), (500, 333), (48, 64), (31, 17), (64, 64), (1, 200)]
RNG = np.random.default_rng(0)


@pytest.fixture(params=SIZES, ids=str)
def size(request):
    return request.param


def pair(length=64):
    return ResizeLongestSide(length), torch_sam.ResizeLongestSide(length)


def test_pictures_are_resized_to_the_bit(size):
    ours, theirs = pair()
    picture = RNG.integers(0, 256, (*size, 3), np.uint8)
    if min(theirs.get_preprocess_shape(*size, 64)) == 0:  # for which the official code has no pixel left
        assert ours.apply_image(picture).shape == (1, 64, 3)
        return
    np.testing.assert_array_equal(ours.apply_image(picture), theirs.apply_image(picture))
    assert ours.get_preprocess_shape(*size, 64) == theirs.get_preprocess_shape(*size, 64)


def test_coordinates_and_boxes_are_moved_to_the_bit(size):
    ours, theirs = pair()
    if min(theirs.get_preprocess_shape(*size, 64)) == 0:
        return
    coords = RNG.uniform(0, 300, (3, 5, 2))
    before = coords.copy()
    np.testing.assert_array_equal(ours.apply_coords(coords, size), theirs.apply_coords(coords, size))
    np.testing.assert_array_equal(coords, before)
    boxes = RNG.integers(0, 300, (4, 4))
    for given in (boxes, boxes[0], boxes[:0]):
        moved = ours.apply_boxes(given, size)
        np.testing.assert_array_equal(moved, theirs.apply_boxes(given, size))
        assert moved.dtype == np.float64
    for name, given in (
        ("apply_coords_torch", torch.from_numpy(coords)),
        ("apply_boxes_torch", torch.from_numpy(boxes)),
    ):
        mine, yours = getattr(ours, name)(given, size), getattr(theirs, name)(given, torch.Size(size))
        assert torch.equal(mine, yours)
        assert mine.dtype == torch.float32


@pytest.mark.parametrize("size", [(40, 64), (64, 40), (100, 130), (20, 20)], ids=str)
def test_tensors_of_pictures_are_resized_as_interpolate_does_it(size):
    ours, _ = pair()
    pictures = torch.from_numpy(RNG.uniform(0, 255, (2, 3, *size)).astype(np.float32))
    resized = ours.apply_image_torch(pictures)
    expected = torch.nn.functional.interpolate(
        pictures, ours.get_preprocess_shape(*size, 64), mode="bilinear", align_corners=False, antialias=True
    )
    torch.testing.assert_close(resized, expected, atol=1e-3, rtol=0)  # of 255: float32, sums in another order
    assert ours.apply_image_torch(pictures.numpy()).shape == tuple(expected.shape)
    assert isinstance(ours.apply_image_torch(pictures.numpy()), np.ndarray)
