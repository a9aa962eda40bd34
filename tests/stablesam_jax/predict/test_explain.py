"""An explanation is what the decoder did: its own attention weights, offsets and alphas, in pixels of the picture."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import stablesam_jax.predict.explain as module
from stablesam_jax import Predictor, build
from stablesam_jax.config import Frame, PluginConfig
from stablesam_jax.errors import InputError
from stablesam_jax.model import transformer
from stablesam_jax.predict.explain import explain
from stablesam_jax.predict.preprocess import in_model_frame
from stablesam_jax.predict.slots import stack
from stablesam_jax.visualize import attention_figure
from tests.reference import small

SQUARE = np.random.default_rng(0).integers(0, 256, (small.SIZE, small.SIZE, 3), np.uint8)
BOXES = np.array([[10, 12, 50, 40], [0, 0, 63, 63], [30, 5, 60, 30]], np.float32)
CELLS = small.CONFIG.grid_size**2


@functools.cache
def predictor(*, picture=(small.SIZE, small.SIZE), **fields):
    """With every parameter of the plugin random, so that it bends offsets and mixes unevenly; drawn, not compiled."""
    config = PluginConfig(**fields)
    rng = np.random.default_rng(1)
    shapes = build.shapes(build.assemble(dataclasses.replace(small.CONFIG, plugin=config)))["plugin"]
    drawn = jax.tree.map(lambda leaf: 0.3 * rng.standard_normal(leaf.shape, np.float32), shapes)
    made = Predictor(*build.with_plugin(*small.nano(), config, drawn))
    made.set_image(SQUARE[: picture[0], : picture[1]])
    return made


def decoder(monkeypatch, sam, params, predictor, token=1):
    """Attention of a token as the decoder's own softmax gave it, each (N, G, G); what was sown."""

    @jax.jit
    def run(params, embedding, prompts):
        seen = []
        monkeypatch.setattr(transformer, "softmax", lambda *given: seen.append(softmax(*given)) or seen[-1])
        _, state = sam.apply({"params": params}, embedding, prompts, method="decode", mutable=["intermediates"])
        to_image = [
            weights.reshape(-1, transformer.HEADS, tokens, CELLS)[:, :, token].mean(axis=1).reshape(-1, 4, 4)
            for weights in seen
            if weights.shape[-1] == CELLS
        ]
        return to_image, state.get("intermediates", {}).get("plugin")

    softmax = transformer.softmax
    tokens = len(BOXES[0]) // 2 + (6 if sam.config.hq else 5)
    picture = predictor._chosen(None, None)
    prompts, _ = predictor._prompts(picture, None, None, BOXES, None)
    prompts = [in_model_frame(prompt, picture.original_size, Frame(small.SIZE)) for prompt in prompts]
    found = jax.device_get(run(params, picture.embedding, stack(prompts, 2)))
    monkeypatch.undo()
    return found


@pytest.mark.slow
def test_attention_offsets_and_alpha_are_those_of_the_decoder(monkeypatch):
    ours = predictor(attentions=(0, 1, 2))
    after, plugin = decoder(monkeypatch, ours.sam, ours.params, ours)
    bare, _ = decoder(monkeypatch, *small.nano(), ours)
    assert len(after) == len(bare) == 3
    cells = 16 * np.stack(np.meshgrid(np.arange(4), np.arange(4)), axis=-1) + 7.5
    for attention in range(3):
        found = explain(ours, box=BOXES, attention=attention)
        # Two orders of summation in float32; weights are at most 1.
        if attention == 0:  # nothing has touched the tokens yet
            np.testing.assert_allclose(found.before, bare[0], atol=1e-6)
        np.testing.assert_allclose(found.after, after[attention], atol=1e-6)
        np.testing.assert_allclose(found.alpha, plugin["alpha"][attention][0], atol=1e-6)
        moved = np.clip(cells + 16 * np.asarray(plugin["offsets"][attention][0]), 7.5, 55.5)
        np.testing.assert_allclose(found.positions, np.broadcast_to(moved, (3, 4, 4, 2)), atol=1e-4)
        assert np.abs(found.positions - cells).max() > 1
        assert np.abs(found.before - found.after).max() > 1e-4


@pytest.mark.slow
def test_of_hq_sam_it_is_the_attention_of_the_hq_token(monkeypatch):
    ours = Predictor(*small.system(hq=True, plugin=PluginConfig()))
    ours.set_image(SQUARE)
    after, _ = decoder(monkeypatch, ours.sam, ours.params, ours, token=5)
    found = explain(ours, box=BOXES)
    np.testing.assert_allclose(found.after, after[2], atol=1e-6)
    other, _ = decoder(monkeypatch, ours.sam, ours.params, ours, token=1)
    assert np.abs(found.after - other[2]).max() > 1e-4


@pytest.mark.slow
def test_an_untrained_plugin_reads_the_cells_themselves_and_changes_no_attention():
    untrained = Predictor(*small.stable_nano())
    untrained.set_image(SQUARE)
    found = explain(untrained, box=BOXES)
    np.testing.assert_array_equal(found.positions, np.broadcast_to(found.cells, (3, 4, 4, 2)))
    np.testing.assert_array_equal(found.alpha, np.full((3, 2), 0.5))
    np.testing.assert_allclose(found.after, found.before, atol=1e-6)
    np.testing.assert_allclose(found.before.sum((1, 2)), 1, atol=1e-6)


@pytest.mark.slow
def test_no_boxes_have_no_explanations():
    found, one = explain(predictor(), box=np.zeros((0, 4))), explain(predictor(), box=BOXES[:1])
    assert found.prompts == ()
    np.testing.assert_array_equal(found.cells, one.cells)
    for name in ("positions", "alpha", "before", "after"):
        assert getattr(found, name).shape == (0, *getattr(one, name).shape[1:])


@pytest.mark.slow
def test_more_prompts_than_a_slot_holds_are_explained_as_alone():
    boxes = np.tile(BOXES, (9, 1)) + np.arange(27)[:, None] / 10 * [1, 1, 0, 0]
    found, alone = explain(predictor(), box=boxes), explain(predictor(), box=boxes[25])
    assert len(found.alpha) == 27
    np.testing.assert_allclose(found.after[25], alone.after[0], atol=1e-6)
    np.testing.assert_allclose(found.alpha[25], alone.alpha[0], atol=1e-6)


@pytest.mark.slow
def test_fifty_random_calls_compile_once_for_a_slot(monkeypatch):
    ours = predictor(groups=2)
    traced, seen = [], set()

    @jax.jit
    def look(variables, embedding, prompts):
        traced.append(prompts.labels.shape)
        count = prompts.labels.shape[1]
        shown = module._Seen(*(jnp.zeros((count, *shape)) for shape in ((2, 4, 4, 2), (2,), (4, 4), (4, 4))))
        return dict.fromkeys((0, 2), shown)

    monkeypatch.setattr(module, "_looking", lambda sam: look)
    rng = np.random.default_rng(0)
    for _ in range(50):
        count, points, with_mask, group = rng.integers((1, 1, 0, 0), (24, 8, 2, 2))
        arguments = {"mask_input": np.zeros((count, 1, 16, 16))} if with_mask else {}
        found = explain(
            ours,
            rng.uniform(0, 60, (count, points, 2)),
            np.ones((count, points)),
            attention=rng.choice([0, 2]),
            group=group,
            **arguments,
        )
        assert found.positions.shape == (count, 4, 4, 2)
        slot = next(slot for slot in (1, 2, 4, 8, 16, 24) if slot >= count)
        seen.add((slot, 4 if points < 4 else 8, with_mask))
    assert 10 < len(seen) == len(traced)


@pytest.mark.slow
def test_an_explanation_is_of_the_strength_that_the_model_has():
    ours = predictor()
    weak = dataclasses.replace(ours.sam.config.plugin, strength=0.1)
    weak = Predictor(build.assemble(dataclasses.replace(ours.sam.config, plugin=weak)), ours.params)
    weak.set_image(SQUARE)
    full, little = (explain(each, box=BOXES, attention=0) for each in (ours, weak))
    np.testing.assert_array_equal(full.alpha, little.alpha)
    np.testing.assert_array_equal(full.before, little.before)
    assert 0 < np.abs(little.after - little.before).max() < np.abs(full.after - full.before).max() / 2


@pytest.mark.slow
def test_cells_of_the_padding_are_left_out_and_the_others_lie_in_the_picture():
    # 40 rows of 64: two rows of cells have their centres in the picture, at 8 and 24, the third at 40 has not.
    found = explain(predictor(picture=(40, 64)), box=BOXES - (0, 10, 0, 24))
    assert found.before.shape == found.after.shape == (3, 2, 4)
    np.testing.assert_allclose(found.cells[:, 0], [[7.5, 7.5], [7.5, 23.5]])
    assert (found.before.sum((1, 2)) < 0.999).all()


@pytest.mark.slow
@pytest.mark.parametrize(("picture", "cells"), [((64, 2), (4, 1)), ((2, 64), (1, 4))])
def test_a_picture_thinner_than_half_a_cell_has_one_row_of_them(picture, cells):
    thin = predictor(picture=picture)
    shown = explain(thin, box=[0, 0, picture[1] - 1, picture[0] - 1])
    assert shown.after.shape == (1, *cells)
    attention_figure(SQUARE[: picture[0], : picture[1]], shown)


def test_pixels_are_those_of_the_picture_whatever_the_size_of_the_input():
    # 32 pixels become 64: a cell is 8 pixels of the picture, and its centre lies between the fourth and the fifth.
    found = explain(predictor(picture=(32, 32)), box=BOXES / 2)
    np.testing.assert_allclose(found.cells[0, :, 0], [3.5, 11.5, 19.5, 27.5])
    assert [prompt.box.tolist() for prompt in found.prompts] == (BOXES / 2).tolist()


@pytest.mark.slow
def test_every_group_of_offsets_can_be_asked_for_and_without_a_router_alpha_is_one():
    ours = predictor(groups=2, router=False)
    first, second = (explain(ours, box=BOXES, group=group) for group in range(2))
    assert np.abs(first.positions - second.positions).max() > 1e-3
    np.testing.assert_array_equal(first.after, second.after)
    np.testing.assert_array_equal(first.alpha, [[1, 0]] * 3)
    with pytest.raises(InputError, match="no group 2"):
        explain(ours, box=BOXES, group=2)


@pytest.mark.slow
def test_spatial_attention_reads_the_cells_themselves():
    found = explain(predictor(resample="cbam"), box=BOXES)
    np.testing.assert_array_equal(found.positions, np.broadcast_to(found.cells, (3, 4, 4, 2)))
    assert np.abs(found.before - found.after).max() > 1e-6


def test_what_cannot_be_explained_is_said():
    with pytest.raises(InputError, match="no plugin"):
        explain(Predictor(*small.nano()), box=BOXES[0])
    with pytest.raises(InputError, match=r"attention 1; choose from \[0, 2\]"):
        explain(Predictor(*small.stable_nano()), box=BOXES[0], attention=1)
    with pytest.raises(InputError, match="no picture"):
        explain(Predictor(*small.stable_nano()), box=BOXES[0])
