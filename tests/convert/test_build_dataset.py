"""A build keeps every picture that can be used, names every other one, and survives being killed."""

import io
import os
import pathlib
import resource
import signal
import subprocess
import sys
import tempfile
import time

import numpy as np
import pytest
from PIL import Image

from convert import build_dataset
from convert.build_dataset import build, main
from stablesam_jax.data import sources
from stablesam_jax.data.built import open_built
from stablesam_jax.data.readers import PairsFolder
from stablesam_jax.errors import shown
from tests.reference.layouts import NAMES as OFFICIAL
from tests.reference.layouts import write_export, write_official
from tests.reference.pictures import disc, exif, ramp, refusal, save

ROOT = pathlib.Path(__file__).resolve().parents[2]
PLANTED = 12


def png(array):
    data = io.BytesIO()
    Image.fromarray(array).save(data, "PNG")
    return data.getvalue()


def many_pairs(folder, count):
    """Pairs of 12 x 8 pixels, every picture another."""
    for part in ("im", "gt"):
        (folder / part).mkdir(parents=True)
    for number in range(count):
        mask = np.zeros((8, 12), np.uint8)
        mask[2:6, 1 + number % 7 : 5 + number % 7] = 255
        picture = np.full((8, 12, 3), (number % 256, number // 256, 90), np.uint8)
        (folder / "im" / f"{number:04}.png").write_bytes(png(picture))
        (folder / "gt" / f"{number:04}.png").write_bytes(png(mask))
    return folder


def plant(folder, count):
    """Twelve faults, two of each kind, evenly spread; picture -> what must be said of it."""
    expected = {}
    steps = iter(range(3, count, count // PLANTED))

    def fault(reason):
        stem = f"{next(steps):04}"
        expected[f"{folder.name}/{stem}"] = reason
        return folder / "im" / f"{stem}.png", folder / "gt" / f"{stem}.png"

    fault("has no mask in")[1].unlink()
    fault("the mask has no picture")[0].unlink()
    for value, reason in ((0, "the mask is empty"), (0, "the mask is empty")):
        fault(reason)[1].write_bytes(png(np.full((8, 12), value, np.uint8)))
    for shape, reason in (((8, 11), "the mask is 11 x 8 pixels, its picture 12 x 8"), ((12, 8), "one is turned")):
        fault(reason)[1].write_bytes(png(np.full(shape, 255, np.uint8)))
    soft = np.repeat(np.array([[0, 0, 0, 40, 90, 140, 190, 230, 255, 255, 255, 255]], np.uint8), 8, axis=0)
    fault("has grey levels")[1].write_bytes(png(soft))
    fault("the mask is coloured")[1].write_bytes(png(np.stack([soft, soft, 0 * soft], axis=-1)))
    for place in (0, 1):
        path = fault("cannot be read")[place]
        path.write_bytes(path.read_bytes()[:45])
    fault("cannot be read (not a picture)")[0].write_bytes(b"text")
    fault("is a JPEG file")[1].unlink()
    stem = list(expected)[-1].split("/")[1]
    Image.fromarray(soft).save(folder / "gt" / f"{stem}.png", "JPEG")
    assert len(expected) == PLANTED
    return expected


@pytest.mark.slow
def test_every_planted_fault_is_named_and_nothing_else_is_lost(tmp_path, capsys):
    count = 3000
    folder = many_pairs(tmp_path / "set", count)
    plain = PairsFolder(folder)
    truth = {name: plain[index] for index, name in enumerate(plain.names)}
    expected = plant(folder, count)
    place = build("pairs", folder, tmp_path / "built")

    printed = capsys.readouterr().out
    told = dict(line.split(": ", 1) for line in (place / "refused.txt").read_text().splitlines())
    assert sorted(told) == sorted(expected)
    for name, reason in expected.items():
        assert reason in told[name]
        assert f"refused: {name}: {told[name]}\n" in printed
    assert f"written: {place}, {count - PLANTED:,} pictures; refused: {PLANTED} ({place / 'refused.txt'})" in printed

    copy = open_built(place)
    assert copy.names == [name for name in truth if name not in expected]
    for index, name in enumerate(copy.names):
        assert np.array_equal(copy[index].picture, truth[name].picture)
        assert np.array_equal(copy[index].masks, truth[name].masks)


@pytest.mark.parametrize("name", ["hqseg-44k", *OFFICIAL[::4]])
def test_official_layouts_are_built_and_read_again(tmp_path, name):
    write_official(name, tmp_path / "source")
    copy = open_built(build(name, tmp_path / "source", tmp_path / "built"))
    opener = sources.open_class_maps if name.startswith("mess/") else lambda spec: sources.open_data([spec])
    plain = opener(f"{name}:{tmp_path / 'source'}")
    assert copy.name == name
    assert copy.names == plain.names
    for index in range(len(plain)):
        for field in ("label",) if name.startswith("mess/") else ("masks", "numbers", "categories"):
            assert np.array_equal(getattr(copy[index], field), getattr(plain[index], field))
        assert np.array_equal(copy[index].picture, plain[index].picture)


def test_the_release_count_is_printed_beside_what_was_read(tmp_path, capsys):
    write_official("hqseg-44k", tmp_path)
    build("hqseg-44k", tmp_path, tmp_path / "built")
    assert "7 pictures of 44,320 in the release; refused: 0" in capsys.readouterr().out


def test_nothing_is_left_among_temporary_files(tmp_path, monkeypatch):
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    build("pairs", many_pairs(tmp_path / "set", 2), tmp_path / "built")
    assert list(temporary.iterdir()) == []


def test_an_empty_mask_of_an_official_set_is_left_out(tmp_path):
    write_official("fss", tmp_path)
    save(tmp_path / "cascade_psp" / "fss_all" / "b.jpg", ramp(40, 60))
    save(tmp_path / "cascade_psp" / "fss_all" / "b.png", disc().astype(np.uint8))
    place = build("fss", tmp_path, tmp_path / "built")
    assert open_built(place).names == ["fss/a"]
    assert "fss/b: " in (place / "refused.txt").read_text()


def test_a_source_of_which_nothing_can_be_used_is_refused_and_nothing_is_left(tmp_path):
    folder = many_pairs(tmp_path / "set", 1)
    (folder / "gt" / "0000.png").write_bytes(b"text")
    assert "set: none of its pictures can be used: " in refusal(build, "pairs", folder, tmp_path / "built")
    assert list((tmp_path / "built").iterdir()) == []


def test_what_is_built_already_is_kept_and_what_is_not_ours_is_not_touched(tmp_path, capsys):
    folder = many_pairs(tmp_path / "set", 2)
    place = build("pairs", folder, tmp_path / "built")
    before = {path: path.stat().st_mtime_ns for path in place.rglob("*")}
    build("pairs", folder, tmp_path / "built")
    assert f"kept: {place}" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in place.rglob("*")} == before
    namesake = many_pairs(tmp_path / "elsewhere" / "set", 3)
    assert f"{place}: was built of other data" in refusal(build, "pairs", namesake, tmp_path / "built")
    (namesake / "im" / "0002.png").unlink()
    (namesake / "gt" / "0002.png").unlink()
    build("pairs", namesake, tmp_path / "built")  # the same data elsewhere
    (tmp_path / "other" / "set").mkdir(parents=True)
    assert "exists and is not a built data set" in refusal(build, "pairs", folder, tmp_path / "other")


CHANGES = {
    "a mask": lambda folder: (folder / "gt" / "0001.png").write_bytes((folder / "gt" / "0000.png").read_bytes()),
    "a picture": lambda folder: (folder / "im" / "0001.png").write_bytes((folder / "im" / "0000.png").read_bytes()),
    "a pair less": lambda folder: [(folder / part / "0001.png").unlink() for part in ("im", "gt")],
    "a mask without a picture": lambda folder: (folder / "im" / "0001.png").unlink(),
    "a name": lambda folder: [(folder / part / "0001.png").rename(folder / part / "7.png") for part in ("im", "gt")],
}


@pytest.mark.parametrize("change", CHANGES)
def test_sources_that_have_changed_since_are_noticed(tmp_path, change):
    folder = many_pairs(tmp_path / "set", 3)
    place = build("pairs", folder, tmp_path / "built")
    CHANGES[change](folder)
    message = refusal(build, "pairs", folder, tmp_path / "built")
    assert message.startswith(f"{place}: was built before its pictures, masks or annotations changed; remove it to")
    assert len(open_built(place)) == 3


def test_annotations_that_have_changed_since_are_noticed_and_a_touched_file_has_not(tmp_path):
    folder = write_export("coco", tmp_path / "set")
    build("coco", folder, tmp_path / "built")
    os.utime(folder / "annotations.json")
    build("coco", folder, tmp_path / "built")
    text = (folder / "annotations.json").read_text()
    (folder / "annotations.json").write_text(text.replace("40.5", "41.5"))
    assert "was built before its pictures, masks or annotations changed" in refusal(
        build, "coco", folder, tmp_path / "built"
    )


def test_hints_are_printed_and_what_is_left_out_is_counted(tmp_path, capsys):
    folder = many_pairs(tmp_path / "set", 2)
    save(folder / "im" / "0001.png", np.zeros((8, 12, 3), np.uint8), exif=exif(3))
    build("pairs", folder, tmp_path / "built")
    printed = capsys.readouterr().out
    assert f"hint: {folder}/im/0001.png: has the EXIF orientation 3, {folder}/gt/0001.png none; make sure" in printed
    assert "2 pictures; refused: 0" in printed


NAMES = ["日本", "a b", "été", "1-2", "---", "x" * 200, os.fsdecode(b"caf\xe9"), "a\nb"]


@pytest.mark.parametrize("name", NAMES)
def test_a_set_and_its_pictures_may_have_any_name(tmp_path, name, capsys):
    folder = many_pairs(tmp_path / name, 2)
    for part in ("im", "gt"):
        (folder / part / "0001.png").rename(folder / part / f"{name}.png")
    (folder / "gt" / f"{name} alone.png").write_bytes(b"")
    place = build("pairs", folder, tmp_path / "built")
    copy = open_built(place)
    assert sorted(copy.names) == sorted(f"{shown(name)}/{shown(stem)}" for stem in ("0000", name))
    assert len((place / "refused.txt").read_text().splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["pairs", "--source", "nowhere", "--data-dir", "built"], "nowhere: no such folder"),
        (["coco", "--source", ".", "--data-dir", "built"], "is empty; give the folder of the pictures"),
        (["dis5k", "--source", ".", "--data-dir", "built"], "dis5k: is no data set; did you mean dis5k-"),
        (["xxx", "--source", ".", "--data-dir", "built"], "xxx: is no data set; choose from auto, pairs, coco"),
        (["dis5k-tr", "--source", ".", "--data-dir", "built"], "DIS5K/DIS-TR/im: no such folder"),
    ],
)
def test_bad_input_exits_with_status_2_and_one_line(tmp_path, monkeypatch, capsys, arguments, expected):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    printed = capsys.readouterr().err
    assert printed.startswith("error: ")
    assert printed.count("\n") == 1
    assert expected in printed
    assert not (tmp_path / "built").exists()


def test_a_full_disk_is_one_line_and_nothing_is_left(tmp_path):
    folder = many_pairs(tmp_path / "set", 200)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        message = refusal(build, "pairs", folder, tmp_path / "built")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert f"{tmp_path / 'built' / 'set'}: cannot be written (File too large). Make room" in message
    assert list((tmp_path / "built").iterdir()) == []


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    folder = many_pairs(tmp_path / "set", 1)
    (tmp_path / "file").write_text("")
    assert f"{tmp_path / 'file' / 'set'}: cannot be written (" in refusal(build, "pairs", folder, tmp_path / "file")


# killed, and two at once


def started(folder, data_dir):
    command = [sys.executable, "-m", "convert.build_dataset", "pairs", "--source", folder, "--data-dir", data_dir]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_until(condition, process):
    for _ in range(1200):
        if condition():
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    pytest.fail("waited for a minute")


def test_a_build_that_was_killed_ends_right_when_it_is_started_again(tmp_path):
    count = 3 * build_dataset.AT_ONCE
    folder = many_pairs(tmp_path / "set", count)
    pipe = folder / "im" / f"{count - 1:04}.png"
    last = pipe.read_bytes()
    pipe.unlink()
    os.mkfifo(pipe)  # the build waits here for a picture, in the midst of its work
    process = started(folder, tmp_path / "built")
    wait_until(lambda: list((tmp_path / "built").glob(".set.tmp/**/*array_record*")), process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert [path.name for path in (tmp_path / "built").iterdir()] == [".set.tmp"]

    pipe.unlink()
    pipe.write_bytes(last)
    place = build("pairs", folder, tmp_path / "built")
    assert [path.name for path in (tmp_path / "built").iterdir()] == ["set"]
    copy, plain = open_built(place), PairsFolder(folder)
    assert copy.names == plain.names
    assert all(np.array_equal(copy[index].picture, plain[index].picture) for index in range(count))


def test_a_build_waits_for_another_of_the_same_set_and_not_of_others(tmp_path, capsys):
    folder = many_pairs(tmp_path / "set", 3)
    other = many_pairs(tmp_path / "other", 3)
    target = tmp_path / "built" / "set"
    with build_dataset._alone(target) as work:
        (work / "half").mkdir()
        process = started(folder, tmp_path / "built")
        assert process.stdout.readline() == f"waiting for another process that builds {target}\n"
        assert (work / "half").exists()
        build("pairs", other, tmp_path / "built")
        assert process.poll() is None
    printed, errors = process.communicate()
    assert (process.returncode, errors) == (0, "")
    assert f"written: {target}, 3 pictures" in printed
    assert sorted(path.name for path in (tmp_path / "built").iterdir()) == ["other", "set"]


def test_two_builds_at_once_both_end_right(tmp_path):
    folder = many_pairs(tmp_path / "set", 200)
    processes = [started(folder, tmp_path / "built") for _ in range(2)]
    outputs = [process.communicate() for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert sum("written: " in printed for printed, _ in outputs) == 1
    assert sum("kept: " in printed for printed, _ in outputs) == 1
    assert [path.name for path in (tmp_path / "built").iterdir()] == ["set"]
    assert len(open_built(tmp_path / "built" / "set")) == 200
