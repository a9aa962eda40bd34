"""COCO files: masks are those of pycocotools, and what is wrong in a file is named."""

import copy
import json
import pickle
import tracemalloc

import numpy as np
import pytest
from faster_coco_eval.core import mask as mask_api

from stablesam_jax.data import rle, sources
from stablesam_jax.data.coco import CocoPictures
from stablesam_jax.errors import InputWarning
from tests.reference.layouts import SQUARE, coco_json
from tests.reference.pictures import disc, exif, ramp, refusal, save


def folder_of(tmp_path, content=None, files=("a.jpg", "b.jpg")):
    for file in files:
        save(tmp_path / "images" / file, ramp(40, 60))
    content = coco_json(list(files)) if content is None else content
    (tmp_path / "annotations.json").write_text(content if isinstance(content, str) else json.dumps(content))
    return tmp_path


def opened(tmp_path, content=None, files=("a.jpg", "b.jpg"), findings=None):
    """The pictures of a json; nothing is wrong with it unless `findings` are asked for."""
    found = [] if findings is None else findings
    source = CocoPictures("set", folder_of(tmp_path, content, files), tmp_path / "annotations.json", found)
    assert findings is not None or found == []
    return source


def with_segmentation(segmentation, **fields):
    content = coco_json(["a.jpg", "b.jpg"])
    content["annotations"][0] |= {"segmentation": segmentation, **fields}
    return content


def first_mask(tmp_path, segmentation):
    return opened(tmp_path, with_segmentation(segmentation))[0].masks[0]


def test_a_square_covers_the_pixels_between_its_corners(tmp_path):
    expected = np.zeros((40, 60), bool)
    expected[10:25, 10:30] = True
    assert np.array_equal(opened(tmp_path)[0].masks, expected[None])


def test_a_triangle_counted_by_hand(tmp_path):
    # The slanted side is x + y = 6, and pixel (c, r) has its centre at (c + 0.5, r + 0.5): inside is c + r + 1 < 6.
    mask = first_mask(tmp_path, [[1, 1, 5, 1, 1, 5]])
    rows = {row: np.flatnonzero(mask[row]).tolist() for row in range(40) if mask[row].any()}
    assert rows == {1: [1, 2, 3], 2: [1, 2], 3: [1]}


def test_polygons_of_one_object_are_united(tmp_path):
    mask = first_mask(tmp_path, [[2, 2, 8, 2, 8, 8, 2, 8], [5, 5, 11, 5, 11, 11, 5, 11]])
    assert mask.sum() == 36 + 36 - 9


def test_run_lengths_of_both_kinds_give_the_mask_that_they_were_made_of(tmp_path):
    plain = rle.encode(disc())
    assert np.array_equal(first_mask(tmp_path, plain), disc())
    assert np.array_equal(first_mask(tmp_path, rle.compress(plain)), disc())
    for lengths in (plain, rle.compress(plain)):
        assert np.array_equal(first_mask(tmp_path, lengths | {"size": [40.0, 60.0]}), disc())


def test_a_mask_that_begins_with_an_object_survives_its_run_lengths(tmp_path):
    assert np.array_equal(first_mask(tmp_path, rle.encode(~disc())), ~disc())


def test_what_evaluation_needs_is_handed_out_in_the_order_of_the_masks(tmp_path):
    content = coco_json(["a.jpg"])
    (square,) = content["annotations"]
    other = square | {"id": 7, "segmentation": rle.encode(disc()), "bbox": [18.5, 8, 25, 25.25], "area": 440}
    content["annotations"].insert(0, other)
    source = opened(tmp_path, content)
    first, second = source.objects(0)
    assert (first.annotation_id, first.image_id, first.category_id) == (7, 0, 0)
    assert (first.bbox_xywh, first.area, first.iscrowd) == ((18.5, 8, 25, 25.25), 440, False)
    assert second.annotation_id == 100
    assert source.categories == {0: "thing"}
    assert source[0].numbers == (7, 100)
    for mask, entry in zip(source[0].masks, source.objects(0), strict=True):
        assert np.array_equal(mask, entry.mask())


def test_box_and_area_are_measured_where_the_file_has_none(tmp_path):
    content = coco_json(["a.jpg"])
    for key in ("bbox", "area", "iscrowd"):
        del content["annotations"][0][key]
    (entry,) = opened(tmp_path, content).objects(0)
    assert (entry.bbox_xywh, entry.area, entry.iscrowd) == ((10, 10, 20, 15), 300, False)


def test_crowds_and_masks_without_a_pixel_are_not_objects(tmp_path):
    content = coco_json(["a.jpg", "b.jpg", "c.jpg"])
    content["annotations"][0]["iscrowd"] = 1
    thin = content["annotations"][1] | {"id": 5, "segmentation": [[3, 3, 3, 3, 3, 3]], "bbox": [3, 3, 0, 0]}
    crowd = content["annotations"][1] | {"id": 6, "iscrowd": 1}
    content["annotations"] += [thin, crowd]
    found = []
    source = opened(tmp_path, content, ("a.jpg", "b.jpg", "c.jpg"), found)
    assert source.names == ["set/b", "set/c"]
    assert source.image_ids == [1, 2]
    assert [entry.annotation_id for entry in source.objects(0)] == [101]
    assert [entry.annotation_id for entry in source.annotations[0]] == [101, 5, 6]
    assert [(finding.kind, finding.text) for finding in found] == [
        ("left out", "left out: masks without a pixel 1."),
        ("crowds", "holds 2 crowds; they are left out."),
        ("no object", "has no object; it is left out."),
    ]
    assert found[2].file == tmp_path / "images" / "a.jpg"


def test_pictures_in_folders_keep_their_path_as_name(tmp_path):
    source = opened(tmp_path, files=("x/a.jpg", "y/a.jpg"))
    assert source.names == ["set/x/a", "set/y/a"]
    assert source.picture_file(1) == tmp_path / "images" / "y" / "a.jpg"


def test_a_reader_can_be_sent_to_another_process(tmp_path):
    source = pickle.loads(pickle.dumps(opened(tmp_path)))
    assert source[1].masks.sum() == 300
    with pytest.raises(IndexError):
        source[2]


# what training does not need


def test_annotation_ids_may_begin_anew_in_each_picture(tmp_path):
    content = coco_json(["a.jpg", "b.jpg"])
    content["annotations"] += [entry | {"id": entry["id"] + 50} for entry in content["annotations"]]
    for entry, number in zip(content["annotations"], (1, 1, 2, 2), strict=True):
        entry["id"] = number
    source = opened(tmp_path, content)
    assert [source[index].numbers for index in range(2)] == [(1, 2), (1, 2)]


@pytest.mark.parametrize(("value", "crowd"), [("0", 0), ("false", 0), (None, 0), ("1", 1), (True, 1)])
def test_a_crowd_may_be_marked_by_a_word(tmp_path, value, crowd):
    content = with_segmentation([SQUARE], iscrowd=value, attributes={"outlined": True})
    assert len(opened(tmp_path, content, findings=[])) == 2 - crowd


@pytest.mark.parametrize("ids", [(7, 7), (None, 3), ("x", "y"), (True, 2), ([1], {}), (2**70, 1)])
def test_ids_that_tell_no_objects_apart_are_replaced_by_their_place(tmp_path, ids):
    content = coco_json(["a.jpg"])
    content["annotations"] = [content["annotations"][0] | {"id": number} for number in ids]
    assert sorted(opened(tmp_path, content, ("a.jpg",))[0].numbers) == ([1, 2] if ids != (None, 3) else [1, 3])


def test_whole_numbers_may_be_written_as_others_write_them(tmp_path):
    content = coco_json(["a.jpg", "b.jpg"])
    content["images"][0] |= {"id": 0.0, "width": 60.0}
    content["images"][1]["id"] = "1"
    content["annotations"][0]["id"] = 100.0
    content["annotations"][1]["image_id"] = 1.0
    source = opened(tmp_path, content)
    assert source.image_ids == [0, 1]
    assert source[0].numbers == (100,)


@pytest.mark.parametrize(
    ("categories", "category", "named"),
    [
        (None, None, ()),
        ([], 3, ()),
        ([{"id": 3, "name": "cow"}], 3, ("cow",)),
        ([{"id": 3}], 3, ("3",)),
        ([{"id": "cow", "name": "a cow"}], "cow", ("a cow",)),
        (["cow"], "cow", ("cow",)),
        ({"3": "cow"}, 3, ("cow",)),
        ("cow", 3, ()),
        ([{"id": 3, "name": "cow"}], 4, ()),
        ([{"id": 3, "name": "cow"}], [], ()),
    ],
)
def test_categories_may_be_absent_or_of_any_form(tmp_path, categories, category, named):
    content = coco_json(["a.jpg"])
    content["annotations"][0]["category_id"] = category
    content["categories"] = categories
    assert opened(tmp_path, content, ("a.jpg",))[0].categories == named
    del content["categories"], content["annotations"][0]["category_id"]
    assert opened(tmp_path, content, ("a.jpg",))[0].categories == ()


@pytest.mark.parametrize("area", [float("inf"), 0, 10**400])
@pytest.mark.parametrize(
    "box", [None, "x", [1, 2, 3], [0, 0, -5, 3], [50, 1, 20, 5], *([x] * 4 for x in (True, 0, float("nan"), 10**400))]
)
def test_a_box_and_an_area_that_are_none_of_a_mask_are_measured(tmp_path, box, area):
    source = opened(tmp_path, with_segmentation([SQUARE], bbox=box, area=area))
    assert source.objects(0)[0].bbox_xywh == (10, 10, 20, 15)
    assert source.objects(0)[0].area == 300


def test_a_size_that_is_not_said_is_that_of_the_picture(tmp_path):
    content = coco_json(["a.jpg", "b.jpg"])
    del content["images"][0]["width"]
    content["images"][1]["height"] = None
    assert [opened(tmp_path, content).size_hw(index) for index in range(2)] == [(40, 60), (40, 60)]


@pytest.mark.parametrize(
    ("fields", "what"),
    [
        ({"segmentation": []}, "rectangles without a mask 2"),
        ({"segmentation": [[]]}, "rectangles without a mask 2"),
        ({"segmentation": None}, "rectangles without a mask 2"),
        ({"segmentation": {}}, "rectangles without a mask 2"),
        ({"segmentation": [], "keypoints": [1, 2, 2], "num_keypoints": 1}, "keypoints without a mask 2"),
        ({"segmentation": [], "bbox": None}, "annotations without a mask 2"),
        ({"segmentation": [[1, 1, 5, 5]]}, "masks without a pixel 2"),
        ({"segmentation": [[70, 50, 80, 50, 80, 60]]}, "masks without a pixel 2"),
    ],
)
def test_what_has_no_mask_is_left_out_and_counted(tmp_path, fields, what):
    content = coco_json(["a.jpg"])
    content["annotations"] += [content["annotations"][0] | {"id": number} | fields for number in (1, 2)]
    found = []
    source = opened(tmp_path, content, ("a.jpg",), found)
    assert source[0].numbers == (100,)
    assert [finding.text for finding in found] == [f"left out: {what}."]


def test_pictures_that_differ_in_their_suffix_alone_are_two(tmp_path):
    source = opened(tmp_path, files=("a.jpg", "a.png"))
    assert source.names == ["set/a.jpg", "set/a.png"]
    assert source[1].masks.sum() == 300


def test_a_single_polygon_needs_no_list_around_it(tmp_path):
    assert first_mask(tmp_path, SQUARE).sum() == 300


def test_a_polygon_may_be_a_list_of_points(tmp_path):
    points = np.reshape(SQUARE, (-1, 2)).tolist()
    assert first_mask(tmp_path, points).sum() == 300


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_a_json_of_any_encoding_is_read(tmp_path, encoding):
    folder_of(tmp_path)
    text = (tmp_path / "annotations.json").read_text()
    (tmp_path / "annotations.json").write_bytes(text.encode(encoding))
    assert len(CocoPictures("set", tmp_path, tmp_path / "annotations.json", [])) == 2


# what reaches outside, and what does not


@pytest.mark.parametrize(
    "polygon",
    [
        [-10, 5, 30, -20, 80, 20, 30, 60],
        [-1000, -1000, 2000, -1000, 2000, 2000, -1000, 2000],
        [50.2, 1, 200, 1, 200, 39.9, 50.2, 39.9],
        [-0.5, -0.5, 60.5, -0.5, 60.5, 40.5, -0.5, 40.5],
    ],
)
def test_what_reaches_outside_is_cut_as_the_coco_api_cuts_it(tmp_path, polygon):
    expected = mask_api.decode(mask_api.merge(mask_api.frPyObjects([polygon], 40, 60))).astype(bool)
    assert expected.any()
    assert np.array_equal(first_mask(tmp_path, [polygon]), expected)


# faults


def annotation(**fields):
    return lambda content: content["annotations"][0].update(fields)


def image(**fields):
    return lambda content: content["images"][0].update(fields)


NO_POINTS = "annotation 100 has a polygon that is not x, y"
WRONG = {
    "half a point": (annotation(segmentation=[[1, 1, 5, 5, 7, 7, 9]]), NO_POINTS),
    "text": (annotation(segmentation=[["1", 1, 5, 5, 7, 7]]), NO_POINTS),
    "no number": (annotation(segmentation=[[float("nan"), 1, 5, 5, 7, 7]]), NO_POINTS),
    "a number that no float holds": (annotation(segmentation=[[10**400, 1, 5, 5, 7, 7]]), NO_POINTS),
    "a name": (annotation(segmentation="mask.png"), "annotation 100 has run lengths for a size of None"),
    "far outside": (
        annotation(segmentation=[[1, 1, 1e9, 1, 1e9, 5]]),
        "annotation 100 has a polygon that reaches too far outside its picture",
    ),
    "run lengths of another size": (
        annotation(segmentation={"size": [60, 40], "counts": [2400]}),
        "annotation 100 has run lengths for a size of [60, 40], not [40, 60]",
    ),
    "short run lengths": (
        annotation(segmentation={"size": [40, 60], "counts": [3, 4]}),
        "annotation 100 has run lengths that do not fill its picture",
    ),
    "negative run lengths": (
        annotation(segmentation={"size": [40, 60], "counts": [-1, 2401]}),
        "annotation 100 has run lengths that do not fill its picture",
    ),
    "broken run lengths": (
        annotation(segmentation={"size": [40, 60], "counts": "zz~~"}),
        "annotation 100 has a broken mask (",
    ),
    "no counts": (annotation(segmentation={"size": [40, 60]}), "annotation 100 has no run lengths"),
    "unknown picture": (annotation(image_id=9), "annotation 100 is of picture 9, which is not listed"),
    "no picture": (lambda content: content["annotations"][0].pop("image_id"), "annotation 100 lacks 'image_id'"),
    "truth for a picture": (annotation(image_id=True), "has True as image_id, neither a number nor a name"),
    "picture missing": (image(file_name="c.jpg"), "picture c.jpg is missing in"),
    "picture without a name": (image(file_name=None), "picture None has no file_name"),
    "picture of a negative width": (image(width=-60), "picture a.jpg has -60 x 40 pixels"),
    "picture of half a pixel": (image(width=59.5), "picture a.jpg has 59.5 x 40 pixels"),
    "picture as large as a bomb": (image(width=10**9), "picture a.jpg has 1000000000 x 40 pixels"),
    "picture twice": (image(file_name="b.jpg"), "picture b.jpg is listed twice"),
    "an id twice": (image(id=1), "picture b.jpg has the id 1, which another has"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_wrong_entry_is_named_and_may_be_left_out(tmp_path, kind):
    spoil, expected = WRONG[kind]
    content = coco_json(["a.jpg", "b.jpg"])
    spoil(content)
    folder_of(tmp_path, content)
    message = refusal(sources.open_data, [tmp_path])
    assert f"{tmp_path / 'annotations.json'}: " in message
    assert expected in message
    found = []
    source = CocoPictures("set", tmp_path, tmp_path / "annotations.json", found)
    assert any(expected in finding.text for finding in found if finding.severity == "fault")
    assert len(source) == 1


def test_all_faults_are_told_at_once(tmp_path):
    content = coco_json(["a.jpg", "b.jpg", "c.jpg"])
    for entry in content["annotations"][:2]:
        entry["segmentation"] = "mask.png"
    content["images"][2]["file_name"] = "d.jpg"
    folder_of(tmp_path, content)
    message = refusal(sources.open_data, [tmp_path])
    for name in ("annotation 100", "annotation 101", "picture d.jpg"):
        assert name in message


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"images": [', "is no JSON, or cut short"),
        ("\xff", "is no JSON"),
        ("[" * 100_000, "is no JSON"),
        ("[]", "is no COCO json, which holds the lists images and annotations"),
        ('{"images": [], "annotations": {}}', "is no COCO json"),
        ('{"images": [1], "annotations": []}', "is no COCO json"),
    ],
)
def test_a_file_that_is_no_coco_json_is_refused(tmp_path, text, expected):
    folder_of(tmp_path, text)
    message = refusal(CocoPictures, "set", tmp_path, tmp_path / "annotations.json", [])
    assert message.startswith(f"{tmp_path / 'annotations.json'}: ")
    assert expected in message


def test_a_json_without_an_object_is_refused_with_what_it_has(tmp_path):
    folder_of(tmp_path, with_segmentation([]) | {"annotations": []})
    with pytest.warns(InputWarning, match="has no object; it is left out .2 such in"):
        assert "holds no picture with an object" in refusal(sources.open_data, [tmp_path])


def test_a_missing_file_is_refused(tmp_path):
    message = refusal(CocoPictures, "set", tmp_path, tmp_path / "no.json", [])
    assert message == f"{tmp_path / 'no.json'}: cannot be read (No such file or directory)."


def test_a_picture_of_another_size_is_named_by_the_check_and_when_it_is_read(tmp_path):
    source = opened(tmp_path)
    save(tmp_path / "images" / "b.jpg", ramp(60, 40))
    expected = f"{tmp_path / 'images' / 'b.jpg'}: is 40 x 60 pixels, and 60 x 40 in {tmp_path / 'annotations.json'}"
    found = []
    source.check(found)
    assert [finding.kind for finding in found] == ["size"]
    assert found[0].line.startswith(expected)
    assert refusal(source.__getitem__, 1).startswith(expected)
    (tmp_path / "images" / "b.jpg").write_bytes(b"text")
    source.check(found)
    assert "b.jpg: cannot be read" in found[1].line


@pytest.mark.parametrize("orientation", range(2, 9))
def test_a_json_of_the_picture_as_it_is_stored_is_refused_or_said_to_be_doubtful(tmp_path, orientation):
    source = opened(tmp_path, files=("a.jpg",))
    save(tmp_path / "images" / "a.jpg", ramp(40, 60), exif=exif(orientation))
    found = []
    source.check(found)
    assert [finding.kind for finding in found] == ["size" if orientation >= 5 else "turned"]


# average precision


@pytest.mark.parametrize("spoil", [annotation(category_id=4), annotation(category_id="thing"), image(id="a")])
def test_detection_needs_numbered_categories_and_pictures(tmp_path, spoil):
    content = coco_json(["a.jpg", "b.jpg"])
    spoil(content)
    if content["images"][0]["id"] == "a":
        content["annotations"][0]["image_id"] = "a"
    source = opened(tmp_path, content)
    found = []
    source.check_for_detection(found)
    assert [finding.kind for finding in found] == ["mask"]


@pytest.mark.slow
def test_memory_does_not_grow_with_the_text_of_a_large_json(tmp_path):
    """A polygon of 2,000 numbers takes 64 kB as Python's floats, and less than 200 bytes as run lengths."""
    content = coco_json(["a.jpg"])
    angles = np.linspace(0, 2 * np.pi, 1000, endpoint=False)
    circle = np.stack([30 + 15 * np.cos(angles), 20 + 15 * np.sin(angles)], axis=-1).ravel().tolist()
    content["annotations"] = [
        content["annotations"][0] | {"id": number, "segmentation": [[x + number % 7 for x in circle]]}
        for number in range(300)
    ]
    folder_of(tmp_path, content, ("a.jpg",))
    del content
    tracemalloc.start()
    source = CocoPictures("set", tmp_path, tmp_path / "annotations.json", [])
    kept, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    size = (tmp_path / "annotations.json").stat().st_size
    assert kept < 300 * 1000
    assert peak < 3.5 * size  # bytes and text of the file at once, and 8 bytes for each number
    assert len(source.objects(0)) == 300


def test_shared_files_give_the_masks_of_the_coco_api(shared):
    folder = shared / "data" / "hq" / "carparts"
    source = CocoPictures("carparts", folder, folder / "annotations.json", [])
    content = json.loads((folder / "annotations.json").read_text())
    entries = {entry["id"]: copy.deepcopy(entry) for entry in content["annotations"]}
    seen = 0
    for index in range(0, len(source), 5):
        labelled = source[index]
        height, width = labelled.picture.shape[:2]
        for number, mask in zip(labelled.numbers, labelled.masks, strict=True):
            polygons = mask_api.frPyObjects(entries[number]["segmentation"], height, width)
            assert np.array_equal(mask, mask_api.decode(mask_api.merge(polygons)).astype(bool))
            seen += 1
    assert seen > 50
