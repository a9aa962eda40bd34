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


def einsum(subscripts: str, a: jax.Array, b: jax.Array) -> jax.Array:
    """An einsum of two arrays, accumulated and returned in float32 at least.

    With a float32 result XLA runs bfloat16 operands on the CPU's matrix units (AMX). With a bfloat16 result it does
    not, and takes three times as long.
    """
    return jnp.einsum(subscripts, a, b, preferred_element_type=np.promote_types(a.dtype, jnp.float32))
