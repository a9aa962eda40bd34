"""Frames of a video and views of a thing are read as one group, whatever the form of their folder."""

import json
import shutil

import numpy as np
import pytest

from convert.build_dataset import build
from stablesam_jax.data.groups import group_of
from stablesam_jax.data.readers import Selection
from stablesam_jax.data.sources import find, open_data
from stablesam_jax.errors import InputError, InputWarning
from tests.reference.pictures import disc, ramp, save

GROUPS = {"duck": ["a_1", "a_2"], "goose": ["b_1"]}
NAMES = ("a_1", "a_2", "b_1", "c")


@pytest.fixture
def folder(tmp_path):
    for number, name in enumerate(NAMES):
        save(tmp_path / "set" / "im" / f"{name}.png", np.roll(ramp(40, 60), number, axis=1))
        save(tmp_path / "set" / "gt" / f"{name}.png", disc(40, 60).astype(np.uint8) * 255)
    (tmp_path / "set" / "groups.json").write_text(json.dumps(GROUPS))
    return tmp_path / "set"


def groups(pictures):
    return [group_of(pictures, index) for index in range(len(pictures))]


def test_a_picture_has_the_group_of_groups_json_or_stands_alone(folder):
    first, second, third, fourth = groups(open_data([folder]))
    assert first == second
    assert len({first, third, fourth}) == 3
    assert fourth == "set/c"


def test_and_keeps_it_in_a_selection(folder):
    source = open_data([folder])
    assert groups(Selection(source, [3, 1])) == [groups(source)[3], groups(source)[1]]


def test_and_in_a_built_set(folder, tmp_path):
    built = build("auto", folder, tmp_path / "built")
    assert groups(open_data([built])) == groups(open_data([folder]))


def test_and_in_the_parts_of_a_folder_which_may_have_files_of_their_own(folder, tmp_path):
    whole = tmp_path / "whole"
    for part in ("train", "valid"):
        shutil.copytree(folder, whole / part)
    (whole / "valid" / "groups.json").unlink()
    (whole / "groups.json").write_text(json.dumps({"swan": ["valid/a_1", "valid/c"]}))
    with pytest.warns(InputWarning, match="train, valid are taken together"):
        found = groups(open_data([whole]))
    assert found == [
        *("whole/train/duck/*", "whole/train/duck/*", "whole/train/goose/*", "whole/train/c"),
        *("whole/swan/*", "whole/valid/a_2", "whole/valid/b_1", "whole/swan/*"),
    ]
    assert groups(open_data([build("auto", whole, tmp_path / "built")])) == found
    (whole / "train" / "groups.json").write_text("{}")
    with pytest.raises(InputError, match="was built before its pictures, masks or annotations changed"):
        build("auto", whole, tmp_path / "built")


def test_a_built_set_of_any_name_is_checked_with_its_groups(folder, tmp_path):
    built = build("auto", folder.rename(tmp_path / "a b-c"), tmp_path / "built")
    found = []
    (source,) = find(built, found)
    assert found == []
    assert groups(source.readers[0])[0] == "a b-c/duck/*"


def test_a_built_set_is_of_other_data_once_its_groups_change(folder, tmp_path):
    build("auto", folder, tmp_path / "built")
    (folder / "groups.json").write_text("{}")
    with pytest.raises(InputError, match="was built before its pictures, masks or annotations changed"):
        build("auto", folder, tmp_path / "built")


def test_a_name_that_no_picture_has_is_told(folder):
    (folder / "groups.json").write_text(json.dumps({"duck": ["a_1", "a_9"]}))
    with pytest.warns(InputWarning, match="groups.json: names set/a_9, which is no usable picture"):
        open_data([folder])


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"duck": ["a_1"], "goose": ["a_1"]}', "a_1 is in duck and in goose; keep one"),
        ('["a_1"]', "must hold"),
        ('{"duck": "a_1"}', "must hold"),
        ('{"duck": [1]}', "must hold"),
        ('{"duck": [', "is no JSON, or cut short"),
    ],
)
def test_a_file_that_cannot_be_meant_is_refused(folder, text, reason):
    (folder / "groups.json").write_text(text)
    with pytest.raises(InputError, match=rf"groups\.json: {reason}"):
        open_data([folder])
