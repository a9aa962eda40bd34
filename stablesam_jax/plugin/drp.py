"""Dynamic routing plugin, DRP (sec. 4.3): how much of the deformable and of the original features."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from stablesam_jax.config import PluginConfig


class Router(nn.Module):
    """Mixing weights from the output mask token (eq. 5): softmax(MLP(t_o)) * s.

    The MLP is Linear -> LayerNorm -> GELU -> Linear(2). Its last layer starts at zero and s at one, hence both
    weights at one half.
    """

    config: PluginConfig

    @nn.compact
    def __call__(self, mask_token: jax.Array) -> jax.Array:
        """
        Args:
            mask_token: (..., C), t_o of eq. 5, in the compute dtype.

        Returns:
            (..., 2), alpha_1 of the deformable and alpha_2 of the original features, float32 or wider. Their sum is
            s, the same learnable scalar for every prompt.
        """
        dtype = mask_token.dtype
        wide = jnp.float64 if dtype == jnp.float64 else jnp.float32
        hidden = nn.Dense(self.config.router_width, dtype=dtype, name="hidden")(mask_token)
        norm = nn.LayerNorm(
            epsilon=1e-6, use_fast_variance=False, force_float32_reductions=False, param_dtype=wide, name="norm"
        )
        hidden = nn.gelu(norm(hidden.astype(wide)), approximate=False)
        logits = nn.Dense(2, dtype=dtype, kernel_init=nn.initializers.zeros, name="logits")(hidden)
        scale = self.param("scale", nn.initializers.ones, ())
        return nn.softmax(logits.astype(wide), axis=-1) * scale.astype(wide)
