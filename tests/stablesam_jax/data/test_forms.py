"""Every form of data is recognised by its content and gives the same pictures and masks, whatever tool wrote it."""

import json
import pickle

import numpy as np
import pytest

from convert import check_data
from convert.build_dataset import build
from stablesam_jax.data import forms, rle, sources
from stablesam_jax.data.built import open_built
from stablesam_jax.data.json_file import SMALL
from stablesam_jax.errors import InputWarning
from tests.reference.layouts import EXPORTS, SHAPES, shape_masks, shapes_json, write_export
from tests.reference.pictures import disc, ramp, refusal, save

NO_NAMES = ("pairs", "breps", "beside", "sa-1b")  # hold no categories
ALONE = ("roboflow-splits", "yolo-splits")  # whose parts are better kept apart, which is said
FORM = {name: name.partition("-")[0] for name in EXPORTS} | {
    "sa-1b": "sa-1b",
    "label-studio": "coco",
    "label-studio-alone": "coco",
    "cvat": "coco",
    "cvat-subsets": "coco",
    "roboflow": "coco",
    "roboflow-splits": "splits",
    "yolo-splits": "splits",
}


def equal(source, name):
    """Whether a source has the two pictures of SHAPES, with their masks."""
    assert len(source) == 2
    for index, (file, shapes) in enumerate(SHAPES.items()):
        labelled = source[index]
        assert labelled.name == source.names[index]
        assert labelled.name.endswith(file.removesuffix(".jpg"))
        assert np.array_equal(labelled.masks, shape_masks(file))
        assert len(set(labelled.numbers)) == len(shapes)
        assert labelled.categories == (() if name in NO_NAMES else tuple(category for category, _ in shapes))


@pytest.mark.filterwarnings("default::stablesam_jax.errors.InputWarning")
@pytest.mark.parametrize("name", EXPORTS)
def test_training_and_evaluation_read_the_same_masks_from_every_form(tmp_path, name, recwarn):
    folder = write_export(name, tmp_path / "set")
    assert forms.recognise(folder).name == FORM[name]
    (source,) = sources.open_sources([folder]).values()
    equal(source, name)
    equal(pickle.loads(pickle.dumps(source)), name)
    assert [str(warning.message) for warning in recwarn if "taken together" not in str(warning.message)] == []
    assert bool(recwarn.list) == (name in ALONE)


@pytest.mark.parametrize("name", EXPORTS)
def test_what_is_built_of_every_form_is_the_same(tmp_path, name, capsys):
    folder = write_export(name, tmp_path / "set")
    place = build("auto", folder, tmp_path / "built")
    equal(open_built(place), name)
    assert f"written: {place}, 2 pictures; refused: 0" in capsys.readouterr().out


@pytest.mark.parametrize("name", EXPORTS)
def test_every_form_is_checked_and_compared(tmp_path, name, capsys):
    folder = write_export(name, tmp_path / "set")
    build("auto", folder, tmp_path / "built")
    capsys.readouterr()
    assert check_data.main([str(folder), "--against", str(tmp_path / "built" / "set")]) == 1
    *_, summary = capsys.readouterr().out.splitlines()
    assert "2 pictures in" in summary
    assert "against 2 pictures in 1 folder" in summary
    assert "faults (twin 2)" in summary
    assert check_data.main([str(tmp_path / "built" / "set"), "--against", str(folder)]) == 1
    assert capsys.readouterr().out.splitlines()[-1].startswith("2 pictures in 1 folder checked against 2 pictures in")


def test_a_form_that_is_asked_for_must_be_there(tmp_path):
    folder = write_export("labelme", tmp_path / "set")
    assert f"{folder}: is a folder with a json of labelme for each picture; give labelme instead of yolo." in refusal(
        build, "yolo", folder, tmp_path / "built"
    )


def test_a_json_may_be_named_itself(tmp_path):
    folder = write_export("cvat", tmp_path / "set")
    source = sources.open_data([folder / "annotations" / "instances_default.json"])
    assert source.names == ["instances_default/a", "instances_default/b"]
    (tmp_path / "other.json").write_text("{}")
    assert "other.json: is no COCO json" in refusal(sources.open_data, [tmp_path / "other.json"])


def test_jsons_that_speak_of_the_same_picture_are_not_mixed(tmp_path):
    folder = write_export("cvat", tmp_path / "set")
    (folder / "annotations" / "keypoints.json").write_text(json.dumps(shapes_json(SHAPES)))
    assert "instances_default.json and" in (message := refusal(sources.open_data, [folder]))
    assert "keypoints.json are both labels of a.jpg; give one of these files as the data" in message


def test_annotations_json_goes_before_other_jsons(tmp_path):
    folder = write_export("coco", tmp_path / "set")
    (folder / "older.json").write_text(json.dumps(shapes_json(SHAPES) | {"annotations": []}))
    (folder / "copy.json").write_text((folder / "annotations.json").read_text())
    equal(sources.open_data([folder]), "coco")


def test_masks_of_cvats_brush_are_objects_though_cvat_marks_them_as_crowds(tmp_path):
    folder = write_export("cvat", tmp_path / "set")
    file = folder / "annotations" / "instances_default.json"
    content = json.loads(file.read_text())
    masks = [mask for name in SHAPES for mask in shape_masks(name)]
    for entry, mask in zip(content["annotations"], masks, strict=True):
        entry |= {"segmentation": rle.encode(mask), "iscrowd": 1, "attributes": {"occluded": False}}
    file.write_text(json.dumps(content))
    with pytest.warns(InputWarning, match="holds 3 masks that CVAT marks as crowds, .* they are read as objects"):
        equal(sources.open_data([folder]), "cvat")


def test_a_part_of_a_folder_may_be_given_alone(tmp_path):
    for name in ALONE:
        folder = write_export(name, tmp_path / name)
        with pytest.warns(InputWarning, match="train, valid are taken together; give one of them"):
            assert len(sources.open_data([folder])) == 2
        assert len(sources.open_data([folder / "train"])) == 1


def test_a_large_json_is_known_by_its_beginning_or_its_end(tmp_path):
    folder = write_export("roboflow", tmp_path / "set")
    text = json.dumps(shapes_json(SHAPES))
    for content in (text[:-1] + f', "more": "{"x" * SMALL}"}}', f'{{"more": "{"x" * SMALL}", {text[1:]}'):
        (folder / "_annotations.coco.json").write_text(content)
        equal(sources.open_data([folder]), "roboflow")


def test_other_jsons_and_texts_do_not_disturb(tmp_path):
    for name in ("roboflow", "labelme", "yolo-beside", "sa-1b"):
        folder = write_export(name, tmp_path / name)
        for file, text in (("broken.json", "{"), ("list.json", "[1]"), ("notes.txt", "a text"), ("empty.txt", "")):
            (folder / file).write_text(text)
        equal(sources.open_data([folder]), name)


def test_a_folder_with_captions_is_no_yolo(tmp_path):
    save(tmp_path / "a.jpg", ramp())
    (tmp_path / "a.txt").write_text("a photo of a ramp")
    assert "holds no data that is known" in refusal(sources.open_data, [tmp_path])


def test_a_folder_that_holds_pairs_is_read_as_pairs_whatever_else_it_holds(tmp_path):
    folder = write_export("coco", tmp_path / "set")
    save(folder / "im" / "c.jpg", ramp(40, 60))
    save(folder / "gt" / "c.png", disc())
    assert sources.open_data([folder]).names == ["set/c"]


def test_every_form_has_an_export():
    assert {form.name for form in forms.FORMS} == {*FORM.values(), "built"}
