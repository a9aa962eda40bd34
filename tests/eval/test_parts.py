"""A part of a data set is evaluated alone, with its groups; a file that mixes parts is refused."""

import itertools
import json
import pathlib

import pytest

from eval.parts import Choice
from stablesam_jax.errors import InputError

ROOT = pathlib.Path(__file__).resolve().parents[2]
SPLITS = {
    "ducks": {"validation": {"pond": ["a_1", "a_2"]}, "test": {"lake": ["b_1", "b_2"], "c": ["c"]}},
    "coins": {"validation": {"1": ["1"]}, "test": {"2": ["2"]}},
}


class Ducks:
    def __init__(self):
        self.names = [f"ducks/{name}" for name in ("a_1", "a_2", "b_1", "b_2", "c", "new")]

    def __len__(self):
        return len(self.names)


def choice(tmp_path, content=SPLITS, **changes):
    file = tmp_path / f"{len(list(tmp_path.iterdir()))}.json"
    file.write_text(json.dumps(content))
    return Choice(**({"splits": file, "part": "test", "limit": None, "seed": 0} | changes))


def test_only_pictures_of_the_part_are_drawn(tmp_path):
    assert choice(tmp_path).drawn(Ducks()) == [2, 3, 4]
    assert choice(tmp_path, part="validation").drawn(Ducks()) == [0, 1]
    assert len(choice(tmp_path, limit=2).drawn(Ducks())) == 2


def test_and_have_their_groups(tmp_path):
    first, second, third = choice(tmp_path).groups(Ducks())
    assert first == second != third


def test_without_parts_every_picture_is_drawn_as_a_group_of_its_own(tmp_path):
    every = choice(tmp_path, splits=None, part=None)
    assert every.drawn(Ducks()) == list(range(6))
    assert len(set(every.groups(Ducks()))) == 6


@pytest.mark.parametrize(
    ("content", "changes", "message"),
    [
        (SPLITS, {"part": "tests"}, r"tests: is no part of .*; did you mean test\?"),
        (SPLITS, {"part": None}, "give both or neither"),
        (SPLITS, {"splits": None}, "give both or neither"),
        (SPLITS, {"limit": 0}, "--limit 0: must be at least 1"),
        ({"ducks": {"validation": {"a": ["a"]}, "test": {"b": ["a"]}}}, {}, "ducks: a is in validation and in test"),
        ({"ducks": {"validation": {"a": ["a"]}, "test": {"a": ["b"]}}}, {}, "ducks: a is in validation and in test"),
        ({"ducks": {"test": {"a": ["x"], "b": ["x"]}}}, {}, "ducks, test: x is in a and in b"),
        ({"ducks": {"test": ["a"]}}, {}, "must hold"),
        ([], {}, "must hold"),
    ],
)
def test_what_cannot_be_meant_is_refused(tmp_path, content, changes, message):
    with pytest.raises(InputError, match=message):
        choice(tmp_path, content, **changes).check()


def test_a_data_set_without_a_picture_in_the_part_is_refused(tmp_path):
    with pytest.raises(InputError, match="no picture of the data set of ducks/a_1"):
        choice(tmp_path, {"coins": SPLITS["coins"]}).drawn(Ducks())


def test_the_parts_of_this_projects_test_sets_name_every_picture_once(shared):
    splits = json.loads((ROOT / "results" / "splits.json").read_text())
    for name, parts in splits.items():
        folder = shared / "data" / "hq" / name
        pictures = {file.stem for file in (folder / ("im" if (folder / "im").is_dir() else "images")).iterdir()}
        named = [*itertools.chain(*(names for groups in parts.values() for names in groups.values()))]
        assert sorted(named) == sorted(pictures)
        assert set(parts) == {"validation", "test"}
