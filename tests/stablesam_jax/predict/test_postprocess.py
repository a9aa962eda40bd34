"""Logits return to the picture as in segment_anything."""

import jax
import numpy as np
import pytest
import torch

from stablesam_jax.config import Frame
from stablesam_jax.predict import postprocess
from stablesam_jax.predict.postprocess import padded_side, upscale_logits, upscale_masks
from stablesam_jax.predict.preprocess import resized_size

SIZES = [(333, 500), (1501, 2003), (3, 2000), (683, 1501), (1024, 1024), (37, 50)]


@pytest.mark.parametrize("image_size", [1024, 512])
@pytest.mark.parametrize("size_hw", SIZES)
def test_logits_return_to_the_picture_as_postprocess_masks_brings_them(size_hw, image_size):
    low_res = 8 * np.random.default_rng(0).standard_normal((2, image_size // 4, image_size // 4), np.float32)

    def interpolate(x, size):
        return torch.nn.functional.interpolate(x, size, mode="bilinear", align_corners=False)

    height, width = resized_size(size_hw, Frame(image_size))
    square = interpolate(torch.from_numpy(low_res)[None], (image_size, image_size))
    theirs = interpolate(square[..., :height, :width], size_hw)[0].numpy()

    ours = upscale_logits(low_res, size_hw, Frame(image_size))

    assert ours.shape == (2, *size_hw)
    assert ours.dtype == np.float32
    # The bounds of full-resolution logits. PyTorch itself is 1e-4 deviations off exact arithmetic here.
    difference = np.abs(ours - theirs) / theirs.std()
    assert difference.max() <= 1.5e-4
    assert np.sqrt(np.mean(difference**2)) <= 1.5e-5


@pytest.mark.parametrize("size_hw", [(333, 500), (683, 1501), (100, 37), (256, 256)])
def test_sam_2_resizes_logits_to_the_picture_at_once(size_hw):
    low_res = 8 * np.random.default_rng(0).standard_normal((2, 256, 256), np.float32)
    theirs = torch.nn.functional.interpolate(
        torch.from_numpy(low_res)[None], size_hw, mode="bilinear", align_corners=False
    )[0]
    ours = upscale_logits(low_res, size_hw, Frame(1024, stretched=True))
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-5)
    np.testing.assert_array_equal(upscale_masks(low_res, size_hw, Frame(1024, stretched=True)), ours > 0)


def test_constant_logits_stay_constant():
    np.testing.assert_allclose(
        upscale_logits(np.full((1, 128, 128), 3.0, np.float32), (77, 50), Frame(512)), 3.0, rtol=1e-6
    )


def test_leading_axes_are_kept():
    assert upscale_logits(np.zeros((2, 3, 1, 128, 128), np.float32), (20, 30), Frame(512)).shape == (2, 3, 1, 20, 30)


@pytest.mark.parametrize("size_hw", [(300, 451), (1201, 700)])
def test_masks_are_the_logits_above_0_to_the_bit(size_hw):
    low_res = np.random.default_rng(0).integers(-3, 4, (2, 1, 64, 64)).astype(np.float32)  # many pixels come near 0
    masks = upscale_masks(low_res, size_hw, Frame(256))
    assert masks.dtype == bool
    np.testing.assert_array_equal(masks, upscale_logits(low_res, size_hw, Frame(256)) > 0)


def test_a_mask_of_a_large_picture_takes_little_more_memory_than_itself():
    rows, columns = postprocess.upscaling_axes((3000, 4000), mask_size=256, frame=Frame(1024))
    program = postprocess.padded_mask.lower(jax.ShapeDtypeStruct((256, 256), np.float32), rows, columns).compile()
    memory = program.memory_analysis()
    assert memory.output_size_in_bytes == 3072 * 4096
    assert memory.temp_size_in_bytes < 3072 * 4096  # float logits would be 4 times as large


@pytest.mark.parametrize("size_hw", [(1, 1), (1, 5000), (5000, 1)])
def test_logits_become_a_picture_of_a_line_or_a_pixel(size_hw):
    assert upscale_masks(np.ones((1, 256, 256), np.float32), size_hw, Frame(1024)).shape == (1, *size_hw)


@pytest.mark.parametrize("size_hw", [(333, 500), (3, 2000), (2000, 3), (37, 50), (1501, 2003), (1, 1)])
@pytest.mark.parametrize("image_size", [1024, 512])
def test_three_neighbouring_logits_make_one_of_the_picture(size_hw, image_size):
    sizes = {"mask_size": image_size // 4, "frame": Frame(image_size)}
    matrices, axes = postprocess.upscaling_matrices(size_hw, **sizes), postprocess.upscaling_axes(size_hw, **sizes)
    for matrix, axis in zip(matrices, axes, strict=True):
        rebuilt = np.zeros((len(axis.first), matrix.shape[1]), np.float32)
        np.put_along_axis(rebuilt, np.asarray(axis.first)[:, None] + np.arange(3), np.asarray(axis.weights), axis=1)
        np.testing.assert_array_equal(rebuilt[: len(matrix)], matrix)
        assert not rebuilt[len(matrix) :].any()
        assert np.asarray(axis.inside).sum() == len(matrix)


def test_a_padded_side_beyond_512_is_a_fourth_longer_at_most_and_there_are_few_of_them():
    sides = {side: padded_side(side) for side in range(1, 8193)}
    assert all(side <= padded <= 1.25 * side for side, padded in sides.items() if side > 512)
    assert all(padded % postprocess.BLOCK_ROWS == 0 for padded in sides.values())
    assert len(set(sides.values())) == 20  # eight up to 1,024, then four for each doubling


def test_masks_of_similar_sizes_share_a_program(monkeypatch):
    traced = []
    by_rows = postprocess.by_rows
    monkeypatch.setattr(postprocess, "by_rows", lambda *arguments: traced.append(None) or by_rows(*arguments))
    postprocess.padded_mask.clear_cache()
    for count, size_hw in ((1, (200, 130)), (5, (256, 255))):
        upscale_masks(np.ones((count, 64, 64), np.float32), size_hw, Frame(256))
        assert len(traced) == 1
