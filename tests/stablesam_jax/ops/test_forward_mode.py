"""In `forward_mode` written gradients and derived ones are the same linear map; outside it forward mode is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stablesam_jax.ops.depthwise import depthwise_conv
from stablesam_jax.ops.forward_mode import forward_mode, written_gradient
from stablesam_jax.ops.gradients import convolve, gelu, layer_norm, matmul, sum_of_taps
from stablesam_jax.plugin.sampling import bilinear_sample
from tests.reference.tiers import slow


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape, np.float32))


# On cells, between them, on the border and beyond it: where the plugin starts, every position is on a cell.
POSITIONS = jnp.asarray([[[0, 0], [1, 2], [1.25, 0.5], [3, 2], [2, 1.75], [-1, 5], [4, 4]]], jnp.float32)
FUNCTIONS = {
    "layer_norm": (lambda x, scale, bias: layer_norm(x, scale, bias, 1e-6), normal(3, 8), normal(8), normal(8)),
    "convolve": (lambda x, kernel: convolve(x, kernel, 1, 1), normal(1, 5, 6, 3), normal(3, 3, 3, 2)),
    "sum_of_taps": (sum_of_taps, normal(2, 4, 5, 3, 3)),
    "gelu": (gelu, normal(3, 8)),
    "matmul": (matmul, normal(2, 3, 4, 5), normal(2, 1, 5, 6)),
    "depthwise": (lambda x, kernel: depthwise_conv(x, kernel, stride=2), normal(1, 6, 7, 3), normal(3, 3, 3)),
    "border": (bilinear_sample, normal(1, 5, 5, 4), POSITIONS),
    "zeros": (lambda x, p: bilinear_sample(x, p, padding="zeros"), normal(1, 5, 5, 4), POSITIONS),
}


QUICK = ("layer_norm", "border", "gelu", "matmul")


@pytest.fixture(params=[*QUICK, *slow(*(name for name in FUNCTIONS if name not in QUICK))])
def function(request):
    function, *arguments = FUNCTIONS[request.param]
    return function, tuple(arguments), tuple(normal(*one.shape, seed=9) for one in arguments)


def test_a_change_forwards_is_that_of_the_written_gradient(function):
    """<cotangent, J d> = <J^T cotangent, d>, the right side by the written backward pass."""
    function, arguments, direction = function
    value, pull = jax.vjp(function, *arguments)
    cotangent = normal(*value.shape, seed=5)
    with forward_mode():
        same, change = jax.jvp(function, arguments, direction)
    np.testing.assert_array_equal(same, value)
    expected = sum(float(jnp.vdot(one, d)) for one, d in zip(pull(cotangent), direction, strict=True))
    size = float(jnp.abs(cotangent * change).sum())
    assert abs(float(jnp.vdot(cotangent, change)) - expected) <= 1e-5 * size


def test_derivatives_backwards_are_the_same_inside(function):
    function, arguments, _ = function
    value, pull = jax.vjp(function, *arguments)
    cotangent = normal(*value.shape, seed=5)
    with forward_mode():
        _, derived = jax.vjp(function, *arguments)
        for one, other in zip(derived(cotangent), pull(cotangent), strict=True):
            np.testing.assert_allclose(one, other, atol=2e-5 * max(1, float(jnp.abs(other).max())), rtol=0)


@pytest.mark.slow
def test_second_derivatives_of_sampling_are_those_of_the_bilinear_form():
    """Along x within a cell a sample is linear: the second derivative of its square is twice the slope's square."""
    features = jnp.asarray([[[[0.0], [1.0]], [[2.0], [7.0]]]])

    def squared(x):
        return bilinear_sample(features, jnp.array([[[x, 0.25]]]))[0, 0, 0] ** 2

    slope = 0.75 * (1 - 0) + 0.25 * (7 - 2)
    with forward_mode():
        second = jax.hessian(lambda x: squared(x[0]))(jnp.array([0.5]))
    np.testing.assert_allclose(second, [[2 * slope**2]], rtol=1e-6)


def test_outside_forward_mode_is_refused_in_words_and_afterwards_too(function):
    function, arguments, direction = function
    for _ in range(2):
        with pytest.raises(TypeError, match=r"forward-mode .*\(jvp\) to a custom_vjp function"):
            jax.jvp(function, arguments, direction)
        with forward_mode():
            jax.jvp(function, arguments, direction)


def test_a_compiled_function_is_traced_again_inside():
    @written_gradient()
    def twice(x):
        return 2 * x

    twice.defvjp(lambda x: (twice(x), None), lambda _, gradient: (3 * gradient,))  # wrong, so that it can be told
    gradient = jax.jit(jax.grad(twice))
    assert gradient(1.0) == 3
    with forward_mode():
        assert gradient(1.0) == 2
    assert gradient(1.0) == 3
