"""Depthwise convolution as a sum of shifted products, with its gradient written out. Sums are float32 at least."""

import jax
import jax.numpy as jnp

from stablesam_jax.ops.forward_mode import written_gradient
from stablesam_jax.ops.numerics import broadcast_channels, to_float32


def depthwise_conv(x: jax.Array, kernel: jax.Array, *, stride: int = 1, padding: int | None = None) -> jax.Array:
    """Convolves every channel with its own k x k kernel, with zeros around the map.

    XLA on the CPU runs a grouped convolution 20 to 50 times slower than these k * k multiply-adds, which it fuses
    into one pass over the map. The gradient that JAX derives is the same sum, but XLA fuses its k * k reductions into
    a loop that takes three to five times as long on the CPU. Forward-mode differentiation (jvp) needs
    `forward_mode`.

    Args:
        x: (..., H, W, C) features.
        kernel: (k, k, C), k odd.
        stride: step between outputs in cells, along both axes.
        padding: zeros on every side, as in PyTorch; by default "SAME" as in TensorFlow and Flax: ceil(size / stride)
            outputs, and with a stride one more zero at the end than at the beginning.

    Returns:
        (..., H', W', C), the sum over the kernel of shifted x times weight.
    """
    if padding is None:
        totals = [max((-(-size // stride) - 1) * stride + kernel.shape[0] - size, 0) for size in x.shape[-3:-1]]
        zeros = [(total // 2, total - total // 2) for total in totals]
    else:
        zeros = [(padding, padding)] * 2
    return _convolve(jnp.pad(x, [(0, 0)] * (x.ndim - 3) + zeros + [(0, 0)]), kernel, stride)


@written_gradient(nondiff_argnums=(2,))
def _convolve(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """The convolution without padding: (..., H, W, C) -> (..., (H - k) // stride + 1, ..., C)."""
    k = kernel.shape[0]
    rows, columns = (size - k + 1 for size in x.shape[-3:-1])

    def shifted(row: int, column: int) -> jax.Array:
        cells = to_float32(x[..., row : row + rows : stride, column : column + columns : stride, :])
        return cells * broadcast_channels(kernel[row, column], cells)

    # An explicit loop, not sum(): 0 + array would promote a Python int first.
    result = shifted(0, 0)
    for index in range(1, k * k):
        result = result + shifted(*divmod(index, k))
    return result.astype(x.dtype)


def _forward(x, kernel, stride):
    return _convolve(x, kernel, stride), (x, kernel)


def _backward(stride, saved, gradient):
    x, kernel = saved
    k = kernel.shape[0]
    batch, spans = x.shape[:-3], [(size - 1) * stride + 1 for size in gradient.shape[-3:-1]]

    def kernel_gradient(tap: jax.Array) -> jax.Array:
        corner = (0,) * len(batch) + (tap // k, tap % k, 0)
        window = jax.lax.dynamic_slice(x, corner, (*batch, *spans, x.shape[-1]))
        products = to_float32(window[..., ::stride, ::stride, :]) * to_float32(gradient)
        return products.sum(axis=tuple(range(x.ndim - 1)))

    # One tap at a time: XLA on the CPU vectorises a single reduction, but not 25 fused ones.
    taps = jax.lax.map(kernel_gradient, jnp.arange(k * k))

    # The transposed convolution: gradients, spread by the stride with zeros between them, and the flipped kernel.
    spread = [(k - 1, size - span, stride - 1) for size, span in zip(x.shape[-3:-1], spans, strict=True)]
    none = (0, 0, 0)
    turned = jax.lax.pad(gradient, jnp.zeros((), gradient.dtype), [none] * len(batch) + spread + [none])
    return _convolve(turned, kernel[::-1, ::-1], 1), taps.reshape(kernel.shape).astype(kernel.dtype)


_convolve.defvjp(_forward, _backward)
