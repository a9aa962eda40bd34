"""Tokens to masks and their predicted quality (segment_anything/modeling/mask_decoder.py).

What HQ-SAM and SAM 2 add is in `hq` and `sam2`.
"""

import dataclasses
from typing import Literal

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jax.export import is_symbolic_dim

from stablesam_jax.config import HQ_TOKEN, MASK_TOKENS, OBJECT_TOKEN
from stablesam_jax.model.hq import HQBranch
from stablesam_jax.model.sam2 import Sam2Branch, stable_or_best
from stablesam_jax.model.transformer import NO_HOOKS, Hooks, TwoWayTransformer, with_share
from stablesam_jax.ops.gradients import gelu
from stablesam_jax.ops.layers import HeadMLP, LayerNorm, UpscaleBy2, mask_logits, one_by_one, parameter
from stablesam_jax.ops.numerics import to_float32

SHARED = 4  # number of prompts from which projecting the cells that they share is faster than projecting tokens
MASKS = MASK_TOKENS.stop - MASK_TOKENS.start  # mask 0 is the single one, 1 to 3 are those of multimask_output

# "single": mask 0; of SAM 2 see `stable_or_best`. "multi": masks 1, 2, 3; for HQ-SAM the one of them with the highest
# predicted IoU. "all": the four.
# Only chosen masks are computed.
MaskChoice = Literal["single", "multi", "all"]
_CHOSEN: dict[MaskChoice, range] = {"single": range(0, 1), "multi": range(1, 4), "all": range(0, 4)}


@flax.struct.dataclass
class Masks:
    """Output of the decoder for N prompts of B pictures."""

    low_res_masks: jax.Array  # (B, N, M, 4G, 4G) float32 logits; above 0 is foreground
    iou_predictions: jax.Array  # (B, N, M) float32, estimates of each mask's IoU; SAM 1's may be outside 0..1
    hq_masks: jax.Array | None = None  # (B, N, 1, 4G, 4G) logits of the HQ token; for "all" of HQ-SAM alone
    object_scores: jax.Array | None = None  # (B, N) float32 logits of SAM 2: above 0 the object is in the picture

    @staticmethod
    def where(chosen: jax.Array, first: "Masks", second: "Masks") -> "Masks":
        """The masks of the first for the prompts that are chosen, (B, N) bool, and of the second for the others."""
        return jax.tree.map(
            lambda x, y: jnp.where(chosen.reshape(chosen.shape + (1,) * (x.ndim - 2)), x, y), first, second
        )


def chosen_masks(masks: Masks, choice: MaskChoice) -> Masks:
    """Of the four masks of SAM those of a choice; of a single one, that."""
    if masks.low_res_masks.shape[2] < MASKS:
        return masks
    chosen = slice(_CHOSEN[choice].start, _CHOSEN[choice].stop)
    return dataclasses.replace(
        masks,
        low_res_masks=masks.low_res_masks[:, :, chosen],
        iou_predictions=masks.iou_predictions[:, :, chosen],
    )


class MaskDecoder(nn.Module):
    """Tokens, two-way transformer, upscaling, choice of masks; and the branch of HQ-SAM or SAM 2."""

    width: int
    hq: bool = False
    sam2: bool = False

    def setup(self):
        width = self.width
        if self.hq:
            self.hq_branch = HQBranch(width)
            nn.share_scope(self, self.hq_branch)
            self.more_tokens = [self.hq_branch.token]
        elif self.sam2:
            self.sam2_branch = Sam2Branch(width)
            nn.share_scope(self, self.sam2_branch)
            self.more_tokens = [self.sam2_branch.token]
        else:
            self.more_tokens = []
        self.iou_token = parameter(self, "iou_token", nn.initializers.normal(1.0), (1, width))
        self.mask_tokens = parameter(self, "mask_tokens", nn.initializers.normal(1.0), (MASKS, width))
        self.transformer = TwoWayTransformer(width)
        self.output_upscaling = (
            UpscaleBy2(width // 4, name="output_upscaling_0"),
            LayerNorm(name="output_upscaling_1"),
            UpscaleBy2(width // 8, name="output_upscaling_3"),
        )
        self.output_hypernetworks_mlps = [HeadMLP(width, width // 8) for _ in range(MASKS)]
        self.iou_prediction_head = HeadMLP(width, MASKS)

    def picture_features(self, image_embeddings: jax.Array, early: jax.Array) -> jax.Array:
        """See `HQBranch`."""
        return self.hq_branch.picture_features(image_embeddings, early)

    def high_resolution(self, stride_4: jax.Array, stride_8: jax.Array) -> tuple[jax.Array, jax.Array]:
        """See `Sam2Branch.picture_features`."""
        return self.sam2_branch.picture_features(stride_4, stride_8)

    def __call__(
        self,
        image_embeddings: jax.Array,
        image_pe: jax.Array,
        sparse_prompt_embeddings: jax.Array,
        dense_prompt_embeddings: jax.Array,
        sparse_valid: jax.Array,
        *,
        hq_features: jax.Array | None = None,
        high_res: tuple[jax.Array, jax.Array] | None = None,
        masks: MaskChoice = "single",
        hq_token_only: bool = False,
        at_once: bool = False,
        remat: bool = False,
        hooks: Hooks = NO_HOOKS,
        share: jax.Array | None = None,
    ) -> Masks:
        """Predicts masks.

        Args:
            image_embeddings: (B, G, G, C).
            image_pe: (1, 1, G, G, C).
            sparse_prompt_embeddings: (B, N, K, C).
            dense_prompt_embeddings: (B or 1, N or 1, G, G, C).
            sparse_valid: (B, N, K) bool.
            hq_features: (B, 4G, 4G, C / 8) from `picture_features`; HQ-SAM needs them.
            high_res: from `high_resolution`; SAM 2 needs them.
            masks: which masks to compute (static).
            hq_token_only: return the HQ token's mask instead of its sum with SAM's (static).
            at_once: decode all prompts together even on the CPU, see `one_by_one` (static).
            remat: see `TwoWayTransformer` (static).
            hooks: see `TwoWayTransformer`.
            share: (B, N) float32 in [0, 1], of the hooks' effect on each prompt; None: all of it.

        Returns:
            `Masks`. HQ-SAM has M = 1, except with masks="all", which are SAM's alone.
        """
        tokens, valid = self._tokens(sparse_prompt_embeddings, sparse_valid)
        keys = image_embeddings[:, None] + dense_prompt_embeddings
        prompts = tokens.shape[1]
        shared = keys.shape[1] == 1 and not is_symbolic_dim(prompts) and prompts >= SHARED

        s0, s1 = high_res or (None, None)
        of_pictures = {"hq_features": hq_features, "s0": s0, "s1": s1}
        more = {name: None if array is None else array[:, None] for name, array in of_pictures.items()}
        given = {name: array for name, array in (more | {"share": share}).items() if array is not None}

        def decode(keys: jax.Array, tokens: jax.Array, valid: jax.Array, *rest: jax.Array) -> Masks:
            own = dict(zip(given, rest, strict=True))
            own_hooks = with_share(hooks, own.get("share"))
            tokens, features = self.transformer(keys, image_pe, tokens, valid, own_hooks, shared=shared, remat=remat)
            upscaled = self._upscale(features, own.get("s0"), own.get("s1"))
            return self._choose(tokens, upscaled, own.get("hq_features"), masks, hq_token_only)

        # Variables that a module sows inside a loop are lost.
        sows = any(map(self.is_mutable_collection, ("intermediates", "attention")))
        if not (at_once or sows or self.is_initializing()):
            decode = one_by_one(decode)
        return decode(keys, tokens, valid, *given.values())

    def _tokens(self, sparse: jax.Array, sparse_valid: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Puts the decoder's own tokens before the prompt's: (B, N, K, C), (B, N, K) -> (B, N, T, C), (B, N, T)."""
        own = [self.iou_token, self.mask_tokens, *self.more_tokens]
        output = jnp.concatenate(own).astype(sparse.dtype)
        output = jnp.broadcast_to(output[None, None], (*sparse.shape[:2], *output.shape))
        valid = jnp.concatenate([jnp.ones(output.shape[:3], bool), sparse_valid], axis=2)
        return jnp.concatenate([output, sparse], axis=2), valid

    def _upscale(self, features: jax.Array, s0: jax.Array | None, s1: jax.Array | None) -> jax.Array:
        """(B, N, G, G, C) -> (B, N, G, G, 2, 2, 2, 2, C / 8), each cell's pixels beside it, see `pixels`."""
        first, norm, last = self.output_upscaling
        x = first(features)
        x = last(gelu(norm(x if s1 is None else x + s1)))
        return gelu(x if s0 is None else x + s0)

    def _choose(
        self,
        tokens: jax.Array,
        upscaled: jax.Array,
        hq_features: jax.Array | None,
        masks: MaskChoice,
        hq_token_only: bool,
    ) -> Masks:
        """Computes the chosen masks and their predicted IoU from the tokens (B, N, T, C) of the transformer."""
        dynamic = self.sam2 and masks == "single"
        chosen = _CHOSEN["all" if self.is_initializing() or dynamic else masks]
        weights = jnp.stack(
            [self.output_hypernetworks_mlps[index](tokens[:, :, MASK_TOKENS.start + index]) for index in chosen], axis=2
        )
        iou_predictions = self.iou_prediction_head(to_float32(tokens[:, :, 0]))[:, :, chosen.start : chosen.stop]
        if self.sam2:
            found = mask_logits(weights, upscaled), nn.sigmoid(iou_predictions)
            scores = self.sam2_branch.object_scores(tokens[:, :, OBJECT_TOKEN])
            return Masks(*(stable_or_best(*found) if dynamic else found), object_scores=scores)
        if not self.hq:
            return Masks(mask_logits(weights, upscaled), iou_predictions)

        assert hq_features is not None
        hq_masks = self.hq_branch.logits(tokens[:, :, HQ_TOKEN], upscaled, hq_features)[:, :, None]
        if masks == "all":
            return Masks(mask_logits(weights, upscaled), iou_predictions, hq_masks)
        if masks == "multi":
            best = jnp.argmax(iou_predictions, axis=2, keepdims=True)  # ties go to the first
            iou_predictions = jnp.take_along_axis(iou_predictions, best, axis=2)
            weights = jnp.take_along_axis(weights, best[..., None], axis=2)
        if hq_token_only:
            return Masks(hq_masks, iou_predictions)
        return Masks(mask_logits(weights, upscaled) + hq_masks, iou_predictions)
