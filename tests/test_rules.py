"""The table converts every tensor of segment_anything, to the bit, in both directions."""

import jax
import numpy as np
import pytest

from convert.rules import RULES, rule_of, source_name, to_flax, to_torch
from stablesam_jax.build import shapes
from stablesam_jax.config import MODELS, SamConfig, ViTConfig
from stablesam_jax.errors import InputError
from stablesam_jax.model.sam import Sam
from stablesam_jax.params import count, flatten

TINY = SamConfig(encoder=ViTConfig(width=16, depth=2, heads=2, global_blocks=(1,)), image_size=32)


@pytest.fixture(scope="module")
def target():
    return shapes(Sam(TINY))


@pytest.fixture
def state(target):
    rng = np.random.default_rng(0)
    return to_torch(jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), target))


# The state dicts of the official classes: tensors and numbers.
@pytest.mark.parametrize(
    ("model", "tensors", "numbers"),
    [("sam_vit_b", 314, 93_735_728), ("sam_vit_l", 482, 312_343_088), ("sam_vit_h", 594, 641_090_864)],
)
def test_every_leaf_has_one_rule_and_a_name_of_its_own(model, tensors, numbers):
    tree = shapes(Sam(MODELS[model]))
    names = {source_name(path) for path in flatten(tree)}
    assert len(names) == len(flatten(tree)) == tensors
    assert count(tree) == numbers


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("image_encoder/blocks_11/attn/qkv/kernel", "image_encoder.blocks.11.attn.qkv.weight"),
        ("image_encoder/blocks_1/attn/rel_pos_h", "image_encoder.blocks.1.attn.rel_pos_h"),
        ("image_encoder/neck/1/scale", "image_encoder.neck.1.weight"),
        ("prompt_encoder/point_embeddings_3", "prompt_encoder.point_embeddings.3.weight"),
        ("prompt_encoder/no_mask_embed", "prompt_encoder.no_mask_embed.weight"),
        (
            "mask_decoder/output_hypernetworks_mlps_2/layers_0/bias",
            "mask_decoder.output_hypernetworks_mlps.2.layers.0.bias",
        ),
    ],
)
def test_names_are_the_official_ones(path, name):
    assert source_name(path) == name


def test_no_rule_is_idle(target):
    assert {rule_of(path) for path in flatten(target)} == set(RULES)


def test_there_and_back_is_equal_to_the_bit(state, target):
    again = to_torch(to_flax(state, target))
    assert again.keys() == state.keys()
    for name in state:
        np.testing.assert_array_equal(again[name], state[name])


def test_layouts_compute_what_torch_computes(state, target):
    torch = pytest.importorskip("torch")
    params = to_flax(state, target)
    x = np.random.default_rng(1).normal(size=(1, 6, 4, 4)).astype(np.float32)

    weight = np.random.default_rng(2).normal(size=(6, 5, 2, 2)).astype(np.float32)  # (in, out, kh, kw)
    axes = rule_of("mask_decoder/output_upscaling_0/kernel").axes
    pixels = np.einsum("bchw,ijco->bohiwj", x, weight.transpose(axes)).reshape(1, 5, 8, 8)
    expected = torch.nn.functional.conv_transpose2d(torch.tensor(x), torch.tensor(weight), stride=2).numpy()
    np.testing.assert_allclose(pixels, expected, atol=1e-5)

    patch = params["image_encoder"]["patch_embed"]["proj"]["kernel"]
    assert patch[3, 5, 1, 7] == state["image_encoder.patch_embed.proj.weight"][7, 1, 3, 5]
    dense = params["image_encoder"]["blocks_0"]["mlp"]["lin1"]["kernel"]
    assert dense[3, 5] == state["image_encoder.blocks.0.mlp.lin1.weight"][5, 3]


def test_all_faults_come_in_one_line(state, target):
    del state["mask_decoder.iou_token.weight"]
    state["mask_decoder.hf_token.weight"] = np.ones((1, 256), np.float32)
    state["image_encoder.pos_embed"] = np.ones((1, 4, 4, 16), np.float32)
    state["image_encoder.neck.1.bias"] = np.ones(256)
    with pytest.raises(InputError) as error:
        to_flax(state, target)
    message = str(error.value)
    assert "missing (1): mask_decoder.iou_token.weight" in message
    assert "unexpected (1): mask_decoder.hf_token.weight" in message
    assert "image_encoder.pos_embed (1, 4, 4, 16) instead of (1, 2, 2, 16)" in message
    assert "image_encoder.neck.1.bias float64 instead of float32" in message
    assert "\n" not in message


def test_a_transposed_matrix_is_seen_by_its_shape(state, target):
    name = "image_encoder.blocks.0.mlp.lin1.weight"
    state[name] = state[name].T
    with pytest.raises(InputError, match=r"lin1\.weight \(16, 64\) instead of \(64, 16\)"):
        to_flax(state, target)


def test_nano_has_no_official_twin():
    with pytest.raises(InputError, match="no tensor of segment_anything corresponds"):
        to_torch({"image_encoder": {"backbone": {"stem": {"kernel": np.ones((3, 3, 3, 32))}}}})
