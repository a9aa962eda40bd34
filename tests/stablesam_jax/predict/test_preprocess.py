"""Pictures enter the model as in segment_anything."""

import numpy as np
import pytest
import torch
from PIL import Image

from eval.parity import torch_sam
from stablesam_jax.config import MODELS, Frame
from stablesam_jax.errors import InputError
from stablesam_jax.predict.preprocess import antialiased, check_picture, preprocess, resized_size, to_model_frame

SAM = MODELS["sam_vit_b"]
SAM2 = MODELS["sam2_hiera_t"]
SIZES = [(333, 500), (1501, 2003), (3, 2000), (683, 1501), (1024, 1024), (37, 50)]


def picture(size_hw):
    return np.random.default_rng(0).integers(0, 256, (*size_hw, 3), np.uint8)


@pytest.mark.parametrize(
    ("size_hw", "expected"),
    [
        ((333, 500), (682, 1024)),
        ((1500, 2250), (683, 1024)),  # 682.67: up
        ((1025, 1024), (1024, 1023)),
        ((3, 2048), (2, 1024)),  # 1.5: a half goes up; Python's round would too
        ((5, 2048), (3, 1024)),  # 2.5: a half goes up; Python's round would not
        ((1, 5000), (1, 1024)),  # the official code makes this 0 and fails
    ],
)
def test_longer_side_becomes_the_model_size_and_halves_go_up(size_hw, expected):
    assert resized_size(size_hw, Frame(1024)) == expected


@pytest.mark.parametrize("size_hw", SIZES)
def test_pixels_are_resized_by_pillow_then_normalised_then_padded_with_zeros(size_hw):
    height, width = resized_size(size_hw, Frame(1024))
    resized = torch.from_numpy(np.array(Image.fromarray(picture(size_hw)).resize((width, height), Image.BILINEAR)))
    normalised = (resized - torch.tensor(SAM.pixel_mean)) / torch.tensor(SAM.pixel_std)

    ours = preprocess(picture(size_hw), SAM)

    assert ours.shape == (1024, 1024, 3)
    assert ours.dtype == np.float32
    np.testing.assert_array_equal(ours[:height, :width], normalised.numpy())
    assert not ours[height:].any()
    assert not ours[:, width:].any()


@pytest.mark.parametrize("size_hw", SIZES)
def test_sam_2_stretches_pictures_in_float32_as_torchvision_does(size_hw):
    pixels = torch.from_numpy(picture(size_hw)).permute(2, 0, 1).float().div(255)
    resized = torch.nn.functional.interpolate(
        pixels[None], size=(1024, 1024), mode="bilinear", align_corners=False, antialias=True
    )[0]
    mean, std = (torch.tensor(three)[:, None, None] for three in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))

    ours = preprocess(picture(size_hw), SAM2)

    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours, ((resized - mean) / std).permute(1, 2, 0), rtol=0, atol=2e-6)


def test_positions_rounded_to_float32_matter():
    noise = np.random.default_rng(0).random((1, 1501, 1), np.float32)
    exact = np.array([resized_exactly(noise[0, :, 0].astype(np.float64), 683)])[..., None]
    assert np.abs(antialiased(noise, 683, axis=1) - exact).max() > 1e-5


def resized_exactly(line, size):
    scale = len(line) / size
    distance = np.abs((np.arange(len(line)) + 0.5) - scale * (np.arange(size) + 0.5)[:, None]) / scale
    weights = np.maximum(1 - distance, 0)
    return weights / weights.sum(axis=1, keepdims=True) @ line


@pytest.mark.parametrize(
    "wrong",
    [
        pytest.param(np.zeros((4, 4, 3), np.float32), id="float"),
        pytest.param(np.zeros((4, 4), np.uint8), id="grey"),
        pytest.param(np.zeros((4, 4, 4), np.uint8), id="alpha"),
        pytest.param(np.zeros((0, 4, 3), np.uint8), id="empty"),
    ],
)
def test_another_shape_or_dtype_is_refused_by_name(wrong):
    with pytest.raises(InputError, match=rf"shape \({wrong.shape[0]}, .* dtype {wrong.dtype}.*expected \(H, W, 3\)"):
        preprocess(wrong, SAM)


def test_coordinates_scale_by_the_rounded_sizes():
    # 333 x 500 becomes 682 x 1024, though 333 * 1024 / 500 is 681.98.
    corner = to_model_frame(np.array([[500, 333], [0, 0]]), (333, 500), Frame(1024))
    np.testing.assert_array_equal(corner, np.float32([[1024, 682], [0, 0]]))


def test_coordinates_are_rounded_to_float32_only_after_scaling():
    x = 1234.567
    moved = to_model_frame(np.array([x, x]), (1501, 2003), Frame(1024))
    np.testing.assert_array_equal(moved, np.array([x * (1024 / 2003), x * (767 / 1501)], np.float32))
    assert moved.dtype == np.float32


def test_the_resized_size_is_the_references_for_every_picture():
    theirs = torch_sam.ResizeLongestSide.get_preprocess_shape
    sizes = [(height, width) for height in range(900, 1101) for width in range(900, 1101)]
    sizes += [(1960, 2130), (2130, 1960), (1960, 2145), (2145, 1960), (2800, 4400), (4400, 2800)]
    ours = {size: resized_size(size, Frame(1024)) for size in sizes}
    assert ours == {size: theirs(*size, 1024) for size in sizes}
    cut = {size: int(size[0] * (1024 / max(size))) for size in sizes}  # a side that is cut instead of rounded
    assert np.mean([cut[size] != ours[size][0] for size in sizes]) > 0.2


@pytest.mark.parametrize("size_hw", [(1960, 2130), (2145, 1960), (2800, 4400), (1013, 1100), (900, 901)])
def test_the_models_input_is_the_references_to_the_bit(size_hw):
    resize = torch_sam.ResizeLongestSide(1024)
    resized = torch.from_numpy(resize.apply_image(picture(size_hw)))
    normalised = (resized - torch.tensor(SAM.pixel_mean)) / torch.tensor(SAM.pixel_std)
    ours = preprocess(picture(size_hw), SAM)
    np.testing.assert_array_equal(ours[: len(resized), : resized.shape[1]], normalised.numpy())


@pytest.mark.parametrize(
    "wrong",
    [
        pytest.param(np.linspace(0, 1, 36, dtype=np.float32).reshape(3, 4, 3), id="float-0-to-1"),
        pytest.param(np.linspace(0, 255, 36).reshape(3, 4, 3), id="float-0-to-255"),
        pytest.param(np.linspace(0, 65535, 36).reshape(3, 4, 3).astype(np.uint16), id="16-bit"),
        pytest.param(np.linspace(0, 4095, 36).reshape(3, 4, 3).astype(np.uint16), id="12-of-16-bit"),
        pytest.param(np.arange(36).reshape(3, 4, 3), id="int64"),
        pytest.param(np.eye(6, dtype=bool).reshape(3, 4, 3), id="bool"),
        pytest.param(np.full((3, 4), 9, np.uint8), id="grey"),
        pytest.param(np.full((3, 4, 1), 9, np.uint8), id="grey-channel"),
        pytest.param(np.full((3, 4, 4), 9, np.uint8), id="alpha"),
        pytest.param(np.full((3, 4, 5), 9, np.uint8), id="channels-first"),
        pytest.param(Image.new("P", (4, 3)), id="Pillow"),
    ],
)
def test_what_the_refusal_says_makes_a_picture_of_it(wrong):
    with pytest.raises(InputError) as caught:
        check_picture(wrong)
    remedy = str(caught.value).rpartition(": ")[2].removesuffix(".")
    mended = eval(remedy, {"np": np, "picture": wrong})
    check_picture(mended)
    if isinstance(wrong, np.ndarray) and wrong.dtype != np.uint8 and wrong.dtype.kind != "i":
        assert mended.max() == 255  # white stays white


@pytest.mark.parametrize("size_hw", [(1, 1), (1, 5000), (5000, 1)])
def test_a_picture_of_a_line_or_a_pixel_is_taken(size_hw):
    assert preprocess(picture(size_hw), SAM).shape == (1024, 1024, 3)
