"""Deformable sampling plugin, DSP (sec. 4.2): where to look instead, and with which amplitude."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from stablesam_jax.config import PluginConfig
from stablesam_jax.ops.gradients import gelu
from stablesam_jax.ops.layers import Dense, DepthwiseConv, LayerNorm
from stablesam_jax.ops.numerics import broadcast_channels, to_float32
from stablesam_jax.ops.once import computed_once
from stablesam_jax.plugin.common import last_kernel
from stablesam_jax.plugin.sampling import Padding, bilinear_sample

# SAM's map has 64 cells a side; `max_offset_cells` is given for it.
REFERENCE_GRID = 64


class OffsetNetwork(nn.Module):
    """Offsets and amplitudes of the image features (figure 3b).

    Implements eq. 3 (sec. 4.2).

    Conv 1x1 -> [depthwise conv -> LayerNorm -> GELU] -> Conv 1x1 -> tanh. At the start amplitudes are the features
    themselves and offsets are zero, or near it. A 1x1 convolution is a Dense layer over the last axis.
    """

    config: PluginConfig

    @nn.compact
    def __call__(self, features: jax.Array) -> tuple[jax.Array, jax.Array]:
        """
        Args:
            features: (..., H, W, C), x, in the compute dtype.

        Returns:
            amplitudes: (..., H, W, C), x*, in the compute dtype. Figure 3b draws x* as the output of the
                first convolution; the text calls it "updated features". `config.amplitude` names the readings.
            offsets: (..., H, W, groups, 2), delta p, (x, y) in cells, float32 or wider, each within
                max_offset_cells * (W, H) / 64.
        """
        *_, height, width, channels = features.shape
        dtype = features.dtype
        match self.config.amplitude:
            case "project":
                amplitudes = Dense(channels, _identity, name="project")(features)
            case "gate":
                gate = Dense(channels, nn.initializers.zeros, name="gate")(features)
                amplitudes = features * (1 + gate)
            case "none":
                amplitudes = features
        hidden = DepthwiseConv(self.config.offset_kernel, name="depthwise")(amplitudes)
        # Otherwise XLA on the CPU repeats the convolution for the mean, for the variance and for the result.
        hidden = computed_once(to_float32(hidden))
        hidden = gelu(LayerNorm(name="norm")(hidden)).astype(dtype)
        groups = self.config.groups
        last = Dense(2 * groups, last_kernel(self.config.start), name="offset")
        direction = to_float32(last(hidden)).reshape(*features.shape[:-1], groups, 2)
        limit = jnp.array([width, height], direction.dtype) * (self.config.max_offset_cells / REFERENCE_GRID)
        return amplitudes, broadcast_channels(limit, direction) * jnp.tanh(direction)


def sampling_positions(offsets: jax.Array, padding: Padding) -> jax.Array:
    """Where features are read: p + delta p for every cell p.

    Args:
        offsets: (..., H, W, groups, 2), (x, y) in cells.
        padding: "border" keeps positions in the map.

    Returns:
        (..., H, W, groups, 2), (x, y) in cells.
    """
    height, width = offsets.shape[-4:-2]
    x, y = jnp.meshgrid(jnp.arange(width, dtype=offsets.dtype), jnp.arange(height, dtype=offsets.dtype))
    positions = jnp.stack([x, y], axis=-1).reshape((1,) * (offsets.ndim - 4) + (height, width, 1, 2)) + offsets
    if padding == "zeros":
        return positions
    last = jnp.array([width - 1, height - 1], offsets.dtype)
    return jnp.clip(positions, 0, broadcast_channels(last, offsets))


def deformable_features(amplitudes: jax.Array, positions: jax.Array, padding: Padding) -> jax.Array:
    """x* read at p + delta p for every cell p. Implements eq. 4 (sec. 4.2).

    Args:
        amplitudes: (..., H, W, C); neighbouring channels form a group.
        positions: (..., H, W, groups, 2), (x, y) in cells. Leading axes equal those of amplitudes or are 1 on either
            side.
        padding: values outside the map.

    Returns:
        (..., H, W, C): as many features as before, at the same grid.
    """
    groups = jnp.split(amplitudes, positions.shape[-2], axis=-1)
    sampled = [
        bilinear_sample(channels, positions[..., group, :], padding=padding) for group, channels in enumerate(groups)
    ]
    return sampled[0] if len(sampled) == 1 else jnp.concatenate(sampled, axis=-1)


def _identity(key: jax.Array, shape: tuple[int, int], dtype=jnp.float32) -> jax.Array:
    """Initialises a square Dense kernel to the identity; takes a key because every initialiser does."""
    return jnp.eye(*shape, dtype=dtype)
