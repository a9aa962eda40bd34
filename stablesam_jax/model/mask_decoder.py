"""Tokens to masks and their predicted quality (segment_anything/modeling/mask_decoder.py; HQ: mask_decoder_hq.py)."""

from typing import Literal

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from stablesam_jax.config import HQ_TOKEN, MASK_TOKENS
from stablesam_jax.model.hq import HQBranch
from stablesam_jax.model.transformer import NO_HOOKS, Hooks, TwoWayTransformer
from stablesam_jax.ops.layers import HeadMLP, LayerNorm, UpscaleBy2, mask_logits, one_by_one
from stablesam_jax.ops.numerics import gelu, to_float32

MASKS = MASK_TOKENS.stop - MASK_TOKENS.start  # mask 0 is the single one, 1 to 3 are those of multimask_output

# "single": mask 0. "multi": masks 1, 2, 3; of HQ-SAM the one of them that is predicted to be best. "all": the four.
# Only those asked for are computed.
MaskChoice = Literal["single", "multi", "all"]
_CHOSEN: dict[MaskChoice, range] = {"single": range(0, 1), "multi": range(1, 4), "all": range(0, 4)}


@flax.struct.dataclass
class Masks:
    """What the decoder predicts for N prompts of B pictures."""

    low_res_masks: jax.Array  # (B, N, M, 4G, 4G) float32 logits; above 0 is foreground
    iou_predictions: jax.Array  # (B, N, M) float32, the model's estimate of each mask's IoU; may leave 0..1
    hq_masks: jax.Array | None = None  # (B, N, 1, 4G, 4G) logits of the HQ token; for "all" of HQ-SAM alone


class MaskDecoder(nn.Module):
    """Two-way transformer, upscaling, one hypernetwork for each mask token, IoU head; and HQ-SAM's branch."""

    width: int
    hq: bool = False

    def setup(self):
        if self.hq:
            self.hq_branch = HQBranch(self.width)
            nn.share_scope(self, self.hq_branch)

    def picture_features(self, image_embeddings: jax.Array, early: jax.Array) -> jax.Array:
        """See `HQBranch`."""
        return self.hq_branch.picture_features(image_embeddings, early)

    @nn.compact
    def __call__(
        self,
        image_embeddings: jax.Array,
        image_pe: jax.Array,
        sparse_prompt_embeddings: jax.Array,
        dense_prompt_embeddings: jax.Array,
        sparse_valid: jax.Array,
        *,
        hq_features: jax.Array | None = None,
        masks: MaskChoice = "single",
        hq_token_only: bool = False,
        at_once: bool = False,
        hooks: Hooks = NO_HOOKS,
    ) -> Masks:
        """Predicts masks.

        Args:
            image_embeddings: (B, G, G, C).
            image_pe: (1, 1, G, G, C).
            sparse_prompt_embeddings: (B, N, K, C).
            dense_prompt_embeddings: (B or 1, N or 1, G, G, C).
            sparse_valid: (B, N, K) bool.
            hq_features: (B, 4G, 4G, C / 8) from `picture_features`; HQ-SAM needs them.
            masks: which masks to compute (static).
            hq_token_only: return the HQ token's mask instead of its sum with SAM's (static).
            at_once: decode all prompts together even on the CPU, see `one_by_one` (static).
            hooks: see `TwoWayTransformer`.

        Returns:
            `Masks`. HQ-SAM has M = 1 unless all masks are asked for, which are SAM's alone then.
        """
        batch, prompts, _, width = sparse_prompt_embeddings.shape
        output_tokens = [
            self.param("iou_token", nn.initializers.normal(1.0), (1, width)),
            self.param("mask_tokens", nn.initializers.normal(1.0), (MASKS, width)),
        ]
        if self.hq:
            output_tokens.append(self.hq_branch.token)
        output = jnp.concatenate(output_tokens).astype(sparse_prompt_embeddings.dtype)
        output = jnp.broadcast_to(output[None, None], (batch, prompts, *output.shape))
        tokens = jnp.concatenate([output, sparse_prompt_embeddings], axis=2)
        valid = jnp.concatenate([jnp.ones(output.shape[:3], bool), sparse_valid], axis=2)
        keys = image_embeddings[:, None] + dense_prompt_embeddings

        transformer = TwoWayTransformer(self.width, name="transformer")
        upscaling = [
            UpscaleBy2(width // 4, name="output_upscaling_0"),
            LayerNorm(name="output_upscaling_1"),
            UpscaleBy2(width // 8, name="output_upscaling_3"),
        ]
        chosen = _CHOSEN["all" if self.is_initializing() else masks]
        hypernetworks = [HeadMLP(width, width // 8, name=f"output_hypernetworks_mlps_{index}") for index in chosen]
        iou_head = HeadMLP(width, MASKS, name="iou_prediction_head")

        def predict(
            keys: jax.Array, tokens: jax.Array, valid: jax.Array, hq_features: jax.Array | None = None
        ) -> Masks:
            tokens, features = transformer(keys, image_pe, tokens, valid, hooks)
            first, norm, last = upscaling
            upscaled = gelu(last(gelu(norm(first(features)))))
            weights = jnp.stack(
                [
                    network(tokens[:, :, MASK_TOKENS.start + index])
                    for index, network in zip(chosen, hypernetworks, strict=True)
                ],
                axis=2,
            )
            iou_predictions = iou_head(to_float32(tokens[:, :, 0]))[:, :, chosen.start : chosen.stop]
            if not self.hq:
                return Masks(mask_logits(weights, upscaled), iou_predictions)

            assert hq_features is not None
            hq_masks = self.hq_branch.logits(tokens[:, :, HQ_TOKEN], upscaled, hq_features)[:, :, None]
            if masks == "all":
                return Masks(mask_logits(weights, upscaled), iou_predictions, hq_masks)
            if masks == "multi":
                best = jnp.argmax(iou_predictions, axis=2, keepdims=True)  # the first where several are best
                iou_predictions = jnp.take_along_axis(iou_predictions, best, axis=2)
                weights = jnp.take_along_axis(weights, best[..., None], axis=2)
            if hq_token_only:
                return Masks(hq_masks, iou_predictions)
            return Masks(mask_logits(weights, upscaled) + hq_masks, iou_predictions)

        shown = any(map(self.is_mutable_collection, ("intermediates", "attention")))  # not from within a loop
        answer = predict if at_once or shown or self.is_initializing() else one_by_one(predict)
        return answer(keys, tokens, valid, *([hq_features[:, None]] if hq_features is not None else []))
