"""How far figures would move on other pictures: the bootstrap over pictures, paired between systems.

A data set is a sample of pictures. It is drawn again, with replacement, thousands of times; the spread of the means is
the uncertainty of the mean. Every system is averaged over the same drawn pictures, so a difference between two of them
is free of what is hard or easy for both (Efron and Tibshirani, An Introduction to the Bootstrap, ch. 13: percentiles).
"""

import hashlib
import json
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

RESAMPLES = 2000
LEVEL = 0.95


class Interval(NamedTuple):
    """Where a mean lies; nan where there are too few pictures to tell."""

    value: float
    low: float
    high: float

    @property
    def is_noise(self) -> bool:
        """Whether it may as well be 0."""
        return not (self.low > 0 or self.high < 0)


def resampled_means(values: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Means over pictures that are drawn again with replacement.

    Args:
        values: (S, P, K), K figures of P pictures for each of S systems.
        rng: advanced by the call.

    Returns:
        (S, RESAMPLES, K); the same pictures for all systems in each of them.
    """
    pictures = values.shape[1]
    drawn = rng.multinomial(pictures, np.full(pictures, 1 / pictures), size=RESAMPLES)  # how often each one is drawn
    return drawn / pictures @ values


def interval(value: float, resampled: np.ndarray) -> Interval:
    """The percentile interval of a figure: (RESAMPLES,) means of `resampled_means`."""
    low, high = np.quantile(resampled, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(value, float(low), float(high))


def intervals(
    sets: Mapping[str, np.ndarray], *, seed: int, mean: str | None = None
) -> tuple[dict[str, list[list[Interval]]], dict[str, list[list[Interval]]]]:
    """Intervals of every figure and of every difference from the first system.

    Args:
        sets: data set -> (S, P, K). P may differ between sets; a single picture tells nothing of others.
        seed: of the draws; those of a set do not depend on the other sets.
        mean: name of the unweighted mean over sets, if it is wanted: pictures are drawn within every set, which are as
            they are.

    Returns:
        data set or mean -> S lists of K intervals, and the same for the S - 1 differences of the others from the first.
    """
    means = {name: values.mean(axis=1) for name, values in sets.items()}  # (S, K)
    drawn = {
        name: resampled_means(values, _rng(name, seed))
        if values.shape[1] > 1
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
