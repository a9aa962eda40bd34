"""`coco` and `sginw`: masks from boxes as detections, scored by average precision (Tables 3, 4, 10 and 11).

Masks come from `Predictor`, as from SamPredictor in the paper: pictures keep their aspect ratio, and HQ-SAM returns the
sum of its own mask and SAM's.
"""

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal

import numpy as np
import tyro
from faster_coco_eval.core import mask as mask_api

from eval.identity import TRUTH, identity
from eval.journal import Record
from eval.prompt_kinds import BOX_KINDS, draw_boxes
from eval.protocols import systems
from eval.protocols.average_precision import Detection, average_precision
from stablesam_jax.data.coco import Annotation, CocoPictures, id_of
from stablesam_jax.data.findings import refuse
from stablesam_jax.data.sources import open_instances
from stablesam_jax.errors import InputError
from stablesam_jax.model.sam import Sam
from stablesam_jax.params import Params
from stablesam_jax.predict.postprocess import upscale_masks
from stablesam_jax.predict.predictor import Predictor
from stablesam_jax.prompts import box_iou

METRICS = ("ap", "ap50", "boundary_ap")
DETECTOR = "detector-box"  # kind of the prompts from --detections
NOT_READ = np.zeros((0, 0, 3), np.uint8)  # a picture without prompts

Rule = Literal["iou", "constant", "detector"]
# Score of a detection: a function of its box's score and of the predicted IoU.
RULES: Mapping[Rule, Callable[[float, float], float]] = {
    "iou": lambda box_score, predicted_iou: box_score * predicted_iou,
    "constant": lambda box_score, predicted_iou: 1.0,
    "detector": lambda box_score, predicted_iou: box_score,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class InstancesConfig(systems.Options):
    """Masks from boxes as detections, AP by COCOeval (Tables 3, 4, 10, 11).

    Data: folders with images/ and annotations.json, coco-val2017:DIR, sginw/NAME:DIR, or sginw:DIR for all 25.
    """

    prompts: tuple[str, ...] = ("n-box-50", "n-box-60")
    """Kinds: gt-box noisy-box n-box-50 n-box-60, one box for each object. An object is an annotation that is no crowd
    and covers at least one pixel. For n-box-50 and n-box-60 the paper gives the range of IoU but not the noise. Here
    noise of scale 0.4, as in noisy-box, is drawn until the IoU is in the range."""
    detections: tuple[pathlib.Path, ...] = ()
    """Boxes of a detector in COCO's result format, used instead of --prompts; a file for each --data-dir."""
    top: int = 100
    """Number of boxes of a picture that are used from --detections, by score. The paper does not say; its detectors
    were published with 100 and with 300 boxes. COCOeval reads 100 per category."""
    scores: tuple[Rule, ...] = ()
    """How masks are scored, with a column for each rule. iou: the box's score times SAM's predicted IoU; the score of
    --prompts is 1. constant: 1. detector: the box's score. The paper does not say. Default with --prompts: iou, which
    is equivalent to COCO's published code, and constant. Default with --detections: iou, and detector as in SGinW's
    code."""


def coco(config: Annotated[InstancesConfig, tyro.conf.arg(name="")]) -> None:
    """Average precision of masks from boxes of given IoU, or from a detector's boxes, by COCOeval."""
    _run(config, "coco")


def sginw(config: Annotated[InstancesConfig, tyro.conf.arg(name="")]) -> None:
    """The same as coco on the sets of SGinW, with their unweighted mean."""
    _run(config, "sginw")


@dataclasses.dataclass(frozen=True, kw_only=True)
class BoxPrompt:
    """A box prompt of a picture, with the category and score of its detection."""

    kind: str
    category_id: int
    box: np.ndarray  # (4,) XYXY in pixels of the picture
    box_score: float = 1.0
    annotation: Annotation | None = None  # the object that it was drawn from


@dataclasses.dataclass(frozen=True, kw_only=True)
class Boxes:
    """Boxes of a detector by picture, in order of falling score."""

    sha256: str  # of the file
    by_image: Mapping[int, Sequence[BoxPrompt]]


def _run(config: InstancesConfig, protocol: str) -> None:
    if config.top < 1:
        raise InputError(f"--top {config.top}: must be at least 1.")
    if len(set(config.scores)) < len(config.scores):
        raise InputError(f"--scores {' '.join(config.scores)}: give each rule once.")
    systems.check_options(config, config.prompts, BOX_KINDS)
    sources = open_instances(config.data_dir)
    if len(config.detections) not in (0, len(sources)):
        raise InputError(
            f"--detections: {len(config.detections)} files for {len(sources)} data sets; give one for each."
        )
    boxes = {
        source.name: read_boxes(path, source)
        for path, source in zip(config.detections, sources.values(), strict=False)  # `detections` may be empty
    }
    rules = config.scores or (("iou", "detector") if boxes else ("iou", "constant"))

    def prompts(source: CocoPictures, index: int) -> Sequence[BoxPrompt]:
        if boxes:
            return boxes[source.name].by_image.get(source.image_ids[index], ())[: config.top]
        return draw_box_prompts(source, index, kinds=config.prompts, seed=config.seed)

    def score(sam: Sam, params: Params, source: CocoPictures, each_picture: systems.EachPicture) -> systems.Found:
        kinds = (DETECTOR,) if boxes else config.prompts

        def make(params: Params) -> systems.Begin:
            predictor = Predictor(sam, params)
            return lambda index: begin(predictor, source, index, prompts(source, index))

        return score_records(each_picture(make), source, config.choice.drawn(source), kinds=kinds, rules=rules)

    systems.run(
        config,
        sources,
        score,
        protocol=protocol,
        metrics=METRICS,
        lines_file="per_object.csv",
        identify=lambda source, index: identify(
            source, index, source.picture(index) if prompts(source, index) else NOT_READ
        ),
        more={"scores": rules, "detections": {name: found.sha256 for name, found in boxes.items()}},
    )


def draw_box_prompts(source: CocoPictures, index: int, *, kinds: Sequence[str], seed: int) -> list[BoxPrompt]:
    """Draws a box of each kind for each object of a picture."""
    prompts = []
    for annotation in source.objects(index):
        x, y, width, height = annotation.bbox_xywh
        for kind in kinds:
            (box,) = draw_boxes(
                kind,
                np.array([x, y, x + width, y + height]),
                size_hw=source.size_hw(index),
                picture_id=source.names[index],
                object_id=annotation.annotation_id,
                seed=seed,
                count=1,
            )
            prompts.append(BoxPrompt(kind=kind, category_id=annotation.category_id, box=box, annotation=annotation))
    return prompts


def begin(predictor: Predictor, source: CocoPictures, index: int, prompts: Sequence[BoxPrompt]) -> Callable[[], Record]:
    """Encodes a picture and decodes its prompts.

    Returns:
        the rest of the work, which needs the host alone: a function that resizes the masks and makes the record.
    """
    logits, predicted_iou = np.zeros((0, 1, 1, 1)), np.zeros((0, 1))
    size_hw = source.size_hw(index)
    picture = NOT_READ
    if prompts:
        picture = source.picture(index)
        predictor.set_image(picture)
        boxes = np.stack([prompt.box for prompt in prompts])[:, None]
        logits, predicted_iou = predictor.predict_low_res(box=boxes, multimask_output=False)

    def finish() -> Record:
        answers = []
        for prompt, low_res, iou in zip(prompts, logits[:, 0], predicted_iou[:, 0], strict=True):
            mask = upscale_masks(low_res, size_hw, predictor.sam.config.frame)
            run_lengths = mask_api.encode(np.asfortranarray(mask, np.uint8))
            answers.append(
                {
                    "kind": prompt.kind,
                    "category_id": prompt.category_id,
                    "box_score": prompt.box_score,
                    "predicted_iou": float(iou),
                    "run_lengths": {"size": list(size_hw), "counts": run_lengths["counts"].decode()},
                    "line": _line(source, index, prompt, run_lengths, float(iou)),
                }
            )
        return {**identify(source, index, picture), "answers": answers}

    return finish


def identify(source: CocoPictures, index: int, picture: np.ndarray) -> dict[str, str]:
    """What the record of a picture is of, see `eval.identity`."""
    truth = [(one.annotation_id, one.category_id, one.iscrowd, one.run_lengths) for one in source.annotations[index]]
    return identity(picture) | {TRUTH: hashlib.sha256(repr(truth).encode()).hexdigest()}


def score_records(
    records: Iterable[Record],
    source: CocoPictures,
    indices: Sequence[int],
    *,
    kinds: Sequence[str],
    rules: Sequence[Rule],
) -> systems.Found:
    """Scores a system on one data set.

    Args:
        records: of `begin`, one for each picture of `indices`.
        source: the data set, including pictures without objects.
        indices: the evaluated pictures.
        kinds: of prompts.
        rules: of detection scores.

    Returns:
        AP by "KIND, RULE", and a csv line for each prompt.
    """
    truth = [annotation for index in indices for annotation in source.annotations[index]]
    found: dict[str, list[Detection]] = {f"{kind}, {rule}": [] for kind in kinds for rule in rules}
    lines: list[systems.Line] = []
    for index, record in zip(indices, records, strict=True):
        for answer in record["answers"]:
            for rule in rules:
                found[f"{answer['kind']}, {rule}"].append(
                    Detection(
                        image_id=source.image_ids[index],
                        category_id=answer["category_id"],
                        run_lengths=answer["run_lengths"],
                        score=RULES[rule](answer["box_score"], answer["predicted_iou"]),
                    )
                )
            lines.append(answer["line"])
    return systems.Found(
        summary={column: average_precision(truth, detections) for column, detections in found.items()}, lines=lines
    )


def _line(source: CocoPictures, index: int, prompt: BoxPrompt, run_lengths: Any, predicted_iou: float) -> systems.Line:
    """The csv line of one mask. A detector's box belongs to no annotation, so it has no IoU."""
    truth = prompt.annotation
    line: dict[str, object] = {
        "picture": source.names[index],
        "object": "" if truth is None else truth.annotation_id,
        "category": source.categories[prompt.category_id],
        "kind": prompt.kind,
        **{side: f"{value:.3f}" for side, value in zip(("x0", "y0", "x1", "y1"), prompt.box, strict=True)},
        "box_score": prompt.box_score,
        "box_iou": "",
        "predicted_iou": f"{predicted_iou:.6f}",
        "iou": "",
    }
    if truth is not None:
        x, y, width, height = truth.bbox_xywh
        line["box_iou"] = f"{box_iou(prompt.box, np.array([x, y, x + width, y + height])):.6f}"
        line["iou"] = f"{float(mask_api.iou([run_lengths], [truth.run_lengths], [0])[0, 0]):.6f}"
    return line


def read_boxes(path: pathlib.Path, source: CocoPictures) -> Boxes:
    """Reads the boxes of a detector.

    Args:
        path: a list of {"image_id", "category_id", "bbox": [x, y, width, height], "score"}.
        source: the data set.

    Raises:
        InputError: the file is no such list, or entries of it are malformed or outside their picture; one line names
            them all.
    """
    try:
        content = path.read_bytes()
        entries = json.loads(content)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}).") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: is no JSON, or cut short ({error}); write it again.") from None
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise InputError(f'{path}: is no list of detections [{{"image_id", "category_id", "bbox", "score"}}, ...].')
    sizes = {image_id: source.size_hw(index) for index, image_id in enumerate(source.image_ids)}
    by_image: dict[int, list[BoxPrompt]] = {}
    faults: list[str] = []
    for number, entry in enumerate(entries):
        try:
            image_id, prompt = _box_prompt(entry, sizes, source.categories)
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            reason = f"lacks {error}" if isinstance(error, KeyError) else str(error)
            faults.append(f"{path}: detection {number} {reason}; correct or remove it.")
            continue
        by_image.setdefault(image_id, []).append(prompt)
    refuse(faults)
    for prompts in by_image.values():
        prompts.sort(key=lambda prompt: -prompt.box_score)
    return Boxes(sha256=hashlib.sha256(content).hexdigest(), by_image=by_image)


def _box_prompt(
    entry: Mapping[str, Any], sizes: Mapping[int, tuple[int, int]], categories: Mapping[int, str]
) -> tuple[int, BoxPrompt]:
    """Checks a detection of the file; returns the id of its picture, too.

    Raises:
        KeyError, TypeError, ValueError, OverflowError: what is wrong with it.
    """
    image_id, category_id = id_of(entry, "image_id"), id_of(entry, "category_id")
    if image_id not in sizes:
        raise ValueError(f"is of picture {image_id}, which is not in the data set")
    if category_id not in categories:
        raise ValueError(f"is of category {category_id}, which is not in the data set")
    box, score = np.array(entry["bbox"], np.float64), float(entry["score"])
    if box.shape != (4,) or not np.isfinite([*box, score]).all() or min(box[2:]) < 0:
        raise ValueError(f"has the box {entry['bbox']} and score {score}, not x, y, width, height and a number")
    corners = np.concatenate([box[:2], box[:2] + box[2:]])
    height, width = sizes[image_id]
    if min(corners[2:]) < 0 or corners[0] > width or corners[1] > height:
        raise ValueError(f"has a box outside its picture of {width} x {height} pixels")
    return image_id, BoxPrompt(kind=DETECTOR, category_id=category_id, box=corners, box_score=score)
