"""SAM 2's mask decoder equals the official one in float64, and the comparison sees the usual mistakes."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch

from stablesam_jax.errors import InputError
from stablesam_jax.model.mask_decoder import MaskDecoder
from stablesam_jax.model.prompt_encoder import Prompts, sparse_tokens
from stablesam_jax.model.sam import ImageEmbedding
from stablesam_jax.model.sam2 import stable_or_best, with_padding_point
from stablesam_jax.ops.layers import cells, pixels
from tests.reference import small
from tests.reference.sam_pair import SAM2_CONFIG, SEEN, TOLERANCE, difference, float64_pair, normal, quick_jit
from tests.reference.tiers import slow

GRID = 6
WIDTH = SAM2_CONFIG.embedding_width
EMBEDDING = normal(1, GRID, GRID, WIDTH, seed=1)
IMAGE_PE = normal(1, 1, GRID, GRID, WIDTH, seed=2)
SPARSE = normal(1, 2, 3, WIDTH, seed=3)
DENSE = normal(1, 2, GRID, GRID, WIDTH, seed=4)
STRIDE_4, STRIDE_8 = normal(1, 4 * GRID, 4 * GRID, WIDTH, seed=5), normal(1, 2 * GRID, 2 * GRID, WIDTH, seed=6)
ALL = np.ones(SPARSE.shape[:3], bool)
DECODER = MaskDecoder(WIDTH, sam2=True)
PROJECT = quick_jit(lambda variables, *maps: DECODER.apply(variables, *maps, method="high_resolution"))
APPLY = quick_jit(DECODER.apply, static_argnames="masks")


@pytest.fixture(scope="module")
def pair():
    with float64_pair(SAM2_CONFIG) as pair:
        yield pair


def run(pair, masks):
    variables = {"params": pair.params["mask_decoder"]}
    high_res = PROJECT(variables, STRIDE_4, STRIDE_8)
    return APPLY(variables, EMBEDDING, IMAGE_PE, SPARSE, DENSE, ALL, high_res=high_res, masks=masks)


@pytest.fixture(scope="module")
def every(pair):
    return run(pair, "all")


def as_map(x):
    return torch.from_numpy(x).permute(0, 3, 1, 2)


def official_arguments(official):
    decoder = official.sam_mask_decoder
    return {
        "image_embeddings": as_map(EMBEDDING),
        "image_pe": as_map(IMAGE_PE[0]),
        "sparse_prompt_embeddings": torch.from_numpy(SPARSE[0]),
        "dense_prompt_embeddings": as_map(DENSE[0]),
        "repeat_image": True,
        "high_res_features": [decoder.conv_s0(as_map(STRIDE_4)), decoder.conv_s1(as_map(STRIDE_8))],
    }


def run_official(pair):
    """All four masks, their predicted IoU, the object scores."""
    official = pair.official
    masks, iou, _, scores = official.sam_mask_decoder.predict_masks(**official_arguments(official))
    return masks, iou, scores[:, 0]


def differences(ours, theirs):
    found = ours.low_res_masks[0], ours.iou_predictions[0], ours.object_scores[0]
    return [difference(our, their) for our, their in zip(found, theirs, strict=True)]


def test_masks_predicted_iou_and_object_scores_are_equal(pair, every):
    assert max(differences(every, run_official(pair))) < TOLERANCE


@pytest.mark.parametrize("multi", [False, *slow(True)])
def test_the_chosen_masks_are_equal(pair, multi):
    ours = run(pair, "multi" if multi else "single")
    official = pair.official
    masks, iou, _, scores = official.sam_mask_decoder(**official_arguments(official), multimask_output=multi)
    assert max(differences(ours, (masks, iou, scores[:, 0]))) < TOLERANCE


def finer_map_left_out(decoder):
    decoder.conv_s0.weight.zero_()
    decoder.conv_s0.bias.zero_()


def no_sigmoid(decoder):
    decoder.iou_prediction_head.sigmoid_output = False


def tanh_gelu(decoder):
    decoder.output_upscaling[2] = torch.nn.GELU(approximate="tanh")


def object_and_iou_token_swapped(decoder):
    swapped = decoder.iou_token.weight.clone()
    decoder.iou_token.weight.copy_(decoder.obj_score_token.weight)
    decoder.obj_score_token.weight.copy_(swapped)


@pytest.mark.parametrize("mistake", [finer_map_left_out, no_sigmoid, tanh_gelu, object_and_iou_token_swapped])
def test_mistakes_are_seen(pair, every, mistake):
    faulty = pair.faulty(lambda sam: mistake(sam.sam_mask_decoder))
    assert max(differences(every, run_official(faulty))) > SEEN


@pytest.mark.parametrize("deviation", [0.01, 0.5, 2.0, 30.0])
def test_an_unstable_single_mask_is_replaced_as_officially(pair, deviation):
    logits = deviation * np.random.default_rng(0).standard_normal((5, 4, 24, 24))
    logits[4, 0] = -1  # empty, hence stable
    iou = np.random.default_rng(1).random((5, 4))
    ours = stable_or_best(jnp.asarray(logits[None]), jnp.asarray(iou[None]))
    theirs = pair.official.sam_mask_decoder._dynamic_multimask_via_stability(*map(torch.from_numpy, (logits, iou)))
    for our, their in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(our[0], their.numpy())
    replaced = np.asarray(ours[1])[0, :, 0] != iou[:, 0]
    assert replaced.tolist() == [deviation < 10] * 4 + [False]


def test_cells_are_the_inverse_of_pixels():
    maps = np.arange(2 * 8 * 12 * 3.0).reshape(2, 8, 12, 3)
    assert cells(jnp.asarray(maps), 2).shape == (2, 2, 3, 2, 2, 2, 2, 3)
    np.testing.assert_array_equal(pixels(cells(jnp.asarray(maps), 2)), maps)
    np.testing.assert_array_equal(cells(jnp.asarray(maps), 1)[1, 2, 4, :, :, 0], maps[1, 4:6, 8:10, 0])


def test_a_box_gets_a_token_that_is_no_point_and_others_have_theirs():
    box, point = [1, 2, 3, 4], [[5, 6]]
    prompts = [([], box), (point, box), (point, None), ([], None)]
    tokens = [
        sparse_tokens(np.reshape(points, (-1, 2)), np.ones(len(points), int), box and np.array(box), length=4)
        for points, box in prompts
    ]
    padded = with_padding_point(Prompts(*(jnp.asarray(np.stack(column)[None]) for column in zip(*tokens, strict=True))))
    labels = [padded.labels[0, n][padded.valid[0, n]].tolist() for n in range(4)]
    assert labels == [[2, 3, -1], [1, 2, 3, -1], [1, -1], []]
    assert padded.coords.shape == (1, 4, 5, 2)


def test_an_embedding_of_sam_is_refused():
    sam, params = small.sam2()
    embedding = ImageEmbedding(jnp.zeros((1, 4, 4, WIDTH)))
    prompts = Prompts(jnp.zeros((1, 1, 1, 2)), jnp.ones((1, 1, 1), jnp.int32), jnp.ones((1, 1, 1), bool))
    with pytest.raises(InputError, match="no finer maps, which SAM 2 needs"):
        sam.apply({"params": params}, embedding, prompts, method="decode")
