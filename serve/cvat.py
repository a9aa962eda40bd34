"""CVAT's interactor: the answer of its serverless function, and Nuclio's dashboard as far as CVAT calls it.

CVAT lists functions at /api/functions and calls one at /api/function_invocations (cvat, `lambda_manager/views.py`), so
a CVAT whose CVAT_NUCLIO_HOST and CVAT_NUCLIO_PORT name this server needs no Nuclio. `nuclio/` has a function for one.
"""

import functools
from typing import Any

from serve import forms
from serve.endpoint import Endpoint
from serve.origins import from_base64
from serve.schemas import ANY, POINT, SHARE, Schema, array, number, record, text
from serve.service import Prompt, Service

CLIENT = "CVAT"
FUNCTION = "stablesam"


def request_schema(service: Service) -> Schema:
    """What CVAT sends."""
    points = array(POINT, most=service.limits.max_points)
    return record(
        {"image": text("base64 of a picture's file")},
        {
            "pos_points": {"anyOf": [points, {"type": "null"}]},
            "neg_points": {"anyOf": [points, {"type": "null"}]},
            "obj_bbox": {"anyOf": [array(POINT, 2, 2), array(POINT, 0, 0), {"type": "null"}]},
        },
        more=True,
    )


def endpoints(service: Service) -> list[Endpoint]:
    """The endpoints of this file."""
    request = request_schema(service)
    row = array({"enum": [0, 1]})
    response = record({"points": array(POINT), "mask": array(row), "predicted_iou": number(-1, 2), "stability": SHARE})
    call = Endpoint(
        path="/cvat",
        client=CLIENT,
        about="The mask and its largest outline for positive and negative points, and a box.",
        answer=functools.partial(interact, service),
        request=request,
        response=response,
    )
    return [
        call,
        Endpoint(
            path="/api/function_invocations",
            client=CLIENT,
            about="The same, where CVAT calls a function by Nuclio's dashboard.",
            answer=call.answer,
            request=request,
            response=response,
        ),
        Endpoint(
            path="/api/functions",
            method="GET",
            client=CLIENT,
            about="The list of functions of Nuclio's dashboard.",
            answer=lambda _: {FUNCTION: function(service.name)},
            response=ANY,
        ),
        Endpoint(
            path=f"/api/functions/{FUNCTION}",
            method="GET",
            client=CLIENT,
            about="The function of that list.",
            answer=lambda _: function(service.name),
            response=ANY,
        ),
    ]


def interact(service: Service, given: dict[str, Any]) -> dict[str, Any]:
    """The answer to a request of CVAT; raises InputError for a malformed one."""
    positive, negative = given.get("pos_points") or [], given.get("neg_points") or []
    corners = given.get("obj_bbox") or None
    prompt = Prompt(
        # CVAT sends the corners in the order in which they were drawn.
        box=None if corners is None else [*map(min, *corners), *map(max, *corners)],
        points=positive + negative,
        labels=[1] * len(positive) + [0] * len(negative),
    )
    _ = prompt.arguments  # refused before the picture is encoded
    _, picture = service.pictures.add(from_base64(given["image"]))
    found = service.stable_mask(picture, prompt)
    outlines = forms.outlines(found.mask)
    return {
        "points": outlines[0] if outlines else [],
        "mask": found.mask.astype(int).tolist(),
        "predicted_iou": found.iou_prediction,
        "stability": found.stability,
    }


def function(name: str) -> dict[str, Any]:
    """What CVAT reads of a function, of `nuclio/function.yaml` and of its state."""
    return {
        "metadata": {
            "name": FUNCTION,
            "namespace": "cvat",
            "annotations": {
                "name": f"Stable SAM ({name})",
                "version": "2",
                "type": "interactor",
                "framework": "jax",
                "spec": "",
                "min_pos_points": "0",
                "min_neg_points": "0",
                "startswith_box_optional": "true",
                "help_message": "Draw a box, click on the object, or both; further clicks correct the mask",
            },
        },
        "spec": {"description": "Masks that stay the same under sloppy boxes and clicks"},
        "status": {"state": "ready", "httpPort": 0},
    }
