"""Traps of porting that no single module is answerable for; each wrong way is shown to be seen."""

import dataclasses

import cv2
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from PIL import Image

from eval.parity import torch_sam
from stablesam_jax.build import assemble, with_image_size
from stablesam_jax.config import MODELS, Frame
from stablesam_jax.ops.layers import Dense, mask_logits, softmax
from stablesam_jax.predict.postprocess import upscale_logits, upscale_masks
from stablesam_jax.predict.preprocess import preprocess
from tests.reference.sam_pair import CONFIG, HQ_CONFIG, SEEN, TOLERANCE, difference, float64_pair, normal, quick_jit
from tests.reference.tiers import slow

SAM = MODELS["sam_vit_b"]
PICTURE = np.random.default_rng(0).integers(0, 256, (1500, 1125, 3), np.uint8)


@pytest.fixture(scope="module")
def pair():
    with float64_pair(HQ_CONFIG) as pair:
        yield pair


def global_table(cells):
    """Our table of a global block made for a grid of 64 cells, at another size."""
    block = dataclasses.replace(CONFIG.encoder, width=16, depth=1, heads=2, global_blocks=(0,))
    config = dataclasses.replace(CONFIG, encoder=block, image_size=1024)
    params = {"image_encoder": {"blocks_0": {"attn": {"rel_pos_h": jnp.asarray(normal(127, 8))}}}}
    _, params = with_image_size(assemble(config), params, 16 * cells)
    return params["image_encoder"]["blocks_0"]["attn"]["rel_pos_h"]


@pytest.mark.parametrize("cells", [32, 96, 128])  # tables of 63, 191 and 255
def test_tables_of_relative_positions_are_resized_as_the_official_code_does(pair, cells):
    distance = np.arange(cells)[:, None] - np.arange(cells) + cells - 1
    theirs = torch_sam.modeling.image_encoder.get_rel_pos(cells, cells, torch.from_numpy(normal(127, 8)))
    assert difference(global_table(cells)[distance], theirs) < 1e-10  # positions are rounded in another order
    if cells < 64:
        smoothed = jax.image.resize(normal(127, 8), (2 * cells - 1, 8), "linear")  # JAX's default when it shrinks
        assert difference(smoothed[distance], theirs) > 0.1


@pytest.mark.parametrize("side", [192, *slow(448)])
def test_at_another_size_the_encoder_is_the_official_one_with_resized_positions(pair, side):
    # The official code resizes the tables when it runs, the absolute positions never: ours are bilinear.
    config = dataclasses.replace(HQ_CONFIG, image_size=side)
    official = torch_sam.build(config).double().requires_grad_(False)
    state = pair.official.state_dict()
    name = "image_encoder.pos_embed"
    grid = (config.grid_size, config.grid_size)
    positions = torch.nn.functional.interpolate(state[name].permute(0, 3, 1, 2), grid, mode="bilinear")
    for block, trained in zip(official.image_encoder.blocks, pair.official.image_encoder.blocks, strict=True):
        block.attn.rel_pos_h, block.attn.rel_pos_w = trained.attn.rel_pos_h, trained.attn.rel_pos_w
    official.load_state_dict(state | {name: positions.permute(0, 2, 3, 1)})

    sam, params = with_image_size(assemble(HQ_CONFIG), pair.params, side)
    picture = normal(1, side, side, 3)
    ours = quick_jit(lambda params: sam.apply({"params": params}, picture, method="encode"))(params)
    theirs, early = official.image_encoder(torch.from_numpy(picture).permute(0, 3, 1, 2))
    assert difference(ours.features, theirs.permute(0, 2, 3, 1)) < 1e-10
    assert difference(ours.early, early[0]) < 1e-10
    assert difference(ours.early, early[1]) > SEEN  # HQ-SAM takes the first global block, not a later one


def test_the_official_model_never_resizes_absolute_positions():
    state = torch_sam.build(CONFIG).state_dict()
    with pytest.raises(RuntimeError, match=r"size mismatch for image_encoder\.pos_embed"):
        torch_sam.build(dataclasses.replace(CONFIG, image_size=192)).load_state_dict(state)


def test_a_square_matrix_that_is_not_transposed_is_seen(pair):
    x = normal(3, 8, seed=1)
    linear = torch.nn.Linear(8, 8).double().requires_grad_(False)
    theirs, weight, bias = linear(torch.from_numpy(x)), linear.weight.numpy(), linear.bias.numpy()
    assert difference(Dense(8).apply({"params": {"kernel": weight.T, "bias": bias}}, x), theirs) < TOLERANCE
    assert difference(Dense(8).apply({"params": {"kernel": weight, "bias": bias}}, x), theirs) > SEEN


def test_weights_of_attention_sum_to_one_in_bfloat16():
    logits = jnp.asarray(normal(64, 4096), jnp.bfloat16)

    def error(weights):
        return np.abs(np.asarray(weights, np.float64).sum(-1) - 1).max()

    # Each weight is rounded to 8 bits; the errors of 4,096 nearly cancel. JAX's own softmax sums in bfloat16.
    assert error(softmax(logits, logits.dtype)) < 1e-3
    assert error(nn.softmax(logits)) > 3e-3


def test_masks_are_summed_in_float32_whatever_the_features_are():
    weights, features = (
        jnp.asarray(normal(1, 1, 1, 32), jnp.bfloat16),
        jnp.asarray(normal(1, 1, 3, 3, 2, 2, 2, 2, 32), "bfloat16"),
    )
    exact = np.einsum("c,hwijklc->hikwjl", np.float64(weights[0, 0, 0]), np.float64(features[0, 0])).reshape(12, 12)
    ours = mask_logits(weights, features)
    assert ours.dtype == jnp.float32
    assert np.abs(np.float64(ours[0, 0, 0]) - exact).max() < 1e-5
    assert np.abs(np.float64(ours[0, 0, 0].astype(jnp.bfloat16)) - exact).max() > 1e-3


# Before the network.


def other_input(resized):
    """The model's input from another way of resizing."""
    height, width = resized.shape[:2]
    padded = np.zeros((1024, 1024, 3), np.float32)
    padded[:height, :width] = (np.float32(resized) - np.float32(SAM.pixel_mean)) / np.float32(SAM.pixel_std)
    return padded


def resize(picture):
    return np.asarray(Image.fromarray(picture).resize((768, 1024), Image.Resampling.BILINEAR))


def test_only_pillows_way_of_resizing_gives_the_models_input():
    ours = preprocess(PICTURE, SAM)
    np.testing.assert_array_equal(ours, other_input(resize(PICTURE)))
    ways = {
        "opencv": cv2.resize(PICTURE, (768, 1024), interpolation=cv2.INTER_LINEAR),
        "area": cv2.resize(PICTURE, (768, 1024), interpolation=cv2.INTER_AREA),
        "float, rounded once": np.round(jax.image.resize(np.float32(PICTURE), (1024, 768, 3), "linear")),
    }
    for way, resized in ways.items():
        assert np.mean(other_input(resized) != ours) > 0.02, way


def test_padding_is_the_mean_colour_not_black():
    padded = np.zeros((1024, 1024, 3), np.uint8)
    padded[:, :768] = resize(PICTURE)
    ours = preprocess(PICTURE, SAM)
    assert (ours[:, 768:] == 0).all()
    assert (other_input(padded)[:, 768:] < -1.7).all()


def test_channels_are_red_first():
    red = np.zeros((8, 8, 3), np.uint8)
    red[..., 0] = 255
    pixel = preprocess(red, SAM)[4, 4]
    np.testing.assert_allclose(pixel, [2.2489, -2.0357, -1.8044], atol=1e-4)


# After it.


def official_masks(low_res, size_hw):
    interpolate = torch.nn.functional.interpolate
    square = interpolate(torch.from_numpy(low_res)[None], (1024, 1024), mode="bilinear")
    return interpolate(square[..., :768], size_hw, mode="bilinear")[0].numpy()


@pytest.mark.parametrize("size_hw", [(300, 225), (1500, 1125)])
def test_logits_are_resized_twice_without_antialiasing(size_hw):
    low_res = 8 * np.random.default_rng(0).standard_normal((1, 256, 256), np.float32)
    theirs = official_masks(low_res, size_hw)
    bound = 1.5e-4 * theirs.std()
    assert np.abs(upscale_logits(low_res, size_hw, Frame(1024)) - theirs).max() < bound
    once = cv2.resize(low_res[0, :, :192], size_hw[::-1], interpolation=cv2.INTER_LINEAR)
    assert np.abs(once - theirs[0]).max() > 100 * bound
    if size_hw[0] < 1024:
        square = jax.image.resize(low_res[0], (1024, 1024), "linear")
        smoothed = jax.image.resize(square[:, :768], size_hw, "linear")  # JAX's default antialiases
        assert np.abs(smoothed - theirs[0]).max() > 100 * bound


def test_a_logit_of_zero_is_background():
    assert not upscale_masks(np.zeros((1, 256, 256), np.float32), (20, 30), Frame(1024)).any()
