"""How well a confidence signal, which needs no ground truth, detects bad masks: rank correlation, risk and coverage.

A reviewer checks the masks with the lowest confidence. Coverage is the share of masks that are not checked, risk the
mean of 1 - IoU over them (Geifman and El-Yaniv, Selective Classification for Deep Neural Networks, 2017).
"""

import numpy as np

BAD_IOU = 0.6  # a mask with a lower IoU is useless to an annotator


def rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's rank correlation; equal values share the mean of their ranks.

    Args:
        a, b: (N,).

    Returns:
        In [-1, 1]; nan where either is constant.
    """
    ranks = np.stack([_ranks(a), _ranks(b)])
    if (ranks.std(axis=1) == 0).any():
        return float("nan")
    return float(np.corrcoef(ranks)[0, 1])


def risk_coverage(confidence: np.ndarray, iou: np.ndarray) -> np.ndarray:
    """Mean of 1 - IoU over the k most confident masks, for k from 1 to N: (N,), (N,) -> (N,).

    Masks of equal confidence each count as their mean, the expectation over random orders.
    """
    _, group, counts = np.unique(-confidence, return_inverse=True, return_counts=True)
    of_group = np.bincount(group, 1 - iou) / counts
    return np.cumsum(np.repeat(of_group, counts)) / np.arange(1, len(iou) + 1)


def area(confidence: np.ndarray, iou: np.ndarray) -> float:
    """Area under the risk-coverage curve: the mean risk over all coverages; less is better."""
    return float(risk_coverage(confidence, iou).mean())


def gain(confidence: np.ndarray, iou: np.ndarray) -> float:
    """Share of the possible reduction of the area that a signal achieves: 0 for chance, 1 for the order by IoU itself.

    Returns:
        (chance - area) / (chance - least area); nan where all masks are equally good.
    """
    chance, least = float((1 - iou).mean()), area(iou, iou)
    return (chance - area(confidence, iou)) / (chance - least) if chance > least else float("nan")


def bad_found(confidence: np.ndarray, iou: np.ndarray, share: float, limit: float = BAD_IOU) -> float:
    """Share of the masks below `limit` that is among the least confident `share` of all; nan if there are none."""
    bad = iou < limit
    least = np.argsort(confidence, kind="stable")[: round(share * len(iou))]
    return float(bad[least].sum() / bad.sum()) if bad.any() else float("nan")


def auc(confidence: np.ndarray, bad: np.ndarray) -> float:
    """Area under the ROC curve: the chance that a bad mask has less confidence than another; equal values count half.

    Args:
        confidence: (N,).
        bad: (N,) bool.

    Returns:
        In [0, 1], 0.5 for chance; nan where all masks are bad, or none.
    """
    count = int(bad.sum())
    if not 0 < count < len(bad):
        return float("nan")
    least = count * (count + 1) / 2  # sum of the ranks of the bad masks if all came first
    return float(1 - (_ranks(confidence)[bad].sum() - least) / (count * (len(bad) - count)))


def _ranks(values: np.ndarray) -> np.ndarray:
    _, group, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[group]  # the last rank of a group less half its length: its mean
