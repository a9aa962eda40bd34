"""Tokens to masks and their predicted quality (segment_anything/modeling/mask_decoder.py)."""

from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from stablesam_jax.model.common import HeadMLP, LayerNorm, UpscaleBy2, gelu
from stablesam_jax.model.transformer import NO_HOOKS, Hooks, TwoWayTransformer

MASK_TOKENS = 4  # token 0 makes the single mask, tokens 1 to 3 the three of multimask_output

# "single": mask 0. "multi": masks 1, 2, 3. "all": the four. Only those asked for are computed.
MaskChoice = Literal["single", "multi", "all"]
_CHOSEN: dict[MaskChoice, range] = {"single": range(0, 1), "multi": range(1, 4), "all": range(0, 4)}


class MaskDecoder(nn.Module):
    """Two-way transformer, upscaling, one hypernetwork for each mask token, IoU head."""

    width: int

    @nn.compact
    def __call__(
        self,
        image_embeddings: jax.Array,
        image_pe: jax.Array,
        sparse_prompt_embeddings: jax.Array,
        dense_prompt_embeddings: jax.Array,
        sparse_valid: jax.Array,
        *,
        masks: MaskChoice = "single",
        hooks: Hooks = NO_HOOKS,
    ) -> tuple[jax.Array, jax.Array]:
        """Predicts masks.

        Args:
            image_embeddings: (B, G, G, C).
            image_pe: (1, 1, G, G, C).
            sparse_prompt_embeddings: (B, N, K, C).
            dense_prompt_embeddings: (B or 1, N or 1, G, G, C).
            sparse_valid: (B, N, K) bool.
            masks: which masks to compute (static).
            hooks: see `TwoWayTransformer`.

        Returns:
            low_res_masks (B, N, M, 4G, 4G) logits and iou_predictions (B, N, M).
        """
        batch, prompts, _, width = sparse_prompt_embeddings.shape
        iou_token = self.param("iou_token", nn.initializers.normal(1.0), (1, width))
        mask_tokens = self.param("mask_tokens", nn.initializers.normal(1.0), (MASK_TOKENS, width))
        output_tokens = jnp.concatenate([iou_token, mask_tokens])
        output_tokens = jnp.broadcast_to(output_tokens[None, None], (batch, prompts, 1 + MASK_TOKENS, width))
        tokens = jnp.concatenate([output_tokens, sparse_prompt_embeddings], axis=2)
        always = jnp.ones((batch, prompts, 1 + MASK_TOKENS), bool)
        valid = jnp.concatenate([always, sparse_valid], axis=2)

        keys = image_embeddings[:, None] + dense_prompt_embeddings
        tokens, features = TwoWayTransformer(self.width, name="transformer")(keys, image_pe, tokens, valid, hooks)

        upscaled = UpscaleBy2(width // 4, name="output_upscaling_0")(features)
        upscaled = gelu(LayerNorm(name="output_upscaling_1")(upscaled))
        upscaled = gelu(UpscaleBy2(width // 8, name="output_upscaling_3")(upscaled))

        chosen = _CHOSEN["all" if self.is_initializing() else masks]
        weights = [
            HeadMLP(width, width // 8, name=f"output_hypernetworks_mlps_{index}")(tokens[:, :, 1 + index])
            for index in chosen
        ]
        logits = jnp.einsum("bnmc,bnhwc->bnmhw", jnp.stack(weights, axis=2), upscaled)
        iou_predictions = HeadMLP(width, MASK_TOKENS, name="iou_prediction_head")(tokens[:, :, 0])
        return logits, iou_predictions[:, :, chosen.start : chosen.stop]
