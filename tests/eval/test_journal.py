"""Records are kept to the bit, a torn line is written again, and other settings are refused."""

import math

import pytest

from eval.journal import JOURNAL, Journal
from stablesam_jax.errors import InputError

SETTINGS = {"seed": 0, "prompts": ("gt-box", "1-point"), "data": {"horses": "abc"}}
RECORD = {"scores": [0.1 + 0.2, 1 / 3, 5e-324, True, None, "x"]}


def filled(folder, *, settings=SETTINGS):
    journal = Journal(folder, settings)
    for index in range(3):
        journal.add("base", "horses", index, RECORD | {"index": index})
    return journal


def test_records_are_read_back_to_the_bit(tmp_path):
    filled(tmp_path / "out")
    journal = Journal(tmp_path / "out", SETTINGS)
    assert journal.found == 3
    assert journal.get("base", "horses", 1) == RECORD | {"index": 1}
    assert journal.get("base", "horses", 3) is None
    assert journal.get("other", "horses", 1) is None


def test_what_is_no_number_stays_none(tmp_path):
    Journal(tmp_path, SETTINGS).add("base", "horses", 0, {"iou": math.nan})
    assert math.isnan(Journal(tmp_path, SETTINGS).get("base", "horses", 0)["iou"])


def test_reading_makes_nothing(tmp_path):
    Journal(tmp_path / "out", SETTINGS)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("cut", [1, 10, 40])
def test_a_torn_line_is_ignored_and_written_again(tmp_path, cut):
    filled(tmp_path)
    whole = (tmp_path / JOURNAL).read_bytes()
    (tmp_path / JOURNAL).write_bytes(whole[:-cut])
    journal = Journal(tmp_path, SETTINGS)
    assert journal.found == 2
    journal.add("base", "horses", 2, RECORD | {"index": 2})
    assert (tmp_path / JOURNAL).read_bytes() == whole


def test_a_journal_that_was_torn_in_its_first_line_begins_anew(tmp_path):
    filled(tmp_path)
    whole = (tmp_path / JOURNAL).read_bytes()
    (tmp_path / JOURNAL).write_bytes(whole[:20])
    assert Journal(tmp_path, SETTINGS).found == 0
    filled(tmp_path)
    assert (tmp_path / JOURNAL).read_bytes() == whole


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"seed": 1}, "seed was 0, is 1"),
        ({"data": {"horses": "abd"}}, "data horses was abc, is abd"),
        ({"data": {"horses": "abc", "coins": "x"}}, "data coins was not given, is x"),
        ({"prompts": ("gt-box",)}, "prompts was ['gt-box', '1-point'], is ['gt-box']"),
    ],
)
def test_other_settings_are_refused_with_the_difference(tmp_path, change, words):
    filled(tmp_path)
    with pytest.raises(InputError) as error:
        Journal(tmp_path, SETTINGS | change)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_once_removed_nothing_is_left(tmp_path):
    filled(tmp_path).remove()
    assert not list(tmp_path.iterdir())
