"""AP equals pycocotools' algorithm in plain Python, and what can be worked out by hand."""

import math

import numpy as np
import pytest
from faster_coco_eval.core import mask as mask_api

from eval.protocols.average_precision import Detection, average_precision
from stablesam_jax.data.coco import Annotation
from tests.reference import average_precision as literal
from tests.reference.tiers import slow

SHAPE = (60, 80)


def rectangle(x, y, width, height):
    mask = np.zeros(SHAPE, bool)
    mask[y : y + height, x : x + width] = True
    return mask


def annotation(number, mask, *, image_id=1, category_id=1, crowd=False):
    run_lengths = mask_api.encode(np.asfortranarray(mask, np.uint8))
    return Annotation(
        annotation_id=number,
        image_id=image_id,
        category_id=category_id,
        bbox_xywh=tuple(mask_api.toBbox(run_lengths).tolist()),
        area=float(mask.sum()),
        iscrowd=crowd,
        run_lengths=run_lengths,
    )


def detection(mask, score, *, image_id=1, category_id=1):
    run_lengths = mask_api.encode(np.asfortranarray(mask, np.uint8))
    return Detection(image_id=image_id, category_id=category_id, run_lengths=run_lengths, score=score)


LEFT, RIGHT, SMALL = rectangle(5, 10, 20, 30), rectangle(45, 10, 30, 40), rectangle(2, 50, 6, 6)
FAR = rectangle(40, 50, 8, 8)
TRUTH = [annotation(0, LEFT), annotation(1, RIGHT), annotation(2, SMALL, image_id=2)]


def test_the_true_masks_score_one_whatever_their_scores():
    found = [detection(one.mask(), 0.1 * number, image_id=one.image_id) for number, one in enumerate(TRUTH)]
    values = average_precision(TRUTH, found)
    large = values.pop("ap_large")
    assert set(values) == {"ap", "ap50", "ap75", "ap_small", "ap_medium"} | {
        f"boundary_{name}" for name in ("ap", "ap50", "ap75")
    }
    assert set(values.values()) == {1}
    assert math.isnan(large)  # there is none


@pytest.mark.parametrize("found", [[], [detection(np.zeros(SHAPE, bool), 1)], [detection(LEFT, 1, category_id=2)]])
def test_nothing_an_empty_mask_and_another_category_score_zero(found):
    values = average_precision(TRUTH, found)
    assert values["ap"] == values["ap50"] == values["boundary_ap"] == 0


def test_a_miss_that_is_surer_than_the_hit_halves_the_precision():
    truth = [annotation(1, LEFT)]
    assert average_precision(truth, [detection(FAR, 0.9), detection(LEFT, 0.8)])["ap"] == pytest.approx(0.5)
    assert average_precision(truth, [detection(FAR, 0.7), detection(LEFT, 0.8)])["ap"] == pytest.approx(1)


def test_a_mask_counts_up_to_its_iou():
    # 20 x 30 of 20 x 40: IoU 0.75, so 6 of the 10 thresholds from 0.5 to 0.95.
    values = average_precision([annotation(1, rectangle(5, 10, 20, 40))], [detection(LEFT, 1)])
    assert (values["ap"], values["ap50"], values["ap75"]) == pytest.approx((0.6, 1, 1))


def test_half_of_the_objects_reach_half_of_the_recalls():
    values = average_precision([annotation(1, LEFT), annotation(2, RIGHT)], [detection(LEFT, 1)])
    assert values["ap"] == pytest.approx(51 / 101)  # recalls 0, 0.01, ..., 0.50


def test_a_crowd_absorbs_detections_and_is_no_object():
    truth = [annotation(1, LEFT), annotation(2, RIGHT, crowd=True)]
    inside = [detection(rectangle(50, 15, 5, 5), 0.9), detection(rectangle(60, 15, 5, 5), 0.8)]
    assert average_precision(truth, [*inside, detection(LEFT, 0.5)])["ap"] == 1


def test_categories_without_objects_are_skipped_and_the_others_count_alike():
    truth = [annotation(1, LEFT), annotation(2, RIGHT), annotation(3, SMALL, category_id=7)]
    found = [detection(LEFT, 1), detection(RIGHT, 1), detection(LEFT, 1, category_id=3)]
    assert average_precision(truth, found)["ap"] == 0.5


def test_category_and_annotation_number_zero_are_as_good_as_any():
    values = average_precision([annotation(0, LEFT, category_id=0)], [detection(LEFT, 1, category_id=0)])
    assert values["ap"] == 1


def test_only_the_order_of_scores_counts():
    for scores in ((0.2, 0.1), (5, -3), (-1, -2)):
        values = average_precision(TRUTH[:2], [detection(FAR, scores[0]), detection(LEFT, scores[1])])
        assert values["ap"] == average_precision(TRUTH[:2], [detection(FAR, 2), detection(LEFT, 1)])["ap"]


def test_equal_scores_keep_the_order_of_pictures():
    truth = [annotation(1, LEFT, image_id=3), annotation(2, LEFT, image_id=9)]
    hit, miss = detection(LEFT, 1, image_id=3), detection(FAR, 1, image_id=9)
    first = average_precision(truth, [miss, hit])["ap"]
    assert first == average_precision(truth, [hit, miss])["ap"] == pytest.approx(51 / 101)


def random_scene(rng):
    """Objects of two categories in three pictures, one of them a crowd, and detections that are off by some pixels."""
    truth, found = [], []
    for number in range(14):
        (x, y), (width, height) = rng.integers(0, (50, 30)), rng.integers(4, 30, 2)
        place = {"image_id": int(rng.integers(1, 4)), "category_id": int(rng.integers(0, 2))}
        truth.append(annotation(number, rectangle(x, y, width, height), crowd=number == 3, **place))
        dx, dy, wider = rng.integers(0, 4, 3)
        found.append(detection(rectangle(x + dx, y + dy, width + wider, height), rng.integers(0, 5) / 4, **place))
    found += [detection(rectangle(*rng.integers(1, 20, 4)), 0.6, image_id=k) for k in (1, 2, 3)]
    return truth, found


def sorted_out(entries, value):
    result = {}
    for one in entries:
        result.setdefault(one.category_id, {}).setdefault(one.image_id, []).append(value(one))
    return result


@pytest.mark.parametrize("seed", [0, *slow(1, 2, 3)])
def test_equals_the_published_algorithm(seed):
    truth, found = random_scene(np.random.default_rng(seed))
    known = sorted_out(truth, lambda one: (one.mask(), one.area, one.iscrowd))
    asked = sorted_out(found, lambda one: (mask_api.decode(one.run_lengths).astype(bool), one.score))
    values = average_precision(truth, found)
    assert 0.1 < values["ap"] < 0.9
    for name, options in {
        "ap": {},
        "ap50": {"thresholds": [0.5]},
        "ap75": {"thresholds": [0.75]},
        "ap_small": {"area": "small"},
        "boundary_ap": {"boundary": True},
        "boundary_ap50": {"boundary": True, "thresholds": [0.5]},
    }.items():
        assert values[name] == pytest.approx(literal.average_precision(known, asked, **options), abs=1e-9), name
