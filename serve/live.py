"""What the page asks for: masks of a prompt and of jittered copies, with the plugin and without, and worst boxes."""

import base64
import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from serve import forms
from serve.endpoint import Endpoint
from serve.json_api import DIGEST, MOST_JITTERS, prompt_fields, prompt_of
from serve.schemas import BOX, POINT, SHARE, array, integer, nullable, number, record, text
from serve.service import Prompt, Service
from stablesam_jax.config import Frame
from stablesam_jax.data.collage import ASSETS
from stablesam_jax.errors import InputError
from stablesam_jax.metrics import stability
from stablesam_jax.predict.picture import Picture
from stablesam_jax.predict.postprocess import upscale_masks
from stablesam_jax.predict.predictor import Predictor
from stablesam_jax.predict.preprocess import resized_size
from stablesam_jax.prompts import NOISE_SCALE, noisy_box

CLIENT = "the page"
HEAT_SIDE, OUTLINE_SIDE = 256, 512  # pixels of the longer side at which masks are counted and outlined
POINT_NOISE = 0.05  # standard deviation of a jittered click at noise 1, as a share of the picture's longer side
PLAIN, STABLE = "plain", "stable"


def endpoints(service: Service) -> list[Endpoint]:
    """The endpoints of this file."""
    prompt = prompt_fields(service)
    options = {
        "jitters": integer(0, MOST_JITTERS, "slightly different prompts; default: 20"),
        "noise": number(0, 1, f"of a box, as a share of its sides; default: {NOISE_SCALE}"),
        "strength": SHARE | {"description": "of the plugin; default: the model's own"},
        "seed": integer(0, 2**31, "of the noise"),
    }
    system = {
        "system": {"enum": [PLAIN, STABLE]},
        "predicted_iou": number(-1, 2),
        "stability": nullable(SHARE),
        "outlines": array(array({"type": "number"}, 6)),
        "heat": text("base64 of heat_height rows of heat_width bytes: the number of masks that hold a pixel"),
    }
    heat = {
        "heat_width": integer(1, HEAT_SIDE),
        "heat_height": integer(1, HEAT_SIDE),
        "masks": integer(1, MOST_JITTERS + 1),
        "boxes": array(BOX) | {"description": "of the jittered prompts"},
        "points": array(POINT) | {"description": "of the jittered prompts, one after the other"},
    }
    return [
        Endpoint(
            path="/v1/examples",
            method="GET",
            client=CLIENT,
            about="Names of the pictures of the package, at /examples/NAME.jpg.",
            answer=lambda _: {"examples": sorted(path.stem for path in (ASSETS / "im").glob("*.jpg"))},
            response=record({"examples": array(text())}),
        ),
        Endpoint(
            path="/v1/compare",
            client=CLIENT,
            about="The mask of a prompt and a map of the masks of jittered prompts, with the plugin and without.",
            answer=functools.partial(_compare, service),
            request=record({"picture": DIGEST}, prompt | options),
            response=record({"systems": array(record(system), 1, 2), **heat}),
        ),
        Endpoint(
            path="/v1/worst-box",
            client=CLIENT,
            about="A box near the given one whose mask is worst, found by gradient.",
            answer=functools.partial(_worst_box, service),
            request=record(
                {"picture": DIGEST, "box": BOX, "system": {"enum": [PLAIN, STABLE]}}, {"strength": options["strength"]}
            ),
            response=record({"box": BOX, "iou": nullable(SHARE), "iou_before": nullable(SHARE)}),
        ),
    ]


def _systems(service: Service, strength: float | None) -> dict[str, Predictor]:
    """The model without its plugin and with it; one alone if it has none."""
    if service.plain is None:
        return {PLAIN: service.predictor}
    return {PLAIN: service.plain, STABLE: service.at_strength(strength)}


def _compare(service: Service, given: dict[str, Any]) -> dict[str, Any]:
    prompt = prompt_of(given)
    _ = prompt.arguments  # refused before jittering
    picture = service.pictures.held(given["picture"])
    rng = np.random.default_rng(given.get("seed", 0))
    jitter = jitters(rng, prompt, picture.original_size, given.get("noise", NOISE_SCALE))
    prompts = [prompt, *(jitter() for _ in range(given.get("jitters", 20)))]
    systems = [
        {"system": name} | _measured(predictor, picture, prompts)
        for name, predictor in _systems(service, given.get("strength")).items()
    ]
    height, width = _shrunk(picture, HEAT_SIDE)
    copies = prompts[1:]
    return {
        "systems": systems,
        "heat_width": width,
        "heat_height": height,
        "masks": len(prompts),
        "boxes": [np.asarray(one.box).tolist() for one in copies if one.box is not None],
        "points": [point for one in copies for point in np.asarray(one.points).tolist()],
    }


def jitters(rng: np.random.Generator, prompt: Prompt, size_hw: tuple[int, int], noise: float) -> Callable[[], Prompt]:
    """The function that draws slightly different prompts: `noisy_box`, and normal noise of clicks."""
    limit = np.array(size_hw[::-1])

    def draw() -> Prompt:
        box = None if prompt.box is None else noisy_box(rng, np.array(prompt.box), size_hw=size_hw, scale=noise)
        points = np.reshape(prompt.points, (-1, 2))
        moved = points + POINT_NOISE * noise * max(size_hw) * rng.standard_normal(points.shape)
        return Prompt(box=box, points=np.clip(moved, 0, limit - 1), labels=prompt.labels)

    return draw


def _measured(predictor: Predictor, picture: Picture, prompts: list[Prompt]) -> dict[str, Any]:
    stacked: dict[str, Any] = {
        name: np.stack([one.arguments[name] for one in prompts]) for name in prompts[0].arguments
    }
    low, ious = predictor.predict_low_res(**stacked, multimask_output=False, picture=picture)
    size, fine = _shrunk(picture, HEAT_SIDE), _shrunk(picture, OUTLINE_SIDE)
    frame = predictor.sam.config.frame
    framed = resized_size(picture.original_size, frame)
    masks = upscale_masks(low[:, 0], size, frame, framed)
    mask = upscale_masks(low[0, 0], fine, frame, framed)
    scale = np.array(picture.original_size[::-1]) / np.array(fine[::-1])
    lines = [np.round((np.array(line) + 0.5) * scale - 0.5, 1) for line in forms.outlines(mask, holes=True)]
    return {
        "predicted_iou": float(ious[0, 0]),
        "stability": stability(masks) if len(prompts) > 1 else None,
        "outlines": [line.ravel().tolist() for line in lines],
        "heat": base64.b64encode(masks.sum(axis=0, dtype=np.uint8).tobytes()).decode("ascii"),
    }


def _shrunk(picture: Picture, longest: int) -> tuple[int, int]:
    """Height and width of the picture with its longer side at most `longest`."""
    return min(picture.original_size, resized_size(picture.original_size, Frame(longest)), key=max)


def _worst_box(service: Service, given: dict[str, Any]) -> dict[str, Any]:
    picture = service.pictures.held(given["picture"])
    systems = _systems(service, given.get("strength"))
    if given["system"] not in systems:
        raise InputError("system stable: the model has no plugin; ask for plain.")
    found = systems[given["system"]].worst_box(given["box"], picture=picture)
    height, width = picture.original_size
    box = np.clip(found.box, 0, [width, height, width, height])
    ious = {"iou": found.iou, "iou_before": found.iou_before}
    # No IoU where both masks are empty.
    return {"box": box.tolist()} | {name: None if np.isnan(iou) else iou for name, iou in ious.items()}
