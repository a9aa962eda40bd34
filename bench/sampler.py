"""Rows of bilinear sampling of 64 x 64 x 256 features, against plain JAX and PyTorch's grid_sample."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch

from bench.case import CHANNELS, GRID, Case, Options, count_of
from stablesam_jax.config import PluginConfig
from stablesam_jax.plugin.sampling import bilinear_sample


def sampler_cases(options: Options) -> Iterator[Case]:
    """Sampling of features that differ between prompts, as before the final attention, and of features of the picture
    that all prompts share, as before the first.

    PyTorch gets channels-first features, its fastest layout, and shared features as an expanded view without a copy.
    """
    for count in options.prompts:
        for maps in sorted({count, 1}, reverse=True):
            yield from _sampler_cases(count, maps)


def _sampler_cases(count: int, maps: int) -> Iterator[Case]:
    rng = np.random.default_rng(0)
    cells = np.stack(np.meshgrid(*[np.arange(GRID, dtype=np.float32)] * 2), axis=-1)
    features = rng.standard_normal((maps, GRID, GRID, CHANNELS), np.float32)
    offsets = np.tanh(rng.standard_normal((count, GRID, GRID, 2), np.float32))
    positions = cells + np.float32(PluginConfig().max_offset_cells) * offsets
    cotangent = rng.standard_normal((count, GRID, GRID, CHANNELS), np.float32)
    arrays = [jnp.asarray(array) for array in (features, positions, cotangent)]
    maps_first, grid, gradient = (
        torch.from_numpy(features).permute(0, 3, 1, 2).contiguous().requires_grad_(),
        torch.from_numpy(positions * 2 / (GRID - 1) - 1).requires_grad_(),
        torch.from_numpy(cotangent).permute(0, 3, 1, 2).contiguous(),
    )

    def jitted(sample: Callable, *, backward: bool) -> Callable[[], Any]:
        def both(features: jax.Array, positions: jax.Array, cotangent: jax.Array) -> Any:
            samples, pull_back = jax.vjp(sample, features, positions)
            return samples, pull_back(cotangent)

        compiled = jax.jit(both if backward else sample).lower(*arrays[: 3 if backward else 2]).compile()
        return lambda: jax.block_until_ready(compiled(*arrays[: 3 if backward else 2]))

    def grid_sample() -> torch.Tensor:
        expanded = maps_first.expand(count, -1, -1, -1)
        return torch.nn.functional.grid_sample(expanded, grid, "bilinear", "border", align_corners=True)

    def forward() -> None:
        with torch.no_grad():
            grid_sample()

    def forward_and_backward() -> None:
        torch.autograd.grad(grid_sample(), (maps_first, grid), gradient)

    kind = count_of("prompt", count) + (", shared features" if maps < count else "")
    for name, backward, theirs in (("forward", False, forward), ("forward + backward", True, forward_and_backward)):
        yield Case(
            f"{kind}: {name}",
            jitted(bilinear_sample, backward=backward),
            {"plain JAX": jitted(plain_sample, backward=backward), "PyTorch": theirs},
        )


def plain_sample(features: jax.Array, positions: jax.Array) -> jax.Array:
    """Bilinear sampling without optimisations: (R, H, W, C), (N, H', W', 2) -> (N, H', W', C), R = N or 1."""
    height, width = features.shape[1:3]
    features = jnp.broadcast_to(features, (len(positions), *features.shape[1:]))
    x, y = jnp.clip(positions[..., 0], 0, width - 1), jnp.clip(positions[..., 1], 0, height - 1)
    left, top = jnp.floor(x).astype(jnp.int32), jnp.floor(y).astype(jnp.int32)
    right, bottom = jnp.minimum(left + 1, width - 1), jnp.minimum(top + 1, height - 1)
    x_share, y_share = (x - left.astype(x.dtype))[..., None], (y - top.astype(y.dtype))[..., None]
    read = jax.vmap(lambda maps, rows, columns: maps[rows, columns])
    upper = (1 - x_share) * read(features, top, left) + x_share * read(features, top, right)
    lower = (1 - x_share) * read(features, bottom, left) + x_share * read(features, bottom, right)
    return (1 - y_share) * upper + y_share * lower
