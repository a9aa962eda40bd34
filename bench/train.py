"""Rows of a training step: ours against HQ-SAM's loop in PyTorch, with one box for each picture.

HQ-SAM's loop has no cache of embeddings; in the rows "cached" it gets one.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bench import hq_training
from bench.case import Case, Options, Work, peers, prepared
from bench.limits import Cost, cost_of
from eval.parity.__main__ import draw_params
from stablesam_jax import parallel
from stablesam_jax.build import assemble, shapes
from stablesam_jax.config import PluginConfig, SamConfig
from stablesam_jax.data.pipeline import TOKENS
from stablesam_jax.model.prompt_encoder import sparse_tokens
from stablesam_jax.model.sam import Sam
from stablesam_jax.params import Params, split
from train.optimizer import make_optimizer
from train.presets import HQ_PARTS, PLUGIN_ONLY, TrainConfig
from train.step import State, encoder_halves, make_update

_OPTIMIZER = make_optimizer("constant", 1e-3, steps=1000)
SAME_LOSS = 0.05  # share by which losses on one mask may differ, whose points either side draws


def train_cases(options: Options) -> Iterator[Case]:
    """The plugin's step, and that of HQ-SAM's own parts, which is the same work on both sides."""
    for name, config in options.configs().items():
        hq = dataclasses.replace(config, hq=True)
        stable = dataclasses.replace(config, plugin=PluginConfig())
        size = options.batch_size
        # One loop for two rows; "cached" has a new one for each, whose first loss is that of our weights.
        loop = peers(options, functools.partial(_theirs, hq, size, cached=False), "HQ-SAM's loop")
        for system, trainable, cached in (
            (stable, PLUGIN_ONLY, False),
            (stable, PLUGIN_ONLY, True),
            (hq, HQ_PARTS, True),
        ):
            theirs = {} if system.hq else loop
            if cached:
                again = functools.partial(_theirs, hq, size, cached=True)
                theirs = theirs | peers(options, again, "HQ-SAM's loop, cached")
            what = "HQ-SAM's parts" if system.hq else "plugin"
            yield Case(
                f"{what}, {size} pictures, {'cached' if cached else 'encoder in the step'}",
                prepared(functools.partial(_ours, system, trainable, size, cached=cached)),
                theirs,
                model=name,
                difference=_share if system.hq else None,
                bound=SAME_LOSS,
                cost=functools.partial(_cost, system, trainable, size, cached=cached),
            )


def _ours(config: SamConfig, trainable: Sequence[str], size: int, *, cached: bool) -> Work:
    sam = assemble(config)
    trained, frozen = split(draw_params(config, seed=0), trainable)
    devices = parallel.choose_devices(None)
    parallel.check_divides(size, len(devices))
    engine = parallel.ENGINES[TrainConfig().engine](devices)
    update = engine.run_on_all(_update(sam), sharded=(2,), donate=(0,))
    state, everywhere, seed = engine.replicate((_state(trained), frozen, np.uint32(0)))
    batch = _batch(config, size)
    if cached:
        freeze, _ = encoder_halves(sam, neck_trains=False)
        features = jax.jit(freeze)(frozen, batch.pop("picture"))
        batch["features"] = jax.tree.map(lambda leaf: np.asarray(leaf, np.float16), features)  # as a cache keeps them

    def step() -> float:
        nonlocal state
        state, measured = update(state, everywhere, engine.shard(batch), seed)
        return float(engine.unreplicate(measured.loss))

    return step


def _theirs(config: SamConfig, size: int, wrap: Callable[[Any], Any], *, cached: bool) -> Work:
    loop = hq_training.start(config, draw_params(config, seed=0), wrap)
    batch = _batch(config, size)
    pictures, boxes, targets = batch["picture"], batch["coords"][:, 0, :2].reshape(-1, 4), batch["targets"]
    # One by one, to spare the memory that the loop itself takes for all at once.
    encoded = hq_training.join([loop.encode(picture[None]) for picture in pictures]) if cached else None
    return lambda: loop.step(loop.encode(pictures) if encoded is None else encoded, boxes, targets)


def _cost(config: SamConfig, trainable: Sequence[str], size: int, *, cached: bool) -> Cost:
    sam = assemble(config)
    trained, frozen = split(shapes(sam), trainable)
    batch = _batch(config, size)
    if cached:
        freeze, _ = encoder_halves(sam, neck_trains=False)
        batch["features"] = jax.eval_shape(freeze, frozen, batch.pop("picture"))
    arguments = (jax.eval_shape(_state, trained), frozen, batch, np.uint32(0))
    return cost_of(_update(sam), *arguments, axis_env=[(parallel.AXIS, 1)])


def _update(sam: Sam) -> Callable[..., Any]:
    return make_update(sam, _OPTIMIZER, "stable", neck_trains=False)


def _state(trained: Params) -> State:
    return State(step=jnp.zeros((), jnp.int32), trained=trained, optimizer=_OPTIMIZER.init(trained))


def _batch(config: SamConfig, size: int) -> dict[str, Any]:
    """As the pipeline makes it: pictures of noise, each with a box around its target."""
    rng = np.random.default_rng(0)
    side = config.image_size
    targets = np.zeros((size, 1, side, side), bool)
    tokens = []
    for target in targets:
        (left, right), (top, bottom) = np.sort(rng.choice(side, (2, 2), replace=False), axis=1)
        target[0, top : bottom + 1, left : right + 1] = True
        box = np.array([left, top, right, bottom], np.float32)
        tokens.append(sparse_tokens(np.zeros((0, 2)), np.zeros(0, np.int32), box, length=TOKENS))
    coords, labels, valid = (np.stack(column)[:, None] for column in zip(*tokens, strict=True))
    return {
        "picture": rng.integers(0, 256, (size, side, side, 3), np.uint8),
        "targets": targets,
        "coords": coords,
        "labels": labels,
        "valid": valid,
        "masks": np.zeros((size, 1, config.mask_size, config.mask_size), np.float32),
        "masks_valid": np.zeros((size, 1), bool),
        "position": np.arange(size, dtype=np.uint32),
    }


def _share(ours: float, theirs: float) -> float:
    return abs(ours - theirs) / abs(theirs)
