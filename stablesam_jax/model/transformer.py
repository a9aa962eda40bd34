"""The two-way transformer (segment_anything/modeling/transformer.py).

Tokens and image features attend to each other. Leading axes are (B, N). Image features that all prompts share have
N = 1 and are broadcast, never repeated.

A hook `resample(keys, key_pe, tokens) -> (keys, key_pe)` may replace the image side of each of the three token-to-image
attentions: that is where Stable-SAM sits (figure 3). Nothing else of SAM changes.
"""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.export import is_symbolic_dim
from jax.tree_util import Partial

from stablesam_jax.ops.gradients import matmul
from stablesam_jax.ops.layers import DECODER_EPS, MLP, Dense, LayerNorm, softmax
from stablesam_jax.ops.numerics import broadcast_channels, einsum, to_float32

HEADS = 8
MLP_WIDTH = 2048
CROSS_WIDTH_DIVISOR = 2  # attention_downsample_rate: cross attention works at half the width

# (B, 1 or N, G, G, C) keys, their (1, 1, G, G, C) positional encoding, (B, N, T, C) tokens -> the first two, for the
# prompts; each of them may have all leading axes or 1. A keyword share, (B, N), may weaken the effect on a prompt.
Resample = Callable[..., tuple[jax.Array, jax.Array]]
Hooks = tuple[Resample | None, Resample | None, Resample | None]  # layer 0, layer 1, final attention
NO_HOOKS: Hooks = (None, None, None)


def with_share(hooks: Hooks, share: jax.Array | None) -> Hooks:
    """The hooks with the share of their effect on each prompt, (B, N); None: as they are."""
    if share is None:
        return hooks
    first, second, final = (hook and Partial(hook, share=share) for hook in hooks)
    return first, second, final


class Attention(nn.Module):
    """Multi-head attention with an inner width D of its own: CAttn(t, x) = softmax(Q(t) K(x)^T) V(x).

    Implements eq. 2 (sec. 4.2).

    Between a few tokens t and thousands of cells x only tokens are projected, which is exact: for every head

        tokens query: (t Q + q) . (x K + k) = ((t Q + q) K^T) . x + (t Q + q) . k    the last is the same for all x
                      sum_x w_x (x V + v)   = (sum_x w_x x) V + v                    since the weights w sum to 1
        cells query:  (x Q + q) . (t K + k) = x . ((t K + k) Q^T) + q . (t K + k)
                      (sum_t w_t (t V + v)) O = sum_t w_t ((t V + v) O)              O: the head's rows of out_proj

    That costs T C D and T C per cell in place of C D per cell: cheaper where tokens times heads are fewer than D. Cells
    that several prompts share are projected instead, once for all of them (`shared`).
    """

    width: int
    inner_width: int

    def setup(self):
        self.q_proj = Dense(self.inner_width)
        self.k_proj = Dense(self.inner_width)
        self.v_proj = Dense(self.inner_width)
        self.out_proj = Dense(self.width)

    def __call__(self, q: jax.Array, k: jax.Array, v: jax.Array, key_valid: jax.Array | None = None) -> jax.Array:
        """Computes attention by the formula above; axes 0 and 1 of q, k, v broadcast.

        Args:
            q: (B, N, Tq, C).
            k: (B, N, Tk, C).
            v: (B, N, Tk, C).
            key_valid: (B, N, Tk) bool; keys that are False get no weight.

        Returns:
            (B, N, Tq, C).
        """
        v = _heads(self.v_proj(v))
        attended = einsum("bnhqk,bnkhd->bnqhd", self.weights(q, k, key_valid), v).astype(v.dtype)
        return self.out_proj(attended.reshape(*attended.shape[:-2], self.inner_width))

    def weights(self, q: jax.Array, k: jax.Array, key_valid: jax.Array | None = None) -> jax.Array:
        """Attention weights: (B, N, HEADS, Tq, Tk), summing to 1 over the keys."""
        q, k = _heads(self.q_proj(q)), _heads(self.k_proj(k))
        logits = einsum("bnqhd,bnkhd->bnhqk", q, k) * self._scale
        if key_valid is not None:
            logits = jnp.where(key_valid[:, :, None, None, :], logits, jnp.finfo(logits.dtype).min)
        return softmax(logits, q.dtype)

    def from_tokens(self, q: jax.Array, k: jax.Array, v: jax.Array, shared: bool = False) -> jax.Array:
        """The same where queries are tokens (B, N, T, C) and keys and values are cells (B, 1 or N, G * G, C)."""
        if shared or self._many(q):
            return self(q, k, v)
        dtype = q.dtype
        k_kernel, _ = self.k_proj.parameters(self.width)
        v_kernel, v_bias = self.v_proj.parameters(self.width)
        q = _einsum_float32("bnqhd,chd->bnhqc", _heads(self.q_proj(q)), _heads(k_kernel)).astype(dtype)
        heads_and_queries = q.shape[2:4]
        q = q.reshape(*q.shape[:2], -1, self.width)
        weights = softmax(einsum("bnqc,bnkc->bnqk", q, k) * self._scale, dtype)
        seen = matmul(weights, v)
        seen = seen.reshape(*seen.shape[:2], *heads_and_queries, self.width)
        attended = _einsum_float32("bnhqc,chd->bnqhd", seen, _heads(v_kernel)).astype(dtype)
        attended = attended.reshape(*attended.shape[:-2], self.inner_width)
        return self.out_proj(attended + broadcast_channels(v_bias, attended))

    def to_tokens(
        self, q: jax.Array, k: jax.Array, v: jax.Array, key_valid: jax.Array, shared: bool = False
    ) -> jax.Array:
        """The same where queries are cells (B, 1 or N, G * G, C), keys and values tokens (B, N, T, C)."""
        if self._many(k):
            return self(q, k, v, key_valid)
        dtype = q.dtype
        out_kernel, out_bias = self.out_proj.parameters(self.inner_width)
        out_kernel = out_kernel.reshape(HEADS, -1, self.width)
        seen = _einsum_float32("bnkhd,hdc->bnhkc", _heads(self.v_proj(v)), out_kernel).astype(dtype)
        if shared:
            attended = einsum("bnhqk,bnhkc->bnqc", self.weights(q, k, key_valid), seen).astype(dtype)
            return attended + broadcast_channels(out_bias, attended)
        q_kernel, q_bias = self.q_proj.parameters(self.width)
        k = _heads(self.k_proj(k))
        asked = _einsum_float32("bnkhd,chd->bnhkc", k, _heads(q_kernel)).astype(dtype)
        offset = _einsum_float32("bnkhd,hd->bnhk", k, _heads(q_bias))
        logits = (einsum("bnqc,bnhkc->bnqhk", q, asked) + offset[:, :, None]) * self._scale
        logits = jnp.where(key_valid[:, :, None, None, :], logits, jnp.finfo(logits.dtype).min)
        weights = softmax(logits, dtype)
        weights, seen = weights.reshape(*weights.shape[:3], -1), seen.reshape(*seen.shape[:2], -1, self.width)
        attended = matmul(weights, seen).astype(dtype)
        return attended + broadcast_channels(out_bias, attended)

    @property
    def _scale(self) -> float:
        return (self.inner_width // HEADS) ** -0.5

    def _many(self, tokens: jax.Array) -> bool:
        if self.is_initializing():
            return True
        # Of a symbolic number of tokens (jax.export) nothing is known; prompts usually have few.
        return not is_symbolic_dim(tokens.shape[2]) and HEADS * tokens.shape[2] >= self.inner_width


def _heads(x: jax.Array) -> jax.Array:
    """(..., inner width) -> (..., HEADS, inner width / HEADS)."""
    return x.reshape(*x.shape[:-1], HEADS, -1)


def _einsum_float32(subscripts: str, tokens: jax.Array, parameters: jax.Array) -> jax.Array:
    """An einsum of tokens and parameters, both float32 at least: XLA on the CPU lacks some of these in bfloat16."""
    return einsum(subscripts, to_float32(tokens), to_float32(parameters))


class TwoWayAttentionBlock(nn.Module):
    """Self-attention of the tokens, tokens to image, MLP, image to tokens; all norms after the residual."""

    width: int
    first: bool  # the first block has neither positional terms nor residual in its self-attention
    shared: bool = False  # whether several prompts have the same image features

    @nn.compact
    def __call__(
        self,
        queries: jax.Array,
        keys: jax.Array,
        query_pe: jax.Array,
        key_pe: jax.Array,
        query_valid: jax.Array,
        resample: Resample | None,
    ) -> tuple[jax.Array, jax.Array]:
        """Tokens (B, N, T, C) and image features (B, 1 or N, G, G, C) -> both, updated."""
        cross_width = self.width // CROSS_WIDTH_DIVISOR
        self_attn = Attention(self.width, self.width, name="self_attn")
        if self.first:
            queries = self_attn(queries, queries, queries, query_valid)
        else:
            q = queries + query_pe
            queries = queries + self_attn(q, q, queries, query_valid)
        queries = _norm("norm1")(queries)

        to_image = Attention(self.width, cross_width, name="cross_attn_token_to_image")
        attended = attend_to_image(to_image, queries, keys, query_pe, key_pe, resample, self.shared)
        queries = _norm("norm2")(queries + attended)
        queries = _norm("norm3")(queries + MLP(MLP_WIDTH, nn.relu, name="mlp")(queries))

        to_tokens = Attention(self.width, cross_width, name="cross_attn_image_to_token")
        update = to_tokens.to_tokens(flatten(keys + key_pe), queries + query_pe, queries, query_valid, self.shared)
        keys = _norm("norm4")(keys + update.reshape(*update.shape[:2], *keys.shape[2:]))
        return queries, keys


def _norm(name: str) -> LayerNorm:
    return LayerNorm(DECODER_EPS, name=name)


def flatten(maps: jax.Array) -> jax.Array:
    """(B, N, G, G, C) -> (B, N, G * G, C), rows first."""
    return maps.reshape(*maps.shape[:2], -1, maps.shape[-1])


def attend_to_image(
    attention: Attention,
    queries: jax.Array,
    keys: jax.Array,
    query_pe: jax.Array,
    key_pe: jax.Array,
    resample: Resample | None,
    shared: bool = False,
) -> jax.Array:
    """Token-to-image attention, over resampled features where a hook is given, which prompts do not share.

    By name on demand (`mutable="attention"`, a collection of its own since they are large), where a hook is given:
    `before` and `after`, (B, N, HEADS, T, G, G) in the attention's scope, the weights that the same queries give the
    keys without and with the hook. Likewise (`mutable="tokens"`), with a hook or not: `queries`, (B, N, T, C), in the
    attention's scope, what the hook sees of the tokens.
    """
    q = queries + query_pe
    if attention.is_mutable_collection("tokens") and not attention.is_initializing():
        attention.sow("tokens", "queries", queries)
    if resample is not None:
        before = flatten(keys + key_pe)
        grid = keys.shape[2:4]
        keys, key_pe = resample(keys, key_pe, queries)
        if attention.is_mutable_collection("attention") and not attention.is_initializing():
            for name, k in (("before", before), ("after", flatten(keys + key_pe))):
                weights = attention.weights(q, k)
                attention.sow("attention", name, weights.reshape(*weights.shape[:-1], *grid))
    return attention.from_tokens(q, flatten(keys + key_pe), flatten(keys), shared and resample is None)


class TwoWayTransformer(nn.Module):
    """Two blocks and a final token-to-image attention."""

    width: int

    @nn.compact
    def __call__(
        self,
        keys: jax.Array,
        key_pe: jax.Array,
        tokens: jax.Array,
        tokens_valid: jax.Array,
        hooks: Hooks = NO_HOOKS,
        *,
        shared: bool = False,
        remat: bool = False,
    ) -> tuple[jax.Array, jax.Array]:
        """Runs both blocks and the final attention.

        Args:
            keys: (B, 1 or N, G, G, C) image embedding plus dense prompt embedding.
            key_pe: (1, 1, G, G, C) image_pe.
            tokens: (B, N, T, C); as they come in, they also serve as their own positional term throughout.
            tokens_valid: (B, N, T) bool.
            hooks: one `Resample` or None for each of the three token-to-image attentions.
            shared: whether several prompts have these keys (static). In a loop over prompts XLA then moves their
                projections out of it.
            remat: keep of each block only its inputs for the gradient, and compute it again (gradient checkpointing,
                static).

        Returns:
            tokens (B, N, T, C) and image features (B, N, G, G, C).
        """
        queries = tokens
        block_class = nn.remat(TwoWayAttentionBlock) if remat else TwoWayAttentionBlock
        for index in range(2):
            first = index == 0  # after it every prompt has its own keys
            block = block_class(self.width, first=first, shared=shared and first, name=f"layers_{index}")
            queries, keys = block(queries, keys, tokens, key_pe, tokens_valid, hooks[index])
        final = Attention(self.width, self.width // CROSS_WIDTH_DIVISOR, name="final_attn_token_to_image")
        queries = queries + attend_to_image(final, queries, keys, tokens, key_pe, hooks[2])
        return _norm("norm_final_attn")(queries), keys
