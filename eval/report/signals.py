"""Does a number that needs no ground truth tell which masks are bad? Rank correlation and risk against coverage.

A reviewer looks at the masks that a signal trusts least. Risk is the mean of 1 - IoU of the masks that nobody looks at,
coverage their share (Geifman and El-Yaniv, Selective Classification for Deep Neural Networks, 2017).
"""

import numpy as np

BAD_IOU = 0.6  # below it a mask is of no use to an annotator


def rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's: the correlation of ranks, equal values sharing the mean of theirs.

    Args:
        a, b: (N,).

    Returns:
        In [-1, 1]; nan where either is constant.
    """
    ranks = np.stack([_ranks(a), _ranks(b)])
    if (ranks.std(axis=1) == 0).any():
        return float("nan")
    return float(np.corrcoef(ranks)[0, 1])


def risk_coverage(trust: np.ndarray, iou: np.ndarray) -> np.ndarray:
    """Mean of 1 - IoU of the k masks that are trusted most, for k from 1 to N: (N,), (N,) -> (N,).

    Masks that are trusted alike share their mean, as if their order were drawn.
    """
    _, group, counts = np.unique(-trust, return_inverse=True, return_counts=True)
    alike = np.bincount(group, 1 - iou) / counts
    return np.cumsum(np.repeat(alike, counts)) / np.arange(1, len(iou) + 1)


def area(trust: np.ndarray, iou: np.ndarray) -> float:
    """Area under the risk-coverage curve: the mean risk over all coverages; less is better."""
    return float(risk_coverage(trust, iou).mean())


def gain(trust: np.ndarray, iou: np.ndarray) -> float:
    """How much of the possible a signal achieves: 0 for one that knows nothing, 1 for one that orders by IoU itself.

    Returns:
        (chance - area) / (chance - least area); nan where all masks are equally good.
    """
    chance, least = float((1 - iou).mean()), area(iou, iou)
    return (chance - area(trust, iou)) / (chance - least) if chance > least else float("nan")


def bad_found(trust: np.ndarray, iou: np.ndarray, share: float) -> float:
    """Of the masks below BAD_IOU, the share that lies among the least trusted `share` of all masks; nan without any."""
    bad = iou < BAD_IOU
    least = np.argsort(trust, kind="stable")[: round(share * len(iou))]
    return float(bad[least].sum() / bad.sum()) if bad.any() else float("nan")


def _ranks(values: np.ndarray) -> np.ndarray:
    _, group, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[group]
