"""A picture is sent once; masks of prompts on it are the predictor's, in three forms."""

import base64
import io

import jsonschema
import numpy as np
import pytest
from faster_coco_eval.core import mask as mask_api
from PIL import Image

from serve import forms
from serve.origins import Origins
from stablesam_jax.data import rle
from tests.serve.conftest import connect, in_base64, png

BOX = [10, 5, 45, 35]


def mask_of(answer):
    (one,) = answer["masks"]
    lengths = one["rle"]
    return mask_api.decode({"size": lengths["size"], "counts": lengths["counts"]}).astype(bool)


def test_a_picture_is_sent_once_and_prompted_by_its_digest(client, expected):
    content, pixels = png()
    sent = client.post("/v1/pictures", content=content).json()
    assert (sent["width"], sent["height"]) == (60, 40)
    answer = client.post("/v1/masks", json={"picture": sent["picture"], "box": BOX}).json()
    truth = expected(pixels, box=BOX)
    np.testing.assert_array_equal(mask_of(answer), truth.mask)
    assert answer["masks"][0]["predicted_iou"] == pytest.approx(truth.iou_prediction)
    assert answer["masks"][0]["area"] == truth.mask.sum()
    assert answer["stability"] == pytest.approx(truth.stability)
    assert answer["needs_review"] == truth.needs_review


def test_points_are_positive_unless_labelled(client, expected):
    content, pixels = png(1)
    points = {"points": [[20, 20], [50, 10]]}
    both = client.post("/v1/masks", json={"image": in_base64(content)} | points).json()
    truth = expected(pixels, point_coords=np.array(points["points"]), point_labels=np.array([1, 1]))
    np.testing.assert_array_equal(mask_of(both), truth.mask)
    second = client.post("/v1/masks", json={"image": in_base64(content), "labels": [1, 0]} | points).json()
    truth = expected(pixels, point_coords=np.array(points["points"]), point_labels=np.array([1, 0]))
    np.testing.assert_array_equal(mask_of(second), truth.mask)


def test_the_forms_are_of_one_mask(client):
    request = {"image": in_base64(png()[0]), "box": BOX}
    found = {form: client.post("/v1/masks", json=request | {"form": form}).json() for form in forms.FORMS}
    mask = mask_of(found["rle"])
    drawn = np.asarray(Image.open(io.BytesIO(base64.b64decode(found["png"]["masks"][0]["png"]))))
    np.testing.assert_array_equal(drawn == 255, mask)
    corners = np.reshape(found["polygons"]["masks"][0]["polygons"][0], (-1, 2))
    assert mask[corners[:, 1], corners[:, 0]].all()
    rows, columns = np.nonzero(mask)
    assert found["rle"]["masks"][0]["box"] == [columns.min(), rows.min(), columns.max(), rows.max()]


def test_an_ambiguous_click_has_three_masks(client, predictor):
    content, pixels = png()
    answer = client.post(
        "/v1/masks", json={"image": in_base64(content), "points": [[30, 20]], "multimask": True}
    ).json()
    masks, ious, _ = predictor.predict([[30, 20]], [1], picture=predictor.encode(pixels))
    assert [one["predicted_iou"] for one in answer["masks"]] == pytest.approx(ious.tolist())
    assert [one["area"] for one in answer["masks"]] == masks.sum(axis=(1, 2)).tolist()
    assert "stability" not in answer


def test_a_url_of_a_file_below_the_folder_is_read(service, tmp_path):
    (tmp_path / "a.png").write_bytes(png(2)[0])
    client = connect(service, Origins(folder=tmp_path))
    answer = client.post("/v1/masks", json={"url": "a.png", "box": BOX})
    assert answer.status_code == 200
    assert answer.json()["width"] == 60


@pytest.mark.parametrize(
    ("request_", "status", "line"),
    [
        ({"box": BOX}, 400, "0 pictures are named; give one of picture, image and url."),
        ({"image": "QQ==", "url": "a", "box": BOX}, 400, "2 pictures are named; give one of picture, image and url."),
        ({"image": "QQ=="}, 400, "no prompt is given; give a box or points."),
        ({"image": "QQ==", "box": BOX}, 400, "the picture: cannot be read (not a picture); replace the file."),
        ({"image": "?", "box": BOX}, 400, "the picture is not base64; encode the bytes of its file so."),
        ({"picture": "0" * 64, "box": BOX}, 404, "is not held here, or no longer; send the picture again."),
        ({"image": in_base64(png()[0]), "box": [40, 5, 10, 35]}, 400, "is inverted; give (x0, y0, x1, y1)"),
        ({"image": in_base64(png()[0]), "box": [400, 5, 500, 35]}, 400, "lies outside the picture of 60 x 40 pixels"),
        ({"image": in_base64(png()[0]), "points": [[1, 1]], "labels": [1, 0]}, 400, "1 points have 2 labels"),
        ({"image": in_base64(png()[0]), "points": [[1, 1]] * 5}, 400, "points has 5 items; expected at most 4."),
        ({"image": in_base64(png()[0]), "points": [[1, "x"]]}, 400, 'points[0][1] is "x"; expected number.'),
        ({"image": in_base64(png()[0]), "box": BOX, "boxes": 1}, 400, "the request has boxes, which is unknown;"),
        ({"image": in_base64(png(size_hw=(200, 60))[0]), "box": BOX}, 400, "more than the 10000 that are allowed"),
        ([], 400, "the request is []; expected object."),
    ],
)
def test_a_mistake_is_one_line_and_a_status(client, request_, status, line):
    answer = client.post("/v1/masks", json=request_)
    assert answer.status_code == status
    (message,) = answer.json().values()
    assert line in message
    assert "\n" not in message


def test_items_of_a_list_that_is_too_long_are_not_looked_at(client, monkeypatch):
    def looked_at(*_):
        pytest.fail("an item is looked at")

    monkeypatch.setitem(jsonschema.Draft202012Validator.VALIDATORS, "items", looked_at)
    answer = client.post("/v1/masks", json={"picture": "0" * 64, "points": [[1, "x"]] * 5})
    assert answer.json()["error"] == "points has 5 items; expected at most 4."


def test_a_whole_number_may_have_a_point(client):
    request = {"image": in_base64(png()[0]), "box": BOX, "jitters": 2.0}
    assert client.post("/v1/masks", json=request).status_code == 200
    assert client.post("/v1/masks", json=request | {"jitters": 2.5}).status_code == 400


def test_what_is_no_json_is_refused(client):
    for body in (b"", b"{", b'{"box": NaN}', b"[" * 100_000, b"\xff", b'{"box": [1e999, 1, 2, 3]}'):
        answer = client.post("/v1/masks", content=body)
        assert answer.status_code == 400
        assert set(answer.json()) == {"error"}


def test_the_model_tells_what_it_is(client, predictor):
    told = client.get("/v1/model").json()
    assert told["model"] == "small"
    assert told["plugin"]
    assert told["strength"] == predictor.sam.config.plugin.strength
    assert client.get("/health").json() == {"status": "UP", "model": "small"}


def test_compressed_run_lengths_are_those_of_the_library():
    mask = np.random.default_rng(0).random((7, 9)) > 0.5
    assert forms.write(mask, "rle") == rle.compress(rle.encode(mask))
