"""`breps`: the worst and the best box near the tight one, found by gradient (BREPS, arXiv 2601.15123).

Each object's tight box is moved by Adam against the mask, and again in its favour, among boxes such as users draw.
Reported is the IoU of the tight box, the lowest and the highest IoU of the boxes tried, and their difference.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Annotated, Literal

import numpy as np
import tyro

from eval.identity import identity
from eval.journal import Record
from eval.loop import Values
from eval.protocols import systems
from stablesam_jax.data.readers import LabelledPicture, Pictures
from stablesam_jax.data.sources import open_sources
from stablesam_jax.data.user_study import UserStudy
from stablesam_jax.metrics import mask_iou
from stablesam_jax.model.mask_decoder import MaskChoice
from stablesam_jax.model.sam import Sam
from stablesam_jax.params import Params
from stablesam_jax.predict.box_search import Goal, search
from stablesam_jax.predict.postprocess import upscale_masks
from stablesam_jax.predict.predictor import Predictor
from stablesam_jax.prompts import gt_box

METRICS = ("tight", "worst", "best", "delta")  # mean IoU of the boxes; delta is best - worst
USERS = ("user", "user_worst")  # mean and lowest IoU of the boxes that users drew
KIND = "box"  # the single kind of prompt
Rule = Literal["single", "best"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class BrepsConfig(systems.Options):
    """The worst and the best box near the tight one, found by gradient, as in BREPS; and users' boxes where there are.

    Data: folders with im/ and gt/, COCO folders, built data sets, NAME:DIR as dis5k-vd:/data/hq, or folders with
    images/, masks/ and user_masks/ as BREPS's user study.
    """

    rule: Rule = "single"
    """Which mask is searched with. single: the single mask. best: the best of three by predicted IoU, as in the
    released search of BREPS for SAM. Users' boxes have the single mask, as theirs."""


def breps(config: Annotated[BrepsConfig, tyro.conf.arg(name="")]) -> None:
    """IoU of the worst and of the best box that users might draw, found by gradient."""
    systems.check_options(config, (KIND,), (KIND,))
    sources = open_sources(config.data_dir)

    studies = any(isinstance(source, UserStudy) for source in sources.values())
    metrics = METRICS + USERS if studies else METRICS

    def score(sam: Sam, params: Params, source: Pictures, each_picture: systems.EachPicture) -> systems.Found:
        def make(params: Params) -> systems.Begin:
            predictor = Predictor(sam, params)
            return lambda index: begin(predictor, params, source[index], boxes_of(source, index), config.rule)

        return found(list(each_picture(make)), metrics)

    def identify(source: Pictures, index: int) -> dict[str, str]:
        labelled = source[index]
        return identity(labelled.picture, labelled.masks, *boxes_of(source, index))

    systems.run(
        config, sources, score, protocol="breps", metrics=metrics, lines_file="per_object.csv", identify=identify
    )


def boxes_of(source: Pictures, index: int) -> np.ndarray:
    """The boxes that users drew, (N, 4); none of data that have none."""
    return source.user_boxes(index) if isinstance(source, UserStudy) else np.zeros((0, 4), np.float32)


def begin(
    predictor: Predictor, params: Params, labelled: LabelledPicture, user_boxes: np.ndarray, rule: Rule = "single"
) -> Callable[[], Record]:
    """Searches for both boxes of all objects of a picture at once, and predicts from users' boxes of its first object.

    Returns:
        the rest of the work, which needs the host alone: a function that measures the IoU of all boxes that were tried.
    """
    picture = predictor.encode(labelled.picture)
    targets = list(labelled.masks)
    boxes = np.stack([gt_box(target) for target in targets])
    masks: MaskChoice = "multi" if rule == "best" else "single"
    goals: list[Goal] = [goal for goal in ("worst", "best") for _ in targets]
    tried = search(predictor.sam, params, picture.embedding, np.tile(boxes, (2, 1)), targets * 2, goals, masks)
    worst, best = np.split(tried.low_res_masks, 2, axis=1)
    drawn, _ = predictor.predict_low_res(box=user_boxes, multimask_output=False, picture=picture)

    def ious(low_res_masks: np.ndarray, target: np.ndarray) -> list[float]:
        sides = picture.original_size, predictor.sam.config.frame
        return [mask_iou(upscale_masks(logits, *sides), target) for logits in low_res_masks]

    def finish() -> Record:
        objects = []
        for number, target in enumerate(targets):
            low = ious(worst[:, number], target)
            high = ious(best[:, number], target)
            objects.append({"tight": low[0], "worst": min(low), "best": max(high), "delta": max(high) - min(low)})
        users = ious(drawn[:, 0], targets[0])
        objects[0] |= {"user": float(np.mean(users)), "user_worst": min(users)} if users else {}
        return {
            **identity(labelled.picture, labelled.masks, *user_boxes),
            "picture": labelled.name,
            "objects": objects,
        }

    return finish


def found(records: Sequence[Record], metrics: Sequence[str] = METRICS) -> systems.Found:
    """Means over the objects of a picture, then over pictures; nan where a picture has no boxes of users."""
    of_pictures = {
        metric: np.array([np.mean([one.get(metric, math.nan) for one in record["objects"]]) for record in records])
        for metric in metrics
    }
    values: Values = {KIND: of_pictures}
    lines: list[systems.Line] = [
        {"picture": record["picture"], "object": number}
        | {metric: f"{one[metric]:.6f}" if metric in one else "" for metric in metrics}
        for record in records
        for number, one in enumerate(record["objects"])
    ]
    return systems.Found(
        summary={KIND: {metric: float(of.mean()) for metric, of in of_pictures.items()}}, lines=lines, values=values
    )
