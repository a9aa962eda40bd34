"""The whole Sam: batches, padding, absent masks and the place of a plugin."""

import dataclasses

import flax.linen as nn
import jax
import numpy as np
import pytest
import torch

from stablesam_jax.build import assemble, shapes
from stablesam_jax.config import MODELS, PluginConfig
from stablesam_jax.model.prompt_encoder import Prompts
from stablesam_jax.model.sam import Sam
from stablesam_jax.params import count
from tests.reference.sam_pair import CONFIG, TOLERANCE, difference, float64_pair, normal

PICTURES = normal(2, CONFIG.image_size, CONFIG.image_size, 3)
COORDS = np.random.default_rng(0).uniform(0, CONFIG.image_size, (2, 3, 4, 2))
# A point and its padding token; three points, one of them negative, and theirs; a box.
LABELS = np.broadcast_to(np.array([[1, -1, -1, -1], [1, 0, 1, -1], [2, 3, -1, -1]]), (2, 3, 4))
VALID = np.broadcast_to(np.arange(4) < np.array([[2], [4], [2]]), (2, 3, 4))
MASKS = 8 * normal(2, 3, CONFIG.mask_size, CONFIG.mask_size, seed=1)
MASKS_VALID = np.array([[False, False, True], [False, True, False]])
PROMPTS = Prompts(COORDS, LABELS, VALID, MASKS, MASKS_VALID)
APPLY = jax.jit(assemble(CONFIG).apply, static_argnames=("method", "masks"))


@pytest.fixture(scope="module")
def pair():
    with float64_pair() as pair:
        yield pair


@pytest.fixture(scope="module")
def embeddings(pair):
    return APPLY({"params": pair.params}, PICTURES, method="encode")


def decode(pair, embeddings, prompts):
    return APPLY({"params": pair.params}, embeddings, prompts, method="decode", masks="all").low_res_masks


def official_logits(pair, picture, prompt):
    """All four masks of one prompt of one picture."""
    sam = pair.official
    embedding = sam.image_encoder(torch.from_numpy(PICTURES[picture]).permute(2, 0, 1)[None])
    coords = torch.from_numpy(COORDS[picture, prompt])
    mask = torch.from_numpy(MASKS[picture, prompt])[None, None] if MASKS_VALID[picture, prompt] else None
    if prompt == 2:
        sparse, dense = sam.prompt_encoder(None, coords[:2].reshape(1, 4), mask)
    else:
        points = VALID[picture, prompt].sum() - 1  # the official encoder adds the padding token itself
        labels = torch.tensor(LABELS[picture, prompt, :points])
        sparse, dense = sam.prompt_encoder((coords[None, :points], labels[None]), None, mask)
    return sam.mask_decoder.predict_masks(embedding, sam.prompt_encoder.get_dense_pe(), sparse, dense)[0]


def test_two_pictures_with_three_prompts_equal_the_official_model_one_by_one(pair, embeddings):
    ours = decode(pair, embeddings, PROMPTS)
    assert ours.shape == (2, 3, 4, CONFIG.mask_size, CONFIG.mask_size)
    for picture in range(2):
        for prompt in range(3):
            assert difference(ours[picture, prompt][None], official_logits(pair, picture, prompt)) < TOLERANCE


def test_more_padding_changes_nothing(pair, embeddings):
    longer = PROMPTS.replace(
        coords=np.concatenate([COORDS, 99 * normal(2, 3, 5, 2)], axis=2),
        labels=np.concatenate([LABELS, np.ones((2, 3, 5), int)], axis=2),
        valid=np.concatenate([VALID, np.zeros((2, 3, 5), bool)], axis=2),
    )
    whole = decode(pair, embeddings, PROMPTS)
    np.testing.assert_allclose(decode(pair, embeddings, longer), whole, rtol=0, atol=1e-10)


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
    def __call__(self, keys, tokens):
        return keys + self.param("shift", nn.initializers.zeros, ())


@pytest.mark.parametrize("attentions", [(1,), (0, 2)], ids=str)
def test_a_plugin_works_at_its_attentions_and_renames_nothing(pair, embeddings, attentions):
    config = dataclasses.replace(CONFIG, plugin=PluginConfig(attentions=attentions))
    sam = Sam(config, plugin=Shift())

    @jax.jit
    def run(shift):
        variables = {"params": pair.params | {"plugin": {"shift": shift}}}
        return sam.apply(variables, embeddings, PROMPTS, method="decode", masks="all").low_res_masks

    whole = decode(pair, embeddings, PROMPTS)
    np.testing.assert_allclose(run(0.0), whole, rtol=0, atol=1e-10)
    assert np.abs(run(1.0) - whole).max() > 0.01


@pytest.mark.parametrize(
    ("name", "numbers"), [("sam_vit_b", 93_735_728), ("sam_vit_l", 312_343_088), ("sam_vit_h", 641_090_864)]
)
def test_models_have_the_official_number_of_parameters(name, numbers):
    with jax.enable_x64(False):  # the fixture above leaves it on
        assert count(shapes(assemble(MODELS[name]))) == numbers
