"""Intervals cover what they claim to, pairing takes out what is hard for both, and noise is called noise."""

import math

import numpy as np
import pytest

from eval.report.bootstrap import Interval, interval, intervals, resampled_means


def test_intervals_cover_the_true_mean_as_often_as_they_say():
    rng = np.random.default_rng(0)
    trials = rng.beta(8, 2, (1, 60, 400))  # 400 data sets of 60 pictures
    drawn = resampled_means(trials, rng)
    covered = [
        one.low <= 0.8 <= one.high
        for one in (interval(trials[0, :, trial].mean(), drawn[0, :, trial]) for trial in range(400))
    ]
    assert 0.90 < np.mean(covered) < 0.98


def test_the_width_is_that_of_the_standard_error():
    values = np.random.default_rng(1).normal(size=(1, 100, 1))
    (((_, low, high),),) = intervals({"set": values}, seed=0)[0]["set"]
    assert (high - low) / 2 == pytest.approx(1.96 * values.std() / 10, rel=0.06)


def test_a_small_gain_on_every_picture_is_seen_though_pictures_differ_much():
    rng = np.random.default_rng(2)
    base = rng.uniform(0, 1, (50, 1))
    better = base + 0.02 + 0.005 * rng.normal(size=base.shape)
    own, differences = intervals({"set": np.stack([base, better])}, seed=0)
    assert own["set"][0][0].high > own["set"][1][0].low  # their own intervals overlap
    ((difference,),) = differences["set"]
    assert difference.value == pytest.approx((better - base).mean())
    assert 0.015 < difference.low < difference.value < difference.high < 0.025
    assert not difference.is_noise


def test_a_difference_of_chance_is_noise():
    rng = np.random.default_rng(3)
    base, other = rng.uniform(0, 1, (2, 50, 1))
    ((difference,),) = intervals({"set": np.stack([base, other])}, seed=0)[1]["set"]
    assert difference.is_noise


def test_the_mean_of_sets_is_unweighted_and_drawn_within_every_set():
    rng = np.random.default_rng(4)
    sets = {"few": rng.normal(0, 1, (1, 25, 1)), "many": rng.normal(1, 1, (1, 400, 1))}
    own, _ = intervals(sets, seed=0, mean="mean")
    few, many, mean = (own[name][0][0] for name in ("few", "many", "mean"))
    assert mean.value == pytest.approx((few.value + many.value) / 2)
    widths = [(one.high - one.low) / 2 for one in (few, many, mean)]
    assert widths[2] == pytest.approx(math.hypot(*widths[:2]) / 2, rel=0.06)


def test_other_sets_change_no_interval_and_a_seed_repeats_it():
    values = np.random.default_rng(5).uniform(size=(2, 20, 3))
    alone = intervals({"set": values}, seed=1)
    assert intervals({"other": values, "set": values}, seed=1)[0]["set"] == alone[0]["set"]
    assert intervals({"set": values}, seed=1) == alone
    assert intervals({"set": values}, seed=2) != alone


@pytest.mark.parametrize("pictures", [1, 9])
def test_a_few_pictures_tell_nothing_of_others(pictures):
    own, differences = intervals({"set": np.ones((2, pictures, 1))}, seed=0)
    assert own["set"][0][0].value == 1
    assert math.isnan(own["set"][0][0].low)
    assert differences["set"][0][0].is_noise


@pytest.mark.parametrize(
    ("low", "high", "is_noise"), [(0.1, 0.2, False), (-0.2, -0.1, False), (-0.1, 0.1, True), (0.0, 0.1, True)]
)
def test_an_interval_that_holds_zero_is_noise(low, high, is_noise):
    assert Interval(0.0, low, high).is_noise == is_noise
