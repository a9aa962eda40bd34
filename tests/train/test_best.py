"""The best step is kept until a better one and all checkpoints before it are past."""

import numpy as np
import pytest

from stablesam_jax.errors import InputError
from train.best import Best


def tree(value):
    return {"plugin": {"scale": np.full(3, value, np.float32)}}


@pytest.fixture
def best(tmp_path):
    """Scores of steps 10 to 40, of which 10 and 30 were the best so far."""
    best = Best(tmp_path / "best")
    for step, score in ((10, 0.5), (20, 0.4), (30, 0.6), (40, 0.6)):
        best.offer(step, score, tree(step))
    return best


def kept(best):
    return sorted(int(path.name) for path in best.folder.iterdir())


def test_the_first_of_the_best_scores_is_kept(best):
    assert (best.step, best.score) == (30, 0.6)
    assert best.load(tree(0))["plugin"]["scale"].tolist() == [30, 30, 30]
    assert kept(best) == [10, 30]


@pytest.mark.parametrize(("done", "step", "score"), [(29, 10, 0.5), (30, 30, 0.6), (35, 30, 0.6), (9, None, 0.0)])
def test_a_run_that_is_continued_has_the_best_until_its_checkpoint(best, done, step, score):
    again = Best(best.folder)
    again.resume(done)
    assert (again.step, again.score) == (step, score)
    assert all(number <= done for number in kept(again))


def test_what_the_oldest_checkpoint_needs_is_not_removed(best):
    best.prune(29)
    assert kept(best) == [10, 30]
    best.prune(30)
    assert kept(best) == [30]
    best.prune(99)
    assert kept(best) == [30]


def test_damage_is_one_line(best):
    victim = max((best.folder / "00000030").rglob("*"), key=lambda path: path.is_file() and path.stat().st_size)
    victim.write_bytes(victim.read_bytes()[:-1])
    with pytest.raises(InputError, match="00000030: damaged"):
        best.load(tree(0))
    with pytest.raises(InputError, match="00000030: damaged"):
        Best(best.folder).resume(40)
