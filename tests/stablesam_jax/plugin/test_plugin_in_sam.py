"""A plugin within a decoder: attention before and after it, and its arithmetic in bfloat16."""

import dataclasses
import functools

import flax.linen as nn
import jax
import numpy as np
import pytest
from PIL import Image

from eval.parity.__main__ import IMAGE
from stablesam_jax.build import assemble, load_model, with_plugin
from stablesam_jax.config import PluginConfig
from stablesam_jax.model.prompt_encoder import Prompts
from stablesam_jax.model.sam import ImageEmbedding
from stablesam_jax.predict.predictor import Predictor
from tests.reference import small as small_nano
from tests.reference.sam_pair import quick_jit


def normal(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


IN_SAM = PluginConfig(attentions=(1, 2))
PROMPTS = Prompts(
    coords=np.array([[[[20.0, 30.0]], [[40.0, 12.0]]]], np.float32),
    labels=np.ones((1, 2, 1), np.int32),
    valid=np.ones((1, 2, 1), bool),
)
EMBEDDING = ImageEmbedding(np.random.default_rng(0).standard_normal((1, 4, 4, 256), np.float32))


def decode(sam, params, mutable=()):
    return sam.apply({"params": params}, EMBEDDING, PROMPTS, method="decode", mutable=list(mutable))


@functools.cache
def looked_into(noise: float):
    """The collection `attention` of a decoder whose plugin has been moved from its start by noise."""
    sam, params = small_nano.system(hq=False, plugin=IN_SAM)
    plugin = jax.tree.map(lambda leaf: leaf + noise * normal(3, *leaf.shape), params["plugin"])
    _, seen = quick_jit(lambda params: decode(sam, params, ["attention"]))(params | {"plugin": plugin})
    transformer = seen["attention"]["mask_decoder"]["transformer"]
    return transformer["layers_1"]["cross_attn_token_to_image"], transformer["final_attn_token_to_image"]


@pytest.mark.slow
def test_attention_before_and_after_is_available_by_name_where_the_plugin_sits():
    for seen in looked_into(0.3):
        (before,), (after,) = seen["before"], seen["after"]
        assert before.shape == after.shape == (1, 2, 8, 6, 4, 4)  # pictures, prompts, heads, tokens, grid
        np.testing.assert_allclose(before.sum(axis=(-2, -1)), np.ones((1, 2, 8, 6)), rtol=1e-5)
        np.testing.assert_allclose(after.sum(axis=(-2, -1)), np.ones((1, 2, 8, 6)), rtol=1e-5)
        assert np.abs(after - before).max() > 1e-3


@pytest.mark.slow
def test_at_the_start_attention_is_the_same_before_and_after():
    for seen in looked_into(0.0):
        np.testing.assert_array_equal(*seen["before"], *seen["after"])


@pytest.mark.slow
@pytest.mark.parametrize(("asked_for", "computed"), [([], 0), (["intermediates"], 0), (["attention"], 2 + 2)])
def test_weights_of_attention_that_nobody_asks_for_are_not_computed(asked_for, computed):
    sam, params = small_nano.system(hq=False, plugin=IN_SAM)
    called = []

    def note(call, arguments, options, context):
        if context.method_name == "weights":
            called.append(context.module.name)
        return call(*arguments, **options)

    with nn.intercept_methods(note):
        jax.eval_shape(functools.partial(decode, sam, mutable=asked_for), params)
    assert sum(name.endswith("token_to_image") for name in called) == computed


@pytest.mark.slow
def test_bfloat16_changes_less_than_a_hundredth_of_the_masks_pixels():
    """sam_nano as it is shipped, with a plugin that moves up to 8 cells of 64 and decides by the token."""
    sam, params = with_plugin(*load_model("sam_nano"), PluginConfig(), jax.random.key(0))
    params["plugin"]["dsp"]["offset"]["kernel"] = 0.1 * normal(1, 256, 2)  # tanh of numbers of deviation 1
    params["plugin"]["drp"]["logits"]["kernel"] = 0.3 * normal(2, 32, 2)
    picture = np.asarray(Image.open(IMAGE))
    height, width = picture.shape[:2]
    corners = np.sort(np.random.default_rng(3).uniform(0, (width, height), (8, 2, 2)), axis=1)
    masks = {}
    for dtype in ("float32", "bfloat16"):
        predictor = Predictor(assemble(dataclasses.replace(sam.config, dtype=dtype)), params)
        predictor.set_image(picture)
        masks[dtype], _, _ = predictor.predict(box=corners.reshape(8, 4), multimask_output=False)
    assert 0.02 < masks["float32"].mean() < 0.9
    assert np.mean(masks["float32"] != masks["bfloat16"]) < 0.01
