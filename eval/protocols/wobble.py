"""`wobble`: accuracy and stability as boxes get sloppier and points fewer, and which signals detect bad masks.

For people who choose a model or write guidelines for annotators. The curves come first. Then the protocol compares
signals that need no ground truth: for each object and kind of prompt, the first prompt counts as a user's, and its mask
is rated by its stability under the small slips of `Predictor.predict_stable`, by its agreement with other clicks on it,
by the predicted IoU, and by alpha_1 of the plugin's router. The first two are shown apart, too, as sensitivity (to
slips of one prompt) and ambiguity (between clicks on one object).
"""

import dataclasses
import hashlib
import math
import pathlib
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated

import jax
import numpy as np
import tyro
from matplotlib.figure import Figure

from eval.identity import identity
from eval.journal import Record
from eval.loop import METRICS, Protocol, Segmenter, Summary, prompt_objects, score_object, to_picture
from eval.noises import EXACT, NOISES, Noise, kinds_of
from eval.prompt_kinds import PROMPTS_PER_OBJECT, point_count
from eval.protocols import hq, systems
from eval.report import signals
from eval.report.figures import Panel, RiskCoverage, curves_figure
from eval.report.tables import TITLES, mean_of_sets, short_names
from stablesam_jax import parallel
from stablesam_jax.data.readers import LabelledPicture, Pictures
from stablesam_jax.data.sources import open_sources
from stablesam_jax.errors import InputError
from stablesam_jax.files.disk import write_text
from stablesam_jax.metrics import mask_iou, stability
from stablesam_jax.model.sam import Sam
from stablesam_jax.params import Params
from stablesam_jax.predict.stable import JITTERS, STABLE, STABLE_POINTS, ambiguity, jittered, other_clicks, review_limit
from stablesam_jax.visualize import save_figure

DEFAULT = ("hq-sam", "points")  # noises
CLICKS = 10  # on a mask, for its ambiguity
WORTH = 1.2  # a flag is useful if flagged masks are bad at this many times the average rate
CLOSE = 0.05  # two signals are equal if the shares of bad masks that they find differ by at most this
FEWEST_BAD = 30  # bad masks for a verdict; from a handful anything would be read
# Every signal is higher for better masks. alpha_1 is negated: it is higher for bad prompts in the paper (sec. 5.2).
SIGNALS = {
    "stability": "stability under small slips",
    "agreement": "agreement with other clicks on the mask",
    "predicted_iou": "predicted IoU",
    "alpha": "-α₁ of the router",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class WobbleConfig(systems.Options):
    """Accuracy and stability as boxes get sloppier and points fewer, on one page.

    Data: folders with im/ and gt/, COCO folders, built data sets, or NAME:DIR as dis5k-vd:/data/hq.
    """

    system: tuple[str, ...] = ()
    """Models: a shipped model, a checkpoint folder, the folder of a training run, or BASE+PLUGIN_FILE."""
    checkpoint: tuple[pathlib.Path, ...] = ()
    """Official files of SAM, HQ-SAM or MobileSAM (.pth), which are first converted to OUTPUT/checkpoints."""
    noises: tuple[str, ...] = DEFAULT
    """Curves. hq-sam: boxes with noise from 0 to 0.6 of the side, as in the paper and HQ-SAM. points: 10 to 1 points.
    Named after their papers: boxes sam (of its training), cdconcepts, pp-sam, breps; clicks rclicks, cdconcepts-click.
    See docs/protocols.md."""
    count: int = PROMPTS_PER_OBJECT
    """Number of prompts of each kind, for each object."""


@dataclasses.dataclass(frozen=True)
class Case:
    """The mask of one prompt: its IoU, and the signals that need no ground truth."""

    kind: str
    iou: float  # with the true mask
    stability: float  # of the masks of this prompt and of JITTERS jittered copies
    agreement: float  # of this mask and those of CLICKS single clicks on it
    predicted_iou: float
    alpha: float | None  # -alpha_1


def wobble(config: Annotated[WobbleConfig, tyro.conf.arg(name="")]) -> None:
    """Accuracy and stability as boxes get sloppier and points fewer, and which signals find bad masks."""
    if config.count < 1:
        raise InputError(f"--count {config.count}: must be at least 1.")
    if not (config.system or config.checkpoint):
        raise InputError("Give --checkpoint FILE.pth or --system NAME, one or more.")
    if not config.noises or not set(config.noises) <= set(NOISES):
        raise InputError(f"--noises {' '.join(config.noises)}: give one or more of {', '.join(NOISES)}.")
    kinds = kinds_of(config.noises)
    systems.check_options(config, kinds, kinds)
    sources = open_sources(config.data_dir)
    folders = convert(config.checkpoint, config.output / "checkpoints")
    config = dataclasses.replace(config, system=(*map(str, folders), *config.system), checkpoint=())
    protocol = Protocol(kinds=kinds, prompts=config.count, seed=config.seed)

    def score(sam: Sam, params: Params, source: Pictures, each_picture: systems.EachPicture) -> systems.Found:
        def make(params: Params) -> systems.Begin:
            segmenter = Segmenter(sam, params)
            return lambda index: begin(segmenter, source[index], protocol)

        return found(list(each_picture(make)))

    def illustrate(_: Mapping[str, tuple[Sam, Params]], found: systems.Results) -> Mapping[str, object]:
        means = {
            system: mean_of_sets({name: one.summary for name, one in sets.items()}) for system, sets in found.items()
        }
        cases = {
            system: [case for one in sets.values() for case in cases_of(one.records)] for system, sets in found.items()
        }
        names = dict(zip(found, short_names(list(found)), strict=True))
        judged = {system: judge(of) for system, of in cases.items()}
        noises = [NOISES[name] for name in config.noises]
        save_figure(figure(noises, means, cases, names), config.output / "wobble.png")
        write_text(config.output / "wobble.md", page(noises, means, cases, list(sources)))
        return {"signals": judged, "spread": {system: spread(of) for system, of in cases.items()}}

    systems.run(
        config, sources, score, protocol="wobble", metrics=METRICS, lines_file="per_image.csv", illustrate=illustrate
    )


def convert(files: Sequence[pathlib.Path], folder: pathlib.Path) -> list[pathlib.Path]:
    """Converts official files to checkpoint folders with the command `convert`, in a process of its own.

    A folder's name contains the digest of its file, so that an existing folder is used again. The first host converts.

    Args:
        files: of SAM, HQ-SAM or MobileSAM.
        folder: created if needed.

    Raises:
        InputError: one cannot be read or converted.
    """
    outputs = [folder / f"{file.stem}-{_digest(file)}" for file in files]
    if jax.process_index() == 0:
        for file, output in zip(files, outputs, strict=True):
            if not output.exists():
                arguments = ["--checkpoint", str(file), "--output", str(output)]
                command = [sys.executable, "-m", "stablesam_jax", "convert", *arguments]
                ended = subprocess.run(command, stderr=subprocess.PIPE, text=True)
                if ended.returncode:
                    last = ended.stderr.strip().rpartition("\n")[2]  # of a traceback, the error itself
                    raise InputError(last.removeprefix("error: ") or f"{file}: cannot be converted.")
    parallel.on_any_host(False)  # a barrier: the other hosts wait for the folders
    return outputs


def _digest(file: pathlib.Path) -> str:
    """The first eight hexadecimal digits of a file's SHA-256."""
    try:
        with open(file, "rb") as opened:
            return hashlib.file_digest(opened, "sha256").hexdigest()[:8]
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror}).") from None


def begin(segmenter: Segmenter, labelled: LabelledPicture, protocol: Protocol) -> Callable[[], Record]:
    """Prompts with every kind, and again with jittered copies of the first prompt of each kind and clicks on its mask.

    Returns:
        the rest of the work, which needs the host alone: a function that scores the masks.
    """
    embedding = segmenter.encode(labelled.picture)
    size_hw = labelled.picture.shape[:2]
    prompted = prompt_objects(segmenter, embedding, labelled, protocol)
    slipped = []
    clicked: list[Sequence[np.ndarray]] = []  # logits of the masks of other clicks
    for one in prompted:
        rng = np.random.default_rng(protocol.seed)  # as `predict_stable` seeds it: the same slips for every prompt
        prompts = [one.prompts[0], *(jittered(rng, one.prompts[0], size_hw) for _ in range(JITTERS))]
        slipped.append(segmenter.predict(embedding, prompts, size_hw))
        clicks = other_clicks(rng, to_picture(slipped[-1].low_res_masks[0], size_hw), CLICKS)
        clicked.append(list(segmenter.predict(embedding, clicks, size_hw).low_res_masks) if clicks else [])

    def finish() -> Record:
        cases = []
        for one, predictions, of_clicks in zip(prompted, slipped, clicked, strict=True):
            masks = [to_picture(logits, size_hw) for logits in predictions.low_res_masks]
            case = Case(
                kind=one.kind,
                iou=mask_iou(masks[0], labelled.masks[one.object_id]),
                stability=stability(masks),
                agreement=1 - ambiguity(masks[0], (to_picture(logits, size_hw) for logits in of_clicks)),
                predicted_iou=float(predictions.predicted_iou[0]),
                alpha=None if predictions.alpha is None else -float(predictions.alpha[0]),
            )
            cases.append(dataclasses.asdict(case))
        return {
            **identity(labelled.picture, labelled.masks),
            "scores": [dataclasses.asdict(score_object(labelled, one)) for one in prompted],
            "cases": cases,
        }

    return finish


def found(records: Sequence[Record]) -> systems.Found:
    """Results of `hq.found`, with sensitivity and ambiguity in the lines."""
    result = hq.found(records)
    lines = [
        {**line, "sensitivity": f"{1 - case.stability:.6f}", "ambiguity": f"{1 - case.agreement:.6f}"}
        for line, case in zip(result.lines, cases_of(records), strict=True)
    ]
    return dataclasses.replace(result, lines=lines)


def cases_of(records: Sequence[Record]) -> list[Case]:
    """The cases of some pictures."""
    return [Case(**case) for record in records for case in record["cases"]]


def columns(cases: Sequence[Case]) -> dict[str, np.ndarray]:
    """The IoU and each signal that the system has, as (N,) arrays."""
    names = ["iou", *(name for name in SIGNALS if getattr(cases[0], name) is not None)]
    return {name: np.array([getattr(case, name) for case in cases], np.float64) for name in names}


def judge(cases: Sequence[Case]) -> dict[str, object]:
    """Measures how well each signal detects bad masks.

    Returns:
        masks (their number), bad (the share below signals.BAD_IOU), flagged (the share that `predict_stable` flags),
        chance_area and least_area (risk-coverage areas of a random and of the best order), and for each signal
        rank_correlation with IoU over all cases, within_kinds (its mean over the kinds of prompts, which does not
        reward telling boxes from points), area, gain, and bad_found (the share of the bad masks among the least
        confident ones, of which as many are taken as are flagged).
    """
    kinds = dict.fromkeys(case.kind for case in cases)
    all_kinds = columns(cases)
    iou = all_kinds.pop("iou")
    by_kind = [columns([case for case in cases if case.kind == kind]) for kind in kinds]
    limits = [review_limit(has_box=not point_count(case.kind)) for case in cases]
    flagged = float((all_kinds["stability"] < limits).mean())
    result: dict[str, object] = {
        "masks": len(cases), "bad": float((iou < signals.BAD_IOU).mean()), "flagged": flagged,
        "chance_area": float((1 - iou).mean()), "least_area": signals.area(iou, iou),
    }  # fmt: skip
    for name, confidence in all_kinds.items():
        within = [signals.rank_correlation(of[name], of["iou"]) for of in by_kind]
        defined = [value for value in within if not math.isnan(value)]
        result[name] = {
            "rank_correlation": signals.rank_correlation(confidence, iou),
            "within_kinds": float(np.mean(defined)) if defined else math.nan,
            "area": signals.area(confidence, iou),
            "gain": signals.gain(confidence, iou),
            "bad_found": signals.bad_found(confidence, iou, flagged),
        }
    return result


def spread(cases: Sequence[Case]) -> dict[str, dict[str, float]]:
    """Ambiguity apart from sensitivity, and how well each ranks bad masks.

    Returns:
        for "boxes", "one click" and "several points", where there are such prompts: masks and bad (their numbers);
        sensitivity and ambiguity, the means of 1 - stability and of 1 - agreement; sensitivity_auc and ambiguity_auc,
        the chance that a bad mask has a higher one than another; and rank_correlation of the two.
    """
    groups: dict[str, list[Case]] = {"boxes": [], "one click": [], "several points": []}
    for case in cases:
        groups[list(groups)[min(point_count(case.kind), 2)]].append(case)
    result = {}
    for name, of in groups.items():
        if of:
            values = columns(of)
            bad = values["iou"] < signals.BAD_IOU
            result[name] = {
                "masks": len(of),
                "bad": int(bad.sum()),
                "sensitivity": float(1 - values["stability"].mean()),
                "sensitivity_auc": signals.auc(values["stability"], bad),
                "ambiguity": float(1 - values["agreement"].mean()),
                "ambiguity_auc": signals.auc(values["agreement"], bad),
                "rank_correlation": signals.rank_correlation(values["stability"], values["agreement"]),
            }
    return result


def spread_table(spreads: Mapping[str, Mapping[str, float]]) -> str:
    """The same in words and a table."""
    rows = [
        f"| {name} | {one['masks']} | {one['bad']} | {one['sensitivity']:.1%} | "
        f"{_format(one['sensitivity_auc'], '.2f')} | {one['ambiguity']:.1%} | {_format(one['ambiguity_auc'], '.2f')} | "
        f"{_format(one['rank_correlation'], '.2f')} |"
        for name, one in spreads.items()
    ]
    return (
        "Sensitivity is the spread of masks (1 - mSF) over small slips of one prompt, ambiguity that over clicks "
        "elsewhere on the predicted mask. AUC is the chance that a bad mask has a higher one than another, "
        f"0.5 for a signal that tells nothing; of fewer than {FEWEST_BAD} bad masks it decides nothing.\n\n"
        "| prompts | masks | bad | sensitivity | its AUC | ambiguity | its AUC | rank correlation of both |\n"
        "|---|---|---|---|---|---|---|---|\n" + "\n".join(rows)
    )


def figure(
    noises: Sequence[Noise],
    means: Mapping[str, Summary],
    cases: Mapping[str, Sequence[Case]],
    names: Mapping[str, str],
) -> Figure:
    """Draws curves over every noise, and risk against coverage for every system."""
    panels = [
        Panel(
            title=f"{TITLES[metric]}, {noise.title}",
            places=list(noise.kinds),
            axis=noise.axis,
            curves={
                names[system]: [100 * summary[kind][metric] for kind in noise.kinds.values()]
                for system, summary in means.items()
            },
        )
        for noise in noises
        for metric in METRICS
    ]
    risks = []
    for system, of in cases.items():
        found = columns(of)
        iou = found.pop("iou")
        named = {SIGNALS[name]: values for name, values in found.items()}
        risks.append(RiskCoverage(system=names[system], signals=named, iou=iou))
    return curves_figure(panels, risks)


def page(
    noises: Sequence[Noise],
    means: Mapping[str, Summary],
    cases: Mapping[str, Sequence[Case]],
    data_sets: Sequence[str],
) -> str:
    """The results as a page of Markdown."""
    text = f"# Sloppy boxes, few points\n\nData: {', '.join(data_sets)}; means over sets.\n\n![curves](wobble.png)\n"
    for system, summary in means.items():
        text += f"\n## {system}\n\n"
        text += "".join(f"- {describe(noise, summary)}\n" for noise in noises)
        text += f"\n{verdict(judge(cases[system]))}\n\n{spread_table(spread(cases[system]))}\n"
    return text


def describe(noise: Noise, summary: Summary) -> str:
    """What a noise does to the masks, in words."""
    (good, first), *_, (bad, last) = noise.kinds.items()
    before = 100 * summary[first]["miou"]
    changes = [
        f"{TITLES[metric]} {100 * (summary[last][metric] - summary[first][metric]):+.1f}"
        for metric in METRICS
        if (metric, first) != ("msf", EXACT)  # a single prompt always agrees with itself
    ]
    half = next((place for place, kind in noise.kinds.items() if 100 * summary[kind]["miou"] < before - 5), None)
    title = noise.title[0].upper() + noise.title[1:]
    return (
        f"{title}, {noise.axis}: mIoU {before:.1f} at {good}; at {bad} {', '.join(changes)}. "
        f"5 points of mIoU are {f'lost at {half}' if half else 'never lost'}."
    )


def verdict(judged: Mapping) -> str:
    """Whether the flag of `predict_stable` finds bad masks better than chance, in words and a table."""
    rows = [
        f"| {SIGNALS[name]} | {_format(one['rank_correlation'], '.2f')} | {_format(one['within_kinds'], '.2f')} | "
        f"{one['area']:.3f} | {_format(one['gain'], '.0%')} | {_format(one['bad_found'], '.0%')} |"
        for name, one in judged.items()
        if name in SIGNALS
    ]
    flag, predicted = judged["stability"], judged["predicted_iou"]
    lift = flag["bad_found"] / judged["flagged"] if judged["flagged"] else math.nan
    bad = round(judged["bad"] * judged["masks"])
    if bad < FEWEST_BAD:
        words = f"Not decided: {bad} of the masks are bad; give more pictures, for at least {FEWEST_BAD}."
    elif not judged["flagged"]:
        words = "Undefined: none is flagged."
    elif not lift > WORTH:
        words = "No: it finds hardly more than as many masks at random."
    elif flag["bad_found"] < predicted["bad_found"] - CLOSE:
        words = "It beats chance, but among as many masks predicted IoU finds more bad ones: sort by that."
    else:
        words = f"Yes: what it flags is {lift:.1f} times as likely to be bad as any mask. "
        close = flag["bad_found"] <= predicted["bad_found"] + CLOSE
        words += f"Predicted IoU, which needs no extra prompts, finds {'about as many' if close else 'fewer'}."
    return (
        f"Does the flag of `predict_stable` (stability below {STABLE} with a box, {STABLE_POINTS} without) find bad "
        f"masks? {words} It flags {100 * judged['flagged']:.0f} % of {judged['masks']} masks, of which "
        f"{100 * judged['bad']:.0f} % are bad (IoU below {signals.BAD_IOU}).\n\n"
        "| signal | rank correlation with IoU | within one kind of prompt | risk-coverage area | of the possible gain "
        "| bad masks found |\n|---|---|---|---|---|---|\n" + "\n".join(rows) + "\n\n"
        f"Area: {judged['chance_area']:.3f} by chance, {judged['least_area']:.3f} at best. Bad masks found: among the "
        "masks with the lowest values of the signal, as many as the flag picks."
    )


def _format(value: float, form: str) -> str:
    return "-" if math.isnan(value) else format(value, form)
