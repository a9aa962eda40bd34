"""Label Studio's machine learning backend (label-studio-ml-backend, `api.py`): a box or a click gives a brush region.

Coordinates are percent of the picture's sides. The region's score is the predicted IoU; its stability is a line of its
"Info" panel.
"""

import dataclasses
import math
import uuid
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from typing import Any

from serve.endpoint import Endpoint
from serve.origins import Origins
from serve.schemas import ANY, FARTHEST, Schema, array, integer, number, record, text
from serve.service import Prompt, Service
from stablesam_jax.data import brush
from stablesam_jax.errors import InputError, shown

CLIENT = "Label Studio"
POINTS, BOXES = "keypointlabels", "rectanglelabels"
MOST_TASKS = 1000
PERCENT = number(-FARTHEST, FARTHEST)
SIZES = {"original_width": integer(1, FARTHEST), "original_height": integer(1, FARTHEST)}
REGION = record(
    {"type": text(), "value": ANY},
    SIZES | {"is_positive": {"enum": [0, 1, True, False, None]}},
    more=True,
)
SIDES = {"x": PERCENT, "y": PERCENT}
PLACES = {  # of values, by the type of their region
    POINTS: record(SIDES, more=True),
    BOXES: record(SIDES | {"width": PERCENT, "height": PERCENT}, {"rotation": PERCENT}, more=True),
}


@dataclasses.dataclass(frozen=True)
class Tags:
    """Names in a labelling configuration."""

    brush: str  # of BrushLabels
    image: str  # of Image
    data: str  # key of a task's data that names the picture
    labels: tuple[str, ...]


def endpoints(service: Service, origins: Origins) -> list[Endpoint]:
    """The endpoints of this file."""
    context = record({}, {"result": array(REGION | {"allOf": _places()}, most=service.limits.max_points)}, more=True)
    params = record({}, {"context": {"anyOf": [context, {"type": "null"}]}}, more=True)
    predict = record(
        {"tasks": array(record({"data": ANY}, more=True), most=MOST_TASKS)},
        {"label_config": {"type": ["string", "null"]}, "params": {"anyOf": [params, {"type": "null"}]}},
        more=True,
    )
    version = record({"model_version": text()})
    results = record({"results": array(ANY), "model_version": text()})
    return [
        Endpoint(
            path="/setup",
            client=CLIENT,
            about="The version of the model.",
            answer=lambda _: {"model_version": service.name},
            request=ANY,
            response=version,
        ),
        Endpoint(
            path="/predict",
            client=CLIENT,
            about="A brush region for the box and the clicks of params.context; an empty prediction without them.",
            answer=_predict(service, origins),
            request=predict,
            response=results,
        ),
        Endpoint(
            path="/webhook",
            client=CLIENT,
            about="Events of a project; nothing is trained here.",
            answer=lambda _: {"status": "ignored"},
            request=ANY,
            response=record({"status": text()}),
            status=201,
        ),
    ]


def _places() -> list[Schema]:
    """Regions of each type have the values that they need."""
    return [
        {
            "if": {"properties": {"type": {"const": kind}}},
            "then": {"properties": {"value": schema}, "required": list(SIZES)},
        }
        for kind, schema in PLACES.items()
    ]


def _predict(service: Service, origins: Origins) -> Callable[[dict[str, Any]], dict[str, Any]]:
    def answer(given: dict[str, Any]) -> dict[str, Any]:
        tasks = given["tasks"]
        context = (given.get("params") or {}).get("context") or {}
        regions = [one for one in context.get("result", []) if one["type"] in PLACES]
        if not regions:
            return {"results": [_prediction(service, [], 0.0) for _ in tasks], "model_version": service.name}
        if len(tasks) != 1:
            raise InputError(f"params.context is of one task, but {len(tasks)} are given; send that one.")
        tags = read_config(given.get("label_config") or "")
        where = tasks[0]["data"].get(tags.data)
        if not isinstance(where, str):
            raise InputError(f"tasks[0].data lacks {shown(tags.data)[:60]}, which the Image tag of label_config names.")
        size_wh = regions[-1]["original_width"], regions[-1]["original_height"]
        prompt = prompt_of(regions, *size_wh)
        _, picture = service.pictures.add(origins.read(where))
        if picture.original_size != size_wh[::-1]:
            height, width = picture.original_size
            raise InputError(
                f"the region is on a picture of {size_wh[0]} x {size_wh[1]} pixels, the task's has {width} x {height}; "
                "reload the task."
            )
        found = service.stable_mask(picture, prompt)
        review = ", needs review" if found.needs_review else ""
        region = {
            "id": uuid.uuid4().hex[:10],
            "from_name": tags.brush,
            "to_name": tags.image,
            "original_width": size_wh[0],
            "original_height": size_wh[1],
            "image_rotation": 0,
            "type": "brushlabels",
            "value": {"format": "rle", "rle": brush.encode(found.mask), "brushlabels": [label_of(regions, tags)]},
            "score": found.iou_prediction,
            "meta": {"text": [f"stability {two_digits(found.stability)}{review}"]},
            "readonly": False,
        }
        return {
            "results": [_prediction(service, [region], found.iou_prediction)],
            "model_version": service.name,
        }

    return answer


def _prediction(service: Service, regions: list[dict[str, Any]], score: float) -> dict[str, Any]:
    return {"result": regions, "score": score, "model_version": service.name}


def prompt_of(regions: list[dict[str, Any]], width: int, height: int) -> Prompt:
    """The prompt of boxes and clicks in percent; of several boxes the last, which the user has just drawn."""
    box, points, labels = None, [], []
    for region in regions:
        value = region["value"]
        x, y = value["x"] * width / 100, value["y"] * height / 100
        if region["type"] == POINTS:
            positive = region.get("is_positive")
            points.append((x, y))
            labels.append(1 if positive is None else int(positive))
        else:
            box = _around(x, y, value["width"] * width / 100, value["height"] * height / 100, value.get("rotation", 0))
    return Prompt(box=box, points=points, labels=labels)


def _around(x: float, y: float, width: float, height: float, degrees: float) -> tuple[float, float, float, float]:
    """The upright box around one that is rotated clockwise about its first corner."""
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    corners = [(0.0, 0.0), (width, 0.0), (0.0, height), (width, height)]
    xs = [x + cosine * right - sine * down for right, down in corners]
    ys = [y + sine * right + cosine * down for right, down in corners]
    return min(xs), min(ys), max(xs), max(ys)


def label_of(regions: list[dict[str, Any]], tags: Tags) -> str:
    """The label of the last region, if brushes have it; else the first of theirs."""
    chosen = regions[-1]["value"].get(regions[-1]["type"])
    label = chosen[0] if isinstance(chosen, list) and chosen else None
    return label if label in tags.labels else tags.labels[0]


def read_config(config: str) -> Tags:
    """Reads a labelling configuration.

    Raises:
        InputError: it is not XML, or has no BrushLabels over an Image.
    """
    if "<!" in config.replace("<!--", ""):  # entities, by which a short text may expand to gigabytes
        raise InputError("label_config declares entities or a document type; leave them out.")
    try:
        root = ElementTree.fromstring(config)
    except (ElementTree.ParseError, ValueError):
        raise InputError("label_config is not XML; send that of the project.") from None
    images = {tag.get("name"): tag for tag in root.iter("Image")}
    for tag in root.iter("BrushLabels"):
        image = images.get(tag.get("toName"))
        labels = tuple(label.get("value") or "" for label in tag.iter("Label"))
        value = "" if image is None else image.get("value") or ""
        if image is not None and labels and value.startswith("$"):
            return Tags(tag.get("name") or "", image.get("name") or "", value[1:], labels)
    raise InputError("label_config has no BrushLabels with labels over an Image; docs/label-studio.md has one.")


def two_digits(stability: float) -> str:
    """Rounded down, so that 0.919 is not shown as 0.92, the limit of review."""
    return f"{math.floor(100 * stability) / 100:.2f}"
