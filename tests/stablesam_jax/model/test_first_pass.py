"""The plugin acts only on prompts whose mask without it is poor; the others keep SAM's masks."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stablesam_jax import build
from stablesam_jax.config import FirstPass, PluginConfig
from stablesam_jax.errors import InputError
from stablesam_jax.model.first_pass import better_masks, mask_boxes, poor_masks
from stablesam_jax.model.mask_decoder import Masks
from stablesam_jax.model.prompt_encoder import BOTTOM_RIGHT, TOP_LEFT, Prompts
from tests.reference import small
from tests.reference.sam_pair import quick_jit

ALL, NONE = (1.0, 0.0, 1.0, 1.0), (0.0, 0.0, 1.0, 0.0)  # limits that all masks are below, and none


def boxes_and_points(boxes, points=()):
    """(1, N) prompts of two tokens each: boxes, then points."""
    coords = [np.reshape(box, (2, 2)) for box in boxes] + [[point, (0, 0)] for point in points]
    labels = [[TOP_LEFT, BOTTOM_RIGHT]] * len(boxes) + [[1, -1]] * len(points)
    valid = [[True, True]] * len(boxes) + [[True, False]] * len(points)
    return Prompts(
        coords=jnp.asarray(coords, jnp.float32)[None],
        labels=jnp.asarray(labels, jnp.int32)[None],
        valid=jnp.asarray(valid)[None],
    )


def masks_of(*rectangles, iou=0.0):
    """Low-resolution masks of 16 x 16 pixels: (top, bottom, left, right)."""
    logits = np.full((1, len(rectangles), 1, 16, 16), -1.0, np.float32)
    for number, (top, bottom, left, right) in enumerate(rectangles):
        logits[0, number, 0, top:bottom, left:right] = 1
    return Masks(jnp.asarray(logits), jnp.full((1, len(rectangles), 1), iou, jnp.float32))


def test_a_masks_box_has_its_first_and_last_pixel_in_the_input():
    boxes = mask_boxes(masks_of((2, 5, 3, 10), (0, 16, 0, 16), (0, 0, 0, 0)).low_res_masks[0, :, 0], 64)
    assert boxes[:2].tolist() == [[12, 8, 39, 19], [0, 0, 63, 63]]
    assert boxes[2, 2] - boxes[2, 0] == 0


def test_a_mask_that_does_not_fit_its_box_is_poor():
    masks = masks_of((2, 5, 3, 10), (2, 5, 3, 10), (0, 0, 0, 0))
    prompts = boxes_and_points([(12, 8, 39, 19), (12, 8, 60, 40), (12, 8, 39, 19)])
    assert poor_masks(masks, prompts, 64, FirstPass(0.75, 0.0, 1.0, 0.4)).tolist() == [[0, 1, 1]]


def test_the_limit_is_that_of_the_intersection_over_union():
    masks, prompts = masks_of((2, 6, 2, 6)), boxes_and_points([(8, 8, 38, 23)])  # half of the prompt's 30 x 15
    for limit, expected in ((0.49, 0), (0.51, 1)):
        assert poor_masks(masks, prompts, 64, FirstPass(limit, 0.0, 1.0, 0.0)).item() == expected


@pytest.mark.parametrize(("iou", "expected"), [(0.39, 1), (0.41, 0)])
def test_without_a_box_the_predicted_iou_decides(iou, expected):
    masks = masks_of((2, 5, 3, 10), iou=iou)
    assert poor_masks(masks, boxes_and_points([], [(20, 12)]), 64, FirstPass(0.75, 0.0, 1.0, 0.4)).item() == expected


def test_a_mask_that_has_run_away_from_its_box_replaces_none():
    before = masks_of((2, 5, 3, 10), (2, 5, 3, 10), (2, 5, 3, 10))
    after = masks_of((2, 5, 3, 10), (2, 5, 3, 14), (0, 16, 0, 16))  # fits of about 1, 0.6 and 0.06
    prompts = boxes_and_points([(12, 8, 39, 19)] * 3)
    for least, lost, expected in ((0.0, 1.0, [1, 1, 1]), (0.3, 1.0, [1, 1, 0]), (0.0, 0.2, [1, 0, 0])):
        assert better_masks(after, before, prompts, 64, FirstPass(1.0, least, lost, 0.0)).tolist() == [expected]
    points = boxes_and_points([], [(20, 12)] * 3)
    assert better_masks(after, before, points, 64, FirstPass(1.0, 1.0, 0.0, 0.0)).tolist() == [[1, 1, 1]]


def test_padding_is_no_box():
    prompts = boxes_and_points([(0, 0, 63, 63)])
    hidden = prompts.replace(valid=jnp.zeros_like(prompts.valid))
    assert poor_masks(masks_of((2, 5, 3, 10), iou=0.9), hidden, 64, FirstPass(1.0, 0.0, 1.0, 0.5)).item() == 0


@functools.cache
def systems(hq=False):
    """A base, its plugin with random last layers, and an embedding."""
    plugin = PluginConfig(start="perturbed")
    base, params = small.system(hq=hq, plugin=None)
    stable, with_plugin = build.with_plugin(base, params, plugin, jax.random.key(1))
    waves = jax.tree.map(
        lambda leaf: leaf + 0.3 * np.cos(np.arange(leaf.size)).reshape(leaf.shape).astype(np.float32),
        jax.device_get(with_plugin["plugin"]),
    )
    picture = jax.random.normal(jax.random.key(0), (1, small.SIZE, small.SIZE, 3))
    embedding = quick_jit(base.apply, static_argnames="method")({"params": params}, picture, method="encode")
    return base, stable, params, {**with_plugin, "plugin": waves}, embedding


PROMPTS = boxes_and_points([(5, 5, 40, 30), (20, 8, 60, 60)], [(30, 30), (10, 50)])


@functools.cache
def decode(limits, masks="single", hq=False, at_once=False):
    base, stable, params, with_plugin, embedding = systems(hq)
    sam, values = base, params
    if limits != "base":
        plugin = dataclasses.replace(stable.config.plugin, first_pass=limits)
        sam, values = build.assemble(dataclasses.replace(stable.config, plugin=plugin)), with_plugin
    apply = quick_jit(sam.apply, static_argnames=("masks", "at_once", "method"))
    return apply({"params": values}, embedding, PROMPTS, masks=masks, at_once=at_once, method="decode")


@pytest.mark.slow
@pytest.mark.parametrize("at_once", [False, True])
@pytest.mark.parametrize("masks", ["single", "multi"])
def test_where_no_mask_is_below_the_limits_all_are_those_of_the_base(masks, at_once):
    kept, base = decode(NONE, masks, at_once=at_once), decode("base", masks, at_once=at_once)
    np.testing.assert_allclose(kept.low_res_masks, base.low_res_masks, atol=2e-5)
    np.testing.assert_allclose(kept.iou_predictions, base.iou_predictions, atol=2e-5)


@pytest.mark.slow
def test_where_all_masks_are_below_the_limits_they_are_those_of_one_pass():
    changed, one_pass, base = (decode(limits).low_res_masks for limits in (ALL, None, "base"))
    assert float(jnp.abs(one_pass - base).max()) > 0.1
    np.testing.assert_allclose(changed, one_pass, atol=2e-4)


@pytest.mark.slow
@pytest.mark.parametrize("masks", ["single", "multi"])
def test_of_a_plugin_that_runs_away_from_every_box_nothing_is_left_for_boxes(masks):
    kept, base, one_pass = (decode(limits, masks).low_res_masks for limits in ((1.0, 1.0, 1.0, 1.0), "base", None))
    np.testing.assert_allclose(kept[:, :2], base[:, :2], atol=2e-5)
    np.testing.assert_allclose(kept[:, 2:], one_pass[:, 2:], atol=2e-4)


@pytest.mark.slow
def test_hq_sam_has_one_rule_for_all_its_masks():
    kept, base = (decode(limits, "multi", hq=True).low_res_masks for limits in (NONE, "base"))
    np.testing.assert_allclose(kept, base, atol=2e-5)


def test_each_prompt_is_judged_by_its_own_mask():
    base, one_pass = decode("base"), decode(None)
    limit = float(jnp.sort(base.iou_predictions[0, 2:, 0]).mean())  # between the two points
    mixed = decode((0.0, 0.0, 1.0, limit)).low_res_masks
    below = np.array([False, False, *(base.iou_predictions[0, 2:, 0] < limit)])
    assert below.sum() == 1
    expected = jnp.where(below[None, :, None, None, None], one_pass.low_res_masks, base.low_res_masks)
    np.testing.assert_allclose(mixed, expected, atol=2e-4)


@pytest.mark.slow
def test_it_holds_for_hq_sam():
    kept, base = decode(NONE, hq=True), decode("base", hq=True)
    np.testing.assert_allclose(kept.low_res_masks, base.low_res_masks, atol=2e-5)


@pytest.mark.parametrize("limits", [(0.5,), (0.5, 0.5, 0.5, 1.5), (-0.1, 0.5, 0.5, 0.5)])
def test_limits_are_four_shares(limits):
    with pytest.raises(InputError, match="first_pass has four limits, each from 0 to 1"):
        PluginConfig(first_pass=limits)


def test_limits_are_named_and_a_list_of_four_in_json():
    config = PluginConfig(first_pass=FirstPass(fit=0.75, least_fit=0.45, lost_fit=0.2, predicted_iou=0.4))
    assert config == PluginConfig(first_pass=(0.75, 0.45, 0.2, 0.4))
    fields = json.loads(json.dumps(dataclasses.asdict(config)))
    assert fields["first_pass"] == [0.75, 0.45, 0.2, 0.4]
    read = PluginConfig.from_json(fields)
    assert read == config
    assert read.first_pass.lost_fit == 0.2
    del fields["first_pass"]
    assert PluginConfig.from_json(fields).first_pass is None  # a file of an earlier version
