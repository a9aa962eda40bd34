"""Sam's two methods, compiled: once for a model and a shape, shared by all who use that model."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from stablesam_jax.model.mask_decoder import MaskChoice, Masks
from stablesam_jax.model.prompt_encoder import Prompts
from stablesam_jax.model.sam import ImageEmbedding, Sam
from stablesam_jax.params import Params


@functools.cache
def encoder(sam: Sam) -> Callable[[Params, np.ndarray | jax.Array], ImageEmbedding]:
    """(parameters, pictures (B, S, S, 3) from `preprocess`) -> image embedding, fused: all that prompts need."""

    def encode(params: Params, pictures: np.ndarray | jax.Array) -> Any:
        return sam.apply({"params": params}, pictures, method=lambda sam, pictures: sam.fuse(sam.encode(pictures)))

    return jax.jit(encode)


@functools.cache
def decoder(
    sam: Sam, masks: MaskChoice = "single", hq_token_only: bool = False
) -> Callable[[Params, ImageEmbedding, Prompts], Masks]:
    """(parameters, image embedding, prompts) -> masks, see `Sam.decode`."""

    def decode(params: Params, embedding: ImageEmbedding, prompts: Prompts) -> Any:
        return sam.apply(
            {"params": params}, embedding, prompts, masks=masks, hq_token_only=hq_token_only, method="decode"
        )

    return jax.jit(decode)
