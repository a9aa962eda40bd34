"""The arithmetic around the model is that of Pillow, of SamPredictor, and its own inverse."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from convert import onnx_graph
from convert.onnx_graph import (
    NOT_A_POINT,
    cropped,
    model_size,
    repeat_cells,
    resize_matrix,
    shrunk,
    to_8_bits,
    tokens_as_predicted,
)
from stablesam_jax.config import Frame
from stablesam_jax.predict.preprocess import resized_size


@pytest.mark.parametrize("size", [(333, 500), (500, 333), (1024, 683), (1, 4000), (1000, 1), (1023, 1024), (64, 64)])
@pytest.mark.parametrize("side", [1024, 512, 64])
def test_sizes_are_rounded_as_the_client_and_then_the_model_round_them(size, side):
    found = tuple(int(length) for length in model_size(*map(torch.tensor, map(float, size)), side))
    assert found == resized_size(resized_size(size, Frame(1024)), Frame(side))


@pytest.mark.parametrize(("source", "target"), [(64, 32), (57, 29), (100, 31), (20, 45), (30, 30), (7, 1)])
def test_a_picture_is_resized_as_pillow_resizes_it(source, target):
    picture = np.random.default_rng(source).integers(0, 256, (source, 40, 3), np.uint8)
    expected = Image.fromarray(picture).resize((40, target), Image.Resampling.BILINEAR)
    weights = resize_matrix(*(torch.tensor(float(size)).double() for size in (source, target)), source + 9, target + 3)
    padded = F.pad(torch.from_numpy(picture).permute(2, 0, 1).float(), (0, 0, 0, 9), value=255)
    found = to_8_bits(weights @ padded)[:, :target].permute(1, 2, 0).numpy()
    difference = np.abs(found - np.asarray(expected, np.float32))
    # Halves are rounded either way, by the rounding of the weights; there are many where the sizes' ratio is simple.
    assert difference.max() <= 1
    assert np.mean(difference > 0) < 0.05
    assert (weights[target:] == 0).all()


@pytest.mark.parametrize("times", [1, 2, 4, 16])
def test_a_mask_that_was_enlarged_comes_back(times):
    logits = 20 * torch.randn(1, 1, 9, 9, generator=torch.Generator().manual_seed(0))
    size = 9 * times
    enlarged = F.interpolate(logits, (size, size), mode="bilinear", align_corners=False)
    torch.testing.assert_close(shrunk(enlarged, times), logits, rtol=0, atol=1e-4)


def test_repeated_cells_are_read_back_exactly():
    maps = torch.randn(1, 3, 4, 4)
    repeated = repeat_cells(maps, 2)
    assert torch.equal(repeated[0, 0, :2, :2], maps[0, 0, 0, 0].expand(2, 2))
    assert torch.equal(repeated[:, :, ::2, ::2], maps)


@pytest.mark.parametrize(
    ("labels", "expected", "box"),
    [
        ([1, 0], [1, 0, -1], False),  # SamPredictor ends points with a token that is no point
        ([1, -1], [1, -1], False),
        ([1, -1, -1, -1], [1, -1], False),
        ([-1, 1, -1, 0], [1, 0, -1], False),
        ([2, 3], [2, 3], True),  # and a box without
        ([2, 3, -1], [2, 3], True),
        ([2, 3, 1, -1], [2, 3, 1], True),
        ([-1], [-1], False),
    ],
)
def test_tokens_are_those_of_sam_predictor_however_a_client_pads(labels, expected, box):
    given = torch.tensor([labels], dtype=torch.float32)
    coords = torch.arange(2.0 * len(labels)).reshape(1, -1, 2)
    found_coords, found, has_box = tokens_as_predicted(coords, given)
    assert found.tolist() == [expected]
    assert has_box.tolist() == [box]
    kept = given != NOT_A_POINT
    assert torch.equal(found_coords[found != NOT_A_POINT], coords[kept])


def test_cvats_mask_is_cropped_to_its_box_and_an_empty_one_is_a_pixel():
    logits = -torch.ones(1, 1, 6, 8)
    mask, _, *box = cropped(logits, (torch.zeros(1),))
    assert (mask.shape, int(mask.sum()), [int(edge) for edge in box]) == ((1, 1, 1, 1), 0, [0, 0, 0, 0])
    logits[0, 0, 2:5, 3] = logits[0, 0, 4, 3:7] = 1
    mask, score, *box = cropped(logits, (torch.zeros(1),))
    assert [int(edge) for edge in box] == [3, 2, 6, 4]
    assert torch.equal(mask[0, 0], (logits[0, 0, 2:5, 3:7] > 0).to(torch.uint8))
    assert score.shape == (1,)


def test_sizes_that_clients_hard_code():
    assert (onnx_graph.FRAME, onnx_graph.EMBEDDING, onnx_graph.MASKS) == (1024, 64, 256)
