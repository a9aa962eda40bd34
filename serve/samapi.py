"""samapi, the server of QuPath's SAM extension (ksugar/samapi, `main.py`)."""

import functools
from typing import Any, cast

import numpy as np

from serve import forms
from serve.endpoint import Endpoint
from serve.origins import from_base64
from serve.pictures import read
from serve.schemas import ANY, POINT, SHARE, array, integer, nullable, number, record, text
from serve.service import Prompt, Service
from stablesam_jax.data import rle
from stablesam_jax.errors import InputError
from stablesam_jax.predict.mask_generator import MaskGenerator
from stablesam_jax.version import __version__

CLIENT = "QuPath"
SERVED = "default"  # name of the weights
# Options of automatic masks -> their ranges. A grid of n x n points costs n x n prompts, and so does each crop.
RANGES = {
    "points_per_side": integer(1, 64),
    "points_per_batch": integer(1, 128),
    "pred_iou_thresh": SHARE,
    "stability_score_thresh": SHARE,
    "stability_score_offset": number(0, 100),
    "box_nms_thresh": SHARE,
    "crop_n_layers": integer(0, 1),
    "crop_nms_thresh": SHARE,
    "crop_overlap_ratio": number(0, 0.9),
    "crop_n_points_downscale_factor": integer(1, 8),
    "min_mask_region_area": integer(0, 10**9),
}


def endpoints(service: Service) -> list[Endpoint]:
    """The endpoints of this file."""
    most = service.limits.max_points
    shared = {"type": nullable(text()), "checkpoint_url": nullable(text())}
    image = {"b64img": text("base64 of a picture's file")}
    prompt = {
        "bbox": nullable(array(number(-1e6, 1e6), 4, 4)),
        "point_coords": nullable(array(POINT, most=most)),
        "point_labels": nullable(array({"enum": [0, 1]}, most=most)),
        "b64mask": nullable(text("must be null")),
        "multimask_output": {"type": "boolean"},
    }
    output = {"output_type": text(), "include_image_edge": {"type": "boolean"}}
    return [
        Endpoint(
            path="/sam/",
            client=CLIENT,
            about="GeoJSON features of a box or points; quality is the predicted IoU.",
            answer=functools.partial(_predict, service),
            request=record(image, shared | prompt, more=True),
            response=array(ANY),
        ),
        Endpoint(
            path="/sam/automask/",
            client=CLIENT,
            about="GeoJSON features of all masks of a picture.",
            answer=functools.partial(_automask, service),
            request=record(image, shared | RANGES | output, more=True),
            response=array(ANY),
        ),
        Endpoint(
            path="/sam/version/",
            method="GET",
            client=CLIENT,
            about="The version of this server.",
            answer=lambda _: __version__,
            response=text(),
            is_text=True,
        ),
        Endpoint(
            path="/sam/weights/",
            method="GET",
            client=CLIENT,
            about="The weights to choose from: the model that is served, under every type that the extension knows.",
            answer=lambda _: [
                {"type": kind, "name": SERVED, "url": service.name} for kind in ("vit_h", "vit_l", "vit_b", "vit_t")
            ],
            response=array(record({"type": text(), "name": text(), "url": text()})),
        ),
    ]


def _predict(service: Service, given: dict[str, Any]) -> list[dict[str, Any]]:
    if given.get("b64mask") is not None:
        raise InputError("b64mask is not supported; send a box or points.")
    prompt = Prompt(
        box=given.get("bbox"), points=given.get("point_coords") or (), labels=given.get("point_labels") or ()
    )
    _ = prompt.arguments  # refused before the picture is encoded
    _, picture = service.pictures.add(from_base64(given["b64img"]))
    if given.get("multimask_output", False):
        found = [_feature(*one, {}) for one in service.three_masks(picture, prompt)]
    else:
        one = service.stable_mask(picture, prompt)
        found = [_feature(one.mask, one.iou_prediction, {"stability": one.stability})]
    return _numbered(service, found)


def _automask(service: Service, given: dict[str, Any]) -> list[dict[str, Any]]:
    pixels = read(from_base64(given["b64img"]), service.limits.max_pixels)
    options = {name: given[name] for name in RANGES if name in given}
    predictor = service.predictor
    # As run lengths, since thousands of masks of a large picture do not fit into memory.
    generator = MaskGenerator(predictor.sam, dict(predictor.params), output_mode="uncompressed_rle", **options)
    features = []
    for one in generator.generate(pixels):
        lengths = cast(rle.RunLengths, one["segmentation"])
        features.append(_feature(rle.decode(lengths), one["predicted_iou"], {}))
    return _numbered(service, features)


def _feature(mask: np.ndarray, quality: float, more: dict[str, float]) -> dict[str, Any] | None:
    """The largest outline of a mask; None if there is none."""
    outlines = forms.outlines(mask)
    if not outlines:
        return None
    ring = [*outlines[0], outlines[0][0]]  # GeoJSON's rings are closed
    return {
        "type": "Feature",
        "geometry": {"type": "Polygon", "coordinates": [ring]},
        "properties": {"label": "object", "quality": quality, **more},
    }


def _numbered(service: Service, features: list[dict[str, Any] | None]) -> list[dict[str, Any]]:
    found = [feature for feature in features if feature is not None]
    for index, feature in enumerate(found):
        feature["properties"] |= {"object_idx": index, "sam_model": service.name}
    return found
