"""Layers that several parts of SAM share (segment_anything/modeling/common.py)."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

ENCODER_EPS = 1e-6  # LayerNorms of the image encoder and every LayerNorm2d
DECODER_EPS = 1e-5  # LayerNorms of the two-way transformer (PyTorch's default)


def gelu(x: jax.Array) -> jax.Array:
    """The exact GELU (erf); the tanh form is off by 5e-4, which a parity test sees."""
    return nn.gelu(x, approximate=False)


class LayerNorm(nn.Module):
    """Normalises the last axis; also serves as SAM's LayerNorm2d, since features are channels-last.

    The variance is computed in two passes: residual streams of ViTs hold channels with large common offsets,
    where E[x^2] - E[x]^2 loses up to four digits.
    """

    eps: float = ENCODER_EPS

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(..., C) -> (..., C)."""
        width = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (width,))
        bias = self.param("bias", nn.initializers.zeros, (width,))
        centred = x - x.mean(axis=-1, keepdims=True)
        variance = jnp.square(centred).mean(axis=-1, keepdims=True)
        shape = (1,) * (x.ndim - 1) + (width,)
        return centred * jax.lax.rsqrt(variance + self.eps) * scale.reshape(shape) + bias.reshape(shape)


class MLP(nn.Module):
    """Two layers with an activation between them: the MLP of every transformer block (`lin1`, `lin2`)."""

    hidden_width: int
    activation: Callable[[jax.Array], jax.Array]

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(..., C) -> (..., C)."""
        hidden = self.activation(nn.Dense(self.hidden_width, name="lin1")(x))
        return nn.Dense(x.shape[-1], name="lin2")(hidden)


class HeadMLP(nn.Module):
    """Three layers with ReLU between them: hypernetworks and IoU head (`layers_0` to `layers_2`)."""

    hidden_width: int
    output_width: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(..., C) -> (..., output_width)."""
        x = nn.relu(nn.Dense(self.hidden_width, name="layers_0")(x))
        x = nn.relu(nn.Dense(self.hidden_width, name="layers_1")(x))
        return nn.Dense(self.output_width, name="layers_2")(x)


class UpscaleBy2(nn.Module):
    """PyTorch's ConvTranspose2d with kernel 2 and stride 2: outputs do not overlap, so it is a product per cell."""

    width: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(..., H, W, C) -> (..., 2H, 2W, width)."""
        *batch, height, columns, channels = x.shape
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (2, 2, channels, self.width))
        bias = self.param("bias", nn.initializers.zeros, (self.width,))
        pixels = jnp.einsum("...hwc,ijco->...hiwjo", x, kernel)
        pixels = pixels.reshape(*batch, 2 * height, 2 * columns, self.width)
        return pixels + bias.reshape((1,) * (x.ndim - 1) + (-1,))


def conv(width: int, *, kernel: int, stride: int = 1, padding: int = 0, use_bias: bool = True, name: str) -> nn.Conv:
    """A convolution with PyTorch's explicit padding; Flax's SAME differs where the stride does not divide the size."""
    return nn.Conv(width, (kernel, kernel), (stride, stride), ((padding, padding),) * 2, use_bias=use_bias, name=name)
