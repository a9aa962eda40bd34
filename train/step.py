"""One training step: mathematics without files and clocks."""

from collections.abc import Callable
from typing import Any, Literal

import flax.struct
import jax
import jax.numpy as jnp
import optax

from stablesam_jax import parallel
from stablesam_jax.config import SamConfig
from stablesam_jax.model.prompt_encoder import Prompts
from stablesam_jax.model.sam import ImageEmbedding, Sam
from stablesam_jax.params import Params, merge
from train.clicks import click_on_errors
from train.losses import full_resolution_loss, mask_iou, point_sampled_loss, pretraining_loss

Objective = Literal["stable", "full-resolution", "pretrain"]


@flax.struct.dataclass
class State:
    """The part of a run's state that a step changes."""

    step: jax.Array  # () int32, steps done
    trained: Params  # the trained leaves
    optimizer: optax.OptState
    averaged: Params | None = None  # moving average of the trained leaves over the steps, with --ema


@flax.struct.dataclass
class Measured:
    """Means over a batch."""

    loss: jax.Array  # ()
    iou: jax.Array  # (), IoU of the target with the low-resolution mask: the single one, or the HQ token's if it trains
    gradient_norm: jax.Array | None = None  # (), of the mean gradient, before it is clipped
    alpha: jax.Array | None = None  # (), the plugin's alpha_1, where there is a plugin
    offset: jax.Array | None = None  # (), length of its offsets in cells, where it has some


def normalise(pictures: jax.Array, config: SamConfig) -> jax.Array:
    """(B, S, S, 3) uint8 -> float32 model input. Padding is normalised like the picture, as in HQ-SAM's training."""
    shape = (1, 1, 1, 3)
    mean, std = jnp.array(config.pixel_mean).reshape(shape), jnp.array(config.pixel_std).reshape(shape)
    return (pictures.astype(jnp.float32) - mean) / std


def encoder_halves(sam: Sam, *, neck_trains: bool) -> tuple[Callable, Callable]:
    """Splits the image encoder into a frozen half, whose features may be cached, and the rest.

    Args:
        sam: the model.
        neck_trains: split sam_nano's encoder before its neck, which pre-training trains.

    Returns:
        freeze(params, pictures uint8) -> features, and embed(params, features) -> `ImageEmbedding`. embed also accepts
        cached features, which are float16.
    """

    apply: Callable[..., Any] = sam.apply

    def freeze(params: Params, pictures: jax.Array) -> Any:
        def method(module: Sam, x: jax.Array) -> Any:
            return module.image_encoder.backbone(x) if neck_trains else module.encode(x)

        return apply({"params": params}, normalise(pictures, sam.config), method=method)

    def embed(params: Params, features: Any) -> ImageEmbedding:
        features = jax.tree.map(lambda leaf: leaf.astype(sam.config.dtype), features)
        if not neck_trains:
            return features
        return apply({"params": params}, features, method="finish")

    return freeze, embed


def make_update(
    sam: Sam,
    optimizer: optax.GradientTransformation,
    objective: Objective,
    *,
    neck_trains: bool,
    clicks: int = 0,
    ema: float = 0.0,
    remat: bool = False,
) -> Callable[[State, Params, dict[str, Any], jax.Array], tuple[State, Measured]]:
    """The update of one step, for one device's share of the batch.

    Args:
        sam: the model.
        optimizer: of the trained leaves.
        objective: "stable": point-sampled cross entropy and dice on the single mask (sec. 9); where the model has
            HQ-SAM's parts on the HQ token's mask alone, as HQ-SAM trains (train/train.py), though it predicts the sum
            of both. "full-resolution": the same at every pixel. "pretrain": SAM's loss on SAM's four masks.
        neck_trains: see `encoder_halves`.
        clicks: rounds after the first, each with a click on an error of the previous mask; for "pretrain".
        ema: decay of the moving average, if the state has one.
        remat: compute the layers of the decoder's transformer again in the backward pass instead of keeping them.

    Returns:
        update(state, frozen parameters, batch, seed) -> state, measured. The batch is as in `pipeline.make_sample` with
        a leading axis B and either `picture` or `features`. Random numbers come from the seed and the sample's
        position, so they do not depend on the number of devices.
    """
    freeze, embed = encoder_halves(sam, neck_trains=neck_trains)

    def loss_of(trained: Params, frozen: Params, batch: dict[str, Any], seed: jax.Array) -> tuple[jax.Array, Measured]:
        params = merge(frozen, trained)
        features = batch["features"] if "features" in batch else freeze(params, batch["picture"])
        prompts = Prompts(
            coords=batch["coords"],
            labels=batch["labels"],
            valid=batch["valid"],
            masks=batch["masks"],
            masks_valid=batch["masks_valid"],
        )
        embedding = embed(params, features)
        rng = sample_keys(seed, batch["position"], batch["targets"].shape[1])
        low_res_targets = average_pool(batch["targets"].astype(jnp.float32), sam.config.mask_size)
        rounds = []
        for click in range(clicks + 1):
            masks, state = sam.apply(
                {"params": params},
                embedding,
                prompts,
                # SAM 2's "single" may be another mask; in training it is the first one, as in the official code.
                masks="all" if objective == "pretrain" or sam.config.sam2 else "single",
                hq_token_only=sam.config.hq,
                at_once=True,
                remat=remat,
                method="decode",
                mutable=["intermediates"],
            )
            logits = masks.low_res_masks.astype(jnp.float32)
            if objective == "pretrain":
                losses = pretraining_loss(logits, masks.iou_predictions, low_res_targets)
            elif objective == "full-resolution":
                losses = full_resolution_loss(logits[:, :, 0], batch["targets"])
            else:
                losses = point_sampled_loss(rng, logits[:, :, 0], batch["targets"])
            rounds.append(losses.mean())
            if click < clicks:
                prompts = click_on_errors(rng, prompts, logits[:, :, 0], low_res_targets, size=sam.config.image_size)
        single = (logits[:, :, 0], low_res_targets)
        iou = mask_iou(*(maps.reshape(*maps.shape[:2], -1) for maps in single))
        loss = jnp.stack(rounds).mean()
        return loss, Measured(loss=loss, iou=iou.mean(), **plugin_means(state))

    def update(state: State, frozen: Params, batch: dict[str, Any], seed: jax.Array) -> tuple[State, Measured]:
        gradient, measured = jax.grad(loss_of, has_aux=True)(state.trained, frozen, batch, seed)
        gradient, measured = parallel.mean((gradient, measured))
        measured = measured.replace(gradient_norm=optax.tree.norm(gradient))
        with jax.numpy_dtype_promotion("standard"):  # optax mixes int32 counts with floats
            changes, optimizer_state = optimizer.update(gradient, state.optimizer, state.trained)
            trained = optax.apply_updates(state.trained, changes)
        step = state.step + 1
        averaged = None if state.averaged is None else moving_average(state.averaged, trained, step, decay=ema)
        return State(step=step, trained=trained, optimizer=optimizer_state, averaged=averaged), measured

    return update


def plugin_means(state: Any) -> dict[str, jax.Array]:
    """The means of the plugin's alpha_1 and of the length of its offsets, of what a decoder has sown."""
    sown = state.get("intermediates", {}).get("plugin", {})
    means = {}
    if "alpha" in sown:
        means["alpha"] = jnp.stack([alpha[..., 0].mean() for alpha in sown["alpha"]]).mean()
    if "offsets" in sown:
        lengths = [jnp.sqrt(jnp.square(offsets.astype(jnp.float32)).sum(axis=-1)).mean() for offsets in sown["offsets"]]
        means["offset"] = jnp.stack(lengths).mean()
    return {name: jax.lax.stop_gradient(mean) for name, mean in means.items()}


def moving_average(averaged: Params, trained: Params, step: jax.Array, *, decay: float) -> Params:
    """decay * averaged + (1 - decay) * trained.

    The decay is at most (1 + step) / (10 + step), so that the initial parameters lose their weight quickly.
    """
    count = step.astype(jnp.float32)
    kept = jnp.minimum(jnp.float32(decay), (1 + count) / (10 + count))
    return jax.tree.map(lambda old, new: kept * old + (1 - kept) * new, averaged, trained)


def average_pool(maps: jax.Array, size: int) -> jax.Array:
    """Means over squares: (..., S, S) -> (..., size, size), S a multiple of size."""
    factor = maps.shape[-1] // size
    return maps.reshape(*maps.shape[:-2], size, factor, size, factor).mean(axis=(-3, -1))


def sample_keys(seed: jax.Array, positions: jax.Array, prompts: int) -> jax.Array:
    """A key for each prompt of each sample, from the sample's index in the run: (B,) uint32 -> (B, prompts) keys."""
    keys = jax.vmap(lambda position: jax.random.fold_in(jax.random.key(seed), position))(positions)
    return jax.vmap(lambda key: jax.random.split(key, prompts))(keys)
