"""Sam's two methods, compiled once for each configuration and shape, and shared by all users of a model.

The encoder's program does not depend on the plugin. The decoder's contains the plugin; its strength is an argument.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from stablesam_jax.model.mask_decoder import MaskChoice, Masks
from stablesam_jax.model.prompt_encoder import Prompts
from stablesam_jax.model.sam import ImageEmbedding, Sam
from stablesam_jax.params import Params
from stablesam_jax.plugin.plugin import SETTINGS

KEPT = 32  # programs of each kind below, each for several shapes; the least recently used are dropped

Variables = dict[str, Any]  # of Linen: parameters, and settings of the plugin


def encoder(sam: Sam) -> Callable[[Params, np.ndarray | jax.Array], ImageEmbedding]:
    """(parameters, pictures (B, S, S, 3) from `preprocess`) -> image embedding, fused if the model is an HQ-SAM."""
    return of_base(sam, _encoder)


def decoder(
    sam: Sam, masks: MaskChoice = "single", hq_token_only: bool = False
) -> Callable[[Params, ImageEmbedding, Prompts], Masks]:
    """(parameters, image embedding, prompts) -> masks, see `Sam.decode`."""
    return of_decoder(sam, functools.partial(_decoder, masks=masks, hq_token_only=hq_token_only))


def of_base(sam: Sam, make: Callable[[Sam], Callable[..., Any]]) -> Callable[..., Any]:
    """Compiles a program that does not depend on the plugin.

    Args:
        sam: the model.
        make: a model without plugin -> its program of (parameters, inputs).

    Returns:
        the program; it ignores the parameters of the plugin.
    """
    if sam.config.plugin is not None:
        sam = sam.clone(config=dataclasses.replace(sam.config, plugin=None), plugin=None)
    program = make(sam)
    return lambda params, *inputs: program(_without(params, "plugin"), *inputs)


def of_decoder(
    sam: Sam, make: Callable[[Sam], Callable[[Variables, ImageEmbedding, Any], Any]]
) -> Callable[[Params, ImageEmbedding, Any], Any]:
    """Compiles a program that decodes with any strength of the plugin.

    Args:
        sam: the model.
        make: a model at full strength -> its program of (variables, image embedding, prompts).

    Returns:
        the program of (parameters, image embedding, prompts), at the model's own strength.
    """
    settings = {}
    if (plugin := sam.config.plugin) is not None:
        settings = {SETTINGS: {"plugin": {"strength": np.float32(plugin.strength)}}}
        plugin = dataclasses.replace(plugin, strength=1.0)
        sam = sam.clone(config=dataclasses.replace(sam.config, plugin=plugin), plugin=sam.plugin.clone(config=plugin))
    program = make(sam)
    return lambda params, embedding, prompts: program(
        {"params": _without(params, "image_encoder"), **settings}, embedding, prompts
    )


@functools.lru_cache(KEPT)
def _encoder(sam: Sam) -> Callable[[Params, np.ndarray | jax.Array], ImageEmbedding]:
    def encode(params: Params, pictures: np.ndarray | jax.Array) -> Any:
        return sam.apply({"params": params}, pictures, method=lambda sam, pictures: sam.fuse(sam.encode(pictures)))

    return jax.jit(encode)


@functools.lru_cache(KEPT)
def _decoder(
    sam: Sam, *, masks: MaskChoice, hq_token_only: bool
) -> Callable[[Variables, ImageEmbedding, Prompts], Masks]:
    def decode(variables: Variables, embedding: ImageEmbedding, prompts: Prompts) -> Any:
        return sam.apply(variables, embedding, prompts, masks=masks, hq_token_only=hq_token_only, method="decode")

    return jax.jit(decode)


def _without(params: Params, name: str) -> Params:
    return {part: leaves for part, leaves in params.items() if part != name}
