"""Arithmetic that model and plugin share, and that must not lose digits in bfloat16."""

import jax
import jax.numpy as jnp
import numpy as np


def to_float32(x: jax.Array) -> jax.Array:
    """At least float32."""
    return x.astype(np.promote_types(x.dtype, jnp.float32))


def broadcast_channels(vector: jax.Array, x: jax.Array) -> jax.Array:
    """A vector of channels in the dtype and rank of x, to be added or multiplied."""
    return vector.astype(x.dtype).reshape((1,) * (x.ndim - 1) + (-1,))


def gelu(x: jax.Array) -> jax.Array:
    """The exact GELU, x (1 + erf(x / sqrt(2))) / 2 as PyTorch has it, in float32 at least and in the dtype of x.

    The tanh form is off by 5e-4, which a parity test sees. Flax's exact form goes by erfc, which takes XLA on the CPU
    three times as long; what that is more exact in, far below zero, is less than a rounding error of what follows.
    """
    values = to_float32(x)
    return (0.5 * values * (1 + jax.lax.erf(values * 0.5**0.5))).astype(x.dtype)


def einsum(subscripts: str, a: jax.Array, b: jax.Array) -> jax.Array:
    """An einsum of two arrays, summed and returned in float32 at least.

    Asked for float32, XLA takes bfloat16 to a processor's matrix units (AMX); asked for bfloat16, it does not, and
    takes three times as long.
    """
    return jnp.einsum(subscripts, a, b, preferred_element_type=np.promote_types(a.dtype, jnp.float32))
