"""Names of tensors in the library transformers (SamModel, SamHQModel) -> official names.

Values are the same, and so are axes.
"""

import re
from collections.abc import Mapping

import numpy as np

from stablesam_jax.errors import InputError

MARK = re.compile(r"vision_encoder\.(?!backbone\.)")  # begins names of SamModel's image encoder; SAM 2 has a backbone

# Each row in order: a part of a name, its replacement. An MLP's three layers are proj_in, layers.0 and proj_out there.
_MLP = r"(iou_prediction_head|output_hypernetworks_mlps\.\d+|hf_mlp)"
_ROWS = (
    (r"^vision_encoder\.layers\.(\d+)\.layer_norm", r"image_encoder.blocks.\1.norm"),
    (r"^vision_encoder\.layers\.", "image_encoder.blocks."),
    (r"^vision_encoder\.patch_embed\.projection\.", "image_encoder.patch_embed.proj."),
    (r"^vision_encoder\.neck\.conv1\.", "image_encoder.neck.0."),
    (r"^vision_encoder\.neck\.layer_norm1\.", "image_encoder.neck.1."),
    (r"^vision_encoder\.neck\.conv2\.", "image_encoder.neck.2."),
    (r"^vision_encoder\.neck\.layer_norm2\.", "image_encoder.neck.3."),
    (r"^vision_encoder\.", "image_encoder."),
    (r"^prompt_encoder\.point_embed\.", "prompt_encoder.point_embeddings."),
    (r"^prompt_encoder\.mask_embed\.conv1\.", "prompt_encoder.mask_downscaling.0."),
    (r"^prompt_encoder\.mask_embed\.layer_norm1\.", "prompt_encoder.mask_downscaling.1."),
    (r"^prompt_encoder\.mask_embed\.conv2\.", "prompt_encoder.mask_downscaling.3."),
    (r"^prompt_encoder\.mask_embed\.layer_norm2\.", "prompt_encoder.mask_downscaling.4."),
    (r"^prompt_encoder\.mask_embed\.conv3\.", "prompt_encoder.mask_downscaling.6."),
    (r"^mask_decoder\.transformer\.(layers\.\d+\.)?layer_norm", r"mask_decoder.transformer.\1norm"),
    (r"^mask_decoder\.upscale_conv1\.", "mask_decoder.output_upscaling.0."),
    (r"^mask_decoder\.upscale_layer_norm\.", "mask_decoder.output_upscaling.1."),
    (r"^mask_decoder\.upscale_conv2\.", "mask_decoder.output_upscaling.3."),
    (r"^mask_decoder\.hq_token\.", "mask_decoder.hf_token."),
    (r"^mask_decoder\.hq_mask_mlp\.", "mask_decoder.hf_mlp."),
    (r"^mask_decoder\.compress_vit_conv1\.", "mask_decoder.compress_vit_feat.0."),
    (r"^mask_decoder\.compress_vit_norm\.", "mask_decoder.compress_vit_feat.1."),
    (r"^mask_decoder\.compress_vit_conv2\.", "mask_decoder.compress_vit_feat.3."),
    (r"^mask_decoder\.encoder_conv1\.", "mask_decoder.embedding_encoder.0."),
    (r"^mask_decoder\.encoder_norm\.", "mask_decoder.embedding_encoder.1."),
    (r"^mask_decoder\.encoder_conv2\.", "mask_decoder.embedding_encoder.3."),
    (r"^mask_decoder\.mask_conv1\.", "mask_decoder.embedding_maskfeature.0."),
    (r"^mask_decoder\.mask_norm\.", "mask_decoder.embedding_maskfeature.1."),
    (r"^mask_decoder\.mask_conv2\.", "mask_decoder.embedding_maskfeature.3."),
    (rf"^mask_decoder\.{_MLP}\.proj_out\.", r"mask_decoder.\1.layers.2."),
    (rf"^mask_decoder\.{_MLP}\.layers\.0\.", r"mask_decoder.\1.layers.1."),
    (rf"^mask_decoder\.{_MLP}\.proj_in\.", r"mask_decoder.\1.layers.0."),
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
    renamed = {_official(name): array for name, array in state.items() if name not in _GAUSSIANS}
    return renamed | ({_GAUSSIAN: gaussians[0]} if gaussians else {})


def _official(name: str) -> str:
    for part, replacement in _ROWS:
        name = re.sub(part, replacement, name)
    return name
