"""Every object gets its own mask, what was done stays, and a bad picture is reported and stops no other."""

import csv
import html
import json
import os
import signal
import subprocess
import sys

import cv2
import numpy as np
import pytest
from PIL import Image

from predict import __main__ as program
from predict.results import surroundings
from stablesam_jax.data import rle
from stablesam_jax.predict.predictor import Predictor
from stablesam_jax.predict.stable import STABLE_POINTS
from stablesam_jax.prompts import Prompt
from tests.reference import pictures, small

BOXES = "file,x1,y1,x2,y2,id,label\na.png,8,8,30,30,left,cat\nsub/a.png,4,4,20,36,1,dog\na.png,20,4,44,38,right,cat\n"


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(program, "load_model", lambda system: small.stable_nano())
    monkeypatch.setattr(program, "keep_compiled_programs", lambda: None)


@pytest.fixture
def place(tmp_path):
    """Two pictures of one name with other contents, and their boxes."""
    rng = np.random.default_rng(0)
    for name in ("a.png", "sub/a.png"):
        pictures.save(tmp_path / "photos" / name, rng.integers(0, 255, (40, 48, 3), np.uint8))
    (tmp_path / "boxes.csv").write_text(BOXES)
    return tmp_path


def call(place, *options, prompts="--boxes=boxes.csv"):
    kind, name = prompts.split("=")
    given = [str(place / "photos"), kind, str(place / name), "--output", str(place / "out"), "--jitters", "2", *options]
    return program.main(given)


def refused(capsys, place, *options, **more):
    with pytest.raises(SystemExit) as end:
        call(place, *options, **more)
    assert end.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line.removeprefix("error: ")


def mask(place, name):
    return cv2.imread(str(place / "out" / "masks" / name), cv2.IMREAD_UNCHANGED)


def objects(place):
    return list(csv.DictReader((place / "out" / "objects.csv").read_text().splitlines()))


def files(folder):
    return {path: path.stat().st_mtime_ns for path in sorted(folder.rglob("*")) if path.is_file()}


def test_masks_are_those_of_the_predictor_under_the_path_of_their_picture(place):
    assert call(place) == 0
    predictor = Predictor(*small.stable_nano())
    for name, number, box in (
        ("a.png", 1, [8, 8, 30, 30]),
        ("a.png", 2, [20, 4, 44, 38]),
        ("sub/a.png", 1, [4, 4, 20, 36]),
    ):
        expected = predictor.predict_stable(box=box, jitters=2, picture=predictor.encode(place / "photos" / name))
        assert expected.mask.sum() > 0
        np.testing.assert_array_equal(mask(place, f"{name}/{number}.png"), 255 * expected.mask)
        (line,) = [one for one in objects(place) if one["mask"] == f"masks/{name}/{number}.png"]
        assert line["stability"] == f"{expected.stability:.4f}"
        assert line["needs_review"] == ("yes" if expected.needs_review else "no")
        assert (place / "out" / line["overlay"]).stat().st_size > 1000


def test_tables_hold_every_object_and_the_least_stable_come_first(place):
    call(place)
    lines = objects(place)
    assert {(one["file"], one["object"], one["label"]) for one in lines} == {
        ("a.png", "left", "cat"),
        ("a.png", "right", "cat"),
        ("sub/a.png", "1", "dog"),
    }
    stability = [float(one["stability"]) for one in lines]
    assert stability == sorted(stability)
    page = (place / "out" / "review.html").read_text()
    sources = [f'src="{one["overlay"]}"' for one in lines]
    assert sorted(sources, key=page.index) == sources
    content = json.loads((place / "out" / "coco.json").read_text())
    named = {image["id"]: image["file_name"] for image in content["images"]}
    for one in content["annotations"]:
        number = 2 if one["object"] == "right" else 1
        drawn = mask(place, f"{named[one['image_id']]}/{number}.png") > 0
        assert one["segmentation"] == rle.compress(rle.encode(drawn))
        assert one["area"] == drawn.sum()
    assert {one["name"] for one in content["categories"]} == {"cat", "dog"}


def test_points_and_coco_ask_for_objects_too(place):
    (place / "points.csv").write_text("file,x,y,label,object\na.png,20,20,1,cat\na.png,2,2,0,cat\n")
    assert call(place, prompts="--points=points.csv") == 0
    predictor = Predictor(*small.stable_nano())
    picture = predictor.encode(place / "photos/a.png")
    expected = predictor.predict_stable([[20, 20], [2, 2]], [1, 0], jitters=2, picture=picture)
    np.testing.assert_array_equal(mask(place, "a.png/1.png"), 255 * expected.mask)
    (line,) = objects(place)
    assert line["needs_review"] == ("yes" if expected.stability < STABLE_POINTS else "no")


def test_coco_comes_out_under_the_ids_that_it_came_with(place):
    image = {"id": 70, "file_name": "sub/a.png", "width": 48, "height": 40}
    box = {"id": 12, "image_id": 70, "category_id": 5, "bbox": [4, 4, 16, 32]}
    asked = {"images": [image], "categories": [{"id": 5, "name": "dog"}], "annotations": [box]}
    (place / "in.json").write_text(json.dumps(asked))
    assert call(place, prompts="--coco=in.json") == 0
    content = json.loads((place / "out" / "coco.json").read_text())
    (found,) = content["annotations"]
    assert (found["id"], found["image_id"], found["category_id"]) == (12, 70, 5)
    assert content["images"] == [image]
    assert content["categories"] == asked["categories"]


def test_boxes_are_in_the_pixels_of_the_upright_picture(place):
    upright = np.asarray(Image.open(place / "photos/a.png"))
    call(place)
    as_is = mask(place, "a.png/1.png")
    pictures.save(place / "photos/a.png", pictures.turned(upright, 6).copy(), exif=pictures.exif(6))
    (place / "out").rename(place / "before")
    assert call(place) == 0
    np.testing.assert_array_equal(mask(place, "a.png/1.png"), as_is)


def test_bad_pictures_are_reported_and_the_others_done(place, capsys):
    (place / "photos/broken.png").write_bytes(b"no picture")
    pictures.save(place / "photos/small.png", np.zeros((9, 9, 3), np.uint8))
    more = "gone.png,1,1,5,5,1,x\nbroken.png,1,1,5,5,1,x\nsmall.png,1,1,5,5,in,x\nsmall.png,20,20,25,25,out,x\n"
    (place / "boxes.csv").write_text(BOXES + more)
    assert call(place) == 1
    lines = csv.DictReader((place / "out" / "faults.csv").read_text().splitlines())
    faults = {line["file"]: line["fault"] for line in lines}
    assert faults["gone.png"].startswith("gone.png: is missing in ")
    assert "cannot be read (not a picture)" in faults["broken.png"]
    assert faults["small.png"].startswith(
        "small.png, object out: box (20, 20, 25, 25) lies outside the picture of 9 x 9"
    )
    assert len(faults) == 3
    page = (place / "out" / "review.html").read_text()
    assert "Pictures without masks: 3" in page
    assert all(html.escape(fault) in page for fault in faults.values())
    assert not (place / "out/masks/small.png").exists()  # whole or not at all
    assert len(objects(place)) == 3
    assert "3 pictures could not be done" in capsys.readouterr().err


def test_a_file_of_which_no_picture_is_there_is_refused(place, capsys):
    for file in ("a.png", "sub/a.png"):
        (place / "photos" / file).unlink()
    line = refused(capsys, place)
    assert line.startswith(f"{place}/boxes.csv: none of its pictures can be used. The first: a.png: is missing in ")
    assert not (place / "out").exists()


def test_a_single_picture_is_counted_as_one(place, capsys):
    (place / "photos/sub/a.png").unlink()
    assert call(place) == 1
    said = capsys.readouterr()
    assert said.out.startswith("1 picture, 2 objects, ")
    assert "\n1 picture could not be done: " in said.err


def test_mended_pictures_are_done_by_the_same_command_and_no_others(place):
    (place / "photos/a.png").rename(place / "kept.png")
    assert call(place) == 1
    before = files(place / "out/masks")
    (place / "kept.png").rename(place / "photos/a.png")
    assert call(place) == 0
    after = files(place / "out/masks")
    assert before.items() < after.items()
    assert len(objects(place)) == 3
    assert not (place / "out/faults.csv").exists()
    assert "without masks" not in (place / "out/review.html").read_text()


def test_what_a_person_wrote_stays_when_there_is_nothing_new(place):
    call(place)
    (place / "out/objects.csv").write_text("looked at\n")
    (place / "out/masks/a.png/1.png").write_bytes(b"drawn by hand")
    assert call(place) == 0
    assert (place / "out/objects.csv").read_text() == "looked at\n"
    assert (place / "out/masks/a.png/1.png").read_bytes() == b"drawn by hand"


def test_a_picture_that_changed_keeps_its_masks_and_is_reported(place, capsys):
    call(place)
    before = files(place / "out/masks")
    pictures.save(place / "photos/a.png", np.zeros((40, 48, 3), np.uint8))
    assert call(place) == 1
    assert "a.png: has changed since its masks were made" in capsys.readouterr().err
    assert files(place / "out/masks") == before
    pictures.save(place / "photos/new.png", np.zeros((40, 48, 3), np.uint8))
    (place / "out/objects.csv").unlink()
    assert call(place) == 1
    assert len(objects(place)) == 3  # what was made before stays in the tables, and is not listed as without masks
    assert "without masks" not in (place / "out/review.html").read_text()


def test_tables_that_an_end_kept_from_being_written_are_written_by_the_next_run(place, monkeypatch):
    (place / "photos/a.png").rename(place / "kept.png")
    assert call(place) == 1
    (place / "kept.png").rename(place / "photos/a.png")
    with monkeypatch.context() as patch:
        patch.setattr(program, "write_tables", pytest.raises)  # a full disk, a second Ctrl-C
        with pytest.raises(TypeError):
            call(place)
    assert len(objects(place)) == 1
    assert call(place) == 0
    assert len(objects(place)) == 3
    assert {path.name for path in (place / "out").iterdir() if path.name.startswith(".")} <= {".lock"}


def test_a_picture_that_a_json_lists_twice_is_a_fault(place, capsys):
    image = {"file_name": "a.png", "width": 48, "height": 40}
    boxes = [{"id": one, "image_id": one, "category_id": 1, "bbox": [4, 4, 16, 32]} for one in (1, 2, 3)]
    images = [image | {"id": 1}, image | {"id": 2}, image | {"id": 3, "file_name": "sub/a.png"}]
    content = {"images": images, "categories": [{"id": 1, "name": "x"}], "annotations": boxes}
    (place / "in.json").write_text(json.dumps(content))
    assert call(place, prompts="--coco=in.json") == 1
    assert "fault: a.png: is listed twice; list it once." in capsys.readouterr().err


def test_two_names_of_one_file_are_no_two_pictures(place, capsys):
    (place / "boxes.csv").write_text(BOXES.replace("sub/a", "sub/../sub/a") + "sub/a.png,4,4,20,36,2,dog\n")
    assert call(place) == 1
    assert "is asked for as sub/../sub/a.png and sub/a.png, both" in capsys.readouterr().err
    assert [one["file"] for one in objects(place)] == ["a.png", "a.png"]


def test_a_json_of_other_sizes_is_of_other_pictures(place, capsys):
    image = {"id": 1, "file_name": "a.png", "width": 40, "height": 48}
    box = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [4, 4, 16, 32]}
    (place / "in.json").write_text(json.dumps({"images": [image], "categories": ["x"], "annotations": [box]}))
    assert "of category 1, which is not listed" in refused(capsys, place, prompts="--coco=in.json")
    (place / "in.json").write_text(
        json.dumps({"images": [image], "categories": [{"id": 1, "name": "x"}], "annotations": [box]})
    )
    assert call(place, prompts="--coco=in.json") == 1
    assert "is 48 x 40 pixels upright, and 40 x 48 in the json" in capsys.readouterr().err


def test_the_output_of_other_work_is_refused_and_left(place, capsys):
    (place / "out").mkdir()
    (place / "out/mine.txt").write_text("mine")
    assert refused(capsys, place).endswith("out: holds other files, and nothing is overwritten; give a new folder.")
    assert list(files(place / "out")) == [place / "out/mine.txt"]
    (place / "out/mine.txt").unlink()
    call(place)
    before = files(place / "out")
    capsys.readouterr()
    assert "seed was 0, is 1. Repeat" in refused(capsys, place, "--seed", "1")
    (place / "boxes.csv").write_text(BOXES.replace("30,30", "31,30"))
    assert "boxes was " in refused(capsys, place)
    assert files(place / "out") == before


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        (("--points", "p.csv"), "--boxes and --points: give one of --boxes, --points and --coco."),
        (("--threshold", "92"), "--threshold is a share from 0 to 1, --jitters at least 1, --seed at least 0."),
        (("--seed", "-1"), "--threshold is a share from 0 to 1, --jitters at least 1, --seed at least 0."),
    ],
)
def test_options_that_do_not_fit_are_refused(place, capsys, options, fault):
    assert refused(capsys, place, *options) == fault
    assert not (place / "out").exists()


def test_masks_do_not_go_among_the_pictures(place, capsys):
    with pytest.raises(SystemExit):
        program.main([str(place), "--boxes", str(place / "boxes.csv"), "--output", str(place / "out")])
    assert "is inside the folder of pictures" in capsys.readouterr().err


def test_surroundings_hold_mask_and_prompt_at_their_places():
    picture = np.zeros((200, 300, 3), np.uint8)
    found = np.zeros((200, 300), bool)
    found[100:140, 60:90] = True
    picture[found] = 255
    cut, prompt, cut_mask = surroundings(picture, Prompt(box=np.array([58.0, 98, 92, 142])), found)
    assert cut.shape[:2] < (200, 300)
    np.testing.assert_array_equal(cut[..., 0] == 255, cut_mask)
    rows, columns = np.nonzero(cut_mask)
    np.testing.assert_array_equal(prompt.box, [columns.min() - 2, rows.min() - 2, columns.max() + 3, rows.max() + 3])


@pytest.mark.slow
def test_killed_work_is_continued(place):
    """By SIGKILL, while the second picture is worked on; what was there is neither lost nor done again."""
    code = (
        "import os, signal, sys; from predict import __main__ as program; from tests.reference import small;"
        "program.load_model = lambda system: small.stable_nano(); real = program.write_mask; calls = [];\n"
        "def write(*arguments):\n"
        "    calls.append(1)\n"
        "    found = real(*arguments)\n"
        "    if len(calls) == LAST: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return found\n"
        "program.write_mask = write; sys.exit(program.main(sys.argv[1:]))"
    )
    folders = [str(place / "photos"), "--output", str(place / "out")]
    given = [*folders, "--boxes", str(place / "boxes.csv"), "--jitters", "2"]
    environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(place / "cache")}

    def start(last):
        command = [sys.executable, "-c", code.replace("LAST", str(last)), *given]
        return subprocess.run(command, env=environment, capture_output=True, text=True)

    assert start(1).returncode == -signal.SIGKILL  # in the first picture: nothing is recorded
    assert start(3).returncode == -signal.SIGKILL  # in the second
    first = {path: time for path, time in files(place / "out/masks").items() if "sub" not in path.parts}
    assert len(first) == 2
    ended = start(0)
    assert ended.returncode == 0, ended.stderr
    assert "(1 of the pictures were done before)" in ended.stdout
    assert first.items() < files(place / "out/masks").items()
    assert len(objects(place)) == 3
