"""Spatial attention as the alternative to deformable sampling (table 11): features are re-weighted, not moved.

The paper names no method. Here are the two best known: the spatial map of CBAM (Woo et al. 2018) and coordinate
attention (Hou et al. 2021). Both deviate from their sources in two points: factors are 2 sigmoid(.), hence one at the
start, so that SAM's features are unchanged; and where the sources have batch normalisation, which has a state, CBAM's
map has a bias and coordinate attention a LayerNorm.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from stablesam_jax.config import PluginConfig
from stablesam_jax.ops.layers import Dense, LayerNorm, parameter
from stablesam_jax.ops.numerics import to_float32
from stablesam_jax.plugin.common import last_kernel

CBAM_KERNEL = 7  # cells (Woo et al., sec. 3.2)
REDUCTION, LEAST_WIDTH = 32, 8  # of the hidden layer (Hou et al., sec. 3.2)


class ChannelPooledAttention(nn.Module):
    """CBAM's spatial attention: mean and maximum over channels -> 7x7 convolution -> one factor for each cell."""

    config: PluginConfig

    @nn.compact
    def __call__(self, features: jax.Array) -> jax.Array:
        """(..., H, W, C) features -> (..., H, W, 1) factors in 0..2, float32 or wider."""
        values = to_float32(features)
        # Not `values.max`, whose gradient may be 0 / 0: see `train.losses.pretraining_loss`.
        largest = jnp.take_along_axis(values, jnp.argmax(values, axis=-1, keepdims=True), axis=-1)
        pooled = jnp.concatenate([values.mean(axis=-1, keepdims=True), largest], axis=-1)  # (..., H, W, 2)
        shape = (CBAM_KERNEL, CBAM_KERNEL, 2, 1)
        kernel = parameter(self, "kernel", last_kernel(self.config.start), shape)
        bias = parameter(self, "bias", nn.initializers.zeros, ())
        logits = jax.lax.conv_general_dilated(
            pooled.reshape(-1, *pooled.shape[-3:]),
            kernel.astype(pooled.dtype),
            window_strides=(1, 1),
            padding="SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        return 2 * nn.sigmoid(logits.reshape(*pooled.shape[:-1], 1) + bias.astype(logits.dtype))


class CoordinateAttention(nn.Module):
    """Means along rows and along columns -> a shared layer -> a factor for each row and one for each column."""

    config: PluginConfig

    @nn.compact
    def __call__(self, features: jax.Array) -> jax.Array:
        """(..., H, W, C) features -> (..., H, W, C) factors in 0..4, float32 or wider."""
        *_, height, _, channels = features.shape
        dtype = features.dtype
        values = to_float32(features)
        pooled = jnp.concatenate([values.mean(axis=-2), values.mean(axis=-3)], axis=-2)  # (..., H + W, C)
        hidden = Dense(max(LEAST_WIDTH, channels // REDUCTION), name="hidden")(pooled.astype(dtype))
        hidden = nn.hard_swish(LayerNorm(name="norm")(to_float32(hidden))).astype(dtype)

        def factors(part: jax.Array, name: str) -> jax.Array:
            last = Dense(channels, last_kernel(self.config.start), name=name)
            return 2 * nn.sigmoid(to_float32(last(part)))

        rows, columns = factors(hidden[..., :height, :], "rows"), factors(hidden[..., height:, :], "columns")
        return rows[..., :, None, :] * columns[..., None, :, :]
