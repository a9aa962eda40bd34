"""`--limit` takes pictures from everywhere in a data set, and others with another seed."""

import numpy as np
import pytest

from eval.draw import even_draw


@pytest.mark.parametrize(("total", "limit"), [(120, 16), (17, 16), (1000, 7), (5, 1)])
def test_one_is_drawn_from_each_of_equal_parts(total, limit):
    draws = np.array([even_draw(total, limit, seed) for seed in range(50)])
    edges = np.arange(limit + 1) * total // limit
    assert ((edges[:-1] <= draws) & (draws < edges[1:])).all()
    assert len(np.unique(draws, axis=0)) > (1 if total > limit else 0)
    assert even_draw(total, limit, 3) == draws[3].tolist()


@pytest.mark.parametrize("limit", [None, 5, 9])
def test_all_are_taken_where_there_are_no_more(limit):
    assert even_draw(5, limit, seed=1) == [0, 1, 2, 3, 4]
