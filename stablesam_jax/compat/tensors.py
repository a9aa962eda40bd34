"""Converts from and to PyTorch's tensors without importing PyTorch; it is used only if the program has loaded it."""

import sys
from typing import Any

import numpy as np

Tensor = Any  # a torch.Tensor, or where PyTorch is not loaded a numpy array

CHANNELS_FIRST = (0, 3, 1, 2)  # axes of (B, H, W, C)
CHANNELS_LAST = (0, 2, 3, 1)  # axes of (B, C, H, W)


def array(value: Any, dtype: type = np.float32) -> np.ndarray:
    """A tensor of any device and dtype, or an array, as an array."""
    if is_tensor(value):
        value = value.detach().cpu().float().numpy()
    return np.asarray(value, dtype)


def tensor(values: np.ndarray) -> Tensor:
    """A tensor with memory of its own where PyTorch is loaded, else the array."""
    torch = sys.modules.get("torch")
    return values if torch is None else torch.from_numpy(np.array(values))


def like(given: Any, values: np.ndarray) -> Tensor:
    """A tensor on the device of `given`, or an array if `given` is none."""
    return tensor(values).to(given.device) if is_tensor(given) else values


def cpu_device() -> Any:
    """The device of returned tensors."""
    torch = sys.modules.get("torch")
    return "cpu" if torch is None else torch.device("cpu")


def is_tensor(value: Any) -> bool:
    """Whether it is a tensor of PyTorch."""
    return hasattr(value, "detach")
