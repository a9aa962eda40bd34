"""What HQ-SAM adds to the mask decoder (arXiv 2306.01567; segment_anything_hq/modeling/mask_decoder_hq.py).

A fifth mask token predicts its own mask from SAM's upscaled features plus features of the picture, which fuse the image
embedding with the output of an early encoder layer.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax

from stablesam_jax.ops.gradients import gelu, sum_of_taps
from stablesam_jax.ops.layers import Conv, HeadMLP, LayerNorm, UpscaleBy2, parameter, pixels
from stablesam_jax.ops.numerics import einsum


class HQBranch(nn.Module):
    """The 25 tensors of HQ-SAM. Their scope is that of the mask decoder, where official files have them."""

    width: int

    def setup(self):
        width, narrow = self.width, self.width // 8
        self.token = parameter(self, "hf_token", nn.initializers.normal(1.0), (1, width))
        self.mlp = HeadMLP(width, narrow, name="hf_mlp")
        self.compress_vit_feat = _upscaling("compress_vit_feat", width, narrow)
        self.embedding_encoder = _upscaling("embedding_encoder", width // 4, narrow)
        self.embedding_maskfeature = (
            Conv(width // 4, 3, padding=1, name="embedding_maskfeature_0"),
            LayerNorm(name="embedding_maskfeature_1"),
            WeightedConv(narrow, name="embedding_maskfeature_3"),
        )

    def picture_features(self, image_embeddings: jax.Array, early: jax.Array) -> jax.Array:
        """What depends on the picture alone: (B, G, G, C) and (B, G, G, any) -> (B, 4G, 4G, C / 8)."""
        return pixels(_apply(self.embedding_encoder, image_embeddings) + _apply(self.compress_vit_feat, early))

    def logits(self, token: jax.Array, upscaled: jax.Array, picture_features: jax.Array) -> jax.Array:
        """The mask of the HQ token.

        Args:
            token: (B, N, C) as it leaves the transformer.
            upscaled: (B, N, G, G, 2, 2, 2, 2, C / 8) SAM's upscaled features, each cell's pixels beside it.
            picture_features: (B, 1, 4G, 4G, C / 8).

        Returns:
            (B, N, 4G, 4G) float32 logits.
        """
        first, norm, last = self.embedding_maskfeature
        weights = self.mlp(token)
        of_the_picture = einsum("bnhwc,bnc->bnhw", picture_features, weights)
        return last(gelu(norm(first(pixels(upscaled)))), weights) + of_the_picture


class WeightedConv(nn.Module):
    """A 3 x 3 convolution whose output channels are summed with weights w: conv(x, K) . w = conv(x, K . w).

    The right side is exact and has one output channel: one matmul to 9 taps in place of 9 C channels.
    """

    width: int

    @nn.compact
    def __call__(self, x: jax.Array, weights: jax.Array) -> jax.Array:
        """(B, N, H, W, C) features, (B, N, width) -> (B, N, H, W), float32 or wider."""
        kernel = parameter(self, "kernel", nn.initializers.lecun_normal(), (3, 3, x.shape[-1], self.width)).astype(
            x.dtype
        )
        bias = parameter(self, "bias", nn.initializers.zeros, (self.width,)).astype(x.dtype)
        taps = einsum("ijco,bno->bnijc", kernel, weights).astype(x.dtype)
        of_bias = einsum("bno,o->bn", weights, bias)[..., None, None]
        return of_bias + sum_of_taps(einsum("bnhwc,bnijc->bnhwij", x, taps))


def _upscaling(name: str, hidden: int, width: int) -> Sequence[nn.Module]:
    """Four times the side; unlike SAM's own upscaling without an activation at the end."""
    return [UpscaleBy2(hidden, name=f"{name}_0"), LayerNorm(name=f"{name}_1"), UpscaleBy2(width, name=f"{name}_3")]


def _apply(layers: Sequence[nn.Module], x: jax.Array) -> jax.Array:
    first, norm, last = layers
    return last(gelu(norm(first(x))))
