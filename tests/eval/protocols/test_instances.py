"""Boxes in, AP out: every system gets the same boxes; boxes and scores are those that the options name."""

import csv
import dataclasses
import json
from types import SimpleNamespace

import numpy as np
import pytest
from faster_coco_eval.core import mask as mask_api

from eval.protocols import instances, systems
from eval.protocols.instances import InstancesConfig, begin, coco, draw_box_prompts, read_boxes, score_records, sginw
from stablesam_jax.config import Frame
from stablesam_jax.data.sources import open_instances
from stablesam_jax.prompts import box_iou
from tests.reference import small
from tests.reference.layouts import coco_json
from tests.reference.pictures import ramp, refusal, save

SIDE = 60  # longer side of the pictures: a stub that answers at this size has its logits taken as they are
RULES = ("iou", "constant")
SECOND = [40, 2, 58, 2, 58, 12, 40, 12]


def write(folder, *, files=("a.jpg", "b.jpg", "c.jpg")):
    """Two pictures with a square and a flat box, a crowd and a category of its own, and one with nothing."""
    content = coco_json(list(files))
    content["annotations"].pop()
    content["categories"] = [{"id": 0, "name": "square"}, {"id": 3, "name": "flat"}]
    for entry in list(content["annotations"]):
        flat = {"id": entry["id"] - 100, "category_id": 3, "segmentation": [SECOND], "bbox": [40, 2, 18, 10]}
        content["annotations"].append(entry | flat | {"area": 180})
    content["annotations"].append(content["annotations"][0] | {"id": 50, "iscrowd": 1})
    for file in files:
        save(folder / "images" / file, ramp(40, 60))
    (folder / "annotations.json").write_text(json.dumps(content))
    return folder


@pytest.fixture
def source(tmp_path):
    return open_instances([write(tmp_path / "set")])["set"]


class Stub:
    """A system whose mask is a function of the box; records pictures and boxes."""

    sam = SimpleNamespace(config=SimpleNamespace(frame=Frame(SIDE), plugin=None))

    def __init__(self, answer, iou=lambda box: 0.9):
        self.answer, self.iou = answer, iou
        self.pictures, self.boxes = [], []

    def set_image(self, picture):
        self.pictures.append(picture)

    def predict_low_res(self, *, box, multimask_output):
        assert not multimask_output
        assert box.shape[1:] == (1, 4)
        self.boxes += list(box[:, 0])
        masks = np.full((len(box), 1, SIDE, SIDE), -1, np.float32)
        for logits, one in zip(masks[:, 0], box[:, 0], strict=True):
            mask = self.answer(one)
            logits[: mask.shape[0], : mask.shape[1]][mask] = 1
        return masks, np.array([[self.iou(one)] for one in box[:, 0]], np.float32)


def perfect(source):
    """The object whose box is most like the one that is given."""

    def answer(box):
        objects = source.objects(0)  # the other picture has the same
        corners = np.array([one.bbox_xywh for one in objects]) @ np.block(
            [[np.eye(2), np.eye(2)], [0 * np.eye(2), np.eye(2)]]
        )
        return objects[int(box_iou(corners, box).argmax())].mask()

    return answer


NOTHING = np.zeros((40, 60), bool)


def drawing(kinds, seed=0):
    return lambda source, index: draw_box_prompts(source, index, kinds=kinds, seed=seed)


def evaluate(stub, source, indices, prompts_of, *, kinds, rules):
    records = [begin(stub, source, index, prompts_of(source, index))() for index in indices]
    found = score_records(records, source, indices, kinds=kinds, rules=rules)
    return found.summary, found.lines


def scores(stub, source, kinds=("gt-box", "n-box-50"), rules=RULES):
    return evaluate(stub, source, range(len(source)), drawing(kinds), kinds=kinds, rules=rules)


# prompts


def test_every_object_that_is_no_crowd_has_a_box_of_each_kind(source):
    prompts = draw_box_prompts(source, 0, kinds=("gt-box", "n-box-50", "n-box-60"), seed=0)
    assert [(one.annotation.annotation_id, one.category_id, one.kind) for one in prompts] == [
        (number, category, kind)
        for number, category in ((100, 0), (0, 3))
        for kind in ("gt-box", "n-box-50", "n-box-60")
    ]
    assert prompts[0].box.tolist() == [10, 10, 30, 25]  # the annotation's, with an exclusive end
    for one in prompts:
        x, y, width, height = one.annotation.bbox_xywh
        iou = box_iou(one.box, np.array([x, y, x + width, y + height]))
        assert {"gt-box": iou == 1, "n-box-50": 0.5 <= iou <= 0.6, "n-box-60": 0.6 <= iou <= 0.7}[one.kind]


def test_boxes_depend_on_picture_object_kind_and_seed_alone(source):
    first, again = (
        draw_box_prompts(source, 0, kinds=kinds, seed=3) for kinds in (("n-box-50",), ("gt-box", "n-box-50"))
    )
    assert [one.box.tolist() for one in first] == [one.box.tolist() for one in again if one.kind == "n-box-50"]
    others = draw_box_prompts(source, 0, kinds=("n-box-50",), seed=4) + draw_box_prompts(
        source, 1, kinds=("n-box-50",), seed=3
    )
    assert not {tuple(one.box) for one in first} & {tuple(one.box) for one in others}


def test_every_system_gets_the_same_boxes_and_encodes_a_picture_once(source):
    stubs = [Stub(perfect(source)), Stub(lambda box: NOTHING)]
    for stub in stubs:
        scores(stub, source)
        assert len(stub.pictures) == 2  # the third has no objects
    assert np.array_equal(stubs[0].boxes, stubs[1].boxes)
    assert len(stubs[0].boxes) == 2 * 2 * 2


# how it is scored


def test_the_true_masks_score_one_and_empty_ones_zero(source):
    perfection, _ = scores(Stub(perfect(source)), source)
    silence, lines = scores(Stub(lambda box: NOTHING), source)
    assert list(perfection) == list(silence) == [f"{kind}, {rule}" for kind in ("gt-box", "n-box-50") for rule in RULES]
    for column, values in perfection.items():
        assert values["ap"] == values["ap50"] == values["boundary_ap"] == 1
        assert silence[column]["ap"] == silence[column]["ap50"] == silence[column]["boundary_ap"] == 0
    assert {line["iou"] for line in lines} == {"0.000000"}


def test_a_score_that_is_lower_for_bad_masks_raises_ap(source):
    def prompts_of(source, index):  # of each object first a box beside it, then its own
        for prompt in draw_box_prompts(source, index, kinds=("gt-box",), seed=0):
            yield dataclasses.replace(prompt, box=prompt.box + np.float32(0.5))
            yield prompt

    def beside(box):
        return box[0] % 1 == 0.5

    stub = Stub(
        lambda box: NOTHING if beside(box) else perfect(source)(box), iou=lambda box: 0.1 if beside(box) else 0.9
    )
    found, _ = evaluate(stub, source, range(2), lambda *place: list(prompts_of(*place)), kinds=("gt-box",), rules=RULES)
    assert found["gt-box, iou"]["ap"] == 1
    assert found["gt-box, constant"]["ap"] < 0.8


def test_rules_are_the_product_one_and_the_score_of_the_box():
    assert {rule: score(0.5, 0.25) for rule, score in instances.RULES.items()} == {
        "iou": 0.125,
        "constant": 1,
        "detector": 0.5,
    }


def test_only_the_first_pictures_are_truth(source):
    stub = Stub(perfect(source))
    found, lines = evaluate(stub, source, range(1), drawing(("gt-box",)), kinds=("gt-box",), rules=("iou",))
    assert found["gt-box, iou"]["ap"] == 1
    assert len(lines) == 2


# boxes of a detector


def detections(*entries):
    base = {"image_id": 0, "category_id": 0, "bbox": [10, 10, 20, 15], "score": 0.5}
    return [base | entry for entry in entries]


def written(path, entries):
    path.write_text(json.dumps(entries))
    return path


def test_boxes_of_a_detector_are_read_the_best_first(source, tmp_path):
    file = written(
        tmp_path / "boxes.json",
        detections({}, {"score": 0.8, "category_id": 3}, {"image_id": 2}, {"bbox": [-5, 0, 9, 9]}),
    )
    found = read_boxes(file, source)
    assert [(one.box_score, one.category_id) for one in found.by_image[0]] == [(0.8, 3), (0.5, 0), (0.5, 0)]
    assert found.by_image[0][1].box.tolist() == [10, 10, 30, 25]
    assert list(found.by_image) == [0, 2]
    assert len(found.sha256) == 64


def test_ids_of_detections_may_be_written_as_words_or_with_a_point_as_those_of_a_json(source, tmp_path):
    file = written(tmp_path / "boxes.json", detections({"image_id": "2", "category_id": 3.0}))
    ((image_id, (prompt,)),) = read_boxes(file, source).by_image.items()
    assert (image_id, prompt.category_id) == (2, 3)


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"image_id": 77}, "is of picture 77, which is not in the data set"),
        ({"category_id": 9}, "is of category 9, which is not in the data set"),
        ({"bbox": [1, 2, 3]}, "has the box [1, 2, 3] and score 0.5, not x, y, width, height and a number"),
        ({"bbox": [1, 2, -3, 4]}, "has the box [1, 2, -3, 4]"),
        ({"score": float("nan")}, "and score nan"),
        ({"bbox": [61, 2, 3, 4]}, "has a box outside its picture of 60 x 40 pixels"),
        ({"score": None}, "float"),
        ({"score": 10**400}, "too large"),
    ],
)
def test_detections_that_fit_nothing_are_named_all_at_once(source, tmp_path, entry, words):
    file = written(tmp_path / "boxes.json", [*detections({}, entry), {"image_id": 0}])
    message = refusal(read_boxes, file, source)
    assert message.startswith(f"{file}: detection 1 ")
    assert words in message
    assert f"{file}: detection 2 lacks 'category_id'" in message


@pytest.mark.parametrize(("content", "words"), [("[", "is no JSON"), ("{}", "is no list"), ("[3]", "is no list")])
def test_a_file_of_no_detections_is_refused(source, tmp_path, content, words):
    (tmp_path / "boxes.json").write_text(content)
    assert words in refusal(read_boxes, tmp_path / "boxes.json", source)
    assert "cannot be read" in refusal(read_boxes, tmp_path / "absent.json", source)


# the commands


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    folder = tmp_path_factory.mktemp("work")
    write(folder / "one")
    write(folder / "two", files=("x.jpg", "y.jpg"))
    return folder


@pytest.fixture
def config(work, tmp_path, monkeypatch):
    monkeypatch.setattr(systems, "load_model", small.by_name)
    return InstancesConfig(
        system=("base", "base+plugin"), data_dir=(work / "one", work / "two"), output=tmp_path / "out"
    )


@pytest.mark.slow
def test_results_have_the_documented_form(config):
    with small.quick_compilation():
        sginw(config)
    stored = json.loads((config.output / "results.json").read_text())
    assert stored["meta"]["protocol"] == "sginw"
    assert stored["meta"]["scores"] == ["iou", "constant"]
    assert stored["meta"]["prompts"] == ["n-box-50", "n-box-60"]
    columns = [f"{kind}, {rule}" for kind in ("n-box-50", "n-box-60") for rule in ("iou", "constant")]
    for sets in stored["systems"].values():
        assert list(sets) == ["one", "two", "mean"]
        for column in columns:
            assert list(sets["one"]) == columns
            average = (sets["one"][column]["ap"] + sets["two"][column]["ap"]) / 2
            assert sets["mean"][column]["ap"] == pytest.approx(average)
    assert stored["systems"]["base"]["one"][columns[0]]["ap_large"] is None
    with open(config.output / "per_object.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 2 * (4 + 2) * 2
    assert {line["category"] for line in lines} == {"square", "flat"}
    own, other = (
        [(line["object"], line["x0"], line["y1"]) for line in lines if line["system"] == system]
        for system in config.system
    )
    assert own == other
    assert "AP / AP50 / boundary AP in percent" in (config.output / "results.md").read_text()


@pytest.mark.slow
def test_boxes_of_a_detector_take_the_place_of_prompts(config, tmp_path):
    file = written(tmp_path / "boxes.json", detections({}, {"score": 0.8}, {"image_id": 2, "score": 0.9}))
    asked = dataclasses.replace(config, system=("base",), data_dir=config.data_dir[:1], detections=(file,), top=1)
    with small.quick_compilation():
        coco(asked)
    stored = json.loads((config.output / "results.json").read_text())
    assert list(stored["systems"]["base"]["one"]) == ["detector-box, iou", "detector-box, detector"]
    assert list(stored["meta"]["detections"]) == ["one"]
    with open(config.output / "per_object.csv", newline="") as opened:
        lines = list(csv.DictReader(opened))
    assert [(line["picture"], line["box_score"], line["object"]) for line in lines] == [
        ("one/a", "0.8", ""),
        ("one/c", "0.9", ""),
    ]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"prompts": ("1-point",)}, "--prompts 1-point: unknown; choose from gt-box, noisy-box, n-box-50, n-box-60"),
        ({"prompts": ()}, "--prompts: give at least one of gt-box"),
        ({"prompts": ("gt-box", "gt-box")}, "--prompts gt-box gt-box: give each kind once"),
        ({"scores": ("iou", "iou")}, "--scores iou iou: give each rule once"),
        ({"top": 0}, "--top 0: must be at least 1"),
        ({"limit": 0}, "--limit 0: must be at least 1"),
        ({"detections": ("boxes.json",)}, "--detections: 1 files for 2 data sets; give one for each"),
    ],
)
def test_bad_options_are_one_line_and_nothing_is_written(config, change, words):
    assert words in refusal(coco, dataclasses.replace(config, **change))
    assert not config.output.exists()


def test_run_lengths_of_the_masks_are_cocos(source):
    answer = begin(Stub(perfect(source)), source, 0, draw_box_prompts(source, 0, kinds=("gt-box",), seed=0))()[
        "answers"
    ][0]
    assert np.array_equal(mask_api.decode(answer["run_lengths"]), source.objects(0)[0].mask())
    assert answer["predicted_iou"] == pytest.approx(0.9)
