"""The official PyTorch SAM (package segment-anything), of any size, with random weights that exercise every term."""

import functools
import re

import numpy as np
import torch

from eval import stand_ins
from stablesam_jax.config import SamConfig, ViTConfig

stand_ins.provide()

from segment_anything import modeling  # noqa: E402
from segment_anything.utils.transforms import ResizeLongestSide  # noqa: E402

__all__ = ["ResizeLongestSide", "build", "modeling", "randomise"]


def build(config: SamConfig) -> modeling.Sam:
    """segment_anything's own model of this configuration, in eval mode.

    The official registry knows three sizes at 1024 pixels; its classes take any.
    """
    encoder = config.encoder
    if not isinstance(encoder, ViTConfig):
        raise TypeError(f"segment_anything has no {type(encoder).__name__}; give the configuration of a ViT.")
    grid = (config.grid_size, config.grid_size)
    width = config.embedding_width
    sam = modeling.Sam(
        image_encoder=modeling.ImageEncoderViT(
            img_size=config.image_size,
            patch_size=encoder.patch_size,
            embed_dim=encoder.width,
            depth=encoder.depth,
            num_heads=encoder.heads,
            out_chans=width,
            norm_layer=functools.partial(torch.nn.LayerNorm, eps=1e-6),
            use_rel_pos=True,
            window_size=encoder.window_size,
            global_attn_indexes=encoder.global_blocks,
        ),
        prompt_encoder=modeling.PromptEncoder(
            embed_dim=width,
            image_embedding_size=grid,
            input_image_size=(config.image_size, config.image_size),
            mask_in_chans=16,
        ),
        mask_decoder=modeling.MaskDecoder(
            transformer_dim=width,
            transformer=modeling.TwoWayTransformer(depth=2, embedding_dim=width, num_heads=8, mlp_dim=2048),
            iou_head_hidden_dim=width,
        ),
        pixel_mean=list(config.pixel_mean),
        pixel_std=list(config.pixel_std),
    )
    return sam.eval()


# Deviation of a kernel times the root of its fan-in, where that is not 1. With these gains the residual stream stays
# bounded, and attention is neither uniform nor one-hot: 60 to 90 effective keys of a window's 196.
_GAINS = (
    (r".*\.lin2", 0.5),
    (r".*\.attn\.proj", 0.8),
    (r"mask_decoder\..*\.[qk]_proj", 0.98),
    (r"mask_decoder\..*\.lin1", 2**0.5),
    (r"mask_decoder\.(output_hypernetworks_mlps\.\d|iou_prediction_head)\.layers\.[01]", 2**0.5),
    (r"mask_decoder\.output_upscaling\.[03]", 1.4),
)
_QK_GAIN = 1.5**0.5  # of the q and k rows of the encoder's qkv
_LOGIT_DEVIATION = 8.0  # of the low-resolution logits; trained models reach 30


@torch.no_grad()
def randomise(sam: modeling.Sam, seed: int) -> None:
    """Gives every tensor random values, in place.

    PyTorch's initial state is degenerate (positions 0, norms 1 and 0, attention nearly uniform), so that half of a port
    would go untested. Here every term changes the masks, and the logits' scale is that of trained models.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in sam.state_dict().items():
        mean, deviation = _moments(name, tensor)
        tensor.copy_(mean + deviation * torch.randn(tensor.shape, generator=generator))
        if name.endswith(".qkv.weight"):
            tensor[: 2 * len(tensor) // 3] *= _QK_GAIN

    decoder = sam.mask_decoder
    image_pe = sam.prompt_encoder.get_dense_pe()
    side = sam.image_encoder.img_size
    sparse, dense = sam.prompt_encoder(None, torch.tensor([[0.2, 0.3, 0.7, 0.8]]) * side, None)
    embedding = torch.randn(image_pe.shape, generator=generator)
    logits, _ = decoder.predict_masks(embedding, image_pe, sparse, dense)
    for network in decoder.output_hypernetworks_mlps:
        for tensor in network.layers[2].state_dict().values():
            tensor *= _LOGIT_DEVIATION / logits.std()
    head = decoder.iou_prediction_head.layers[2]
    head.weight /= 5
    head.bias.copy_(head.bias / 5 + 0.7)


def _moments(name: str, tensor: torch.Tensor) -> tuple[float, float]:
    """Mean and deviation for a tensor of the state dict."""
    layer, _, leaf = name.rpartition(".")
    if leaf == "bias":
        return 0.0, 0.2
    if leaf == "weight" and tensor.ndim == 1:  # norms
        return 1.0, 0.2
    if leaf == "positional_encoding_gaussian_matrix":
        return 0.0, 1.0
    if leaf == "pos_embed":
        return 0.0, 0.5
    if leaf.startswith("rel_pos"):  # each axis adds 0.7 to the logits' deviation
        return 0.0, 0.7 / (_QK_GAIN * tensor.shape[1] ** 0.5)
    if re.search(r"(_token|_tokens|_embed|point_embeddings\.\d)$", layer):
        return 0.0, 0.7
    transposed = re.search(r"output_upscaling\.[03]$", layer)
    fan_in = tensor.shape[0] if transposed else np.prod(tensor.shape[1:])
    gain = next((gain for pattern, gain in _GAINS if re.fullmatch(pattern, layer)), 1.0)
    return 0.0, gain / float(fan_in) ** 0.5
