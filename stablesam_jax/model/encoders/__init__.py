"""Image encoders, one row each. Another one needs its file, a row here, and its sizes in `config.MODELS`."""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn

from stablesam_jax.config import HieraConfig, LiteConfig, SamConfig, TinyViTConfig, ViTConfig
from stablesam_jax.model.encoders import hiera, lite, tiny_vit, vit


@dataclasses.dataclass(frozen=True)
class Encoder:
    """Properties of an encoder that other modules use."""

    module: Callable[[Any, int], nn.Module]
    """(its configuration, channels of the image embedding) -> module, from (B, S, S, 3) normalised pictures to the
    image embedding (B, G, G, channels) and the early features (B, G, G, early width), which HQ-SAM reads; of SAM 2
    instead its two high-resolution maps, see `ImageEncoderHiera`."""
    early_width: Callable[[Any], int] | None = None
    """Its configuration -> channels of the early features; None where HQ-SAM cannot stand on it."""
    official: Callable[[SamConfig], tuple[str, dict[str, Any]]] | None = None
    """Class of the official PyTorch packages and its arguments; None where they have none."""
    recognise: Callable[[Any, tuple[int, ...], int | None], bool] | None = None
    """Whether an official state dict is of its configuration, from the number of blocks in each stage and the number of
    channels before the neck (None where the dict has no neck); None where there are no official files."""

    @property
    def in_two_steps(self) -> bool:
        """Whether it is `backbone`, then `finish`, so that the neck can be trained over cached backbone features."""
        return hasattr(self.module, "finish")


ENCODERS: dict[type, Encoder] = {
    # configuration  module                        early width           official twin      recogniser
    ViTConfig:     Encoder(vit.ImageEncoderViT,          vit.early_width,      vit.official,      vit.recognise),
    TinyViTConfig: Encoder(tiny_vit.ImageEncoderTinyViT, tiny_vit.early_width, tiny_vit.official, tiny_vit.recognise),
    LiteConfig:    Encoder(lite.ImageEncoderLite,        lite.early_width),
    HieraConfig:   Encoder(hiera.ImageEncoderHiera,      None,                  hiera.official,    hiera.recognise),
}  # fmt: skip


def encoder_of(config: SamConfig) -> Encoder:
    """The row of a model's encoder."""
    return ENCODERS[type(config.encoder)]
