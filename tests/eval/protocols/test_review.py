"""`review` measures how well signals detect poor masks, and the masks that rules take, as their definitions say."""

import json

import numpy as np
import pytest
import torch

from eval.parity import torch_sam  # noqa: F401  provides torchvision where there is none
from eval.protocols import review as module
from eval.protocols import systems
from eval.protocols.review import (
    BOXES,
    CLICKS,
    RULES,
    SIGNALS,
    Case,
    ReviewConfig,
    detection,
    examine,
    found,
    review,
    stability_score,
)
from stablesam_jax.errors import InputError
from stablesam_jax.metrics import mask_iou
from stablesam_jax.predict.predictor import Predictor
from stablesam_jax.prompts import Prompt, box_iou, gt_box
from tests.reference import small

from segment_anything.utils import amg  # isort: skip


def case(iou=0.9, *, kind="1-point", fit=None, **more):
    values = {"ious": [iou, 0.2, 0.8, 0.5], "predicted": [0.6, 0.9, 0.5, 0.7], "scores": [1.0, 0.5, 0.5, 0.9]}
    return Case(kind=kind, fit=fit, **{**values, "stability": iou, **more})


def test_each_rule_takes_its_mask():
    taken = {rule: take(case()) for rule, take in RULES.items()}
    assert taken == {
        "single": 0, "three": 1, "three_scored": 3, "four": 1, "four_scored": 3, "best_of_three": 2, "best_of_four": 0,
    }  # fmt: skip


def test_detection_is_by_definition():
    """Ten masks, of which the two least stable are reviewed: one of the two poor ones is among them."""
    ious = np.array([0.1, 0.9, 0.9, 0.9, 0.9, 0.9, 0.9, 0.9, 0.9, 0.5])
    stability = np.array([0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.35])
    cases = [case(iou, stability=value) for iou, value in zip(ious, stability, strict=True)]
    result = detection(cases)
    assert list(result) == [CLICKS]
    assert result[CLICKS]["poor"] == 0.2
    one = result[CLICKS]["signals"]["stability"]
    assert one["found"] == 0.5
    assert one["risk"] == pytest.approx(np.mean(1 - ious[2:]))
    pairs = [(bad, good) for bad in (0, 9) for good in range(1, 9)]
    assert one["auc"] == pytest.approx(np.mean([stability[bad] < stability[good] for bad, good in pairs]))
    assert set(result[CLICKS]["signals"]) == {name for name in SIGNALS if "fit" not in name}


def test_boxes_and_clicks_are_apart_and_boxes_have_a_fit():
    result = detection([case(0.3, kind="gt-box", fit=0.2), case(kind="gt-box", fit=0.9), case()])
    assert (result[BOXES]["masks"], result[CLICKS]["masks"]) == (2, 1)
    assert result[BOXES]["signals"]["fit"]["auc"] == 1
    assert tuple(result[BOXES]["signals"]) == SIGNALS


def test_the_stability_score_is_segment_anythings():
    logits = np.random.default_rng(0).normal(0, 2, (5, 32, 32)).astype(np.float32)
    expected = amg.calculate_stability_score(torch.from_numpy(logits), 0.0, 1.0)
    np.testing.assert_allclose([stability_score(one) for one in logits], expected, rtol=1e-6)
    assert stability_score(np.full((4, 4), -9.0)) == 0


@pytest.mark.slow
def test_a_case_is_what_the_predictor_gives():
    predictor = Predictor(*small.stable_nano())
    picture = predictor.encode(np.random.default_rng(0).integers(0, 255, (40, 48, 3), np.uint8))
    target = np.zeros((40, 48), bool)
    target[5:30, 10:40] = True
    box = np.array([8.0, 6, 41, 33])
    one = examine(predictor, picture, Prompt(box=box), target, kind="gt-box", seed=0)
    masks, predicted, _ = predictor.predict(box=box, picture=picture)
    single = predictor.predict_stable(box=box, picture=picture)
    assert one.ious == [mask_iou(mask, target) for mask in (single.mask, *masks)]
    assert one.predicted == pytest.approx([single.iou_prediction, *predicted])
    assert one.stability == single.stability
    assert one.fit == pytest.approx(float(box_iou(gt_box(single.mask), box)))


def test_means_are_over_objects_then_pictures():
    def record(*ious):
        cases = [{"object": 0, "case": {**vars(case(iou)), "stability": 0.5}} for iou in ious]
        return {"picture": "a", "cases": cases}

    result = found([record(0.2, 0.4), record(0.9)])
    assert result.summary["1-point"]["single"] == pytest.approx((0.3 + 0.9) / 2)
    assert result.summary["1-point"]["best_of_three"] == 0.8
    assert len(result.lines) == 3


def test_options_that_do_not_fit_are_refused(tmp_path):
    with pytest.raises(InputError, match="--objects 0: must be at least 1"):
        review(ReviewConfig(system=("a",), data_dir=(tmp_path,), output=tmp_path / "out", objects=0))


@pytest.mark.slow
def test_the_command_writes_detection_and_tables(tmp_path, monkeypatch):
    monkeypatch.setattr(systems, "load_model", small.by_name)
    folder = small.save_pairs(tmp_path / "horses", 2)
    with small.quick_compilation():
        review(ReviewConfig(system=("base", "base+plugin"), data_dir=(folder,), output=tmp_path / "out"))
    results = json.loads((tmp_path / "out/results.json").read_text())
    assert list(results["detection"]) == ["base", "base+plugin"]
    assert results["detection"]["base"][BOXES]["masks"] == 4
    assert set(results["systems"]["base"]["horses"]["1-point"]) == set(module.METRICS)
