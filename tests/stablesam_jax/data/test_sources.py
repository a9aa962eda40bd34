"""What `--data-dir` takes is recognised by its content, and refused with what each form needs."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from convert.build_dataset import build
from stablesam_jax.data import sources
from stablesam_jax.data.built import BuiltPictures
from stablesam_jax.data.coco import CocoPictures
from stablesam_jax.data.datasets import GROUPS
from stablesam_jax.data.readers import Joined, PairsFolder
from stablesam_jax.errors import InputError, InputWarning
from tests.reference.layouts import coco_json, write_official
from tests.reference.pictures import disc, exif, ramp, refusal, save


def pairs(folder, stems="ab"):
    for stem in stems:
        save(folder / "im" / f"{stem}.png", ramp(40, 60))
        save(folder / "gt" / f"{stem}.png", disc().astype(np.uint8) * 255)
    return folder


def coco_folder(folder):
    save(folder / "images" / "a.jpg", ramp(40, 60))
    (folder / "annotations.json").write_text(json.dumps(coco_json(["a.jpg"])))
    return folder


def classes_folder(folder):
    save(folder / "im" / "a.jpg", ramp(40, 60))
    save(folder / "gt" / "a.png", disc().astype(np.uint8))
    (folder / "classes.json").write_text('{"0": "soil", "1": "crop", "255": "ignore"}')
    return folder


def test_every_form_is_recognised_by_its_content(tmp_path):
    build("pairs", pairs(tmp_path / "three"), tmp_path / "built")
    write_official("dis5k-vd", tmp_path / "hq")
    specs = [
        pairs(tmp_path / "one"),
        str(coco_folder(tmp_path / "two")),
        tmp_path / "built" / "three",
        f"dis5k-vd:{tmp_path / 'hq'}",
    ]
    opened = sources.open_sources(specs)
    assert {name: type(source) for name, source in opened.items()} == {
        "one": PairsFolder,
        "two": CocoPictures,
        "three": BuiltPictures,
        "dis5k-vd": type(opened["dis5k-vd"]),
    }
    joined = sources.open_data(specs)
    assert joined.names == ["one/a", "one/b", "two/a", "three/a", "three/b", "dis5k-vd/a"]
    assert [joined[index].name for index in range(len(joined))] == joined.names
    assert [sources.source_name(spec) for spec in specs] == list(opened)


def test_a_built_folder_may_be_named_with_its_version(tmp_path):
    folder = build("pairs", pairs(tmp_path / "set"), tmp_path / "built")
    assert sources.open_data([folder / "1.0.0"]).names == ["set/a", "set/b"]


def test_a_set_of_several_parts_is_one_source(tmp_path):
    write_official("hqseg-44k", tmp_path)
    (source,) = sources.open_sources([f"hqseg-44k:{tmp_path}"]).values()
    assert isinstance(source, Joined)
    assert len(source) == 7


def test_two_sources_of_one_name_are_refused(tmp_path):
    folders = [pairs(tmp_path / "x" / "set"), pairs(tmp_path / "y" / "set")]
    assert "set: two data folders have this name" in refusal(sources.open_data, folders)
    assert "set: two data folders have this name" in refusal(sources.open_data, folders[:1] * 2)


def test_a_folder_has_its_own_name_however_it_is_spelled(tmp_path, monkeypatch):
    monkeypatch.chdir(pairs(tmp_path / "set"))
    (tmp_path / "link").symlink_to(tmp_path / "set")
    for spec in (".", "../set", "../link"):
        assert sources.open_data([spec]).names == ["set/a", "set/b"]


def test_a_folder_of_no_known_form_is_refused_with_every_form(tmp_path):
    assert refusal(sources.open_data, [tmp_path]).startswith(f"{tmp_path}: is empty; give the folder")
    (tmp_path / "notes").mkdir()
    message = refusal(sources.open_data, [tmp_path])
    assert message.startswith(f"{tmp_path}: holds no data that is known; give a folder with im/ (pictures) and gt/")
    for form in ("a COCO json and its pictures", "stablesam build", "labelme", "sa-1b", "YOLO", "NAME:DIR"):
        assert form in message
    assert "no such folder" in refusal(sources.open_data, [tmp_path / "absent"])
    (tmp_path / "im").mkdir()
    assert "holds no gt/" in refusal(sources.open_data, [tmp_path])


def test_an_export_that_is_not_unpacked_is_refused_with_what_to_do(tmp_path):
    file = tmp_path / "cvat_export.ZIP"
    file.write_bytes(b"PK")
    assert refusal(sources.open_sources, [file]) == f"{file}: is an archive; unpack it, and give the folder."


def test_an_unknown_official_name_is_refused_with_the_known_ones(tmp_path):
    with pytest.raises(InputError, match=r"^hqseg: is no data set; did you mean hqseg-44k\?$"):
        sources.open_data([f"hqseg:{tmp_path}"])
    message = refusal(sources.open_data, [f"xxx:{tmp_path}"])
    assert message.startswith("xxx: is no data set; choose from hqseg-44k, dis5k-tr")


def test_a_fault_of_any_picture_is_told_at_once(tmp_path):
    folder = pairs(tmp_path / "set")
    (folder / "gt" / "b.png").write_bytes(b"text")
    assert "b.png: cannot be read (not a picture)" in refusal(sources.open_data, [folder])
    folder = coco_folder(tmp_path / "other")
    save(folder / "images" / "a.jpg", ramp(20, 30))
    assert "a.jpg: is 30 x 20 pixels, and 60 x 40 in" in refusal(sources.open_data, [folder])


def test_what_cannot_be_used_may_be_gathered_and_the_rest_is_opened(tmp_path):
    folder = pairs(tmp_path / "set", "abc")
    (folder / "gt" / "a.png").unlink()
    (folder / "gt" / "b.png").write_bytes(b"text")
    found = []
    assert sources.open_data([folder], found).names == ["set/b", "set/c"]
    assert [(finding.kind, finding.picture) for finding in found] == [("no mask", "set/a"), ("mask", "set/b")]


def test_hints_are_told_once_for_each_kind(tmp_path):
    folder = pairs(tmp_path / "set", "ab")
    for stem in "ab":
        save(folder / "im" / f"{stem}.png", ramp(40, 60), exif=exif(3))
    save(folder / "gt" / "alone.png", disc())
    with pytest.warns(InputWarning) as told:
        assert len(sources.open_data([folder])) == 2
    first, second = sorted(str(warning.message) for warning in told)
    assert first == f"{folder}/gt/alone.png: the mask has no picture; add it or remove the mask."
    assert second.startswith(f"{folder}/im/a.png: has the EXIF orientation 3, {folder}/gt/a.png none;")
    assert second.endswith(" (2 such in set).")


@pytest.mark.parametrize("spec", ["x" * 300, "x/" * 3000, "loop", "locked/set", "a\nb", os.fsdecode(b"\xff")])
def test_a_path_that_leads_nowhere_is_refused(tmp_path, monkeypatch, spec):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "loop").symlink_to("loop")
    refusal(sources.open_data, [spec])


def test_class_maps_are_opened_apart_from_objects(tmp_path):
    write_official("mess/cwfid", tmp_path / "mess")
    built = build("mess/cwfid", tmp_path / "mess", tmp_path / "built")
    own = classes_folder(tmp_path / "own")
    for spec, classes in ((own, 2), (f"mess/cwfid:{tmp_path / 'mess'}", 3), (built, 3)):
        opened = sources.open_class_maps(spec)
        assert (opened.classes, opened.background, len(opened)) == (classes, 0, 1)
        assert opened[0].name == opened.names[0]
        assert opened[0].label.max() == 1
    assert "holds class maps, not objects" in refusal(sources.open_data, [f"mess/cwfid:{tmp_path / 'mess'}"])
    assert "holds class maps, not objects" in refusal(sources.open_data, [built])
    write_official("dis5k-vd", tmp_path / "hq")
    assert "holds objects, not class maps" in refusal(sources.open_class_maps, f"dis5k-vd:{tmp_path / 'hq'}")


def test_the_library_is_imported_without_tfds():
    code = "import sys, stablesam_jax, stablesam_jax.data.sources; print('tensorflow_datasets' in sys.modules)"
    root = pathlib.Path(__file__).resolve().parents[3]
    result = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert result.stdout == "False\n"


@pytest.mark.parametrize("name", ["carparts", "feral_cat", "horses"])
def test_shared_folders_are_opened_as_they_are(shared, name):
    (source,) = sources.open_sources([shared / "data" / "hq" / name]).values()
    assert {"carparts": 44, "feral_cat": 32, "horses": 80}[name] == len(source)


# what a check looks at


def layouts(root):
    return [
        (str(found.path.relative_to(root)), sum(map(len, found.readers)), len(found.pictures))
        for found in sources.find(root, [])
    ]


def test_all_folders_below_are_found_and_those_without_masks_are_said(tmp_path):
    pairs(tmp_path / "b" / "pairs", "x")
    coco_folder(tmp_path / "b" / "coco")
    build("pairs", tmp_path / "b" / "pairs", tmp_path / "built")
    save(tmp_path / "a" / "y.jpg", disc())
    save(tmp_path / "a" / "y.png", disc())
    save(tmp_path / "c" / "images" / "z.jpg", disc())
    save(tmp_path / ".hidden" / "z.jpg", disc())
    (tmp_path / "notes").mkdir()
    assert layouts(tmp_path) == [
        ("a", 1, 1),
        ("b/coco", 1, 1),
        ("b/pairs", 1, 1),
        ("built/pairs", 1, 1),
        ("c/images", 0, 1),
    ]
    findings = []
    sources.find(tmp_path, findings)
    (finding,) = findings
    assert (finding.kind, finding.severity, finding.file) == ("not checked", "hint", tmp_path / "c" / "images")


def test_a_link_that_leads_back_is_not_followed(tmp_path):
    pairs(tmp_path / "a" / "pairs", "x")
    (tmp_path / "a" / "back").symlink_to(tmp_path)
    (tmp_path / "linked").symlink_to(tmp_path / "a" / "pairs")
    assert layouts(tmp_path) == [("a/pairs", 1, 1), ("linked", 1, 1)]


def test_what_is_named_otherwise_is_found_as_it_is_opened(tmp_path):
    write_official("dis5k-vd", tmp_path / "hq")
    folder = coco_folder(tmp_path / "two")
    for spec in (f"dis5k-vd:{tmp_path / 'hq'}", folder / "annotations.json"):
        (found,) = sources.find(spec, [])
        assert len(found.pictures) == 1


def test_no_folder_and_no_picture_are_refused(tmp_path):
    assert "absent: no such folder" in refusal(sources.find, tmp_path / "absent", [])
    assert "holds no picture (.avif" in refusal(sources.find, tmp_path, [])


# for evaluation


def test_coco_jsons_are_opened_with_the_pictures_that_have_no_object(tmp_path):
    content = coco_json(["a.jpg", "b.jpg"])
    content["annotations"].pop()
    save(coco_folder(tmp_path / "set") / "images" / "b.jpg", ramp(40, 60))
    (tmp_path / "set" / "annotations.json").write_text(json.dumps(content))
    (source,) = sources.open_instances([tmp_path / "set"]).values()
    assert source.names == ["set/a", "set/b"]
    assert [len(source[index].masks) for index in range(2)] == [1, 0]
    assert source[1].picture.shape == source.picture(1).shape == (*source.size_hw(1), 3)
    with pytest.warns(InputWarning, match="b.jpg: has no object; it is left out"):
        assert sources.open_data([tmp_path / "set"]).names == ["set/a"]


def test_a_group_is_all_of_its_sets(tmp_path):
    for name in [*GROUPS["sginw"], *GROUPS["mess"]]:
        write_official(name, tmp_path)
    assert tuple(sources.open_instances([f"sginw:{tmp_path}"])) == GROUPS["sginw"]
    assert tuple(sources.open_all_class_maps([f"mess:{tmp_path}"])) == GROUPS["mess"]


def test_all_sets_that_cannot_be_used_are_named_at_once(tmp_path):
    write_official("sginw/Rail", tmp_path)
    several = coco_folder(tmp_path / "several")
    (several / "annotations.json").rename(several / "one.json")
    (several / "more.json").write_text(json.dumps(coco_json(["a.jpg"]) | {"annotations": []}))
    assert "holds several COCO jsons" in refusal(sources.open_instances, [several])
    assert list(sources.open_instances([several / "one.json"])) == ["one"]
    message = refusal(sources.open_instances, [f"sginw/Rail:{tmp_path}", f"sginw/Trash:{tmp_path}", pairs(tmp_path)])
    assert "Trash/valid/_annotations_min1cat.coco.json: cannot be read" in message
    assert f"{tmp_path}: holds no COCO json, whose boxes, areas and crowds are needed" in message
    own = classes_folder(tmp_path / "own")
    message = refusal(sources.open_all_class_maps, [own, own, tmp_path / "absent"])
    assert "own: two data folders have this name" in message
    assert "absent" in message
