"""What the parts of the plugin share: how they start, and where they need float32."""

from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from stablesam_jax.ops.numerics import broadcast_channels, to_float32

EPS = 1e-6  # of LayerNorm, as in SAM's image encoder
PERTURBATION = 0.01  # deviation of last layers that do not start at zero; moves offsets by under a cell of 64


def last_kernel(start: Literal["identity", "perturbed"]) -> nn.initializers.Initializer:
    """Initialises the kernel of a last layer, see `PluginConfig.start`."""
    return nn.initializers.zeros if start == "identity" else nn.initializers.normal(PERTURBATION)


class LayerNorm(nn.Module):
    """Normalises the last axis in float32 at least, and leaves it there.

    Means are products with a vector: XLA on the CPU would compute what comes before a sum once more for each of the
    two sums and for the result, but never for a product. Behind a depthwise convolution this is a quarter of the time.
    """

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(..., C) -> (..., C), float32 or wider."""
        x = to_float32(x)
        channels = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (channels,))
        bias = self.param("bias", nn.initializers.zeros, (channels,))
        average = jnp.full((channels, 1), 1 / channels, x.dtype)
        centred = x - jnp.matmul(x, average, precision="highest")
        variance = jnp.matmul(jnp.square(centred), average, precision="highest")
        return centred * jax.lax.rsqrt(variance + EPS) * broadcast_channels(scale, x) + broadcast_channels(bias, x)
