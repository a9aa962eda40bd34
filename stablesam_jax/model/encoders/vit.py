"""SAM's image encoder: a ViT with windowed and global attention and decomposed relative positions.

Source: segment_anything/modeling/image_encoder.py. Names of modules and parameters are the official ones.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from stablesam_jax.config import SamConfig, ViTConfig
from stablesam_jax.model.attention import QKV, attend_at_once, attend_by_head
from stablesam_jax.ops.gradients import gelu
from stablesam_jax.ops.layers import MLP, Conv, Dense, LayerNorm, computes_on_cpu, parameter


def window_partition(x: jax.Array, window: int) -> jax.Array:
    """Cuts maps into windows, zero-padded at the bottom and on the right.

    Padded cells are attended to like all others: the official code does not mask them.

    Args:
        x: (B, H, W, C).
        window: side of a window in cells.

    Returns:
        (B * rows * columns, window, window, C), pictures outermost, then rows of windows.
    """
    batch, height, width, channels = x.shape
    rows, columns = -(-height // window), -(-width // window)
    x = jnp.pad(x, ((0, 0), (0, rows * window - height), (0, columns * window - width), (0, 0)))
    x = x.reshape(batch, rows, window, columns, window, channels).swapaxes(2, 3)
    return x.reshape(-1, window, window, channels)


def window_unpartition(windows: jax.Array, size_hw: tuple[int, int]) -> jax.Array:
    """Undoes `window_partition` and drops the padding: (B * rows * columns, window, window, C) -> (B, H, W, C)."""
    _, window, _, channels = windows.shape
    height, width = size_hw
    rows, columns = -(-height // window), -(-width // window)
    x = windows.reshape(-1, rows, columns, window, window, channels).swapaxes(2, 3)
    return x.reshape(-1, rows * window, columns * window, channels)[:, :height, :width]


def relative_position_table(table: jax.Array, size: int) -> jax.Array:
    """The table of relative positions along one axis of `size` cells, as a matrix (query, key, channel).

    Args:
        table: (2 size - 1, D), row size - 1 + (query - key) holds the embedding of that distance;
            `build.with_image_size` makes tables of another length fit.
        size: cells along the axis.

    Returns:
        (size, size, D).
    """
    distance = np.arange(size)[:, None] - np.arange(size) + (size - 1)
    return table[distance]


class Attention(nn.Module):
    """Multi-head self-attention over a map, with relative positions per axis added to the logits."""

    heads: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, H, W, C) -> (B, H, W, C)."""
        _, height, width, channels = x.shape
        head_width = channels // self.heads
        table_h = parameter(self, "rel_pos_h", nn.initializers.zeros, (2 * height - 1, head_width))
        table_w = parameter(self, "rel_pos_w", nn.initializers.zeros, (2 * width - 1, head_width))
        rows = relative_position_table(table_h, height).astype(x.dtype)
        columns = relative_position_table(table_w, width).astype(x.dtype)
        kernel, bias = QKV(self.heads, name="qkv")(channels)
        attend = attend_by_head if computes_on_cpu() else attend_at_once
        return Dense(channels, name="proj")(attend(x, kernel, bias, rows, columns).reshape(x.shape))


class Block(nn.Module):
    """A transformer block; `window_size` 0 means attention over the whole map."""

    heads: int
    window_size: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, H, W, C) -> (B, H, W, C)."""
        normed = LayerNorm(name="norm1")(x)
        attention = Attention(self.heads, name="attn")
        if self.window_size:
            windows = attention(window_partition(normed, self.window_size))
            x = x + window_unpartition(windows, (x.shape[1], x.shape[2]))
        else:
            x = x + attention(normed)
        return x + MLP(4 * x.shape[-1], gelu, name="mlp")(LayerNorm(name="norm2")(x))


class PatchEmbed(nn.Module):
    """Patches, one linear map (`patch_embed.proj`); SAM 2's overlap, others do not."""

    width: int
    patch_size: int
    kernel_size: int | None = None  # None: that of a patch
    padding: int = 0

    @nn.compact
    def __call__(self, pictures: jax.Array) -> jax.Array:
        """(B, H, W, 3) -> (B, H / patch, W / patch, width)."""
        kernel = self.kernel_size or self.patch_size
        return Conv(self.width, kernel, stride=self.patch_size, padding=self.padding, name="proj")(pictures)


class Neck(nn.Module):
    """Brings ViT features to the width of the decoder; no activation between its layers."""

    width: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, G, G, C) -> (B, G, G, width)."""
        x = LayerNorm(name="1")(Conv(self.width, 1, use_bias=False, name="0")(x))
        return LayerNorm(name="3")(Conv(self.width, 3, padding=1, use_bias=False, name="2")(x))


def early_width(config: ViTConfig) -> int:
    """Channels of the early features."""
    return config.width


def recognise(config: ViTConfig, depths: tuple[int, ...], width: int | None) -> bool:
    """Whether a state dict with one stage of so many blocks, `width` channels before the neck, is of this encoder."""
    return depths == (config.depth,) and width in (None, config.width)


def official(config: SamConfig) -> tuple[str, dict[str, Any]]:
    """Class in `modeling` of segment_anything and segment_anything_hq, and its arguments."""
    vit = config.encoder
    assert isinstance(vit, ViTConfig)
    return "ImageEncoderViT", {
        "img_size": config.image_size,
        "patch_size": vit.patch_size,
        "embed_dim": vit.width,
        "depth": vit.depth,
        "num_heads": vit.heads,
        "out_chans": config.embedding_width,
        "use_rel_pos": True,
        "window_size": vit.window_size,
        "global_attn_indexes": vit.global_blocks,
    }


class ImageEncoderViT(nn.Module):
    """Pictures to image embedding, and to the features that HQ-SAM takes from an early layer."""

    config: ViTConfig
    output_width: int

    @nn.compact
    def __call__(self, pictures: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Encodes pictures.

        Args:
            pictures: (B, S, S, 3) float32, normalised and padded, S = patch_size * G.

        Returns:
            (B, G, G, output_width) image embedding, and (B, G, G, width) as it leaves the first global block.
        """
        config = self.config
        x = PatchEmbed(config.width, config.patch_size, name="patch_embed")(pictures)
        x = x + parameter(self, "pos_embed", nn.initializers.zeros, (1, *x.shape[1:])).astype(x.dtype)
        early = x
        for index in range(config.depth):
            window = 0 if index in config.global_blocks else config.window_size
            x = Block(config.heads, window, name=f"blocks_{index}")(x)
            if index == config.global_blocks[0]:
                early = x
        return Neck(self.output_width, name="neck")(x), early
