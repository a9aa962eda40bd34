"""What is computed once is unchanged, has its gradient, and is not computed again where it is used."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stablesam_jax.ops.depthwise import depthwise_conv
from stablesam_jax.ops.layers import layer_norm
from stablesam_jax.ops.once import computed_once

RNG = np.random.default_rng(0)
X = jnp.asarray(RNG.standard_normal((2, 8, 8, 16), np.float32))


@pytest.mark.parametrize("first", [1.0, -1.0, 0.0, np.nan, np.inf])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_values_are_the_same_to_the_bit(first, dtype):
    x = X.at[0, 0, 0, 0].set(first).astype(dtype)
    np.testing.assert_array_equal(jax.jit(computed_once)(x).astype(jnp.float32), x.astype(jnp.float32))


def test_gradients_pass_in_both_modes_and_in_a_batch():
    weights = jnp.asarray(RNG.standard_normal(X.shape, np.float32))
    np.testing.assert_array_equal(jax.grad(lambda x: (computed_once(x) * weights).sum())(X), weights)
    np.testing.assert_array_equal(jax.jvp(computed_once, (X,), (weights,))[1], weights)
    np.testing.assert_array_equal(jax.vmap(computed_once)(X), X)


def test_a_convolution_is_not_repeated_by_the_norm_behind_it():
    kernel, ones = jnp.asarray(RNG.standard_normal((5, 5, 16), np.float32)), jnp.ones(16)

    def slices(once):
        """Number of shifted windows in the compiled program."""
        program = jax.jit(lambda x: layer_norm(once(depthwise_conv(x, kernel)), ones, ones, 1e-6)).lower(X).compile()
        return program.as_text().count(" slice(")

    assert slices(computed_once) <= 26 < slices(lambda x: x)  # 25 windows, and one value
