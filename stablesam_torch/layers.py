"""Layers of the plugin. Parameters have the names and axes of stablesam_jax: kernels are (in, out)."""

import torch
from torch import nn
from torch.nn import functional as F


def to_float32(x: torch.Tensor) -> torch.Tensor:
    """Casts half precision to float32, float64 unchanged: half precision loses positions and small factors."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


class Dense(nn.Module):
    """A linear layer over the last axis, hence also a 1x1 convolution."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.kernel = nn.Parameter(torch.zeros(inputs, outputs))
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., inputs) -> (..., outputs)."""
        return F.linear(x, self.kernel.T, self.bias)


class Depthwise(nn.Module):
    """A depthwise convolution, channels-last."""

    def __init__(self, size: int, channels: int):
        super().__init__()
        self.kernel = nn.Parameter(torch.zeros(size, size, channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, H, W, C) -> (N, H, W, C)."""
        kernel = self.kernel.permute(2, 0, 1)[:, None]
        y = F.conv2d(x.permute(0, 3, 1, 2), kernel, self.bias, padding="same", groups=len(kernel))
        return y.permute(0, 2, 3, 1)


class LayerNorm(nn.Module):
    """Normalises the last axis."""

    def __init__(self, width: int):
        super().__init__()
        self.width = width
        self.scale = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., width) -> (..., width)."""
        return F.layer_norm(x, (self.width,), self.scale, self.bias, eps=1e-6)
