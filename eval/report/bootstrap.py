"""Uncertainty of means over pictures: percentile bootstrap, paired between systems.

The pictures of a data set are resampled with replacement thousands of times; percentiles of the resampled means bound
the mean. All systems are averaged over the same resampled pictures, so that what is hard for all of them cancels in
differences (Efron and Tibshirani, An Introduction to the Bootstrap, ch. 13).
"""

import hashlib
import json
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

RESAMPLES = 2000
LEVEL = 0.95
FEWEST = 10  # pictures for an interval; the percentiles of fewer are far too narrow


class Interval(NamedTuple):
    """A mean and its bounds, which are nan below `FEWEST` pictures."""

    value: float
    low: float
    high: float

    @property
    def is_noise(self) -> bool:
        """Whether the interval contains 0."""
        return not (self.low > 0 or self.high < 0)


def resampled_means(values: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Means over pictures that are resampled with replacement.

    Args:
        values: (S, P, K), K values of P pictures for each of S systems.
        rng: advanced by the call.

    Returns:
        (S, RESAMPLES, K); each resample has the same pictures for all systems.
    """
    pictures = values.shape[1]
    drawn = rng.multinomial(pictures, np.full(pictures, 1 / pictures), size=RESAMPLES)  # how often each is drawn
    return drawn / pictures @ values


def interval(value: float, resampled: np.ndarray) -> Interval:
    """The percentile interval of a mean from its (RESAMPLES,) `resampled_means`."""
    low, high = np.quantile(resampled, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(value, float(low), float(high))


def intervals(
    sets: Mapping[str, np.ndarray], *, seed: int, mean: str | None = None
) -> tuple[dict[str, list[list[Interval]]], dict[str, list[list[Interval]]]]:
    """Intervals of every mean and of every difference from the first system.

    Args:
        sets: data set -> (S, P, K). P may differ between sets; below `FEWEST` there is no interval.
        seed: of the resampling; the resamples of a set do not depend on the other sets.
        mean: name of the unweighted mean over sets, or None. Pictures are resampled within each set; sets are not.

    Returns:
        data set or mean -> S lists of K intervals, and the same for the S - 1 differences of the others from the first.
    """
    means = {name: values.mean(axis=1) for name, values in sets.items()}  # (S, K)
    drawn = {
        name: resampled_means(values, _rng(name, seed))
        if values.shape[1] >= FEWEST
        else np.full((len(values), RESAMPLES, values.shape[2]), np.nan)
        for name, values in sets.items()
    }
    if mean is not None:
        means[mean] = np.mean(list(means.values()), axis=0)
        drawn[mean] = np.mean(list(drawn.values()), axis=0)
    own = {name: _each(means[name], drawn[name]) for name in means}
    differences = {name: _each(means[name][1:] - means[name][:1], drawn[name][1:] - drawn[name][:1]) for name in means}
    return own, differences


def _each(means: np.ndarray, drawn: np.ndarray) -> list[list[Interval]]:
    """(S, K) and (S, R, K) -> S lists of K."""
    return [
        [interval(float(value), column) for value, column in zip(row, columns.T, strict=True)]
        for row, columns in zip(means, drawn, strict=True)
    ]


def _rng(name: str, seed: int) -> np.random.Generator:
    digest = hashlib.sha256(json.dumps(["bootstrap", name, seed]).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest, "big"))
