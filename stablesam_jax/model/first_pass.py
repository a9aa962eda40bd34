"""Which prompts SAM alone gives a poor mask for, estimated from that mask.

Not in the paper. Its router reads the token of the single mask, which hardly tells a sloppy box from a true one
(`eval.main alpha`). Whether a mask fits the box that it was asked with does.
"""

import jax
import jax.numpy as jnp

from stablesam_jax.model.mask_decoder import Masks
from stablesam_jax.model.prompt_encoder import BOTTOM_RIGHT, TOP_LEFT, Prompts


def poor_masks(masks: Masks, prompts: Prompts, image_size: int, limits: tuple[float, float]) -> jax.Array:
    """Estimates for each prompt whether its mask without the plugin is poor.

    Args:
        masks: single masks of N prompts of B pictures.
        prompts: the prompts.
        image_size: side of the model's input in pixels.
        limits: `PluginConfig.first_pass`: of the fit, for prompts with a box, and of predicted IoU, for others.

    Returns:
        (B, N) float32, 1 below the limit, 0 else; without a gradient.
    """
    fit_limit, iou_limit = limits
    top_left, bottom_right = (_corner(prompts, label) for label in (TOP_LEFT, BOTTOM_RIGHT))
    has_box = jnp.any((prompts.labels == TOP_LEFT) & prompts.valid, axis=2)
    fit = _box_iou(mask_boxes(masks.low_res_masks[:, :, 0], image_size), jnp.concatenate([top_left, bottom_right], -1))
    below = jnp.where(has_box, fit < fit_limit, masks.iou_predictions[:, :, 0] < iou_limit)
    return jax.lax.stop_gradient(below.astype(jnp.float32))


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
