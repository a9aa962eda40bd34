"""The ViT equals segment_anything's in float64, part by part, and the comparison sees the usual mistakes."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from eval.parity import torch_sam
from stablesam_jax.model.encoders import vit as image_encoder
from stablesam_jax.model.encoders.vit import (
    Block,
    ImageEncoderViT,
    Neck,
    PatchEmbed,
    relative_position_table,
    window_partition,
    window_unpartition,
)
from stablesam_jax.ops.layers import Conv, LayerNorm
from tests.reference.sam_pair import CONFIG, SEEN, TOLERANCE, difference, float64_pair, normal

official = torch_sam.modeling.image_encoder
GRID = CONFIG.grid_size
WIDTH = CONFIG.encoder.width


@pytest.fixture(scope="module")
def pair():
    with float64_pair() as pair:
        yield pair


@functools.cache
def apply_block(window):
    return jax.jit(Block(CONFIG.encoder.heads, window).apply)


def block_difference(pair, index):
    x = normal(2, GRID, GRID, WIDTH)
    window = 0 if index in CONFIG.encoder.global_blocks else CONFIG.encoder.window_size
    ours = apply_block(window)({"params": pair.params["image_encoder"][f"blocks_{index}"]}, x)
    return difference(ours, pair.official.image_encoder.blocks[index](torch.from_numpy(x)))


def test_windows_are_cut_in_the_official_order_with_zeros_below_and_right():
    x = normal(2, 20, 17, 3)
    ours = window_partition(x, 14)
    theirs, padded = official.window_partition(torch.from_numpy(x), 14)
    np.testing.assert_array_equal(ours, theirs.float().numpy())
    assert padded == (28, 28)


def test_joining_windows_undoes_cutting_them():
    x = np.float32(normal(2, 20, 17, 3))
    np.testing.assert_array_equal(window_unpartition(window_partition(x, 14), (20, 17)), x)


def test_relative_positions_are_looked_up_as_officially(pair):
    table = normal(39, 8)
    theirs = official.get_rel_pos(20, 20, torch.from_numpy(table))
    assert difference(relative_position_table(jnp.asarray(table), 20), theirs) < TOLERANCE


def test_patches_are_equal(pair):
    x = normal(1, 320, 320, 3)
    module = PatchEmbed(WIDTH, CONFIG.encoder.patch_size)
    ours = module.apply({"params": pair.params["image_encoder"]["patch_embed"]}, x)
    theirs = pair.official.image_encoder.patch_embed(torch.from_numpy(x).permute(0, 3, 1, 2))
    assert difference(ours, theirs) < TOLERANCE


@pytest.mark.parametrize("index", range(CONFIG.encoder.depth))
def test_blocks_are_equal(pair, index):
    assert block_difference(pair, index) < TOLERANCE


@pytest.mark.slow
def test_an_encoder_off_the_cpu_attends_at_once(pair, monkeypatch):
    x = normal(2, GRID, GRID, WIDTH)
    block = Block(CONFIG.encoder.heads, 0)
    params = {"params": pair.params["image_encoder"]["blocks_1"]}
    expected = block.apply(params, x)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(image_encoder, "attend_by_head", None)
    np.testing.assert_allclose(block.apply(params, x), expected, atol=TOLERANCE)


def test_neck_is_equal(pair):
    x = normal(2, GRID, GRID, WIDTH)
    ours = jax.jit(Neck(CONFIG.embedding_width).apply)({"params": pair.params["image_encoder"]["neck"]}, x)
    theirs = pair.official.image_encoder.neck(torch.from_numpy(x).permute(0, 3, 1, 2))
    assert difference(ours, theirs.permute(0, 2, 3, 1)) < TOLERANCE


def test_encoder_is_equal_for_two_pictures(pair):
    x = normal(2, 320, 320, 3)
    encoder = ImageEncoderViT(CONFIG.encoder, CONFIG.embedding_width)
    ours, _ = jax.jit(encoder.apply)({"params": pair.params["image_encoder"]}, x)
    theirs = pair.official.image_encoder(torch.from_numpy(x).permute(0, 3, 1, 2))
    assert difference(ours, theirs.permute(0, 2, 3, 1)) < TOLERANCE


def swap_tables(attention):
    attention.rel_pos_h, attention.rel_pos_w = attention.rel_pos_w, attention.rel_pos_h


def reverse_table(attention):
    attention.rel_pos_h.copy_(attention.rel_pos_h.flip(0))


def scale_table(attention):
    attention.rel_pos_h.mul_(attention.scale)  # as if relative positions were looked up with the scaled q


def split_per_head(attention):
    heads, width = attention.num_heads, attention.qkv.weight.shape[1]
    order = torch.arange(3 * width).reshape(heads, 3, -1).transpose(0, 1).flatten()
    attention.qkv.weight.copy_(attention.qkv.weight[order])


@pytest.mark.parametrize("index", [0, 1], ids=["windowed", "global"])
@pytest.mark.parametrize("mistake", [swap_tables, reverse_table, scale_table, split_per_head])
def test_mistakes_in_attention_are_seen(pair, index, mistake):
    faulty = pair.faulty(lambda sam: mistake(sam.image_encoder.blocks[index].attn))
    assert block_difference(faulty, index) > SEEN


def test_tanh_gelu_is_seen(pair):
    def mistake(sam):
        sam.image_encoder.blocks[0].mlp.act = torch.nn.GELU(approximate="tanh")

    assert block_difference(pair.faulty(mistake), 0) > SEEN


def test_eps_of_the_decoder_is_seen(pair):
    def mistake(sam):
        sam.image_encoder.blocks[0].norm1.eps = 1e-5

    assert block_difference(pair.faulty(mistake), 0) > SEEN


def test_padding_before_the_norm_is_seen(pair, monkeypatch):
    bias = pair.official.image_encoder.blocks[0].norm1.bias
    cut = official.window_partition

    def cut_after_padding_with_the_bias(x, window):
        # What norm1 makes of cells that were zero before it.
        windows, padded = cut(x - bias, window)
        return windows + bias, padded

    monkeypatch.setattr(official, "window_partition", cut_after_padding_with_the_bias)
    assert block_difference(pair, 0) > SEEN


def test_attention_to_padding_is_not_masked(pair, monkeypatch):
    add = official.add_decomposed_rel_pos

    def mask_padding(logits, *others):
        present = window_partition(np.ones((2, GRID, GRID, 1), np.float32), CONFIG.encoder.window_size)
        present = torch.tensor(np.array(present) > 0).reshape(-1, 1, logits.shape[2])
        present = present.repeat_interleave(CONFIG.encoder.heads, dim=0)
        return add(logits, *others).masked_fill(~present, -torch.inf)

    monkeypatch.setattr(official, "add_decomposed_rel_pos", mask_padding)
    assert block_difference(pair, 0) > SEEN


def test_a_map_with_rows_and_columns_swapped_is_seen(pair):
    x = normal(2, GRID, GRID, WIDTH)
    ours = apply_block(0)({"params": pair.params["image_encoder"]["blocks_1"]}, x.swapaxes(1, 2)).swapaxes(1, 2)
    assert difference(ours, pair.official.image_encoder.blocks[1](torch.from_numpy(x))) > SEEN


def test_same_padding_is_not_the_official_one():
    x, kernel = np.float32(normal(1, 65, 65, 3)), np.float32(normal(16, 16, 3, 5, seed=1))
    ours = Conv(5, 16, stride=16, use_bias=False).apply({"params": {"kernel": kernel}}, x)
    image, weight = torch.from_numpy(x).permute(0, 3, 1, 2), torch.from_numpy(kernel).permute(3, 2, 0, 1)
    theirs = torch.nn.functional.conv2d(image, weight, stride=16).permute(0, 2, 3, 1).numpy()
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-3)  # sums of 768 products of deviation 1
    flax_default = nn.Conv(5, (16, 16), (16, 16), use_bias=False).apply({"params": {"kernel": kernel}}, x)
    assert ours.shape == (1, 4, 4, 5)
    assert flax_default.shape == (1, 5, 5, 5)


def test_norm_keeps_its_digits_under_a_large_offset():
    # E[x^2] - E[x]^2, Flax's default, is off by 7e-3 here; the two passes of PyTorch by 1e-5.
    x = np.float32(100 + normal(64, 256))
    exact = np.float64(x) - np.float64(x).mean(-1, keepdims=True)
    exact /= np.sqrt(np.square(exact).mean(-1, keepdims=True) + 1e-6)
    params = {"params": {"scale": np.ones(256, np.float32), "bias": np.zeros(256, np.float32)}}
    assert np.abs(np.asarray(LayerNorm().apply(params, x), np.float64) - exact).max() < 5e-5
    assert np.abs(np.asarray(nn.LayerNorm().apply(params, x), np.float64) - exact).max() > 1e-3
