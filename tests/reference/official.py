"""Small models of the family, and state dicts with random numbers as the official packages write them."""

import dataclasses

import torch

from eval.parity import torch_sam
from stablesam_jax.config import HieraConfig, SamConfig, TinyViTConfig, ViTConfig

VIT = SamConfig(encoder=ViTConfig(width=16, depth=2, heads=2, global_blocks=(1,)), image_size=32, embedding_width=32)
# The official class tells the merging before the last stage by its 320 channels, and has a neck of 256.
TINY_VIT = SamConfig(encoder=TinyViTConfig(widths=(8, 12, 16, 320), depths=(1, 1, 1, 1), heads=(1, 2, 2, 10)))
SAM2 = SamConfig(encoder=HieraConfig(width=8, heads=1, depths=(1, 2, 1, 1), global_blocks=()), image_size=64)
SMALL = {
    "small_vit": VIT,
    "small_tiny_vit": TINY_VIT,
    "hq_small_vit": dataclasses.replace(VIT, hq=True),
    "hq_small_tiny_vit": dataclasses.replace(TINY_VIT, hq=True),
    "small_sam2": SAM2,
}


def state_dict(config: SamConfig) -> dict[str, torch.Tensor]:
    """Of the official classes; numbers drawn with seed 0. Of SAM 2 with its weights for videos."""
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.randn(tensor.shape, generator=generator)
        if tensor.is_floating_point()
        else torch.randint(2**20, tensor.shape, generator=generator)
        for name, tensor in torch_sam.build(config).state_dict().items()
    }
