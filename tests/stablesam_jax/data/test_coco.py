"""COCO files: masks are those of pycocotools, and what is wrong in a file is named."""

import copy
import json
import pickle

import numpy as np
import pytest
from faster_coco_eval.core import mask as mask_api

from stablesam_jax.data import rle
from stablesam_jax.data.coco import CocoPictures
from tests.reference.layouts import coco_json
from tests.reference.pictures import disc, ramp, refusal, save


def folder_of(tmp_path, content=None, files=("a.jpg", "b.jpg")):
    for file in files:
        save(tmp_path / "images" / file, ramp(40, 60))
    content = coco_json(list(files)) if content is None else content
    (tmp_path / "annotations.json").write_text(content if isinstance(content, str) else json.dumps(content))
    return "set", tmp_path / "images", tmp_path / "annotations.json"


def with_segmentation(segmentation, **fields):
    content = coco_json(["a.jpg", "b.jpg"])
    content["annotations"][0] |= {"segmentation": segmentation, **fields}
    return content


def first_mask(tmp_path, segmentation):
    return CocoPictures(*folder_of(tmp_path, with_segmentation(segmentation)))[0].masks[0]


def test_a_square_covers_the_pixels_between_its_corners(tmp_path):
    expected = np.zeros((40, 60), bool)
    expected[10:25, 10:30] = True
    assert np.array_equal(CocoPictures(*folder_of(tmp_path))[0].masks, expected[None])


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


def test_a_mask_that_begins_with_an_object_survives_its_run_lengths(tmp_path):
    assert np.array_equal(first_mask(tmp_path, rle.encode(~disc())), ~disc())


def test_what_evaluation_needs_is_handed_out_in_the_order_of_the_masks(tmp_path):
    content = coco_json(["a.jpg"])
    (square,) = content["annotations"]
    other = square | {"id": 7, "segmentation": rle.encode(disc()), "bbox": [18.5, 8, 25, 25.25], "area": 440}
    content["annotations"].insert(0, other)
    source = CocoPictures(*folder_of(tmp_path, content))
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
    (entry,) = CocoPictures(*folder_of(tmp_path, content)).objects(0)
    assert (entry.bbox_xywh, entry.area, entry.iscrowd) == ((10, 10, 20, 15), 300, False)


def test_crowds_and_masks_without_a_pixel_are_not_objects(tmp_path):
    content = coco_json(["a.jpg", "b.jpg", "c.jpg"])
    content["annotations"][0]["iscrowd"] = 1
    thin = content["annotations"][1] | {"id": 5, "segmentation": [[3, 3, 3, 3, 3, 3]], "bbox": [3, 3, 0, 0]}
    crowd = content["annotations"][1] | {"id": 6, "iscrowd": 1}
    content["annotations"] += [thin, crowd]
    refused = {}
    source = CocoPictures(*folder_of(tmp_path, content, ("a.jpg", "b.jpg", "c.jpg")), refused)
    assert source.names == ["set/b", "set/c"]
    assert source.image_ids == [1, 2]
    assert [entry.annotation_id for entry in source.objects(0)] == [101]
    assert [entry.annotation_id for entry in source.annotations[0]] == [101, 5, 6]
    assert list(refused) == ["set, annotation 5", "set/a"]
    assert CocoPictures(*folder_of(tmp_path, content, ("a.jpg", "b.jpg", "c.jpg"))).names == source.names


def test_pictures_in_folders_keep_their_path_as_name(tmp_path):
    source = CocoPictures(*folder_of(tmp_path, files=("x/a.jpg", "y/a.jpg")))
    assert source.names == ["set/x/a", "set/y/a"]
    assert source.picture_file(1) == tmp_path / "images" / "y" / "a.jpg"


def test_a_reader_can_be_sent_to_another_process(tmp_path):
    source = pickle.loads(pickle.dumps(CocoPictures(*folder_of(tmp_path))))
    assert source[1].masks.sum() == 300
    with pytest.raises(IndexError):
        source[2]


# faults


def annotation(**fields):
    return lambda content: content["annotations"][0].update(fields)


def image(**fields):
    return lambda content: content["images"][0].update(fields)


WRONG = {
    "a line": (annotation(segmentation=[[1, 1, 5, 5]]), "annotation 100 has a polygon of 2 points, fewer than 3"),
    "half a point": (annotation(segmentation=[[1, 1, 5, 5, 7, 7, 9]]), "annotation 100 has a polygon that is not x, y"),
    "text": (annotation(segmentation=[["1", 1, 5, 5, 7, 7]]), "annotation 100 has a polygon that is not x, y"),
    "nothing": (annotation(segmentation=[]), "annotation 100 has no segmentation; a box alone is no mask"),
    "polygon outside": (
        annotation(segmentation=[[1, 1, 63, 1, 63, 5]]),
        "annotation 100 has a polygon that reaches outside its picture of 60 x 40 pixels",
    ),
    "box outside": (
        annotation(bbox=[50, 1, 20, 5]),
        "annotation 100 has a box that reaches outside its picture of 60 x 40 pixels",
    ),
    "box of three": (annotation(bbox=[50, 1, 20]), "has the box [50, 1, 20], which is not x, y, width, height"),
    "run lengths of another size": (
        annotation(segmentation={"size": [60, 40], "counts": [2400]}),
        "annotation 100 has run lengths for a size of [60, 40], not [40, 60]",
    ),
    "short run lengths": (
        annotation(segmentation={"size": [40, 60], "counts": [3, 4]}),
        "annotation 100 has run lengths that do not fill its picture",
    ),
    "broken run lengths": (
        annotation(segmentation={"size": [40, 60], "counts": "zz~~"}),
        "annotation 100 has a broken mask (",
    ),
    "no counts": (annotation(segmentation={"size": [40, 60]}), "annotation 100 has no run lengths"),
    "unknown category": (annotation(category_id=4), "annotation 100 is of category 4, which is not listed"),
    "unknown picture": (annotation(image_id=9), "annotation 100 is of picture 9, which is not listed"),
    "an id twice": (annotation(id=101), "annotation 101 has an id that another has"),
    "an id of text": (annotation(id="x"), "annotation x has 'x' as id, not a whole number"),
    "no category": (lambda content: content["annotations"][0].pop("category_id"), "annotation 100 lacks 'category_id'"),
    "picture missing": (image(file_name="c.jpg"), "picture c.jpg is missing in"),
    "picture elsewhere": (image(file_name="../a.jpg"), "picture ../a.jpg has a file_name that is no path below"),
    "picture without width": (lambda content: content["images"][0].pop("width"), "picture a.jpg lacks 'width'"),
    "picture as large as a bomb": (image(width=10**9), "picture a.jpg has 1000000000 x 40 pixels"),
    "picture twice": (image(file_name="b.jpg"), "picture b.jpg is listed twice"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_wrong_entry_is_named_and_may_be_left_out(tmp_path, kind):
    spoil, expected = WRONG[kind]
    content = coco_json(["a.jpg", "b.jpg"])
    spoil(content)
    arguments = folder_of(tmp_path, content)
    message = refusal(CocoPictures, *arguments)
    assert message.startswith(f"{arguments[-1]}: ")
    assert expected in message
    refused = {}
    source = CocoPictures(*arguments, refused)
    assert any(expected in reason for reason in refused.values())
    assert len(source) == 1


def test_all_faults_are_told_at_once(tmp_path):
    content = coco_json(["a.jpg", "b.jpg", "c.jpg"])
    for entry in content["annotations"][:2]:
        entry["segmentation"] = []
    content["images"][2]["file_name"] = "d.jpg"
    message = refusal(CocoPictures, *folder_of(tmp_path, content))
    for name in ("annotation 100", "annotation 101", "picture d.jpg"):
        assert name in message


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"images": [', "is no JSON, or cut short"),
        ("\xff", "is no JSON"),
        ("[]", "is no COCO json, which holds the lists images, annotations, categories"),
        ('{"images": [], "annotations": {}, "categories": []}', "is no COCO json"),
        ('{"images": [], "annotations": [], "categories": [{"id": "a", "name": "x"}]}', "a category lacks a number"),
        ('{"images": [], "annotations": [], "categories": []}', "holds no picture with an object"),
    ],
)
def test_a_file_that_is_no_coco_json_is_refused(tmp_path, text, expected):
    message = refusal(CocoPictures, *folder_of(tmp_path, text))
    assert message.startswith(f"{tmp_path / 'annotations.json'}: ")
    assert expected in message


def test_a_missing_file_is_refused(tmp_path):
    message = refusal(CocoPictures, "set", tmp_path, tmp_path / "no.json")
    assert message == f"{tmp_path / 'no.json'}: cannot be read (No such file or directory)."


def test_a_picture_of_another_size_is_named_by_the_check_and_when_it_is_read(tmp_path):
    arguments = folder_of(tmp_path)
    save(tmp_path / "images" / "b.jpg", ramp(60, 40))
    source = CocoPictures(*arguments)
    expected = f"{tmp_path / 'images' / 'b.jpg'}: the picture is 40 x 60 pixels, {arguments[-1]} says 60 x 40"
    assert refusal(source.check).startswith(expected)
    assert refusal(source.__getitem__, 1).startswith(expected)
    (tmp_path / "images" / "b.jpg").write_bytes(b"text")
    assert "b.jpg: cannot be read" in refusal(source.check)


def test_shared_files_give_the_masks_of_the_coco_api(shared):
    folder = shared / "data" / "hq" / "carparts"
    source = CocoPictures("carparts", folder / "images", folder / "annotations.json")
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
