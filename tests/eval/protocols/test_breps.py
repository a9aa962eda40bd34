"""`breps` reports the IoU of the tight box and of the worst and the best box that a search has tried."""

import csv
import json

import numpy as np
import pytest

from eval.journal import Journal
from eval.protocols import breps as module
from eval.protocols import systems
from eval.protocols.breps import METRICS, USERS, BrepsConfig, begin, breps, found
from stablesam_jax.data.readers import LabelledPicture
from stablesam_jax.data.sources import open_sources
from stablesam_jax.predict.box_search import Search
from tests.reference import small
from tests.reference.pictures import refusal, save
from tests.reference.squares import SQUARES, nano

MASKS = np.zeros((2, 40, 64), bool)
MASKS[0, 5:20, 10:30] = True
MASKS[1, 25:38, 30:60] = True
PICTURE = LabelledPicture("set/a", SQUARES[0], MASKS, (1, 2), None)


def test_each_object_has_the_extremes_of_its_own_boxes(monkeypatch):
    def planted(sam, params, embedding, boxes, targets, goals, masks):
        """Masks of columns: of the worst searches fewer and fewer, of the best ones more and more."""
        assert goals == ["worst", "worst", "best", "best"]
        assert len(targets) == len(boxes) == 4
        np.testing.assert_array_equal(boxes[:2], boxes[2:])
        np.testing.assert_array_equal(targets, [*MASKS, *MASKS])
        assert masks == "single"
        side = sam.config.mask_size
        columns = np.transpose([[8, 2, 5]] * 2 + [[9, 16, 12]] * 2)
        logits = np.where(np.arange(side) < columns[..., None, None], 1.0, -1.0)
        return Search(
            boxes=np.tile(boxes, (3, 1, 1)),
            low_res_masks=np.broadcast_to(logits, (3, 4, side, side)).astype(np.float32),
        )

    monkeypatch.setattr(module, "search", planted)
    record = begin(nano()[0], {}, PICTURE, np.zeros((0, 4), np.float32))()
    for one, target in zip(record["objects"], MASKS, strict=True):
        of = {
            count: (target[:, : 4 * count].sum() / (target.sum() + 40 * 4 * count - target[:, : 4 * count].sum()))
            for count in (8, 2, 5, 9, 16, 12)
        }
        assert one["tight"] == pytest.approx(of[8], abs=0.02)  # edges of upscaled masks are half pixels
        assert one["worst"] == pytest.approx(min(of[count] for count in (8, 2, 5)), abs=0.02)
        assert one["best"] == pytest.approx(max(of[count] for count in (9, 16, 12)), abs=0.02)
        assert one["delta"] == pytest.approx(one["best"] - one["worst"])


def test_pictures_count_alike_however_many_objects_they_have():
    def objects(*values):
        return [dict.fromkeys(METRICS, value) for value in values]

    records = [
        {"picture": "a", "objects": objects(0.2, 0.4, 0.6)},
        {"picture": "b", "objects": objects(0.8)},
    ]
    result = found(records)
    assert result.summary["box"]["worst"] == pytest.approx((0.4 + 0.8) / 2)
    assert [line["object"] for line in result.lines] == [0, 1, 2, 0]


def user_study(folder):
    """Two pictures with an object each, in the layout of BREPS, and two users' boxes for the first."""
    pairs = small.save_pairs(folder / "pairs", 2, blocks=1)
    study = folder / "study"
    study.mkdir()
    (pairs / "im").rename(study / "images")
    (pairs / "gt").rename(study / "masks")
    for user, (top, left) in {"00_1_17": (8, 10), "00_1_18": (2, 3)}.items():
        save(study / "user_masks" / f"{user}.png", filled_box(top, left))
    return study


def filled_box(top, left):
    box = np.zeros((40, 48), np.uint8)
    box[top:30, left:36] = 255
    return box


def test_users_boxes_are_those_of_their_filled_regions(tmp_path):
    (source,) = open_sources([user_study(tmp_path)]).values()
    assert source.user_boxes(0).tolist() == [[10, 8, 35, 29], [3, 2, 35, 29]]
    assert source.user_boxes(1).shape == (0, 4)


def test_users_boxes_are_of_the_picture_with_the_longest_name(tmp_path):
    for stem in ("cat", "cat_1_2"):
        for folder, file in (("images", f"{stem}.jpg"), ("masks", f"{stem}.png")):
            save(tmp_path / "study" / folder / file, filled_box(5, 5))
    for number, user in enumerate(("cat_1_7", "cat_1_2_1_7", "dog_1_7")):
        save(tmp_path / "study" / "user_masks" / f"{user}.png", filled_box(8 - number, 10))
    (source,) = open_sources([tmp_path / "study"]).values()
    assert [source.user_boxes(index)[:, 1].tolist() for index in (0, 1)] == [[8], [7]]
    assert source[0].masks.shape == (1, 40, 48)


@pytest.mark.slow
def test_users_boxes_have_figures_of_their_own(tmp_path, monkeypatch):
    monkeypatch.setattr(systems, "load_model", small.by_name)
    with small.quick_compilation():
        breps(BrepsConfig(system=("base",), data_dir=(user_study(tmp_path),), output=tmp_path / "out", limit=1, seed=1))
        breps(BrepsConfig(system=("base",), data_dir=(tmp_path / "study",), output=tmp_path / "both"))
    drawn, every = (json.loads((tmp_path / name / "results.json").read_text()) for name in ("out", "both"))
    assert set(drawn["systems"]["base"]["study"]["box"]) == {*METRICS, *USERS}
    assert every["systems"]["base"]["study"]["box"]["user"] is None  # the second picture has no boxes of users
    with open(tmp_path / "both" / "per_object.csv", newline="") as file:
        first, second = csv.DictReader(file)
    assert 0 <= float(first["user_worst"]) <= float(first["user"]) <= 1
    assert second["user"] == ""


@pytest.mark.slow
def test_users_boxes_that_have_changed_since_are_not_mixed_with_earlier_ones(tmp_path, monkeypatch):
    monkeypatch.setattr(systems, "load_model", small.by_name)
    study = user_study(tmp_path)
    config = BrepsConfig(system=("base",), data_dir=(study,), output=tmp_path / "out")

    def killed(self):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, small.quick_compilation():
        patch.setattr(Journal, "remove", killed)
        with pytest.raises(KeyboardInterrupt):
            breps(config)
    save(study / "user_masks" / "00_1_17.png", filled_box(12, 10))
    assert refusal(breps, config).startswith("study/00: the picture or its labels have changed since")
    save(study / "user_masks" / "00_1_17.png", filled_box(8, 10))
    with monkeypatch.context() as patch:
        patch.setattr(module, "begin", None)  # all pictures are done
        breps(config)
    assert json.loads((tmp_path / "out" / "results.json").read_text())["meta"]["data"]["study"]["pictures"] == 2


@pytest.mark.slow
def test_the_command_writes_tables_and_a_line_for_each_object(tmp_path, monkeypatch):
    monkeypatch.setattr(systems, "load_model", small.by_name)
    folder = small.save_pairs(tmp_path / "horses", 2)
    with small.quick_compilation():
        breps(BrepsConfig(system=("base", "base+plugin"), data_dir=(folder,), output=tmp_path / "out"))
    stored = json.loads((tmp_path / "out" / "results.json").read_text())
    for sets in stored["systems"].values():
        values = sets["horses"]["box"]
        assert list(values) == list(METRICS)
        assert values["worst"] <= values["tight"] <= values["best"]
        assert values["delta"] == pytest.approx(values["best"] - values["worst"])
    with open(tmp_path / "out" / "per_object.csv", newline="") as file:
        assert [line["system"] for line in csv.DictReader(file)] == ["base"] * 2 + ["base+plugin"] * 2
    assert "tight IoU / worst IoU / best IoU / best - worst in percent" in (tmp_path / "out" / "results.md").read_text()
