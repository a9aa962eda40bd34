"""Low-resolution logits to masks at the size of the picture, as Sam.postprocess_masks in segment_anything brings them.

The official code resizes bilinearly to S x S, crops the padding, and resizes bilinearly to the picture. All three are
linear and act on each axis alone: together they are one matrix per axis, of which a row has no more than three weights.
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from stablesam_jax.predict.preprocess import resized_size

TAPS = 3  # neighbouring low-resolution logits that make one of the picture, per axis
BLOCK_ROWS = 128  # of a picture whose logits exist at once: 6 MB of a picture 12,000 pixels wide


@flax.struct.dataclass
class Axis:
    """How logits of one axis of the picture, padded, arise from low-resolution ones."""

    first: jax.Array  # (padded,) int32, the first of TAPS neighbours
    weights: jax.Array  # (padded, TAPS) float32
    inside: jax.Array  # (padded,) bool, False for padding


def upscaling_matrices(size_hw: tuple[int, int], *, mask_size: int, image_size: int) -> tuple[np.ndarray, np.ndarray]:
    """The matrices that bring logits to the size of a picture.

    Args:
        size_hw: of the picture.
        mask_size: 4G, side of the logits.
        image_size: S.

    Returns:
        rows (H, 4G) and columns (W, 4G), float32, such that `rows @ logits @ columns.T` are the picture's logits. No
        more than TAPS weights of a row differ from 0, and they are neighbours.
    """
    square = _resize_rows(np.eye(mask_size, dtype=np.float32), image_size)
    rows, columns = (
        _resize_rows(square[:cropped], size)
        for cropped, size in zip(resized_size(size_hw, image_size), size_hw, strict=True)
    )
    return rows, columns


@functools.lru_cache(maxsize=16)
def upscaling_axes(size_hw: tuple[int, int], *, mask_size: int, image_size: int) -> tuple[Axis, Axis]:
    """What is not 0 of these matrices: for rows and for columns. Arguments as `upscaling_matrices`."""
    rows, columns = map(_axis, upscaling_matrices(size_hw, mask_size=mask_size, image_size=image_size))
    return rows, columns


def upscale_logits(low_res_masks: np.ndarray, size_hw: tuple[int, int], image_size: int) -> np.ndarray:
    """Brings logits to the size of the picture.

    Args:
        low_res_masks: (..., 4G, 4G) float32 logits.
        size_hw: of the picture.
        image_size: S.

    Returns:
        (..., H, W) float32 logits; above 0 is foreground.
    """
    return _upscale(low_res_masks, size_hw, image_size, _padded_logits, np.float32)


def upscale_masks(low_res_masks: np.ndarray, size_hw: tuple[int, int], image_size: int) -> np.ndarray:
    """`upscale_logits(...) > 0`, but without the memory of the logits: (..., H, W) bool. On a CPU to the bit."""
    return _upscale(low_res_masks, size_hw, image_size, padded_mask, bool)


def _upscale(
    low_res_masks: np.ndarray, size_hw: tuple[int, int], image_size: int, program: Callable, dtype: type
) -> np.ndarray:
    """Runs a program for each mask in turn; what it knows of the picture's size is the padded one."""
    height, width = size_hw
    axes = upscaling_axes((height, width), mask_size=low_res_masks.shape[-1], image_size=image_size)
    result = np.empty((*low_res_masks.shape[:-2], height, width), dtype)
    for index in np.ndindex(low_res_masks.shape[:-2]):
        result[index] = np.asarray(program(low_res_masks[index], *axes))[:height, :width]
    return result


@jax.jit
def padded_mask(low_res_mask: jax.Array, rows: Axis, columns: Axis) -> jax.Array:
    """(4G, 4G) logits -> (padded H, padded W) bool, above 0."""
    return by_rows(lambda logits: logits > 0, low_res_mask, rows, columns).reshape(-1, len(columns.first))


@jax.jit
def _padded_logits(low_res_mask: jax.Array, rows: Axis, columns: Axis) -> jax.Array:
    """(4G, 4G) logits -> (padded H, padded W)."""
    return by_rows(lambda logits: logits, low_res_mask, rows, columns).reshape(-1, len(columns.first))


def by_rows(function: Callable[[jax.Array], Any], low_res_mask: jax.Array, rows: Axis, columns: Axis) -> Any:
    """Applies a function to BLOCK_ROWS rows of logits of the picture at a time, which fit into a cache; stacks results.

    Args:
        function: of (BLOCK_ROWS, padded W) logits, which are below every cut in the padding.
        low_res_mask: (4G, 4G) logits.
        rows, columns: of the picture.
    """
    wide = _combined(low_res_mask.T, columns).T  # (4G, padded W)

    def apply(block: Axis) -> Any:
        inside = block.inside[:, None] & columns.inside[None]
        return function(jnp.where(inside, _combined(wide, block), -jnp.inf))

    return jax.lax.map(apply, jax.tree.map(lambda leaf: leaf.reshape(-1, BLOCK_ROWS, *leaf.shape[1:]), rows))


def _combined(x: jax.Array, axis: Axis) -> jax.Array:
    """(4G, any) -> (padded, any). A product with the whole matrix would cost 4G / TAPS times as much."""
    return functools.reduce(jnp.add, (x[axis.first + tap] * axis.weights[:, tap, None] for tap in range(TAPS)))


def _axis(matrix: np.ndarray) -> Axis:
    """The weights of (size, 4G) that are not 0, padded."""
    size = len(matrix)
    padding = padded_side(size) - size
    first = np.minimum((matrix != 0).argmax(axis=1), matrix.shape[1] - TAPS)
    weights = np.take_along_axis(matrix, first[:, None] + np.arange(TAPS), axis=1)
    return Axis(
        jnp.asarray(np.pad(first.astype(np.int32), (0, padding))),
        jnp.asarray(np.pad(weights, ((0, padding), (0, 0)))),
        jnp.asarray(np.arange(size + padding) < size),
    )


def padded_side(size: int) -> int:
    """Up to a multiple of BLOCK_ROWS, or of an eighth of the next power of two, so that few programs are compiled.

    >>> padded_side(300), padded_side(1080), padded_side(3000)
    (384, 1280, 3072)
    """
    step = max(BLOCK_ROWS, (1 << (size - 1).bit_length()) // 8)
    return -(-size // step) * step


def _resize_rows(x: np.ndarray, size: int) -> np.ndarray:
    """Bilinear resize of axis 0 without antialiasing, half-pixel centres: (rows, ...) -> (size, ...).

    Positions are rounded as PyTorch rounds them, in float32 after one multiply-add: where rows / size is not exact,
    exact positions would move steep logits by 5e-4.
    """
    scale = np.float64(np.float32(len(x) / size))
    position = np.maximum(np.float32(scale * (np.arange(size) + 0.5) - 0.5), 0)
    lower = np.minimum(position.astype(np.int64), len(x) - 1)
    upper = np.minimum(lower + 1, len(x) - 1)
    weight = np.minimum(position - lower.astype(np.float32), 1)[:, None]
    return x[lower] * (1 - weight) + x[upper] * weight
