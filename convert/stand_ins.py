"""Replacements for what the official packages import from torchvision and timm, where these cannot be imported.

The registry's builds of torchvision do not import beside the CPU build of torch, and timm imports torchvision. The
official models use little of them: resizing, which torchvision delegates to Pillow or, for SAM 2, to PyTorch, boxes,
and initialisers.
"""

import importlib
import sys
import types
import warnings
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from PIL import Image

Modules = Mapping[str, Mapping[str, object]]  # module -> what is imported from it


def provide() -> None:
    """Makes the modules of `TORCHVISION` and `TIMM` importable: the real ones if they import, else replacements."""
    for modules in (TORCHVISION, TIMM):
        if not _importable(modules):
            _put(modules)


def resize(picture: Image.Image, size_hw: tuple[int, int]) -> Image.Image:
    """torchvision's resize of a Pillow picture, for which its antialias flag has no effect."""
    return picture.resize((size_hw[1], size_hw[0]), Image.Resampling.BILINEAR)


def box_area(boxes: torch.Tensor) -> torch.Tensor:
    """(N, 4) x1 y1 x2 y2 -> (N,)."""
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


def batched_nms(boxes: torch.Tensor, scores: torch.Tensor, idxs: torch.Tensor, iou_threshold: float) -> torch.Tensor:
    """Non-maximum suppression within each category (torchvision/csrc/ops/cpu/nms_kernel.cpp).

    Args:
        boxes: (N, 4) x1 y1 x2 y2, float.
        scores: (N,); ties keep their order.
        idxs: (N,) categories.
        iou_threshold: a box is removed if its IoU with a kept box of higher score is above it.

    Returns:
        (K,) int64, indices of the kept boxes, by falling score.
    """
    order = torch.sort(scores, descending=True, stable=True).indices
    boxes, idxs = boxes[order], idxs[order]
    areas = box_area(boxes)
    stays = torch.ones(len(order), dtype=torch.bool)
    for best in range(len(order)):
        if not stays[best]:
            continue
        rest = slice(best + 1, None)
        sides = torch.minimum(boxes[best, 2:], boxes[rest, 2:]) - torch.maximum(boxes[best, :2], boxes[rest, :2])
        shared = sides.clamp(min=0).prod(dim=1)
        iou = shared / (areas[best] + areas[rest] - shared)
        # In float64, as the threshold in C++. The IoU of two empty boxes is NaN, so both are kept.
        stays[rest] &= ~((idxs[rest] == idxs[best]) & (iou.double() > iou_threshold))
    return order[stays]


class DropPath(torch.nn.Module):
    """Stochastic depth of probability 0, as in every model here; TinyViT subclasses it."""

    def __init__(self, drop_prob: float = 0.0):
        super().__init__()
        if drop_prob:
            raise NotImplementedError("Training TinyViT with stochastic depth needs timm.")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns the input."""
        return x


def to_2tuple(value: int) -> tuple[int, int]:
    """Returns (value, value)."""
    return value, value


def register_model(model: Callable) -> Callable:
    """Returns the model; timm also registers it by name, which nothing here uses."""
    return model


class ToTensor:
    """torchvision's ToTensor: (H, W, 3) uint8 -> (3, H, W) float32 of 0..1."""

    def __call__(self, picture: np.ndarray) -> torch.Tensor:
        """Converts a picture."""
        return torch.from_numpy(np.array(picture)).permute(2, 0, 1).contiguous().float().div(255)


class Resize(torch.nn.Module):
    """torchvision's Resize of a float tensor to a given height and width, antialiased as there by default."""

    def __init__(self, size: Sequence[int]):
        super().__init__()
        self.size = list(size)

    def forward(self, picture: torch.Tensor) -> torch.Tensor:
        """(3, H, W) -> (3, height, width)."""
        resized = torch.nn.functional.interpolate(
            picture[None], size=self.size, mode="bilinear", align_corners=False, antialias=True
        )
        return resized[0]


class Normalize(torch.nn.Module):
    """torchvision's Normalize: (picture - mean) / std by channel."""

    def __init__(self, mean: list[float], std: list[float]):
        super().__init__()
        self.mean, self.std = mean, std

    def forward(self, picture: torch.Tensor) -> torch.Tensor:
        """(3, H, W) -> (3, H, W)."""
        mean, std = torch.tensor(self.mean), torch.tensor(self.std)
        return (picture - mean[:, None, None]) / std[:, None, None]


TORCHVISION: Modules = {
    "torchvision.transforms": {"Normalize": Normalize, "Resize": Resize, "ToTensor": ToTensor},
    "torchvision.transforms.functional": {"resize": resize, "to_pil_image": Image.fromarray},
    "torchvision.ops.boxes": {"batched_nms": batched_nms, "box_area": box_area},
}
TIMM: Modules = {
    "timm.models.layers": {
        "DropPath": DropPath,
        "to_2tuple": to_2tuple,
        "trunc_normal_": torch.nn.init.trunc_normal_,
    },
    "timm.models.registry": {"register_model": register_model},
}


def _importable(modules: Modules) -> bool:
    """Whether all modules import. Entries that a failed import left in `sys.modules` are removed."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # timm warns that these module names are deprecated
            for name in modules:
                importlib.import_module(name)
    except (ImportError, RuntimeError):  # RuntimeError: torchvision's compiled extension does not match torch
        (package,) = {name.partition(".")[0] for name in modules}
        for name in [name for name in sys.modules if name.partition(".")[0] == package]:
            del sys.modules[name]
        return False
    return True


def _put(modules: Modules) -> None:
    for path, members in modules.items():
        parts = path.split(".")
        for end in range(1, len(parts) + 1):
            name = ".".join(parts[:end])
            sys.modules.setdefault(name, types.ModuleType(name))
        vars(sys.modules[path]).update(members)
