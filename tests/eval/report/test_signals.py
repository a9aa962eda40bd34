"""Known values of rank correlation and risk, and the extremes: a constant signal and the IoU itself."""

import math

import numpy as np
import pytest

from eval.report import signals


@pytest.mark.parametrize(
    ("a", "b", "rho"),
    [
        ([1, 2, 3, 4, 5], [10, 20, 30, 40, 1000], 1),
        ([1, 2, 3, 4, 5], [5, 4, 3, 2, 1], -1),
        ([106, 100, 86, 101, 99, 103, 97, 113, 112, 110], [7, 27, 2, 50, 28, 29, 20, 12, 6, 17], -0.17575757575757575),
        ([1, 2, 2, 3], [1, 3, 2, 4], 0.9486832980505138),  # scipy.stats.spearmanr
    ],
)
def test_rank_correlation_of_known_lists(a, b, rho):
    assert signals.rank_correlation(np.array(a), np.array(b)) == pytest.approx(rho)


def test_a_constant_correlates_with_nothing():
    assert math.isnan(signals.rank_correlation(np.ones(4), np.arange(4)))


def test_risk_is_that_of_the_most_confident_masks():
    iou, confidence = np.array([0.5, 1.0, 0.0]), np.array([2, 3, 1])
    assert signals.risk_coverage(confidence, iou).tolist() == [0, 0.25, 0.5]
    assert signals.area(confidence, iou) == 0.25


def test_masks_of_equal_confidence_have_no_order():
    iou = np.array([0.0, 1.0, 0.5])
    for order in ([0, 1, 2], [1, 2, 0]):
        assert signals.risk_coverage(np.ones(3), iou[order]) == pytest.approx([0.5, 0.5, 0.5])


def test_gain_is_one_for_iou_itself_zero_for_chance_and_negative_for_the_reverse_order():
    iou = np.random.default_rng(0).uniform(size=50)
    assert signals.gain(iou, iou) == 1
    assert signals.gain(np.ones(50), iou) == pytest.approx(0)
    assert signals.gain(-iou, iou) < -0.5
    assert math.isnan(signals.gain(iou, np.ones(50)))


def test_bad_masks_are_found_among_the_least_confident():
    iou = np.array([0.1, 0.9, 0.5, 0.8])
    assert signals.bad_found(np.array([1, 3, 4, 2]), iou, 0.5) == 0.5
    assert signals.bad_found(iou, iou, 0.5) == 1
    assert math.isnan(signals.bad_found(iou, np.ones(4), 0.5))


def test_auc_is_the_share_of_pairs_in_order_with_half_for_equal_ones():
    rng = np.random.default_rng(0)
    confidence, bad = rng.integers(0, 5, 40), rng.random(40) < 0.3
    pairs = [(confidence[i], confidence[j]) for i in np.flatnonzero(bad) for j in np.flatnonzero(~bad)]
    expected = np.mean([1.0 if low < high else 0.5 if low == high else 0.0 for low, high in pairs])
    assert signals.auc(confidence, bad) == pytest.approx(expected)
    assert math.isnan(signals.auc(confidence, np.ones(40, bool)))
