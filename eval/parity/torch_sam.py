"""The official PyTorch models (segment-anything, segment-anything-hq, sam2), of any size, with random weights."""

import re
from collections.abc import Iterable
from typing import Any, TypeAlias

import numpy as np
import torch

from convert import official_torch
from convert.official_torch import early_width, hq_modeling, modeling
from eval.parity import torch_sam2
from stablesam_jax.config import SamConfig

from segment_anything import SamPredictor  # isort: skip  # official_torch may provide what it imports
from segment_anything.utils.transforms import ResizeLongestSide  # isort: skip

__all__ = [
    "ResizeLongestSide",
    "SamPredictor",
    "build",
    "early_width",
    "hq_modeling",
    "modeling",
    "picture_features",
    "randomise",
]

Official: TypeAlias = official_torch.Official | torch_sam2.SAM2Base


def build(config: SamConfig) -> Official:
    """Builds the official model of a configuration without its plugin, in eval mode.

    Args:
        config: see `official_torch.build`; or of a SAM 2.

    Raises:
        TypeError: no official model has this encoder.
    """
    return torch_sam2.build(config) if config.sam2 else official_torch.build(config)


def heads(sam: Official) -> tuple[torch.nn.Module, torch.nn.Module]:
    """The prompt encoder and the mask decoder, by whichever names."""
    if isinstance(sam, torch_sam2.SAM2Base):
        return sam.sam_prompt_encoder, sam.sam_mask_decoder
    return sam.prompt_encoder, sam.mask_decoder


def picture_features(decoder: hq_modeling.MaskDecoderHQ, embedding: torch.Tensor, early: torch.Tensor) -> torch.Tensor:
    """The features of a picture that HQ-SAM's decoder fuses for all prompts: `hq_features` of its `predict_masks`.

    Args:
        decoder: of an official HQ-SAM.
        embedding: (1, C, G, G).
        early: (1, G, G, any).

    Returns:
        (1, C / 8, 4G, 4G).
    """
    return decoder.embedding_encoder(embedding) + decoder.compress_vit_feat(early.permute(0, 3, 1, 2))


# Gain of a kernel: its standard deviation times sqrt(fan-in), where that is not 1. With these gains the residual
# streams stay bounded, and attention is neither uniform nor one-hot: 60 to 90 effective keys of a window's 196.
_GAINS = (
    (r".*\.(lin2|mlp\.layers\.1)", 0.5),
    (r".*\.attn\.proj", 0.8),
    (r"(sam_)?mask_decoder\..*\.[qk]_proj", 0.98),
    (r"(sam_)?mask_decoder\..*\.(lin1|mlp\.layers\.0)", 2**0.5),
    (r"(sam_)?mask_decoder\.(output_hypernetworks_mlps\.\d|hf_mlp|\w+_head)\.layers\.[01]", 2**0.5),
    (r"(sam_)?mask_decoder\.(output_upscaling|compress_vit_feat|embedding_encoder|embedding_maskfeature)\.[03]", 1.4),
    (r".*\.fc2", 0.5),
    (r"image_encoder\.layers\..*\.qkv", 1.5**0.5),  # q, k and v: TinyViT's rows are ordered by head
)
_QK_GAIN = 1.5**0.5  # of the q and k rows of a ViT's qkv
_LOGIT_DEVIATION = 8.0  # of the low-resolution logits of SAM, and of HQ-SAM's token; trained models reach 30


@torch.no_grad()
def randomise(sam: Official, seed: int) -> None:
    """Fills every tensor with random values, in place.

    PyTorch's initial state is degenerate (positions 0, norms 1 and 0, attention nearly uniform): half of a port would
    not be tested. With these values every term affects the masks, and the scale of logits is that of trained models.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in sam.state_dict().items():
        mean, deviation = _moments(name, tensor)
        tensor.copy_(mean + deviation * torch.randn(tensor.shape, generator=generator))
        if name.endswith(".running_var"):
            tensor.exp_()
        if re.match(r"image_encoder\.(trunk\.)?blocks\.", name) and name.endswith(".qkv.weight"):
            tensor[: 2 * len(tensor) // 3] *= _QK_GAIN
    sam.eval()  # TinyViT gathers its attention biases here

    prompt_encoder, decoder = heads(sam)
    image_pe = prompt_encoder.get_dense_pe()
    side = prompt_encoder.input_image_size[0]
    sparse, dense = prompt_encoder(None, torch.tensor([[0.2, 0.3, 0.7, 0.8]]) * side, None)
    embedding = torch.randn(image_pe.shape, generator=generator)
    features: dict[str, Any] = {}
    if isinstance(decoder, hq_modeling.MaskDecoderHQ):
        early_width = decoder.compress_vit_feat[0].in_channels
        early = torch.randn(1, *image_pe.shape[2:], early_width, generator=generator)
        features["hq_features"] = picture_features(decoder, embedding, early)
    if isinstance(sam, torch_sam2.SAM2Base):
        channels, grid = image_pe.shape[1:3]
        maps = [torch.randn(1, n * channels // 8, 4 * grid // n, 4 * grid // n, generator=generator) for n in (1, 2)]
        features = {"repeat_image": False, "high_res_features": maps}
    logits = decoder.predict_masks(embedding, image_pe, sparse, dense, **features)[0]
    networks = decoder.output_hypernetworks_mlps
    _scale(networks, _LOGIT_DEVIATION / logits[:, : len(networks)].std())
    if "hq_features" in features:
        _scale([decoder.hf_mlp], _LOGIT_DEVIATION / logits[:, len(networks) :].std())
    head = decoder.iou_prediction_head.layers[2]
    head.weight /= 5
    head.bias.copy_(head.bias / 5 + 0.7)


def _scale(networks: Iterable[torch.nn.Module], factor: torch.Tensor) -> None:
    for network in networks:
        for tensor in network.layers[2].state_dict().values():
            tensor *= factor


def _moments(name: str, tensor: torch.Tensor) -> tuple[float, float]:
    """Mean and standard deviation for a tensor of the state dict."""
    layer, _, leaf = name.rpartition(".")
    if leaf == "bias":
        return 0.0, 0.2
    if leaf == "weight" and tensor.ndim == 1:  # norms
        return 1.0, 0.2
    if leaf in ("positional_encoding_gaussian_matrix", "attention_biases"):
        return 0.0, 1.0
    if leaf == "running_mean":
        return 0.0, 0.2
    if leaf == "running_var":  # of the logarithm, see `randomise`
        return 0.0, 0.3
    if leaf == "num_batches_tracked":
        return 1000.0, 100.0
    if leaf in ("pos_embed", "pos_embed_window", "no_mem_embed"):
        return 0.0, 0.5
    if leaf.startswith("rel_pos"):  # the logits of each axis have a standard deviation of 0.7
        return 0.0, 0.7 / (_QK_GAIN * tensor.shape[1] ** 0.5)
    if re.search(r"(_token|_tokens|_embed|point_embeddings\.\d)$", layer):
        return 0.0, 0.7
    transposed = re.search(r"(output_upscaling|compress_vit_feat|embedding_encoder)\.[03]$", layer)
    fan_in = tensor.shape[0] if transposed else np.prod(tensor.shape[1:])
    gain = next((gain for pattern, gain in _GAINS if re.fullmatch(pattern, layer)), 1.0)
    return 0.0, gain / float(fan_in) ** 0.5
