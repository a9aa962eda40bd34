"""Self-attention over a map, one form per kind of device; equal up to rounding.

With decomposed relative positions: Attention in segment_anything/modeling/image_encoder.py. The logit of query q at
cell (r, c) and key k at cell (r', c') is q . k / sqrt(D) + q . rel_pos_h[r - r'] + q . rel_pos_w[c - c']. Without:
MultiScaleAttention in sam2/modeling/backbones/hieradet.py.
"""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from stablesam_jax.ops.layers import computes_on_cpu, dense, parameter, softmax
from stablesam_jax.ops.numerics import einsum, to_float32

QUERIES = 512  # queries of a head that are processed at a time on a CPU
LOGITS = 4096**2  # logits of a head in memory at a time on an accelerator: those of a whole map at 1,024 px
FLASH_WIDTH, FLASH_MULTIPLE = 256, 8  # cuDNN takes heads of at most 256 channels, in multiples of 8


def places(height: int, width: int) -> np.ndarray:
    """Row and column of every cell as one-hot vectors, to append to the keys.

    With (q . rel_pos_h, q . rel_pos_w) for all rows and columns appended to the queries, one matmul of queries and keys
    gives logits that contain the relative positions.

    Args:
        height: cells of the map.
        width: the same.

    Returns:
        (H, W, H + W) float32.
    """
    cells = (height, width)
    rows, columns = np.eye(height, dtype=np.float32)[:, None], np.eye(width, dtype=np.float32)
    return np.concatenate([np.broadcast_to(axis, (*cells, axis.shape[-1])) for axis in (rows, columns)], axis=-1)


class QKV(nn.Module):
    """Kernel and bias of the projection to queries, keys and values, split by head.

    Three matmuls per head take less time than one matmul whose output is transposed to heads.
    """

    heads: int
    heads_outermost: bool = (
        False  # order of the official channels: False (q, k, v; head), as the ViT; True (head; q, k, v)
    )

    @nn.compact
    def __call__(self, channels: int, width: int | None = None) -> tuple[jax.Array, jax.Array]:
        """Channels C, and heads * D if that is not C, -> (heads, 3, C, D) kernel, (heads, 3, D) bias."""
        width = channels if width is None else width
        kernel = parameter(self, "kernel", nn.initializers.lecun_normal(), (channels, 3 * width))
        bias = parameter(self, "bias", nn.initializers.zeros, (3 * width,))
        order = (self.heads, 3) if self.heads_outermost else (3, self.heads)
        kernel, bias = (leaf.reshape(*leaf.shape[:-1], *order, width // self.heads) for leaf in (kernel, bias))
        if not self.heads_outermost:
            kernel, bias = (leaf.swapaxes(-3, -2) for leaf in (kernel, bias))
        return jnp.moveaxis(kernel, 0, 2), bias


def attend_by_head(x: jax.Array, kernel: jax.Array, bias: jax.Array, rows: jax.Array, columns: jax.Array) -> jax.Array:
    """Self-attention on a CPU: one head and a few rows of queries at a time, so that logits stay in its cache.

    Args:
        x: (B, H, W, C).
        kernel: (heads, 3, C, D), see `QKV`.
        bias: (heads, 3, D).
        rows: (H, H, D), see `relative_position_table`.
        columns: (W, W, D).

    Returns:
        (B, H, W, heads, D).
    """
    batch, height, width, _ = x.shape
    head_width = kernel.shape[-1]
    step = max(n for n in range(1, height + 1) if height % n == 0 and (n == 1 or n * width <= QUERIES))
    rows = rows.reshape(height // step, step, height, head_width)
    folds = height + width < head_width  # in windows; over a whole map H + W would triple the width of the matmul

    def attend(head: tuple[jax.Array, jax.Array]) -> jax.Array:
        kernels, biases = head
        q, k, v = (dense(x, kernels[part], biases[part]) for part in range(3))  # (B, H, W, D)
        if folds:
            of_keys = jnp.broadcast_to(places(height, width), (*k.shape[:3], height + width))
            k = jnp.concatenate([to_float32(k), of_keys.astype(to_float32(k).dtype)], axis=-1)
            k, v = (keys.reshape(batch, height * width, -1) for keys in (k, v))

        def attend_rows(queries: tuple[jax.Array, jax.Array]) -> jax.Array:
            q, rows = queries  # (B, step, W, D), not yet divided by sqrt(D); (step, H, D)
            by_row = einsum("brwd,rkd->brwk", q, rows).reshape(batch, -1, height)
            by_column = einsum("brwd,wld->brwl", q, columns).reshape(batch, -1, width)
            q = (q * head_width**-0.5).reshape(batch, -1, head_width)
            if folds:
                logits = einsum("bqd,bkd->bqk", jnp.concatenate([to_float32(q), by_row, by_column], axis=-1), k)
            else:
                # Keys keep two axes: with one, XLA adds the positions element by element instead of by broadcast.
                logits = einsum("bqd,bkld->bqkl", q, k) + by_row[..., None] + by_column[..., None, :]
            keys = tuple(range(2, logits.ndim))
            largest = jax.lax.stop_gradient(logits.max(axis=keys, keepdims=True))  # cancels
            weights = jnp.exp(logits - largest)
            attended = einsum("bq...,b...d->bqd", weights.astype(v.dtype), v)
            attended = attended / weights.sum(axis=keys)[..., None]
            return attended.astype(v.dtype).reshape(batch, step, width, head_width)

        grid = q.reshape(batch, height // step, step, width, head_width).swapaxes(0, 1)
        attended = jax.lax.map(attend_rows, (grid, rows))  # (H / step, B, step, W, D)
        return attended.swapaxes(0, 1).reshape(batch, height, width, head_width)

    # One head at a time: a global block of ViT-H would otherwise hold 1 GiB of logits.
    return jax.lax.map(attend, (kernel, bias)).transpose(1, 2, 3, 0, 4)


def attend_at_once(x: jax.Array, kernel: jax.Array, bias: jax.Array, rows: jax.Array, columns: jax.Array) -> jax.Array:
    """Self-attention on an accelerator: all heads and queries at once; arguments and result as of `attend_by_head`.

    Uses cuDNN's flash attention where that is possible, with the relative positions folded into queries and keys (see
    `places`), so that logits are never in memory. Elsewhere it holds the logits of one whole map, or of as many windows
    as together have as many logits.
    """
    batch, height, width, _ = x.shape
    heads, _, _, head_width = kernel.shape
    kernel, bias = kernel.astype(x.dtype), bias.astype(x.dtype)
    q, k, v = (
        einsum("bhwc,ncd->bhwnd", x, kernel[:, part]).astype(x.dtype) + bias[None, None, None, :, part]
        for part in range(3)
    )
    by_row = einsum("brwnd,rkd->brwnk", q, rows)
    by_column = einsum("brwnd,wld->brwnl", q, columns)
    q = q * head_width**-0.5
    if flash_takes(x.dtype, head_width + height + width):
        of_keys = jnp.broadcast_to(places(height, width)[None, :, :, None], (*k.shape[:-1], height + width))
        q = jnp.concatenate([q, by_row.astype(q.dtype), by_column.astype(q.dtype)], axis=-1)
        k = jnp.concatenate([k, of_keys.astype(k.dtype)], axis=-1)
        # cuDNN wants values as wide as keys: pad with zeros, and cut them off the result.
        padded = -(-q.shape[-1] // FLASH_MULTIPLE) * FLASH_MULTIPLE
        q, k, v = (
            jnp.pad(part, [(0, 0)] * 4 + [(0, padded - part.shape[-1])]).reshape(batch, -1, heads, padded)
            for part in (q, k, v)
        )
        with jax.numpy_dtype_promotion("standard"):  # dot_product_attention itself mixes dtypes
            attended = jax.nn.dot_product_attention(q, k, v, scale=1.0, implementation="cudnn")
        return attended[..., :head_width].reshape(batch, height, width, heads, head_width)

    def attend(parts: tuple[jax.Array, ...]) -> jax.Array:
        q, k, v, by_row, by_column = parts
        logits = einsum("rwnd,klnd->nrwkl", q, k)
        logits = logits + by_row.transpose(2, 0, 1, 3)[..., None] + by_column.transpose(2, 0, 1, 3)[..., None, :]
        weights = softmax(logits.reshape(*logits.shape[:3], -1), v.dtype).reshape(logits.shape)
        return einsum("nrwkl,klnd->rwnd", weights, v).astype(v.dtype)

    together = max(1, LOGITS // (height * width) ** 2)
    return jax.lax.map(attend, (q, k, v, by_row, by_column), batch_size=min(together, batch))


def attend_to_cells(
    x: jax.Array, kernel: jax.Array, bias: jax.Array, pool: Callable[[jax.Array], jax.Array] | None
) -> jax.Array:
    """Self-attention without relative positions, on any device, a part of the logits at a time.

    Args:
        x: (B, H, W, C).
        kernel: (heads, 3, C, D), see `QKV`.
        bias: (heads, 3, D).
        pool: of the queries, (B, H, W, D) -> (B, H', W', D).

    Returns:
        (B, H', W', heads, D).
    """
    batch, height, width, _ = x.shape

    def project(head: tuple[jax.Array, jax.Array]) -> list[jax.Array]:
        q, k, v = (dense(x, head[0][part], head[1][part]) for part in range(3))
        return [pool(q) if pool else q, k, v]

    if flash_takes(x.dtype, kernel.shape[-1]):
        q, k, v = jax.vmap(project, out_axes=3)((kernel, bias))  # (B, H, W, heads, D)
        cells = (part.reshape(batch, -1, *part.shape[3:]) for part in (q, k, v))
        with jax.numpy_dtype_promotion("standard"):  # dot_product_attention itself mixes dtypes
            return jax.nn.dot_product_attention(*cells, implementation="cudnn").reshape(q.shape)

    def attend(head: tuple[jax.Array, jax.Array]) -> jax.Array:
        q, k, v = project(head)
        shape, channels = q.shape, q.shape[-1]
        q = q * channels**-0.5
        k, v = (part.reshape(batch, -1, channels) for part in (k, v))
        queries = shape[1] * shape[2]
        most = QUERIES if computes_on_cpu() else LOGITS // (height * width)
        step = max(n for n in range(1, shape[1] + 1) if shape[1] % n == 0 and (n == 1 or n * shape[2] <= most))

        def attend_rows(q: jax.Array) -> jax.Array:
            logits = einsum("bqd,bkd->bqk", q, k)
            weights = jnp.exp(logits - jax.lax.stop_gradient(logits.max(axis=-1, keepdims=True)))  # cancels
            attended = einsum("bqk,bkd->bqd", weights.astype(v.dtype), v) / weights.sum(axis=-1)[..., None]
            return attended.astype(v.dtype)

        rows = q.reshape(batch, shape[1] // step, step * shape[2], channels).swapaxes(0, 1)
        return jax.lax.map(attend_rows, rows).swapaxes(0, 1).reshape(batch, queries, channels).reshape(shape)

    return jnp.moveaxis(jax.lax.map(attend, (kernel, bias)), 0, 3)


def flash_takes(dtype: np.dtype, channels: int) -> bool:
    """Whether cuDNN's flash attention is used: in half precision on Hopper and later, for heads of up to 256 channels.

    Earlier GPUs take heads of up to 128 channels, which is too few for a whole map with positions folded in.
    """
    device = jax.devices()[0]
    hopper = "NVIDIA" in device.device_kind and float(device.compute_capability) >= 9
    return hopper and dtype.itemsize == 2 and channels <= FLASH_WIDTH
