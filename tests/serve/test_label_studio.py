"""Label Studio's requests are answered by brush regions that hold the predictor's masks."""

import numpy as np
import pytest

from serve.label_studio import prompt_of, read_config, two_digits
from serve.origins import Origins
from stablesam_jax.data import brush
from stablesam_jax.errors import InputError
from tests.serve.conftest import connect, in_base64, png

CONFIG = """<View>
  <!-- smart tools -->
  <Image name="image" value="$image" zoom="true"/>
  <BrushLabels name="tag" toName="image"><Label value="Cat"/><Label value="Dog" background="#D4380D"/></BrushLabels>
  <KeyPointLabels name="tag2" toName="image" smart="true"><Label value="Cat" smart="true"/></KeyPointLabels>
  <RectangleLabels name="tag3" toName="image" smart="true"><Label value="Dog" smart="true"/></RectangleLabels>
</View>"""


def region(kind, value, label="Dog", **more):
    """A region of `params.context.result`, as the editor sends it."""
    return {
        "original_width": 60,
        "original_height": 40,
        "image_rotation": 0,
        "value": {"x": 0, "y": 0, "width": 0.5, "height": 0.8, "rotation": 0, kind: [label]} | value,
        "id": "Kq2Xk3lB9c",
        "from_name": "tag3",
        "to_name": "image",
        "type": kind,
        "origin": "manual",
        **more,
    }


BOX = region("rectanglelabels", {"x": 20, "y": 10, "width": 50, "height": 75})  # 12, 4, 42, 34 in pixels
CLICK = region("keypointlabels", {"x": 50, "y": 50}, label="Cat", is_positive=True)
OTHER = region("keypointlabels", {"x": 90, "y": 90}, label="Cat", is_positive=0)


def request(image, *regions):
    """A request of Label Studio for one task."""
    return {
        "tasks": [{"id": 7, "data": {"image": image}, "annotations": [], "predictions": [], "project": 3}],
        "model_version": None,
        "project": "3.1764460800",
        "label_config": CONFIG,
        "params": {"login": None, "password": None, "context": {"result": list(regions), "annotation_id": 5}},
    }


@pytest.fixture
def ask(service, tmp_path):
    """Sends a request for a picture in the folder of Label Studio's local files."""
    content, pixels = png()
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "a b.png").write_bytes(content)
    client = connect(service, Origins(folder=tmp_path))

    def ask(*regions):
        answer = client.post("/predict", json=request("/data/local-files/?d=set/a%20b.png", *regions))
        return answer, pixels

    return ask


def only_region(answer):
    assert answer.status_code == 200, answer.text
    (prediction,) = answer.json()["results"]
    (one,) = prediction["result"]
    assert prediction["model_version"] == "small"
    assert prediction["score"] == one["score"]
    return one


@pytest.mark.parametrize(
    ("regions", "prompt", "label"),
    [
        ([BOX], {"box": [12, 4, 42, 34]}, "Dog"),
        ([CLICK], {"point_coords": [[30, 20]], "point_labels": [1]}, "Cat"),
        (
            [BOX, CLICK, OTHER],
            {"box": [12, 4, 42, 34], "point_coords": [[30, 20], [54, 36]], "point_labels": [1, 0]},
            "Cat",
        ),
    ],
    ids=["box", "click", "both"],
)
def test_a_region_holds_the_mask_of_the_predictor(ask, expected, regions, prompt, label):
    answer, pixels = ask(*regions)
    one = only_region(answer)
    truth = expected(pixels, **prompt)
    np.testing.assert_array_equal(brush.decode(one["value"]["rle"], (40, 60)), truth.mask)
    assert one["score"] == pytest.approx(truth.iou_prediction)
    review = ", needs review" if truth.needs_review else ""
    assert one["meta"] == {"text": [f"stability {two_digits(truth.stability)}{review}"]}
    assert (one["from_name"], one["to_name"], one["type"]) == ("tag", "image", "brushlabels")
    assert (one["original_width"], one["original_height"], one["image_rotation"]) == (60, 40, 0)
    assert one["value"]["format"] == "rle"
    assert one["value"]["brushlabels"] == [label]


def test_a_stability_below_the_limit_of_review_is_not_shown_as_the_limit():
    assert [two_digits(one) for one in (0.919, 0.92, 1.0, 0.0)] == ["0.91", "0.92", "1.00", "0.00"]


def test_tasks_without_a_prompt_have_empty_predictions(client):
    for params in ({}, None, {"context": None}, {"context": {"result": []}}):
        answer = client.post("/predict", json={"tasks": [{"data": {"image": "a"}}] * 2, "params": params}).json()
        empty = {"result": [], "score": 0.0, "model_version": "small"}
        assert answer == {"results": [empty] * 2, "model_version": "small"}


def test_setup_tells_the_version_and_events_are_accepted(client):
    sent = {"project": "3.1", "schema": CONFIG, "hostname": "http://localhost:8080", "access_token": "x"}
    assert client.post("/setup", json=sent).json() == {"model_version": "small"}
    assert client.post("/webhook", json={"action": "ANNOTATION_CREATED"}).status_code == 201
    assert client.get("/health").json()["status"] == "UP"


def test_a_region_on_a_picture_of_another_size_is_refused(ask):
    answer, _ = ask(BOX | {"original_width": 61})
    assert answer.status_code == 400
    assert answer.json() == {
        "error": "the region is on a picture of 61 x 40 pixels, the task's has 60 x 40; reload the task."
    }


@pytest.mark.parametrize(
    ("change", "status", "line"),
    [
        ({"label_config": "<View>"}, 400, "label_config is not XML; send that of the project."),
        ({"label_config": "<View/>"}, 400, "label_config has no BrushLabels with labels over an Image;"),
        ({"label_config": '<!DOCTYPE a [<!ENTITY b "c">]><a>&b;</a>'}, 400, "declares entities or a document type"),
        ({"label_config": CONFIG.replace("$image", "$picture")}, 400, "tasks[0].data lacks picture, which the Image"),
        ({"tasks": []}, 400, "params.context is of one task, but 0 are given; send that one."),
        ({"tasks": [{"data": {"image": "http://127.0.0.1:1/a.png"}}]}, 403, "pictures of this host are not allowed"),
        ({"tasks": [{"data": {"image": "../x.png"}}]}, 403, "pictures by path are not allowed here"),
        ({"tasks": [{}]}, 400, "tasks[0] lacks data."),
    ],
)
def test_a_mistake_is_one_line_and_a_status(client, change, status, line):
    answer = client.post("/predict", json=request(f"data:image/png;base64,{in_base64(png()[0])}", BOX) | change)
    assert answer.status_code == status
    assert line in answer.json()["error"]


def test_a_region_without_its_values_is_refused(ask):
    broken = BOX | {"value": {"x": 1, "y": 2, "width": 3}}
    assert ask(broken)[0].status_code == 400
    assert ask({name: BOX[name] for name in ("type", "value")})[0].status_code == 400
    assert ask(region("rectanglelabels", {"x": "1"}))[0].status_code == 400


def test_a_rotated_box_becomes_the_upright_one_around_it():
    turned = region("rectanglelabels", {"x": 50, "y": 25, "width": 20, "height": 10, "rotation": 90})
    assert prompt_of([turned], 100, 200).box == pytest.approx((30, 50, 50, 70))  # 20 wide, 20 high at (50, 50)
    assert prompt_of([BOX], 60, 40).box == pytest.approx((12, 4, 42, 34))


def test_a_brush_over_no_picture_is_refused():
    with pytest.raises(InputError, match="no BrushLabels"):
        read_config('<View><BrushLabels name="a" toName="b"><Label value="c"/></BrushLabels></View>')
    tags = read_config(CONFIG)
    assert (tags.brush, tags.image, tags.data, tags.labels) == ("tag", "image", "image", ("Cat", "Dog"))
