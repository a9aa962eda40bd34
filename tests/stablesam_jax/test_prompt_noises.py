"""Boxes and clicks of other papers are distributed as these papers say."""

import numpy as np
import pytest
import scipy.stats

from stablesam_jax import prompts

INSIDE = np.array([400, 450, 600, 500], np.float32)
SIZE_HW = (1024, 1024)


def rng(seed=0):
    return np.random.default_rng(seed)


def moves(draw, count=4000, **options):
    """Where each edge goes, (count, 4)."""
    generator = rng()
    return np.stack([draw(generator, INSIDE, size_hw=SIZE_HW, **options) - INSIDE for _ in range(count)])


def is_uniform(values, low, high):
    return scipy.stats.kstest(values, "uniform", (low, high - low)).pvalue > 0.01


def test_uneven_boxes_have_each_edge_moved_evenly_by_up_to_a_tenth_of_the_shorter_side():
    moved = moves(prompts.uneven_box)  # of 200 x 50 px
    assert all(is_uniform(moved[:, edge], -5, 5) for edge in range(4))
    assert np.abs(np.corrcoef(moved.T) - np.eye(4)).max() < 0.05  # each for itself
    assert is_uniform(moves(prompts.uneven_box, share=0.3)[:, 0], -15, 15)


def test_outward_boxes_grow_by_0_to_49_whole_pixels_at_each_edge_all_as_likely():
    outward = moves(prompts.outward_box) * [-1, -1, 1, 1]
    for edge in range(4):
        values, counts = np.unique(outward[:, edge], return_counts=True)
        assert values.tolist() == list(range(50))
        assert scipy.stats.chisquare(counts).pvalue > 0.01
    assert np.abs(np.corrcoef(outward.T) - np.eye(4)).max() < 0.05
    assert set(moves(prompts.outward_box, 200, most=3)[:, 2]) == {0, 1, 2}


def test_shifted_boxes_keep_their_size_and_move_evenly_where_the_iou_allows_it():
    moved = moves(prompts.shifted_box)
    assert moved[:, 2:] == pytest.approx(moved[:, :2], abs=1e-4)
    shares = moved[:, :2] / [200, 50]
    overlap = (1 - np.abs(shares)).prod(1)
    assert (overlap / (2 - overlap)).min() > 0.5
    even = rng(1).uniform(-0.3, 0.3, (20000, 2))
    expected = even[(1 - np.abs(even)).prod(1) > 2 / 3]  # where the IoU is above a half
    for axis in (0, 1):
        assert scipy.stats.ks_2samp(shares[:, axis], expected[:, axis]).pvalue > 0.01
    assert is_uniform(moves(prompts.shifted_box, scale=0.1)[:, 0], -20, 20)  # where all are allowed


def test_where_no_shift_is_near_enough_the_nearest_is_kept():
    drawn = prompts.shifted_box(rng(), INSIDE, size_hw=SIZE_HW, scale=0.3, min_iou=0.9999)
    tried = INSIDE + np.tile(0.3 * np.array([200, 50]) * rng().uniform(-1, 1, (prompts.BOX_TRIES, 2)), 2)
    assert drawn == pytest.approx(tried[prompts.box_iou(tried, INSIDE).argmax()], abs=1e-4)


def test_slipped_clicks_miss_the_middle_evenly_by_up_to_ten_pixels():
    mask = np.zeros((60, 90), bool)
    mask[20:31, 40:51] = True  # its middle is at 45, 25
    generator = rng()
    drawn = np.concatenate([prompts.slipped_click(generator, mask) for _ in range(4000)])
    assert is_uniform(drawn[:, 0], 35, 55)
    assert is_uniform(drawn[:, 1], 15, 35)
    assert abs(np.corrcoef(drawn.T)[0, 1]) < 0.05
    assert prompts.slipped_click(generator, mask, most=0).tolist() == [[45, 25]]
    far = np.concatenate([prompts.slipped_click(generator, mask, most=500) for _ in range(50)])
    assert (far.min(0).tolist(), far.max(0).tolist()) == ([0, 0], [89, 59])
