"""Prompts and their embeddings (segment_anything/modeling/prompt_encoder.py), in static shapes.

Points and boxes are one list of sparse tokens: a coordinate, a label, and a flag that says whether the token exists.
Absent tokens are never attended to, so padding a prompt to a longer list changes nothing.
"""

from collections.abc import Sequence

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from stablesam_jax.ops.gradients import gelu
from stablesam_jax.ops.layers import Conv, LayerNorm, parameter

NOT_A_POINT, NEGATIVE, POSITIVE, TOP_LEFT, BOTTOM_RIGHT = -1, 0, 1, 2, 3


@flax.struct.dataclass
class Prompts:
    """N prompts for each of B pictures, in the frame of the model's input."""

    coords: jax.Array  # (B, N, K, 2) float32, (x, y) in pixels of the model input
    labels: jax.Array  # (B, N, K) int32: -1 not a point, 0 background, 1 foreground, 2 and 3 the corners of a box
    valid: jax.Array  # (B, N, K) bool, False for padding
    masks: jax.Array | None = None  # (B, N, 4G, 4G) float32 logits
    masks_valid: jax.Array | None = None  # (B, N) bool, True where the prompt has a mask; given if masks is


def token_count(points: np.ndarray, box: np.ndarray | None) -> int:
    """How many tokens `sparse_tokens` makes of a prompt: a point is one, a box two, points without a box one more."""
    return len(points) + (min(len(points), 1) if box is None else 2)


def sparse_tokens(
    points: np.ndarray, labels: np.ndarray, box: np.ndarray | None, *, length: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tokens of one prompt by the official rules, padded to `length`.

    A box is two corner tokens after the points. Points without a box are followed by one token "not a point", which
    the model attends to. A prompt without points and box has no tokens.

    Args:
        points: (k, 2) float (x, y).
        labels: (k,) 0 for background, 1 for foreground, -1 for a token "not a point", whose coordinates mean nothing.
        box: (4,) XYXY or None.
        length: K, tokens after padding.

    Returns:
        coords (K, 2) float32, labels (K,) int32, valid (K,) bool.

    Raises:
        ValueError: more tokens than `length`, or a label other than -1, 0 and 1.
    """
    if not set(np.unique(labels)) <= {NOT_A_POINT, NEGATIVE, POSITIVE}:
        raise ValueError(
            "Point labels must be 1 (foreground), 0 (background) or -1 (not a point); "
            f"got {np.unique(labels).tolist()}."
        )
    coords = [np.reshape(points, (-1, 2))]
    kinds = list(labels)
    if box is not None:
        coords.append(np.reshape(box, (2, 2)))
        kinds += [TOP_LEFT, BOTTOM_RIGHT]
    elif kinds:
        coords.append(np.zeros((1, 2)))
        kinds += [NOT_A_POINT]
    count = len(kinds)
    if count > length:
        raise ValueError(f"The prompt has {count} tokens, more than the given length {length}.")
    padded_coords = np.zeros((length, 2), np.float32)
    padded_coords[:count] = np.concatenate(coords)
    padded_labels = np.full(length, NOT_A_POINT, np.int32)
    padded_labels[:count] = kinds
    return padded_coords, padded_labels, np.arange(length) < count


class PositionEmbeddingRandom(nn.Module):
    """Random Fourier features of a coordinate; the Gaussian matrix is a constant of each checkpoint."""

    width: int

    @nn.compact
    def __call__(self, coords: jax.Array) -> jax.Array:
        """(..., 2) coordinates (x, y) in 0..1 -> (..., width), sines first; always computed at full precision."""
        gaussian = parameter(
            self, "positional_encoding_gaussian_matrix", nn.initializers.normal(1.0), (2, self.width // 2)
        )
        gaussian = jax.lax.stop_gradient(gaussian)  # a buffer in PyTorch: saved, never trained
        angles = 2 * np.pi * jnp.matmul(2 * coords - 1, gaussian, precision=jax.lax.Precision.HIGHEST)
        return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


class PromptEncoder(nn.Module):
    """Sparse tokens and masks to embeddings."""

    width: int
    grid_size: int
    image_size: int

    def setup(self):
        def embedding(name: str) -> jax.Array:
            return parameter(self, name, nn.initializers.normal(1.0), (1, self.width))

        self.pe_layer = PositionEmbeddingRandom(self.width)
        self.point_embeddings = [embedding(f"point_embeddings_{label}") for label in range(4)]
        self.not_a_point_embed = embedding("not_a_point_embed")
        self.no_mask_embed = embedding("no_mask_embed")
        self.mask_downscaling: Sequence[nn.Module] = [
            Conv(4, 2, stride=2, name="mask_downscaling_0"),
            LayerNorm(name="mask_downscaling_1"),
            Conv(16, 2, stride=2, name="mask_downscaling_3"),
            LayerNorm(name="mask_downscaling_4"),
            Conv(self.width, 1, name="mask_downscaling_6"),
        ]

    def __call__(self, prompts: Prompts) -> tuple[jax.Array, jax.Array]:
        """Embeds prompts.

        Args:
            prompts: see `Prompts`.

        Returns:
            sparse_prompt_embeddings (B, N, K, C), and dense_prompt_embeddings (B, N, G, G, C) with masks or
            (1, 1, G, G, C) without: the same for every prompt, so it is not repeated.
        """
        sparse = self._embed_tokens(prompts.coords, prompts.labels)
        no_mask = jnp.broadcast_to(
            self.no_mask_embed.reshape(1, 1, 1, 1, -1), (1, 1, self.grid_size, self.grid_size, self.width)
        )
        if prompts.masks is None:
            return sparse, no_mask
        if prompts.masks_valid is None:
            raise ValueError("Prompts with masks need masks_valid, (B, N) bool.")
        dense = self._embed_masks(prompts.masks)
        return sparse, jnp.where(prompts.masks_valid[:, :, None, None, None], dense, no_mask)

    def get_dense_pe(self) -> jax.Array:
        """image_pe: (1, 1, G, G, C) positional encoding of the cells' centres."""
        centres = jnp.arange(0.5, self.grid_size, dtype=self.no_mask_embed.dtype) / self.grid_size
        middle = jnp.full_like(centres, 0.5)  # where a coordinate adds nothing to the angle
        along_x = self.pe_layer(jnp.stack([centres, middle], axis=-1))[None]
        along_y = self.pe_layer(jnp.stack([middle, centres], axis=-1))[:, None]
        # The sine of a sum from sines of its parts: 2 G sines for each channel, where G^2 take as long as a layer.
        (sin_x, cos_x), (sin_y, cos_y) = (jnp.split(part, 2, axis=-1) for part in (along_x, along_y))
        parts = [sin_x * cos_y + cos_x * sin_y, cos_x * cos_y - sin_x * sin_y]
        return jnp.concatenate(parts, axis=-1)[None, None]

    def _embed_tokens(self, coords: jax.Array, labels: jax.Array) -> jax.Array:
        # Coordinates name pixels by their corner; the encoding is of the pixel's centre.
        encoding = self.pe_layer((coords + 0.5) / self.image_size)
        encoding = jnp.where((labels == NOT_A_POINT)[..., None], jnp.zeros_like(encoding), encoding)
        table = jnp.concatenate([self.not_a_point_embed, *self.point_embeddings])
        return encoding + table[labels + 1]

    def _embed_masks(self, masks: jax.Array) -> jax.Array:
        batch, prompts, height, width = masks.shape
        x = masks.reshape(batch * prompts, height, width, 1)
        conv_0, norm_1, conv_3, norm_4, conv_6 = self.mask_downscaling
        x = gelu(norm_1(conv_0(x)))
        x = gelu(norm_4(conv_3(x)))
        return conv_6(x).reshape(batch, prompts, self.grid_size, self.grid_size, self.width)
