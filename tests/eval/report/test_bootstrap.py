"""Intervals cover what they claim to, pairing takes out what is hard for both, and noise is called noise."""

import math

import numpy as np
import pytest

from eval.report.bootstrap import Interval, Sample, intervals


def alone(*systems):
    """Systems of one run each, (P, K), on pictures that are groups of one."""
    return Sample([values[None] for values in systems], [str(index) for index in range(len(systems[0]))])


@pytest.mark.parametrize(
    ("groups", "of_each", "runs", "spread"),
    [(60, 1, 1, 0), (15, 4, 1, 0), (10, 1, 1, 0), (20, 1, 3, 0.01), (40, 1, 3, 0.03), (20, 1, 3, 0.1)],
)
def test_intervals_cover_a_difference_as_often_as_they_say(groups, of_each, runs, spread):
    """At the sizes in use: 15 videos of 4 frames, 20 to 60 pictures, 3 seeds that differ little or much."""
    rng, trials = np.random.default_rng(0), 500
    of_picture = np.repeat(np.arange(groups), of_each)
    base = rng.normal(0, 0.2, (groups, trials))[of_picture] + rng.normal(0, 0.1, (len(of_picture), trials))
    gain = rng.normal(0, 0.1, (groups, trials))[of_picture] + rng.normal(0, 0.05, (runs, len(of_picture), trials))
    other = base + gain + rng.normal(0, spread, (runs, 1, trials))
    sample = Sample([base[None], other], [str(group) for group in of_picture])
    covered = np.mean([one.low <= 0 <= one.high for one in intervals({"set": sample}, seed=0)[1]["set"][0, 1]])
    assert 0.92 < covered < 0.995


def test_frames_of_a_video_are_one_draw():
    rng = np.random.default_rng(1)
    values = rng.normal(size=(15, 1))
    frames = Sample([np.repeat(values, 4, axis=0)[None]], np.repeat(np.arange(15), 4).astype(str).tolist())
    once, four = (intervals({"set": sample}, seed=0)[0]["set"][0][0] for sample in (alone(values), frames))
    assert four == pytest.approx(once)


def test_the_width_is_that_of_the_standard_error():
    values = np.random.default_rng(1).normal(size=(100, 1))
    (((_, low, high),),) = intervals({"set": alone(values)}, seed=0)[0]["set"]
    assert (high - low) / 2 == pytest.approx(1.98 * values.std(ddof=1) / 10, rel=0.06)


def test_a_small_gain_on_every_picture_is_seen_though_pictures_differ_much():
    rng = np.random.default_rng(2)
    base = rng.uniform(0, 1, (50, 1))
    better = base + 0.02 + 0.005 * rng.normal(size=base.shape)
    own, differences = intervals({"set": alone(base, better)}, seed=0)
    assert own["set"][0][0].high > own["set"][1][0].low  # their own intervals overlap
    (difference,) = differences["set"][0, 1]
    assert difference.value == pytest.approx((better - base).mean())
    assert 0.015 < difference.low < difference.value < difference.high < 0.025
    assert not difference.is_noise


def test_the_same_gain_is_noise_where_seeds_differ_more():
    rng = np.random.default_rng(2)
    base = rng.uniform(0, 1, (50, 1))
    seeds = base + 0.02 + np.array([-0.03, 0, 0.03])[:, None, None]
    sample = Sample([base[None], seeds], alone(base).groups)
    (difference,) = intervals({"set": sample}, seed=0)[1]["set"][0, 1]
    assert difference.value == pytest.approx(0.02)
    assert difference.is_noise


def test_any_two_systems_are_compared():
    rng = np.random.default_rng(3)
    values = rng.uniform(0, 1, (3, 50, 1))
    _, differences = intervals({"set": alone(*values)}, seed=0)
    assert list(differences["set"]) == [(0, 1), (0, 2), (1, 2)]
    (between,) = differences["set"][1, 2]
    assert between.value == pytest.approx(values[2].mean() - values[1].mean())
    assert (-between).low == -between.high


def test_a_difference_of_chance_is_noise():
    rng = np.random.default_rng(3)
    base, other = rng.uniform(0, 1, (2, 50, 1))
    (difference,) = intervals({"set": alone(base, other)}, seed=0)[1]["set"][0, 1]
    assert difference.is_noise


def test_the_mean_of_sets_is_unweighted_and_drawn_within_every_set():
    rng = np.random.default_rng(4)
    sets = {"few": alone(rng.normal(0, 1, (25, 1))), "many": alone(rng.normal(1, 1, (400, 1)))}
    own, _ = intervals(sets, seed=0, mean="mean")
    few, many, mean = (own[name][0][0] for name in ("few", "many", "mean"))
    assert mean.value == pytest.approx((few.value + many.value) / 2)
    widths = [(one.high - one.low) / 2 for one in (few, many, mean)]
    assert widths[2] == pytest.approx(math.hypot(*widths[:2]) / 2, rel=0.06)


def test_other_sets_change_no_interval_and_a_seed_repeats_it():
    sample = alone(*np.random.default_rng(5).uniform(size=(2, 20, 3)))
    once = intervals({"set": sample}, seed=1)
    assert intervals({"other": sample, "set": sample}, seed=1)[0]["set"] == once[0]["set"]
    assert intervals({"set": sample}, seed=1) == once
    assert intervals({"set": sample}, seed=2) != once


@pytest.mark.parametrize(("pictures", "groups"), [(1, 1), (9, 9), (20, 9)])
def test_a_few_groups_tell_nothing_of_others(pictures, groups):
    sample = Sample([np.ones((1, pictures, 1))] * 2, [str(index % groups) for index in range(pictures)])
    own, differences = intervals({"set": sample}, seed=0)
    assert own["set"][0][0].value == 1
    assert math.isnan(own["set"][0][0].low)
    assert differences["set"][0, 1][0].is_noise


@pytest.mark.parametrize(
    ("low", "high", "is_noise"), [(0.1, 0.2, False), (-0.2, -0.1, False), (-0.1, 0.1, True), (0.0, 0.1, True)]
)
def test_an_interval_that_holds_zero_is_noise(low, high, is_noise):
    assert Interval(0.0, low, high).is_noise == is_noise
