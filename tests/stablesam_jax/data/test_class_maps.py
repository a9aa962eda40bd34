"""A folder with im/, gt/ and classes.json is a set of class maps."""

import json
import pickle

import numpy as np
import pytest

from stablesam_jax.data import class_maps, sources
from tests.reference.pictures import ramp, refusal, save


def folder_of(tmp_path, named):
    label = np.zeros((24, 36), np.uint8)
    label[:3], label[-1] = 1, 255
    save(tmp_path / "field" / "im" / "a.jpg", ramp())
    save(tmp_path / "field" / "gt" / "a.png", label)
    (tmp_path / "field" / "classes.json").write_text(named if isinstance(named, str) else json.dumps(named))
    return tmp_path / "field"


def test_a_class_map_is_read_with_its_picture(tmp_path):
    source = pickle.loads(pickle.dumps(class_maps.open_folder(folder_of(tmp_path, {"0": "soil", "1": "crop"}), [])))
    assert source.names == ["field/a"]
    assert (source.classes, source.background) == (2, 0)
    assert source[0].picture.shape == (24, 36, 3)
    assert [(source[0].label == value).sum() for value in (0, 1, 255)] == [20 * 36, 3 * 36, 36]


@pytest.mark.parametrize("background", [1, None])
def test_the_background_may_be_another_class_or_none(tmp_path, background):
    named = {"0": "sky", "1": "rest", "255": "ignore", "background": background}
    assert class_maps.open_folder(folder_of(tmp_path, named), []).background == background


@pytest.mark.parametrize(
    ("named", "expected"),
    [
        ("{", "is no JSON, or cut short"),
        ("[]", "names no classes"),
        ({"soil": 0}, "names no classes"),
        ({"0": "soil", "2": "weed"}, "number at least two classes from 0 up without a gap"),
        ({"0": "soil", "1": "crop", "background": 2}, "the background among them"),
    ],
)
def test_a_file_that_names_no_classes_is_refused(tmp_path, named, expected):
    folder = folder_of(tmp_path, named)
    message = refusal(class_maps.open_folder, folder, [])
    assert message.startswith(f"{folder / 'classes.json'}: ")
    assert expected in message


def test_a_folder_without_the_names_of_its_classes_is_refused_with_what_it_should_hold(tmp_path):
    folder = folder_of(tmp_path, {"0": "soil", "1": "crop"})
    (folder / "classes.json").unlink()
    message = refusal(class_maps.open_folder, folder, [])
    assert message.startswith(f"{folder}: holds no classes.json; give a folder of class maps")


def test_a_picture_without_a_class_map_is_refused(tmp_path):
    folder = folder_of(tmp_path, {"0": "soil", "1": "crop"})
    save(folder / "im" / "b.jpg", ramp())
    assert f"b.jpg: has no mask in {folder / 'gt'}" in refusal(sources.open_class_maps, folder)


def test_shared_class_maps_are_read_whole(shared):
    for name, classes, values in (("cwfid", 3, {0, 1, 2}), ("chasedb1", 2, {0, 1})):
        source = class_maps.open_folder(shared / "data" / "hq" / name, [])
        assert (source.classes, source.background) == (classes, 0)
        assert set(np.unique(source[3].label).tolist()) == values
