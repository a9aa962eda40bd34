"""Arithmetic that model and plugin share, in float32 where bfloat16 would lose digits."""

import jax
import jax.numpy as jnp
import numpy as np


def to_float32(x: jax.Array) -> jax.Array:
    """At least float32."""
    return x.astype(np.promote_types(x.dtype, jnp.float32))


def broadcast_channels(vector: jax.Array, x: jax.Array) -> jax.Array:
    """Broadcasts a vector of channels (C,) to the dtype and rank of x, to be added or multiplied."""
    return vector.astype(x.dtype).reshape((1,) * (x.ndim - 1) + (-1,))


def gelu(x: jax.Array) -> jax.Array:
    """The exact GELU, x (1 + erf(x / sqrt(2))) / 2 as PyTorch has it, in float32 at least and in the dtype of x.

    The tanh approximation differs by up to 5e-4, which a parity test detects. Flax's exact form uses erfc, which XLA on
    the CPU computes three times slower. The two differ only far below zero, by less than float32 rounding.
    """
    values = to_float32(x)
    return (0.5 * values * (1 + jax.lax.erf(values * 0.5**0.5))).astype(x.dtype)


def einsum(subscripts: str, a: jax.Array, b: jax.Array) -> jax.Array:
    """An einsum of two arrays, accumulated and returned in float32 at least.

    With a float32 result XLA runs bfloat16 operands on the CPU's matrix units (AMX). With a bfloat16 result it does
    not, and takes three times as long.
    """
    return jnp.einsum(subscripts, a, b, preferred_element_type=np.promote_types(a.dtype, jnp.float32))
