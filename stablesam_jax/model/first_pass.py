"""Which prompts SAM alone gives a poor mask for, estimated from that mask.

Not in the paper. Its router reads the token of the single mask, which hardly tells a sloppy box from a true one
(`eval.main alpha`). Whether a mask fits the box that it was asked with does.
"""

import jax
import jax.numpy as jnp

from stablesam_jax.config import FirstPass
from stablesam_jax.model.mask_decoder import Masks
from stablesam_jax.model.prompt_encoder import BOTTOM_RIGHT, TOP_LEFT, Prompts


def poor_masks(masks: Masks, prompts: Prompts, image_size: int, limits: FirstPass) -> jax.Array:
    """Estimates for each prompt whether its mask without the plugin is poor.

    Args:
        masks: of N prompts of B pictures, the single one first.
        prompts: the prompts.
        image_size: side of the model's input in pixels.
        limits: `fit` and `predicted_iou` are used.

    Returns:
        (B, N) float32, 1 for a poor mask, 0 else; without a gradient.
    """
    has_box, fits = _fits(masks, prompts, image_size)
    below = jnp.where(has_box, fits < limits.fit, masks.iou_predictions[:, :, 0] < limits.predicted_iou)
    return jax.lax.stop_gradient(below.astype(jnp.float32))


def better_masks(after: Masks, before: Masks, prompts: Prompts, image_size: int, limits: FirstPass) -> jax.Array:
    """Tells for each prompt whether the plugin's mask may replace the one before: it has not run away from its box.

    Args:
        after, before: of N prompts, with and without the plugin; the single mask is the first.
        prompts, image_size: see `poor_masks`.
        limits: `least_fit` and `lost_fit` are used.

    Returns:
        (B, N) float32, 1 if it may, as always without a box; without a gradient.
    """
    has_box, fits = _fits(after, prompts, image_size)
    _, earlier = _fits(before, prompts, image_size)
    near = (fits >= limits.least_fit) & (fits >= earlier - limits.lost_fit)
    return jax.lax.stop_gradient((near | ~has_box).astype(jnp.float32))


def _fits(masks: Masks, prompts: Prompts, image_size: int) -> tuple[jax.Array, jax.Array]:
    """Which prompts have a box, (B, N) bool, and its IoU with the box around the single mask, (B, N) float32."""
    top_left, bottom_right = (_corner(prompts, label) for label in (TOP_LEFT, BOTTOM_RIGHT))
    has_box = jnp.any((prompts.labels == TOP_LEFT) & prompts.valid, axis=2)
    boxes = jnp.concatenate([top_left, bottom_right], axis=-1)
    return has_box, _box_iou(mask_boxes(masks.low_res_masks[:, :, 0], image_size), boxes)


def mask_boxes(low_res_masks: jax.Array, image_size: int) -> jax.Array:
    """The boxes around masks, in pixels of the model's input.

    Args:
        low_res_masks: (..., 4G, 4G) logits; above 0 is foreground.
        image_size: side of the input.

    Returns:
        (..., 4) float32 XYXY, first and last pixel that the foreground covers; of an empty mask no area.
    """
    foreground = low_res_masks > 0
    side = foreground.shape[-1]
    scale = image_size / side
    edges = []
    for axis in (-2, -1):  # columns, then rows
        line = jnp.any(foreground, axis=axis)
        first = jnp.argmax(line, axis=-1).astype(jnp.float32) * scale
        last = (side - jnp.argmax(line[..., ::-1], axis=-1)).astype(jnp.float32) * scale - 1
        edges.append((first, jnp.where(jnp.any(line, axis=-1), last, first)))
    (left, right), (top, bottom) = edges
    return jnp.stack([left, top, right, bottom], axis=-1)


def _corner(prompts: Prompts, label: int) -> jax.Array:
    """(B, N, 2) float32, a corner of the box; 0 where there is no box."""
    is_corner = (prompts.labels == label) & prompts.valid
    return jnp.sum(jnp.where(is_corner[..., None], prompts.coords, 0), axis=2).astype(jnp.float32)


def _box_iou(a: jax.Array, b: jax.Array) -> jax.Array:
    """(B, N, 4) XYXY -> (B, N); 0 where both have no area."""
    sides = jnp.maximum(jnp.minimum(a[..., 2:], b[..., 2:]) - jnp.maximum(a[..., :2], b[..., :2]), 0)
    shared = jnp.prod(sides, axis=-1)
    areas = [jnp.prod(jnp.maximum(box[..., 2:] - box[..., :2], 0), axis=-1) for box in (a, b)]
    union = areas[0] + areas[1] - shared
    return jnp.where(union > 0, shared / jnp.maximum(union, 1e-6), 0.0)
