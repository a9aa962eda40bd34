"""The command: what it prints, writes and returns."""

import io
import json
import os
import pathlib

import numpy as np
import pytest
from rich.console import Console

from convert import check_data
from tests.reference.layouts import coco_json, write_official
from tests.reference.pictures import exif, ramp, save
from tests.stablesam_jax.data.test_doctor import pair, sick_folder


def run(capsys, *arguments):
    status = check_data.main([str(argument) for argument in arguments])
    return status, capsys.readouterr().out.splitlines()


@pytest.fixture
def clean(tmp_path):
    for number in range(3):
        pair(tmp_path / "clean", f"p{number}", number)
    return tmp_path / "clean"


def test_a_clean_folder_exits_with_0_and_one_line(clean, capsys):
    assert run(capsys, clean) == (0, ["3 pictures in 1 folder checked: 0 faults, 0 hints."])


def test_hints_do_not_change_the_exit_status(clean, capsys):
    pair(clean, "q", 4, change=lambda picture: picture[::-1])
    pair(clean, "r", 4)
    status, lines = run(capsys, clean)
    assert status == 0
    assert lines == [
        f"hint: {clean}/gt/r.png: equals {clean}/gt/q.png, pixel by pixel; make sure that it belongs to its picture.",
        "5 pictures in 1 folder checked: 0 faults, 1 hint (equal masks 1).",
    ]


def test_faults_exit_with_1_and_have_a_line_each(tmp_path, capsys):
    planted = sick_folder(tmp_path / "sick")
    status, lines = run(capsys, tmp_path)
    assert status == 1
    assert {line.split(": ")[1] for line in lines[:-1]} == {str(file) for _, file, *_ in planted}
    assert [line.split(": ")[0] for line in lines[:-1]] == ["hint"] * 2 + ["fault"] * 12
    assert lines[-1] == (
        "15 pictures in 1 folder checked: 12 faults (picture 1, mask 4, suffix 1, no mask 1, no picture 1, size 1, "
        "whole 1, inverted 1, duplicate 1), 2 hints (pieces 1, equal masks 1)."
    )


def test_what_is_tested_on_is_compared_but_its_masks_are_not_checked(clean, tmp_path, capsys):
    pair(tmp_path / "test", "t", 1)
    (tmp_path / "test" / "gt" / "t.png").write_bytes(b"text")
    status, lines = run(capsys, clean, "--against", tmp_path / "test", "--json", tmp_path / "found.json")
    assert status == 1
    assert lines[0].startswith(f"fault: {clean}/im/p1.png: shows the same as {tmp_path}/test/im/t.png; remove one")
    assert lines[1] == "3 pictures in 1 folder checked against 1 picture in 1 folder: 1 fault (twin 1), 0 hints."
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["folders"] == {str(clean): 3}
    assert found["against"] == {str(tmp_path / "test"): 1}
    assert (found["faults"], found["hints"]) == ({"twin": 1}, {})
    (finding,) = found["findings"]
    assert finding.pop("text") in lines[0]
    assert finding == {
        "severity": "fault",
        "kind": "twin",
        "file": str(clean / "im" / "p1.png"),
        "other": str(tmp_path / "test" / "im" / "t.png"),
    }


def test_a_folder_given_twice_is_checked_once(clean, capsys):
    assert run(capsys, clean, clean.parent, clean / ".." / "clean")[1][-1].startswith("3 pictures in 1 folder")


def test_names_that_no_terminal_shows_are_escaped_in_both_reports(tmp_path, capsys):
    name = os.fsdecode(b"caf\xe9\n\x1b[31m")
    pair(tmp_path / "set", name)
    pair(tmp_path / "set", "b", 1)
    save(tmp_path / "set" / "gt" / f"{name}.png", np.zeros((80, 120), np.uint8))
    status, lines = run(capsys, tmp_path / "set", "--json", tmp_path / "found.json")
    assert status == 1
    expected = f"{tmp_path}/set/gt/caf\\xe9\\n\\x1b[31m.png"
    assert lines[0].startswith(f"fault: {expected}: the mask is empty")
    (finding,) = json.loads((tmp_path / "found.json").read_text())["findings"]
    assert finding["file"] == expected


def test_a_json_of_coco_is_checked_picture_by_picture(tmp_path, capsys):
    content = coco_json(["a.jpg", "b.jpg"])
    content["annotations"][0]["segmentation"] = [[0, 0, 60, 0, 60, 40, 0, 40]]
    content["annotations"].append(content["annotations"][1] | {"id": 7, "segmentation": []})
    for file, change in (("a.jpg", 0), ("b.jpg", 90)):
        save(tmp_path / "images" / file, ramp(40, 60) + np.uint8(change), exif=exif(3 if change else 1))
    (tmp_path / "annotations.json").write_text(json.dumps(content))
    status, lines = run(capsys, tmp_path)
    assert status == 1
    assert lines[:-1] == [
        f"hint: {tmp_path}/annotations.json: left out: rectangles without a mask 1.",
        f"hint: {tmp_path}/images/b.jpg: has the EXIF orientation 3, {tmp_path}/annotations.json none; make sure that "
        "the label was drawn on the picture as it is shown upright.",
        f"fault: {tmp_path}/images/a.jpg: the mask covers 100.0% of the picture; swap 0 and the number if the mask is "
        "inverted, or outline the object.",
    ]


def test_an_official_layout_is_checked_by_its_name(tmp_path, capsys):
    write_official("hqseg-44k", tmp_path)
    write_official("mess/cwfid", tmp_path)
    assert run(capsys, f"hqseg-44k:{tmp_path}")[1][-1].startswith("7 pictures in 1 folder checked: 6 faults")
    assert run(capsys, f"mess/cwfid:{tmp_path}")[1] == ["1 picture in 1 folder checked: 0 faults, 0 hints."]


def test_a_terminal_shows_kinds_under_titles_and_not_every_hint(monkeypatch):
    output = io.StringIO()
    console = Console(file=output, force_terminal=True, soft_wrap=True, highlight=False, width=200, color_system=None)
    monkeypatch.setattr(check_data, "Console", lambda **_: console)
    hints = [check_data.Finding("pieces", "s", "s/a", pathlib.Path(f"[{n}].png"), "has 2.") for n in range(12)]
    faults = [check_data.Finding("mask", "s", "s/a", pathlib.Path(f"{n}.png"), "is empty.") for n in range(12)]
    check_data.show(hints + faults)
    lines = output.getvalue().splitlines()
    assert lines[:2] == ["hint, several large pieces under one number: 12", "  [0].png: has 2."]
    assert lines[11:14] == [
        "  and 2 more, which --json FILE holds",
        "fault, masks that cannot be used: 12",
        "  0.png: is empty.",
    ]
    assert len(lines) == 25


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no data are given"),
        (["{tmp}/absent"], "absent: no such folder"),
        (["{tmp}/clean", "--against", "{tmp}/absent"], "absent: no such folder"),
        (["{tmp}/clean/im"], "im: holds pictures, but no masks where they are looked for"),
        (["{tmp}/clean", "--against", "{tmp}"], "clean: is to be checked against itself"),
        (
            ["{tmp}/clean", "--json", "{tmp}/clean"],
            "clean: must be a file in a folder that can be written to or created",
        ),
    ],
)
def test_bad_input_exits_with_2_and_one_line(clean, capsys, arguments, message):
    with pytest.raises(SystemExit) as exit:
        check_data.main([argument.format(tmp=clean.parent) for argument in arguments])
    assert exit.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert message in line
