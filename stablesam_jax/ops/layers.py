"""Layers that several parts of SAM share (segment_anything/modeling/common.py).

Every layer computes in the dtype of its input; parameters are cast to it. Statistics of norms, softmax and sums of
logits are computed in float32 at least and returned in the dtype of the input.
"""

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from stablesam_jax.ops.depthwise import depthwise_conv
from stablesam_jax.ops.gradients import convolve, layer_norm
from stablesam_jax.ops.numerics import broadcast_channels, einsum, to_float32

ENCODER_EPS = 1e-6  # LayerNorms of the image encoder and every LayerNorm2d
DECODER_EPS = 1e-5  # LayerNorms of the two-way transformer and of TinyViT (PyTorch's default)


def parameter(module: nn.Module, name: str, init: nn.initializers.Initializer, shape: Sequence[int]) -> jax.Array:
    """`module.param` in float32.

    Where the parameter exists, Linen traces its initialiser all the same, to compare shapes. Zeros in its place save a
    third of the time that tracing a model takes.
    """
    return module.param(name, init if module.is_initializing() else nn.initializers.zeros, shape, jnp.float32)


def softmax(logits: jax.Array, dtype: np.dtype) -> jax.Array:
    """Over the last axis, in float32 at least: in bfloat16 the weights of 4,096 keys sum to 1.004."""
    return nn.softmax(to_float32(logits), axis=-1).astype(dtype)


def dense(x: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
    """x @ kernel + bias in the dtype of x: (..., C), (C, D), (D,) -> (..., D)."""
    return einsum("...c,cd->...d", x, kernel.astype(x.dtype)).astype(x.dtype) + broadcast_channels(bias, x)


class Dense(nn.Module):
    """x @ kernel + bias; computes in the dtype of x."""

    width: int
    kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()

    def __call__(self, x: jax.Array) -> jax.Array:
        """(..., C) -> (..., width)."""
        return dense(x, *self.parameters(x.shape[-1]))

    @nn.compact
    def parameters(self, input_width: int) -> tuple[jax.Array, jax.Array]:
        """-> (input_width, width) kernel and (width,) bias, for matmuls in another order."""
        kernel = parameter(self, "kernel", self.kernel_init, (input_width, self.width))
        return kernel, parameter(self, "bias", nn.initializers.zeros, (self.width,))


class LayerNorm(nn.Module):
    """Normalises the last axis; also SAM's LayerNorm2d, since features are channels-last."""

    eps: float = ENCODER_EPS

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(..., C) -> (..., C)."""
        channels = x.shape[-1]
        scale = parameter(self, "scale", nn.initializers.ones, (channels,))
        bias = parameter(self, "bias", nn.initializers.zeros, (channels,))
        return layer_norm(x, scale, bias, self.eps)


class DepthwiseConv(nn.Module):
    """A k x k convolution of every channel by itself, k odd; see `depthwise_conv`."""

    kernel_size: int
    stride: int = 1
    padding: int | None = None  # zeros on every side; None: "SAME" as TensorFlow has it
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(..., H, W, C) -> (..., H', W', C)."""
        channels = x.shape[-1]
        kernel = parameter(
            self, "kernel", nn.initializers.lecun_normal(), (self.kernel_size, self.kernel_size, channels)
        )
        maps = depthwise_conv(x, kernel.astype(x.dtype), stride=self.stride, padding=self.padding)
        if not self.use_bias:
            return maps
        return maps + broadcast_channels(parameter(self, "bias", nn.initializers.zeros, (channels,)), maps)


class MLP(nn.Module):
    """Two layers with an activation between them: the MLP of every transformer block (`lin1`, `lin2`)."""

    hidden_width: int
    activation: Callable[[jax.Array], jax.Array]

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(..., C) -> (..., C)."""
        hidden = self.activation(Dense(self.hidden_width, name="lin1")(x))
        return Dense(x.shape[-1], name="lin2")(hidden)


class HeadMLP(nn.Module):
    """Three layers with ReLU between them: hypernetworks and IoU head (`layers_0` to `layers_2`)."""

    hidden_width: int
    output_width: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(..., C) -> (..., output_width)."""
        x = nn.relu(Dense(self.hidden_width, name="layers_0")(x))
        x = nn.relu(Dense(self.hidden_width, name="layers_1")(x))
        return Dense(self.output_width, name="layers_2")(x)


class UpscaleBy2(nn.Module):
    """PyTorch's ConvTranspose2d with kernel 2 and stride 2: its outputs do not overlap, so it is one matmul per cell.

    The 2 x 2 pixels of a cell stay in axes of their own, since the next layers work on single pixels and transposing
    takes longer than the matmul. `pixels` transposes them at the end.
    """

    width: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(..., C) -> (..., 2, 2, width): row and column of a pixel in its cell, channels."""
        kernel = parameter(self, "kernel", nn.initializers.lecun_normal(), (2, 2, x.shape[-1], self.width))
        bias = parameter(self, "bias", nn.initializers.zeros, (self.width,))
        cells = einsum("...c,ijco->...ijo", x, kernel.astype(x.dtype)).astype(x.dtype)
        return cells + broadcast_channels(bias, cells)


def pixels(cells: jax.Array) -> jax.Array:
    """Transposes the output of two `UpscaleBy2` to a map: (..., H, W, 2, 2, 2, 2, C) -> (..., 4H, 4W, C)."""
    *leading, height, width, _, _, _, _, channels = cells.shape
    split = cells.reshape(-1, height, width, 2, 2, 2, 2, channels)
    return split.transpose(0, 1, 3, 5, 2, 4, 6, 7).reshape(*leading, 4 * height, 4 * width, channels)


def cells(maps: jax.Array, steps: int) -> jax.Array:
    """The inverse of `pixels`, of `steps` upscalings: (B, H, W, C) -> (B, H / 2^steps, W / 2^steps, 2, 2, ..., C)."""
    batch, height, width, channels = maps.shape
    squares = [2] * steps
    split = maps.reshape(batch, height >> steps, *squares, width >> steps, *squares, channels)
    inner = [axis for step in range(steps) for axis in (2 + step, 3 + steps + step)]
    return split.transpose(0, 1, 2 + steps, *inner, 3 + 2 * steps)


class Conv(nn.Module):
    """A convolution with PyTorch's explicit padding; Flax's SAME differs where the stride does not divide the size."""

    width: int
    kernel_size: int
    stride: int = 1
    padding: int = 0
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(..., H, W, C) -> (..., H', W', width)."""
        *batch, height, columns, channels = x.shape
        shape = (self.kernel_size, self.kernel_size, channels, self.width)
        kernel = parameter(self, "kernel", nn.initializers.lecun_normal(), shape).astype(x.dtype)
        if (self.kernel_size, self.stride, self.padding) == (1, 1, 0):
            # XLA on the CPU takes half as long for a matmul as for a convolution, and a third for its gradient.
            maps = einsum("...c,cd->...d", x, kernel[0, 0]).astype(x.dtype)
        else:
            maps = convolve(x.reshape(-1, height, columns, channels), kernel, self.stride, self.padding)
            maps = maps.reshape(*batch, *maps.shape[1:])
        if not self.use_bias:
            return maps
        return maps + broadcast_channels(parameter(self, "bias", nn.initializers.zeros, (self.width,)), maps)


def mask_logits(weights: jax.Array, features: jax.Array) -> jax.Array:
    """Masks: the dot product of each mask's weights, from its hypernetwork, with the upscaled features of each pixel.

    Args:
        weights: (B, N, M, C).
        features: (B, N, G, G, 2, 2, 2, 2, C), each cell's pixels beside it, see `pixels`.

    Returns:
        (B, N, M, 4G, 4G) logits, float32 or wider.
    """
    logits = einsum("bnhwijklc,bnmc->bnhwijklm", features, weights)
    return jnp.moveaxis(pixels(logits), -1, 2)


def one_by_one(function: Callable[..., Any]) -> Callable[..., Any]:
    """Runs a function of (B, N, ...) arrays for one prompt after the other on a CPU, for all at once elsewhere.

    One prompt's features stay in the CPU's cache from layer to layer, and memory does not grow with the number of
    prompts: 20 prompts take half the time of 20 at once. Gradients take up to twice as long this way.

    Args:
        function: of arrays (B, N, ...), some of them (B, 1, ...) where all prompts of a picture share them, to a tree
            of arrays (B, N, ...).
    """

    def mapped(*arrays: jax.Array) -> Any:
        prompts = next((array.shape[1] for array in arrays if array.shape[1] != 1), 1)

        def picture(arrays: Sequence[jax.Array]) -> Any:
            own = {index: array for index, array in enumerate(arrays) if array.shape[0] == prompts}

            def prompt(own: dict[int, jax.Array]) -> Any:
                each = [own[index] if index in own else array[0] for index, array in enumerate(arrays)]
                return jax.tree.map(lambda x: x[0, 0], function(*(array[None, None] for array in each)))

            return jax.lax.map(prompt, own)

        return jax.lax.map(picture, arrays)

    return mapped if computes_on_cpu() else function


def computes_on_cpu() -> bool:
    """Whether what is traced now is for a CPU: where JAX puts what is not placed, see `jax.default_device`."""
    device = jax.config.jax_default_device  # type: ignore[attr-defined]
    return (jax.default_backend() if device is None else device.platform) == "cpu"
