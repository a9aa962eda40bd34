"""What the parts of the plugin share: how they start, and where they need float32."""

from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

PERTURBATION = 0.01  # deviation of last layers that do not start at zero; moves offsets by under a cell of 64


def last_kernel(start: Literal["identity", "perturbed"]) -> nn.initializers.Initializer:
    """Initialises the kernel of a last layer, see `PluginConfig.start`."""
    return nn.initializers.zeros if start == "identity" else nn.initializers.normal(PERTURBATION)


def wide(x: jax.Array) -> jax.Array:
    """At least float32."""
    return x.astype(np.promote_types(x.dtype, jnp.float32))


def across(vector: jax.Array, x: jax.Array) -> jax.Array:
    """A vector of channels in the dtype and rank of x, to be added or multiplied."""
    return vector.astype(x.dtype).reshape((1,) * (x.ndim - 1) + (-1,))


class LayerNorm(nn.Module):
    """Normalises the last axis in float32 at least, and leaves it there."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(..., C) -> (..., C), float32 or wider."""
        x = wide(x)
        norm = nn.LayerNorm(epsilon=1e-6, use_fast_variance=False, force_float32_reductions=False, param_dtype=x.dtype)
        nn.share_scope(self, norm)
        return norm(x)
