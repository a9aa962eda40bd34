"""SAM 2's image encoder: Hiera, a windowed transformer of four scales, and a neck that keeps three of them.

Source: sam2/modeling/backbones/hieradet.py and image_encoder.py, and the image branch of sam2_base.py. Names of modules
and parameters are the official ones.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import DTypeLike

from stablesam_jax.config import HieraConfig, SamConfig
from stablesam_jax.model.attention import QKV, attend_to_cells
from stablesam_jax.model.encoders.vit import PatchEmbed, window_partition, window_unpartition
from stablesam_jax.ops.gradients import gelu
from stablesam_jax.ops.layers import MLP, Conv, Dense, LayerNorm, parameter
from stablesam_jax.ops.numerics import broadcast_channels, einsum

STRIDE = 4  # pixels per cell of the first stage
CUBIC = -0.75  # coefficient of PyTorch's bicubic interpolation; jax.image.resize has -0.5

HighResolution = tuple[jax.Array, jax.Array]  # (B, 4G, 4G, C) and (B, 2G, 2G, C), maps at strides 4 and 8


def cubic_matrix(cells: int, size: int, dtype: DTypeLike) -> np.ndarray:
    """The matrix of PyTorch's bicubic resize along one axis: half-pixel centres, no antialias, repeated borders.

    Args:
        cells: of the axis before.
        size: of the axis after.
        dtype: in which PyTorch computes positions, that of its input.

    Returns:
        (size, cells) float64; a row has at most four weights that are not 0.
    """
    scale, half = np.asarray([cells / size, 0.5], dtype)
    position = scale * (np.arange(size, dtype=dtype) + half) - half
    first = np.floor(position)
    after = (position - first).astype(np.float64)
    matrix = np.zeros((size, cells))
    for tap in range(-1, 3):
        distance = np.abs(after - tap)
        near = ((CUBIC + 2) * distance - (CUBIC + 3)) * distance**2 + 1
        far = ((CUBIC * distance - 5 * CUBIC) * distance + 8 * CUBIC) * distance - 4 * CUBIC
        places = np.clip(first.astype(np.int64) + tap, 0, cells - 1)
        np.add.at(matrix, (np.arange(size), places), np.where(distance <= 1, near, far))
    return matrix


def positions(background: jax.Array, window: jax.Array, side: int) -> jax.Array:
    """Absolute positions: a coarse map, enlarged, and a map of one window, repeated (arXiv 2311.05613).

    Args:
        background: (1, b, b, C).
        window: (1, w, w, C).
        side: cells of the grid, a multiple of w.

    Returns:
        (1, side, side, C).
    """
    matrix = jnp.asarray(cubic_matrix(background.shape[1], side, background.dtype), background.dtype)
    enlarged = einsum("ri,bijc->brjc", matrix, background)
    enlarged = einsum("sj,brjc->brsc", matrix, enlarged).astype(background.dtype)
    repeats = side // window.shape[1]
    return enlarged + jnp.tile(window, (1, repeats, repeats, 1))


def max_pool(x: jax.Array) -> jax.Array:
    """The maximum of each 2 x 2 square: (B, H, W, ...) -> (B, H / 2, W / 2, ...)."""
    batch, height, width, *rest = x.shape
    return x.reshape(batch, height // 2, 2, width // 2, 2, *rest).max(axis=(2, 4))


class Attention(nn.Module):
    """Multi-head self-attention over a map; where it pools, the queries are those of half the side."""

    width: int
    heads: int
    pools: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, H, W, C) -> (B, H, W, width), or half of H and W."""
        kernel, bias = QKV(self.heads, name="qkv")(x.shape[-1], self.width)
        attended = attend_to_cells(x, kernel, bias, max_pool if self.pools else None)
        return Dense(self.width, name="proj")(attended.reshape(*attended.shape[:3], self.width))


class Block(nn.Module):
    """A transformer block; `window_size` 0 means attention over the whole map. A stage's first block pools."""

    width: int
    heads: int
    window_size: int
    pools: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, H, W, C) -> (B, H, W, width), or half of H and W."""
        normed = LayerNorm(name="norm1")(x)
        if self.pools:  # the residual is of the normalised features then
            x = max_pool(Dense(self.width, name="proj")(normed))
        attention = Attention(self.width, self.heads, self.pools, name="attn")
        if self.window_size:
            x = x + window_unpartition(attention(window_partition(normed, self.window_size)), (x.shape[1], x.shape[2]))
        else:
            x = x + attention(normed)
        return x + MLP(4 * self.width, gelu, name="mlp")(LayerNorm(name="norm2")(x))


class Hiera(nn.Module):
    """Pictures to the output of each stage."""

    config: HieraConfig

    @nn.compact
    def __call__(self, pictures: jax.Array) -> list[jax.Array]:
        """(B, S, S, 3) -> maps at strides 4, 8, 16 and 32."""
        config = self.config
        x = PatchEmbed(config.width, STRIDE, kernel_size=7, padding=3, name="patch_embed")(pictures)
        shapes = {"pos_embed": config.background_size, "pos_embed_window": config.window_sizes[0]}
        background, window = (
            parameter(self, name, nn.initializers.zeros, (1, side, side, config.width)) for name, side in shapes.items()
        )
        x = x + positions(background, window, x.shape[1]).astype(x.dtype)
        outputs = []
        index = 0
        for stage, (depth, width) in enumerate(zip(config.depths, config.widths, strict=True)):
            for number in range(depth):
                pools = stage > 0 and number == 0
                # The block that pools sees windows of the stage before, of which it leaves half the side.
                window_size = config.window_sizes[stage - 1 if pools else stage]
                window_size = 0 if index in config.global_blocks else window_size
                x = Block(width, config.heads * 2**stage, window_size, pools, name=f"blocks_{index}")(x)
                index += 1
            outputs.append(x)
        return outputs


class Projection(nn.Module):
    """A 1 x 1 convolution of one scale."""

    width: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, H, W, any) -> (B, H, W, width)."""
        return Conv(self.width, 1, name="conv")(x)


class FpnNeck(nn.Module):
    """Brings all scales to one width, and adds the coarsest to the next one; not to the finer two (sam2.1's yaml)."""

    width: int

    @nn.compact
    def __call__(self, maps: list[jax.Array]) -> list[jax.Array]:
        """Maps at strides 4, 8, 16, 32 -> those at strides 4, 8, 16 with `width` channels."""
        # The official list begins with the coarsest.
        lateral = [Projection(self.width, name=f"convs_{3 - level}")(x) for level, x in enumerate(maps)]
        enlarged = jnp.repeat(jnp.repeat(lateral[3], 2, axis=1), 2, axis=2)  # mode "nearest"
        return [*lateral[:2], lateral[2] + enlarged]


def recognise(config: HieraConfig, depths: tuple[int, ...], width: int | None) -> bool:
    """Whether a state dict with stages of so many blocks, `width` channels of the last one, is of this encoder."""
    return depths == config.depths and width in (None, config.widths[-1])


def official(config: SamConfig) -> tuple[str, dict[str, Any]]:
    """Class in `modeling.backbones.hieradet` of sam2, and its arguments."""
    hiera = config.encoder
    assert isinstance(hiera, HieraConfig)
    return "Hiera", {
        "embed_dim": hiera.width,
        "num_heads": hiera.heads,
        "stages": hiera.depths,
        "global_att_blocks": hiera.global_blocks,
        "window_spec": hiera.window_sizes,
        "window_pos_embed_bkg_spatial_size": (hiera.background_size, hiera.background_size),
    }


class ImageEncoderHiera(nn.Module):
    """Pictures to image embedding, and to the two finer maps that SAM 2's mask decoder reads as well."""

    config: HieraConfig
    output_width: int

    @nn.compact
    def __call__(self, pictures: jax.Array) -> tuple[jax.Array, HighResolution]:
        """Encodes pictures.

        Args:
            pictures: (B, S, S, 3) float32, normalised, S a multiple of 32.

        Returns:
            (B, G, G, output_width) image embedding, G = S / 16, with the embedding of "no memory" that videos use, and
            maps (B, 4G, 4G, output_width), (B, 2G, 2G, output_width).
        """
        fine, middle, coarse = FpnNeck(self.output_width, name="neck")(Hiera(self.config, name="trunk")(pictures))
        no_memory = parameter(self, "no_mem_embed", nn.initializers.normal(0.02), (1, 1, self.output_width))
        return coarse + broadcast_channels(no_memory[0, 0], coarse), (fine, middle)
