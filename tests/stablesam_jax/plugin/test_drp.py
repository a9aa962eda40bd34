"""The router (sec. 4.3)."""

import jax
import jax.numpy as jnp
import numpy as np

from stablesam_jax.config import PluginConfig
from stablesam_jax.plugin.drp import Router

ROUTER = Router(PluginConfig())


def normal(seed: int, *shape: int) -> jax.Array:
    """NumPy's draw: JAX would compile its own for every shape."""
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def test_both_weights_start_at_one_half_to_the_bit():
    alpha, _ = ROUTER.init_with_output(jax.random.key(0), normal(1, 2, 3, 256))
    np.testing.assert_array_equal(alpha, np.full((2, 3, 2), 0.5))


def test_weights_are_positive_and_sum_to_the_scale():
    tokens = normal(1, 5, 256)
    params = ROUTER.init(jax.random.key(0), tokens)["params"]
    params["logits"]["kernel"] = normal(2, 32, 2)
    params["scale"] = jnp.float32(1.5)
    alpha = ROUTER.apply({"params": params}, tokens)
    assert jnp.all(alpha > 0)
    assert jnp.ptp(alpha[:, 0]) > 0.1
    np.testing.assert_allclose(alpha.sum(axis=-1), np.full(5, 1.5), rtol=1e-6)


def test_logits_of_one_and_minus_one_weigh_088_and_012():
    params = ROUTER.init(jax.random.key(0), jnp.zeros((1, 256)))["params"]
    params["logits"]["bias"] = jnp.array([1.0, -1.0])
    alpha = ROUTER.apply({"params": params}, jnp.zeros((1, 256)))
    np.testing.assert_allclose(alpha, [[0.880797, 0.119203]], atol=1e-6)


def test_the_softmax_of_bfloat16_tokens_is_float32():
    params = ROUTER.init(jax.random.key(0), jnp.zeros((1, 256)))["params"]
    params["logits"]["bias"] = jnp.array([1.0, -1.0])
    alpha = ROUTER.apply({"params": params}, jnp.zeros((1, 256), jnp.bfloat16))
    assert alpha.dtype == jnp.float32
    np.testing.assert_allclose(alpha, [[0.880797, 0.119203]], atol=1e-6)


def test_a_perturbed_start_lets_tokens_differ_a_little():
    alpha, _ = Router(PluginConfig(start="perturbed")).init_with_output(jax.random.key(0), normal(1, 5, 256))
    assert jnp.ptp(alpha[:, 0]) > 0
    np.testing.assert_allclose(alpha, np.full((5, 2), 0.5), atol=0.05)
