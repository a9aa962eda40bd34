"""A small predictor, four pictures, and its answers for each."""

import functools

import numpy as np

from stablesam_jax import Predictor
from tests.reference import small

SQUARES = [np.random.default_rng(index).integers(0, 256, (40 + index, 64, 3), np.uint8) for index in range(4)]
BOX = [5, 6, 40, 30]


@functools.cache
def nano():
    """A small predictor without a picture, and what it says of each of SQUARES."""
    made = Predictor(*small.nano())
    with small.quick_compilation():
        return made, [answers(made, picture=made.encode(square)) for square in SQUARES]


def answers(ours, **arguments):
    return ours.predict(box=BOX, multimask_output=False, **arguments)


def right(found, index):
    return all(map(np.array_equal, found, nano()[1][index]))
