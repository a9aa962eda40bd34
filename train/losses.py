"""Losses on mask logits: HQ-SAM's and the paper's, at points or at all pixels, and SAM's for pre-training."""

import jax
import jax.numpy as jnp
import optax

from stablesam_jax.plugin.sampling import bilinear_sample

POINTS = 112 * 112  # P, points per mask (HQ-SAM, train/utils/loss_mask.py; PointRend)
OVERSAMPLING = 3  # uniform candidates per point
IMPORTANT = 0.75  # share of the points with the logits closest to 0 among candidates; the others are uniform
FOCAL_WEIGHT = 20.0  # focal : dice = 20 : 1 (SAM paper, sec. 3)


def dice_loss(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """1 - (2 sum(p t) + 1) / (sum p + sum t + 1) over the last axis.

    Args:
        logits: (..., P) of the probability p.
        targets: (..., P) t in 0..1.

    Returns:
        (...).
    """
    probs = jax.nn.sigmoid(logits)
    overlap = (probs * targets).sum(axis=-1)
    return 1 - (2 * overlap + 1) / (probs.sum(axis=-1) + targets.sum(axis=-1) + 1)


def sample_points(rng: jax.Array, logits: jax.Array) -> jax.Array:
    """Positions at which a mask is compared with its target, most of them where the logit is closest to 0.

    Args:
        rng: key.
        logits: (h, w) of one mask.

    Returns:
        (POINTS, 2) positions (x, y) in 0..1 of the picture. No gradient flows through the choice.
    """
    candidates_rng, uniform_rng = jax.random.split(rng)
    candidates = jax.random.uniform(candidates_rng, (OVERSAMPLING * POINTS, 2))
    certainty = jnp.abs(sample_at(jax.lax.stop_gradient(logits), candidates))
    important = int(IMPORTANT * POINTS)
    _, chosen = jax.lax.top_k(-certainty, important)
    uniform = jax.random.uniform(uniform_rng, (POINTS - important, 2))
    return jnp.concatenate([candidates[chosen], uniform])


def sample_at(maps: jax.Array, positions: jax.Array) -> jax.Array:
    """Bilinear values of a (h, w) map at (P, 2) positions (x, y) in 0..1, pixel centres at halves: (P,).

    Within half a pixel of the border the border's value is constant; HQ-SAM pads with zeros there.
    """
    size = jnp.array([maps.shape[::-1]], jnp.float32)
    return bilinear_sample(maps[..., None], positions * size - 0.5)[..., 0]


def point_sampled_loss(rng: jax.Array, logits: jax.Array, targets: jax.Array) -> jax.Array:
    """Cross entropy plus dice, 1 : 1, at sampled points (sec. 9; HQ-SAM, loss_mask.py).

    Args:
        rng: (...) keys, one for each mask.
        logits: (..., h, w) low-resolution logits.
        targets: (..., S, S) bool or 0..1.

    Returns:
        (...) loss of each mask.
    """

    def one(rng: jax.Array, logits: jax.Array, target: jax.Array) -> jax.Array:
        positions = sample_points(rng, logits)
        sampled = sample_at(logits, positions)
        truth = sample_at(target.astype(jnp.float32), positions)
        cross_entropy = optax.sigmoid_binary_cross_entropy(sampled, truth).mean()
        return cross_entropy + dice_loss(sampled, truth)

    flat = rng.reshape(-1), logits.reshape(-1, *logits.shape[-2:]), targets.reshape(-1, *targets.shape[-2:])
    return jax.vmap(one)(*flat).reshape(rng.shape)


def full_resolution_loss(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """Cross entropy plus dice, 1 : 1, at every pixel of the target, hence without sampling noise.

    Args:
        logits: (..., h, w) low-resolution logits, enlarged bilinearly as in prediction.
        targets: (..., S, S) bool or 0..1.

    Returns:
        (...) loss of each mask.
    """
    enlarged = jax.image.resize(logits, targets.shape, "linear")
    flat, truth = (maps.reshape(*maps.shape[:-2], -1) for maps in (enlarged, targets.astype(jnp.float32)))
    return optax.sigmoid_binary_cross_entropy(flat, truth).mean(axis=-1) + dice_loss(flat, truth)


def pretraining_loss(logits: jax.Array, iou_predictions: jax.Array, targets: jax.Array) -> jax.Array:
    """SAM's loss on whole low-resolution maps: focal and dice, plus the squared error of the predicted IoU.

    The loss counts the single mask, and of the three masks of multimask_output the one with the lowest loss, so that
    they specialise (SAM paper, sec. 3; there a prompt trains either one or three masks, here both in one pass).

    Args:
        logits: (..., 4, h, w).
        iou_predictions: (..., 4).
        targets: (..., h, w) in 0..1, area-averaged to the maps' size.

    Returns:
        (...) loss of each prompt.
    """
    flat = logits.reshape(*logits.shape[:-2], -1)
    truth = jnp.broadcast_to(targets.reshape(*targets.shape[:-2], 1, -1), flat.shape)
    error = jnp.square(jax.nn.sigmoid(flat) - truth)
    focal = (error * optax.sigmoid_binary_cross_entropy(flat, truth)).mean(axis=-1)
    mask_loss = FOCAL_WEIGHT * focal + dice_loss(flat, truth)
    iou_loss = jnp.square(iou_predictions - mask_iou(flat, truth)).mean(axis=-1)
    single, three = mask_loss[..., 0], mask_loss[..., 1:]
    # Not `three.min`: its gradient divides by the number of losses that equal the least one. XLA may compute them again
    # with another rounding for that, none is equal then, and the gradient is 0 / 0.
    best = jnp.argmin(three, axis=-1, keepdims=True)
    return single + jnp.take_along_axis(three, best, axis=-1)[..., 0] + iou_loss


def mask_iou(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """IoU of thresholded logits with thresholded targets over the last axis: (..., P), (..., P) -> (...)."""
    predicted, truth = logits > 0, targets > 0.5
    union = (predicted | truth).sum(axis=-1)
    overlap = (predicted & truth).sum(axis=-1)
    return overlap.astype(jnp.float32) / jnp.maximum(union, 1).astype(jnp.float32)
