"""The table converts every tensor of the official models, to the bit, in both directions."""

import jax
import numpy as np
import pytest
import torch

from convert.rules import (
    RULES,
    VIDEO_MODULES,
    dropped,
    rule_of,
    source_name,
    source_names,
    source_shape,
    to_flax,
    to_torch,
)
from eval.parity import torch_sam
from stablesam_jax.build import assemble, shapes
from stablesam_jax.config import MODELS, ViTConfig
from stablesam_jax.errors import InputError
from stablesam_jax.params import count, flatten
from tests.reference import official
from tests.reference.tiers import slow

COUNTER = "image_encoder.patch_embed.seq.0.bn.num_batches_tracked"


def state_dict(config):
    return {name: tensor.numpy() for name, tensor in official.state_dict(config).items()}


@pytest.fixture(scope="module")
def target():
    return shapes(assemble(official.VIT))


@pytest.fixture(scope="module")
def tiny_target():
    return shapes(assemble(official.SMALL["hq_small_tiny_vit"]))


@pytest.fixture
def state():
    return state_dict(official.VIT)


# Tensors and parameters of the official files, counted without any code of ours.
@pytest.mark.parametrize(
    ("model", "tensors", "parameters"),
    [
        ("hq_sam_vit_tiny", 464, 10_588_743),
        *slow(
            ("sam_vit_b", 314, 93_735_728),
            ("sam_vit_l", 482, 312_343_088),
            ("sam_vit_h", 594, 641_090_864),
            ("mobile_sam", 439, 10_140_231),
            ("hq_sam_vit_b", 339, 94_806_832),
            ("hq_sam_vit_l", 507, 313_676_336),
            ("hq_sam_vit_h", 619, 642_686_256),
            ("sam2_hiera_t", 311, 31_440_977),
            ("sam2_hiera_s", 359, 38_538_833),
            ("sam2_hiera_b_plus", 455, 73_328_657),
            ("sam2_hiera_l", 743, 216_925_121),
        ),
    ],
)
def test_names_shapes_and_types_are_those_of_the_official_classes(model, tensors, parameters):
    config = MODELS[model]
    with torch.device("meta" if isinstance(config.encoder, ViTConfig) else "cpu"):  # TinyViT computes while it is built
        expected = torch_sam.build(config).state_dict()
    tree = shapes(assemble(config))
    leaves, names = flatten(tree), source_names(tree)
    ours = {names[path]: (source_shape(path, leaf.shape), rule_of(path).dtype) for path, leaf in leaves.items()}
    assert len(ours) == len(leaves) == tensors
    assert count(leaves) == parameters
    assert ours == {
        name: (tuple(tensor.shape), np.int64 if tensor.dtype == torch.int64 else np.float32)
        for name, tensor in expected.items()
        if name.partition(".")[0] not in VIDEO_MODULES
    }


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("image_encoder/blocks_11/attn/qkv/kernel", "image_encoder.blocks.11.attn.qkv.weight"),
        ("image_encoder/blocks_1/attn/rel_pos_h", "image_encoder.blocks.1.attn.rel_pos_h"),
        ("image_encoder/neck/1/scale", "image_encoder.neck.1.weight"),
        ("image_encoder/patch_embed/seq_0/bn/var", "image_encoder.patch_embed.seq.0.bn.running_var"),
        ("image_encoder/layers_0/blocks_1/conv2/c/kernel", "image_encoder.layers.0.blocks.1.conv2.c.weight"),
        (
            "image_encoder/layers_3/blocks_1/attn/attention_biases",
            "image_encoder.layers.3.blocks.1.attn.attention_biases",
        ),
        ("prompt_encoder/point_embeddings_3", "prompt_encoder.point_embeddings.3.weight"),
        ("prompt_encoder/no_mask_embed", "prompt_encoder.no_mask_embed.weight"),
        ("mask_decoder/hf_token", "mask_decoder.hf_token.weight"),
        ("mask_decoder/compress_vit_feat_3/kernel", "mask_decoder.compress_vit_feat.3.weight"),
        (
            "mask_decoder/output_hypernetworks_mlps_2/layers_0/bias",
            "mask_decoder.output_hypernetworks_mlps.2.layers.0.bias",
        ),
    ],
)
def test_a_number_after_an_underscore_becomes_an_index_and_others_stay(path, name):
    assert source_name(path) == name


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("image_encoder/trunk/blocks_2/mlp/lin1/kernel", "image_encoder.trunk.blocks.2.mlp.layers.0.weight"),
        ("image_encoder/trunk/pos_embed_window", "image_encoder.trunk.pos_embed_window"),
        ("image_encoder/no_mem_embed", "no_mem_embed"),
        ("prompt_encoder/not_a_point_embed", "sam_prompt_encoder.not_a_point_embed.weight"),
        ("mask_decoder/transformer/layers_1/mlp/lin2/bias", "sam_mask_decoder.transformer.layers.1.mlp.layers.1.bias"),
        ("mask_decoder/pred_obj_score_head/layers_2/bias", "sam_mask_decoder.pred_obj_score_head.layers.2.bias"),
        ("mask_decoder/obj_score_token", "sam_mask_decoder.obj_score_token.weight"),
    ],
)
def test_sam_2_has_its_own_names_for_some_modules(path, name):
    assert source_names(shapes(assemble(official.SAM2)))[path] == name


def test_every_rule_is_used(target, tiny_target):
    nano_target, sam2_target = (shapes(assemble(config)) for config in (MODELS["sam_nano"], official.SAM2))
    targets = flatten(target) | flatten(tiny_target) | flatten(nano_target) | flatten(sam2_target)
    assert {rule_of(path) for path in targets} == set(RULES)


@pytest.mark.parametrize("model", official.SMALL)
def test_conversion_and_its_inverse_keep_bits_and_dtype(model):
    config = official.SMALL[model]
    state = state_dict(config)
    params = to_flax(state, shapes(assemble(config)))
    assert {leaf.dtype for leaf in flatten(params).values()} == {np.dtype(np.float32)}
    again = to_torch(params)
    assert again.keys() == {name for name in state if name.partition(".")[0] not in VIDEO_MODULES}
    for name in again:
        assert (again[name].dtype, again[name].shape) == (state[name].dtype, state[name].shape)
        assert again[name].tobytes() == state[name].tobytes()


def test_layouts_compute_what_torch_computes(state, target):
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


def test_a_depthwise_kernel_loses_its_axis_of_one(tiny_target):
    state = state_dict(official.SMALL["hq_small_tiny_vit"])
    kernel = to_flax(state, tiny_target)["image_encoder"]["layers_1"]["blocks_0"]["local_conv"]["c"]["kernel"]
    source = state["image_encoder.layers.1.blocks.0.local_conv.c.weight"]
    assert (kernel.shape, source.shape) == ((3, 3, 12), (12, 1, 3, 3))
    assert kernel[1, 2, 7] == source[7, 0, 1, 2]


def test_all_faults_come_in_one_line(state, target):
    del state["mask_decoder.iou_token.weight"]
    state["mask_decoder.hf_token.weight"] = np.ones((1, 256), np.float32)
    state["image_encoder.pos_embed"] = np.ones((1, 4, 4, 16), np.float32)
    state["image_encoder.neck.1.bias"] = np.ones(32)
    state["image_encoder.neck.3.bias"][5:7] = np.nan, -np.inf
    with pytest.raises(InputError) as error:
        to_flax(state, target)
    message = str(error.value)
    assert "missing (1): mask_decoder.iou_token.weight" in message
    assert "unexpected (1): mask_decoder.hf_token.weight" in message
    assert "image_encoder.pos_embed (1, 4, 4, 16) instead of (1, 2, 2, 16)" in message
    assert "image_encoder.neck.1.bias float64 instead of float32" in message
    assert "not finite (1): image_encoder.neck.3.bias in 2 of 32" in message
    assert "\n" not in message


def test_of_a_diverged_model_the_first_names_are_enough(state, target):
    with pytest.raises(InputError, match=r"not finite \(174\): (\S+ in \d+ of \d+,? ){8}and 166 more"):
        to_flax({name: np.full_like(array, np.nan) for name, array in state.items()}, target)


def test_a_transposed_matrix_is_detected_by_its_shape(state, target):
    name = "image_encoder.blocks.0.mlp.lin1.weight"
    state[name] = state[name].T
    with pytest.raises(InputError, match=r"lin1\.weight \(16, 64\) instead of \(64, 16\)"):
        to_flax(state, target)


def test_a_counter_is_exact_or_refused(tiny_target):
    state = state_dict(official.SMALL["hq_small_tiny_vit"])
    state[COUNTER] = np.array(2**24 + 1)  # the first number that float32 does not have
    with pytest.raises(InputError, match=rf"not exact in float32 \(1\): {COUNTER}"):
        to_flax(state, tiny_target)
    state[COUNTER] = np.array(0, np.int32)
    with pytest.raises(InputError, match=rf"{COUNTER} int32 instead of int64"):
        to_flax(state, tiny_target)

    params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), tiny_target)
    params["image_encoder"]["patch_embed"]["seq_0"]["bn"]["num_batches_tracked"] = np.float32(0.5)
    with pytest.raises(InputError, match="seq_0/bn/num_batches_tracked: has values that int64, its dtype"):
        to_torch(params)


def test_constants_that_odd_files_carry_along_are_dropped_and_said(state, target):
    state |= {"pixel_mean": np.ones((3, 1, 1), np.float32), "pixel_std": np.ones((3, 1, 1), np.float32)}
    to_flax(state, target)
    assert dropped(state) == ["2 tensors dropped: the configuration holds them"]


def test_nano_is_converted_to_the_bit_in_both_directions():
    target = shapes(assemble(MODELS["sam_nano"]))
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape, np.float32), target)
    jax.tree.map(np.testing.assert_array_equal, to_flax(to_torch(params), target), params)


def test_a_leaf_of_no_model_is_refused():
    with pytest.raises(InputError, match="stone/kernel: no tensor of the official models or of stablesam_torch"):
        to_torch({"image_encoder": {"backbone": {"stone": {"kernel": np.ones((3, 3, 3, 32))}}}})
