"""`review`: which signal tells a bad mask without ground truth, and which of several masks of a prompt to take.

A reviewer looks at the masks of lowest confidence. Each prompt is predicted as users do, by `Predictor`: its single
mask with its stability, and SAM's three masks. Measured is how well each signal detects single masks with an IoU below
`POOR`, and the IoU of the mask that each rule chooses, up to the truly best of three.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated

import numpy as np
import tyro

from eval.identity import identity
from eval.journal import Record
from eval.loop import Values
from eval.prompt_kinds import PROMPT_KINDS, draw_prompts
from eval.protocols import systems
from eval.report import signals
from stablesam_jax.data.readers import LabelledPicture, Pictures
from stablesam_jax.data.sources import open_sources
from stablesam_jax.errors import InputError
from stablesam_jax.metrics import mask_iou
from stablesam_jax.model.sam import Sam
from stablesam_jax.params import Params
from stablesam_jax.predict.picture import Picture
from stablesam_jax.predict.postprocess import upscale_masks
from stablesam_jax.predict.predictor import Predictor
from stablesam_jax.prompts import Prompt, box_iou, gt_box

POOR = 0.75  # a single mask of lower IoU is to be found
SHARE = 0.2  # of the masks is reviewed
OFFSET = 1.0  # logits: SAM's stability score compares the masks at +OFFSET and -OFFSET
KINDS = tuple(PROMPT_KINDS)
BOXES, CLICKS = "boxes", "clicks"


@dataclasses.dataclass(frozen=True)
class Case:
    """What is known of one prompt's masks, and their IoU. Lists are of the single mask, then of SAM's three."""

    kind: str
    ious: list[float]  # with the true mask
    predicted: list[float]  # the model's own estimate of each IoU
    scores: list[float]  # SAM's stability score, of the low-resolution logits
    stability: float  # mSF of the single mask and its jittered copies, as of `Predictor.predict_stable`
    fit: float | None  # IoU of the prompt's box with that around the single mask; None without a box


def _confidence(cases: Sequence[Case]) -> dict[str, np.ndarray]:
    """Every signal that all cases have, (N,), higher for better masks; products of two are further signals."""
    one = {
        "stability": np.array([case.stability for case in cases]),
        "SAM's stability score": np.array([case.scores[0] for case in cases]),
        "predicted IoU": np.array([case.predicted[0] for case in cases]),
    }
    if all(case.fit is not None for case in cases):
        one["fit"] = np.array([case.fit for case in cases], np.float64)
    pairs = [("stability", "predicted IoU"), ("stability", "fit"), ("predicted IoU", "fit")]
    products = {f"{a} x {b}": one[a] * one[b] for a, b in pairs if a in one and b in one}
    return one | products


# Rule -> index of the mask that it takes, of the single one and SAM's three.
RULES: Mapping[str, Callable[[Case], int]] = {
    "single": lambda case: 0,
    "three": lambda case: 1 + int(np.argmax(case.predicted[1:])),
    "three_scored": lambda case: 1 + int(np.argmax(np.multiply(case.predicted, case.scores)[1:])),
    "four": lambda case: int(np.argmax(case.predicted)),
    "four_scored": lambda case: int(np.argmax(np.multiply(case.predicted, case.scores))),
    "best_of_three": lambda case: 1 + int(np.argmax(case.ious[1:])),
    "best_of_four": lambda case: int(np.argmax(case.ious)),
}
METRICS = tuple(RULES)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReviewConfig(systems.Options):
    """Signals of bad masks side by side, and rules that choose among the masks of a prompt.

    Data: folders with im/ and gt/, COCO folders, built data sets, or NAME:DIR as dis5k-vd:/data/hq.
    """

    prompts: tuple[str, ...] = ("gt-box", "noisy-box", "1-point")
    """Kinds of prompts, one of each for an object: gt-box noisy-box 1-point 3-points 5-points 10-points n-box-50
    n-box-60."""
    objects: int = 3
    """Largest number of objects of a picture; its first ones are used."""


def review(config: Annotated[ReviewConfig, tyro.conf.arg(name="")]) -> None:
    """Which signal finds bad masks without ground truth, and which rule chooses the best of several masks."""
    if config.objects < 1:
        raise InputError(f"--objects {config.objects}: must be at least 1.")
    systems.check_options(config, config.prompts, KINDS)
    sources = open_sources(config.data_dir)

    def score(sam: Sam, params: Params, source: Pictures, each_picture: systems.EachPicture) -> systems.Found:
        def make(params: Params) -> systems.Begin:
            predictor = Predictor(sam, params)
            return lambda index: begin(predictor, source[index], config)

        return found(list(each_picture(make)))

    def compare(_: object, results: systems.Results) -> Mapping[str, object]:
        return {
            "detection": {
                system: detection([case for one in sets.values() for case in cases_of(one.records)])
                for system, sets in results.items()
            }
        }

    systems.run(
        config, sources, score, protocol="review", metrics=METRICS, lines_file="per_object.csv", illustrate=compare
    )


def begin(predictor: Predictor, labelled: LabelledPicture, config: ReviewConfig) -> Callable[[], Record]:
    """Prompts the objects of a picture.

    Returns:
        a function that gives the record.
    """
    picture = predictor.encode(labelled.picture)
    cases = []
    for number, target in enumerate(labelled.masks[: config.objects]):
        for kind in config.prompts:
            (prompt,) = draw_prompts(
                kind, target, picture_id=labelled.name, object_id=number, seed=config.seed, count=1
            )
            case = examine(predictor, picture, prompt, target, kind=kind, seed=config.seed)
            cases.append({"object": number, "case": dataclasses.asdict(case)})
    record = {**identity(labelled.picture, labelled.masks), "picture": labelled.name, "cases": cases}
    return lambda: record


def examine(
    predictor: Predictor, picture: Picture, prompt: Prompt, target: np.ndarray, *, kind: str, seed: int
) -> Case:
    """Predicts the masks of a prompt and compares them with the true one.

    Args:
        predictor: of the system.
        picture: from its `encode`.
        prompt: in pixels of the picture.
        target: (H, W) bool, the true mask.
        kind: of the prompt.
        seed: of the jitters.
    """
    points, labels = (prompt.points, prompt.labels) if len(prompt.points) else (None, None)
    single = predictor.predict_stable(points, labels, prompt.box, picture=picture, seed=seed)
    logits, predicted = predictor.predict_low_res(points, labels, prompt.box, picture=picture)
    sides = picture.original_size, predictor.sam.config.frame
    masks = [single.mask, *(upscale_masks(one, *sides) for one in logits)]
    fit = None
    if prompt.box is not None:
        fit = float(box_iou(gt_box(single.mask), prompt.box)) if single.mask.any() else 0.0
    return Case(
        kind=kind,
        ious=[mask_iou(mask, target) for mask in masks],
        predicted=[single.iou_prediction, *map(float, predicted)],
        scores=[stability_score(one) for one in (single.low_res_mask[0], *logits)],
        stability=single.stability,
        fit=fit,
    )


def stability_score(logits: np.ndarray) -> float:
    """IoU of the masks of logits above +OFFSET and above -OFFSET; 0 where both are empty (SAM, `amg.py`)."""
    inner, outer = (np.count_nonzero(logits > offset) for offset in (OFFSET, -OFFSET))
    return inner / outer if outer else 0.0


def cases_of(records: Sequence[Record]) -> list[Case]:
    """The cases of some pictures."""
    return [Case(**entry["case"]) for record in records for entry in record["cases"]]


def found(records: Sequence[Record]) -> systems.Found:
    """Means over the objects of a picture, then over pictures, of the IoU of the mask that each rule takes."""
    kinds = list(dict.fromkeys(entry["case"]["kind"] for record in records for entry in record["cases"]))
    by_picture = [cases_of([record]) for record in records]

    def mean(cases: Sequence[Case], kind: str, rule: str) -> float:
        return float(np.mean([case.ious[RULES[rule](case)] for case in cases if case.kind == kind]))

    values: Values = {
        kind: {rule: np.array([mean(cases, kind, rule) for cases in by_picture]) for rule in RULES} for kind in kinds
    }
    lines: list[systems.Line] = []
    for record in records:
        for entry in record["cases"]:
            case = Case(**entry["case"])
            taken = {rule: f"{case.ious[take(case)]:.6f}" for rule, take in RULES.items()}
            signal = {name: f"{confidence[0]:.6f}" for name, confidence in _confidence([case]).items()}
            signal = {name: signal.get(name, "") for name in SIGNALS}
            lines.append(
                {"picture": record["picture"], "object": entry["object"], "kind": case.kind, **taken, **signal}
            )
    summary = {kind: {rule: float(of.mean()) for rule, of in rules.items()} for kind, rules in values.items()}
    return systems.Found(summary=summary, lines=lines, values=values, records=records)


def detection(cases: Sequence[Case]) -> dict[str, dict[str, object]]:
    """How well each signal detects poor single masks, for boxes and for clicks.

    Returns:
        for "boxes" and "clicks": masks (their number), poor (their share), risk (mean of 1 - IoU of all), and by signal
        `auc` (chance that a poor mask has a lower value than another), `risk` (mean of 1 - IoU of what is left when the
        SHARE of lowest confidence has been reviewed) and `found` (share of the poor masks among these).
    """
    result: dict[str, dict[str, object]] = {}
    of_boxes = [case for case in cases if case.fit is not None]
    of_clicks = [case for case in cases if case.fit is None]
    for name, of in ((BOXES, of_boxes), (CLICKS, of_clicks)):
        if not of:
            continue
        iou = np.array([case.ious[0] for case in of])
        result[name] = {"masks": len(of), "poor": float((iou < POOR).mean()), "risk": float((1 - iou).mean())}
        result[name]["signals"] = {
            signal: {
                "auc": signals.auc(confidence, iou < POOR),
                "risk": float(signals.risk_coverage(confidence, iou)[round((1 - SHARE) * len(iou)) - 1]),
                "found": signals.bad_found(confidence, iou, SHARE, POOR),
            }
            for signal, confidence in _confidence(of).items()
        }
    return result


SIGNALS = tuple(_confidence([Case("", [0.0], [0.0], [0.0], 0.0, 0.0)]))
