"""`hq`: masks from sloppy prompts on pictures with object masks, as in Tables 1, 2, 5 and 6."""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated

import numpy as np
import tyro

from eval.identity import identity
from eval.journal import Record
from eval.loop import (
    METRICS,
    Protocol,
    Score,
    Segmenter,
    begin_picture,
    by_picture,
    prompt_objects,
    summarise,
    to_picture,
)
from eval.prompt_kinds import PROMPT_KINDS, PROMPTS_PER_OBJECT
from eval.protocols import systems
from eval.report.figures import Panel, Shown, alpha_figure, curves_figure, histogram_figure, sheet_figure
from eval.report.tables import TITLES, mean_of_sets, short_names
from stablesam_jax.data.readers import LabelledPicture, Pictures
from stablesam_jax.data.sources import open_sources
from stablesam_jax.errors import InputError
from stablesam_jax.model.sam import Sam
from stablesam_jax.params import Params
from stablesam_jax.visualize import save_figure

# From good prompts to bad ones, the order of the x axis in the paper's Figure 1.
QUALITY = ("gt-box", "n-box-60", "n-box-50", "noisy-box", "10-points", "5-points", "3-points", "1-point")
SHEET = 20  # most pictures in a figure of the best or worst


@dataclasses.dataclass(frozen=True, kw_only=True)
class HqConfig(systems.Options):
    """Masks from sloppy prompts on folders of pictures and masks, as in Tables 1, 2, 5 and 6.

    Data: folders with im/ and gt/, COCO folders, built data sets, or NAME:DIR as dis5k-vd:/data/hq.
    """

    prompts: tuple[str, ...] = ("gt-box", "noisy-box", "1-point", "3-points")
    """Kinds: gt-box noisy-box 1-point 3-points 5-points 10-points n-box-50 n-box-60."""
    count: int = PROMPTS_PER_OBJECT
    """Number of prompts of each random kind, for each object."""
    figures: bool = True
    """Whether to draw figures, for which the best and the worst pictures are encoded once more."""


def hq(config: Annotated[HqConfig, tyro.conf.arg(name="")]) -> None:
    """mIoU, mBIoU and mSF of masks from sloppy prompts, as in Tables 1, 2, 5 and 6 of the paper."""
    if config.count < 1:
        raise InputError(f"--count {config.count}: must be at least 1.")
    systems.check_options(config, config.prompts, PROMPT_KINDS)
    sources = open_sources(config.data_dir)  # before the models load, so that bad data is reported at once
    protocol = Protocol(kinds=config.prompts, prompts=config.count, seed=config.seed)

    def score(sam: Sam, params: Params, source: Pictures, each_picture: systems.EachPicture) -> systems.Found:
        return evaluate(sam, source, protocol, each_picture)

    def illustrate(built: Mapping[str, tuple[Sam, Params]], results: systems.Results) -> Mapping[str, object]:
        segmenters = {system: Segmenter(sam, params) for system, (sam, params) in built.items()}
        write_figures(config.output / "figures", segmenters, sources, results, protocol)
        return {}

    systems.run(
        config,
        sources,
        score,
        protocol="hq",
        metrics=METRICS,
        lines_file="per_image.csv",
        illustrate=illustrate if config.figures else None,
    )


def evaluate(sam: Sam, source: Pictures, protocol: Protocol, each_picture: systems.EachPicture) -> systems.Found:
    """Evaluates a system on one data set."""

    def make(params: Params) -> systems.Begin:
        segmenter = Segmenter(sam, params)
        return lambda index: begin(segmenter, source[index], protocol)

    return found(list(each_picture(make)))


def begin(segmenter: Segmenter, labelled: LabelledPicture, protocol: Protocol) -> Callable[[], Record]:
    """Encodes a picture and prompts for all its objects.

    Returns:
        the rest of the work: a function that scores the masks and makes the record.
    """
    finish = begin_picture(segmenter, labelled, protocol)
    return lambda: {
        **identity(labelled.picture, labelled.masks),
        "scores": [dataclasses.asdict(score) for score in finish()],
    }


def found(records: Sequence[Record]) -> systems.Found:
    """Summarises records that have "scores": means, csv lines, values per picture."""
    scores = scores_of(records)
    lines: list[systems.Line] = [
        {"picture": one.picture, "object": one.object_id, "kind": one.kind}
        | {metric: f"{getattr(one, metric):.6f}" for metric in METRICS}
        | {"alpha": "" if one.alpha is None else f"{one.alpha:.6f}"}
        for one in scores
    ]
    return systems.Found(summary=summarise(scores), lines=lines, values=by_picture(scores), records=records)


def scores_of(records: Sequence[Record]) -> list[Score]:
    """The scores of some pictures."""
    return [Score(**score) for record in records for score in record["scores"]]


def write_figures(
    folder: pathlib.Path,
    segmenters: Mapping[str, Segmenter],
    sources: Mapping[str, Pictures],
    results: systems.Results,
    protocol: Protocol,
) -> None:
    """Draws accuracy by quality of prompts, stability over pictures, the router, and the best and worst pictures.

    Args:
        folder: created. It gets curves.png, stability.png, alpha.png if a system has a plugin, and best_K.png and
            worst_K.png for each system, where K is its index in the results.
        segmenters: by system.
        sources: by name.
        results: of all systems on all sources.
        protocol: of the evaluation.
    """
    names = dict(zip(results, short_names(list(results)), strict=True))
    means = {
        system: mean_of_sets({name: part.summary for name, part in sets.items()}) for system, sets in results.items()
    }
    kinds = [kind for kind in QUALITY if kind in protocol.kinds]
    panels = [
        Panel(
            title=TITLES[metric],
            places=kinds,
            axis="",
            curves={names[system]: [100 * mean[kind][metric] for kind in kinds] for system, mean in means.items()},
        )
        for metric in METRICS
    ]
    save_figure(curves_figure(panels), folder / "curves.png")
    scores = {
        system: [one for part in sets.values() for one in scores_of(part.records)] for system, sets in results.items()
    }
    random = [kind for kind in kinds if kind != "gt-box"] or kinds  # one true box per object: its mSF is always 1
    values = {names[system]: by_picture(of) for system, of in scores.items()}
    spread = {name: {kind: of[kind]["msf"] for kind in random} for name, of in values.items()}
    save_figure(histogram_figure(spread, "msf"), folder / "stability.png")
    alphas = {
        names[system]: {kind: np.array([one.alpha for one in of if one.kind == kind]) for kind in kinds}
        for system, of in scores.items()
        if of[0].alpha is not None
    }
    if alphas:
        save_figure(alpha_figure(alphas), folder / "alpha.png")
    pictures = {name: (source, index) for source in sources.values() for index, name in enumerate(source.names)}
    hardest = min(kinds, key=lambda kind: next(iter(means.values()))[kind]["miou"])
    for number, (system, of) in enumerate(scores.items()):
        ranked = sorted((one for one in of if one.kind == hardest), key=lambda one: -one.miou)
        count = min(SHEET, max(1, len(ranked) // 2))  # no picture is among both best and worst
        for word, chosen in (("best", ranked[:count]), ("worst", ranked[: -count - 1 : -1])):
            shown = [_shown(segmenters[system], *pictures[one.picture], one, protocol) for one in chosen]
            title = f"{names[system]}, {hardest}: the {len(shown)} {word} (mIoU / mSF)"
            save_figure(sheet_figure(title, shown), folder / f"{word}_{number}.png")


def _shown(segmenter: Segmenter, source: Pictures, index: int, score: Score, protocol: Protocol) -> Shown:
    """An object with the share of its prompts whose mask covers each pixel."""
    labelled = source[index]
    one_kind = dataclasses.replace(protocol, kinds=(score.kind,))
    prompted = prompt_objects(segmenter, segmenter.encode(labelled.picture), labelled, one_kind)[score.object_id]
    target = labelled.masks[score.object_id]
    share = np.mean([to_picture(logits, target.shape) for logits in prompted.predictions.low_res_masks], axis=0)
    stem = score.picture.rpartition("/")[2]
    caption = f"{stem[:18]}: {100 * score.miou:.0f} / {100 * score.msf:.0f}"
    return Shown(picture=labelled.picture, target=target, share=share, caption=caption)
