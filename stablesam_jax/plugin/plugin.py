"""The plugin: deformable sampling and dynamic routing bound into one module."""

import flax.linen as nn
import jax

from stablesam_jax.config import PluginConfig
from stablesam_jax.plugin.drp import Router
from stablesam_jax.plugin.dsp import OffsetNetwork, deformable_features

# Tokens of the mask decoder: the IoU token, then four mask tokens. Token 1 makes the single output mask.
OUTPUT_MASK_TOKEN = 1


class Plugin(nn.Module):
    """Replaces the image side of a token-to-image attention (eq. 6); 81,829 parameters in all.

    Its parameters are the top-level subtree `plugin`. Called before several attentions, it is one plugin with one set
    of parameters. At the start it is the identity, to the bit wherever a matrix product with the identity is exact:
    on the CPU in every dtype, on accelerators in bfloat16, or in float32 at the highest matmul precision.

    By name on demand (`mutable="intermediates"`), one entry per call: `offsets` (B, N, H, W, 2), (x, y) in cells, with
    N = 1 where keys have it; `alpha` (B, N, 2).
    """

    config: PluginConfig

    def setup(self):
        self.dsp = OffsetNetwork(self.config)
        self.drp = Router(self.config)

    def __call__(self, keys: jax.Array, tokens: jax.Array) -> jax.Array:
        """Mixes deformable and original features: alpha_1 * x*_{p + delta p} + alpha_2 * x_p (eq. 6).

        Args:
            keys: (B, N, H, W, C), x, the image side of the attention without its positional encoding. N may be 1 where
                all prompts of a picture share their features: then everything but the mixing is done once.
            tokens: (B, N, T, C) after the layer's self-attention, in the dtype of keys.

        Returns:
            (B, N, H, W, C), N that of tokens, in the dtype of keys.

        Raises:
            ValueError: keys and tokens do not fit each other or the configuration.
        """
        _check(keys.shape, tokens.shape, self.config.embedding_width)
        amplitudes, offsets = self.dsp(keys)
        alpha = self.drp(tokens[:, :, OUTPUT_MASK_TOKEN])
        self.sow("intermediates", "offsets", offsets)
        self.sow("intermediates", "alpha", alpha)
        weights = alpha.astype(keys.dtype)[:, :, None, None, None, :]  # (B, N, 1, 1, 1, 2)
        return weights[..., 0] * deformable_features(amplitudes, offsets) + weights[..., 1] * keys


def _check(keys: tuple[int, ...], tokens: tuple[int, ...], width: int) -> None:
    if len(keys) != 5 or len(tokens) != 4 or keys[0] != tokens[0] or keys[1] not in (1, tokens[1]):
        raise ValueError(
            f"keys must be (B, N or 1, H, W, C) and tokens (B, N, T, C) with the same B and N; got {keys} and {tokens}."
        )
    if keys[-1] != width or tokens[-1] != width:
        raise ValueError(f"The plugin is {width} channels wide; got keys with {keys[-1]} and tokens with {tokens[-1]}.")
