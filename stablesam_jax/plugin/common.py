"""How the last layers of the plugin start."""

from typing import Literal

import flax.linen as nn

PERTURBATION = 0.01  # deviation of last layers that do not start at zero; moves offsets by under a cell of 64


def last_kernel(start: Literal["identity", "perturbed"]) -> nn.initializers.Initializer:
    """Initialises the kernel of a last layer, see `PluginConfig.start`."""
    return nn.initializers.zeros if start == "identity" else nn.initializers.normal(PERTURBATION)
