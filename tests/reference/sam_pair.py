"""A small model twice: the official one in PyTorch and ours, with the same random weights, both in float64."""

import contextlib
import copy
import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
import torch

from eval.parity import torch_sam, twins
from stablesam_jax.config import HieraConfig, SamConfig, TinyViTConfig, ViTConfig

# 20 cells: windows of 14 need padding. Two windowed and two global blocks.
CONFIG = SamConfig(
    encoder=ViTConfig(width=64, depth=4, heads=2, global_blocks=(1, 3)), image_size=320, embedding_width=64
)
HQ_CONFIG = dataclasses.replace(CONFIG, hq=True)
# Maps of 20, 10 and 10 cells in windows of 7, 14 and 7: all need padding. The official class tells the merging before
# the last stage, which keeps the stride, by its 320 channels, and has a neck of 256.
TINY_CONFIG = SamConfig(
    encoder=TinyViTConfig(widths=(16, 24, 32, 320), depths=(1, 1, 2, 1), heads=(1, 2, 2, 10), classes=5),
    hq=True,
    image_size=160,
)
# Maps of 24, 12, 6 and 3 cells in windows of 8, 4, 14 and 7: those of the last two stages need padding.
SAM2_CONFIG = SamConfig(encoder=HieraConfig(width=16, heads=2, depths=(1, 1, 3, 2), global_blocks=(4,)), image_size=96)
TOLERANCE = 1e-12  # relative to the largest number; float64 rounding is 2e-15 here
SEEN = 1e-6  # the smallest mistake, a wrong eps, moves results by 4e-6

# Compiles in half the time or less, which on small inputs is most of it.
quick_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


@dataclasses.dataclass(frozen=True)
class Pair:
    """The two models."""

    official: torch_sam.Official
    params: dict[str, Any]

    def faulty(self, spoil: Callable[[torch_sam.Official], None]) -> "Pair":
        """The pair with a mistake in the official model: what a wrong port would be compared with."""
        official = copy.deepcopy(self.official)
        with torch.no_grad():
            spoil(official)
            official.eval()  # TinyViT gathers its attention biases here
        return dataclasses.replace(self, official=official)


@contextlib.contextmanager
def float64_pair(config: SamConfig = CONFIG) -> Iterator[Pair]:
    """Within it, JAX computes in float64, and so does the official model."""
    official = torch_sam.build(config)
    torch_sam.randomise(official, seed=0)
    params = twins.convert(official.state_dict(), config)
    with jax.enable_x64(True):
        params = jax.tree.map(lambda leaf: jax.numpy.asarray(leaf, np.float64), params)
        yield Pair(twins.to_float64(official).requires_grad_(False), params)


def difference(ours: jax.Array, theirs: torch.Tensor) -> float:
    """Largest difference relative to the largest number of theirs."""
    reference = theirs.numpy()
    assert ours.shape == reference.shape
    assert ours.dtype == reference.dtype == np.float64
    return float(np.abs(np.asarray(ours) - reference).max() / np.abs(reference).max())


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    """Normal float64 numbers."""
    return np.random.default_rng(seed).standard_normal(shape)
