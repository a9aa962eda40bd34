"""Dynamic routing plugin, DRP (sec. 4.3): how much of the deformable and of the original features."""

import flax.linen as nn
import jax

from stablesam_jax.config import PluginConfig
from stablesam_jax.ops.gradients import gelu
from stablesam_jax.ops.layers import Dense, LayerNorm, parameter
from stablesam_jax.ops.numerics import to_float32
from stablesam_jax.plugin.common import last_kernel


class Router(nn.Module):
    """Mixing weights from the output mask token: softmax(MLP(t_o)) * s. Implements eq. 5 (sec. 4.3).

    The MLP is Linear -> LayerNorm -> GELU -> Linear(2). Its last layer starts at zero, or near it, and s at one, hence
    both weights at one half.
    """

    config: PluginConfig

    @nn.compact
    def __call__(self, mask_token: jax.Array) -> jax.Array:
        """
        Args:
            mask_token: (..., C), t_o, in the compute dtype; `config.router_token` names the readings.

        Returns:
            (..., 2), alpha_1 of the deformable and alpha_2 of the original features, float32 or wider. Their sum is
            s, the same learnable scalar for every prompt.
        """
        dtype = mask_token.dtype
        hidden = Dense(self.config.router_width, name="hidden")(mask_token)
        hidden = gelu(LayerNorm(name="norm")(to_float32(hidden))).astype(dtype)
        last = Dense(2, last_kernel(self.config.start), name="logits")
        logits = to_float32(last(hidden))
        scale = parameter(self, "scale", nn.initializers.ones, ())
        return nn.softmax(logits, axis=-1) * scale.astype(logits.dtype)
