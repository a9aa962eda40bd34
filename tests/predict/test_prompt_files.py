"""Boxes and points are read as they are written; a fault in the file is one line that names its place."""

import json

import numpy as np
import pytest

from predict.prompt_files import read_boxes, read_coco_boxes, read_points
from stablesam_jax.errors import InputError

BOXES = "file,x1,y1,x2,y2,id,label\na.jpg,1,2,30,40.5,left,cat\nb/a.jpg,5,6,7,8,1,\na.jpg,0,0,9,9,right,dog\n"
POINTS = "file,x,y,label,object\na.jpg,1,2,1,cat\nb.jpg,5,6,1,1\na.jpg,3,4,0,cat\n"


def coco():
    return {
        "images": [{"id": 7, "file_name": "a.jpg", "width": 60, "height": 40}, {"id": "x", "file_name": "b.jpg"}],
        "categories": [{"id": 3, "name": "cat"}],
        "annotations": [
            {"id": 12, "image_id": 7, "category_id": 3, "bbox": [1, 2, 10, 20]},
            {"id": 11, "image_id": 7, "category_id": 3, "bbox": [0, 0, 5, 5.5], "segmentation": []},
            {"id": 13, "image_id": 7, "category_id": 3, "bbox": [0, 0, 5, 5], "iscrowd": 1},
        ],
    }


def written(folder, text):
    path = folder / "prompts"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


@pytest.mark.parametrize(("old", "new"), [(",", ","), (",", ";"), (",", "\t"), ("\n", "\r\n\r\n")])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_boxes_are_read_by_their_columns_as_spreadsheets_write_them(tmp_path, old, new, encoding):
    found = read_boxes(written(tmp_path, BOXES.replace(old, new).encode(encoding)))
    assert found.categories == {1: "cat", 2: "object", 3: "dog"}
    first, second = found.pictures
    assert (first.file, second.file) == ("a.jpg", "b/a.jpg")
    assert [(one.name, one.category_id, one.annotation_id) for one in first.targets] == [
        ("left", 1, 1),
        ("right", 3, 3),
    ]
    np.testing.assert_array_equal(first.targets[0].prompt.box, [1, 2, 30, 40.5])


def test_without_ids_boxes_are_numbered_in_their_picture(tmp_path):
    found = read_boxes(written(tmp_path, "File, X1 ,y1,x2,y2\na,1,1,2,2\nb,1,1,2,2\na,1,1,3,3\n"))
    assert [[one.name for one in picture.targets] for picture in found.pictures] == [["1", "2"], ["1"]]


def test_points_of_an_object_may_be_apart(tmp_path):
    first, second = read_points(written(tmp_path, POINTS)).pictures
    (cat,) = first.targets
    np.testing.assert_array_equal(cat.prompt.points, [[1, 2], [3, 4]])
    np.testing.assert_array_equal(cat.prompt.labels, [1, 0])
    assert [one.name for one in second.targets] == ["1"]


def test_coco_keeps_its_ids_and_needs_no_masks(tmp_path):
    found, crowds = read_coco_boxes(written(tmp_path, json.dumps(coco())))
    (picture,) = found.pictures
    assert (picture.image_id, picture.size, crowds) == (7, (60, 40), 1)
    assert [one.annotation_id for one in picture.targets] == [12, 11]
    np.testing.assert_array_equal(picture.targets[0].prompt.box, [1, 2, 11, 22])


def test_boxes_of_cvats_brush_are_asked_for_though_cvat_marks_them_as_crowds(tmp_path):
    content = coco()
    content["annotations"][2] |= {"attributes": {"occluded": False}, "segmentation": {"counts": [], "size": [40, 60]}}
    found, crowds = read_coco_boxes(written(tmp_path, json.dumps(content)))
    assert [one.annotation_id for one in found.pictures[0].targets] == [12, 11, 13]
    assert crowds == 0


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", r": is empty; its first line must name the columns file,x1,y1,x2,y2\.$"),
        (" \n\n", r": is empty; "),
        (b"\xff\xfe\x00", r": is no text in UTF-8; "),
        ("a.jpg,1,2,3,4\n", r": lacks the columns file, x1, y1, x2, y2; .*, and names a\.jpg,1,2,3,4\.$"),
        (BOXES.replace("x2", "w"), r": lacks the column x2; "),
        (BOXES.replace("label", "id"), r": names a column twice; "),
        (BOXES.partition("\n")[0], r": has a header and no line below it; "),
        (BOXES.replace("30", "nan"), r", line 2: x2 is 'nan', which is no number \(pixels, with a decimal point\)\.$"),
        (BOXES.replace("30", "inf"), r", line 2: x2 is 'inf', "),
        (BOXES.replace("30", ""), r", line 2: x2 is '', "),
        (BOXES.replace("30", "0"), r", line 2: the box \(1, 2, 0, 40\.5\) has no area; "),
        (BOXES.replace("right", "left"), r", line 4: the id left of a\.jpg is that of line 2, too; "),
        (BOXES.replace("right", ""), r", line 4: the id is empty\.$"),
        (BOXES.replace("b/a.jpg", ""), r", line 3: names no picture\.$"),
        (BOXES.replace("b/a.jpg", "..").replace("30", "x"), r", line 2: .* \(1 more lines have faults\)\.$"),
        (BOXES.replace("30,", "30,5,"), r", line 2: has 8 cells, the first line 7; write numbers with a decimal "),
        (BOXES.replace("left", '"left'), r", line 4: is no CSV \("),
    ],
)
def test_a_fault_among_boxes_is_one_line_with_its_place(tmp_path, text, fault):
    with pytest.raises(InputError, match=fault) as caught:
        read_boxes(written(tmp_path, text))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (BOXES, r": lacks the columns x, y, object; "),
        (
            POINTS.replace("1,cat", "2,cat"),
            r", line 2: the label is '2'; 1 is a point on the object, 0 ",
        ),
        (POINTS.replace("2,1,cat", "2,0,cat"), r": object cat of a\.jpg has no point on it \(label 1\); add one\.$"),
        (POINTS.replace("5,6", "5,NaN"), r", line 3: y is 'NaN', "),
    ],
)
def test_a_fault_among_points_is_one_line_with_its_place(tmp_path, text, fault):
    with pytest.raises(InputError, match=fault):
        read_points(written(tmp_path, text))


@pytest.mark.parametrize(
    ("place", "value", "fault"),
    [
        (("annotations", 0, "image_id"), 9, r"annotation 1 \(id 12\) is of picture 9, which is not listed; correct"),
        (("annotations", 1, "id"), 12, r"annotation 2 \(id 12\) has the id 12, which is no whole number of its own"),
        (("annotations", 0, "id"), "cat", r"annotation 1 \(id cat\) has the id cat, which is no whole number"),
        (("annotations", 0, "category_id"), 4, r"is of category 4, which is not listed"),
        (("annotations", 0, "bbox"), [1, 2, float("nan"), 3], r"has the bbox \[1, 2, nan, 3\]; "),
        (("annotations", 0, "bbox"), [1, 2, 3], r"has the bbox \[1, 2, 3\]; "),
        (("annotations", 0, "bbox"), None, r"has the bbox None; "),
        (("annotations", 0, "bbox"), [1, 2, -3, 4], r"has a bbox without area"),
        (("images", 1, "id"), 7, r"picture 2 has the id 7, which another has"),
        (("images", 0, "file_name"), None, r"picture 1 has no file_name"),
        (("annotations",), [], r": holds no box; "),
        (("annotations",), None, r": is no COCO json, "),
    ],
)
def test_a_fault_in_a_coco_json_is_one_line_with_its_place(tmp_path, place, value, fault):
    content = coco()
    *way, last = place
    entry = content
    for key in way:
        entry = entry[key]
    entry[last] = value
    with pytest.raises(InputError, match=fault):
        read_coco_boxes(written(tmp_path, json.dumps(content)))


@pytest.mark.parametrize("read", [read_boxes, read_points, read_coco_boxes])
def test_an_absent_file_is_named(tmp_path, read):
    with pytest.raises(InputError, match=r"absent: cannot be read \(No such file or directory\)\.$"):
        read(tmp_path / "absent")
