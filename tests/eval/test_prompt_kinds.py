"""Every system gets the same prompts: they depend on picture, object, kind, seed and index alone."""

import numpy as np
import pytest
import torch

from eval import prompt_kinds as protocols
from eval.loop import to_frame
from stablesam_jax import prompts

MASK = np.zeros((200, 300), bool)
MASK[50:120, 80:200] = True
SAMPLE = {"picture_id": "horses/horse001", "object_id": 0, "seed": 0}

BOX_KINDS = ("gt-box", "noisy-box", "n-box-50", "n-box-60")
RANDOM_KINDS = tuple(kind for kind in protocols.PROMPT_KINDS if kind != "gt-box")


def draw(kind, **changes):
    drawn = protocols.draw_prompts(kind, MASK, **SAMPLE | changes)
    return np.stack([prompt.points if prompt.box is None else prompt.box for prompt in drawn])


def test_the_kinds_are_those_of_the_paper():
    assert list(protocols.PROMPT_KINDS) == [
        "gt-box", "noisy-box", "1-point", "3-points", "5-points", "10-points", "n-box-50", "n-box-60",
    ]  # fmt: skip


def test_the_true_box_is_one_prompt_whatever_the_count():
    assert draw("gt-box").tolist() == draw("gt-box", count=7).tolist()
    (box,) = draw("gt-box")
    assert box == pytest.approx([80, 50, 199, 119], abs=0.5)


@pytest.mark.parametrize("size_hw", [(200, 300), (1024, 1024), (240, 320), (1500, 2100), (480, 640)])
def test_the_true_box_is_that_of_hq_sam_in_its_own_input(size_hw):
    """In pixels of the input, as `train/train.py` computes it: bilinear resizing, values above 128, first to last."""
    rng = np.random.default_rng(0)
    for _ in range(3):
        coarse = rng.uniform(size=(6, 8)) > 0.6
        mask = np.kron(coarse, np.ones((size_hw[0] // 6, size_hw[1] // 8), bool))
        mask = np.pad(mask, [(0, side - has) for side, has in zip(size_hw, mask.shape, strict=True)])
        label = torch.tensor(mask * 255.0)[None, None]
        resized = torch.nn.functional.interpolate(label, (1024, 1024), mode="bilinear")[0, 0] > 128
        rows, columns = (torch.nonzero(resized.any(axis)).ravel() for axis in (1, 0))
        theirs = [int(columns[0]), int(rows[0]), int(columns[-1]), int(rows[-1])]
        (drawn,) = protocols.draw_prompts("gt-box", mask, **SAMPLE)
        ours = to_frame(drawn.box.reshape(2, 2).astype(np.float64), size_hw, 1024).ravel()
        assert ours == pytest.approx(theirs, abs=2e-4)


def test_a_speck_that_resizing_would_lose_keeps_its_place():
    mask = np.zeros((4000, 3000), bool)
    mask[3001, 1001] = True
    (drawn,) = protocols.draw_prompts("gt-box", mask, **SAMPLE)
    assert drawn.box == pytest.approx([1001, 3001, 1001, 3001], abs=2)


@pytest.mark.parametrize("kind", RANDOM_KINDS)
def test_random_kinds_give_twenty_different_prompts(kind):
    assert len(np.unique(draw(kind), axis=0)) == 20


@pytest.mark.parametrize("kind", protocols.PROMPT_KINDS)
def test_a_prompt_is_a_box_or_positive_points_and_never_a_mask(kind):
    for prompt in protocols.draw_prompts(kind, MASK, **SAMPLE):
        assert (prompt.box is None) == (kind not in BOX_KINDS)
        assert prompt.mask is None
        assert prompt.points.shape == (0 if kind in BOX_KINDS else int(kind.split("-")[0]), 2)
        assert prompt.labels.tolist() == [1] * len(prompt.points)


@pytest.mark.parametrize(
    ("kind", "low", "high"), [("noisy-box", 0.36, 1), ("n-box-50", 0.5, 0.6), ("n-box-60", 0.6, 0.7)]
)
def test_noisy_boxes_are_as_good_as_their_kind_says(kind, low, high):
    iou = prompts.box_iou(draw(kind, count=200), draw("gt-box"))
    assert low <= iou.min() + 1e-4
    assert iou.max() < high + 1e-4


@pytest.mark.parametrize("kind", RANDOM_KINDS)
@pytest.mark.parametrize("change", [{"picture_id": "horses/horse002"}, {"object_id": 1}, {"seed": 1}])
def test_another_picture_object_or_seed_has_other_prompts(kind, change):
    assert np.array_equal(draw(kind), draw(kind))
    assert not np.array_equal(draw(kind), draw(kind, **change))


def test_another_kind_has_other_prompts():
    assert not np.array_equal(draw("3-points")[:, :1], draw("1-point"))
    assert not np.array_equal(draw("3-points"), draw("10-points")[:, :3])


@pytest.mark.parametrize("kind", RANDOM_KINDS)
def test_fewer_prompts_are_the_first_of_more(kind):
    assert np.array_equal(draw(kind, count=5), draw(kind)[:5])


def test_no_name_of_a_picture_can_imitate_another_object():
    names = [("a", 11), ("a1", 1), ("a", 1), ('a", 1', 1)]
    drawn = [draw("1-point", picture_id=picture, object_id=number) for picture, number in names]
    assert len(np.unique(drawn, axis=0)) == len(names)


def test_numbers_of_numpy_draw_the_same_prompts():
    assert np.array_equal(draw("noisy-box"), draw("noisy-box", object_id=np.int64(0), seed=np.int32(0)))


def test_published_prompts_do_not_change():
    # Published figures were measured with these. Another numpy may draw others: then they are to be measured anew.
    assert draw("1-point", count=3).tolist() == [[[100, 58]], [[105, 56]], [[190, 59]]]
    assert draw("noisy-box", count=1)[0] == pytest.approx([84.12302, 27.94773, 220.20993, 116.75455], abs=1e-4)
    assert draw("n-box-50", count=1)[0] == pytest.approx([120.03391, 56.36795, 202.09186, 113.79584], abs=1e-4)


def test_prompts_of_successive_indices_are_spread_evenly_over_the_object():
    # Each index has a generator of its own. The object has 120 x 70 px; bounds are 4 standard errors of 2000 draws.
    points = draw("1-point", count=2000)[:, 0]
    assert points.mean(0) == pytest.approx([139.5, 84.5], abs=3.1)
    assert points.std(0) == pytest.approx([34.6, 20.2], abs=1.5)


def test_an_object_of_one_pixel_has_prompts_of_every_kind():
    pixel = np.zeros((20, 30), bool)
    pixel[19, 29] = True
    for kind in protocols.PROMPT_KINDS:
        assert protocols.draw_prompts(kind, pixel, **SAMPLE)


def test_an_unknown_kind_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="unknown prompt kind '4-points'; known: gt-box, noisy-box, 1-point"):
        draw("4-points")


@pytest.mark.parametrize("kind", protocols.PROMPT_KINDS)
def test_an_empty_mask_is_refused(kind):
    with pytest.raises(ValueError, match="empty"):
        protocols.draw_prompts(kind, np.zeros((20, 30), bool), **SAMPLE)


# from a box that is known, and of the regions of class maps


def test_boxes_drawn_from_a_known_box_are_those_drawn_from_a_mask_of_the_size_of_hq_sams_input():
    mask = np.zeros((1024, 1024), bool)
    mask[100:400, 300:900] = True
    for kind in BOX_KINDS:
        boxes = protocols.draw_boxes(kind, prompts.gt_box(mask), size_hw=mask.shape, count=4, **SAMPLE)
        drawn = protocols.draw_prompts(kind, mask, **SAMPLE | {"count": 4})
        np.testing.assert_allclose(boxes, [prompt.box for prompt in drawn], atol=1e-4)
    assert protocols.BOX_KINDS == BOX_KINDS


def region(kind, mask, corner=(0, 0), **changes):
    prompt = protocols.draw_region_prompt(kind, mask, corner=corner, size_hw=MASK.shape, **SAMPLE | changes)
    return prompt.points[0] if prompt.box is None else prompt.box


@pytest.mark.parametrize("kind", protocols.REGION_KINDS)
def test_a_region_within_its_rectangle_has_the_prompt_that_it_has_in_the_whole_frame(kind):
    mask = MASK & (np.add.outer(np.arange(200), np.arange(300)) % 37 > 5)
    assert np.array_equal(region(kind, mask[50:120, 80:200], (80, 50)), region(kind, mask))
    assert not np.array_equal(region(kind, mask, seed=1), region(kind, mask)) or kind == "oracle-box"


def test_prompts_of_a_region_are_what_mess_and_the_paper_say():
    assert region("oracle-box", MASK).tolist() == [80, 50, 200, 120]
    for number in range(50):
        x, y = region("random-point", MASK, object_id=number)
        assert MASK[int(y), int(x)]
        x, y = region("oracle-point", MASK, object_id=number)
        assert min(x - 79, 200 - x, y - 49, 120 - y) > 35 / 1.7  # candidates are the inner part of 120 x 70 px
        assert prompts.box_iou(region("noisy-box", MASK, object_id=number), region("oracle-box", MASK)) >= 0.36


def test_a_region_of_one_pixel_in_the_corner_is_mess_prompt_of_nothing():
    nothing = np.ones((1, 1), bool)
    assert region("oracle-point", nothing).tolist() == region("random-point", nothing).tolist() == [0, 0]
    assert region("oracle-box", nothing).tolist() == [0, 0, 1, 1]
