"""Uncertainty of means over pictures: bootstrap of groups of pictures and of runs, paired between systems.

The groups of a data set (frames of a video, say; most have one picture) are resampled with replacement thousands of
times, and so are the training runs of each system, where there are several. Percentiles of the resampled means bound
the mean. All systems are averaged over the same resampled groups, so that what is hard for all of them cancels in
differences (Efron and Tibshirani, An Introduction to the Bootstrap, ch. 13).
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import scipy.stats

from eval.draw import rng_of

RESAMPLES = 2000
LEVEL = 0.95
FEWEST = 10  # groups for an interval; the percentiles of fewer are far too narrow


class Interval(NamedTuple):
    """A mean and its bounds, which are nan below `FEWEST` groups."""

    value: float
    low: float
    high: float

    @property
    def is_noise(self) -> bool:
        """Whether the interval contains 0."""
        return not (self.low > 0 or self.high < 0)

    def __neg__(self) -> "Interval":
        return Interval(-self.value, -self.high, -self.low)


class Sample(NamedTuple):
    """The results of S systems on one data set."""

    values: Sequence[np.ndarray]  # S times (R, P, K): K values of P pictures, for each of a system's R runs
    groups: Sequence[str]  # P, the group of each picture


Pair = tuple[int, int]  # indices of two systems, in order


def intervals(
    sets: Mapping[str, Sample], *, seed: int, mean: str | None = None
) -> tuple[dict[str, list[list[Interval]]], dict[str, dict[Pair, list[Interval]]]]:
    """Intervals of every mean and of the difference between any two systems.

    Args:
        sets: by data set. Pictures may differ between sets, systems and their runs may not.
        seed: of the resampling; the resamples of a set do not depend on the other sets.
        mean: name of the unweighted mean over sets, or None. Groups are resampled within each set; sets are not.

    Returns:
        data set or mean -> S lists of K intervals; and data set or mean -> two systems -> K intervals of the second
        minus the first.
    """
    means = {name: [of.mean(axis=(0, 1)) for of in sample.values] for name, sample in sets.items()}  # S times (K,)
    drawn = {name: resampled_means(sample, name, seed) for name, sample in sets.items()}  # S times (RESAMPLES, K)
    if mean is not None:
        means[mean] = [np.mean(of, axis=0) for of in zip(*means.values(), strict=True)]
        drawn[mean] = [np.mean(of, axis=0) for of in zip(*drawn.values(), strict=True)]
    own = {
        name: [_each(of, resampled) for of, resampled in zip(means[name], drawn[name], strict=True)] for name in means
    }
    count = len(next(iter(means.values())))
    pairs = [(one, other) for one in range(count) for other in range(one + 1, count)]
    differences = {
        name: {
            (one, other): _each(means[name][other] - means[name][one], drawn[name][other] - drawn[name][one])
            for one, other in pairs
        }
        for name in means
    }
    return own, differences


def resampled_means(sample: Sample, name: str, seed: int) -> list[np.ndarray]:
    """Means over resampled groups and runs: S times (RESAMPLES, K), nan below `FEWEST` groups.

    Percentiles of few draws are too narrow, so deviations are widened, see `_widening`.

    Args:
        sample: of a data set.
        name: of the data set; its groups are drawn alike for all systems.
        seed: of the resampling.
    """
    names, group = np.unique(sample.groups, return_inverse=True)
    if len(names) < FEWEST:
        return [np.full((RESAMPLES, of.shape[2]), math.nan) for of in sample.values]
    counts = _counts(rng_of("bootstrap", "groups", name, seed), len(names))[:, group]  # how often each picture is drawn
    weights = counts / counts.sum(axis=1, keepdims=True)
    drawn = []
    for number, values in enumerate(sample.values):
        means = values.mean(axis=1)  # (R, K)
        of_runs = means + _widening(len(names)) * (weights @ values - means[:, None]).swapaxes(0, 1)
        runs = len(values)
        shares = np.full((RESAMPLES, runs), 1 / runs)
        if runs > 1:
            shares += _widening(runs) * (_counts(rng_of("bootstrap", "runs", number, seed), runs) / runs - shares)
        drawn.append(np.einsum("br,brk->bk", shares, of_runs))
    return drawn


def _widening(count: int) -> float:
    """Factor of deviations for the interval of Student's t, the expanded percentile interval (Hesterberg, What Teachers
    Should Know About the Bootstrap, 2015, sec. 4.3): 1.07 for 25 groups, 2.7 for 3 runs.
    """
    t = scipy.stats.t.ppf((1 + LEVEL) / 2, count - 1) / scipy.stats.norm.ppf((1 + LEVEL) / 2)
    return math.sqrt(count / (count - 1)) * float(t)


def _counts(rng: np.random.Generator, count: int) -> np.ndarray:
    """How often each of `count` is drawn, in `count` draws with replacement: (RESAMPLES, count)."""
    return rng.multinomial(count, np.full(count, 1 / count), size=RESAMPLES)


def _each(means: np.ndarray, drawn: np.ndarray) -> list[Interval]:
    """(K,) and (RESAMPLES, K) -> K percentile intervals."""
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    return [Interval(*map(float, one)) for one in zip(means, low, high, strict=True)]
