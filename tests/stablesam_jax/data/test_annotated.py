"""labelme, YOLO and SA-1B: shapes become the masks that they outline, what has no area is counted, the rest refused."""

import base64
import functools
import io
import json

import numpy as np
import pytest
from PIL import Image

from stablesam_jax.data import labelme, outlines, rle, sa1b, sources, yolo
from stablesam_jax.data.annotated import AnnotatedFolder
from stablesam_jax.errors import InputError
from tests.reference.layouts import SQUARE
from tests.reference.pictures import disc, exif, ramp, refusal, save

SQUARE_MASK = np.zeros((40, 60), bool)
SQUARE_MASK[10:25, 10:30] = True


def shape(kind, points, **fields):
    return {"label": "thing", "points": points, "group_id": None, "shape_type": kind, "flags": {}} | fields


def labelme_masks(tmp_path, *shapes, **fields):
    """(masks, what is left out) of a json of labelme."""
    path = tmp_path / "a.json"
    content = {"shapes": list(shapes), "imagePath": "a.jpg", "imageHeight": 40, "imageWidth": 60, "imageData": None}
    path.write_text(json.dumps(content | fields))
    drawing = labelme.parse(path, (60, 40))
    masks = [outlines.mask(outlines.run_lengths(drawn.segmentation, (60, 40))) for drawn in drawing.objects]
    return masks, dict(drawing.left_out)


CORNERS = np.reshape(SQUARE, (-1, 2)).tolist()


@pytest.mark.parametrize(
    ("kind", "points"),
    [
        ("polygon", CORNERS),
        ("rectangle", [[10, 10], [30, 25]]),
        ("rectangle", [[30, 25], [10, 10]]),
        ("rectangle", [[10, 25], [30, 10]]),
        ("rectangle", CORNERS),
        ("rotation", CORNERS),
        ("oriented_rectangle", CORNERS),
        (None, CORNERS),
    ],
)
def test_shapes_of_labelme_cover_what_they_outline(tmp_path, kind, points):
    (mask,), left_out = labelme_masks(tmp_path, shape(kind, points))
    assert np.array_equal(mask, SQUARE_MASK)
    assert left_out == {}


def test_a_circle_is_its_centre_and_a_point_on_it(tmp_path):
    (mask,), _ = labelme_masks(tmp_path, shape("circle", [[30, 20], [30, 5.25]]))
    rows, columns = np.mgrid[:40, :60] + 0.5
    distance = np.hypot(rows - 20, columns - 30)
    assert mask[distance < 14.5].all()
    assert not mask[distance > 15].any()


def test_a_mask_of_labelme_lies_in_its_box(tmp_path):
    data = io.BytesIO()
    Image.fromarray(disc(15, 20, 6)).save(data, "PNG")
    encoded = base64.b64encode(data.getvalue()).decode()
    (mask,), _ = labelme_masks(tmp_path, shape("mask", [[10, 10], [29, 24]], mask=encoded))
    assert np.array_equal(mask[10:25, 10:30], disc(15, 20, 6))
    assert mask.sum() == disc(15, 20, 6).sum()
    (cut,), _ = labelme_masks(tmp_path, shape("mask", [[-10, 35], [9, 49]], mask=encoded))
    assert np.array_equal(cut[35:, :10], disc(15, 20, 6)[:5, 10:])


def test_shapes_of_one_label_and_group_are_one_object(tmp_path):
    left, right = [[2, 2], [8, 2], [8, 8], [2, 8]], [[20, 2], [28, 2], [28, 8], [20, 8]]
    shapes = [shape("polygon", left, group_id=1), shape("polygon", right, group_id=1)]
    shapes += [shape("polygon", left, group_id=1, label="other"), shape("polygon", right)]
    masks, _ = labelme_masks(tmp_path, *shapes)
    assert [int(mask.sum()) for mask in masks] == [36 + 48, 36, 48]


def test_masks_and_polygons_of_one_group_are_one_object(tmp_path):
    data = io.BytesIO()
    Image.fromarray(np.full((6, 8), 255, np.uint8)).save(data, "PNG")
    encoded = base64.b64encode(data.getvalue()).decode()
    places = {(0, 0, 7, 5): 1, (30, 20, 37, 25): 1, (50, 30, 57, 35): None}
    masks = [shape("mask", [place[:2], place[2:]], mask=encoded, group_id=group) for place, group in places.items()]
    (both, alone), _ = labelme_masks(tmp_path, *masks, shape("polygon", CORNERS, group_id=1))
    expected = SQUARE_MASK.copy()
    expected[:6, :8] = expected[20:26, 30:38] = True
    assert np.array_equal(both, expected)
    assert alone.sum() == 48


@pytest.mark.parametrize("kind", ["point", "points", "line", "linestrip", "ai_points"])
def test_points_and_lines_of_labelme_are_counted(tmp_path, kind):
    masks, left_out = labelme_masks(tmp_path, shape(kind, [[1, 2], [3, 4]]), shape("polygon", CORNERS))
    assert len(masks) == 1
    assert left_out == {"points and lines": 1}


def test_shapes_that_are_not_known_are_counted_by_their_name(tmp_path):
    masks, left_out = labelme_masks(tmp_path, shape("ellipse", [[1, 2], [3, 4]]), shape("quadrilateral", CORNERS))
    assert len(masks) == 1
    assert left_out == {"shapes of the type ellipse": 1}


@pytest.mark.parametrize(
    ("wrong", "expected"),
    [
        (shape("polygon", [[1, "x"]]), "shape 1 has points that are not x, y"),
        (shape("polygon", [[1, float("nan")], [2, 3], [4, 5]]), "shape 1 has points that are not x, y"),
        (shape("polygon", None), "shape 1 has points that are not x, y"),
        (shape("polygon", [[1, 10**400], [2, 3], [4, 5]]), "shape 1 has points that are not x, y"),
        (shape("circle", [[1, 2]]), "shape 1 is a circle of 1 points, not 2"),
        (shape("mask", [[1, 2], [3, 4]], mask="no PNG"), "shape 1 has a mask that is no PNG file, or no box"),
        (shape("mask", [[1, 2], [3, 4]]), "shape 1 has a mask that is no PNG file, or no box"),
        ("x", "is no json of labelme"),
    ],
)
def test_a_broken_shape_of_labelme_is_named(tmp_path, wrong, expected):
    with pytest.raises(ValueError, match=expected):
        labelme_masks(tmp_path, wrong)


# YOLO


def yolo_drawing(tmp_path, text):
    (tmp_path / "a.txt").write_bytes(text.encode() if isinstance(text, str) else text)
    return yolo.parse(tmp_path / "a.txt", (60, 40), classes={1: "cow"})


def test_a_line_of_yolo_is_a_class_and_shares_of_the_picture(tmp_path):
    drawing = yolo_drawing(tmp_path, "1 0.1 0.25 0.5 0.25 0.5 0.625\r\n\r\n0 0.5 0.5 0.2 0.2\n7 0 0 1 0 1 1\n")
    assert [(drawn.number, drawn.category) for drawn in drawing.objects] == [(1, "cow"), (4, "7")]
    assert drawing.objects[0].segmentation == [[6, 10, 30, 10, 30, 25]]
    assert drawing.left_out == {"rectangles without a mask": 1}


def test_a_text_of_yolo_may_begin_with_a_mark_or_be_empty(tmp_path):
    assert len(yolo_drawing(tmp_path, "\ufeff1 0 0 1 0 1 1").objects) == 1
    assert yolo_drawing(tmp_path, "").objects == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a photo of a cow", "line 1 is not a class"),
        ("1 0 0 1 0 1 nan", "line 1 is not a class"),
        ("1.5 0 0 1 0 1 1", "line 1 is not a class"),
        ("-1 0 0 1 0 1 1", "line 1 is not a class"),
        ("1 0 0 1 0 1 1\n1 0 0 1 0 1 1 1", "line 2 has 7 numbers after the class, not three or more pairs"),
        ("1 0 0 1", "line 1 has 3 numbers after the class"),
        ("1 5 10 30 10 30 25", "line 1 has numbers that are no shares of the picture, from 0 to 1"),
        (b"\xff\xfe", "is no text of YOLO"),
    ],
)
def test_a_broken_line_of_yolo_is_named(tmp_path, text, expected):
    with pytest.raises(ValueError, match=expected):
        yolo_drawing(tmp_path, text)


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("data.yaml", "names: [soil, crop]"),
        ("data.yaml", "names:\n  0: soil\n  1: crop\n"),
        ("classes.txt", "soil\ncrop\n"),
        ("../data.yml", "\ufeffnames: [soil, crop]"),
    ],
)
def test_classes_have_the_names_that_a_file_here_or_above_gives_them(tmp_path, file, text):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / file).write_text(text)
    assert yolo.read_classes(tmp_path / "set") == {0: "soil", 1: "crop"}


@pytest.mark.parametrize(
    "text", ["names: 3", "train: images", "[", "", "names: {a: b}", "!!python/object/apply:os.system [exit]"]
)
def test_a_file_that_names_no_classes_is_passed_over(tmp_path, text):
    (tmp_path / "data.yaml").write_text(text)
    assert yolo.read_classes(tmp_path) == {}


def test_names_that_hold_each_other_are_no_names(tmp_path):
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
    (tmp_path / "data.yaml").write_text("\n".join([*lines, "names: [soil, *a11]"]))
    assert yolo.read_classes(tmp_path) == {0: "soil"}


@pytest.mark.parametrize("points", ["0.3 0.3 0.6 0.6", "0.3 0.3 2 0.6 0.6 0", "0.1 0.1 2"])
def test_a_rectangle_with_keypoints_is_no_outline_where_the_settings_say_that_it_is_one(tmp_path, points):
    for part in ("train", "valid"):
        save(tmp_path / part / "images" / "a.jpg", ramp(40, 60))
        (tmp_path / part / "labels").mkdir()
        (tmp_path / part / "labels" / "a.txt").write_text(f"0 0.5 0.5 0.4 0.4 {points}\n1 0.5 0.5 0.4 0.4\n")
    (tmp_path / "data.yaml").write_text("names: [cow, calf]\nkpt_shape: [2, 2]\n")
    found = []
    assert "holds no picture with an object" in refusal(sources.open_data, [tmp_path], found)
    texts = [finding.text for finding in found if finding.kind == "left out"]
    assert texts == ["left out: keypoints without a mask 1, rectangles without a mask 1."] * 2


# SA-1B


def test_an_annotation_of_sa_1b_is_compressed_run_lengths(tmp_path):
    annotation = {"id": 7, "segmentation": rle.compress(rle.encode(disc())), "bbox": [0, 0, 1, 1], "area": 1}
    image = {"image_id": 1, "width": 60, "height": 40, "file_name": "sa_1.jpg"}
    (tmp_path / "a.json").write_text(json.dumps({"image": image, "annotations": [annotation]}))
    drawing = sa1b.parse(tmp_path / "a.json", (60, 40))
    assert (drawing.size, drawing.picture, drawing.objects[0].number) == ((60, 40), "sa_1.jpg", 7)
    assert np.array_equal(outlines.mask(outlines.run_lengths(drawing.objects[0].segmentation, (60, 40))), disc())
    (tmp_path / "a.json").write_text(json.dumps({"image": image, "annotations": [{}]}))
    with pytest.raises(ValueError, match="is no json of SA-1B"):
        sa1b.parse(tmp_path / "a.json", (60, 40))


# folders of such files


def yolo_folder(root, stems="abc"):
    for number, stem in enumerate(stems):
        save(root / "images" / f"{stem}.jpg", np.roll(ramp(40, 60), 7 * number, axis=1))
        (root / "labels").mkdir(exist_ok=True)
        (root / "labels" / f"{stem}.txt").write_text("0 0.1 0.25 0.5 0.25 0.5 0.625\n")
    return root


def opened(root):
    found = []
    parse = functools.partial(yolo.parse, classes={})
    return AnnotatedFolder("set", root / "images", root / "labels", ".txt", parse, found), found


def test_pictures_without_an_object_are_left_out_and_told(tmp_path):
    folder = yolo_folder(tmp_path)
    (folder / "labels" / "a.txt").write_text("")
    (folder / "labels" / "b.txt").unlink()
    source, found = opened(folder)
    assert source.names == ["set/c"]
    assert sorted((finding.kind, finding.picture) for finding in found) == [
        ("no object", "set/a"),
        ("no object", "set/b"),
    ]
    assert len(source.every_picture()) == 3


def test_objects_without_a_pixel_are_counted_over_all_files(tmp_path):
    folder = yolo_folder(tmp_path, "ab")
    for stem in "ab":
        with open(folder / "labels" / f"{stem}.txt", "a") as file:
            file.write("0 0.5 0.5 0.5 0.5 0.5 0.5\n0 0.5 0.5 0.1 0.1\n")
    source, found = opened(folder)
    assert source[0].numbers == (1,)
    assert [finding.text for finding in found] == ["left out: rectangles without a mask 2, masks without a pixel 2."]


def test_what_cannot_be_used_is_named(tmp_path):
    folder = yolo_folder(tmp_path, "abcd")
    (folder / "labels" / "a.txt").write_text("text")
    (folder / "images" / "b.jpg").write_bytes(b"text")
    (folder / "images" / "c.jpg").rename(folder / "images" / "c.heic")
    source, found = opened(folder)
    assert source.names == ["set/d"]
    assert {(finding.kind, finding.file.name) for finding in found if finding.severity == "fault"} == {
        ("mask", "a.txt"),
        ("picture", "b.jpg"),
        ("picture", "c.heic"),
        ("no picture", "c.txt"),
    }
    (fault,) = (finding.line for finding in found if finding.kind == "mask")
    assert fault == f"{folder}/labels/a.txt: line 1 is not a class and the numbers of an outline; correct or remove it."
    assert "c.heic: is a HEIC picture" in refusal(sources.open_data, [folder])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_outlines_are_shares_of_the_upright_picture_and_a_doubt_is_told(tmp_path, orientation):
    folder = yolo_folder(tmp_path, "a")
    save(folder / "images" / "a.jpg", ramp(40, 60), exif=exif(orientation))
    source, found = opened(folder)
    assert source[0].masks.shape[1:] == ((60, 40) if orientation >= 5 else (40, 60))
    assert [finding.kind for finding in found] == ([] if orientation == 1 else ["turned"])


def test_an_annotation_that_names_another_picture_finds_it(tmp_path):
    content = {"shapes": [shape("polygon", CORNERS)], "imagePath": "..\\images\\photo.jpg", "imageData": None}
    save(tmp_path / "images" / "photo.jpg", ramp(40, 60))
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "1.json").write_text(json.dumps(content))
    source = sources.open_data([tmp_path])
    assert np.array_equal(source[0].masks, SQUARE_MASK[None])


def test_a_broken_annotation_in_a_folder_of_its_own_is_a_fault_of_its_picture(tmp_path):
    whole = json.dumps({"shapes": [shape("polygon", CORNERS)], "imagePath": "a.jpg"})
    for stem, text in {"a": whole, "b": "{"}.items():
        save(tmp_path / "images" / f"{stem}.jpg", ramp(40, 60))
        (tmp_path / "annotations").mkdir(exist_ok=True)
        (tmp_path / "annotations" / f"{stem}.json").write_text(text)
    assert "annotations/b.json: is no JSON, or cut short" in refusal(sources.open_data, [tmp_path])


@pytest.mark.parametrize("copy", ["0", "z"])
def test_two_annotations_of_one_picture_are_a_fault(tmp_path, copy):
    save(tmp_path / "a.jpg", ramp(40, 60))
    content = json.dumps({"shapes": [shape("polygon", CORNERS)], "imagePath": "a.jpg"})
    for stem in ("a", copy):
        (tmp_path / f"{stem}.json").write_text(content)
    first, second = sorted(("a", copy))
    message = refusal(sources.open_data, [tmp_path])
    assert f"{second}.json: is of a.jpg, as is {first}.json; make one file of both." in message


def test_two_pictures_of_one_name_are_told_apart_by_what_the_json_names(tmp_path):
    for suffix, width in (("jpg", 60), ("png", 50)):
        save(tmp_path / f"a.{suffix}", ramp(40, width))
    content = {"shapes": [shape("polygon", CORNERS)], "imagePath": "a.png", "imageHeight": 40, "imageWidth": 50}
    (tmp_path / "a.json").write_text(json.dumps(content))
    found = []
    assert sources.open_data([tmp_path], found)[0].picture.shape == (40, 50, 3)


def test_a_label_that_cannot_be_read_any_more_is_refused(tmp_path):
    source, _ = opened(yolo_folder(tmp_path, "a"))
    (tmp_path / "labels" / "a.txt").unlink()
    with pytest.raises(InputError, match="cannot be read"):
        source[0]
