"""`mess`: class maps from one prompt for each connected region, mean IoU of the classes (Tables 8 and 9).

Regions, prompts and the fusion of masks to classes are those of SAM-MESS (`model/visual_prompts.py`, `sam_model.py`);
pictures keep their aspect ratio. Prompts are drawn on the class map at one scale, that of SAM's input, so that systems
of any input size get the same prompts.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal

import cv2
import numpy as np
import tyro
from PIL import Image

from eval.identity import identity
from eval.journal import Record
from eval.loop import Summary
from eval.prompt_kinds import REGION_KINDS, draw_region_prompt
from eval.protocols import systems
from eval.report.tables import MEAN, mean_of_sets
from stablesam_jax.config import MASK_TOKENS, Frame
from stablesam_jax.data import datasets
from stablesam_jax.data.class_maps import ClassMap, ClassMaps
from stablesam_jax.data.label_file import IGNORE
from stablesam_jax.data.sources import open_all_class_maps
from stablesam_jax.errors import InputError
from stablesam_jax.metrics import class_iou, class_miou, confusion
from stablesam_jax.model.sam import Sam
from stablesam_jax.params import Params
from stablesam_jax.predict.postprocess import upscale_logits
from stablesam_jax.predict.predictor import Predictor
from stablesam_jax.predict.preprocess import resized_size
from stablesam_jax.prompts import Prompt

METRICS = ("miou",)
MIN_PIXELS = 10  # of a region at the scale of the prompts; smaller ones are not prompted
MOST_REGIONS = 100  # of a picture; the largest are prompted
DOMAINS = tuple(dict.fromkeys(row.domain for row in datasets.MESS.values()))
PAXRAY, PAXRAY_TASKS = "mess/paxray-4", tuple(f"mess/paxray-{task}" for task in datasets.PAXRAY_TASKS)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MessConfig(systems.Options):
    """Class maps from a prompt for each connected region, class-wise mean IoU (Tables 8, 9).

    Data: folders with im/, gt/ and classes.json, built ones, mess/NAME:DIR, or mess:DIR for all sets.
    """

    prompts: tuple[str, ...] = REGION_KINDS
    """Kinds: oracle-point oracle-box random-point noisy-box, one prompt for each region."""
    scale: int = 1024
    """Longer side in pixels to which class maps are resized to find regions and draw prompts. MESS uses the size of the
    model's input, which is 1024 in the paper; a fixed size gives smaller models the same prompts."""
    background_prompts: bool = True
    """Whether to prompt regions of the background class too. The paper does not say; MESS's code does."""
    add_base: bool = True
    """Whether to add the logits without the plugin to those with it, unweighted. The paper adds SAM's prediction (sec.
    7.1), as HQ-SAM does, and gives no weights. Every prompt is then decoded twice."""
    router_token: Literal["single", "answer"] = "single"
    """Which token the router reads. single: that of the single mask, on which the plugin was trained. answer: that of
    the mask that is used here, the first of three. The paper has only one output mask token. On an HQ-SAM the router
    always reads the HQ token."""


@dataclasses.dataclass(frozen=True)
class Region:
    """Connected pixels of one class."""

    label: int  # the class
    mask: np.ndarray  # (h, w) bool, cropped to the bounding rectangle
    corner: tuple[int, int]  # (x, y) of the rectangle's upper left pixel


def mess(config: Annotated[MessConfig, tyro.conf.arg(name="")]) -> None:
    """Mean IoU of classes on each set of MESS, by domain and over all sets."""
    if config.scale < 1:
        raise InputError(f"--scale {config.scale}: must be at least 1.")
    systems.check_options(config, config.prompts, REGION_KINDS)
    sources = open_all_class_maps(config.data_dir)
    if taken := sources.keys() & {PAXRAY, *DOMAINS}:
        raise InputError(f"--data-dir: {', '.join(taken)} is the name of a mean in the results; rename the folder.")

    def score(sam: Sam, params: Params, source: ClassMaps, each_picture: systems.EachPicture) -> systems.Found:
        if config.router_token == "answer" and sam.config.plugin is not None and not sam.config.hq:
            sam = sam.clone(plugin=sam.plugin.clone(output_token=MASK_TOKENS.start + 1))

        def make(params: Params) -> systems.Begin:
            predictor = Predictor(sam, params)
            return lambda index: begin(predictor, source[index], source, config)

        return score_records(each_picture(make), source, config)

    def identify(source: ClassMaps, index: int) -> dict[str, str]:
        labelled = source[index]
        return identity(labelled.picture, labelled.label)

    systems.run(
        config, sources, score, protocol="mess", metrics=METRICS, lines_file="per_class.csv", identify=identify,
        means=means_of_sets,
    )  # fmt: skip


def score_records(records: Iterable[Record], source: ClassMaps, config: MessConfig) -> systems.Found:
    """Scores a system on one data set.

    Args:
        records: of `begin`, one for each picture.

    Returns:
        mIoU by kind of prompt, and a csv line for each class that is labelled or predicted.
    """
    confused = {kind: np.zeros((source.classes, source.classes), np.int64) for kind in config.prompts}
    for record in records:
        for kind, counted in record["confused"].items():
            places, pixels = np.array(counted, np.int64)
            confused[kind].ravel()[places] += pixels
    lines: list[systems.Line] = [
        {
            "kind": kind,
            "class": number,
            "pixels": matrix[:, number].sum(),
            "predicted": matrix[number].sum(),
            "agreed": matrix[number, number],
            "iou": f"{iou:.6f}",
        }
        for kind, matrix in confused.items()
        for number, iou in enumerate(class_iou(matrix))
        if not np.isnan(iou)
    ]
    return systems.Found(summary={kind: {"miou": class_miou(matrix)} for kind, matrix in confused.items()}, lines=lines)


def begin(predictor: Predictor, labelled: ClassMap, source: ClassMaps, config: MessConfig) -> Callable[[], Record]:
    """Encodes a picture and decodes the prompts of its regions.

    Returns:
        the rest of the work, which needs the host alone: a function that makes class maps of the logits and their
        confusion matrices. The record holds these sparsely, as indices and counts.
    """
    regions, logits_by_kind = segment_regions(predictor, labelled, source, config)

    def finish() -> Record:
        confused = {}
        for kind, logits in logits_by_kind.items():
            predicted = class_map(regions, logits, labelled.label.shape, source, predictor.sam.config.frame)
            counted = confusion(predicted, labelled.label, classes=source.classes, ignore=IGNORE).ravel()
            places = np.flatnonzero(counted)
            confused[kind] = [places.tolist(), counted[places].tolist()]
        return {**identity(labelled.picture, labelled.label), "confused": confused}

    return finish


def segment_regions(
    predictor: Predictor, labelled: ClassMap, source: ClassMaps, config: MessConfig
) -> tuple[list[Region], dict[str, np.ndarray]]:
    """Finds the regions of a picture and prompts for them: regions, kind -> (regions, 4G, 4G) logits."""
    size_hw = labelled.picture.shape[:2]
    frame_hw = resized_size(size_hw, Frame(config.scale))
    unprompted = {IGNORE} if config.background_prompts else {IGNORE, source.background}
    regions = find_regions(to_frame(labelled.label, frame_hw), unprompted)
    predictor.set_image(labelled.picture)
    systems_added = [predictor]
    if config.add_base and predictor.sam.config.plugin is not None:
        systems_added.append(predictor.without_plugin())
    logits_by_kind: dict[str, np.ndarray] = {}
    for kind in config.prompts:
        prompts = [
            draw_region_prompt(
                kind,
                region.mask,
                corner=region.corner,
                size_hw=frame_hw,
                picture_id=labelled.name,
                object_id=number,
                seed=config.seed,
            )
            for number, region in enumerate(regions)
        ]
        arguments = in_picture(prompts, frame_hw, size_hw)
        # The first of the three masks is used, whatever their predicted IoU.
        logits = [one.predict_low_res(**arguments, multimask_output=True)[0][:, 0] for one in systems_added]
        logits_by_kind[kind] = sum(logits[1:], start=logits[0])
    return regions, logits_by_kind


def class_map(
    regions: Sequence[Region], logits: np.ndarray, size_hw: tuple[int, int], source: ClassMaps, frame: Frame
) -> np.ndarray:
    """Fuses the logits of all regions to a class map (H, W)."""
    best: dict[int, np.ndarray] = {}
    for region, low_res in zip(regions, logits, strict=True):
        scores = upscale_logits(low_res, size_hw, frame)
        best[region.label] = np.maximum(best[region.label], scores) if region.label in best else scores
    return fuse(best, classes=source.classes, background=source.background)


def to_frame(label: np.ndarray, frame_hw: tuple[int, int]) -> np.ndarray:
    """Resizes a class map to the scale of the prompts, nearest neighbour: (H, W) uint8 -> `frame_hw`."""
    return np.asarray(Image.fromarray(label).resize(frame_hw[::-1], Image.Resampling.NEAREST))


def find_regions(label: np.ndarray, unprompted: Iterable[int | None]) -> list[Region]:
    """Finds the 4-connected regions that are prompted, the largest first.

    Args:
        label: (H, W) uint8 classes.
        unprompted: values whose regions get no prompt.

    Returns:
        At most `MOST_REGIONS` of at least `MIN_PIXELS`; regions of equal size by class. If there is none, the upper
        left pixel as a region of class 0, as in MESS.
    """
    found = []
    for number in np.setdiff1d(label, [value for value in unprompted if value is not None]):
        _, numbered, stats, _ = cv2.connectedComponentsWithStats((label == number).astype(np.uint8), connectivity=4)
        for component in range(1, len(stats)):  # component 0 is the background
            x, y, width, height, area = stats[component].tolist()
            if area >= MIN_PIXELS:
                crop = numbered[y : y + height, x : x + width]
                found.append((area, Region(int(number), crop == component, (x, y))))
    found.sort(key=lambda entry: -entry[0])
    return [region for _, region in found[:MOST_REGIONS]] or [Region(0, np.ones((1, 1), bool), (0, 0))]


def in_picture(prompts: Sequence[Prompt], frame_hw: tuple[int, int], size_hw: tuple[int, int]) -> dict[str, Any]:
    """Converts prompts of one kind to arguments of `Predictor.predict`, in pixels of the picture.

    Inverts `preprocess.to_model_frame`: if the frame is the model's input, the model gets the coordinates unchanged.
    """
    factors = np.array(size_hw[::-1], np.float64) / frame_hw[::-1]
    boxes = [prompt.box for prompt in prompts if prompt.box is not None]
    if boxes:
        return {"box": np.stack(boxes)[:, None] * np.tile(factors, 2)}
    points = np.stack([prompt.points for prompt in prompts]) * factors
    return {"point_coords": points, "point_labels": np.stack([prompt.labels for prompt in prompts])}


def fuse(best: Mapping[int, np.ndarray], *, classes: int, background: int | None) -> np.ndarray:
    """The class of each pixel: argmax over classes, ties to the lower class.

    The score of a prompted class is its best logit, that of any other class 0. Where no score is above 0, the
    background, if there is one, scores 1.

    Args:
        best: class -> (H, W) logits, at least one.
        classes: number of classes.
        background: the background class, or None.

    Returns:
        (H, W) integers.
    """
    absent = [number for number in range(classes) if number not in best][:1]  # all score 0, and ties go to the first
    numbers = sorted({*best, *absent, *([] if background is None else [background])})
    nothing = np.zeros_like(next(iter(best.values())))
    scores = np.stack([best.get(number, nothing) for number in numbers])
    if background is not None:
        scores[numbers.index(background), scores.max(axis=0) <= 0] = 1
    return np.array(numbers)[scores.argmax(axis=0)]


def means_of_sets(sets: Mapping[str, Summary]) -> dict[str, Summary]:
    """The means that the paper's tables have beside single sets.

    The mean over the four tasks of PAXRay counts as one set. Then the mean of each domain's sets, and of all sets.
    Where sets are missing, the name of a mean has their number.
    """
    means: dict[str, Summary] = {}
    whole = {name: summary for name, summary in sets.items() if name not in PAXRAY_TASKS}
    if tasks := {name: sets[name] for name in PAXRAY_TASKS if name in sets}:
        means[_of(PAXRAY, len(tasks), len(PAXRAY_TASKS), "tasks")] = whole[PAXRAY] = mean_of_sets(tasks)
    domain_of = {PAXRAY if name in PAXRAY_TASKS else name: row.domain for name, row in datasets.MESS.items()}
    for domain in DOMAINS:
        official = [name for name, its_domain in domain_of.items() if its_domain == domain]
        if given := {name: whole[name] for name in official if name in whole}:
            means[_of(domain, len(given), len(official), "sets")] = mean_of_sets(given)
    return means | ({MEAN: mean_of_sets(whole)} if len(whole) > 1 else {})


def _of(name: str, given: int, official: int, what: str) -> str:
    return name if given == official else f"{name} ({given} of {official} {what})"
