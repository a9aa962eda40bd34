"""Operations with hand-written gradients, where those that JAX derives are slow on the CPU; equal up to rounding.

Forward-mode differentiation (jvp) of them needs `forward_mode`.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np

from stablesam_jax.ops.forward_mode import written_gradient
from stablesam_jax.ops.numerics import broadcast_channels, einsum, to_float32

PATCHES = 512  # cells whose patches are in memory at a time: 0.6 MB at 288 values each, which fit the L2 cache


@written_gradient(nondiff_argnums=(3,))
def layer_norm(x: jax.Array, scale: jax.Array, bias: jax.Array, eps: float) -> jax.Array:
    """Normalises the last axis, then applies a scale and a bias per channel.

    The variance is computed in two passes: residual streams of ViTs have channels with a large common offset, where
    E[x^2] - E[x]^2 loses up to four digits.

    The backward pass works on a matrix (rows, C): on arrays with more axes XLA takes two to five times as long.

    Args:
        x: (..., C).
        scale, bias: (C,).
        eps: added to the variance.

    Returns:
        (..., C) in the dtype of x.
    """
    normed, _ = _normed(x, eps)
    return (normed * broadcast_channels(scale, normed) + broadcast_channels(bias, normed)).astype(x.dtype)


def _normed(x: jax.Array, eps: float) -> tuple[jax.Array, jax.Array]:
    """(..., C) -> the same with mean 0 and variance 1, float32 or wider, and the factor 1 / deviation (..., 1)."""
    values = to_float32(x)
    centred = values - values.mean(axis=-1, keepdims=True)
    factor = jax.lax.rsqrt(jnp.square(centred).mean(axis=-1, keepdims=True) + eps)
    return centred * factor, factor


def _layer_norm_forward(x, scale, bias, eps):
    return layer_norm(x, scale, bias, eps), (x, scale, bias)


def _layer_norm_backward(eps, saved, gradient):
    x, scale, bias = saved
    normed, factor = _normed(x.reshape(-1, x.shape[-1]), eps)
    gradient = to_float32(gradient).reshape(normed.shape)
    scaled = gradient * broadcast_channels(scale, gradient)
    along = scaled.mean(axis=-1, keepdims=True) + normed * (scaled * normed).mean(axis=-1, keepdims=True)
    of_x = (factor * (scaled - along)).reshape(x.shape)
    of_scale, of_bias = (gradient * normed).sum(axis=0), gradient.sum(axis=0)
    return of_x.astype(x.dtype), of_scale.astype(scale.dtype), of_bias.astype(bias.dtype)


layer_norm.defvjp(_layer_norm_forward, _layer_norm_backward)


@written_gradient(nondiff_argnums=(2, 3))
def convolve(x: jax.Array, kernel: jax.Array, stride: int, padding: int) -> jax.Array:
    """Convolves with zeros around the map, as PyTorch has it.

    On a CPU, with stride 1, the gradient of the kernel is a matmul of patches of the map with the gradient of the
    outputs, which takes a half to a fourth of the time of XLA's transposed convolution.

    Args:
        x: (B, H, W, C).
        kernel: (k, k, C, D).
        stride: step between outputs in cells, along both axes.
        padding: zeros on every side.

    Returns:
        (B, H', W', D).
    """
    return _convolve(x, kernel, stride, padding)


def _convolve(x: jax.Array, kernel: jax.Array, stride: int, padding: int) -> jax.Array:
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), ((padding, padding),) * 2, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def _convolve_forward(x, kernel, stride, padding):
    return _convolve(x, kernel, stride, padding), (x, kernel)


def _convolve_backward(stride, padding, saved, gradient):
    x, kernel = saved

    def of_both(x: jax.Array, kernel: jax.Array, gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
        return jax.vjp(lambda x, kernel: _convolve(x, kernel, stride, padding), x, kernel)[1](gradient)

    of_x, of_kernel = of_both(x, kernel, gradient)  # XLA drops the half that is not used
    if stride == 1:
        by_patches = functools.partial(_kernel_gradient, padding=padding)
        of_kernel = jax.lax.platform_dependent(
            x, kernel, gradient, cpu=by_patches, default=lambda *arrays: of_both(*arrays)[1]
        )
    return of_x, of_kernel


def _kernel_gradient(x: jax.Array, kernel: jax.Array, gradient: jax.Array, padding: int) -> jax.Array:
    """(B, H, W, C) map, (k, k, C, D), (B, H', W', D) gradient of the outputs -> (k, k, C, D)."""
    side, _, channels, width = kernel.shape
    _, height, columns, _ = gradient.shape
    rows = max(n for n in range(1, height + 1) if height % n == 0 and (n == 1 or n * columns <= PATCHES))
    padded = jnp.pad(x, [(0, 0), (padding, padding), (padding, padding), (0, 0)])

    def add(total: jax.Array, block: jax.Array) -> tuple[jax.Array, None]:
        corner = block // (height // rows), block % (height // rows) * rows, 0, 0
        cells = jax.lax.dynamic_slice(padded, corner, (1, rows + side - 1, padded.shape[2], channels))
        taps = itertools.product(range(side), repeat=2)
        patches = jnp.concatenate([cells[:, i : i + rows, j : j + columns] for i, j in taps], axis=-1)
        outputs = jax.lax.dynamic_slice(gradient, corner, (1, rows, columns, width))
        return total + einsum("bhwp,bhwd->pd", patches, outputs), None

    zeros = jnp.zeros((side * side * channels, width), to_float32(x).dtype)
    total, _ = jax.lax.scan(add, zeros, jnp.arange(len(x) * height // rows))
    return total.reshape(kernel.shape).astype(kernel.dtype)


convolve.defvjp(_convolve_forward, _convolve_backward)


@written_gradient()
def sum_of_taps(maps: jax.Array) -> jax.Array:
    """Sums nine maps, one per tap of a 3 x 3 convolution, each shifted by its tap: (..., H, W, 3, 3) -> (..., H, W).

    The maps are padded with zeros. The gradient is nine shifted copies; the one that JAX derives adds nine maps of
    zeros with one copy each.
    """
    *leading, height, width, _, _ = maps.shape
    padded = jnp.pad(maps, [(0, 0)] * len(leading) + [(1, 1)] * 2 + [(0, 0)] * 2)
    taps = itertools.product(range(3), repeat=2)
    first, *rest = (padded[..., i : i + height, j : j + width, i, j] for i, j in taps)
    return functools.reduce(jnp.add, rest, first)


def _sum_of_taps_backward(_, gradient):
    *leading, height, width = gradient.shape
    padded = jnp.pad(gradient, [(0, 0)] * len(leading) + [(1, 1)] * 2)
    taps = itertools.product(range(3), repeat=2)
    shifted = [padded[..., 2 - i : 2 - i + height, 2 - j : 2 - j + width] for i, j in taps]
    return (jnp.stack(shifted, axis=-1).reshape(*gradient.shape, 3, 3),)


sum_of_taps.defvjp(lambda maps: (sum_of_taps(maps), None), _sum_of_taps_backward)


@written_gradient()
def gelu(x: jax.Array) -> jax.Array:
    """The exact GELU, x (1 + erf(x / sqrt(2))) / 2 as PyTorch has it, computed in float32 at least.

    The tanh approximation differs by up to 5e-4, which a parity test detects. Flax's exact form uses erfc, which XLA on
    the CPU computes three times slower. The two differ only far below zero, by less than float32 rounding.

    The derivative is computed beside the value: in the backward pass XLA on the CPU fuses its exponential into loops
    that it does not vectorise.

    Args:
        x: (..., C).

    Returns:
        (..., C) in the dtype of x.
    """
    values = to_float32(x)
    return (0.5 * values * _twice_normal(values)).astype(x.dtype)


def _twice_normal(x: jax.Array) -> jax.Array:
    """Twice the cumulative distribution function of the standard normal distribution."""
    return 1 + jax.lax.erf(x * 0.5**0.5)


def _gelu_forward(x):
    values = to_float32(x)
    return gelu(x), 0.5 * _twice_normal(values) + values * jnp.exp(-0.5 * values**2) * (2 * np.pi) ** -0.5


def _gelu_backward(derivative, gradient):
    rows = to_float32(gradient).reshape(-1, gradient.shape[-1])  # of a matrix, as in `layer_norm`
    return ((rows * derivative.reshape(rows.shape)).reshape(gradient.shape).astype(gradient.dtype),)


gelu.defvjp(_gelu_forward, _gelu_backward)


@written_gradient()
def matmul(a: jax.Array, b: jax.Array) -> jax.Array:
    """a @ b in float32 at least, with the gradient of b in the order of b's axes.

    JAX derives that gradient with its last two axes swapped. XLA on the CPU fuses the swap into what follows, which
    then reads feature maps across their rows: a norm takes up to ten times as long.

    Args:
        a: (B, N, Q, K).
        b: (B, 1 or N, K, C).

    Returns:
        (B, N, Q, C).
    """
    return einsum("bnqk,bnkc->bnqc", a, b)


def _matmul_backward(saved, gradient):
    a, b = saved
    of_a = einsum("bnqc,bnkc->bnqk", gradient, b)
    of_b = einsum("bnqk,bnqc->bnkc", a, gradient) if b.shape[1] > 1 else einsum("bnqk,bnqc->bkc", a, gradient)[:, None]
    return of_a.astype(a.dtype), of_b.astype(b.dtype)


matmul.defvjp(lambda a, b: (matmul(a, b), (a, b)), _matmul_backward)
