"""Prompts have the quality they promise, stay inside the picture, and are the same for the same generator."""

import dataclasses
import functools
from typing import get_args

import cv2
import numpy as np
import pytest
import scipy.ndimage
import scipy.stats

from stablesam_jax import prompts
from tests.reference import prompts as literal


def rng(seed=0):
    return np.random.default_rng(seed)


def disc(size, radius):
    rows, columns = np.mgrid[:size, :size] - (size - 1) / 2
    return np.hypot(rows, columns) <= radius


def noisy_boxes(box, size_hw, count, **options):
    generator = rng()
    return np.stack([prompts.noisy_box(generator, box, size_hw=size_hw, **options) for _ in range(count)])


def quality(box, size_hw, count, **options):
    return prompts.box_iou(noisy_boxes(box, size_hw, count, **options), box)


# the box of a mask


def test_the_box_goes_from_the_first_to_the_last_pixel():
    mask = np.zeros((10, 20), bool)
    mask[2, 5] = mask[7, 11] = True
    box = prompts.gt_box(mask)
    assert box.tolist() == [5, 2, 11, 7]
    assert box.dtype == np.float32


def test_one_pixel_has_a_box_without_width_and_a_full_mask_the_picture():
    pixel = np.zeros((4, 6), bool)
    pixel[3, 5] = True
    assert prompts.gt_box(pixel).tolist() == [5, 3, 5, 3]
    assert prompts.gt_box(np.ones((4, 6), bool)).tolist() == [0, 0, 5, 3]


@pytest.mark.parametrize(
    "draw",
    [
        prompts.gt_box,
        prompts.oracle_box,
        lambda mask: prompts.random_points(rng(), mask, 1),
        lambda mask: prompts.oracle_point(rng(), mask),
        lambda mask: prompts.drawn_click(rng(), mask, kind="uniform"),
        lambda mask: prompts.slipped_click(rng(), mask),
    ],
)
def test_an_empty_mask_has_neither_box_nor_points(draw):
    with pytest.raises(ValueError, match=r"\(4, 6\) is empty"):
        draw(np.zeros((4, 6), bool))


# overlap of boxes


@pytest.mark.parametrize(
    ("other", "iou"),
    [([0, 0, 10, 10], 1), ([5, 0, 15, 10], 1 / 3), ([0, 0, 5, 5], 1 / 4), ([10, 0, 20, 10], 0), ([3, 3, 3, 3], 0)],
)
def test_box_iou_by_hand(other, iou):
    assert prompts.box_iou(np.array([0, 0, 10, 10]), np.array(other)) == pytest.approx(iou)


def test_boxes_without_area_do_not_overlap():
    assert prompts.box_iou(np.array([3, 3, 3, 3]), np.array([3, 3, 3, 3])) == 0


def test_box_iou_broadcasts_over_leading_axes():
    boxes = rng().uniform(0, 10, (5, 1, 4)).cumsum(-1)
    assert prompts.box_iou(boxes, boxes[:, 0]).shape == (5, 5)
    assert np.diagonal(prompts.box_iou(boxes, boxes[:, 0])) == pytest.approx(1)


# the noisy box. Bounds are 4 standard errors of the drawn number, plus the last digit of the published figure.

INSIDE = np.array([400, 450, 600, 500], np.float32)
SIZE_HW = (1024, 1024)
NAMED_BOXES = (prompts.uneven_box, prompts.outward_box, prompts.shifted_box)


@pytest.fixture(scope="module")
def paper_quality():
    return quality(INSIDE, SIZE_HW, 20_000)


@pytest.mark.slow
def test_noise_of_scale_0_4_has_the_published_quality(paper_quality):
    iou = paper_quality
    assert iou.mean() == pytest.approx(0.601, abs=0.003)
    assert iou.std() == pytest.approx(0.084, abs=0.003)
    assert (iou >= 0.5).mean() == pytest.approx(0.905, abs=0.009)
    assert ((iou >= 0.5) & (iou < 0.6)).mean() == pytest.approx(0.435, abs=0.015)
    assert ((iou >= 0.6) & (iou < 0.7)).mean() == pytest.approx(0.346, abs=0.015)
    assert np.quantile(iou, [0.1, 0.5, 0.9]) == pytest.approx([0.502, 0.594, 0.713], abs=0.006)


@pytest.mark.slow
def test_noise_of_scale_0_4_never_makes_a_box_worse_than_0_36(paper_quality):
    assert 0.36 < paper_quality.min() < 0.39


@pytest.mark.parametrize(("scale", "mean"), [(0.1, 0.877), (0.2, 0.772), (0.6, 0.466)])
def test_the_scale_sets_the_quality(scale, mean):
    assert quality(INSIDE, SIZE_HW, 3000, scale=scale).mean() == pytest.approx(mean, abs=0.009)


def test_the_centre_moves_by_a_fifth_of_the_side_and_the_sides_change_by_two_fifths():
    boxes = noisy_boxes(INSIDE, SIZE_HW, 5000)
    shift = ((boxes[:, :2] + boxes[:, 2:]) / 2 - [500, 475]) / [200, 50]
    factor = (boxes[:, 2:] - boxes[:, :2]) / [200, 50]
    for values, low, high in ((shift, -0.2, 0.2), (factor, 0.6, 1.4)):
        assert values.min(0) == pytest.approx([low, low], abs=0.002)
        assert values.max(0) == pytest.approx([high, high], abs=0.002)
    four = np.concatenate([shift, factor], axis=1)
    assert np.abs(np.corrcoef(four.T) - np.eye(4)).max() < 0.06  # 4 / sqrt(5000)


@pytest.mark.parametrize(
    ("box", "mean", "at_least_half"),
    [
        ([0, 400, 100, 600], 0.635, 0.919),  # one side on the border
        ([0, 0, 100, 200], 0.671, 0.930),  # in a corner
        ([0, 400, 1024, 600], 0.672, 0.931),  # full width
        ([0, 0, 1024, 1024], 0.750, 0.947),  # the whole picture
    ],
)
def test_clamping_at_the_border_improves_a_box_as_published(box, mean, at_least_half):
    iou = quality(np.array(box), SIZE_HW, 5000)
    assert iou.mean() == pytest.approx(mean, abs=0.009)
    assert (iou >= 0.5).mean() == pytest.approx(at_least_half, abs=0.016)


@pytest.mark.parametrize(("iou_range", "mean"), [((0.5, 1.0), 0.615), ((0.5, 0.6), 0.554), ((0.6, 0.7), 0.643)])
def test_accepted_boxes_are_all_in_range_with_the_published_mean(iou_range, mean):
    iou = quality(INSIDE, SIZE_HW, 3000, iou_range=iou_range)
    assert iou.min() >= iou_range[0]
    assert iou.max() < iou_range[1]
    assert iou.mean() == pytest.approx(mean, abs=0.006)


def test_a_whole_picture_may_be_hit_exactly():
    iou = quality(np.array([0, 0, 1024, 1024]), SIZE_HW, 2000)
    # Both edges of an axis fall outside where it grows by more than its centre moves: a quarter of the draws.
    assert (iou == 1).mean() == pytest.approx(1 / 16, abs=0.022)


def test_an_accepted_first_draw_is_the_unrejected_draw():
    for seed in range(20):
        free = prompts.noisy_box(rng(seed), INSIDE, size_hw=SIZE_HW)
        if prompts.box_iou(free, INSIDE) >= 0.5:
            kept = prompts.noisy_box(rng(seed), INSIDE, size_hw=SIZE_HW, iou_range=(0.5, 1.0))
            assert np.array_equal(kept, free)


def test_where_no_draw_is_in_range_the_nearest_is_kept():
    below = quality(INSIDE, SIZE_HW, 50, iou_range=(0.1, 0.2))
    above = quality(INSIDE, SIZE_HW, 50, iou_range=(0.99, 1.0))
    assert 0.36 < below.min() <= below.max() < 0.5
    assert 0.7 < above.min() <= above.max() < 0.99


@pytest.mark.parametrize("pixel", [(0, 0), (31, 0), (0, 23), (31, 23), (10, 10)])
@pytest.mark.parametrize("iou_range", [(0.0, 1.0), (0.5, 0.6)])
def test_a_pixel_is_treated_as_a_box_of_one_pixel_inside_the_picture(pixel, iou_range):
    box = np.array([*pixel, *pixel], np.float32)
    boxes = noisy_boxes(box, (24, 32), 200, iou_range=iou_range)
    corner = np.clip(np.array(pixel) - 0.5, 0, [31, 23])
    iou = prompts.box_iou(boxes, np.concatenate([corner, corner + 1]))
    assert (boxes[:, 2:] > boxes[:, :2]).all()
    assert iou.min() >= max(0.36, iou_range[0])
    assert iou.max() <= iou_range[1]


def test_a_line_of_pixels_is_widened_across_but_not_along():
    boxes = noisy_boxes(np.array([100, 50, 300, 50]), SIZE_HW, 2000)
    sides = boxes[:, 2:] - boxes[:, :2]
    assert sides.mean(0) == pytest.approx([200, 1], rel=0.03)
    assert (boxes[:, 1] + boxes[:, 3]).mean() / 2 == pytest.approx(50, abs=0.02)


def test_noisy_and_jittered_boxes_stay_inside_the_picture():
    generator = rng()
    for _ in range(300):
        near = generator.integers(0, [40, 30], 2)
        box = np.concatenate([near, generator.integers(near, [40, 30], 2)]).astype(np.float32)
        for draw in (prompts.noisy_box, prompts.jittered_box, *NAMED_BOXES):
            drawn = draw(generator, box, size_hw=(30, 40))
            assert drawn.dtype == np.float32
            assert (drawn >= 0).all()
            assert (drawn <= [40, 30, 40, 30]).all()


def test_the_same_generator_draws_the_same_prompts():
    mask = disc(64, 20)
    for draw in (
        lambda g: prompts.noisy_box(g, INSIDE, size_hw=SIZE_HW),
        lambda g: prompts.jittered_box(g, INSIDE, size_hw=SIZE_HW),
        lambda g: prompts.random_points(g, mask, 5),
        lambda g: prompts.coarse_mask(g, mask, size=32),
        lambda g: prompts.drawn_click(g, mask, kind="likely"),
        lambda g: prompts.slipped_click(g, mask),
        *(functools.partial(draw, box=INSIDE, size_hw=SIZE_HW) for draw in NAMED_BOXES),
    ):
        assert np.array_equal(draw(rng(3)), draw(rng(3)))
        assert not np.array_equal(draw(rng(3)), draw(rng(4)))


# the good box of SAM's training


def test_jitter_is_a_tenth_of_the_side():
    generator = rng()
    noise = np.stack([prompts.jittered_box(generator, INSIDE, size_hw=SIZE_HW) - INSIDE for _ in range(4000)])
    assert noise.mean(0) == pytest.approx(np.zeros(4), abs=1.3)
    assert noise[:, [1, 3]].std(0) == pytest.approx([5, 5], abs=0.25)  # sides of 50 px; 20 px is 4 deviations
    assert np.abs(noise[:, [0, 2]]).max() == 20  # sides of 200 px reach the limit
    small = [prompts.jittered_box(generator, INSIDE / 4, size_hw=(256, 256)) - INSIDE / 4 for _ in range(200)]
    assert np.abs(small).max() == 5  # which is smaller at a smaller input


def test_jitter_keeps_a_box_good():
    generator = rng()
    boxes = np.stack([prompts.jittered_box(generator, INSIDE, size_hw=SIZE_HW) for _ in range(2000)])
    assert prompts.box_iou(boxes, INSIDE).mean() > 0.75
    large = np.array([100, 100, 900, 900])
    boxes = np.stack([prompts.jittered_box(generator, large, size_hw=SIZE_HW) for _ in range(200)])
    assert prompts.box_iou(boxes, large).min() > 0.9


def test_the_strength_multiplies_the_noise_and_its_limit():
    one, three = (
        np.stack([prompts.jittered_box(rng(seed), INSIDE, size_hw=SIZE_HW, strength=strength) for seed in range(50)])
        for strength in (1, 3)
    )
    assert three - INSIDE == pytest.approx(3 * (one - INSIDE), abs=1e-3)


# points


@pytest.mark.parametrize("count", prompts.POINT_COUNTS)
def test_points_are_distinct_pixels_of_the_object(count):
    mask = np.zeros((30, 50), bool)
    mask[5:9, 40:44] = True
    for seed in range(50):
        points = prompts.random_points(rng(seed), mask, count)
        columns, rows = points.astype(int).T
        assert points.shape == (count, 2)
        assert points.dtype == np.float32
        assert np.array_equal(points, np.stack([columns, rows], 1))
        assert mask[rows, columns].all()
        assert len(set(zip(columns, rows, strict=True))) == count


def test_points_are_uniform_over_the_object():
    mask = np.zeros((6, 7), bool)
    mask[1:5, 2] = mask[4, 2:7] = True  # an L of 8 pixels
    generator = rng()
    points = np.concatenate([prompts.random_points(generator, mask, 3) for _ in range(4000)]).astype(int)
    _, counts = np.unique(points, axis=0, return_counts=True)
    assert counts / 4000 == pytest.approx(np.full(8, 3 / 8), abs=0.031)  # 4 sqrt(p (1 - p) / 4000)


def test_as_many_points_as_pixels_cover_the_object():
    mask = np.zeros((5, 5), bool)
    mask[1, 1:4] = True
    assert sorted(prompts.random_points(rng(), mask, 3).tolist()) == [[1, 1], [2, 1], [3, 1]]


def test_more_points_than_pixels_repeat_pixels():
    mask = np.zeros((5, 5), bool)
    mask[3, 1] = True
    assert prompts.random_points(rng(), mask, 10).tolist() == [[1, 3]] * 10


# the prompts of MESS


def oracle_points(mask, count=2000):
    generator = rng()
    points = np.concatenate([prompts.oracle_point(generator, mask) for _ in range(count)])
    columns, rows = points.astype(int).T
    assert mask[rows, columns].all()
    return rows, columns


@pytest.mark.slow
def test_oracle_points_are_uniform_over_the_inner_17_percent_of_a_disc():
    rows, columns = oracle_points(disc(401, 200))
    distances = np.hypot(rows - 200, columns - 200)
    assert (distances.max() / 200) ** 2 == pytest.approx(0.17, abs=0.01)
    assert np.mean((distances / distances.max()) ** 2) == pytest.approx(0.5, abs=0.03)


def test_oracle_points_are_uniform_over_the_inner_42_percent_of_a_long_bar():
    bar = np.zeros((60, 400), bool)
    bar[10:50, 20:380] = True
    rows, columns = oracle_points(bar)
    assert (np.ptp(rows) + 1) * (np.ptp(columns) + 1) / bar.sum() == pytest.approx(0.42, abs=0.01)
    assert np.std(columns) == pytest.approx(np.ptp(columns) / 12**0.5, rel=0.05)


def test_the_depth_of_a_pixel_is_its_distance_to_the_background_or_the_outside():
    mask = np.zeros((20, 30), bool)
    mask[:9, 10:] = True
    mask[4, 20] = False
    expected = scipy.ndimage.distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]
    assert prompts.depth(mask) == pytest.approx(expected, abs=1e-5)


def test_click_densities_are_the_distance_an_even_one_and_the_ends_of_the_distance():
    distance = prompts.depth(disc(41, 18))
    shares = {kind: prompts.click_density(distance, kind) for kind in get_args(prompts.ClickDensity)}
    assert all(share.sum() == pytest.approx(1) for share in shares.values())
    assert shares["distance"] == pytest.approx(distance / distance.sum())
    assert shares["uniform"] == pytest.approx((distance > 0) / (distance > 0).sum())
    for kind, inner in (("likely", True), ("unlikely", False)):
        chosen = shares[kind] > 0
        assert shares["distance"][chosen].sum() == pytest.approx(0.1, abs=0.01)
        rest = distance[~chosen & (distance > 0)]
        assert (distance[chosen].min() >= rest.max()) if inner else (distance[chosen].max() <= rest.min())
        assert shares[kind][chosen] == pytest.approx(distance[chosen] / distance[chosen].sum())


def test_drawn_clicks_are_as_frequent_as_their_density():
    mask, generator = disc(15, 6), rng()
    drawn = np.concatenate([prompts.drawn_click(generator, mask, kind="distance") for _ in range(4000)]).astype(int)
    counts = np.zeros(mask.shape)
    np.add.at(counts, (drawn[:, 1], drawn[:, 0]), 1)
    expected = prompts.click_density(prompts.depth(mask), "distance")
    assert not counts[~mask].any()
    assert scipy.stats.chisquare(counts[mask], 4000 * expected[mask]).pvalue > 0.01


def test_the_border_of_the_picture_counts_as_background_for_an_oracle_point():
    rows, columns = oracle_points(np.ones((40, 40), bool))
    assert min(rows.min(), columns.min()) >= 10
    assert max(rows.max(), columns.max()) <= 29


def test_the_oracle_point_of_a_pixel_is_that_pixel():
    mask = np.zeros((5, 7), bool)
    mask[4, 6] = True
    assert prompts.oracle_point(rng(), mask).tolist() == [[6, 4]]


def test_the_oracle_box_reaches_to_the_far_edge_of_the_last_pixel():
    mask = np.zeros((10, 20), bool)
    mask[2, 5] = mask[7, 11] = True
    assert prompts.oracle_box(mask).tolist() == [5, 2, 12, 8]


# coarse masks


@pytest.mark.parametrize(("shape", "size"), [(64, 64), (96, 48), (100, 32), (40, 64)])
def test_a_coarse_mask_equals_its_literal_twin(shape, size):
    mask = disc(shape, shape / 3.3)
    noise = rng().standard_normal((size, size), np.float32)
    assert np.array_equal(prompts.coarse_mask(rng(), mask, size=size), literal.coarse_mask(mask, noise, size))


@pytest.mark.parametrize(("radius", "iou"), [(30, 0.46), (60, 0.65), (120, 0.77), (240, 0.89), (480, 0.94)])
def test_small_objects_get_worse_coarse_masks_as_published(radius, iou):
    mask = disc(1024, radius)
    clean = cv2.resize(mask.astype(np.float32), (256, 256)) > 0.5
    coarse = [prompts.coarse_mask(rng(seed), mask, size=256) for seed in range(5)]
    overlap = np.mean([(m & clean).sum() / (m | clean).sum() for m in coarse])
    assert overlap == pytest.approx(iou, abs=0.03)  # the published discs have another centre


@pytest.mark.parametrize(("edge", "band"), [(96, range(92, 100)), (99, range(92, 100)), (100, range(92, 108))])
def test_noise_is_confined_to_a_narrow_band_in_which_a_third_flips(edge, band):
    mask = np.zeros((256, 256), bool)
    mask[:, edge:] = True
    flips = np.mean([prompts.coarse_mask(rng(seed), mask, size=256) ^ mask for seed in range(20)], axis=(0, 1))
    touched = np.flatnonzero(flips)
    assert touched.tolist() == list(band)
    assert flips[touched] == pytest.approx(np.full(len(touched), 0.309), abs=0.026)  # 4 sqrt(p (1 - p) / 5120)


@pytest.mark.parametrize("radius", [30, 120, 480])
def test_the_band_around_a_disc_is_eleven_to_thirteen_pixels_wide(radius):
    mask = disc(1024, radius)
    clean = cv2.resize(mask.astype(np.float32), (256, 256)) > 0.5
    touched = np.any([prompts.coarse_mask(rng(seed), mask, size=256) ^ clean for seed in range(30)], axis=0)
    assert 10.5 < touched.sum() / (2 * np.pi * radius / 4) < 13.5


def test_empty_and_full_masks_have_no_edge_to_spoil():
    assert not prompts.coarse_mask(rng(), np.zeros((64, 64), bool), size=32).any()
    assert prompts.coarse_mask(rng(), np.ones((64, 64), bool), size=32).all()


@pytest.mark.parametrize(("shape", "size"), [((64, 48), 32), ((64, 64), 30)])
def test_a_coarse_mask_needs_a_square_and_a_size_divisible_by_eight(shape, size):
    with pytest.raises(ValueError, match="square mask and a size divisible by 8"):
        prompts.coarse_mask(rng(), np.ones(shape, bool), size=size)


# the prompt itself


def test_what_a_prompt_is_not_given_is_absent():
    prompt = prompts.Prompt(box=INSIDE)
    assert (prompt.points.shape, prompt.points.dtype) == ((0, 2), np.float32)
    assert (prompt.labels.shape, prompt.labels.dtype) == ((0,), np.int32)
    assert prompt.mask is None


def test_a_prompt_does_not_change():
    with pytest.raises(dataclasses.FrozenInstanceError):
        prompts.Prompt().box = INSIDE
