"""Resizes low-resolution logits to masks at the size of the picture, as Sam.postprocess_masks in segment_anything.

The official code resizes bilinearly to S x S, crops the padding, and resizes bilinearly to the picture; that of SAM 2
resizes to the picture at once. All this is linear and separable: one matrix per axis, with at most three weights in a
row.
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from stablesam_jax.config import Frame
from stablesam_jax.predict.preprocess import resized_size

TAPS = 3  # neighbouring low-resolution logits per axis that determine a logit of the picture
Size = tuple[int, int]  # height and width
BLOCK_ROWS = 128  # rows whose logits are in memory at a time: 6 MB for a picture 12,000 pixels wide


@flax.struct.dataclass
class Axis:
    """Sparse rows of the upscaling matrix of one axis, padded."""

    first: jax.Array  # (padded,) int32, the first of TAPS neighbours
    weights: jax.Array  # (padded, TAPS) float32
    inside: jax.Array  # (padded,) bool, False for padding


def upscaling_matrices(
    size_hw: Size, *, mask_size: int, frame: Frame, input_size: Size | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The matrices that resize logits to the size of a picture.

    Args:
        size_hw: of the picture.
        mask_size: 4G, side of the logits.
        frame: of the model.
        input_size: of the picture in the model's input, without padding; by default as `preprocess` makes it.

    Returns:
        rows (H, 4G) and columns (W, 4G), float32, such that `rows @ logits @ columns.T` are the picture's logits. Each
        row has at most TAPS non-zero weights, which are neighbours.
    """
    square = np.eye(mask_size, dtype=np.float32)
    if frame.stretched:
        rows, columns = (_resize_rows(square, size) for size in size_hw)
        return rows, columns
    square = _resize_rows(square, frame.size)
    rows, columns = (
        _resize_rows(square[:cropped], size)
        for cropped, size in zip(input_size or resized_size(size_hw, frame), size_hw, strict=True)
    )
    return rows, columns


@functools.lru_cache(maxsize=16)
def upscaling_axes(size_hw: Size, *, mask_size: int, frame: Frame, input_size: Size | None = None) -> tuple[Axis, Axis]:
    """The non-zero weights of `upscaling_matrices` for rows and columns; arguments as there."""
    matrices = upscaling_matrices(size_hw, mask_size=mask_size, frame=frame, input_size=input_size)
    rows, columns = map(_axis, matrices)
    return rows, columns


def upscale_logits(
    low_res_masks: np.ndarray, size_hw: Size, frame: Frame, input_size: Size | None = None
) -> np.ndarray:
    """Resizes logits to the size of the picture.

    Args:
        low_res_masks: (..., 4G, 4G) float32 logits.
        size_hw: of the picture.
        frame: of the model.
        input_size: see `upscaling_matrices`.

    Returns:
        (..., H, W) float32 logits; above 0 is foreground.
    """
    return _upscale(low_res_masks, size_hw, frame, input_size, _padded_logits, np.float32)


def upscale_masks(low_res_masks: np.ndarray, size_hw: Size, frame: Frame, input_size: Size | None = None) -> np.ndarray:
    """`upscale_logits(...) > 0` without storing the logits: (..., H, W) bool. On a CPU equal to the bit."""
    return _upscale(low_res_masks, size_hw, frame, input_size, padded_mask, bool)


def _upscale(
    low_res_masks: np.ndarray,
    size_hw: Size,
    frame: Frame,
    input_size: Size | None,
    program: Callable,
    dtype: type,
) -> np.ndarray:
    """Runs a program for one mask after the other. It is compiled for the padded size of the picture."""
    height, width = size_hw
    axes = upscaling_axes((height, width), mask_size=low_res_masks.shape[-1], frame=frame, input_size=input_size)
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
    """Applies a function to BLOCK_ROWS rows of the picture's logits at a time, which fit into a cache; stacks results.

    Args:
        function: of (BLOCK_ROWS, padded W) logits; those of padding are below any threshold.
        low_res_mask: (4G, 4G) logits.
        rows, columns: of the picture.
    """
    widened = _combined(low_res_mask.T, columns).T  # (4G, padded W)

    def apply(block: Axis) -> Any:
        inside = block.inside[:, None] & columns.inside[None]
        return function(jnp.where(inside, _combined(widened, block), -jnp.inf))

    return jax.lax.map(apply, jax.tree.map(lambda leaf: leaf.reshape(-1, BLOCK_ROWS, *leaf.shape[1:]), rows))


def _combined(x: jax.Array, axis: Axis) -> jax.Array:
    """(4G, any) -> (padded, any), by TAPS weighted rows. A matmul with the dense matrix costs 4G / TAPS times more."""
    return functools.reduce(jnp.add, (x[axis.first + tap] * axis.weights[:, tap, None] for tap in range(TAPS)))


def _axis(matrix: np.ndarray) -> Axis:
    """The non-zero weights of a (size, 4G) matrix, padded."""
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
    """Rounds up to a multiple of BLOCK_ROWS, or of an eighth of the next power of two, to compile few programs.

    >>> padded_side(300), padded_side(1080), padded_side(3000)
    (384, 1280, 3072)
    """
    step = max(BLOCK_ROWS, (1 << (size - 1).bit_length()) // 8)
    return -(-size // step) * step


def _resize_rows(x: np.ndarray, size: int) -> np.ndarray:
    """Bilinear resize of axis 0 without antialiasing, half-pixel centres: (rows, ...) -> (size, ...).

    Positions are rounded as in PyTorch, to float32 after one multiply-add. Where rows / size is not exact in float32,
    exact positions would change logits with steep gradients by 5e-4.
    """
    scale = np.float64(np.float32(len(x) / size))
    position = np.maximum(np.float32(scale * (np.arange(size) + 0.5) - 0.5), 0)
    lower = np.minimum(position.astype(np.int64), len(x) - 1)
    upper = np.minimum(lower + 1, len(x) - 1)
    weight = np.minimum(position - lower.astype(np.float32), 1)[:, None]
    return x[lower] * (1 - weight) + x[upper] * weight
