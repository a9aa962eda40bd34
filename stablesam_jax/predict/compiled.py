"""Sam's two methods, compiled: once for what a program contains and a shape, shared by all who use that model.

The encoder does not contain the plugin. The decoder contains the plugin, but its strength is handed over at each call.
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

KEPT = 32  # programs of the kinds below, each for several shapes; those not used for longest are forgotten

Variables = dict[str, Any]  # of Linen: parameters, and settings of the plugin


def encoder(sam: Sam) -> Callable[[Params, np.ndarray | jax.Array], ImageEmbedding]:
    """(parameters, pictures (B, S, S, 3) from `preprocess`) -> image embedding, fused: all that prompts need."""
    if sam.config.plugin is not None:
        sam = sam.clone(config=dataclasses.replace(sam.config, plugin=None), plugin=None)
    program = _encoder(sam)
    return lambda params, pictures: program(_without(params, "plugin"), pictures)


def decoder(
    sam: Sam, masks: MaskChoice = "single", hq_token_only: bool = False
) -> Callable[[Params, ImageEmbedding, Prompts], Masks]:
    """(parameters, image embedding, prompts) -> masks, see `Sam.decode`."""
    return of_decoder(sam, functools.partial(_decoder, masks=masks, hq_token_only=hq_token_only))


def of_decoder(
    sam: Sam, make: Callable[[Sam], Callable[[Variables, ImageEmbedding, Prompts], Any]]
) -> Callable[[Params, ImageEmbedding, Prompts], Any]:
    """A program that decodes, of any strength of the plugin.

    Args:
        sam: the model.
        make: a model -> its program of (variables, image embedding, prompts). It is given the model at full strength.

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
