"""QuPath's extension gets GeoJSON features, whose outlines fill to the predictor's masks."""

import cv2
import numpy as np
import pytest

from stablesam_jax.predict.mask_generator import MaskGenerator
from stablesam_jax.version import __version__
from tests.serve.conftest import in_base64, png

CONTENT, PIXELS = png(5)
BOX = {"type": "vit_l", "bbox": [10, 5, 45, 35], "multimask_output": False}  # as SAMPromptParameters.java


def fill(feature):
    """The mask that a polygon's pixel centres are the edge of."""
    (ring,) = feature["geometry"]["coordinates"]
    assert ring[0] == ring[-1]
    mask = np.zeros(PIXELS.shape[:2], np.uint8)
    cv2.fillPoly(mask, [np.array(ring)], 1)
    return mask.astype(bool)


def largest(mask):
    """The largest region of a mask, without holes."""
    found, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    filled = np.zeros(mask.shape, np.uint8)
    cv2.drawContours(filled, [max(found, key=cv2.contourArea)], -1, 1, cv2.FILLED)
    return filled.astype(bool)


@pytest.mark.parametrize(
    ("sent", "prompt"),
    [
        (BOX, {"box": [10, 5, 45, 35]}),
        (
            {"type": "vit_t", "point_coords": [[4, 4], [30, 20]], "point_labels": [0, 1], "checkpoint_url": None},
            {"point_coords": [[4, 4], [30, 20]], "point_labels": [0, 1]},
        ),
    ],
    ids=["box", "points"],
)
def test_a_feature_is_the_outline_of_the_mask(client, expected, sent, prompt):
    (feature,) = client.post("/sam/", json=sent | {"b64img": in_base64(CONTENT)}).json()
    truth = expected(PIXELS, **prompt)
    np.testing.assert_array_equal(fill(feature), largest(truth.mask))
    assert feature["type"] == "Feature"
    assert feature["properties"] == {
        "label": "object",
        "quality": pytest.approx(truth.iou_prediction),
        "stability": pytest.approx(truth.stability),
        "object_idx": 0,
        "sam_model": "small",
    }


def test_each_of_several_masks_has_its_own_quality(client, predictor):
    features = client.post("/sam/", json=BOX | {"b64img": in_base64(CONTENT), "multimask_output": True}).json()
    masks, ious, _ = predictor.predict(box=BOX["bbox"], picture=predictor.encode(PIXELS))
    assert [one["properties"]["quality"] for one in features] == pytest.approx(ious.tolist())
    for feature, mask in zip(features, masks, strict=True):
        np.testing.assert_array_equal(fill(feature), largest(mask))


@pytest.mark.slow
def test_automatic_masks_are_the_generator_s(client, predictor):
    options = {"points_per_side": 2, "pred_iou_thresh": 0.0, "stability_score_thresh": 0.0, "box_nms_thresh": 0.9}
    features = client.post("/sam/automask/", json=options | {"type": "vit_h", "b64img": in_base64(CONTENT)}).json()
    records = MaskGenerator(predictor.sam, dict(predictor.params), **options).generate(PIXELS)
    drawn = [one for one in records if one["area"] > 8]
    assert len(drawn) >= 2
    qualities = [one["properties"]["quality"] for one in features]
    assert [one["predicted_iou"] for one in drawn] == pytest.approx(qualities)
    np.testing.assert_array_equal(fill(features[0]), largest(drawn[0]["segmentation"]))


def test_version_and_weights(client):
    assert client.get("/sam/version/").text == __version__
    weights = client.get("/sam/weights/?type=vit_b").json()
    assert {"type": "vit_b", "name": "default", "url": "small"} in weights


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"bbox": None}, "no prompt is given; give a box or points."),
        ({"b64mask": "QQ=="}, "b64mask is not supported; send a box or points."),
        ({"point_labels": [1]}, "0 points have 1 labels; give a label for each."),
        ({"bbox": [1, 2, 3]}, "bbox"),
        ({"b64img": "QQ=="}, "the picture: cannot be read (not a picture); replace the file."),
    ],
)
def test_a_mistake_is_one_line_and_status_400(client, change, line):
    answer = client.post("/sam/", json=BOX | {"b64img": in_base64(CONTENT)} | change)
    assert answer.status_code == 400
    assert answer.json()["error"].startswith(line)


def test_a_grid_of_a_million_points_is_refused(client):
    answer = client.post("/sam/automask/", json={"points_per_side": 1000, "b64img": in_base64(CONTENT)})
    assert answer.json() == {"error": "points_per_side is 1000; expected at most 64."}
