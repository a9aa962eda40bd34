"""The noises of other papers are curves from good prompts to bad ones, through the published strength."""

import inspect
import itertools

import numpy as np
import pytest

from eval.noises import BOX_DRAWS, CLICK_DRAWS, NOISES, kinds_of
from eval.prompt_kinds import draw_prompts
from stablesam_jax import prompts

MASK = np.zeros((600, 900), bool)
MASK[150:400, 200:700] = True
SAMPLE = {"picture_id": "horses/horse001", "object_id": 0, "seed": 0}


def draw(kind, count=200, mask=MASK):
    return draw_prompts(kind, mask, **SAMPLE, count=count)


@pytest.mark.parametrize("name", [name for name, noise in NOISES.items() if "gt-box" in noise.kinds.values()])
def test_boxes_get_worse_along_every_curve_from_the_true_one(name):
    (true,) = draw("gt-box")
    kinds = list(NOISES[name].kinds.values())
    overlap = [np.mean([prompts.box_iou(one.box, true.box) for one in draw(kind)]) for kind in kinds]
    assert overlap[0] == 1
    assert all(good > bad for good, bad in itertools.pairwise(overlap))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["rclicks", "cdconcepts-click"])
def test_clicks_get_nearer_to_the_border_along_every_curve(name):
    depth = prompts.depth(MASK)
    mean = [
        np.mean([depth[int(y), int(x)] for one in draw(kind) for x, y in one.points])
        for kind in NOISES[name].kinds.values()
    ]
    assert all(good > bad for good, bad in itertools.pairwise(mean))


@pytest.mark.parametrize(
    ("kind", "function", "strength"),
    [
        ("sam-1", prompts.jittered_box, "strength"),
        ("cdconcepts-0.1", prompts.uneven_box, "share"),
        ("pp-sam-50", prompts.outward_box, "most"),
        ("breps-0.3", prompts.shifted_box, "scale"),
        ("cdconcepts-click-10", prompts.slipped_click, "most"),
    ],
)
def test_the_published_strength_is_a_point_of_the_curve(kind, function, strength):
    (noise,) = [one for one in NOISES.values() if kind in one.kinds.values()]
    draws = (BOX_DRAWS | CLICK_DRAWS)[kind]
    assert draws.func is function
    assert draws.keywords == {strength: inspect.signature(function).parameters[strength].default}
    assert f"{draws.keywords[strength]:g}" in noise.axis


@pytest.mark.parametrize("kind", [*BOX_DRAWS, *CLICK_DRAWS])
def test_prompts_are_those_of_picture_object_and_index_in_pixels_of_the_picture(kind):
    first, again, fewer = draw(kind, 20), draw(kind, 20), draw(kind, 3)
    shown = [one.points.tolist() if one.box is None else one.box.tolist() for one in first]
    assert shown == [one.points.tolist() if one.box is None else one.box.tolist() for one in again]
    assert shown[:3] == [one.points.tolist() if one.box is None else one.box.tolist() for one in fewer]
    assert all((one.box is None) == (kind in CLICK_DRAWS) for one in first)
    assert all(one.labels.tolist() == [1] * len(one.points) for one in first)
    places = np.concatenate([one.points if one.box is None else one.box.reshape(2, 2) for one in first])
    assert places.min() >= 0
    assert (places <= [900, 600]).all()
    assert len(np.unique(places, axis=0)) > 1 or kind == "cdconcepts-click-0"


@pytest.mark.parametrize("kind", [*BOX_DRAWS, *CLICK_DRAWS])
def test_an_object_of_one_pixel_has_prompts_and_an_empty_mask_none(kind):
    pixel = np.zeros((20, 30), bool)
    pixel[19, 29] = True
    assert len(draw(kind, 3, pixel)) == 3
    with pytest.raises(ValueError, match="empty"):
        draw(kind, 3, ~pixel & pixel)


def test_noises_together_have_each_kind_once():
    kinds = kinds_of(tuple(NOISES))
    assert len(set(kinds)) == len(kinds)
    assert kinds.count("gt-box") == 1
    assert {*BOX_DRAWS, *CLICK_DRAWS} <= set(kinds)
