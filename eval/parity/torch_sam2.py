"""The official SAM 2 (sam2) for parity: its predictor, which is of 1,024 pixels there, and its neck in float64."""

import warnings
from collections.abc import Sequence

import torch

from convert.official_sam2 import FpnNeck, SAM2Base, SAM2ImagePredictor, build

__all__ = ["FpnNeck", "SAM2Base", "SAM2ImagePredictor", "build", "float64_neck", "predictor"]


def predictor(model: SAM2Base) -> SAM2ImagePredictor:
    """SAM2ImagePredictor of a model of any size and dtype."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*torch.jit.script.*", category=DeprecationWarning)
        found = SAM2ImagePredictor(model)
    grid = model.sam_image_embedding_size
    found._bb_feat_sizes = [(factor * grid, factor * grid) for factor in (4, 2, 1)]  # those of 1,024 pixels there
    return found


def float64_neck(neck: FpnNeck) -> FpnNeck:
    """The neck without its cast of the coarsest map to float32, which it enlarges by repeating: in place."""
    neck.__class__ = _Float64Neck
    return neck


class _Float64Neck(FpnNeck):
    def forward(self, maps: Sequence[torch.Tensor]) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """As in FpnNeck, for the levels of sam2.1's configurations."""
        assert self.fpn_top_down_levels == [2, 3]
        lateral = [convolve(x) for convolve, x in zip(self.convs, reversed(maps), strict=True)][::-1]
        lateral[2] = lateral[2] + lateral[3].repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
        return lateral, [self.position_encoding(x).to(x) for x in lateral]
