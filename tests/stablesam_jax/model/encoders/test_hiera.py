"""Hiera and its neck equal SAM 2's in float64, part by part, and the comparison sees the usual mistakes."""

import functools

import jax
import numpy as np
import pytest
import torch

from stablesam_jax.config import HieraConfig, SamConfig
from stablesam_jax.errors import InputError
from stablesam_jax.model.encoders.hiera import Block, ImageEncoderHiera, cubic_matrix, max_pool, positions
from tests.reference.sam_pair import SAM2_CONFIG, SEEN, TOLERANCE, difference, float64_pair, normal, quick_jit
from tests.reference.tiers import slow

HIERA = SAM2_CONFIG.encoder
SIDE = SAM2_CONFIG.image_size


@pytest.fixture(scope="module")
def pair():
    with float64_pair(SAM2_CONFIG) as pair:
        yield pair


def trunk(pair, *path):
    params = pair.params["image_encoder"]["trunk"]
    for name in path:
        params = params[name]
    return params


@functools.cache
def encoded():
    with float64_pair(SAM2_CONFIG) as pair:
        return apply_encoder(pair)


def apply_encoder(pair):
    encoder = ImageEncoderHiera(HIERA, SAM2_CONFIG.embedding_width)
    features, maps = quick_jit(encoder.apply)({"params": pair.params["image_encoder"]}, normal(1, SIDE, SIDE, 3))
    return features, *maps


def official_maps(official):
    """Image embedding and the two finer maps, as SAM2ImagePredictor.set_image has them before conv_s0 and conv_s1."""
    pixels = torch.from_numpy(normal(1, SIDE, SIDE, 3)).permute(0, 3, 1, 2)
    stride_4, stride_8, stride_16 = official.image_encoder(pixels)["backbone_fpn"]
    embedding = stride_16 + official.no_mem_embed.reshape(1, -1, 1, 1)
    return [maps.permute(0, 2, 3, 1).contiguous() for maps in (embedding, stride_4, stride_8)]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("cells", "size"), [(7, 256), (14, 256), (7, 24), (7, 40), (14, 8), (7, 7)])
def test_positions_are_enlarged_as_pytorch_enlarges_them(cells, size, dtype):
    background = normal(1, 3, cells, cells).astype(dtype)
    theirs = torch.nn.functional.interpolate(torch.from_numpy(background), size=(size, size), mode="bicubic")
    matrix = cubic_matrix(cells, size, dtype)
    ours = np.einsum("ri,sj,bcij->bcrs", matrix, matrix, background.astype(np.float64))
    assert np.abs(ours - theirs.numpy()).max() < (4e-6 if dtype == np.float32 else 1e-14)


def test_jax_resizes_with_another_cubic():
    image = np.eye(7, dtype=np.float32)
    ours = cubic_matrix(7, 24, np.float32) @ image
    assert np.abs(np.asarray(jax.image.resize(image, (24, 7), "bicubic", antialias=False)) - ours).max() > 0.02


@pytest.mark.parametrize("side", [16, 24, 40, 256])
def test_positions_of_any_size_are_the_official_ones(pair, side):
    ours = positions(trunk(pair, "pos_embed"), trunk(pair, "pos_embed_window"), side)
    assert difference(ours, pair.official.image_encoder.trunk._get_pos_embed((side, side))) < TOLERANCE


# (index of the block, side of its map): in windows; pooling in windows that need padding; over the whole map.
KINDS = {"windowed": (0, 16), "pooling": (1, 16), "pooling, padded": (5, 6), "padded": (3, 6), "global": (4, 6)}


def block_difference(pair, index, side):
    official = pair.official.image_encoder.trunk.blocks[index]
    x = normal(2, side, side, official.dim)
    ours = Block(official.dim_out, official.attn.num_heads, official.window_size, official.pool is not None)
    theirs = official(torch.from_numpy(x))
    return difference(quick_jit(ours.apply)({"params": trunk(pair, f"blocks_{index}")}, x), theirs)


@pytest.mark.parametrize("kind", ["pooling, padded", *slow(*(kind for kind in KINDS if kind != "pooling, padded"))])
def test_a_block_of_each_kind_is_the_official_one(pair, kind):
    assert block_difference(pair, *KINDS[kind]) < TOLERANCE


def test_the_small_model_has_a_block_of_each_kind(pair):
    blocks = pair.official.image_encoder.trunk.blocks
    kinds = {name: (blocks[index].pool is not None, blocks[index].window_size) for name, (index, _) in KINDS.items()}
    assert kinds == {
        "windowed": (False, 8),
        "pooling": (True, 8),
        "pooling, padded": (True, 14),
        "padded": (False, 14),
        "global": (False, 0),
    }


def test_the_embedding_and_the_finer_maps_are_the_official_ones(pair):
    for ours, theirs in zip(encoded(), official_maps(pair.official), strict=True):
        assert difference(ours, theirs) < TOLERANCE


def spoil_eps(official):
    for block in official.image_encoder.trunk.blocks:
        block.norm1.eps = block.norm2.eps = 1e-5


def spoil_window_positions(official):
    official.image_encoder.trunk.pos_embed_window.copy_(official.image_encoder.trunk.pos_embed_window.mT.clone())


def spoil_neck_order(official):
    convs = official.image_encoder.neck.convs
    convs[0].conv.bias.copy_(convs[1].conv.bias)


def spoil_memory(official):
    official.no_mem_embed.zero_()


@pytest.mark.parametrize("spoil", [spoil_eps, spoil_window_positions, spoil_neck_order, spoil_memory])
def test_a_mistake_shows(pair, spoil):
    theirs = official_maps(pair.faulty(spoil).official)
    assert max(difference(ours, other) for ours, other in zip(encoded(), theirs, strict=True)) > SEEN


def test_pooling_takes_the_largest_of_each_square():
    x = np.arange(16.0).reshape(1, 4, 4, 1)
    assert max_pool(x)[0, :, :, 0].tolist() == [[5, 7], [13, 15]]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"depths": (1, 2, 3)}, "four stages"),
        ({"depths": (1, 0, 3, 2)}, "four stages"),
        ({"heads": 3}, "heads must divide the width"),
        ({"global_blocks": (3,)}, "may not be the first of stages"),
        ({"global_blocks": (9,)}, "may not be the first of stages"),
    ],
)
def test_sizes_that_cannot_be_are_refused(fields, message):
    with pytest.raises(InputError, match=message):
        HieraConfig(**{"width": 16, "heads": 2, "depths": (1, 2, 3, 2), "global_blocks": ()} | fields)


def test_hq_sams_parts_on_a_sam_2_are_refused():
    with pytest.raises(InputError, match="SAM 2 cannot have HQ-SAM's parts"):
        SamConfig(encoder=HIERA, hq=True)
