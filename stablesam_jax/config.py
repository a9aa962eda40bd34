"""Architecture: every number of every model and of the plugin, each written once."""

import dataclasses
from typing import Literal


@dataclasses.dataclass(frozen=True, kw_only=True)
class ViTConfig:
    """SAM's image encoder (segment_anything/build_sam.py)."""

    width: int
    depth: int
    heads: int
    global_blocks: tuple[int, ...]  # blocks whose attention sees the whole grid, from 0
    window_size: int = 14  # cells; side of the windows of all other blocks
    patch_size: int = 16  # pixels


@dataclasses.dataclass(frozen=True, kw_only=True)
class LiteStage:
    """One row of EfficientNet-Lite0: `repeats` inverted bottlenecks, the first with `stride`."""

    repeats: int
    kernel: int
    stride: int
    expansion: int
    width: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class LiteConfig:
    """EfficientNet-Lite0 (Tan and Le 2019, table 1; the Lite variant has fixed stem and no squeeze)."""

    stem_width: int = 32
    stages: tuple[LiteStage, ...] = (
        LiteStage(repeats=1, kernel=3, stride=1, expansion=1, width=16),
        LiteStage(repeats=2, kernel=3, stride=2, expansion=6, width=24),
        LiteStage(repeats=2, kernel=5, stride=2, expansion=6, width=40),
        LiteStage(repeats=3, kernel=3, stride=2, expansion=6, width=80),
        LiteStage(repeats=3, kernel=5, stride=1, expansion=6, width=112),
        LiteStage(repeats=4, kernel=5, stride=2, expansion=6, width=192),
        LiteStage(repeats=1, kernel=3, stride=1, expansion=6, width=320),
    )
    taps: tuple[int, ...] = (2, 4, 6)  # stages whose outputs (strides 8, 16, 32) feed the neck
    patch_size: int = 16  # pixels per cell of the image embedding, after the neck


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamConfig:
    """A promptable segmenter: image encoder, prompt encoder, mask decoder."""

    encoder: ViTConfig | LiteConfig
    image_size: int = 1024  # pixels; side of the square that the encoder sees
    embedding_width: int = 256  # channels of the image embedding and of every token
    pixel_mean: tuple[float, float, float] = (123.675, 116.28, 103.53)  # RGB, 0..255
    pixel_std: tuple[float, float, float] = (58.395, 57.12, 57.375)

    def __post_init__(self):
        if self.image_size % self.encoder.patch_size:
            raise ValueError(
                f"image_size {self.image_size} is not a multiple of the patch size {self.encoder.patch_size}."
            )

    @property
    def grid_size(self) -> int:
        """G, the side of the image embedding in cells."""
        return self.image_size // self.encoder.patch_size

    @property
    def mask_size(self) -> int:
        """Side of the low-resolution logits in pixels: 4 G."""
        return 4 * self.grid_size


@dataclasses.dataclass(frozen=True, kw_only=True)
class PluginConfig:
    """Stable-SAM's plugin: deformable sampling (DSP) and dynamic routing (DRP)."""

    attentions: tuple[int, ...] = (1,)  # token-to-image attentions: 0, 1 = decoder layers, 2 = final (figure 3: 1)
    amplitude: Literal["project", "gate", "none"] = "project"  # x*: W x + b (figure 3b), x (1 + W x + b), or x itself
    max_offset_cells: float = 8.0  # s_p of eq. 3 in cells of a 64-cell map, scaled with the map; the paper gives none
    offset_kernel: int = 5  # cells; the depthwise convolution of the offset network (figure 3b)
    router_width: int = 32  # hidden units of the router; the width that gives the paper's 0.08 M parameters
    embedding_width: int = 256  # channels of keys and tokens

    def __post_init__(self):
        if not self.attentions or not set(self.attentions) <= {0, 1, 2}:
            raise ValueError(f"attentions name some of 0, 1 (decoder layers) and 2 (final); got {self.attentions}.")


def _vit(width: int, depth: int, heads: int, global_blocks: tuple[int, ...]) -> SamConfig:
    return SamConfig(encoder=ViTConfig(width=width, depth=depth, heads=heads, global_blocks=global_blocks))


MODELS: dict[str, SamConfig] = {
    "sam_vit_b": _vit(768, 12, 12, (2, 5, 8, 11)),
    "sam_vit_l": _vit(1024, 24, 16, (5, 11, 17, 23)),
    "sam_vit_h": _vit(1280, 32, 16, (7, 15, 23, 31)),
    # EfficientNet-Lite's own normalisation: (pixel - 127) / 128.
    "sam_nano": SamConfig(
        encoder=LiteConfig(), image_size=512, pixel_mean=(127.0, 127.0, 127.0), pixel_std=(128.0, 128.0, 128.0)
    ),
}
