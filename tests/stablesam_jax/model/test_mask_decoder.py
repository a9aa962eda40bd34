"""The mask decoder equals the official one in float64, and the comparison sees the usual mistakes."""

import dataclasses
import functools

import flax.linen as nn
import jax
import numpy as np
import pytest
import torch

from stablesam_jax.model.mask_decoder import SHARED, MaskDecoder
from stablesam_jax.ops.layers import UpscaleBy2
from tests.reference.sam_pair import CONFIG, SEEN, TOLERANCE, difference, float64_pair, normal

GRID = 6  # any map does; a small one is quick
WIDTH = CONFIG.embedding_width
EMBEDDING = normal(1, GRID, GRID, WIDTH, seed=1)
IMAGE_PE = normal(1, 1, GRID, GRID, WIDTH, seed=2)
SPARSE = normal(1, 2, 3, WIDTH, seed=3)
DENSE = normal(1, 2, GRID, GRID, WIDTH, seed=4)
ALL = np.ones(SPARSE.shape[:3], bool)
APPLY = jax.jit(MaskDecoder(WIDTH).apply, static_argnames="masks")


@pytest.fixture(scope="module")
def pair():
    with float64_pair() as pair:
        yield pair


def run(pair, masks, valid=ALL):
    variables = {"params": pair.params["mask_decoder"]}
    answer = APPLY(variables, EMBEDDING, IMAGE_PE, SPARSE, DENSE, valid, masks=masks)
    return answer.low_res_masks[0], answer.iou_predictions[0]


def run_official(pair, sparse=SPARSE, dense=DENSE):
    """All four masks."""

    def as_map(x):
        return torch.from_numpy(x).permute(0, 3, 1, 2)

    return pair.official.mask_decoder.predict_masks(
        as_map(EMBEDDING), as_map(IMAGE_PE[0]), torch.from_numpy(sparse[0]), as_map(dense[0])
    )


def logits_difference(pair):
    return difference(run(pair, "all")[0], run_official(pair)[0])


@pytest.mark.parametrize(("masks", "chosen"), [("all", slice(0, 4)), ("single", slice(0, 1)), ("multi", slice(1, 4))])
def test_masks_and_predicted_iou_are_equal(pair, masks, chosen):
    logits, iou = run(pair, masks)
    official_logits, official_iou = run_official(pair)
    assert difference(logits, official_logits[:, chosen]) < TOLERANCE
    assert difference(iou, official_iou[:, chosen]) < TOLERANCE


@pytest.mark.parametrize("at_once", [False, True])
@pytest.mark.parametrize("prompts", [SHARED - 1, SHARED])
def test_prompts_that_share_the_features_have_the_masks_of_the_official_decoder(pair, prompts, at_once):
    sparse, dense = normal(1, prompts, 3, WIDTH, seed=5), normal(1, 1, GRID, GRID, WIDTH, seed=6)
    decode = jax.jit(functools.partial(MaskDecoder(WIDTH).apply, masks="all", at_once=at_once))
    variables = {"params": pair.params["mask_decoder"]}
    ours = decode(variables, EMBEDDING, IMAGE_PE, sparse, dense, np.ones(sparse.shape[:3], bool))
    logits, iou = run_official(pair, sparse, np.repeat(dense, prompts, axis=1))
    assert difference(ours.low_res_masks[0], logits) < TOLERANCE
    assert difference(ours.iou_predictions[0], iou) < TOLERANCE


@pytest.mark.parametrize(("masks", "computed"), [("single", {0}), ("multi", {1, 2, 3}), ("all", {0, 1, 2, 3})])
def test_a_mask_that_is_not_asked_for_is_not_computed(pair, masks, computed):
    called = set()

    def note(call, arguments, options, context):
        called.add(str(context.module.name))  # of the decoder itself None
        return call(*arguments, **options)

    with nn.intercept_methods(note):
        variables = {"params": pair.params["mask_decoder"]}
        decode = functools.partial(MaskDecoder(WIDTH).apply, masks=masks)
        jax.eval_shape(decode, variables, EMBEDDING, IMAGE_PE, SPARSE, DENSE, ALL)
    assert {name for name in called if "hypernetworks" in name} == {
        f"output_hypernetworks_mlps_{index}" for index in computed
    }


def test_upscaling_is_the_transposed_convolution():
    x = np.float32(normal(2, 3, 5, 4))
    kernel = np.float32(normal(2, 2, 4, 7, seed=1))
    bias = np.float32(normal(7, seed=2))
    cells = UpscaleBy2(7).apply({"params": {"kernel": kernel, "bias": bias}}, x)
    ours = cells.transpose(0, 1, 3, 2, 4, 5).reshape(2, 6, 10, 7)
    theirs = torch.nn.functional.conv_transpose2d(
        torch.from_numpy(x).permute(0, 3, 1, 2),
        torch.from_numpy(kernel).permute(2, 3, 0, 1),
        torch.from_numpy(bias),
        stride=2,
    )
    np.testing.assert_allclose(ours, theirs.permute(0, 2, 3, 1).numpy(), rtol=0, atol=5e-6)


def flipped_kernel(decoder):
    kernel = decoder.output_upscaling[0].weight
    kernel.copy_(kernel.flip(2, 3))


def eps_of_the_transformer(decoder):
    decoder.output_upscaling[1].eps = 1e-5


def tanh_gelu(decoder):
    decoder.output_upscaling[4].approximate = "tanh"


def no_last_gelu(decoder):
    decoder.output_upscaling[4] = torch.nn.Identity()


def iou_token_and_mask_token_swapped(decoder):
    first = decoder.iou_token.weight[0].clone()
    decoder.iou_token.weight[0] = decoder.mask_tokens.weight[0]
    decoder.mask_tokens.weight[0] = first


def gelu_for_relu(head):
    first, second, third = head.layers
    gelu = torch.nn.functional.gelu
    head.forward = lambda x: third(gelu(second(gelu(first(x)))))


def gelu_in_hypernetworks(decoder):
    gelu_for_relu(decoder.output_hypernetworks_mlps[2])


def last_hypernetworks_swapped(decoder):
    networks = decoder.output_hypernetworks_mlps
    networks[2], networks[3] = networks[3], networks[2]


@pytest.mark.parametrize(
    "mistake",
    [
        flipped_kernel,
        eps_of_the_transformer,
        tanh_gelu,
        no_last_gelu,
        iou_token_and_mask_token_swapped,
        gelu_in_hypernetworks,
        last_hypernetworks_swapped,
    ],
)
def test_mistakes_are_seen(pair, mistake):
    assert logits_difference(pair.faulty(lambda sam: mistake(sam.mask_decoder))) > SEEN


def sigmoid(head):
    head.sigmoid_output = True


@pytest.mark.parametrize("mistake", [sigmoid, gelu_for_relu])
def test_mistakes_in_predicted_iou_are_seen(pair, mistake):
    faulty = pair.faulty(lambda sam: mistake(sam.mask_decoder.iou_prediction_head))
    assert difference(run(pair, "all")[1], run_official(faulty)[1]) > SEEN


def test_logits_are_not_clamped(pair):
    # SAM 2's predictor keeps them within 32.
    def enlarge(sam):
        for network in sam.mask_decoder.output_hypernetworks_mlps:
            network.layers[2].weight.mul_(100)
            network.layers[2].bias.mul_(100)

    decoder = dict(pair.params["mask_decoder"])
    for index in range(4):
        network = decoder[f"output_hypernetworks_mlps_{index}"]
        last = jax.tree.map(lambda leaf: 100 * leaf, network["layers_2"])
        decoder[f"output_hypernetworks_mlps_{index}"] = network | {"layers_2": last}
    large = dataclasses.replace(pair.faulty(enlarge), params={"mask_decoder": decoder})
    assert run_official(large)[0].abs().max() > 100
    assert logits_difference(large) < TOLERANCE


def test_leaving_out_a_token_is_seen(pair):
    ours, _ = run(pair, "all", valid=np.array([[[True, True, False]] * 2]))
    assert difference(ours, run_official(pair)[0]) > SEEN
