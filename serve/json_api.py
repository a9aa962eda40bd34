"""Our own API: send a picture once, then ask for masks by its digest."""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from serve import forms
from serve.endpoint import Endpoint
from serve.origins import Origins, from_base64
from serve.schemas import BOX, POINT, SHARE, Schema, array, integer, nullable, number, record, text
from serve.service import Prompt, Service
from stablesam_jax.errors import InputError
from stablesam_jax.predict.picture import Picture
from stablesam_jax.version import __version__

CLIENT = "programs"
MOST_JITTERS = 64
DIGEST = text("SHA-256 of a picture's file, from /v1/pictures") | {"pattern": "^[0-9a-f]{64}$"}
SIZE = {"width": integer(1, 10**6), "height": integer(1, 10**6)}


def prompt_fields(service: Service) -> Schema:
    """The fields of a prompt."""
    most = service.limits.max_points
    return {
        "box": BOX,
        "points": array(POINT, 1, most) | {"description": "x, y in pixels of the picture"},
        "labels": array({"enum": [0, 1]}, 1, most) | {"description": "1 on the object, 0 beside it; default: all 1"},
    }


def prompt_of(given: dict[str, Any]) -> Prompt:
    """The prompt of a request with `prompt_fields`."""
    points = given.get("points", [])
    return Prompt(box=given.get("box"), points=points, labels=given.get("labels", [1] * len(points)))


def endpoints(service: Service, origins: Origins) -> list[Endpoint]:
    """The endpoints of this file."""
    named = {"picture": DIGEST, "image": text("base64 of a picture's file"), "url": text("of an allowed host", 4096)}
    options = {
        "form": {"enum": list(forms.FORMS), "description": "of masks; default: rle"},
        "multimask": {"type": "boolean", "description": "three masks, for an ambiguous click, without stability"},
        "jitters": integer(1, MOST_JITTERS, f"slightly different prompts; default: {service.jitters}"),
    }
    mask = record({"predicted_iou": number(-1, 2), "area": integer(0, 10**9), "box": nullable(BOX)}, forms.SCHEMAS)
    model = {"model": text(), "version": text(), "plugin": {"type": "boolean"}, "image_size": integer(1, 10**5)}
    return [
        Endpoint(
            path="/v1/model",
            method="GET",
            client=CLIENT,
            about="The model that is served.",
            answer=functools.partial(_model, service),
            response=record(model, {"strength": nullable(SHARE)}),
        ),
        Endpoint(
            path="/v1/pictures",
            client=CLIENT,
            about="Encodes a picture; the body is its file (JPEG, PNG, TIFF, WebP, ...).",
            answer=lambda body: described(*service.pictures.add(body)),
            takes_file=True,
            response=record({"picture": DIGEST, **SIZE}),
        ),
        Endpoint(
            path="/v1/masks",
            client=CLIENT,
            about="The mask of a box, of points, or of both, and its stability.",
            answer=_masks(service, origins),
            request=record({}, named | prompt_fields(service) | options),
            response=record(
                {"picture": DIGEST, **SIZE, "masks": array(mask, 1, 3)},
                {"stability": SHARE, "needs_review": {"type": "boolean"}},
            ),
        ),
    ]


def described(key: str, picture: Picture) -> dict[str, Any]:
    """The digest and the size of a picture."""
    height, width = picture.original_size
    return {"picture": key, "width": width, "height": height}


def _model(service: Service, _: None) -> dict[str, Any]:
    config = service.predictor.sam.config
    return {
        "model": service.name,
        "version": __version__,
        "plugin": config.plugin is not None,
        "strength": service.strength,
        "image_size": config.image_size,
    }


def _masks(service: Service, origins: Origins) -> Callable[[dict[str, Any]], dict[str, Any]]:
    def answer(given: dict[str, Any]) -> dict[str, Any]:
        prompt = prompt_of(given)
        _ = prompt.arguments  # refused before a picture is fetched and encoded
        key, picture = _picture(service, origins, given)
        form = given.get("form", "rle")
        if given.get("multimask", False):
            masks = [_mask(*one, form) for one in service.three_masks(picture, prompt)]
            return described(key, picture) | {"masks": masks}
        found = service.stable_mask(picture, prompt, given.get("jitters"))
        return described(key, picture) | {
            "masks": [_mask(found.mask, found.iou_prediction, form)],
            "stability": found.stability,
            "needs_review": found.needs_review,
        }

    return answer


def _picture(service: Service, origins: Origins, given: dict[str, Any]) -> tuple[str, Picture]:
    """The picture that a request names in one of three ways."""
    if len(named := [way for way in ("picture", "image", "url") if way in given]) != 1:
        raise InputError(f"{len(named)} pictures are named; give one of picture, image and url.")
    if "picture" in given:
        return given["picture"], service.pictures.held(given["picture"])
    return service.pictures.add(from_base64(given["image"]) if "image" in given else origins.read(given["url"]))


def _mask(mask: np.ndarray, predicted_iou: float, form: forms.Form) -> dict[str, Any]:
    return {
        "predicted_iou": float(predicted_iou),
        "area": int(mask.sum()),
        "box": forms.xyxy(mask),
        form: forms.write(mask, form),
    }
