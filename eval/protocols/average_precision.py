"""COCO's average precision of masks and of boundaries, computed by faster-coco-eval's COCOeval."""

import dataclasses
from collections.abc import Iterable, Sequence

from faster_coco_eval import COCO, COCOeval_faster

from stablesam_jax.data.coco import Annotation
from stablesam_jax.data.rle import CompressedRunLengths

# Positions in COCOeval's `stats`. AP is the mean over IoU thresholds 0.50:0.05:0.95 of the mean precision at 101
# recalls, over the categories that have objects.
PLACES = {"ap": 0, "ap50": 1, "ap75": 2, "ap_small": 3, "ap_medium": 4, "ap_large": 5}
BOUNDARY = ("ap", "ap50", "ap75")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Detection:
    """A predicted mask with its category."""

    image_id: int
    category_id: int
    run_lengths: CompressedRunLengths
    score: float  # AP depends only on the order of the scores over all pictures


def average_precision(truth: Sequence[Annotation], detections: Sequence[Detection]) -> dict[str, float]:
    """Computes AP over a whole data set.

    Detections matched to crowds are ignored. The 100 best detections of a picture and category count. Ties in score
    keep the order of the pictures' ids, and within a picture that of the list. Boundary AP uses the smaller of the
    masks' IoU and their boundaries' IoU (boundary-iou-api), see `metrics.boundary_iou`.

    Args:
        truth: all annotations of the pictures, with crowds.
        detections: of the same pictures.

    Returns:
        ap, ap50, ap75, ap_small, ap_medium, ap_large and boundary_ap, boundary_ap50, boundary_ap75, as fractions; nan
        where no object is of that size.
    """
    sizes = {one.image_id: one.run_lengths["size"] for one in truth}
    sizes |= {one.image_id: one.run_lengths["size"] for one in detections}
    labelled = COCO()
    labelled.dataset = {
        "images": [{"id": id_, "height": height, "width": width} for id_, (height, width) in sizes.items()],
        "categories": [{"id": id_, "name": str(id_)} for id_ in sorted({one.category_id for one in truth})],
        "annotations": [_entry(number, one) for number, one in enumerate(truth, start=1)],
    }
    labelled.createIndex()
    found = labelled.loadRes(
        [
            {
                "image_id": one.image_id,
                "category_id": one.category_id,
                "segmentation": dict(one.run_lengths),
                "score": one.score,
            }
            for one in detections
        ]
    )
    masks, boundaries = (_summary(labelled, found, kind) for kind in ("segm", "boundary"))
    return _named(masks, PLACES) | {f"boundary_{name}": value for name, value in _named(boundaries, BOUNDARY).items()}


def _entry(number: int, one: Annotation) -> dict[str, object]:
    """An annotation as COCO's JSON, with an id from 1: COCOeval reads the id 0, which SGinW uses, as "no match"."""
    return {
        "id": number,
        "image_id": one.image_id,
        "category_id": one.category_id,
        "segmentation": dict(one.run_lengths),
        "bbox": list(one.bbox_xywh),
        "area": one.area,
        "iscrowd": int(one.iscrowd),
    }


def _summary(labelled: COCO, found: COCO, kind: str) -> Sequence[float]:
    evaluator = COCOeval_faster(labelled, found, kind)
    evaluator.run()
    return evaluator.stats


def _named(stats: Sequence[float], names: Iterable[str]) -> dict[str, float]:
    values = {name: float(stats[PLACES[name]]) for name in names}
    return {name: value if value >= 0 else float("nan") for name, value in values.items()}  # COCOeval: -1, no object
