"""The image encoder of sam_nano: EfficientNet-Lite0 with its batch norms folded, and a neck over four of its scales."""

from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

WIDTH = 256  # channels of the image embedding and of every token
ENCODER_EPS = 1e-6  # of the norms over maps


class Stage(NamedTuple):
    """One row of EfficientNet-Lite0: `repeats` inverted bottlenecks, the first with `stride`."""

    repeats: int
    kernel: int
    stride: int
    expansion: int
    width: int


STEM_WIDTH = 32
STAGES = (
    Stage(repeats=1, kernel=3, stride=1, expansion=1, width=16),
    Stage(repeats=2, kernel=3, stride=2, expansion=6, width=24),
    Stage(repeats=2, kernel=5, stride=2, expansion=6, width=40),
    Stage(repeats=3, kernel=3, stride=2, expansion=6, width=80),
    Stage(repeats=3, kernel=5, stride=1, expansion=6, width=112),
    Stage(repeats=4, kernel=5, stride=2, expansion=6, width=192),
    Stage(repeats=1, kernel=3, stride=1, expansion=6, width=320),
)
TAPS = (1, 2, 4, 6)  # stages whose outputs (strides 4, 8, 16, 32) feed the neck


class ImageEncoder(nn.Module):
    """EfficientNet-Lite0 with its batch norms folded, and a neck over four of its scales."""

    def __init__(self, image_size: int):
        super().__init__()
        self.img_size = image_size
        self.backbone = Backbone()
        self.neck = Neck()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, 3, S, S) normalised pictures -> (B, 256, G, G) image embedding, G = S / 16."""
        return self.neck(self.backbone(x))


class Backbone(nn.Module):
    """EfficientNet-Lite0 without its classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = SameConv(3, STEM_WIDTH, 3, stride=2)
        self.blocks = nn.ModuleList()
        width = STEM_WIDTH
        for stage in STAGES:
            for repeat in range(stage.repeats):
                stride = stage.stride if repeat == 0 else 1
                self.blocks.append(InvertedBottleneck(width, stage.width, stage.expansion, stage.kernel, stride))
                width = stage.width

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        """(B, 3, S, S) -> features of the tapped stages, finest first."""
        x = F.relu6(self.stem(x))
        outputs = []
        blocks = iter(self.blocks)
        for stage in STAGES:
            for _ in range(stage.repeats):
                x = next(blocks)(x)
            outputs.append(x)
        return [outputs[tap] for tap in TAPS]


class SameConv(nn.Conv2d):
    """A convolution padded as TensorFlow's "SAME" for sizes that the stride divides: the odd zero comes last."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) -> (B, width, H / stride, W / stride)."""
        total = self.kernel_size[0] - self.stride[0]
        return super().forward(F.pad(x, (total // 2, total - total // 2) * 2))


class InvertedBottleneck(nn.Module):
    """Expand, filter each channel, project; with a residual where the shapes allow one."""

    def __init__(self, inputs: int, width: int, expansion: int, kernel: int, stride: int):
        super().__init__()
        hidden = inputs * expansion
        self.expand = nn.Conv2d(inputs, hidden, 1) if expansion != 1 else None
        self.depthwise = SameConv(hidden, hidden, kernel, stride, groups=hidden)
        self.project = nn.Conv2d(hidden, width, 1)
        self.residual = stride == 1 and inputs == width

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) -> (B, width, H / stride, W / stride)."""
        hidden = x if self.expand is None else F.relu6(self.expand(x))
        hidden = self.project(F.relu6(self.depthwise(hidden)))
        return hidden + x if self.residual else hidden


class Neck(nn.Module):
    """Sums four scales at stride 16, mixes them with one 3 x 3 convolution, normalises as SAM's neck ends."""

    def __init__(self) -> None:
        super().__init__()
        finest, fine, middle, coarse = (STAGES[tap].width for tap in TAPS)
        self.finest = nn.Conv2d(finest, WIDTH, 4, stride=4, bias=False)
        self.fine = nn.Conv2d(fine, WIDTH, 2, stride=2)
        self.middle = nn.Conv2d(middle, WIDTH, 1)
        self.coarse = nn.Conv2d(coarse, WIDTH, 1)
        self.norm = LayerNorm2d(WIDTH)
        self.output = nn.Conv2d(WIDTH, WIDTH, 3, padding=1, bias=False)
        self.output_norm = LayerNorm2d(WIDTH)

    def forward(self, features: list[torch.Tensor]) -> torch.Tensor:
        """Maps of 4G, 2G, G and G / 2 cells -> (B, 256, G, G)."""
        finest, fine, middle, coarse = features
        lifted = F.interpolate(self.coarse(coarse), scale_factor=2.0, mode="nearest")
        x = self.fine(fine) + self.middle(middle) + lifted + self.finest(finest)
        return self.output_norm(self.output(F.gelu(self.norm(x))))


class LayerNorm2d(nn.LayerNorm):
    """Normalises the channels of a map."""

    def __init__(self, channels: int):
        super().__init__(channels, eps=ENCODER_EPS)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) -> the same."""
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
