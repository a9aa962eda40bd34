"""The image encoder of sam_nano: EfficientNet-Lite0 and a neck over four of its scales.

Batch norms are folded into the convolutions, so every layer is a convolution with a bias. The backbone is apart from
the neck, because pre-training keeps it frozen and caches its features.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from stablesam_jax.config import LiteConfig
from stablesam_jax.ops.gradients import gelu
from stablesam_jax.ops.layers import Conv, DepthwiseConv, LayerNorm

LiteFeatures = tuple[jax.Array, jax.Array, jax.Array, jax.Array]  # maps at strides 4, 8, 16, 32


class InvertedBottleneck(nn.Module):
    """Expand, filter each channel, project; with a residual where the shapes allow one."""

    width: int
    expansion: int
    kernel: int
    stride: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, H, W, C) -> (B, H / stride, W / stride, width)."""
        hidden = x
        if self.expansion != 1:
            hidden = nn.relu6(Conv(x.shape[-1] * self.expansion, 1, name="expand")(hidden))
        hidden = nn.relu6(DepthwiseConv(self.kernel, self.stride, name="depthwise")(hidden))
        hidden = Conv(self.width, 1, name="project")(hidden)
        return hidden + x if hidden.shape == x.shape else hidden


class LiteBackbone(nn.Module):
    """EfficientNet-Lite0 without its classifier."""

    config: LiteConfig

    @nn.compact
    def __call__(self, pictures: jax.Array) -> LiteFeatures:
        """(B, S, S, 3) normalised pictures -> features of the tapped stages, finest first."""
        stem = nn.Conv(self.config.stem_width, (3, 3), (2, 2), "SAME", dtype=pictures.dtype, name="stem")
        x = nn.relu6(stem(pictures))
        outputs = []
        index = 0
        for stage in self.config.stages:
            for repeat in range(stage.repeats):
                stride = stage.stride if repeat == 0 else 1
                block = InvertedBottleneck(stage.width, stage.expansion, stage.kernel, stride, name=f"blocks_{index}")
                x = block(x)
                index += 1
            outputs.append(x)
        finest, fine, middle, coarse = (outputs[tap] for tap in self.config.taps)
        return finest, fine, middle, coarse


class LiteNeck(nn.Module):
    """Sums four scales at stride 16, mixes them with one 3 x 3 convolution, normalises as SAM's neck ends."""

    width: int

    @nn.compact
    def __call__(self, features: LiteFeatures) -> jax.Array:
        """((B, 4G, 4G, .), (B, 2G, 2G, .), (B, G, G, .), (B, G / 2, G / 2, .)) -> (B, G, G, width)."""
        finest, fine, middle, coarse = features
        lifted = Conv(self.width, 1, name="coarse")(coarse)
        lifted = jnp.repeat(jnp.repeat(lifted, 2, axis=1), 2, axis=2)
        x = Conv(self.width, 2, stride=2, name="fine")(fine) + Conv(self.width, 1, name="middle")(middle)
        x = x + lifted + Conv(self.width, 4, stride=4, use_bias=False, name="finest")(finest)
        x = gelu(LayerNorm(name="norm")(x))
        return LayerNorm(name="output_norm")(Conv(self.width, 3, padding=1, use_bias=False, name="output")(x))


def early_width(config: LiteConfig) -> int:
    """Channels of the early features: each cell holds a 2 x 2 square of the second tap."""
    return 4 * config.stages[config.taps[1]].width


class ImageEncoderLite(nn.Module):
    """Pictures to image embedding: `backbone`, then `finish` (the neck), which may be called apart."""

    config: LiteConfig
    output_width: int

    def setup(self):
        self.backbone = LiteBackbone(self.config)
        self.neck = LiteNeck(self.output_width)

    def __call__(self, pictures: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Encodes pictures.

        Args:
            pictures: (B, S, S, 3) normalised, S a multiple of 32.

        Returns:
            (B, G, G, output_width) image embedding, G = S / 16, and (B, G, G, 160) early features.
        """
        return self.finish(self.backbone(pictures))

    def finish(self, features: LiteFeatures) -> tuple[jax.Array, jax.Array]:
        """The second step: what `__call__` returns, from what the backbone has made.

        Each 2 x 2 square of the stride-8 map is one cell of the early features, so that HQ-SAM's branch finds the
        grid it expects and no detail is lost.
        """
        fine = features[1]
        batch, height, width, channels = fine.shape
        squares = fine.reshape(batch, height // 2, 2, width // 2, 2, channels).swapaxes(2, 3)
        return self.neck(features), squares.reshape(batch, height // 2, width // 2, 4 * channels)
