"""Bilinear sampling of a feature map at fractional positions, with a gradient that is written out.

What was tried and what it took: results/speed.md.
"""

import functools
import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.custom_batching import sequential_vmap

from stablesam_jax.ops.forward_mode import written_gradient

Padding = Literal["border", "zeros"]
LANES = 16  # partial sums over channels, so that the compiler may use SIMD: it must not reorder one running sum


def bilinear_sample(features: jax.Array, positions: jax.Array, *, padding: Padding = "border") -> jax.Array:
    """Reads features at fractional positions.

    Equal to torch's `grid_sample(mode="bilinear", align_corners=True)` in values and in both gradients. On a cell,
    where the value has a kink, the gradient along an axis is that towards the next cell; with padding "border" it is
    zero on and beyond the border. Forward-mode differentiation (jvp) needs `forward_mode`.

    Args:
        features: (..., H, W, C).
        positions: (..., P, 2) or (..., H', W', 2), floating, (x, y) in cells: (0, 0) is the centre of the first cell,
            (W - 1, H - 1) that of the last. Any number of axes may be between the leading ones and the last. Leading
            axes equal those of features or are 1 on either side. Features of a picture that its prompts share are not
            copied, and their gradient is summed over prompts.
        padding: values outside the map: "border" repeats the border's, "zeros" falls to zero within a cell.

    Returns:
        (..., P, C) or (..., H', W', C), in the dtype of features. Weights and sums have the dtype of positions:
        float32 positions interpolate features in bfloat16 with full precision.

    The sampling of sec. 4.2; "border" keeps p + delta p in {(0, 0), ..., (H - 1, W - 1)}.
    """
    *leading, height, width, channels = features.shape
    inner = positions.shape[len(leading) : -1]
    shape = (*jnp.broadcast_shapes(tuple(leading), positions.shape[: len(leading)]), *inner)
    picture = jnp.arange(math.prod(leading), dtype=jnp.int32).reshape(*leading, *[1] * len(inner))
    samples = _sample(
        features.reshape(-1, height, width, channels),
        jnp.broadcast_to(picture, shape).reshape(-1),
        jnp.broadcast_to(positions, (*shape, 2)).reshape(-1, 2),
        padding,
    )
    return samples.reshape(*shape, channels)


class _Axis(NamedTuple):
    """The two neighbours of M positions along one axis, or the only one of an axis of one cell."""

    start: jax.Array  # (M,) int32, the first
    weights: jax.Array  # (M, 2 or 1), their shares
    slopes: jax.Array  # (M, 2 or 1), the derivatives of these


def _neighbours(position: jax.Array, size: int, padding: Padding) -> _Axis:
    """(M,) positions in an axis of `size` cells."""
    inside = (position > 0) & (position < size - 1) if padding == "border" else jnp.ones(position.shape, bool)
    position = jnp.clip(position, 0, size - 1) if padding == "border" else position
    # Clipped as an integer: no position, be it NaN, leads out of the map.
    start = jnp.clip(jnp.floor(position).astype(jnp.int32), 0, max(size - 2, 0))
    cells = start[:, None] + jnp.arange(min(size, 2), dtype=jnp.int32)[None]
    beyond = position[:, None] - cells.astype(position.dtype)  # a cell weighs one on itself and nothing one cell away
    slopes = jnp.where((beyond >= -1) & (beyond < 0), 1, 0) - jnp.where((beyond >= 0) & (beyond < 1), 1, 0)
    weights = jnp.maximum(1 - jnp.abs(beyond), 0)
    return _Axis(start, weights, jnp.where(inside[:, None], slopes, 0).astype(position.dtype))


def _outer(y: jax.Array, x: jax.Array) -> jax.Array:
    """(M, rows), (M, columns) -> (M, rows, columns)."""
    return y[:, :, None] * x[:, None, :]


@written_gradient(nondiff_argnums=(3,))
def _sample(features: jax.Array, picture: jax.Array, positions: jax.Array, padding: Padding) -> jax.Array:
    """(R, H, W, C) features, (M,) index of each position's map, (M, 2) positions -> (M, C)."""
    _, height, width, _ = features.shape
    x, y = _neighbours(positions[:, 0], width, padding), _neighbours(positions[:, 1], height, padding)
    return _interpolated(features, picture, x, y)


@_sample.derive_from
def _sample_derived(features: jax.Array, picture: jax.Array, positions: jax.Array, padding: Padding) -> jax.Array:
    """The same with derivatives that are those of the written gradient, on a cell too."""

    def neighbours(position: jax.Array, size: int) -> _Axis:
        axis = _neighbours(jax.lax.stop_gradient(position), size, padding)
        move = (position - jax.lax.stop_gradient(position))[:, None]  # 0 with the derivative 1
        return axis._replace(weights=axis.weights + axis.slopes * move)

    _, height, width, _ = features.shape
    return _interpolated(features, picture, neighbours(positions[:, 0], width), neighbours(positions[:, 1], height))


def _interpolated(features: jax.Array, picture: jax.Array, x: _Axis, y: _Axis) -> jax.Array:
    """(R, H, W, C), (M,) -> (M, C)."""
    weights = _outer(y.weights, x.weights)
    samples = None
    for row, column in _corners(weights):
        corner = _rows(features, picture, y.start + row, x.start + column).astype(weights.dtype)
        term = corner * weights[:, row, column, None]
        samples = term if samples is None else samples + term
    assert samples is not None
    return samples.astype(features.dtype)


def _forward(features, picture, positions, padding):
    # Not the neighbours' features: four times the samples' memory, and read again in no time.
    return _sample(features, picture, positions, padding), (features, picture, positions)


def _backward(padding, saved, gradient):
    features, picture, positions = saved
    _, height, width, _ = features.shape
    x, y = _neighbours(positions[:, 0], width, padding), _neighbours(positions[:, 1], height, padding)
    gradient = gradient.astype(positions.dtype)
    starts = jnp.stack([picture, y.start, x.start], axis=-1)
    feature_gradient = jax.lax.platform_dependent(
        gradient,
        starts,
        _outer(y.weights, x.weights),
        cpu=functools.partial(spread_by_loop, features.shape),
        default=functools.partial(spread_by_scatter, features.shape),
    )
    products = jax.lax.platform_dependent(features, gradient, starts, cpu=products_by_loop, default=products_by_gather)
    position_gradient = jnp.stack(
        [
            jnp.sum(_outer(y.weights, x.slopes) * products, (1, 2)),
            jnp.sum(_outer(y.slopes, x.weights) * products, (1, 2)),
        ],
        axis=-1,
    )
    return feature_gradient.astype(features.dtype), None, position_gradient


_sample.defvjp(_forward, _backward)


def spread_by_scatter(shape: Sequence[int], gradient: jax.Array, starts: jax.Array, weights: jax.Array) -> jax.Array:
    """The features' gradient: every sample's gradient, weighted, added to its neighbours.

    Args:
        shape: (R, H, W, C).
        gradient: (M, C).
        starts: (M, 3) int32: map, row and column of the first neighbour.
        weights: (M, rows, columns), shares of the neighbours.

    Returns:
        (R, H, W, C).
    """
    picture, y, x = starts[:, 0], starts[:, 1], starts[:, 2]
    result = jnp.zeros(shape, gradient.dtype)
    for row, column in _corners(weights):
        result = result.at[picture, y + row, x + column].add(
            gradient * weights[:, row, column, None], mode="promise_in_bounds"
        )
    return result


def spread_by_loop(shape: Sequence[int], gradient: jax.Array, starts: jax.Array, weights: jax.Array) -> jax.Array:
    """The same, for processors: one sample after the other, where XLA's scatter writes all summands out first."""

    @sequential_vmap  # a loop over many samples at once would be a scatter again
    def spread(gradient: jax.Array, starts: jax.Array, weights: jax.Array) -> jax.Array:
        first_channel = jnp.int32(0)

        def add(sample: jax.Array, result: jax.Array) -> jax.Array:
            start = (*starts[sample], first_channel)
            share = weights[sample][None, :, :, None] * gradient[sample][None, None, None]
            window = jax.lax.dynamic_slice(result, start, share.shape)
            return jax.lax.dynamic_update_slice(result, window + share, start)

        return jax.lax.fori_loop(0, len(gradient), add, jnp.zeros(shape, gradient.dtype))

    return spread(gradient, starts, weights)


def products_by_gather(features: jax.Array, gradient: jax.Array, starts: jax.Array) -> jax.Array:
    """Inner products of every sample's gradient with its neighbours, of which the positions' gradient is made.

    Args:
        features: (R, H, W, C).
        gradient: (M, C).
        starts: as in `spread_by_scatter`.

    Returns:
        (M, rows, columns), in the dtype of gradient.
    """
    _, height, width, _ = features.shape
    picture, y, x = starts[:, 0], starts[:, 1], starts[:, 2]

    def product(row: int, column: int) -> jax.Array:
        neighbour = _rows(features, picture, y + row, x + column).astype(gradient.dtype)
        return jnp.sum(neighbour * gradient, axis=-1)

    return jnp.stack(
        [jnp.stack([product(row, column) for column in range(min(width, 2))], -1) for row in range(min(height, 2))], 1
    )


def products_by_loop(features: jax.Array, gradient: jax.Array, starts: jax.Array) -> jax.Array:
    """`products_by_gather` for CPUs: with LANES partial sums, since XLA would compute one running sum."""

    @sequential_vmap
    def products(features: jax.Array, gradient: jax.Array, starts: jax.Array) -> jax.Array:
        _, height, width, channels = features.shape
        window_shape = (1, min(height, 2), min(width, 2), channels)
        lanes = math.gcd(channels, LANES)
        first_channel = jnp.int32(0)
        partial_sums = jnp.zeros((len(gradient), *window_shape[1:3], lanes), gradient.dtype)

        def multiply(sample: jax.Array, result: jax.Array) -> jax.Array:
            window = jax.lax.dynamic_slice(features, (*starts[sample], first_channel), window_shape).astype(
                gradient.dtype
            )
            terms = (window * gradient[sample][None, None, None]).reshape(*window_shape[:3], -1, lanes)
            return jax.lax.dynamic_update_slice(result, terms.sum(axis=3), (sample, 0, 0, 0))

        return jax.lax.fori_loop(0, len(gradient), multiply, partial_sums).sum(axis=-1)

    return products(features, gradient, starts)


def _corners(weights: jax.Array) -> list[tuple[int, int]]:
    """Rows and columns of (M, rows, columns)."""
    return [(row, column) for row in range(weights.shape[1]) for column in range(weights.shape[2])]


def _rows(features: jax.Array, picture: jax.Array, y: jax.Array, x: jax.Array) -> jax.Array:
    """(R, H, W, C) at M places (R, H, W) inside the map: (M, C), by one flat gather."""
    _, height, width, channels = features.shape
    return features.reshape(-1, channels).at[(picture * height + y) * width + x].get(mode="promise_in_bounds")
