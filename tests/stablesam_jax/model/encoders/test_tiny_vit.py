"""TinyViT equals the official one in float64, part by part, and the comparison sees the usual mistakes."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from eval.parity import torch_sam
from stablesam_jax.model.encoders.tiny_vit import (
    MLP,
    Attention,
    Block,
    ConvBlock,
    ImageEncoderTinyViT,
    Merging,
    PatchEmbed,
    bias_index,
)
from tests.reference.sam_pair import SEEN, TINY_CONFIG, TOLERANCE, difference, float64_pair, normal, quick_jit
from tests.reference.tiers import slow

TINY = TINY_CONFIG.encoder
SIDE = TINY_CONFIG.image_size
ENCODER = ImageEncoderTinyViT(TINY, TINY_CONFIG.embedding_width)


@pytest.fixture(scope="module")
def pair():
    with float64_pair(TINY_CONFIG) as pair:
        yield pair


def as_map(x):
    return torch.from_numpy(x).permute(0, 3, 1, 2)


def as_cells(x):
    return torch.from_numpy(x).flatten(1, 2)


def part(pair, *path):
    params = pair.params["image_encoder"]
    for name in path:
        params = params[name]
    return {"params": params}


def grid(stage):
    return SIDE // (4, 8, 16, 16)[stage]


def patches_difference(pair):
    x = normal(2, SIDE, SIDE, 3)
    ours = quick_jit(PatchEmbed(TINY.widths[0]).apply)(part(pair, "patch_embed"), x)
    return difference(ours, pair.official.image_encoder.patch_embed(as_map(x)).permute(0, 2, 3, 1))


APPLY_CONV_BLOCK = quick_jit(ConvBlock().apply)


def conv_block_difference(pair):
    x = normal(2, 6, 6, TINY.widths[0])
    ours = APPLY_CONV_BLOCK(part(pair, "layers_0", "blocks_0"), x)
    return difference(ours, official_block(pair.official, 0)(as_map(x)).permute(0, 2, 3, 1))


def merging_difference(pair, stage):
    side, width = grid(stage), TINY.widths[stage + 1]
    x = normal(2, side, side, TINY.widths[stage])
    ours = quick_jit(Merging(width, stride=1 if stage == 2 else 2).apply)(
        part(pair, f"layers_{stage}", "downsample"), x
    )
    theirs = pair.official.image_encoder.layers[stage].downsample(as_map(x))
    return difference(ours, theirs.reshape(ours.shape))


def official_block(sam, stage):
    return sam.image_encoder.layers[stage].blocks[0]


@functools.cache
def apply_block(stage):
    return quick_jit(Block(TINY.heads[stage], TINY.window_sizes[stage]).apply)


def block_difference(pair, stage):
    side = grid(stage)
    x = normal(2, side, side, TINY.widths[stage])
    theirs = official_block(pair.official, stage)(as_cells(x))
    return difference(apply_block(stage)(part(pair, f"layers_{stage}", "blocks_0"), x), theirs.reshape(x.shape))


def test_patches_are_equal(pair):
    assert patches_difference(pair) < TOLERANCE


def test_convolutional_blocks_are_equal(pair):
    assert conv_block_difference(pair) < TOLERANCE


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_mergings_are_equal(pair, stage):
    assert merging_difference(pair, stage) < TOLERANCE


def test_attention_is_equal(pair):
    x = normal(3, 7, 7, TINY.widths[1])
    ours = quick_jit(Attention(TINY.heads[1]).apply)(part(pair, "layers_1", "blocks_0", "attn"), x)
    theirs = official_block(pair.official, 1).attn(as_cells(x))
    assert difference(ours, theirs.reshape(x.shape)) < TOLERANCE


def test_mlp_is_equal(pair):
    x = normal(2, 5, TINY.widths[1])
    ours = MLP().apply(part(pair, "layers_1", "blocks_0", "mlp"), x)
    assert difference(ours, official_block(pair.official, 1).mlp(torch.from_numpy(x))) < TOLERANCE


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_transformer_blocks_are_equal(pair, stage):
    assert block_difference(pair, stage) < TOLERANCE


@pytest.mark.parametrize("window", [1, 7, 14])
def test_biases_are_looked_up_as_officially(window):
    attention = torch_sam.hq_modeling.tiny_vit_sam.Attention(8, 8, 1, resolution=(window, window))
    np.testing.assert_array_equal(bias_index(window), attention.attention_bias_idxs.numpy())


@pytest.mark.parametrize("side", [SIDE, *slow(224)], ids=["padded", "maps that are whole windows"])
def test_encoder_is_equal_for_two_pictures(pair, side):
    official = torch_sam.build(dataclasses.replace(TINY_CONFIG, image_size=side)).double()
    official.load_state_dict(pair.official.state_dict())
    x = normal(2, side, side, 3)
    embedding, early = quick_jit(ENCODER.apply)(part(pair), x)
    with torch.no_grad():
        official_embedding, (official_early,) = official.image_encoder(as_map(x))
    assert difference(embedding, official_embedding.permute(0, 2, 3, 1)) < TOLERANCE
    assert difference(early, official_early) < TOLERANCE


@pytest.mark.parametrize("side", [16, 48, 1008])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_any_multiple_of_16_is_encoded_in_the_dtype_of_the_picture(pair, side, dtype):
    embedding, early = jax.eval_shape(ENCODER.apply, part(pair), jax.ShapeDtypeStruct((1, side, side, 3), dtype))
    assert embedding.shape == (1, side // 16, side // 16, 256)
    assert early.shape == (1, side // 16, side // 16, 32)
    assert embedding.dtype == early.dtype == dtype


def test_bfloat16_loses_no_more_than_its_digits(pair):
    x = normal(1, 20, 20, TINY.widths[1])
    exact, rounded = (
        apply_block(1)(part(pair, "layers_1", "blocks_0"), jnp.asarray(x, d)) for d in (x.dtype, "bfloat16")
    )
    # 8 bits through some 10 layers.
    assert (np.asarray(rounded, np.float64) - exact).std() < 0.02 * exact.std()


def transposed_biases(block):
    heads, count = block.attn.attention_biases.shape
    window = round(count**0.5)
    biases = block.attn.attention_biases
    biases.copy_(biases.reshape(heads, window, window).transpose(1, 2).flatten(1))


def no_biases(block):
    block.attn.attention_biases.zero_()  # what the official registry's model computes with after loading a file


def three_blocks_of_channels(block):
    """The ViT's order of q, k and v."""
    qkv = block.attn.qkv
    order = torch.arange(len(qkv.weight)).reshape(3, block.attn.num_heads, -1).transpose(0, 1).flatten()
    qkv.weight.copy_(qkv.weight[order])


def eps_of_the_vit(block):
    block.attn.norm.eps = 1e-6


def eps_of_the_batch_norm(block):
    block.local_conv.bn.eps = 1e-6


def statistics_of_the_batch(block):
    block.local_conv.bn.running_mean = block.local_conv.bn.running_var = None


def tanh_gelu(block):
    block.mlp.act.approximate = "tanh"


def transposed_kernel(block):
    kernel = block.local_conv.c.weight
    kernel.copy_(kernel.mT.clone())


def padding_after_the_norm(block):
    class ZeroStaysZero(torch.nn.Module):
        def __init__(self, norm):
            super().__init__()
            self.norm = norm

        def forward(self, x):
            return self.norm(x) * (x != 0).any(-1, keepdim=True)

    block.attn.norm = ZeroStaysZero(block.attn.norm)


@pytest.mark.parametrize(
    "mistake",
    [
        transposed_biases,
        no_biases,
        three_blocks_of_channels,
        eps_of_the_vit,
        eps_of_the_batch_norm,
        statistics_of_the_batch,
        tanh_gelu,
        transposed_kernel,
        padding_after_the_norm,
    ],
)
def test_mistakes_in_transformer_blocks_are_seen(pair, mistake):
    assert block_difference(pair.faulty(lambda sam: mistake(official_block(sam, 1))), 1) > SEEN


def no_gelu_after_the_residual(block):
    block.act3 = torch.nn.Identity()


def tanh_gelu_between(block):
    block.act2.approximate = "tanh"


def transposed_filter(block):
    block.conv2.c.weight.copy_(block.conv2.c.weight.mT.clone())


@pytest.mark.parametrize("mistake", [no_gelu_after_the_residual, tanh_gelu_between, transposed_filter])
def test_mistakes_in_convolutional_blocks_are_seen(pair, mistake):
    assert conv_block_difference(pair.faulty(lambda sam: mistake(official_block(sam, 0)))) > SEEN


def same_padding(conv):
    """Zeros below and on the right alone, which is what Flax's SAME comes to where the stride is 2."""
    conv.padding = (0, 0)
    return torch.nn.Sequential(torch.nn.ZeroPad2d((0, 1, 0, 1)), conv)


def test_same_padding_in_a_merging_is_seen(pair):
    def mistake(sam):
        filtered = sam.image_encoder.layers[0].downsample.conv2
        filtered.c = same_padding(filtered.c)

    assert merging_difference(pair.faulty(mistake), 0) > SEEN


def test_same_padding_of_patches_is_seen(pair):
    def mistake(sam):
        first = sam.image_encoder.patch_embed.seq[0]
        first.c = same_padding(first.c)

    assert patches_difference(pair.faulty(mistake)) > SEEN
