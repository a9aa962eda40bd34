"""Bilinear sampling of a feature map at fractional positions."""

import jax
import jax.numpy as jnp


def bilinear_sample(features: jax.Array, positions: jax.Array) -> jax.Array:
    """Reads features at fractional positions; outside the map the border's value goes on.

    Equal to torch's `grid_sample(mode="bilinear", padding_mode="border", align_corners=True)` in values and in both
    gradients: a position on or beyond the border of an axis has no gradient along that axis.

    Args:
        features: (..., H, W, C).
        positions: (..., P, 2) or (..., H', W', 2), floating, (x, y) in cells: (0, 0) is the centre of the first cell,
            (W - 1, H - 1) that of the last. Any number of axes may stand between the leading ones and the last.
            Leading axes equal those of features or are 1 on either side; a picture's features that are shared by its
            prompts are read where they lie, not repeated.

    Returns:
        (..., P, C) or (..., H', W', C), in the dtype of features. Weights and sums have the dtype of positions:
        float32 positions interpolate features in bfloat16 with full precision.

    Implements the sampling of sec. 4.2 (eq. 4), with p + delta p kept in {(0, 0), ..., (H - 1, W - 1)}.
    """
    *leading, height, width, channels = features.shape
    inner_axes = tuple(range(len(leading), positions.ndim - 1))
    first_row = jnp.arange(features.size // (height * width * channels), dtype=jnp.int32).reshape(leading)
    first_row = jnp.expand_dims(first_row * (height * width), inner_axes)
    rows = features.reshape(-1, channels)

    left, right, x_share = _neighbours(positions[..., 0], width)
    top, bottom, y_share = _neighbours(positions[..., 1], height)

    def term(y: jax.Array, x: jax.Array, weight: jax.Array) -> jax.Array:
        corner = rows.at[first_row + y * width + x].get(mode="promise_in_bounds")
        return corner.astype(weight.dtype) * weight[..., None]

    upper = term(top, left, (1 - y_share) * (1 - x_share)) + term(top, right, (1 - y_share) * x_share)
    lower = term(bottom, left, y_share * (1 - x_share)) + term(bottom, right, y_share * x_share)
    return (upper + lower).astype(features.dtype)


def _neighbours(position: jax.Array, size: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Cells before and after a position along one axis of `size` cells, and the share of the cell after."""
    # Not jnp.clip alone: its gradient on the border itself is one half, torch's is zero.
    inside = (position > 0) & (position < size - 1)
    position = jnp.where(inside, position, jax.lax.stop_gradient(jnp.clip(position, 0, size - 1)))
    before = jnp.floor(position)
    index = before.astype(jnp.int32)
    return index, jnp.minimum(index + 1, size - 1), position - before
