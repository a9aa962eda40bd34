"""Stability is that of the masks of slightly moved prompts, and decides what needs review."""

import numpy as np
import pytest

from stablesam_jax.errors import InputError
from stablesam_jax.metrics import stability
from stablesam_jax.predict import stable
from stablesam_jax.predict.stable import STABLE, ambiguity, jittered, other_clicks
from stablesam_jax.prompts import Prompt, random_points
from tests.reference.squares import BOX, SQUARES, nano


def test_the_stable_mask_is_that_of_the_users_own_prompt():
    ours, (first, *_) = nano()
    answer = ours.predict_stable(box=BOX, picture=ours.encode(SQUARES[0]))
    mask, iou, low_res = first
    assert np.mean(answer.mask != mask[0]) <= 1e-3
    assert np.abs(answer.low_res_mask - low_res).max() <= 2.5e-5 * np.std(low_res)
    assert abs(answer.iou_prediction - iou[0]) <= 2e-6
    assert 0 < answer.stability < 1
    assert answer.needs_review == (answer.stability < STABLE)


def test_stability_is_that_of_the_masks_of_slightly_moved_prompts_in_one_batch(stub):
    ours, decoder = stub
    answer = ours.predict_stable(point_coords=[[32, 20]], point_labels=[1], jitters=20, seed=3)
    assert decoder.traced == [(1, 24, 4)]
    # The masks are half-planes with edges near x = 32: shares of the widest.
    rng = np.random.default_rng(3)
    edges = [32, *(32 + 64 * np.clip(0.01 * rng.standard_normal((20, 1, 2)), -20 / 1024, 20 / 1024)[:, 0, 0])]
    masks = [np.broadcast_to(np.arange(0.5, 64) < edge, (48, 64)) for edge in edges]
    assert answer.stability == pytest.approx(stability(masks), abs=0.01)


def test_the_seed_decides_the_noise(stub):
    ours, _ = stub
    first, again, other = (ours.predict_stable([[31.3, 20]], [1], seed=seed).stability for seed in (0, 0, 1))
    assert first == again
    assert first != other


def test_the_threshold_decides_what_is_looked_at(stub):
    ours, _ = stub
    share = ours.predict_stable([[31.3, 20]], [1]).stability
    assert ours.predict_stable([[31.3, 20]], [1], threshold=share + 1e-6).needs_review
    assert not ours.predict_stable([[31.3, 20]], [1], threshold=share).needs_review


def test_without_a_threshold_a_click_needs_more_stability_than_a_box(stub, monkeypatch):
    ours, _ = stub
    click = {"point_coords": [[31.3, 20]], "point_labels": [1]}
    for measured, prompt, needs_review in (
        (0.97, click, True),
        (0.98, click, False),
        (0.91, {"box": [2, 2, 30, 30]}, True),
        (0.92, {"box": [2, 2, 30, 30]} | click, False),
    ):
        monkeypatch.setattr(stable, "stability", lambda masks, value=measured: value)
        assert ours.predict_stable(**prompt).needs_review == needs_review


def test_masks_of_nothing_are_looked_at(stub):
    ours, _ = stub
    answer = ours.predict_stable([[0, 20]], [1], threshold=0.01)
    assert not answer.mask[:, 2:].any()
    edge = ours.predict_stable(box=[0, 0, 0, 9], jitters=1)  # left of a first corner at 0 there is nothing
    assert (edge.stability, edge.needs_review) == (0, True)


def test_ambiguity_is_the_spread_of_the_masks_of_clicks_on_the_predicted_mask(stub):
    ours, decoder = stub
    plain = ours.predict_stable([[31.3, 20]], [1], seed=3)
    assert plain.ambiguity is None
    answer = ours.predict_stable([[31.3, 20]], [1], seed=3, clicks=6)
    assert decoder.traced == [(1, 24, 4), (1, 8, 4)]  # one batch more
    assert (answer.stability, answer.mask.tolist()) == (plain.stability, plain.mask.tolist())
    assert answer.sensitivity == 1 - answer.stability
    rng = np.random.default_rng(3)
    rng.standard_normal((20, 1, 2))  # of the jitters
    clicks = random_points(rng, answer.mask, 6)
    masks = [answer.mask, *(np.broadcast_to(np.arange(0.5, 64) < x, (48, 64)) for x, _ in clicks)]
    assert answer.ambiguity == pytest.approx(1 - stability(masks), abs=0.02)
    assert answer.ambiguity > answer.sensitivity  # the mask of this model ends where it is clicked


def test_other_clicks_are_single_ones_on_the_mask_and_an_empty_mask_is_wholly_ambiguous(stub):
    mask = np.zeros((20, 30), bool)
    mask[4:9, 20:25] = True
    clicks = other_clicks(np.random.default_rng(0), mask, 7)
    assert len(clicks) == 7
    for one in clicks:
        ((x, y),) = one.points.astype(int)
        assert mask[y, x]
        assert (one.labels.tolist(), one.box) == ([1], None)
    assert other_clicks(np.random.default_rng(0), mask & ~mask, 7) == []
    ours, decoder = stub
    assert ours.predict_stable(box=[0, 0, 0, 9], jitters=1, clicks=5).ambiguity == 1
    assert len(decoder.traced) == 1


def test_equal_masks_have_no_ambiguity_and_disjoint_ones_the_most():
    mask = np.arange(12).reshape(3, 4) < 4
    assert ambiguity(mask, [mask, mask]) == 0
    assert ambiguity(mask, [np.roll(mask, 1, 0), np.roll(mask, 2, 0)]) == pytest.approx(1 - 1 / 3)


def test_jitters_stay_in_the_picture_and_small():
    rng = np.random.default_rng(0)
    prompt = Prompt(
        points=np.array([[0.0, 0.0], [999.0, 499.0]]), labels=np.array([1, 0]), box=np.array([0.0, 0.0, 1000.0, 500.0])
    )
    moved = [jittered(rng, prompt, (500, 1000)) for _ in range(300)]
    points = np.array([each.points for each in moved])
    assert points.min() >= 0
    assert (points <= [999, 499]).all()
    assert np.abs(points - prompt.points).max() <= 1000 * 20 / 1024
    assert np.abs([each.box - prompt.box for each in moved]).max() <= 1000 * 20 / 1024
    assert len(np.unique(points[:, 1, 0])) > 100
    assert all(each.labels is prompt.labels for each in moved)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"box": [[1, 2, 3, 4], [1, 2, 3, 4]]}, "takes one prompt; call it for each"),
        ({"mask_input": np.zeros((1, 16, 16))}, "needs points or a box"),
        ({"box": [1, 2, 3, 4], "jitters": 0}, "jitters of at least 1"),
        ({"box": [1, 2, 3, 4], "clicks": -1}, "clicks and seed of at least 0"),
        ({"box": [1, 2, 3, 4], "seed": -1}, "clicks and seed of at least 0"),
    ],
)
def test_what_cannot_be_moved_is_refused(stub, arguments, words):
    with pytest.raises(InputError, match=words):
        stub[0].predict_stable(**arguments)
