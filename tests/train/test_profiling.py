"""Only the steps that are asked for are traced, and the loop sees all its items."""

import jax
import pytest

from train.profiling import SKIPPED, profiled


def test_without_steps_nothing_is_traced(tmp_path):
    assert list(profiled(iter(range(9)), tmp_path / "trace", 0, jax.devices())) == list(range(9))
    assert not (tmp_path / "trace").exists()


@pytest.mark.slow
@pytest.mark.parametrize("length", [SKIPPED + 2, SKIPPED + 9])
def test_a_trace_is_written_even_if_the_loop_ends_first(tmp_path, length):
    assert list(profiled(iter(range(length)), tmp_path, 3, jax.devices())) == list(range(length))
    assert list(tmp_path.rglob("*.xplane.pb"))
