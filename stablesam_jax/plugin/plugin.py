"""The plugin: deformable sampling and dynamic routing bound into one module."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from stablesam_jax.config import MASK_TOKENS, PluginConfig
from stablesam_jax.ops.numerics import broadcast_channels, to_float32
from stablesam_jax.plugin.drp import Router
from stablesam_jax.plugin.dsp import OffsetNetwork, deformable_features, sampling_positions
from stablesam_jax.plugin.linear import LinearMaps
from stablesam_jax.plugin.spatial import ChannelPooledAttention, CoordinateAttention

SETTINGS = "settings"  # collection of what may change from call to call without another program


class Plugin(nn.Module):
    """Replaces the image side of a token-to-image attention; 81,829 parameters in all by default.

    Its parameters are the top-level subtree `plugin`. Called before several attentions, it is one plugin with one set
    of parameters; of the linear form, with maps of its own for each. With `start="identity"` it is the identity at the
    start, to the bit wherever a matmul with the identity is exact: on the CPU in every dtype, on accelerators in
    bfloat16, or in float32 at the highest matmul precision.

    By name on demand (`mutable="intermediates"`), N = 1 where keys have it:
        alpha: (B, N, 2), one entry per call.
        offsets, positions: (B, N, H, W, 2), delta p and p + delta p, (x, y) in cells, one entry per call and group.
        factors: (B, N, H, W, 1 or C), one entry per call; of spatial attention instead of offsets.
    Weights of the attention that follows: see `model.transformer.attend_to_image`.

    A variable `strength` of the collection `SETTINGS`, where it is given, takes the place of that of the configuration.
    """

    config: PluginConfig
    output_token: int = MASK_TOKENS.start  # index of t_o among the tokens, see `SamConfig.output_token`

    def setup(self):
        self.spatial: nn.Module
        match self.config.resample:
            case "deform":
                self.dsp = OffsetNetwork(self.config)
            case "cbam":
                self.spatial = ChannelPooledAttention(self.config)
            case "coordinate":
                self.spatial = CoordinateAttention(self.config)
            case "linear":
                self.linear = LinearMaps(self.config)
        if self.config.router:
            self.drp = Router(self.config)

    def __call__(
        self,
        keys: jax.Array,
        key_pe: jax.Array,
        tokens: jax.Array,
        *,
        share: jax.Array | None = None,
        attention: int | None = None,
    ) -> tuple[jax.Array, jax.Array]:
        """Mixes deformable and original features: alpha_1 * x*_{p + delta p} + alpha_2 * x_p.

        Implements eq. 6 (sec. 4.3). With a strength or share below 1 that mixture is mixed with x_p once more.

        Args:
            keys: (B, N, H, W, C), x, the image side of the attention without its positional encoding. N may be 1 where
                all prompts of a picture share their features: then everything but the mixing is done once.
            key_pe: (1, 1, H, W, C), positional encoding of the keys, in their dtype.
            tokens: (B, N, T, C) after the layer's self-attention, in the dtype of keys.
            share: (B, N) float32, multiplies the strength for each prompt: 0 leaves x_p, to the bit.
            attention: which of `config.attentions` it is; None: the first. Only the linear form depends on it.

        Returns:
            keys (B, N, H, W, C), in their dtype, N that of tokens or, without router and share, that of keys; and
            key_pe as it was or, with `positions="resampled"`, mixed as the keys are. Of the linear form, keys are those
            of the values, and key_pe is what must be added to them for the keys.

        Raises:
            ValueError: keys and tokens do not fit each other or the configuration.
        """
        _check(keys.shape, tokens.shape, self.config.embedding_width)
        alpha = self._alpha(tokens)
        self.sow("intermediates", "alpha", alpha)
        strength = jnp.asarray(self.get_variable(SETTINGS, "strength", self.config.strength), alpha.dtype)
        if share is None:
            rest = broadcast_channels(jnp.stack([jnp.zeros_like(strength), 1 - strength]), alpha)
        else:
            strength = (strength * share.astype(alpha.dtype))[..., None]  # (B, N, 1)
            rest = jnp.concatenate([jnp.zeros_like(strength), 1 - strength], axis=-1)
        shares = strength * alpha + rest  # `rest` is of the features as they were
        shares = shares if self.config.router or share is not None else shares[:, :1]  # the same for all prompts
        weights = shares.astype(keys.dtype)[:, :, None, None, None, :]  # (B, N, 1, 1, 1, 2)

        always_full = self.config.strength == 1 and share is None and not self.has_variable(SETTINGS, "strength")

        def mix(resampled: jax.Array, original: jax.Array) -> jax.Array:
            if not self.config.router and always_full:
                return resampled
            return weights[..., 0] * resampled + weights[..., 1] * original

        if self.config.resample == "linear":
            of_keys, of_values = self.linear(keys, key_pe, attention)
            by = to_float32(weights[..., 0])
            mapped = keys + (by * of_values).astype(keys.dtype)
            return mapped, key_pe + (by * (of_keys - of_values)).astype(keys.dtype)

        if self.config.resample != "deform":
            factors = self.spatial(keys)
            self.sow("intermediates", "factors", factors)
            return mix((to_float32(keys) * factors).astype(keys.dtype), keys), key_pe

        amplitudes, offsets = self.dsp(keys)
        positions = sampling_positions(offsets, self.config.padding)
        for group in range(self.config.groups):
            self.sow("intermediates", "offsets", offsets[..., group, :])
            self.sow("intermediates", "positions", positions[..., group, :])
        mixed = mix(deformable_features(amplitudes, positions, self.config.padding), keys)
        if self.config.positions == "resampled":
            key_pe = mix(deformable_features(key_pe, positions, self.config.padding), key_pe)
        return mixed, key_pe

    def _alpha(self, tokens: jax.Array) -> jax.Array:
        """(B, N, T, C) -> (B, N, 2), float32 or wider."""
        if not self.config.router:
            return jnp.broadcast_to(jnp.array([1.0, 0.0], jnp.float32)[None, None], (*tokens.shape[:2], 2))
        if self.config.router_token == "mean":
            return self.drp(tokens[:, :, MASK_TOKENS].mean(axis=2))
        return self.drp(tokens[:, :, self.output_token])


def _check(keys: tuple[int, ...], tokens: tuple[int, ...], width: int) -> None:
    if len(keys) != 5 or len(tokens) != 4 or keys[0] != tokens[0] or keys[1] not in (1, tokens[1]):
        raise ValueError(
            f"keys must be (B, N or 1, H, W, C) and tokens (B, N, T, C) with the same B and N; got {keys} and {tokens}."
        )
    if keys[-1] != width or tokens[-1] != width:
        raise ValueError(f"The plugin is {width} channels wide; got keys with {keys[-1]} and tokens with {tokens[-1]}.")
