"""The pictures of a run are read before its first step, and told apart by their content alone."""

import dataclasses
import json
import shutil

import numpy as np
import pytest

from stablesam_jax.data.doctor import read_all
from stablesam_jax.errors import InputError, InputWarning
from tests.reference.pictures import disc, ramp, save
from train import pictures
from train.pictures import choose, read_record
from train.presets import TrainConfig

COUNT = 10
DISC = disc(40, 60).astype(np.uint8) * 255


@pytest.fixture
def folder(tmp_path):
    """Ten pairs, no two alike."""
    for number in range(COUNT):
        save(tmp_path / "set" / "im" / f"p{number}.png", np.roll(ramp(40, 60), number, axis=1))
        save(tmp_path / "set" / "gt" / f"p{number}.png", np.roll(DISC, number, axis=1))
    return tmp_path / "set"


@pytest.fixture
def config(folder):
    return TrainConfig(data_dir=(folder,), held_out=2)


def spoil(folder, number):
    save(folder / "gt" / f"p{number}.png", np.zeros((40, 60), np.uint8))


def kept(chosen, tmp_path):
    """The record as a run keeps it."""
    path = tmp_path / "pictures.json"
    path.write_text(json.dumps(chosen.record))
    return read_record(path)


def shown(chosen):
    """What is read of every training picture, in order."""
    return [chosen.training[index].picture.tobytes() for index in range(len(chosen.training))]


def test_pictures_that_cannot_be_used_are_all_named_at_once(config, folder):
    spoil(folder, 3)
    data = bytearray((folder / "im" / "p7.png").read_bytes())
    data[len(data) // 2] ^= 1  # its header is whole
    (folder / "im" / "p7.png").write_bytes(data)
    with pytest.raises(InputError, match=r"^2 pictures cannot be used: .*p3\.png: .*empty.*p7\.png: .*--skip-bad"):
        choose(config)


def test_or_left_out_and_listed(config, folder):
    spoil(folder, 3)
    chosen = choose(dataclasses.replace(config, skip_bad=True))
    assert len(chosen.training) + len(chosen.held_out) == COUNT - 1
    assert list(chosen.record["skipped"]) == ["set/p3"]


def test_files_without_a_twin_or_of_an_unread_format_are_faults_like_the_others(config, folder, tmp_path):
    (folder / "gt" / "p1.png").unlink()
    (folder / "im" / "p2.png").rename(folder / "im" / "p2.HEIC")
    spoil(folder, 3)
    expected = r"^3 pictures cannot be used: .*p2\.HEIC: is a HEIC .*p1\.png: has no mask .*p3\.png: .*empty"
    with pytest.warns(InputWarning, match="p2.png: the mask has no picture"), pytest.raises(InputError, match=expected):
        choose(config)
    with pytest.warns(InputWarning, match="p2.png: the mask has no picture"):
        chosen = choose(dataclasses.replace(config, skip_bad=True))
    assert sorted(chosen.record["skipped"]) == ["set/p1", "set/p2", "set/p3"]
    with pytest.warns(InputWarning, match="p2.png: the mask has no picture"):
        assert shown(choose(config, kept(chosen, tmp_path))) == shown(chosen)


def test_none_that_can_be_used_is_an_error_all_the_same(config, folder):
    for number in range(COUNT):
        spoil(folder, number)
    with pytest.raises(InputError, match=r"^none of the 10 pictures can be used"):
        choose(dataclasses.replace(config, skip_bad=True))


def test_a_run_goes_on_without_what_it_has_left_out_whether_it_is_mended_or_removed(config, folder, tmp_path):
    sound = (folder / "gt" / "p3.png").read_bytes()
    spoil(folder, 3)
    first = choose(dataclasses.replace(config, skip_bad=True))
    before = kept(first, tmp_path)
    seen = shown(first)
    for change in ("still bad", "mended", "removed"):
        if change == "mended":
            (folder / "gt" / "p3.png").write_bytes(sound)
        if change == "removed":
            (folder / "im" / "p3.png").unlink()
            (folder / "gt" / "p3.png").unlink()
        now = choose(config, before)
        assert now.identity == first.identity
        assert now.record | {"files": {}} == first.record | {"files": {}}, change
        assert shown(now) == seen, change


def test_the_same_pictures_elsewhere_and_under_other_names_are_the_same_run(config, folder, tmp_path):
    first = choose(config)
    before, seen = kept(first, tmp_path), shown(first)
    shutil.move(folder, tmp_path / "moved")
    for number in range(COUNT):
        for part in ("im", "gt"):
            file = tmp_path / "moved" / part / f"p{number}.png"
            file.rename(file.with_name(f"q{COUNT - number}.png"))  # the order of names is another, too
    now = choose(dataclasses.replace(config, data_dir=(tmp_path / "moved",)), before)
    assert now.identity == first.identity
    assert now.record | {"files": {}} == first.record | {"files": {}}
    assert shown(now) == seen
    assert now.training.names == first.training.names  # views are drawn from names


@pytest.mark.parametrize("change", ["one more", "one less", "one pixel"])
def test_other_pictures_are_another_run(config, folder, tmp_path, change):
    first = choose(config)
    file = folder / "im" / "p1.png"
    if change == "one more":
        save(folder / "im" / "p99.png", ramp(40, 60))
        save(folder / "gt" / "p99.png", DISC)
    elif change == "one less":
        file.unlink()
        (folder / "gt" / "p1.png").unlink()
    else:
        changed = np.roll(ramp(40, 60), 1, axis=1)
        changed[0, 0, 0] ^= 1
        save(file, changed)
    assert choose(config, kept(first, tmp_path)).identity != first.identity


def test_equal_pictures_are_each_taken_once(config, folder, tmp_path):
    shutil.copy(folder / "im" / "p1.png", folder / "im" / "p2.png")
    shutil.copy(folder / "gt" / "p1.png", folder / "gt" / "p2.png")
    first = choose(config)
    now = choose(config, kept(first, tmp_path))
    assert now.training.indices == first.training.indices
    assert len(set(now.training.indices) | set(now.held_out.indices)) == COUNT


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"training": 3}'])
def test_a_damaged_record_is_one_line(tmp_path, text):
    (tmp_path / "pictures.json").write_text(text)
    with pytest.raises(InputError, match=r"pictures\.json: damaged"):
        read_record(tmp_path / "pictures.json")


def test_a_run_without_a_record_has_none(tmp_path):
    assert read_record(tmp_path / "pictures.json") is None


def test_a_run_that_continues_reads_only_files_that_have_changed(config, folder, tmp_path, monkeypatch):
    first = choose(config)
    before, read = kept(first, tmp_path), []
    monkeypatch.setattr(
        pictures.doctor, "read_all", lambda source, indices: read.extend(indices) or read_all(source, indices)
    )
    again = choose(config, before)
    assert (again.identity, again.record, read) == (first.identity, first.record, [])
    (folder / "im" / "p3.png").touch()
    assert choose(config, before).identity == first.identity
    assert read == [3]
    save(folder / "gt" / "p5.png", np.roll(DISC, 1, axis=0))
    assert choose(config, before).identity != first.identity
    assert read == [3, 3, 5]


def test_records_of_earlier_versions_know_no_files(config, tmp_path):
    record = choose(config).record
    del record["files"]
    (tmp_path / "pictures.json").write_text(json.dumps(record))
    assert choose(config, read_record(tmp_path / "pictures.json")).record["training"] == record["training"]


def test_a_group_is_held_out_whole_or_not_at_all(config, folder):
    groups = {"video": [f"p{number}" for number in range(3)], "thing": ["p3", "p4"]}
    (folder / "groups.json").write_text(json.dumps(groups))
    held_out = choose(config).held_out.names
    assert len(held_out) == 2
    for group in groups.values():
        assert len({f"set/{name}" for name in group} & set(held_out)) in (0, len(group))


def test_groups_that_are_all_too_large_to_hold_out_are_refused(config, folder):
    halves = {"first": [f"p{number}" for number in range(5)], "second": [f"p{number}" for number in range(5, 10)]}
    (folder / "groups.json").write_text(json.dumps(halves))
    with pytest.raises(InputError, match="--held-out 2: the smallest group of pictures has 5, and at most 2 of 10"):
        choose(config)
    assert len(choose(dataclasses.replace(config, held_out=0)).training) == COUNT
