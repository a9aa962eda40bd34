"""Simulated clicks of an interactive user in pre-training (SAM paper, appendix A)."""

import dataclasses

import jax
import jax.numpy as jnp

from stablesam_jax.model.prompt_encoder import NEGATIVE, NOT_A_POINT, POSITIVE, TOP_LEFT, Prompts

CORRECT = -30.0  # logit of a correct pixel, 0 for a wrong one; if all pixels are correct, the choice is uniform


def click_on_errors(rng: jax.Array, prompts: Prompts, logits: jax.Array, targets: jax.Array, *, size: int) -> Prompts:
    """Adds to each prompt a click where its mask is wrong, and the mask's logits as mask prompt.

    The click is drawn uniformly among the wrong pixels; its label is positive on the object and negative elsewhere. No
    gradient flows through it.

    Args:
        rng: (B, N) keys.
        prompts: that gave the masks, with `masks` and `masks_valid`.
        logits: (B, N, h, w) low-resolution logits of the single mask.
        targets: (B, N, h, w) 0..1.
        size: S, pixels of the model's input.

    Returns:
        prompts of K + 2 tokens: the click, and the token "not a point", valid where the prompt has neither box nor
        such a token yet.
    """
    logits = jax.lax.stop_gradient(logits)
    truth = targets > 0.5
    wrong = (logits > 0) != truth

    def choose(rng: jax.Array, wrong: jax.Array) -> jax.Array:
        return jax.random.categorical(rng, jnp.where(wrong.ravel(), 0.0, CORRECT))

    # The loss uses the same keys for its points; fold_in gives an independent stream.
    fold = jax.vmap(jax.vmap(lambda key: jax.random.fold_in(key, prompts.coords.shape[2])))
    chosen = jax.vmap(jax.vmap(choose))(fold(rng), wrong)
    height, width = logits.shape[-2:]
    cell = jnp.stack([chosen % width, chosen // width], axis=-1).astype(jnp.float32)
    # Centre of the low-resolution pixel, less the half pixel of the input that the prompt encoder adds.
    at = (cell + 0.5) * jnp.array([[[size / width, size / height]]], jnp.float32) - 0.5
    on = jnp.take_along_axis(truth.reshape(*truth.shape[:2], -1), chosen[..., None], axis=-1)
    label = jnp.where(on, POSITIVE, NEGATIVE).astype(prompts.labels.dtype)
    complete = ((prompts.labels == NOT_A_POINT) | (prompts.labels >= TOP_LEFT)) & prompts.valid
    padding = ~complete.any(axis=-1, keepdims=True)
    return dataclasses.replace(
        prompts,
        coords=jnp.concatenate([prompts.coords, at[:, :, None], jnp.zeros_like(at)[:, :, None]], axis=2),
        labels=jnp.concatenate([prompts.labels, label, jnp.full_like(label, NOT_A_POINT)], axis=2),
        valid=jnp.concatenate([prompts.valid, jnp.ones_like(padding), padding], axis=2),
        masks=logits,
        masks_valid=jnp.ones(prompts.labels.shape[:2], bool),
    )
