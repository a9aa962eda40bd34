"""Folded against unfolded: masks of both, and of their base, for the same prompts on the same pictures."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from convert.folding import Alphas
from stablesam_jax.data.readers import LabelledPicture
from stablesam_jax.metrics import mask_iou, stability
from stablesam_jax.predict.explain import explain
from stablesam_jax.predict.picture import Picture
from stablesam_jax.predict.predictor import Predictor
from stablesam_jax.prompts import gt_box, noisy_box, random_points

NOISY, TRUE, CLICK, BEST = "noisy box", "true box", "click, single mask", "click, best of three"
KINDS = (NOISY, TRUE, CLICK, BEST)


class Prompts(NamedTuple):
    """Prompts for one object, in pixels of its picture."""

    noisy: np.ndarray  # (N, 4) XYXY
    true: np.ndarray  # (1, 4)
    clicks: np.ndarray  # (N, 1, 2)


@dataclasses.dataclass(frozen=True)
class Row:
    """A system under one kind of prompts; fractions, means over objects."""

    miou: float
    msf: float | None  # None for one prompt per object
    differing: float | None  # share of the pixels that differ from the first system's; None for the first


Table = Mapping[str, Mapping[str, Row]]  # system -> kind


def draw(labelled: LabelledPicture, count: int, seed: int) -> list[Prompts]:
    """Draws prompts for every object of a picture: `count` noisy boxes and clicks, and the true box."""
    size_hw = labelled.picture.shape[:2]
    drawn = []
    for number, mask in enumerate(labelled.masks):
        rng = np.random.default_rng([seed, number, *size_hw])
        box = gt_box(mask)
        noisy = np.stack([noisy_box(rng, box, size_hw=size_hw) for _ in range(count)])
        drawn.append(Prompts(noisy, box[None], random_points(rng, mask, count)[:, None]))
    return drawn


def mean_alpha(predictor: Predictor, pictures: Sequence[LabelledPicture], count: int, seed: int) -> Alphas:
    """The mean of the router's alpha at each attention, over noisy and true boxes and clicks alike.

    Args:
        predictor: of a model with a plugin; without a router, alpha is (1, 0).
        pictures: with objects.
        count: prompts of each random kind and object.
        seed: of the prompts.
    """
    plugin = predictor.sam.config.plugin
    assert plugin is not None
    if not plugin.router:
        return dict.fromkeys(plugin.attentions, (1.0, 0.0))
    seen: dict[int, list[np.ndarray]] = {attention: [] for attention in plugin.attentions}
    for labelled in pictures:
        picture = predictor.encode(labelled.picture)
        for prompts in draw(labelled, count, seed):
            labels = np.ones((count, 1), np.int32)
            for attention, of in seen.items():
                for boxes in (prompts.noisy, prompts.true):
                    of.append(explain(predictor, box=boxes, attention=attention, picture=picture).alpha.mean(axis=0))
                clicked = explain(predictor, prompts.clicks, labels, attention=attention, picture=picture)
                of.append(clicked.alpha.mean(axis=0))
    means = {attention: np.stack(of).mean(axis=0, dtype=np.float64) for attention, of in seen.items()}
    return {attention: (float(of[0]), float(of[1])) for attention, of in means.items()}


def compare(
    predictors: Mapping[str, Predictor],
    pictures: Sequence[LabelledPicture],
    count: int,
    seed: int,
    tell: Callable[[str], None] = lambda line: None,
) -> Table:
    """Prompts systems that share an encoder, and compares their masks with the true ones and with the first system's.

    Args:
        predictors: by system.
        pictures: with objects.
        count: prompts of each random kind and object.
        seed: of the prompts.
        tell: gets a line for every few pictures.
    """
    scores: dict[str, dict[str, list[Row]]] = {system: {kind: [] for kind in KINDS} for system in predictors}
    encoding = next(iter(predictors.values()))
    for index, labelled in enumerate(pictures, start=1):
        picture = encoding.encode(labelled.picture)
        for target, prompts in zip(labelled.masks, draw(labelled, count, seed), strict=True):
            first: dict[str, np.ndarray] = {}
            for system, predictor in predictors.items():
                for kind, masks in _predict(predictor, picture, prompts).items():
                    other = first.setdefault(kind, masks)
                    scores[system][kind].append(_score(masks, target, None if other is masks else other))
        if index % 5 == 0 or index == len(pictures):
            tell(f"compared: {index} of {len(pictures)} pictures")
    return {system: {kind: _mean(rows) for kind, rows in of.items()} for system, of in scores.items()}


def _predict(predictor: Predictor, picture: Picture, prompts: Prompts) -> dict[str, np.ndarray]:
    """Masks (N, H, W) bool by kind of prompt."""
    labels = np.ones(prompts.clicks.shape[:2], np.int32)
    found = {}
    for kind, boxes in ((NOISY, prompts.noisy), (TRUE, prompts.true)):
        found[kind] = predictor.predict(box=boxes, multimask_output=False, picture=picture)[0][:, 0]
    found[CLICK] = predictor.predict(prompts.clicks, labels, multimask_output=False, picture=picture)[0][:, 0]
    three, predicted_iou, _ = predictor.predict(prompts.clicks, labels, multimask_output=True, picture=picture)
    found[BEST] = three[np.arange(len(three)), predicted_iou.argmax(axis=1)]  # HQ-SAM has chosen: M is 1
    return found


def _score(masks: np.ndarray, target: np.ndarray, other: np.ndarray | None) -> Row:
    return Row(
        miou=float(np.mean([mask_iou(mask, target) for mask in masks])),
        msf=stability(masks) if len(masks) > 1 else None,
        differing=None if other is None else float(np.mean(masks != other)),
    )


def _mean(rows: Sequence[Row]) -> Row:
    def mean(values: Sequence[float | None]) -> float | None:
        there = [value for value in values if value is not None]
        return float(np.mean(there)) if there else None

    miou = mean([row.miou for row in rows])
    assert miou is not None
    return Row(miou, mean([row.msf for row in rows]), mean([row.differing for row in rows]))


def markdown(table: Table) -> str:
    """The table in percent: mIoU / mSF, and the pixels that differ."""
    lines = [f"| mIoU / mSF in % | {' | '.join(KINDS)} |", "|---" * (len(KINDS) + 1) + "|"]
    for system, of in table.items():
        lines.append(f"| {system} | {' | '.join(_accuracy(of[kind]) for kind in KINDS)} |")
    for system, of in table.items():
        shares = [of[kind].differing for kind in KINDS]
        if None not in shares:
            first = next(iter(table))
            cells = " | ".join(f"{100 * share:.3f}" for share in shares if share is not None)
            lines.append(f"| pixels of {system} that differ from {first}, in % | {cells} |")
    return "\n".join(lines) + "\n"


def _accuracy(row: Row) -> str:
    return f"{100 * row.miou:.1f}" + ("" if row.msf is None else f" / {100 * row.msf:.1f}")
