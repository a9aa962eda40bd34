"""The whole Sam: batches, padding, absent masks and the place of a plugin."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from eval.parity import torch_sam, torch_sam2
from stablesam_jax.build import assemble, shapes
from stablesam_jax.config import MODELS, PluginConfig
from stablesam_jax.errors import InputError
from stablesam_jax.model.prompt_encoder import Prompts
from stablesam_jax.model.sam import ImageEmbedding, Sam
from stablesam_jax.params import count
from tests.reference.sam_pair import (
    CONFIG,
    HQ_CONFIG,
    SAM2_CONFIG,
    TINY_CONFIG,
    TOLERANCE,
    difference,
    float64_pair,
    normal,
    quick_jit,
)
from tests.reference.tiers import slow

# A point and its padding token; three points, one of them negative, and theirs; a box.
LABELS = np.broadcast_to(np.array([[1, -1, -1, -1], [1, 0, 1, -1], [2, 3, -1, -1]]), (2, 3, 4))
VALID = np.broadcast_to(np.arange(4) < np.array([[2], [4], [2]]), (2, 3, 4))
MASKS_VALID = np.array([[False, False, True], [False, True, False]])


def draw(config):
    """Two pictures, and three prompts for each."""
    pictures = normal(2, config.image_size, config.image_size, 3)
    coords = np.random.default_rng(0).uniform(0, config.image_size, (2, 3, 4, 2))
    masks = 8 * normal(2, 3, config.mask_size, config.mask_size, seed=1)
    return pictures, Prompts(coords, LABELS, VALID, masks, MASKS_VALID)


PICTURES, PROMPTS = draw(CONFIG)
COORDS = PROMPTS.coords
APPLY = quick_jit(assemble(CONFIG).apply, static_argnames=("method", "masks"))


@pytest.fixture(scope="module")
def pair():
    with float64_pair() as pair:
        yield pair


@pytest.fixture(scope="module")
def embeddings(pair):
    return APPLY({"params": pair.params}, PICTURES, method="encode")


def decode(pair, embeddings, prompts):
    return APPLY({"params": pair.params}, embeddings, prompts, method="decode", masks="all").low_res_masks


def official_logits(sam, picture, prompts, index):
    """All masks of one prompt, those of the HQ token last, and their predicted IoU."""
    if isinstance(sam, torch_sam2.SAM2Base):
        return official_sam2_logits(sam, picture, prompts, index)
    encoded = sam.image_encoder(torch.from_numpy(picture).permute(2, 0, 1)[None])
    coords, labels, valid = (torch.tensor(tokens[index]) for tokens in (prompts.coords, LABELS, VALID))
    mask = torch.from_numpy(prompts.masks[index])[None, None] if MASKS_VALID[index] else None
    if labels[0] == 2:
        sparse, dense = sam.prompt_encoder(None, coords[:2].reshape(1, 4), mask)
    else:
        points = valid.sum() - 1  # the official encoder adds the padding token itself
        sparse, dense = sam.prompt_encoder((coords[None, :points], labels[None, :points]), None, mask)
    rest = (sam.prompt_encoder.get_dense_pe(), sparse, dense)
    if not isinstance(encoded, tuple):
        return sam.mask_decoder.predict_masks(encoded, *rest)
    features, (early, *_) = encoded
    return sam.mask_decoder.predict_masks(
        features, *rest, torch_sam.picture_features(sam.mask_decoder, features, early)
    )


def official_sam2_logits(sam, picture, prompts, index):
    """The same of a SAM 2, which takes a box for two points of labels 2 and 3."""
    *high_res, features = sam.forward_image(torch.from_numpy(picture).permute(2, 0, 1)[None])["backbone_fpn"]
    coords, labels, valid = (torch.tensor(tokens[index])[None] for tokens in (prompts.coords, LABELS, VALID))
    points = 2 if labels[0, 0] == 2 else valid.sum() - 1
    mask = torch.from_numpy(prompts.masks[index])[None, None] if MASKS_VALID[index] else None
    sparse, dense = sam.sam_prompt_encoder((coords[:, :points], labels[:, :points]), None, mask)
    masks, iou, _, _ = sam.sam_mask_decoder.predict_masks(
        image_embeddings=features + sam.no_mem_embed.reshape(1, -1, 1, 1),
        image_pe=sam.sam_prompt_encoder.get_dense_pe(),
        sparse_prompt_embeddings=sparse,
        dense_prompt_embeddings=dense,
        repeat_image=False,
        high_res_features=high_res,
    )
    return masks, iou


@pytest.mark.parametrize(
    "config",
    [CONFIG, *slow(HQ_CONFIG, TINY_CONFIG, SAM2_CONFIG)],
    ids=["vit", "hq-vit", "hq-tiny-vit", "sam2"],
)
def test_two_pictures_with_three_prompts_equal_the_official_model_one_by_one(config):
    pictures, prompts = draw(config)
    run = quick_jit(functools.partial(assemble(config).apply, method=answer_all))
    with float64_pair(config) as pair:
        logits, iou_predictions = run({"params": pair.params}, pictures, prompts)
        assert logits.shape == (2, 3, 5 if config.hq else 4, config.mask_size, config.mask_size)
        for index in np.ndindex(2, 3):
            theirs, their_iou = official_logits(pair.official, pictures[index[0]], prompts, index)
            assert difference(logits[index][None], theirs) < TOLERANCE
            assert difference(iou_predictions[index][None], their_iou) < TOLERANCE


def answer_all(sam, pictures, prompts, at_once=False):
    masks = sam.decode(sam.encode(pictures), prompts, masks="all", at_once=at_once)
    every = [masks.low_res_masks] if masks.hq_masks is None else [masks.low_res_masks, masks.hq_masks]
    return jnp.concatenate(every, axis=2), masks.iou_predictions


@pytest.mark.slow
@pytest.mark.parametrize(
    "config", [pytest.param(CONFIG, id="sam"), pytest.param(HQ_CONFIG, id="hq-sam", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize(
    "masks", [pytest.param(None, marks=pytest.mark.slow, id="box"), pytest.param(PROMPTS.masks, id="box-and-mask")]
)
def test_prompts_one_by_one_equal_prompts_at_once(config, masks):
    sam = assemble(config)
    run = quick_jit(functools.partial(sam.apply, method=answer_all), static_argnames="at_once")
    prompts = PROMPTS if masks is not None else Prompts(COORDS, LABELS, VALID)
    pictures, _ = draw(config)
    with float64_pair(config) as pair:
        one_by_one, at_once = (run({"params": pair.params}, pictures, prompts, at_once=way) for way in (False, True))
    for ours, theirs in zip(one_by_one, at_once, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("more", [5, 12])  # with 12 image features are projected, with fewer the tokens
def test_more_padding_changes_nothing(pair, embeddings, more):
    longer = PROMPTS.replace(
        coords=np.concatenate([COORDS, 99 * normal(2, 3, more, 2)], axis=2),
        labels=np.concatenate([LABELS, np.ones((2, 3, more), int)], axis=2),
        valid=np.concatenate([VALID, np.zeros((2, 3, more), bool)], axis=2),
    )
    whole = decode(pair, embeddings, PROMPTS)
    np.testing.assert_allclose(decode(pair, embeddings, longer), whole, rtol=0, atol=1e-10)


@pytest.mark.slow
def test_the_order_of_prompt_tokens_means_nothing(pair, embeddings):
    reversed_ = jax.tree.map(lambda tokens: tokens[:, :, ::-1], Prompts(COORDS, LABELS, VALID))
    whole = decode(pair, embeddings, Prompts(COORDS, LABELS, VALID))
    np.testing.assert_allclose(decode(pair, embeddings, reversed_), whole, rtol=0, atol=1e-10)


@pytest.mark.slow
def test_prompts_without_masks_equal_prompts_whose_masks_are_absent(pair, embeddings):
    without = decode(pair, embeddings, Prompts(COORDS, LABELS, VALID))
    absent = decode(pair, embeddings, PROMPTS.replace(masks_valid=np.zeros((2, 3), bool)))
    np.testing.assert_allclose(without, absent, rtol=0, atol=1e-10)


def test_a_prompt_of_nothing_has_finite_masks(pair, embeddings):
    nothing = Prompts(COORDS, LABELS, np.zeros_like(VALID))
    assert np.isfinite(decode(pair, embeddings, nothing)).all()


class Shift(nn.Module):
    """A plugin that adds one number to the keys."""

    @nn.compact
    def __call__(self, keys, key_pe, tokens, attention):
        return keys + self.param("shift", nn.initializers.zeros, ()), key_pe


@pytest.mark.parametrize("attentions", [pytest.param((1,), marks=pytest.mark.slow), (0, 2)], ids=str)
def test_a_plugin_works_at_its_attentions_and_renames_nothing(pair, embeddings, attentions):
    config = dataclasses.replace(
        CONFIG, plugin=PluginConfig(attentions=attentions, embedding_width=CONFIG.embedding_width)
    )
    sam = Sam(config, plugin=Shift())

    @jax.jit
    def run(shift):
        variables = {"params": pair.params | {"plugin": {"shift": shift}}}
        return sam.apply(variables, embeddings, PROMPTS, method="decode", masks="all").low_res_masks

    whole = decode(pair, embeddings, PROMPTS)
    np.testing.assert_allclose(run(0.0), whole, rtol=0, atol=1e-10)
    assert np.abs(run(1.0) - whole).max() > 0.01


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "numbers"),
    [("sam_vit_b", 93_735_728), ("sam_vit_l", 312_343_088), ("sam_vit_h", 641_090_864)],
)
def test_models_have_the_official_number_of_parameters(name, numbers):
    with jax.enable_x64(False):  # the fixture above leaves it on
        assert count(shapes(assemble(MODELS[name]))) == numbers


def test_hq_sam_says_what_an_embedding_of_sam_lacks():
    sam = assemble(HQ_CONFIG)
    embedding = ImageEmbedding(jnp.zeros((1, HQ_CONFIG.grid_size, HQ_CONFIG.grid_size, HQ_CONFIG.embedding_width)))
    prompts = Prompts(coords=jnp.zeros((1, 1, 2, 2)), labels=jnp.ones((1, 1, 2), jnp.int32), valid=jnp.ones((1, 1, 2)))
    with pytest.raises(InputError, match="no early features, which HQ-SAM needs; encode the picture with HQ-SAM"):
        jax.eval_shape(lambda: sam.apply({"params": shapes(sam)}, embedding, prompts, method="decode"))
