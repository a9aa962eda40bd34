"""What a plugin is, and how its state carries it."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch

CONFIG_KEY = "_extra_state"  # PyTorch's key in a state dict for what is no parameter, see `packed`


class FirstPass(NamedTuple):
    """Limits of a first pass, as stablesam_jax.config.FirstPass, which documents them."""

    fit: float
    least_fit: float
    lost_fit: float
    predicted_iou: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Configuration of a plugin. The fields are those of stablesam_jax.config.PluginConfig, which documents them."""

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
    start: str  # initialisation; unused here, where weights are loaded
    embedding_width: int
    rank: int = 40  # older files lack it
    strength: float = 1.0  # older files lack it
    first_pass: tuple[float, float, float, float] | None = None  # older files lack it


def packed(config: Mapping[str, Any], metadata: Mapping[str, Any]) -> torch.Tensor:
    """Configuration and metadata as JSON in a (length,) uint8 tensor: exporters take state dicts of tensors alone."""
    text = json.dumps({"config": dict(config), "metadata": dict(metadata)}, sort_keys=True)
    return torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)


def unpacked(state: torch.Tensor | Mapping[str, Any]) -> Mapping[str, Any]:
    """The inverse: {"config", "metadata"}. Older files hold that dictionary itself.

    Raises:
        ValueError: the tensor does not hold it.
    """
    if isinstance(state, Mapping):
        return state
    found = json.loads(bytes(state.tolist()))
    if not isinstance(found, dict) or found.keys() != {"config", "metadata"}:
        raise ValueError(f"{CONFIG_KEY!r} holds no plugin's configuration. Write it by convert.flax_to_torch.")
    return found
