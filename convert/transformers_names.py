"""Names of tensors in the library transformers (SamModel, SamHQModel), and official ones: one table for both ways.

Values are the same, and so are axes.
"""

import re
from collections.abc import Iterable, Mapping

import numpy as np

from stablesam_jax.errors import InputError

MARK = re.compile(r"vision_encoder\.(?!backbone\.)")  # begins names of SamModel's image encoder; SAM 2 has a backbone

# An MLP's three layers, there and in the official code.
_MLPS = (
    ("iou_prediction_head", "iou_prediction_head"),
    ("output_hypernetworks_mlps.#", "output_hypernetworks_mlps.#"),
    ("hq_mask_mlp", "hf_mlp"),
)
_LAYERS = (("proj_in", "layers.0"), ("layers.0", "layers.1"), ("proj_out", "layers.2"))
# Beginnings of names, there and in the official code; # is a number. The first row that fits counts.
_ROWS = (
    ("vision_encoder.layers.#.layer_norm", "image_encoder.blocks.#.norm"),
    ("vision_encoder.layers.", "image_encoder.blocks."),
    ("vision_encoder.patch_embed.projection.", "image_encoder.patch_embed.proj."),
    ("vision_encoder.neck.conv1.", "image_encoder.neck.0."),
    ("vision_encoder.neck.layer_norm1.", "image_encoder.neck.1."),
    ("vision_encoder.neck.conv2.", "image_encoder.neck.2."),
    ("vision_encoder.neck.layer_norm2.", "image_encoder.neck.3."),
    ("vision_encoder.", "image_encoder."),
    ("prompt_encoder.point_embed.", "prompt_encoder.point_embeddings."),
    ("prompt_encoder.mask_embed.conv1.", "prompt_encoder.mask_downscaling.0."),
    ("prompt_encoder.mask_embed.layer_norm1.", "prompt_encoder.mask_downscaling.1."),
    ("prompt_encoder.mask_embed.conv2.", "prompt_encoder.mask_downscaling.3."),
    ("prompt_encoder.mask_embed.layer_norm2.", "prompt_encoder.mask_downscaling.4."),
    ("prompt_encoder.mask_embed.conv3.", "prompt_encoder.mask_downscaling.6."),
    ("mask_decoder.transformer.layers.#.layer_norm", "mask_decoder.transformer.layers.#.norm"),
    ("mask_decoder.transformer.layer_norm", "mask_decoder.transformer.norm"),
    ("mask_decoder.upscale_conv1.", "mask_decoder.output_upscaling.0."),
    ("mask_decoder.upscale_layer_norm.", "mask_decoder.output_upscaling.1."),
    ("mask_decoder.upscale_conv2.", "mask_decoder.output_upscaling.3."),
    ("mask_decoder.hq_token.", "mask_decoder.hf_token."),
    ("mask_decoder.compress_vit_conv1.", "mask_decoder.compress_vit_feat.0."),
    ("mask_decoder.compress_vit_norm.", "mask_decoder.compress_vit_feat.1."),
    ("mask_decoder.compress_vit_conv2.", "mask_decoder.compress_vit_feat.3."),
    ("mask_decoder.encoder_conv1.", "mask_decoder.embedding_encoder.0."),
    ("mask_decoder.encoder_norm.", "mask_decoder.embedding_encoder.1."),
    ("mask_decoder.encoder_conv2.", "mask_decoder.embedding_encoder.3."),
    ("mask_decoder.mask_conv1.", "mask_decoder.embedding_maskfeature.0."),
    ("mask_decoder.mask_norm.", "mask_decoder.embedding_maskfeature.1."),
    ("mask_decoder.mask_conv2.", "mask_decoder.embedding_maskfeature.3."),
    *(
        (f"mask_decoder.{theirs}.{layer}.", f"mask_decoder.{official}.{official_layer}.")
        for theirs, official in _MLPS
        for layer, official_layer in _LAYERS
    ),
)
# One tensor of the official model under two names, of which a file may hold either or both.
_GAUSSIAN = "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"
_GAUSSIANS = ("shared_image_embedding.positional_embedding", "prompt_encoder.shared_embedding.positional_embedding")


def official_names(state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Renames the tensors of a SamModel or SamHQModel; what has no row keeps its name.

    Raises:
        InputError: the two copies of the positional embedding differ.
    """
    gaussians = [state[name] for name in _GAUSSIANS if name in state]
    if len(gaussians) == 2 and not np.array_equal(gaussians[0], gaussians[1]):
        raise InputError(f"{' and '.join(_GAUSSIANS)} differ; in SAM they are one tensor. Give a sound checkpoint.")
    renamed = {_renamed(name, _TO_OFFICIAL): array for name, array in state.items() if name not in _GAUSSIANS}
    return renamed | ({_GAUSSIAN: gaussians[0]} if gaussians else {})


def transformers_names(state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Renames the tensors of an official SAM or HQ-SAM with ViT, the inverse of `official_names`."""
    renamed = {_renamed(name, _TO_THEIRS): array for name, array in state.items() if name != _GAUSSIAN}
    return renamed | dict.fromkeys(_GAUSSIANS, state[_GAUSSIAN])


def _patterns(pairs: Iterable[tuple[str, str]]) -> list[tuple[re.Pattern[str], str]]:
    """Expressions for beginnings of names, and their replacements."""
    return [(re.compile(re.escape(one).replace(r"\#", r"(\d+)")), other.replace("#", r"\1")) for one, other in pairs]


_TO_OFFICIAL = _patterns(_ROWS)
_TO_THEIRS = _patterns((official, theirs) for theirs, official in _ROWS)


def _renamed(name: str, patterns: Iterable[tuple[re.Pattern[str], str]]) -> str:
    for pattern, replacement in patterns:
        if found := pattern.match(name):
            return found.expand(replacement) + name[found.end() :]
    return name
