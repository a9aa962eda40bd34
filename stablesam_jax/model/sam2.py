"""What SAM 2 adds to SAM's decoder (sam2/modeling/sam/mask_decoder.py, sam2_base.py, sam2_image_predictor.py).

Two finer maps of the picture are added while masks are upscaled, a fifth token tells whether the object is in the
picture, an unstable single mask is replaced by the best of three, and boxes have a token "not a point", too.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from stablesam_jax.model.prompt_encoder import NOT_A_POINT, TOP_LEFT, Prompts
from stablesam_jax.ops.layers import Conv, HeadMLP, cells, parameter
from stablesam_jax.ops.numerics import to_float32

# Limits of `stable_or_best`, with which build_sam2 builds every model unless told otherwise.
STABILITY_DELTA, STABLE = 0.05, 0.98
LOGIT_LIMIT = 32.0  # of the low-resolution logits that SAM2ImagePredictor returns, to be given back as a mask input


class Sam2Branch(nn.Module):
    """The parameters that SAM 2's mask decoder has and SAM's has not. Their scope is that of the mask decoder."""

    width: int

    def setup(self):
        self.token = parameter(self, "obj_score_token", nn.initializers.normal(1.0), (1, self.width))
        self.score_head = HeadMLP(self.width, 1, name="pred_obj_score_head")
        self.conv_s0 = Conv(self.width // 8, 1, name="conv_s0")
        self.conv_s1 = Conv(self.width // 4, 1, name="conv_s1")

    def picture_features(self, stride_4: jax.Array, stride_8: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Projects the encoder's finer maps, once for all prompts of a picture.

        Args:
            stride_4: (B, 4G, 4G, C).
            stride_8: (B, 2G, 2G, C).

        Returns:
            (B, G, G, 2, 2, 2, 2, C / 8) and (B, G, G, 2, 2, C / 4), each cell's pixels beside it, see `UpscaleBy2`.
        """
        return cells(self.conv_s0(stride_4), 2), cells(self.conv_s1(stride_8), 1)

    def object_scores(self, token: jax.Array) -> jax.Array:
        """(B, N, C), the object token as it leaves the transformer -> (B, N) float32 logits."""
        return self.score_head(to_float32(token))[..., 0]


def stable_or_best(low_res_masks: jax.Array, iou_predictions: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The single mask, or in its place the one of the other three with the highest predicted IoU.

    It is replaced if fewer than `STABLE` of the pixels above -STABILITY_DELTA are above STABILITY_DELTA. The official
    model does so in use, not in training.

    Args:
        low_res_masks: (B, N, 4, 4G, 4G) logits, the single mask first.
        iou_predictions: (B, N, 4).

    Returns:
        (B, N, 1, 4G, 4G) and (B, N, 1).
    """
    single = low_res_masks[:, :, 0]
    inner, outer = (
        jnp.sum(single > limit, axis=(2, 3)).astype(jnp.float32) for limit in (STABILITY_DELTA, -STABILITY_DELTA)
    )
    stable = (outer == 0) | (inner / jnp.maximum(outer, 1) >= STABLE)
    best = 1 + jnp.argmax(iou_predictions[:, :, 1:], axis=2)  # ties go to the first
    chosen = jnp.where(stable, 0, best)[:, :, None]
    return (
        jnp.take_along_axis(low_res_masks, chosen[..., None, None], axis=2),
        jnp.take_along_axis(iou_predictions, chosen, axis=2),
    )


def with_padding_point(prompts: Prompts) -> Prompts:
    """The prompts with one more token each, "not a point", which counts where there is a box.

    SAM has that token after points without a box alone; SAM 2 takes a box for two points, so it is there, too.
    """
    has_box = jnp.any((prompts.labels == TOP_LEFT) & prompts.valid, axis=2, keepdims=True)
    token = jnp.zeros_like(prompts.coords[:, :, :1])
    return dataclasses.replace(
        prompts,
        coords=jnp.concatenate([prompts.coords, token], axis=2),
        labels=jnp.concatenate([prompts.labels, jnp.full_like(has_box, NOT_A_POINT, prompts.labels.dtype)], axis=2),
        valid=jnp.concatenate([prompts.valid, has_box], axis=2),
    )
