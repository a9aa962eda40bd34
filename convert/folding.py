"""The algebra of folding: a plugin's linear part as other weights of the attentions that it changes.

With a row x of features and its positional encoding e, an attention to the image sees (x + e) K of the picture, and
x V + b. A plugin that puts (x + e) A before the keys and x B + c before the values is the same as the weights A K and
B V, and the bias b + c V. A constant that is added to the keys alone adds the same to all logits of a query: softmax
drops it.

The linear form is of this kind: A = I + s U_k V_k, B = I + s U_v V_v, c = s a. Deformable sampling nearly: without its
offsets, and with the mean of the router's alpha in the place of each prompt's, features become x M + c with
M = s alpha_1 P + (s alpha_2 + 1 - s) I and c = s alpha_1 p, P and p being the projection. The plugin leaves e as it
is, while folding multiplies it by M, too.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from stablesam_jax.build import assemble
from stablesam_jax.config import PluginConfig
from stablesam_jax.errors import InputError
from stablesam_jax.model.sam import Sam
from stablesam_jax.params import Params, flatten, unflatten
from stablesam_jax.predict.explain import ATTENTIONS

Alphas = Mapping[int, tuple[float, float]]  # attention -> mean alpha_1 and alpha_2


class Maps(NamedTuple):
    """What a plugin puts before one attention, float64."""

    keys: np.ndarray  # (C, C), A
    values: np.ndarray  # (C, C), B
    bias: np.ndarray  # (C,), c


def check_foldable(name: str, config: PluginConfig | None) -> None:
    """Checks that there is a plugin with a linear part that holds for every prompt.

    Args:
        name: of the system, for the message.
        config: of its plugin, if it has one.

    Raises:
        InputError: nothing can be folded.
    """
    if config is None:
        raise InputError(f"{name}: has no plugin to fold; name one, as BASE+PLUGIN_FILE.")
    if config.first_pass is not None:
        raise InputError(
            f"{name}: its plugin acts only where a first pass finds a poor mask, and weights act on every prompt. Fold "
            "a plugin without limits of a first pass, such as stable_sam_nano_one_object."
        )
    if config.resample not in ("deform", "linear"):
        raise InputError(f"{name}: its plugin is spatial attention ({config.resample}), which has no linear part.")
    if config.resample == "deform" and config.amplitude == "gate":
        raise InputError(f"{name}: its plugin multiplies features by a gate, which is not linear.")


def is_exact(config: PluginConfig) -> bool:
    """Whether a plugin that passes `check_foldable` is folded exactly, up to rounding."""
    return config.resample == "linear"


def fold(sam: Sam, params: Params, alphas: Alphas) -> tuple[Sam, Params]:
    """Folds the plugin of a model into its weights.

    Args:
        sam: model with a plugin that passes `check_foldable`.
        params: its parameters.
        alphas: of each of the plugin's attentions; without a router (1, 0).

    Returns:
        the model without a plugin, and its parameters. Only k_proj and v_proj of the plugin's attentions are new.
    """
    plugin = sam.config.plugin
    assert plugin is not None
    leaves: dict[str, Any] = {path: leaf for path, leaf in flatten(params).items() if not path.startswith("plugin/")}
    for attention in plugin.attentions:
        maps = _maps(plugin, params["plugin"], attention, alphas)
        place = "/".join(("mask_decoder", "transformer", *ATTENTIONS[attention]))
        keys, values, bias = (f"{place}/{leaf}" for leaf in ("k_proj/kernel", "v_proj/kernel", "v_proj/bias"))
        leaves[bias] = _float32(_float64(leaves[bias]) + maps.bias @ _float64(leaves[values]))
        leaves[keys] = _float32(maps.keys @ _float64(leaves[keys]))
        leaves[values] = _float32(maps.values @ _float64(leaves[values]))
    return assemble(dataclasses.replace(sam.config, plugin=None)), unflatten(leaves)


def _maps(plugin: PluginConfig, params: Params, attention: int, alphas: Alphas) -> Maps:
    identity = np.eye(plugin.embedding_width)
    if plugin.resample == "linear":
        of = {name: _float64(leaf)[plugin.attentions.index(attention)] for name, leaf in params["linear"].items()}
        keys, values = (plugin.strength * of[f"{name}_down"] @ of[f"{name}_up"] for name in ("keys", "values"))
        return Maps(identity + keys, identity + values, plugin.strength * of["values_bias"])
    sampled, own = alphas[attention]
    sampled, own = plugin.strength * sampled, plugin.strength * own + 1 - plugin.strength
    if plugin.amplitude == "none":
        return Maps((sampled + own) * identity, (sampled + own) * identity, np.zeros(plugin.embedding_width))
    project = params["dsp"]["project"]
    matrix = sampled * _float64(project["kernel"]) + own * identity
    return Maps(matrix, matrix, sampled * _float64(project["bias"]))


def _float64(leaf: object) -> np.ndarray:
    return np.asarray(leaf, np.float64)


def _float32(leaf: np.ndarray) -> np.ndarray:
    return leaf.astype(np.float32)
