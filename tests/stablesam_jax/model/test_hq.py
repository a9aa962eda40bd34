"""HQ-SAM's branch equals the official one in float64, and the comparison sees the usual mistakes."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
import torch

from eval.parity import torch_sam
from stablesam_jax.build import assemble
from stablesam_jax.model.mask_decoder import MaskDecoder
from stablesam_jax.model.prompt_encoder import Prompts
from tests.reference.sam_pair import HQ_CONFIG, SEEN, TOLERANCE, difference, float64_pair, normal, quick_jit

GRID = 6  # any map does; a small one is quick
WIDTH = HQ_CONFIG.embedding_width
EARLY_WIDTH = HQ_CONFIG.encoder.width
PICTURES = 2
EMBEDDINGS = normal(PICTURES, GRID, GRID, WIDTH, seed=1)
EARLY = normal(PICTURES, GRID, GRID, EARLY_WIDTH, seed=2)
IMAGE_PE = normal(1, 1, GRID, GRID, WIDTH, seed=3)
SPARSE = normal(PICTURES, 3, 2, WIDTH, seed=4)
DENSE = normal(PICTURES, 3, GRID, GRID, WIDTH, seed=5)
ALL = np.ones(SPARSE.shape[:3], bool)
DECODER = MaskDecoder(WIDTH, hq=True)
APPLY = quick_jit(DECODER.apply, static_argnames=("masks", "hq_token_only"))
FUSE = quick_jit(lambda variables, *maps: DECODER.apply(variables, *maps, method="picture_features"))


@pytest.fixture(scope="module")
def pair():
    with float64_pair(HQ_CONFIG) as pair:
        yield pair


def as_map(x):
    return torch.from_numpy(x).permute(0, 3, 1, 2)


def run(pair, masks, hq_token_only=False):
    variables = {"params": pair.params["mask_decoder"]}
    features = FUSE(variables, EMBEDDINGS, EARLY)
    return APPLY(
        variables,
        EMBEDDINGS,
        IMAGE_PE,
        SPARSE,
        DENSE,
        ALL,
        hq_features=features,
        masks=masks,
        hq_token_only=hq_token_only,
    )


def inputs(picture):
    """Of the official decoder, which takes one picture."""
    return {
        "image_embeddings": as_map(EMBEDDINGS[picture][None]),
        "image_pe": as_map(IMAGE_PE[0]),
        "sparse_prompt_embeddings": torch.from_numpy(SPARSE[picture]),
        "dense_prompt_embeddings": as_map(DENSE[picture]),
    }


def official_features(pair, picture):
    decoder = pair.official.mask_decoder
    return torch_sam.picture_features(
        decoder, as_map(EMBEDDINGS[picture][None]), torch.from_numpy(EARLY[picture][None])
    )


def official_answer(pair, picture, multimask_output, hq_token_only):
    return pair.official.mask_decoder(
        **inputs(picture),
        multimask_output=multimask_output,
        hq_token_only=hq_token_only,
        interm_embeddings=[torch.from_numpy(EARLY[picture][None])],
    )


def hq_difference(pair):
    masks, _ = pair.official.mask_decoder.predict_masks(**inputs(0), hq_features=official_features(pair, 0))
    return difference(run(pair, "all").hq_masks[0], masks[:, 4:])


def test_features_of_the_picture_are_equal(pair):
    features = FUSE({"params": pair.params["mask_decoder"]}, EMBEDDINGS, EARLY)
    for picture in range(PICTURES):
        theirs = official_features(pair, picture).permute(0, 2, 3, 1)
        assert difference(features[picture][None], theirs) < TOLERANCE


def test_all_masks_are_sams_four_and_the_tokens_own(pair):
    answer = run(pair, "all")
    for picture in range(PICTURES):
        masks, iou = pair.official.mask_decoder.predict_masks(
            **inputs(picture), hq_features=official_features(pair, picture)
        )
        assert difference(answer.low_res_masks[picture], masks[:, :4]) < TOLERANCE
        assert difference(answer.hq_masks[picture], masks[:, 4:]) < TOLERANCE
        assert difference(answer.iou_predictions[picture], iou) < TOLERANCE


@pytest.mark.parametrize("hq_token_only", [False, True])
@pytest.mark.parametrize("masks", ["single", "multi"])
def test_the_answer_is_one_mask_as_officially(pair, masks, hq_token_only):
    answer = run(pair, masks, hq_token_only)
    assert answer.hq_masks is None
    for picture in range(PICTURES):
        logits, iou = official_answer(pair, picture, masks == "multi", hq_token_only)
        assert difference(answer.low_res_masks[picture], logits) < TOLERANCE
        assert difference(answer.iou_predictions[picture], iou) < TOLERANCE


def test_of_equally_good_masks_the_first_is_taken(pair):
    def predict(sam):
        head = sam.mask_decoder.iou_prediction_head.layers[2]
        head.weight.zero_()
        head.bias.copy_(torch.tensor([0.9, 0.1, 0.8, 0.8]))

    head = {"kernel": jnp.zeros((WIDTH, 4)), "bias": jnp.array([0.9, 0.1, 0.8, 0.8])}
    decoder = pair.params["mask_decoder"]
    heads = decoder["iou_prediction_head"] | {"layers_2": head}
    params = pair.params | {"mask_decoder": decoder | {"iou_prediction_head": heads}}
    equally = dataclasses.replace(pair.faulty(predict), params=params)
    multi, every = run(equally, "multi"), run(equally, "all")
    assert difference(multi.low_res_masks[0], official_answer(equally, 0, True, False)[0]) < TOLERANCE
    second = every.low_res_masks[:, :, 2:3] + every.hq_masks
    np.testing.assert_allclose(multi.low_res_masks, second, rtol=0, atol=1e-10)
    assert (multi.iou_predictions == 0.8).all()


@pytest.mark.slow
def test_from_picture_to_mask_it_is_the_official_model(pair):
    sam, official = assemble(HQ_CONFIG), pair.official
    variables = {"params": pair.params}
    picture = normal(1, HQ_CONFIG.image_size, HQ_CONFIG.image_size, 3)
    box = np.array([[[[40.0, 50.0], [250.0, 200.0]]]])
    prompts = Prompts(box, np.array([[[2, 3]]]), np.ones((1, 1, 2), bool))
    embedding = quick_jit(lambda variables: sam.apply(variables, picture, method="encode"))(variables)
    features, early = official.image_encoder(as_map(picture))
    assert difference(embedding.features, features.permute(0, 2, 3, 1)) < TOLERANCE
    assert difference(embedding.early, early[0]) < TOLERANCE

    decode = quick_jit(lambda variables, embedding: sam.apply(variables, embedding, prompts, method="decode"))
    sparse, dense = official.prompt_encoder(None, torch.from_numpy(box.reshape(1, 4)), None)
    pe = official.prompt_encoder.get_dense_pe()
    logits, _ = official.mask_decoder(features, pe, sparse, dense, False, False, early)
    answer = decode(variables, embedding).low_res_masks
    assert difference(answer[0], logits) < TOLERANCE

    fused = quick_jit(lambda variables, embedding: sam.apply(variables, embedding, method="fuse"))(variables, embedding)
    assert fused.early is None
    np.testing.assert_allclose(decode(variables, fused).low_res_masks, answer, rtol=0, atol=1e-10)


def token_before_the_mask_tokens(decoder):
    tokens = torch.cat([decoder.hf_token.weight, decoder.mask_tokens.weight])
    decoder.mask_tokens.weight.copy_(tokens[:4])
    decoder.hf_token.weight.copy_(tokens[4:])


def gelu_after_the_embedding(decoder):
    decoder.embedding_encoder.append(torch.nn.GELU())


def gelu_after_the_early_features(decoder):
    decoder.compress_vit_feat.append(torch.nn.GELU())


def gelu_after_the_masks_features(decoder):
    decoder.embedding_maskfeature.append(torch.nn.GELU())


def flipped_kernel(decoder):
    kernel = decoder.compress_vit_feat[0].weight
    kernel.copy_(kernel.flip(2, 3))


def flipped_second_kernel(decoder):
    kernel = decoder.embedding_encoder[3].weight
    kernel.copy_(kernel.flip(2, 3))


def tanh_gelu(decoder):
    decoder.embedding_maskfeature[2].approximate = "tanh"


def eps_of_the_transformer(decoder):
    decoder.compress_vit_feat[1].eps = 1e-5


def a_hypernetwork_of_sam(decoder):
    decoder.hf_mlp = decoder.output_hypernetworks_mlps[3]


@pytest.mark.parametrize(
    "mistake",
    [
        token_before_the_mask_tokens,
        gelu_after_the_embedding,
        gelu_after_the_early_features,
        gelu_after_the_masks_features,
        flipped_kernel,
        flipped_second_kernel,
        tanh_gelu,
        eps_of_the_transformer,
        a_hypernetwork_of_sam,
    ],
)
def test_mistakes_are_seen(pair, mistake):
    assert hq_difference(pair.faulty(lambda sam: mistake(sam.mask_decoder))) > SEEN
