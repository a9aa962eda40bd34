"""TinyViT, the image encoder of MobileSAM and HQ-SAM tiny (segment_anything_hq/modeling/tiny_vit_sam.py).

A convolutional stage and three of windowed transformers, at strides 4, 8, 16 and 16. Batch norms stay apart from their
convolutions, so that a converted checkpoint converts back to the same bits.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from stablesam_jax.config import SamConfig, TinyViTConfig
from stablesam_jax.model.attention import QKV
from stablesam_jax.model.encoders.vit import Neck, window_partition, window_unpartition
from stablesam_jax.ops.gradients import gelu
from stablesam_jax.ops.layers import DECODER_EPS, Conv, Dense, DepthwiseConv, LayerNorm, dense, parameter, softmax
from stablesam_jax.ops.numerics import broadcast_channels, einsum, to_float32

BATCH_NORM_EPS = 1e-5
EXPANSION = 4  # hidden channels of the convolutional blocks and of the MLPs per channel


class BatchNorm(nn.Module):
    """Scales and shifts every channel by running statistics, which are parameters like any other here."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(..., C) -> (..., C)."""
        channels = (x.shape[-1],)
        scale = parameter(self, "scale", nn.initializers.ones, channels)
        bias = parameter(self, "bias", nn.initializers.zeros, channels)
        mean = parameter(self, "mean", nn.initializers.zeros, channels)
        var = parameter(self, "var", nn.initializers.ones, channels)
        parameter(self, "num_batches_tracked", nn.initializers.zeros, ())  # nothing reads it, see `Unread`
        factor = scale * jax.lax.rsqrt(var + BATCH_NORM_EPS)
        values = to_float32(x)
        return (values * broadcast_channels(factor, values) + broadcast_channels(bias - mean * factor, values)).astype(
            x.dtype
        )


class ConvNorm(nn.Module):
    """A convolution without a bias (`c`), and its batch norm (`bn`)."""

    width: int
    kernel_size: int = 1
    stride: int = 1

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, H, W, C) -> (B, H / stride, W / stride, width)."""
        padding = self.kernel_size // 2
        return BatchNorm(name="bn")(
            Conv(self.width, self.kernel_size, self.stride, padding, use_bias=False, name="c")(x)
        )


class DepthwiseConvNorm(nn.Module):
    """`ConvNorm` of every channel by itself, 3 x 3."""

    stride: int = 1

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, H, W, C) -> (B, H / stride, W / stride, C)."""
        return BatchNorm(name="bn")(DepthwiseConv(3, self.stride, padding=1, use_bias=False, name="c")(x))


class PatchEmbed(nn.Module):
    """Two convolutions of stride 2 (`seq_0`, `seq_2`)."""

    width: int

    @nn.compact
    def __call__(self, pictures: jax.Array) -> jax.Array:
        """(B, S, S, 3) -> (B, S / 4, S / 4, width)."""
        x = gelu(ConvNorm(self.width // 2, 3, stride=2, name="seq_0")(pictures))
        return ConvNorm(self.width, 3, stride=2, name="seq_2")(x)


class ConvBlock(nn.Module):
    """Expand, filter each channel, project: a block of the first stage."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, H, W, C) -> (B, H, W, C)."""
        channels = x.shape[-1]
        hidden = gelu(ConvNorm(EXPANSION * channels, name="conv1")(x))
        hidden = gelu(DepthwiseConvNorm(name="conv2")(hidden))
        return gelu(x + ConvNorm(channels, name="conv3")(hidden))


class Merging(nn.Module):
    """Downsamples to the next stage (PatchMerging in tiny_vit_sam.py)."""

    width: int
    stride: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, H, W, C) -> (B, H / stride, W / stride, width)."""
        x = gelu(ConvNorm(self.width, name="conv1")(x))
        x = gelu(DepthwiseConvNorm(self.stride, name="conv2")(x))
        return ConvNorm(self.width, name="conv3")(x)


def bias_index(window: int) -> np.ndarray:
    """Where `attention_biases` has the bias of a query and a key, which depends on how far apart they are.

    Args:
        window: side of the window in cells.

    Returns:
        (window^2, window^2) int: the distance in rows times `window`, plus that in columns, both without sign.
    """
    rows, columns = np.divmod(np.arange(window**2), window)
    return np.abs(rows[:, None] - rows) * window + np.abs(columns[:, None] - columns)


class Attention(nn.Module):
    """Multi-head self-attention within a window, with its norm before it and a bias for every distance."""

    heads: int

    @nn.compact
    def __call__(self, windows: jax.Array) -> jax.Array:
        """(B, window, window, C) -> (B, window, window, C)."""
        batch, window, _, channels = windows.shape
        head_width = channels // self.heads
        biases = parameter(self, "attention_biases", nn.initializers.zeros, (self.heads, window**2))
        x = LayerNorm(DECODER_EPS, name="norm")(windows).reshape(batch, window**2, channels)

        def attend(head: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
            kernels, shifts, biases = head
            q, k, v = (dense(x, kernels[part], shifts[part]) for part in range(3))  # (B, window^2, D)
            logits = einsum("bqd,bkd->bqk", q * head_width**-0.5, k)
            logits = logits + biases[bias_index(window)][None].astype(logits.dtype)
            return einsum("bqk,bkd->bqd", softmax(logits, v.dtype), v).astype(v.dtype)

        qkv = QKV(self.heads, heads_outermost=True, name="qkv")(channels)
        attended = jax.lax.map(attend, (*qkv, biases))  # (heads, B, window^2, D)
        return Dense(channels, name="proj")(attended.transpose(1, 2, 0, 3).reshape(windows.shape))


class MLP(nn.Module):
    """The MLP of a block, with its norm before it (`fc1`, `fc2`)."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(..., C) -> (..., C)."""
        channels = x.shape[-1]
        hidden = Dense(EXPANSION * channels, name="fc1")(LayerNorm(DECODER_EPS, name="norm")(x))
        return Dense(channels, name="fc2")(gelu(hidden))


class Block(nn.Module):
    """Windowed attention, a depthwise convolution over the whole map, MLP."""

    heads: int
    window_size: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, H, W, C) -> (B, H, W, C)."""
        # Cells are padded before the norm, where the ViT pads after it; they too are attended to.
        windows = Attention(self.heads, name="attn")(window_partition(x, self.window_size))
        x = x + window_unpartition(windows, (x.shape[1], x.shape[2]))
        x = DepthwiseConvNorm(name="local_conv")(x)
        return x + MLP(name="mlp")(x)


class Stage(nn.Module):
    """Blocks, then a `Merging` to the width and stride of the next stage; the last stage has none."""

    config: TinyViTConfig
    index: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, H, W, C) -> (B, H / stride, W / stride, next width)."""
        config, index = self.config, self.index
        for number in range(config.depths[index]):
            name = f"blocks_{number}"
            block = (
                ConvBlock(name=name)
                if index == 0
                else Block(config.heads[index], config.window_sizes[index], name=name)
            )
            x = block(x)
        if index + 1 == len(config.depths):
            return x
        # SAM wants its embedding at stride 16, where TinyViT as a classifier goes on to 32.
        return Merging(config.widths[index + 1], stride=1 if index == 2 else 2, name="downsample")(x)


class Unread(nn.Module):
    """Parameters that nothing reads, kept to convert back to PyTorch: leaf -> shape."""

    shapes: Mapping[str, tuple[int, ...]]

    @nn.compact
    def __call__(self) -> None:
        for leaf, shape in self.shapes.items():
            parameter(self, leaf, nn.initializers.zeros, shape)


def early_width(config: TinyViTConfig) -> int:
    """Channels of the early features."""
    return config.widths[2]


def recognise(config: TinyViTConfig, depths: tuple[int, ...], width: int | None) -> bool:
    """Whether a state dict with so many blocks in its stages, `width` channels before the neck, is of this encoder."""
    return depths == config.depths and width in (None, config.widths[-1])


def official(config: SamConfig) -> tuple[str, dict[str, Any]]:
    """Class in `modeling` of segment_anything_hq, and its arguments."""
    tiny = config.encoder
    assert isinstance(tiny, TinyViTConfig)
    return "TinyViT", {
        "img_size": config.image_size,
        "num_classes": tiny.classes,
        "embed_dims": tiny.widths,
        "depths": tiny.depths,
        "num_heads": tiny.heads,
        "window_sizes": tiny.window_sizes,
        "drop_path_rate": 0.0,
    }


class ImageEncoderTinyViT(nn.Module):
    """Pictures to image embedding, and to the features that HQ-SAM takes from an early layer."""

    config: TinyViTConfig
    output_width: int

    @nn.compact
    def __call__(self, pictures: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Encodes pictures.

        Args:
            pictures: (B, S, S, 3) normalised and padded, S a multiple of 16.

        Returns:
            (B, G, G, output_width) image embedding, and (B, G, G, widths[2]) as it leaves the second stage.
        """
        config = self.config
        x = PatchEmbed(config.widths[0], name="patch_embed")(pictures)
        x = Stage(config, 0, name="layers_0")(x)
        early = Stage(config, 1, name="layers_1")(x)
        x = Stage(config, 2, name="layers_2")(early)
        x = Stage(config, 3, name="layers_3")(x)
        # Official files hold the classifier of TinyViT, and the official package loads strictly.
        last = config.widths[-1]
        Unread({"scale": (last,), "bias": (last,)}, name="norm_head")()
        Unread({"kernel": (last, config.classes), "bias": (config.classes,)}, name="head")()
        return Neck(self.output_width, name="neck")(x), early
