"""IoU, boundary IoU and stability: by hand, against their slow twins, at the edges of their definition."""

import math

import cv2
import numpy as np
import pytest

from stablesam_jax import metrics
from tests.reference import metrics as literal


def rectangle(shape, top, left, height, width):
    mask = np.zeros(shape, bool)
    mask[top : top + height, left : left + width] = True
    return mask


def random_blobs(seed, shape):
    noise = cv2.GaussianBlur(np.random.default_rng(seed).standard_normal(shape), (0, 0), 3)
    return noise > 0


def test_two_halves_that_share_a_third_score_a_third():
    assert metrics.mask_iou(rectangle((10, 30), 0, 0, 10, 20), rectangle((10, 30), 0, 10, 10, 20)) == 1 / 3


def test_perfect_overlap_scores_one_and_no_overlap_zero():
    left, right = rectangle((8, 8), 0, 0, 8, 4), rectangle((8, 8), 0, 4, 8, 4)
    assert metrics.mask_iou(left, left) == metrics.boundary_iou(left, left) == 1.0
    assert metrics.mask_iou(left, right) == metrics.boundary_iou(left, right) == 0.0


def test_a_square_grown_by_one_pixel_keeps_its_area_but_half_its_boundary():
    # 100 x 100: d = round(2.83) = 3. Bands 40^2 - 34^2 = 444 and 42^2 - 36^2 = 468 share 40^2 - 36^2 = 304 of 608.
    target, predicted = rectangle((100, 100), 30, 30, 40, 40), rectangle((100, 100), 29, 29, 42, 42)
    assert metrics.mask_iou(predicted, target) == 1600 / 1764
    assert metrics.boundary_iou(predicted, target) == 304 / 608


def test_a_disc_dilated_by_the_width_of_the_band_has_no_boundary_in_common():
    disc = cv2.circle(np.zeros((480, 640), np.uint8), (320, 240), 150, 1, -1)
    grown = {d: cv2.dilate(disc, np.ones((2 * d + 1, 2 * d + 1), np.uint8)).astype(bool) for d in (15, 16)}
    assert metrics.boundary_iou(grown[16], disc.astype(bool)) == 0.0  # the band of 480 x 640 is 16 px
    assert 0 < metrics.boundary_iou(grown[15], disc.astype(bool)) < 0.05
    assert metrics.mask_iou(grown[16], disc.astype(bool)) > 0.75


def test_the_border_of_the_picture_is_a_boundary():
    # d = 3 again: the whole picture has the band 100^2 - 94^2, a hole in its middle does not touch it.
    full, framed = np.ones((100, 100), bool), ~rectangle((100, 100), 3, 3, 94, 94)
    assert metrics.boundary_iou(full, framed) == 1.0


def test_the_band_is_at_least_one_pixel_wide():
    # 10 x 10 would have d = round(0.28) = 0. Bands 8^2 - 6^2 = 28 and 10^2 - 8^2 = 36 are disjoint.
    assert metrics.boundary_iou(rectangle((10, 10), 1, 1, 8, 8), np.ones((10, 10), bool)) == 0.0


@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (17, 5), (40, 60), (90, 120)])
@pytest.mark.parametrize("ratio", [0.02, 0.1])
def test_equals_the_literal_metrics_on_random_masks(shape, ratio):
    for seed in range(4):
        predicted, target = random_blobs(2 * seed, shape), random_blobs(2 * seed + 1, shape)
        expected = literal.boundary_iou(predicted, target, ratio)
        assert metrics.boundary_iou(predicted, target, dilation_ratio=ratio) == pytest.approx(expected, nan_ok=True)
        assert metrics.mask_iou(predicted, target) == pytest.approx(literal.mask_iou(predicted, target), nan_ok=True)


def test_equals_the_literal_metrics_on_real_masks(shared):
    for path in sorted((shared / "data/hq/horses/gt").glob("*.png"))[:3]:
        target = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE) > 128
        predicted = [np.roll(target, (2, 3), (0, 1)), target & random_blobs(0, target.shape), target]
        for mask in predicted:
            assert metrics.mask_iou(mask, target) == literal.mask_iou(mask, target)
            assert metrics.boundary_iou(mask, target) == literal.boundary_iou(mask, target)
        assert metrics.stability(predicted) == pytest.approx(literal.stability(predicted), rel=1e-12)


def test_views_of_a_mask_score_as_the_mask_does():
    predicted, target = random_blobs(0, (60, 80)), random_blobs(1, (60, 80))
    expected = metrics.boundary_iou(predicted, target)
    assert metrics.boundary_iou(predicted.T, target.T) == expected
    assert metrics.boundary_iou(predicted[::-1, ::-1], target[::-1, ::-1]) == expected


def test_nothing_against_nothing_is_undefined_and_nothing_against_something_zero():
    empty, something = np.zeros((20, 20), bool), rectangle((20, 20), 9, 9, 1, 1)
    for metric in (metrics.mask_iou, metrics.boundary_iou):
        assert math.isnan(metric(empty, empty))
        assert metric(empty, something) == metric(something, empty) == 0.0


@pytest.mark.parametrize("metric", [metrics.mask_iou, metrics.boundary_iou])
@pytest.mark.parametrize("wrong", [np.zeros((4, 5), bool), np.zeros((4, 4), np.uint8), np.zeros((4, 4))])
def test_masks_of_another_shape_or_type_are_refused(metric, wrong):
    target = np.ones((4, 4), bool)
    with pytest.raises(ValueError, match="two bool masks of one shape"):
        metric(wrong, target)
    with pytest.raises(ValueError, match="two bool masks of one shape"):
        metric(target, wrong)


def test_stability_is_the_mean_share_of_the_union():
    half, whole = rectangle((4, 4), 0, 0, 4, 2), np.ones((4, 4), bool)
    assert metrics.stability([half, whole]) == (0.5 + 1) / 2
    assert metrics.stability(mask for mask in (half, whole, whole, half)) == 0.75


def test_equal_masks_are_fully_stable_and_disjoint_ones_score_one_over_their_number():
    mask = random_blobs(0, (20, 20))
    assert metrics.stability([mask] * 20) == 1.0
    assert metrics.stability(list(np.eye(20, dtype=bool).reshape(20, 4, 5))) == 1 / 20


def test_an_unanswered_prompt_costs_its_share_and_silence_is_not_stable():
    empty, mask = np.zeros((4, 4), bool), rectangle((4, 4), 1, 1, 2, 2)
    assert metrics.stability([mask, empty]) == 0.5
    assert metrics.stability([empty, empty]) == 0.0


def test_stability_of_no_masks_is_refused():
    with pytest.raises(ValueError, match="at least one"):
        metrics.stability([])


def test_stability_equals_its_literal_twin_and_leaves_the_masks_alone():
    masks = [random_blobs(seed, (30, 40)) for seed in range(5)]
    before = [mask.copy() for mask in masks]
    assert metrics.stability(masks) == pytest.approx(literal.stability(masks), rel=1e-12)
    assert np.array_equal(masks, before)


def test_results_are_python_floats():
    a, b = random_blobs(0, (20, 20)), random_blobs(1, (20, 20))
    for value in (metrics.mask_iou(a, b), metrics.boundary_iou(a, b), metrics.stability([a, b])):
        assert type(value) is float


# classes

IGNORE = 255


def counted(*pairs, classes):
    return sum(metrics.confusion(*map(np.array, pair), classes=classes, ignore=IGNORE) for pair in pairs)


@pytest.mark.parametrize("seed", range(3))
def test_class_iou_equals_its_literal_twin_over_several_pictures(seed):
    rng = np.random.default_rng(seed)
    pairs = [(rng.integers(0, 3, (9, 7)), rng.choice([0, 1, 3, IGNORE], (9, 7)).astype(np.uint8)) for _ in range(3)]
    expected = literal.class_iou(pairs, classes=6, ignore=IGNORE)
    confused = counted(*pairs, classes=6)
    assert metrics.class_iou(confused).tolist() == pytest.approx(
        [math.nan if value is None else value for value in expected], nan_ok=True
    )
    assert expected[4] is None
    assert metrics.class_miou(confused) == pytest.approx(np.mean([value for value in expected if value is not None]))


def test_rows_are_predictions_and_columns_the_truth():
    assert counted(([[0, 1, 1]], [[0, 0, IGNORE]]), classes=2).tolist() == [[1, 0], [1, 0]]


def test_a_class_that_is_only_predicted_or_only_there_counts_as_zero_and_the_background_like_any():
    assert metrics.class_miou(counted(([[0, 0, 1]], [[0, 0, 2]]), classes=4)) == pytest.approx((1 + 0 + 0) / 3)


def test_pixels_that_are_ignored_count_neither_for_nor_against():
    assert metrics.class_miou(counted(([[1, 1, 0]], [[1, IGNORE, IGNORE]]), classes=2)) == 1
    assert math.isnan(metrics.class_miou(counted(([[1]], [[IGNORE]]), classes=2)))


@pytest.mark.parametrize(("predicted", "target"), [([[2]], [[0]]), ([[0]], [[2]]), ([[-1]], [[0]])])
def test_a_number_that_is_no_class_is_refused(predicted, target):
    with pytest.raises(ValueError, match="expected classes from 0 to 1"):
        counted((predicted, target), classes=2)


def test_class_maps_of_two_shapes_are_refused():
    with pytest.raises(ValueError, match="one shape"):
        counted(([[0, 1]], [[0]]), classes=2)
