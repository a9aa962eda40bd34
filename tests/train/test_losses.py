"""Losses are those of HQ-SAM and of SAM, by hand, by plain twins, and at points that matter."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

from tests.reference.losses import hq_sam_loss
from train import losses
from train.losses import IMPORTANT, POINTS, dice_loss, mask_iou, point_sampled_loss, pretraining_loss, sample_points


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def keys(count, seed=0):
    return jax.random.split(jax.random.key(seed), count)


point_loss = jax.jit(point_sampled_loss)
points_of = jax.jit(sample_points)
RECTANGLE = np.zeros((64, 64), np.float32)
RECTANGLE[16:48, 8:40] = 1  # cells 4 to 11 and 2 to 9 of 16 x 16


# dice


@pytest.mark.parametrize(
    ("logits", "targets", "loss"),
    [
        ([0, 0, 0, 0], [1, 1, 0, 0], 1 - (2 * 1 + 1) / (2 + 2 + 1)),
        ([0, 0], [0, 0], 1 - 1 / (1 + 0 + 1)),
        ([99, 99, -99], [1, 1, 0], 0),
        ([-99, -99, 99], [1, 1, 0], 1 - 1 / (1 + 2 + 1)),
        ([-99, -99], [0, 0], 0),
    ],
)
def test_dice_by_hand(logits, targets, loss):
    assert dice_loss(jnp.array(logits, jnp.float32), jnp.array(targets, jnp.float32)) == pytest.approx(loss, abs=1e-6)


def test_dice_equals_its_formula_over_leading_axes():
    logits, targets = 3 * normal(2, 3, 50), (normal(2, 3, 50, seed=1) > 0).astype(np.float32)
    probs = 1 / (1 + np.exp(-logits.astype(np.float64)))
    expected = 1 - (2 * (probs * targets).sum(-1) + 1) / (probs.sum(-1) + targets.sum(-1) + 1)
    np.testing.assert_allclose(dice_loss(jnp.array(logits), jnp.array(targets)), expected, atol=1e-6)


# where a mask is sampled


def test_three_quarters_of_the_points_are_the_undecided_quarter_of_the_candidates():
    ramp = np.broadcast_to(np.linspace(-1, 1, 256, dtype=np.float32), (256, 256))  # certainty grows with |x - 1/2|
    points = np.asarray(points_of(jax.random.key(0), ramp))
    important = round(IMPORTANT * POINTS)
    assert points.shape == (POINTS, 2)
    assert points.min() >= 0
    assert points.max() <= 1
    # 4 standard errors of an edge at the 1/4 quantile of 37,632 uniform numbers are 0.009 of its 0.5.
    assert np.abs(points[:important, 0] - 0.5).max() == pytest.approx(1 / 8, abs=0.005)
    assert np.ptp(points[:important, 1]) > 0.99
    assert points[important:].mean(0) == pytest.approx([0.5, 0.5], abs=0.021)  # 4 * 0.289 / sqrt(3136)
    assert points[important:].std(0) == pytest.approx([12**-0.5] * 2, abs=0.01)


def test_no_gradient_flows_through_the_choice_of_points():
    logits = jnp.array(normal(16, 16))
    gradient = jax.jit(jax.grad(lambda x: sample_points(jax.random.key(0), x).sum()))(logits)
    assert not np.asarray(gradient).any()


@pytest.mark.slow
def test_the_gradient_is_that_of_fixed_points():
    key, logits, target = keys(1), jnp.array(normal(1, 16, 16)), jnp.array(RECTANGLE[None])
    points = points_of(key[0], logits[0])

    def at_fixed_points(x):
        sampled, truth = losses.sample_at(x[0], points), losses.sample_at(target[0], points)
        return optax.sigmoid_binary_cross_entropy(sampled, truth).mean() + dice_loss(sampled, truth)

    ours = jax.jit(jax.grad(lambda x: point_sampled_loss(key, x, target).sum()))(logits)
    expected = jax.jit(jax.grad(at_fixed_points))(logits)
    np.testing.assert_allclose(ours, expected, atol=1e-6)
    assert np.abs(np.asarray(ours)).max() > 1e-3


def test_every_mask_has_points_of_its_own_key():
    logits, target = jnp.array(np.repeat(normal(1, 1, 16, 16), 2, axis=1)), jnp.array(np.stack([RECTANGLE] * 2)[None])
    two = keys(2)[None]
    both = np.asarray(point_loss(two, logits, target))
    assert both.shape == (1, 2)
    assert both[0, 0] != both[0, 1]
    assert np.array_equal(both, point_loss(two, logits, target))
    assert np.array_equal(both[:, ::-1], point_loss(two[:, ::-1], logits, target))


def test_at_the_border_the_value_goes_on_where_hq_sam_fades():
    corner = jnp.array([[0.0, 0.0], [0.5, 1.0], [0.5, 0.5]])
    assert losses.sample_at(jnp.ones((4, 4)), corner).tolist() == [1, 1, 1]
    faded = torch.nn.functional.grid_sample(
        torch.ones(1, 1, 4, 4), torch.tensor(np.asarray(2 * corner - 1))[None, None], align_corners=False
    )
    assert faded.flatten().tolist() == [0.25, 0.5, 1]


# the loss of the paper


def test_the_loss_is_hq_sams_at_the_same_points(monkeypatch):
    count, inside = 3, np.random.default_rng(2).uniform(1 / 16, 15 / 16, (3, POINTS, 2)).astype(np.float32)
    logits, targets = 3 * normal(count, 16, 16), np.stack([RECTANGLE, RECTANGLE.T, 0.5 * RECTANGLE])
    by_key = {tuple(np.asarray(jax.random.key_data(key)).tolist()): inside[i] for i, key in enumerate(keys(count))}

    def given_points(rng, logits):
        def look_up(data):
            return by_key[tuple(np.asarray(data).tolist())]

        shape = jax.ShapeDtypeStruct((POINTS, 2), np.float32)
        return jax.pure_callback(look_up, shape, jax.random.key_data(rng), vmap_method="sequential")

    monkeypatch.setattr(losses, "sample_points", given_points)
    ours = point_sampled_loss(keys(count), jnp.array(logits), jnp.array(targets))
    points, maps, truth = (torch.from_numpy(array) for array in (inside, logits[:, None], targets[:, None]))
    cross_entropy, dice = hq_sam_loss(maps, truth, points)
    assert float(ours.mean()) == pytest.approx(cross_entropy + dice, rel=1e-5)


def test_a_perfect_mask_costs_nearly_nothing_and_its_opposite_much():
    # Between two cells logits pass 0 over 1/16 of the side, the target over 1/64: points there cost a little.
    cells = 24 * (RECTANGLE[2::4, 2::4] - 0.5)
    perfect, opposite = (float(point_loss(keys(1), sign * cells[None], RECTANGLE[None] > 0)[0]) for sign in (1, -1))
    assert 0 <= perfect < 0.3
    assert opposite > 4
    whole = point_loss(keys(1), np.full((1, 16, 16), 20, np.float32), np.ones((1, 64, 64), bool))
    assert float(whole[0]) == pytest.approx(0, abs=1e-6)


def test_where_all_is_equally_certain_the_points_give_the_loss_of_the_whole_map():
    ramp = np.broadcast_to(np.linspace(0, 1, 64, dtype=np.float32), (64, 64))
    sampled = point_loss(keys(1), np.full((1, 16, 16), 0.7, np.float32), ramp[None])
    flat, truth = jnp.full(64 * 64, 0.7), jnp.array(ramp.ravel())
    cross_entropy = optax.sigmoid_binary_cross_entropy(flat, truth).mean()
    probs = jax.nn.sigmoid(flat)
    dice = 1 - 2 * (probs * truth).sum() / (probs.sum() + truth.sum())  # the 1 of many thousands left out
    # 4 standard errors: cross entropy moves by 0.7 t, dice by less; t has deviation 0.289, and there are 12,544 points.
    assert float(sampled[0]) == pytest.approx(float(cross_entropy + dice), abs=4 * (0.7 + 0.7) * 0.289 / 112)


# the loss of pre-training


# at every pixel


def test_the_full_resolution_loss_is_that_of_pytorchs_enlarged_logits():
    logits, targets = 3 * normal(2, 3, 16, 16), normal(2, 3, 64, 64, seed=1) > 0
    enlarged = torch.nn.functional.interpolate(torch.tensor(logits), (64, 64), mode="bilinear", align_corners=False)
    truth = torch.tensor(targets, dtype=torch.float32)
    cross_entropy = torch.nn.functional.binary_cross_entropy_with_logits(enlarged, truth, reduction="none")
    probs = enlarged.sigmoid()
    dice = 1 - (2 * (probs * truth).sum((2, 3)) + 1) / (probs.sum((2, 3)) + truth.sum((2, 3)) + 1)
    expected = cross_entropy.mean((2, 3)) + dice
    found = jax.jit(losses.full_resolution_loss)(jnp.array(logits), jnp.array(targets))
    np.testing.assert_allclose(found, expected, rtol=2e-5)


# SAM's own


def literal_pretraining(logits, ious, target):
    """One prompt, one mask after the other."""
    probs, truth = 1 / (1 + np.exp(-logits.astype(np.float64))), target > 0.5
    costs, gaps = [], []
    for mask in range(4):
        p = probs[mask]
        focal = np.mean((p - target) ** 2 * -(target * np.log(p) + (1 - target) * np.log(1 - p)))
        costs.append(20 * focal + 1 - (2 * (p * target).sum() + 1) / (p.sum() + target.sum() + 1))
        found = logits[mask] > 0
        gaps.append((ious[mask] - (found & truth).sum() / (found | truth).sum()) ** 2)
    return costs[0] + min(costs[1:]) + np.mean(gaps)


def test_pretraining_equals_its_literal_twin():
    logits, ious = 2 * normal(2, 3, 4, 8, 8), normal(2, 3, 4, seed=1)
    targets = np.random.default_rng(2).uniform(0, 1, (2, 3, 8, 8)).astype(np.float32)
    ours = np.asarray(pretraining_loss(jnp.array(logits), jnp.array(ious), jnp.array(targets)))
    expected = [[literal_pretraining(logits[b, n], ious[b, n], targets[b, n]) for n in range(3)] for b in range(2)]
    np.testing.assert_allclose(ours, expected, rtol=1e-5)


def test_of_two_masks_that_are_equally_good_the_first_alone_trains():
    """A minimum's gradient divides by the number of least losses: a half here, 0 / 0 where XLA rounds again."""
    target = jnp.array(RECTANGLE[None, ::8, ::8])
    equal = 4 * (target - 0.5)
    logits = jnp.stack([0 * equal, -equal, equal, equal], axis=1)
    gradient = jax.grad(lambda logits: pretraining_loss(logits, jnp.ones((1, 4)), target).sum())(logits)
    alone = jax.grad(lambda logits: pretraining_loss(logits, jnp.ones((1, 4)), target).sum())(logits.at[:, 3].set(0))
    np.testing.assert_array_equal(gradient[:, 2], alone[:, 2])
    assert not np.asarray(gradient[:, [1, 3]]).any()


@pytest.mark.slow
def test_pretraining_trains_the_single_mask_and_the_best_of_three_alone():
    target = jnp.array(RECTANGLE[None, ::8, ::8])
    good = 4 * (target - 0.5)
    logits = jnp.stack([0 * good, -good, good, 0 * good], axis=1)  # the second of the three is the best
    gradient, of_ious = jax.grad(lambda *x: pretraining_loss(*x, target).sum(), argnums=(0, 1))(
        logits, jnp.ones((1, 4))
    )
    assert np.abs(np.asarray(gradient)).max((0, 2, 3)).astype(bool).tolist() == [True, False, True, False]
    # Predicted 1; the true IoU are 0 (nothing is above 0), 0 (the opposite), 1 and 0: 2 (1 - IoU) / 4.
    assert of_ious.tolist() == [[0.5, 0.5, 0, 0.5]]


def test_iou_of_logits_by_hand():
    logits = jnp.array([[1.0, 1, -1, -1], [-1, -1, -1, -1], [0, 0, 0, 0]])
    targets = jnp.array([[1.0, 0, 1, 0.4], [0, 0, 0, 0], [1, 0, 0, 0]])
    assert mask_iou(logits, targets).tolist() == pytest.approx([1 / 3, 0, 0])
