"""Stable-SAM's plugin for PyTorch: makes a model of segment_anything or segment_anything_hq stable in one line.

    sam = stabilise(sam_model_registry["vit_b"](checkpoint="sam_vit_b_01ec64.pth"), load_plugin_state("plugin.pth"))
    masks, scores, logits = SamPredictor(sam).predict(...)  # and everything else as before

This file imports nothing but torch, so that it can be copied alone into any project. The packages are not edited:
forward hooks replace the image side of the two-way transformer's token-to-image attentions. `python -m
convert.flax_to_torch --checkpoint plugin.safetensors --output plugin.pth` writes the state. Parameters keep their
names, with dots, and their axes: kernels are (in, out), that of the depthwise convolution is (k, k, C).
"""

import dataclasses
import os
from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from torch import nn
from torch.nn import functional as F

CONFIG_KEY = "_extra_state"  # PyTorch's name in a state dict for what is no tensor: here {"config", "metadata"}
REFERENCE_GRID = 64  # cells of SAM's map, for which max_offset_cells is given
MASK_TOKENS = slice(1, 5)  # after the IoU token; the first makes the single mask
HQ_TOKEN = 5  # HQ-SAM's own, whose mask it is trained on

Model = TypeVar("Model", bound=nn.Module)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Which plugin. The fields are those of stablesam_jax.config.PluginConfig, which explains them."""

    attentions: tuple[int, ...]
    resample: str
    amplitude: str
    max_offset_cells: float
    groups: int
    offset_kernel: int
    padding: str
    positions: str
    router: bool
    router_token: str
    router_width: int
    start: str  # of no use here, where weights are loaded
    embedding_width: int
    strength: float = 1.0  # files of before it was known lack it


def load_plugin_state(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Reads what convert.flax_to_torch or `torch.save(sam.plugin.state_dict(), path)` wrote, for `stabilise`."""
    return torch.load(path, map_location="cpu", weights_only=True)


def stabilise(sam: Model, state: Mapping[str, Any]) -> Model:
    """Puts a plugin into a SAM, in place.

    Its base must be the one that the plugin was trained on: `state["_extra_state"]["metadata"]` names it. Load the
    base's weights first: afterwards the model's state dict also has the plugin's, under `plugin.`.

    Args:
        sam: from segment_anything, segment_anything_hq or a package with their mask decoder.
        state: from `load_plugin_state`, or the state dict of a `Plugin`.

    Returns:
        sam, with the plugin as its module `plugin`, in the type and on the device of the mask decoder. To train the
        plugin alone, freeze everything else.

    Raises:
        ValueError: the state is not that of a plugin that this file knows, or the model has one, or is not as wide.
    """
    if hasattr(sam, "plugin"):
        raise ValueError("The model has a plugin already; build it again for another one.")
    if not isinstance(state.get(CONFIG_KEY), Mapping):
        raise ValueError(f"This is no state of a plugin: it has no {CONFIG_KEY!r}. Write it by convert.flax_to_torch.")
    decoder = sam.mask_decoder
    plugin = Plugin(**state[CONFIG_KEY])
    if decoder.transformer_dim != plugin.config.embedding_width:
        raise ValueError(
            f"The plugin is {plugin.config.embedding_width} channels wide, the mask decoder {decoder.transformer_dim}. "
            "Give the base that it was trained on."
        )
    plugin.to(decoder.iou_token.weight).load_state_dict(state)
    plugin.output_token = HQ_TOKEN if hasattr(decoder, "hf_token") else MASK_TOKENS.start
    plugin.hook(decoder.transformer)
    sam.plugin = plugin
    return sam


class Plugin(nn.Module):
    """Deformable sampling and dynamic routing (sec. 4.2 and 4.3). Its weights are zero until a state is loaded."""

    def __init__(self, config: Mapping[str, Any], metadata: Mapping[str, Any]):
        super().__init__()
        try:
            self.config = Config(**{**config, "attentions": tuple(config["attentions"])})
        except (KeyError, TypeError) as error:
            raise ValueError(f"This file does not know such a plugin ({error}). Take a newer one.") from None
        self.metadata = dict(metadata)
        if self.config.resample == "deform":
            self.dsp = OffsetNetwork(self.config)
        elif self.config.resample == "cbam":
            self.spatial = ChannelPooledAttention()
        else:
            self.spatial = CoordinateAttention(self.config.embedding_width)
        if self.config.router:
            self.drp = Router(self.config)
        self.output_token = MASK_TOKENS.start  # the router's; `stabilise` knows the model
        self._forget()

    def forward(
        self, keys: torch.Tensor, key_pe: torch.Tensor, tokens: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Mixes deformable and original features: alpha_1 * x*_{p + delta p} + alpha_2 * x_p (eq. 6).

        With a strength below 1 that mixture is mixed with x_p once more.

        Args:
            keys: (N, H, W, C), image features of N prompts, without their positional encoding.
            key_pe: (N, H, W, C), their positional encoding.
            tokens: (N, T, C), after the layer's self-attention.

        Returns:
            keys and key_pe for the attention, (N, H, W, C) each.
        """
        strength, alpha = self.config.strength, self._alpha(tokens)
        shares = strength * alpha + alpha.new_tensor([0, 1 - strength])
        weights = shares.to(keys.dtype)[:, None, None, :, None]

        def mix(resampled: torch.Tensor, original: torch.Tensor) -> torch.Tensor:
            return weights[..., 0, :] * resampled + weights[..., 1, :] * original

        if self.config.resample != "deform":
            return mix((keys * self.spatial(keys)).to(keys.dtype), keys), key_pe
        amplitudes, offsets = self.dsp(keys)
        mixed = mix(sample(amplitudes, offsets, self.config.padding), keys)
        if self.config.positions == "resampled":
            key_pe = mix(sample(key_pe, offsets, self.config.padding), key_pe)
        return mixed, key_pe

    def _alpha(self, tokens: torch.Tensor) -> torch.Tensor:
        """(N, T, C) -> (N, 2), or (1, 2)."""
        if not self.config.router:
            return tokens.new_tensor([[1, 0]])
        if self.config.router_token == "mean":
            return self.drp(tokens[:, MASK_TOKENS].mean(dim=1))
        return self.drp(tokens[:, self.output_token])

    def hook(self, transformer: nn.Module) -> None:
        """Sits down before the token-to-image attentions of a TwoWayTransformer that the configuration names.

        A hook there sees queries and keys only with their positional encodings added; so that no digit is lost in
        taking them off again, these and the tokens are kept from where they come by alone.
        """
        layers = transformer.layers
        attentions = [*(layer.cross_attn_token_to_image for layer in layers), transformer.final_attn_token_to_image]
        token_sources = [*(layer.norm1 for layer in layers), layers[-1]]
        transformer.register_forward_pre_hook(self._keep_positions)
        for index in self.config.attentions:
            token_sources[index].register_forward_hook(self._keep_tokens)
            attentions[index].register_forward_pre_hook(self._resample, with_kwargs=True)
        transformer.register_forward_hook(self._forget)

    def get_extra_state(self) -> dict[str, Any]:
        """What a state dict holds beside tensors."""
        return {"config": dataclasses.asdict(self.config), "metadata": self.metadata}

    def set_extra_state(self, state: Mapping[str, Any]) -> None:
        """Takes the metadata of a state; its configuration is that of the module."""
        self.metadata = dict(state["metadata"])

    # Hooks are methods, and not functions, so that the copy of a model has hooks of its own plugin.

    def _keep_positions(self, transformer: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        _, image_pe, _ = args  # (N, C, H, W)
        self._key_pe = image_pe.permute(0, 2, 3, 1)

    def _keep_tokens(self, module: nn.Module, args: Any, output: torch.Tensor | tuple[torch.Tensor, ...]) -> None:
        self._tokens = output[0] if isinstance(output, tuple) else output

    def _resample(
        self, attention: nn.Module, args: tuple[()], kwargs: dict[str, torch.Tensor]
    ) -> tuple[tuple[()], dict[str, torch.Tensor]]:
        keys, key_pe = self(kwargs["v"].view_as(self._key_pe), self._key_pe, self._tokens)
        return args, kwargs | {"k": (keys + key_pe).flatten(1, 2), "v": keys.flatten(1, 2)}

    def _forget(self, *_: Any) -> None:
        self._key_pe = self._tokens = None


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
        direction = wide(self.offset(hidden)).unflatten(-1, (self.config.groups, 2))
        height, width = features.shape[1:3]
        limit = direction.new_tensor([width, height]) * (self.config.max_offset_cells / REFERENCE_GRID)
        return amplitudes, limit * torch.tanh(direction)


def sample(features: torch.Tensor, offsets: torch.Tensor, padding: str) -> torch.Tensor:
    """Reads features at p + delta p for every cell p (eq. 4).

    Args:
        features: (N, H, W, C); C falls into as many groups as there are offsets.
        offsets: (N, H, W, groups, 2), (x, y) in cells.
        padding: what lies outside the map: "border", its value going on, or "zeros".

    Returns:
        (N, H, W, C).
    """
    number, height, width, channels = features.shape
    groups = offsets.shape[-2]
    x, y = torch.arange(width).to(offsets), torch.arange(height).to(offsets)
    cells = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)
    last = offsets.new_tensor([width - 1, height - 1]).clamp(min=1)
    positions = 2 * (cells[:, :, None] + offsets) / last - 1
    positions = positions.permute(0, 3, 1, 2, 4).flatten(0, 1)
    maps = features.to(offsets.dtype).permute(0, 3, 1, 2).reshape(number * groups, -1, height, width)
    sampled = F.grid_sample(maps, positions, "bilinear", padding, align_corners=True)
    return sampled.view(number, channels, height, width).permute(0, 2, 3, 1).to(features.dtype)


class ChannelPooledAttention(nn.Module):
    """The spatial map of CBAM, which table 11 sets in the place of deformable sampling."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.zeros(7, 7, 2, 1))
        self.bias = nn.Parameter(torch.zeros(()))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """(N, H, W, C) -> factors (N, H, W, 1)."""
        pooled = torch.stack([features.mean(dim=-1), features.amax(dim=-1)], dim=1)
        logits = F.conv2d(pooled, self.kernel.permute(3, 2, 0, 1), self.bias[None], padding="same")
        return 2 * torch.sigmoid(wide(logits)).permute(0, 2, 3, 1)


class CoordinateAttention(nn.Module):
    """Coordinate attention, likewise: a factor for each row and one for each column."""

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
            return 2 * torch.sigmoid(wide(last(F.hardswish(self.norm(self.hidden(means))))))

        rows, columns = factors(self.rows, features.mean(dim=2)), factors(self.columns, features.mean(dim=1))
        return rows[:, :, None] * columns[:, None]


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


def wide(x: torch.Tensor) -> torch.Tensor:
    """At least float32: half types lose positions and small factors."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


class Dense(nn.Module):
    """A linear layer, which is also a 1x1 convolution, over the last axis."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.kernel = nn.Parameter(torch.zeros(inputs, outputs))
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., inputs) -> (..., outputs)."""
        return F.linear(x, self.kernel.T, self.bias)


class Depthwise(nn.Module):
    """A depthwise convolution."""

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
    """Over the last axis."""

    def __init__(self, width: int):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., width) -> (..., width)."""
        return F.layer_norm(x, x.shape[-1:], self.scale, self.bias, eps=1e-6)
