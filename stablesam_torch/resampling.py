"""What the plugin does to image features: deformable sampling, its alternatives, and the router's weights."""

import torch
from torch import nn
from torch.nn import functional as F

from .layers import Dense, Depthwise, LayerNorm, to_float32
from .plugin_config import Config

REFERENCE_GRID = 64  # side of SAM's map in cells, to which max_offset_cells refers


class OffsetNetwork(nn.Module):
    """Offsets and amplitudes of the image features (eq. 3 and figure 3b)."""

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        width = config.embedding_width
        if config.amplitude == "project":
            self.project = Dense(width, width)
        elif config.amplitude == "gate":
            self.gate = Dense(width, width)
        self.depthwise = Depthwise(config.offset_kernel, width)
        self.norm = LayerNorm(width)
        self.offset = Dense(width, 2 * config.groups)

    def forward(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(N, H, W, C) -> amplitudes (N, H, W, C), and offsets (N, H, W, groups, 2), (x, y) in cells."""
        amplitudes = features
        if self.config.amplitude == "project":
            amplitudes = self.project(features)
        elif self.config.amplitude == "gate":
            amplitudes = features * (1 + self.gate(features))
        hidden = F.gelu(self.norm(self.depthwise(amplitudes)))
        direction = to_float32(self.offset(hidden)).unflatten(-1, (self.config.groups, 2))
        height, width = features.shape[1:3]
        limit = direction.new_tensor([width, height]) * (self.config.max_offset_cells / REFERENCE_GRID)
        return amplitudes, limit * torch.tanh(direction)


def sample(features: torch.Tensor, offsets: torch.Tensor, padding: str) -> torch.Tensor:
    """Reads features at p + delta p for every cell p (eq. 4).

    Args:
        features: (N, H, W, C); neighbouring channels form a group.
        offsets: (N, H, W, groups, 2), (x, y) in cells.
        padding: values outside the map: "border" or "zeros", as of `grid_sample`.

    Returns:
        (N, H, W, C).
    """
    count, height, width, channels = features.shape
    groups = offsets.shape[-2]
    x, y = torch.arange(width).to(offsets), torch.arange(height).to(offsets)
    cells = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)
    last = offsets.new_tensor([width - 1, height - 1]).clamp(min=1)  # a map of one cell would divide by zero
    positions = 2 * (cells[:, :, None] + offsets) / last - 1  # grid_sample's [-1, 1], from the first cell to the last
    positions = positions.permute(0, 3, 1, 2, 4).flatten(0, 1)
    maps = features.to(offsets.dtype).permute(0, 3, 1, 2).reshape(count * groups, -1, height, width)
    sampled = F.grid_sample(maps, positions, "bilinear", padding, align_corners=True)
    return sampled.view(count, channels, height, width).permute(0, 2, 3, 1).to(features.dtype)


class ChannelPooledAttention(nn.Module):
    """The spatial attention of CBAM, the alternative to deformable sampling in table 11."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.zeros(7, 7, 2, 1))
        self.bias = nn.Parameter(torch.zeros(()))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """(N, H, W, C) -> factors (N, H, W, 1)."""
        pooled = torch.stack([features.mean(dim=-1), features.amax(dim=-1)], dim=1)
        logits = F.conv2d(pooled, self.kernel.permute(3, 2, 0, 1), self.bias[None], padding="same")
        return 2 * torch.sigmoid(to_float32(logits)).permute(0, 2, 3, 1)  # twice, so that zero logits are the identity


class CoordinateAttention(nn.Module):
    """Coordinate attention, another alternative: the product of a factor for each row and one for each column."""

    def __init__(self, width: int):
        super().__init__()
        hidden_width = max(8, width // 32)
        self.hidden = Dense(width, hidden_width)
        self.norm = LayerNorm(hidden_width)
        self.rows = Dense(hidden_width, width)
        self.columns = Dense(hidden_width, width)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """(N, H, W, C) -> factors (N, H, W, C)."""

        def factors(last: nn.Module, means: torch.Tensor) -> torch.Tensor:
            return 2 * torch.sigmoid(to_float32(last(F.hardswish(self.norm(self.hidden(means))))))

        rows, columns = factors(self.rows, features.mean(dim=2)), factors(self.columns, features.mean(dim=1))
        return rows[:, :, None] * columns[:, None]


class LinearMaps(nn.Module):
    """Maps of low rank for the keys and the values of each attention, another alternative: not in the paper."""

    def __init__(self, config: Config):
        super().__init__()
        self.attentions = config.attentions
        count, width, rank = len(config.attentions), config.embedding_width, config.rank
        self.keys_down, self.values_down = (nn.Parameter(torch.zeros(count, width, rank)) for _ in range(2))
        self.keys_up, self.values_up = (nn.Parameter(torch.zeros(count, rank, width)) for _ in range(2))
        self.values_bias = nn.Parameter(torch.zeros(count, width))

    def forward(
        self, keys: torch.Tensor, key_pe: torch.Tensor, attention: int | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(N, H, W, C) twice -> what is added to keys + key_pe for the keys, and to keys for the values."""
        place = 0 if attention is None else self.attentions.index(attention)
        of_keys = (keys + key_pe) @ self.keys_down[place] @ self.keys_up[place]
        return of_keys, keys @ self.values_down[place] @ self.values_up[place] + self.values_bias[place]


class Router(nn.Module):
    """Mixing weights from the output mask token (eq. 5): softmax(MLP(t_o)) * s."""

    def __init__(self, config: Config):
        super().__init__()
        self.hidden = Dense(config.embedding_width, config.router_width)
        self.norm = LayerNorm(config.router_width)
        self.logits = Dense(config.router_width, 2)
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, token: torch.Tensor) -> torch.Tensor:
        """(N, C) -> (N, 2): alpha_1 of the deformable, alpha_2 of the original features."""
        hidden = F.gelu(self.norm(self.hidden(token)))
        return torch.softmax(self.logits(hidden), dim=-1) * self.scale
