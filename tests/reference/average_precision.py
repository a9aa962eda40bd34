"""COCOeval's average precision in plain Python, as pycocotools' cocoeval.py has it; IoU as the boundary metric too."""

import numpy as np

from tests.reference import metrics

THRESHOLDS = np.linspace(0.5, 0.95, 10).tolist()
RECALLS = np.linspace(0, 1, 101).tolist()  # as there: not all are step / 100 to the bit
AREAS = {"all": (0, 1e10), "small": (0, 32**2), "medium": (32**2, 96**2), "large": (96**2, 1e10)}


def overlap(found, known, *, crowd, boundary):
    """IoU of two masks; of a crowd the share of what is found; of boundaries the lesser of both."""
    if crowd:
        return (found & known).sum() / found.sum() if found.any() else 0.0
    iou = metrics.mask_iou(found, known)
    return min(iou, metrics.boundary_iou(found, known)) if boundary else iou


def match(known, found, threshold, area, *, boundary):
    """(score, hit or miss) of the detections that count, and how many objects do; of one picture and category."""
    low, high = AREAS[area]
    ignored = [crowd or not low <= size <= high for _, size, crowd in known]
    order = sorted(range(len(known)), key=lambda index: ignored[index])
    taken, outcomes = set(), []
    for mask, score in sorted(found, key=lambda one: -one[1])[:100]:
        best, partner = min(threshold, 1 - 1e-10), None
        for index in order:
            crowd = known[index][2]
            if index in taken and not crowd:
                continue
            if partner is not None and not ignored[partner] and ignored[index]:
                break
            iou = overlap(mask, known[index][0], crowd=crowd, boundary=boundary)
            if iou >= best:
                best, partner = iou, index
        if partner is not None:
            taken.add(partner)
            if not ignored[partner]:
                outcomes.append((score, True))
        elif low <= mask.sum() <= high:
            outcomes.append((score, False))
    return outcomes, ignored.count(False)


def precision(known, found, threshold, area, *, boundary):
    """Mean precision at 101 recalls of one category, or None where there is no object.

    Args:
        known: picture -> (mask, area, is a crowd).
        found: picture -> (mask, score).
    """
    pictures = [
        match(known.get(name, []), found.get(name, []), threshold, area, boundary=boundary)
        for name in sorted(known.keys() | found.keys())
    ]
    objects = sum(count for _, count in pictures)
    if objects == 0:
        return None
    outcomes = sorted((one for part, _ in pictures for one in part), key=lambda one: -one[0])
    hits, points = 0, []
    for rank, (_, hit) in enumerate(outcomes, start=1):
        hits += hit
        points.append((hits / objects, hits / rank))
    return np.mean([max((value for recall, value in points if recall >= asked), default=0.0) for asked in RECALLS])


def average_precision(known, found, *, thresholds=THRESHOLDS, area="all", boundary=False):
    """Mean over thresholds and categories: `known` and `found` are category -> picture -> as in `precision`."""
    values = [
        precision(known[category], found.get(category, {}), threshold, area, boundary=boundary)
        for category in known
        for threshold in thresholds
    ]
    return float(np.mean([value for value in values if value is not None]))
