"""The official PyTorch models of segment-anything and segment-anything-hq, of any size.

The official registries build a few sizes at 1024 pixels only; their classes take any.
"""

from typing import Any, TypeAlias

import torch

from convert import stand_ins
from stablesam_jax.config import SamConfig
from stablesam_jax.model.encoders import encoder_of
from stablesam_jax.ops.layers import ENCODER_EPS

stand_ins.provide()

from segment_anything import modeling  # noqa: E402
from segment_anything_hq import modeling as hq_modeling  # noqa: E402

__all__ = ["Official", "build", "early_width", "hq_modeling", "modeling"]

Official: TypeAlias = modeling.Sam | hq_modeling.Sam


def build(config: SamConfig) -> Official:
    """Builds the official model of a configuration without its plugin, in eval mode.

    Its encoder returns the image embedding; with `hq` a pair of it and a list whose first entry is the early features,
    (B, G, G, C), as segment_anything_hq's predictor expects.

    Args:
        config: its encoder must have an official twin.

    Raises:
        TypeError: no official model has this encoder.
    """
    package = hq_modeling if config.hq else modeling
    grid = (config.grid_size, config.grid_size)
    width = config.embedding_width
    decoder = {
        "transformer_dim": width,
        "transformer": package.TwoWayTransformer(depth=2, embedding_dim=width, num_heads=8, mlp_dim=2048),
        "iou_head_hidden_dim": width,
    }
    sam = package.Sam(
        image_encoder=_image_encoder(config),
        prompt_encoder=package.PromptEncoder(
            embed_dim=width,
            image_embedding_size=grid,
            input_image_size=(config.image_size, config.image_size),
            mask_in_chans=16,
        ),
        mask_decoder=(
            hq_modeling.MaskDecoderHQ(**decoder, vit_dim=early_width(config))
            if config.hq
            else modeling.MaskDecoder(**decoder)
        ),
        pixel_mean=list(config.pixel_mean),
        pixel_std=list(config.pixel_std),
    )
    return sam.eval()


def early_width(config: SamConfig) -> int:
    """Channels of the features that HQ-SAM's decoder takes from the encoder."""
    width = encoder_of(config).early_width
    assert width is not None
    return width(config.encoder)


class TinyViT(hq_modeling.TinyViT):
    """The official TinyViT at any input size: `forward_features` there has the 64 cells of 1024 pixels built in."""

    def __init__(self, returns_early: bool, **sizes: Any):
        super().__init__(**sizes)
        self.returns_early = returns_early
        # Attention gathers its biases in eval() and does not again when a state dict is loaded later. The official
        # registry loads last, so its model computes with zero biases unless eval() is called again.
        self.register_load_state_dict_post_hook(TinyViT._gather_biases)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, list[torch.Tensor]]:
        """(B, 3, S, S) -> (B, 256, G, G); with `returns_early` a pair of it and a list of one (B, G, G, C) map."""
        grid = pixels.shape[-1] // 16
        x = self.layers[1](self.layers[0](self.patch_embed(pixels)))
        early = x.unflatten(1, (grid, grid))
        x = self.layers[3](self.layers[2](x))
        embedding = self.neck(x.unflatten(1, (grid, grid)).permute(0, 3, 1, 2))
        return (embedding, [early]) if self.returns_early else embedding

    def _gather_biases(self, _: object) -> None:
        self.train(self.training)


def _image_encoder(config: SamConfig) -> torch.nn.Module:
    official = encoder_of(config).official
    if official is None:
        raise TypeError(f"no official model has the encoder {type(config.encoder).__name__}")
    name, sizes = official(config)
    if name == TinyViT.__name__:
        return TinyViT(config.hq, **sizes)
    encoder = getattr(hq_modeling if config.hq else modeling, name)(**sizes)
    for module in encoder.modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.eps = ENCODER_EPS  # as in the official registry; the class alone has PyTorch's 1e-5
    return encoder
