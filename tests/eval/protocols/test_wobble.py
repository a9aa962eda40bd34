"""The command writes one page: curves, and whether the flag of `predict_stable` finds bad masks."""

import csv
import dataclasses
import itertools
import json
import math
import pathlib
import subprocess

import numpy as np
import pytest
import torch

from eval.loop import Predictions
from eval.noises import NOISES, kinds_of
from eval.prompt_kinds import PROMPT_KINDS, WOBBLE_KINDS
from eval.protocols import systems, wobble
from eval.protocols.wobble import DEFAULT, Case, WobbleConfig, cases_of, judge, spread, spread_table, verdict
from stablesam_jax.build import load_model
from stablesam_jax.config import MODELS
from stablesam_jax.data.readers import LabelledPicture
from stablesam_jax.prompts import box_iou, gt_box
from tests.reference import official, small
from tests.reference.pictures import refusal
from tests.reference.tiers import slow

KINDS = kinds_of(DEFAULT)
TARGET = np.zeros((40, 60), bool)
TARGET[5:30, 10:50] = True
LABELLED = LabelledPicture("a", np.zeros((40, 60, 3), np.uint8), TARGET[None])


class Stub:
    """Predicts one mask for every prompt; records the prompts."""

    def __init__(self, mask):
        self.mask, self.prompts = mask, []

    def encode(self, picture):
        return picture

    def predict(self, embedding, prompts, size_hw):
        self.prompts.append(prompts)
        masks = np.stack([np.where(self.mask, 1, -1).astype(np.float32)] * len(prompts))
        return Predictions(masks, np.linspace(0.5, 0.9, len(prompts), dtype=np.float32), None)


def begun(mask):
    stub = Stub(mask)
    record = wobble.begin(stub, LABELLED, wobble.Protocol(kinds=KINDS, prompts=3))()
    return stub, record


def test_an_oracle_scores_one_and_an_empty_system_zero_under_every_kind():
    for mask, score in ((TARGET, 1), (~TARGET & TARGET, 0)):
        _, record = begun(mask)
        assert [one["kind"] for one in record["scores"]] == list(KINDS)
        assert {(one["miou"], one["mbiou"], one["msf"]) for one in record["scores"]} == {(score,) * 3}
        assert {(case["iou"], case["stability"], case["agreement"]) for case in record["cases"]} == {(score,) * 3}


def test_each_kind_is_prompted_again_with_small_slips_of_its_first_prompt():
    stub, record = begun(TARGET)
    own, slipped = stub.prompts[: len(KINDS)], stub.prompts[len(KINDS) :: 2]
    for kind, prompts, slips in zip(KINDS, own, slipped, strict=True):
        assert len(prompts) == (1 if kind == "gt-box" else 3)
        assert len(slips) == 1 + wobble.JITTERS
        assert slips[0] is prompts[0]
        assert len({tuple(slip.points.ravel()) + (() if slip.box is None else tuple(slip.box)) for slip in slips}) > 15
    assert {case["predicted_iou"] for case in record["cases"]} == {0.5}  # that of the prompt itself


def test_each_mask_is_clicked_at_other_places():
    stub, _ = begun(TARGET)
    for clicks in stub.prompts[len(KINDS) + 1 :: 2]:
        places = np.concatenate([one.points for one in clicks]).astype(int)
        assert places.shape == (wobble.CLICKS, 2)
        assert TARGET[places[:, 1], places[:, 0]].all()
        assert len(np.unique(places, axis=0)) > 5


def test_boxes_get_sloppier_along_the_axis_and_points_fewer():
    stub = Stub(TARGET)
    wobble.begin(stub, LABELLED, wobble.Protocol(kinds=KINDS, prompts=200))
    drawn = dict(zip(KINDS, stub.prompts, strict=False))
    overlap = [
        np.mean([box_iou(one.box, gt_box(TARGET)) for one in drawn[kind]]) for kind in NOISES["hq-sam"].kinds.values()
    ]
    assert overlap[0] > 0.9  # HQ-SAM's true box is half a pixel wider
    assert all(good > bad + 0.02 for good, bad in itertools.pairwise(overlap))
    assert [(PROMPT_KINDS | WOBBLE_KINDS)[kind].points for kind in NOISES["points"].kinds.values()] == [
        int(place) for place in NOISES["points"].kinds
    ]


# the verdict


def cases(*, stability, predicted, agreement=lambda iou: 0.5, n=120):
    """Cases of known IoU with signals made from it."""
    iou = np.random.default_rng(0).uniform(0.2, 1, n)
    return [
        Case(
            kind=KINDS[index % len(KINDS)],
            iou=value,
            stability=stability(value),
            agreement=agreement(value),
            predicted_iou=predicted(value),
            alpha=None,
        )
        for index, value in enumerate(iou)
    ]


def test_the_verdict_is_yes_for_a_flag_that_finds_bad_masks_and_no_for_one_that_does_not():
    good = judge(cases(stability=lambda iou: 0.92 + (iou - 0.6) / 10, predicted=lambda iou: 0.5))
    assert good["stability"]["rank_correlation"] == pytest.approx(1)
    assert good["stability"]["gain"] == pytest.approx(1)
    assert math.isnan(good["predicted_iou"]["rank_correlation"])
    assert "alpha" not in good
    assert good["stability"]["bad_found"] == 1
    assert "Yes: " in verdict(good)
    assert "finds fewer" in verdict(good)
    both = judge(cases(stability=lambda iou: 0.92 + (iou - 0.6) / 10, predicted=lambda iou: iou))
    assert "Predicted IoU, which needs no extra prompts, finds about as many." in verdict(both)

    reversed_order = judge(cases(stability=lambda iou: 0.92 + (0.6 - iou) / 10, predicted=lambda iou: iou))
    assert reversed_order["stability"]["rank_correlation"] == pytest.approx(-1)
    assert "No: it finds hardly more" in verdict(reversed_order)


def test_where_predicted_iou_finds_more_the_page_says_so():
    rng = np.random.default_rng(1)
    judged = judge(cases(stability=lambda iou: 0.92 + (iou - 0.6 + rng.normal(0, 0.4)) / 10, predicted=lambda iou: iou))
    assert "predicted IoU finds more bad ones" in verdict(judged)


def test_a_click_is_flagged_below_a_higher_stability_than_a_box():
    judged = judge(cases(stability=lambda iou: 0.95, predicted=lambda iou: iou, n=2 * len(KINDS)))
    clicks = [kind for kind in KINDS if (PROMPT_KINDS | WOBBLE_KINDS)[kind].points]
    assert judged["flagged"] == pytest.approx(len(clicks) / len(KINDS))


def test_a_handful_of_bad_masks_decides_nothing():
    few = judge(cases(stability=lambda iou: iou, predicted=lambda iou: iou, n=50))
    assert "Not decided: 21 of the masks are bad; give more pictures, for at least 30." in verdict(few)


# ambiguity and sensitivity


def test_ambiguity_and_sensitivity_are_rated_apart_for_boxes_for_one_click_and_for_several():
    result = spread(
        cases(stability=lambda iou: 0.5 + iou / 4, predicted=lambda iou: iou, agreement=lambda iou: 1 - iou)
    )
    assert {name: one["masks"] for name, one in result.items()} == {"boxes": 70, "one click": 10, "several points": 40}
    iou = np.random.default_rng(0).uniform(0.2, 1, 120)
    of_boxes = iou[np.arange(120) % 12 < 7]
    boxes = result["boxes"]
    assert boxes["bad"] == (of_boxes < 0.6).sum()
    assert boxes["sensitivity"] == pytest.approx((0.5 - of_boxes / 4).mean())
    assert boxes["ambiguity"] == pytest.approx(of_boxes.mean())
    assert (boxes["sensitivity_auc"], boxes["ambiguity_auc"]) == (1, 0)
    assert boxes["rank_correlation"] == pytest.approx(-1)
    table = spread_table(result)
    assert f"| boxes | 70 | {boxes['bad']} | {boxes['sensitivity']:.1%} | 1.00 |" in table
    assert "| one click | 10 | " in table


def test_where_no_mask_is_bad_there_is_no_auc():
    result = spread([Case(kind="noise-10", iou=0.9, stability=0.9, agreement=0.8, predicted_iou=0.5, alpha=None)])
    assert list(result) == ["boxes"]
    assert "| boxes | 1 | 0 | 10.0% | - | 20.0% | - | - |" in spread_table(result)


# the command


@pytest.mark.slow
def test_the_command_writes_one_page(tmp_path, monkeypatch):
    monkeypatch.setattr(systems, "load_model", small.by_name)
    folder = small.save_pairs(tmp_path / "horses", 2)
    output = tmp_path / "out"
    with small.quick_compilation():
        wobble.wobble(WobbleConfig(system=("base", "base+plugin"), data_dir=(folder,), output=output, count=2))
    assert sorted(path.name for path in output.iterdir()) == [
        "per_image.csv", "results.json", "results.md", "wobble.md", "wobble.png",
    ]  # fmt: skip
    stored = json.loads((output / "results.json").read_text())
    assert list(stored["systems"]["base"]["horses"]) == list(KINDS)
    assert list(stored) == ["systems", "intervals", "differences", "signals", "spread", "meta"]
    assert list(stored["spread"]["base"]) == ["boxes", "one click", "several points"]
    with open(output / "per_image.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 2 * 2 * len(KINDS)
    assert all(0 <= float(line[name]) <= 1 for line in lines for name in ("sensitivity", "ambiguity"))
    assert stored["signals"]["base"]["masks"] == 2 * len(KINDS)
    assert "alpha" in stored["signals"]["base+plugin"]
    assert "alpha" not in stored["signals"]["base"]
    text = (output / "wobble.md").read_text()
    assert text.count("Does the flag of `predict_stable`") == 2
    assert "nan" not in text


@pytest.mark.slow
def test_noises_of_other_papers_are_curves_of_the_same_page(tmp_path, monkeypatch):
    monkeypatch.setattr(systems, "load_model", small.by_name)
    folder, output = small.save_pairs(tmp_path / "horses", 2), tmp_path / "out"
    noises = ("pp-sam", "cdconcepts", "rclicks")
    with small.quick_compilation():
        wobble.wobble(WobbleConfig(system=("base",), data_dir=(folder,), output=output, count=2, noises=noises))
    assert list(json.loads((output / "results.json").read_text())["systems"]["base"]["horses"]) == list(
        kinds_of(noises)
    )
    text = (output / "wobble.md").read_text()
    assert "- Boxes of PP-SAM, most pixels of each edge outward (50): mIoU " in text
    assert "- Clicks of RClicks, where the click falls: mIoU " in text


@pytest.mark.slow
def test_an_official_file_is_converted_once(tmp_path, monkeypatch):
    file = tmp_path / "mobile_sam.pt"
    torch.save(official.state_dict(MODELS["mobile_sam"]), file)
    (folder,) = wobble.convert([file], tmp_path / "checkpoints")
    assert load_model(folder)[0].config == MODELS["mobile_sam"]
    monkeypatch.delattr(wobble.subprocess, "run")
    assert wobble.convert([file], tmp_path / "checkpoints") == [folder]


def test_files_of_one_name_are_not_taken_for_each_other(tmp_path, monkeypatch):
    files = [tmp_path / name / "sam.pth" for name in ("first", "second")]
    for file in files:
        file.parent.mkdir()
        file.write_text(file.parent.name)
    monkeypatch.setattr(wobble.subprocess, "run", lambda *_, **__: subprocess.CompletedProcess([], 0))
    assert len(set(wobble.convert(files, tmp_path / "checkpoints"))) == 2


@pytest.mark.parametrize("content", [None, *slow(b"weights")])
def test_a_file_that_cannot_be_converted_is_refused_with_the_reason(content, tmp_path):
    folder = small.save_pairs(tmp_path / "horses", 1)
    file = tmp_path / "sam_vit_b_01ec64.pth"
    if content is not None:
        file.write_bytes(content)
    config = WobbleConfig(checkpoint=(file,), data_dir=(folder,), output=tmp_path / "out")
    assert refusal(wobble.wobble, config).startswith(f"{file}: ")
    assert not (tmp_path / "out").exists()


def test_options_out_of_range_are_named(tmp_path):
    config = WobbleConfig(data_dir=(pathlib.Path("y"),), output=tmp_path)
    assert refusal(wobble.wobble, config) == "Give --checkpoint FILE.pth or --system NAME, one or more."
    assert "--count 0" in refusal(wobble.wobble, dataclasses.replace(config, count=0))
    assert refusal(wobble.wobble, dataclasses.replace(config, system=("x",), noises=("pp-sam", "y"))).startswith(
        "--noises pp-sam y: give one or more of hq-sam, points, sam, "
    )


def test_cases_survive_the_journal():
    _, record = begun(TARGET)
    again = cases_of([json.loads(json.dumps(record))])
    assert again == cases_of([record])
