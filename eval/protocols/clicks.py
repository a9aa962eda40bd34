"""`clicks`: the number of clicks to a good mask, with clicks of several kinds (RClicks, arXiv 2410.11722).

Each click corrects the last mask: it falls where the error is deepest, on the object if something is missing and beside
it if there is too much. The usual click is as far from the border of that error as can be; people click elsewhere, too.
A mask is predicted from all clicks so far and from the logits of the last mask.
"""

import csv
import dataclasses
import functools
import hashlib
import math
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, NamedTuple, cast, get_args

import numpy as np
import tyro

from eval.draw import rng_of
from eval.identity import identity
from eval.journal import Record
from eval.loop import Summary, Values
from eval.protocols import systems
from stablesam_jax.data.readers import LabelledPicture, Pictures
from stablesam_jax.data.sources import open_sources
from stablesam_jax.errors import InputError
from stablesam_jax.metrics import mask_iou
from stablesam_jax.model.sam import Sam
from stablesam_jax.params import Params
from stablesam_jax.predict.decode import as_mask_inputs
from stablesam_jax.predict.picture import Picture
from stablesam_jax.predict.postprocess import upscale_masks
from stablesam_jax.predict.predictor import Predictor
from stablesam_jax.prompts import ClickDensity, click_density, depth

MOST = 20  # clicks; an object that needs more counts as this many
LEVELS = {"noc80": 0.80, "noc85": 0.85, "noc90": 0.90}  # IoU to reach
METRICS = ("first", *LEVELS)
CLICKS = ("usual", *get_args(ClickDensity))
RULES = ("single", "best", "tools")
OF_OBJECT = "_______"  # in the released clicks, between the name of a picture and the number of one of its objects


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClicksConfig(systems.Options):
    """The number of clicks to IoU 0.80, 0.85 and 0.90, at most 20, and the IoU after the first.

    Data: folders with im/ and gt/, COCO folders, built data sets, or NAME:DIR as dis5k-vd:/data/hq.
    """

    clicks: tuple[str, ...] = CLICKS
    """Where in the error a click falls. usual: farthest from the error's border. distance: drawn in proportion to the
    distance from that border. uniform: drawn uniformly. likely, unlikely: drawn from the tenth of the error where the
    density of "distance" is highest, or lowest; RClicks does so with the density of real clicks."""
    rules: tuple[str, ...] = RULES
    """Which mask is used. single: the single mask. best: the best of three by predicted IoU, as RClicks does with SAM.
    tools: best for the first click, then single, as in SAM's ONNX export and the tools that use it."""
    user_clicks: pathlib.Path | None = None
    """datasets/clicks.csv of RClicks, for the IoU after each user's first click. The name of a data folder has to begin
    with the name of the data set in the file, such as grabcut for GrabCut."""


class Click(NamedTuple):
    """A click in pixels of the picture."""

    x: float
    y: float
    on_object: bool


UserClicks = Mapping[tuple[str, str], Sequence[Click]]  # (data set as the file calls it, stem) -> clicks


def clicks(config: Annotated[ClicksConfig, tyro.conf.arg(name="")]) -> None:
    """The number of clicks until a mask is good, for several kinds of clicks."""
    systems.check_options(config, config.clicks, CLICKS, "--clicks")
    if not config.rules or not set(config.rules) <= set(RULES):
        raise InputError(f"--rules {' '.join(config.rules)}: give one or more of {', '.join(RULES)}.")
    sources = open_sources(config.data_dir)
    users: UserClicks = {}
    of_users = None
    if config.user_clicks is not None:
        users = read_user_clicks(config.user_clicks)
        named = sorted({name for name, _ in users})
        if not any(source.lower().startswith(name) for source in sources for name in named):
            raise InputError(
                f"--user-clicks {config.user_clicks}: has clicks on {', '.join(named) or 'nothing'}, and no data "
                "folder is called so; rename one."
            )
        of_users = hashlib.sha256(config.user_clicks.read_bytes()).hexdigest()  # a resumed evaluation needs the same

    def score(sam: Sam, params: Params, source: Pictures, each_picture: systems.EachPicture) -> systems.Found:
        def make(params: Params) -> systems.Begin:
            predictor = Predictor(sam, params)
            return lambda index: begin(predictor, source[index], config, users)

        return found(list(each_picture(make)))

    def compare(_: object, results: systems.Results) -> Mapping[str, object]:
        compared = {
            system: {name: robustness(one.summary, one.records) for name, one in sets.items()}
            for system, sets in results.items()
        }
        for system, sets in compared.items():
            for name, rows in sets.items():
                for rule, figures in rows.items():
                    shown = ", ".join(f"{figure} {100 * value:+.1f} %" for figure, value in figures.items())
                    print(f"{system}, {name}, {rule}: {shown}")
        return {"robustness": compared}

    systems.run(
        config, sources, score, protocol="clicks", metrics=METRICS, lines_file="per_object.csv",
        more={"user_clicks": of_users}, illustrate=compare,
    )  # fmt: skip


def begin(
    predictor: Predictor, labelled: LabelledPicture, config: ClicksConfig, users: UserClicks
) -> Callable[[], Record]:
    """Clicks on all objects of a picture.

    Returns:
        a function that gives the record: for each object the IoU after each click, by kind and rule; and after the
        click of each user, by rule.
    """
    picture = predictor.encode(labelled.picture)
    objects, of_users = [], []
    for number, target in enumerate(labelled.masks):
        ious = {}
        for kind in config.clicks:
            for rule in config.rules:
                rng = rng_of("clicks", labelled.name, number, kind, config.seed)
                choose = functools.partial(next_click, target, kind=kind, rng=rng)
                ious[f"{kind}, {rule}"] = session(predictor, picture, target, choose, rule)
        objects.append(ious)
        masks = {
            rule: [answer(predictor, picture, [one], None, rule)[0] for one in _clicks_of(users, labelled, number)]
            for rule in config.rules
        }
        of_users.append({rule: [mask_iou(mask, target) for mask in of] for rule, of in masks.items()})
    record = {
        **identity(labelled.picture, labelled.masks),
        "picture": labelled.name,
        "objects": objects,
        "users": of_users,
    }
    return lambda: record


def session(
    predictor: Predictor,
    picture: Picture,
    target: np.ndarray,
    choose: Callable[[np.ndarray, Sequence[Click]], Click | None],
    rule: str,
) -> list[float]:
    """Clicks until the mask is good.

    Args:
        predictor: of the system.
        picture: from its `encode`.
        target: (H, W) bool, the object.
        choose: (mask, earlier clicks) -> the next click, or None if there is nothing left to click at.
        rule: one of RULES.

    Returns:
        IoU after each click, at most MOST; the last one is the first of at least 0.90, where that is reached.
    """
    mask, logits = np.zeros_like(target), None
    done: list[Click] = []
    ious: list[float] = []
    while len(done) < MOST and not (ious and ious[-1] >= max(LEVELS.values())):
        click = choose(mask, done)
        if click is None:
            break
        done.append(click)
        mask, logits = answer(predictor, picture, done, logits, rule)
        ious.append(mask_iou(mask, target))
    return ious


def answer(
    predictor: Predictor, picture: Picture, done: Sequence[Click], logits: np.ndarray | None, rule: str
) -> tuple[np.ndarray, np.ndarray]:
    """Predicts from clicks and from the logits (1, 4G, 4G) of the last mask: (H, W) bool, and its logits."""
    low_res_masks, predicted_iou = predictor.predict_low_res(
        [(click.x, click.y) for click in done],
        [int(click.on_object) for click in done],
        mask_input=logits,
        multimask_output=rule == "best" or (rule == "tools" and len(done) == 1),
        picture=picture,
    )
    chosen = low_res_masks[np.argmax(predicted_iou)][None]
    mask = upscale_masks(chosen[0], picture.original_size, predictor.sam.config.frame)
    return mask, as_mask_inputs(chosen, predictor.sam.config)


def next_click(
    target: np.ndarray, mask: np.ndarray, done: Sequence[Click], *, kind: str, rng: np.random.Generator
) -> Click | None:
    """The click that corrects a mask (RITM, `isegm/inference/clicker.py`; RClicks for those that are drawn).

    Args:
        target: (H, W) bool, the object.
        mask: (H, W) bool, the last prediction.
        done: earlier clicks, whose pixels are not clicked again.
        kind: one of CLICKS.
        rng: for the kinds that are drawn.

    Returns:
        on the object if what is missing is deeper than what is too much, else beside it; None if all pixels of the
        error have been clicked.
    """
    missing, surplus = (_distances(error, done) for error in (target & ~mask, mask & ~target))
    distances, on_object = (missing, True) if missing.max() > surplus.max() else (surplus, False)
    if not distances.any():
        return None
    if kind == "usual":
        place = int(np.argmax(distances))
    else:
        density = click_density(distances, cast(ClickDensity, kind))
        place = int(rng.choice(density.size, p=density.ravel()))
    y, x = divmod(place, distances.shape[1])
    return Click(x, y, on_object)


def _distances(error: np.ndarray, done: Sequence[Click]) -> np.ndarray:
    """Distance of each pixel of an error from its border, which the picture's edges belong to; 0 at earlier clicks."""
    distances = depth(error)
    for click in done:
        distances[int(click.y), int(click.x)] = 0
    return distances


def found(records: Sequence[Record]) -> systems.Found:
    """Means over the objects of a picture, then over pictures."""
    kinds = list(records[0]["objects"][0])
    figures = [[{kind: of_session(one[kind]) for kind in kinds} for one in record["objects"]] for record in records]
    values: Values = {
        kind: {
            metric: np.array([np.mean([one[kind][metric] for one in of_picture]) for of_picture in figures])
            for metric in METRICS
        }
        for kind in kinds
    }
    lines: list[systems.Line] = [
        {"picture": record["picture"], "object": number, "kind": kind, "clicks": len(one[kind])}
        | {metric: f"{figure:.6g}" for metric, figure in of_picture[number][kind].items()}
        for record, of_picture in zip(records, figures, strict=True)
        for number, one in enumerate(record["objects"])
        for kind in kinds
    ]
    summary = {kind: {metric: float(of.mean()) for metric, of in metrics.items()} for kind, metrics in values.items()}
    return systems.Found(summary=summary, lines=lines, values=values, records=records)


def of_session(ious: Sequence[float]) -> dict[str, float]:
    """The figures of one session."""
    reached = {
        name: float(next((number for number, iou in enumerate(ious, start=1) if iou >= level), MOST))
        for name, level in LEVELS.items()
    }
    return {"first": ious[0], **reached}


def robustness(summary: Summary, records: Sequence[Record]) -> dict[str, dict[str, float]]:
    """How much the place of clicks matters, by rule.

    Args:
        summary: of a system on a data set.
        records: of its pictures.

    Returns:
        as far as their clicks were made: rise, NoC90 with drawn clicks over that with the usual ones, less 1; spread,
        the same of unlikely over likely clicks; users, the mean IoU after one click of theirs, and users_deviation, the
        standard deviation between the clicks on one object.
    """
    result: dict[str, dict[str, float]] = {}
    for rule in RULES:
        figures = {}
        for name, after, before in (("rise", "distance", "usual"), ("spread", "unlikely", "likely")):
            kinds = f"{after}, {rule}", f"{before}, {rule}"
            if all(kind in summary for kind in kinds):
                many, few = (summary[kind]["noc90"] for kind in kinds)
                figures[name] = many / few - 1
        of_users = [one[rule] for record in records for one in record["users"] if one.get(rule)]
        if of_users:
            figures["users"] = float(np.mean([np.mean(ious) for ious in of_users]))
            figures["users_deviation"] = float(np.mean([np.std(ious) for ious in of_users]))
        if figures:
            result[rule] = figures
    return result


def read_user_clicks(file: pathlib.Path) -> UserClicks:
    """Reads datasets/clicks.csv of RClicks: the first clicks of users, in pixels of the picture.

    Raises:
        InputError: the file cannot be read or has other columns.
    """
    found: dict[tuple[str, str], list[Click]] = {}
    try:
        with open(file, newline="", encoding="utf-8") as opened:
            for row in csv.DictReader(opened):
                if row["click_type"] == "first":
                    click = Click(float(row["x"]), float(row["y"]), True)
                    if not (math.isfinite(click.x) and math.isfinite(click.y)):
                        raise ValueError(f"a click at {row['x']}, {row['y']}")
                    found.setdefault((row["dataset"].lower(), row["full_stem"]), []).append(click)
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror}).") from None
    except (KeyError, ValueError, TypeError, csv.Error) as error:
        raise InputError(
            f"{file}: is no clicks.csv of RClicks ({error}), with the columns dataset, full_stem, click_type, x, y."
        ) from None
    return found


def _clicks_of(users: UserClicks, labelled: LabelledPicture, number: int) -> list[Click]:
    """The users' clicks on an object, moved into the picture."""
    data_set, _, stem = labelled.name.partition("/")
    if len(labelled.masks) > 1:
        stem += f"{OF_OBJECT}{labelled.numbers[number]}"
    height, width = labelled.picture.shape[:2]
    return [
        Click(min(max(click.x, 0), width - 1), min(max(click.y, 0), height - 1), True)
        for (name, of), own in users.items()
        if of == stem and data_set.lower().startswith(name)
        for click in own
    ]
