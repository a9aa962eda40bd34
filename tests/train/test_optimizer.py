"""The optimizer is Adam by the book, with what was asked for before it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from train.optimizer import learning_rate, make_optimizer

PARAMS = {"a": np.array([1.0, -2.0], np.float32), "b": np.array(0.5, np.float32)}


def gradients(count):
    rng = np.random.default_rng(0)
    return [jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape).astype(np.float32), PARAMS) for _ in range(count)]


def run(optimizer, steps):
    with jax.numpy_dtype_promotion("standard"):
        params, state = jax.tree.map(jnp.asarray, PARAMS), optimizer.init(PARAMS)
        for gradient in steps:
            changes, state = optimizer.update(gradient, state, params)
            params = optax.apply_updates(params, changes)
    return params


def assert_equal(first, second, **tolerance):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **tolerance), first, second)


def test_a_constant_rate_is_constant_and_a_cosine_rises_and_falls():
    assert {float(learning_rate("constant", 1e-3, 50)(step)) for step in (0, 7, 49)} == {1e-3}
    cosine = [float(learning_rate("cosine", 1e-3, 100)(step)) for step in range(101)]
    assert cosine[0] == 0
    assert np.argmax(cosine) == 2
    assert max(cosine) == pytest.approx(1e-3)
    assert (np.diff(cosine[2:]) < 0).all()
    assert cosine[100] == pytest.approx(1e-5)


def test_hq_sams_rate_falls_to_a_tenth_after_ten_of_twelve_epochs():
    rate = learning_rate("step", 1e-3, 12 * 50)
    assert float(rate(499)) == pytest.approx(1e-3)
    assert float(rate(501)) == pytest.approx(1e-4)
    assert float(rate(599)) == pytest.approx(1e-4)


@pytest.mark.parametrize("steps", [1, 2, 49, 120])
@pytest.mark.parametrize("schedule", ["constant", "cosine", "step"])
def test_the_rate_stays_positive_below_its_peak_whatever_the_number_of_steps(schedule, steps):
    rates = [float(learning_rate(schedule, 0.5, steps)(step)) for step in range(steps)]
    assert max(rates) <= 0.5
    assert min(rates[1:], default=1) > 0


def test_adam_has_the_papers_betas_and_no_decay():
    def by_hand(steps):
        params = {key: leaf.astype(np.float64) for key, leaf in PARAMS.items()}
        first, second = ({key: np.zeros_like(leaf) for key, leaf in params.items()} for _ in range(2))
        for count, gradient in enumerate(steps, 1):
            for key, value in gradient.items():
                first[key] = 0.9 * first[key] + 0.1 * value
                second[key] = 0.999 * second[key] + 0.001 * value.astype(np.float64) ** 2
                rate = 1e-2 / (1 - 0.9**count)
                params[key] = params[key] - rate * first[key] / (np.sqrt(second[key] / (1 - 0.999**count)) + 1e-8)
        return params

    steps = gradients(5)
    assert_equal(run(make_optimizer("constant", 1e-2, 5), steps), by_hand(steps), rtol=1e-5)


@pytest.mark.slow
def test_two_halves_of_a_batch_make_the_update_of_the_whole():
    halves = gradients(6)
    wholes = [jax.tree.map(lambda a, b: (a + b) / 2, *halves[start : start + 2]) for start in (0, 2, 4)]
    accumulated = run(make_optimizer("cosine", 1e-2, 6, accumulate=2), halves)
    assert_equal(accumulated, run(make_optimizer("cosine", 1e-2, 3), wholes), rtol=1e-5)


def test_a_long_gradient_is_shortened_and_a_short_one_is_not():
    long, short = (jax.tree.map(lambda leaf, scale=scale: leaf * scale, gradients(1)[0]) for scale in (10, 1e-3))
    norm = float(optax.tree.norm(long))
    cut = jax.tree.map(lambda leaf: leaf / norm, long)
    clipped = make_optimizer("constant", 1e-2, 2, clip_norm=1.0)
    assert_equal(run(clipped, [long, short]), run(make_optimizer("constant", 1e-2, 2), [cut, short]), rtol=1e-5)
    assert norm > 1
