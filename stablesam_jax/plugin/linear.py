"""A linear map of what enters keys and values, in place of deformable sampling: it can be folded into SAM's weights.

Not in the paper. With x the features and e their positional encoding, an attention to the image sees of the picture
only W_k (x + e) and W_v x + b. One map before each gives

    keys    W_k (I + s U_k V_k) (x + e)
    values  W_v (x + s (U_v V_v x + a)) + b

which are again one matrix each, and a bias: a SAM with other weights, exactly (`convert.fold`).
"""

import flax.linen as nn
import jax

from stablesam_jax.config import PluginConfig
from stablesam_jax.ops.layers import parameter
from stablesam_jax.ops.numerics import broadcast_channels, einsum, to_float32
from stablesam_jax.plugin.common import last_kernel


class LinearMaps(nn.Module):
    """Two maps of low rank for each attention, one for keys and one for values; zero at the start."""

    config: PluginConfig

    @nn.compact
    def __call__(self, keys: jax.Array, key_pe: jax.Array, attention: int | None) -> tuple[jax.Array, jax.Array]:
        """
        Args:
            keys: (..., H, W, C), x.
            key_pe: (..., H, W, C), e; its leading axes are 1 or those of keys.
            attention: one of `config.attentions`; None: the first.

        Returns:
            what is added to x + e for the keys, and to x for the values: (..., H, W, C) each, float32 or wider.
        """
        width, rank, attentions = self.config.embedding_width, self.config.rank, self.config.attentions
        place = 0 if attention is None else attentions.index(attention)
        down = nn.initializers.lecun_normal(batch_axis=0)
        up = last_kernel(self.config.start)

        def matrix(name: str, init: nn.initializers.Initializer, *shape: int) -> jax.Array:
            return parameter(self, name, init, (len(attentions), *shape))[place]

        def of_low_rank(x: jax.Array, name: str) -> jax.Array:
            first, second = matrix(f"{name}_down", down, width, rank), matrix(f"{name}_up", up, rank, width)
            hidden = einsum("...c,cr->...r", x, first.astype(x.dtype)).astype(x.dtype)
            return to_float32(einsum("...r,rc->...c", hidden, second.astype(x.dtype)))

        of_keys, of_values = of_low_rank(keys + key_pe, "keys"), of_low_rank(keys, "values")
        bias = matrix("values_bias", nn.initializers.zeros, width)
        return of_keys, of_values + broadcast_channels(bias, of_values)
