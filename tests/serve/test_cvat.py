"""CVAT gets the predictor's mask: from the server, from the server in Nuclio's place, and from a function of Nuclio."""

import functools
import json
import pathlib
import types

import numpy as np
import pytest
import yaml

from serve import cvat
from serve.nuclio import main
from stablesam_jax.predict.predictor import Predictor
from tests.reference import small
from tests.serve.conftest import SLOTS, in_base64, png

YAML = pathlib.Path(cvat.__file__).parent / "nuclio" / "function.yaml"
CONTENT, PIXELS = png(3)


def request(**change):
    """What CVAT's server sends for an interactor (`LambdaFunction.invoke`)."""
    return {"image": in_base64(CONTENT), "pos_points": [], "neg_points": [], "obj_bbox": None} | change


CASES = [
    (request(pos_points=[[30, 20]]), {"point_coords": [[30, 20]], "point_labels": [1]}),
    (
        request(pos_points=[[30, 20]], neg_points=[[5, 5.5]]),
        {"point_coords": [[30, 20], [5, 5.5]], "point_labels": [1, 0]},
    ),
    (request(obj_bbox=[[45, 5], [10, 35]]), {"box": [10, 5, 45, 35]}),  # drawn from the right
    (
        request(obj_bbox=[[10, 5], [45, 35]], pos_points=[[30, 20]]),
        {"box": [10, 5, 45, 35], "point_coords": [[30, 20]], "point_labels": [1]},
    ),
]


@pytest.mark.parametrize(("sent", "prompt"), CASES, ids=["click", "two clicks", "box", "box and click"])
@pytest.mark.parametrize("path", ["/cvat", "/api/function_invocations"])
def test_the_mask_is_the_predictor_s(client, expected, path, sent, prompt):
    headers = {"x-nuclio-function-name": "stablesam", "x-nuclio-path": "/", "x-nuclio-project-name": "cvat"}
    answer = client.post(path, json=sent, headers=headers).json()
    truth = expected(PIXELS, **prompt)
    np.testing.assert_array_equal(answer["mask"], truth.mask)
    corners = np.array(answer["points"])
    assert truth.mask[corners[:, 1], corners[:, 0]].all()
    assert answer["predicted_iou"] == pytest.approx(truth.iou_prediction)
    assert answer["stability"] == pytest.approx(truth.stability)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({}, "no prompt is given; give a box or points."),
        ({"pos_points": [[1, 2, 3]]}, "pos_points"),
        ({"obj_bbox": [[1, 2]]}, "obj_bbox"),
        ({"image": "?", "pos_points": [[1, 2]]}, "the picture is not base64; encode the bytes of its file so."),
    ],
)
def test_a_mistake_is_one_line_and_status_400(client, change, line):
    answer = client.post("/cvat", json=request(**change))
    assert answer.status_code == 400
    assert answer.json()["error"].startswith(line)


def test_cvat_finds_the_function_as_in_nuclio(client):
    listed = client.get("/api/functions").json()
    assert listed == {"stablesam": client.get("/api/functions/stablesam").json()}
    told, written = listed["stablesam"], yaml.safe_load(YAML.read_text())
    # What CVAT's LambdaFunction reads: the same from the server as from the file.
    assert told["metadata"]["name"] == written["metadata"]["name"]
    own, others = told["metadata"]["annotations"], written["metadata"]["annotations"]
    for name in ("type", "version", "framework", "min_pos_points", "min_neg_points", "help_message"):
        assert own[name] == str(others[name])
    assert json.loads(own["startswith_box_optional"]) is others["startswith_box_optional"] is True
    assert not own["spec"]
    assert not others["spec"]
    assert told["spec"]["description"] == written["spec"]["description"]
    assert told["status"]["state"] == "ready"
    assert written["spec"]["handler"] == "main:handler"


@pytest.fixture
def context(monkeypatch):
    """Nuclio's context after `init_context`."""
    monkeypatch.setattr(main, "load_model", small.by_name)
    monkeypatch.setattr(main, "Predictor", functools.partial(Predictor, slots=SLOTS))
    monkeypatch.setattr(main.Service, "warm_up", lambda self: setattr(self, "jitters", 3))
    monkeypatch.setenv("STABLESAM_SYSTEM", "a+b")
    context = types.SimpleNamespace(user_data=types.SimpleNamespace(), Response=types.SimpleNamespace)
    main.init_context(context)
    return context


def test_a_function_of_nuclio_answers_alike(context, expected):
    sent, prompt = CASES[0]
    for body in (sent, json.dumps(sent).encode()):  # Nuclio parses JSON by its content type
        answer = main.handler(context, types.SimpleNamespace(body=body))
        assert answer.status_code == 200
        np.testing.assert_array_equal(json.loads(answer.body)["mask"], expected(PIXELS, **prompt).mask)
    refused = main.handler(context, types.SimpleNamespace(body=b"{"))
    assert (refused.status_code, json.loads(refused.body)) == (
        400,
        {"error": "the request is not JSON; send a JSON body in UTF-8."},
    )
