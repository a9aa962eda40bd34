"""Rows of the plugin's cost: a SAM with the plugin against the same SAM without."""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bench.case import CHANNELS, GRID, Case, Options, count_of
from eval.parity.__main__ import IMAGE, draw_params
from stablesam_jax.build import assemble
from stablesam_jax.config import MODELS, SamConfig
from stablesam_jax.files.picture_file import read_picture
from stablesam_jax.model.mask_decoder import Masks
from stablesam_jax.model.prompt_encoder import Prompts
from stablesam_jax.model.sam import ImageEmbedding
from stablesam_jax.predict import compiled
from stablesam_jax.predict.predictor import Predictor


def plugin_cases(options: Options) -> Iterator[Case]:
    """Decoding at the resolution of a SAM of 1024 pixels, and prediction from a picture to one mask.

    sam_nano has the decoder of every SAM and the smallest encoder, so the plugin is the largest share of its time.
    Weights are random, so that the plugin's offsets cover their whole range.
    """
    stable = dataclasses.replace(MODELS["stable_sam_nano"], image_size=16 * GRID)
    params = draw_params(stable, seed=0)
    rng = np.random.default_rng(0)
    embedding = ImageEmbedding(jnp.asarray(rng.standard_normal((1, GRID, GRID, CHANNELS), np.float32)))
    for count in options.prompts:
        prompts = Prompts(
            coords=jnp.asarray(rng.uniform(0, stable.image_size, (1, count, 2, 2)), jnp.float32),
            labels=jnp.broadcast_to(jnp.array([2, 3], jnp.int32)[None, None], (1, count, 2)),
            valid=jnp.ones((1, count, 2), bool),
        )

        def decode(config: SamConfig, prompts: Prompts = prompts) -> Masks:
            return jax.block_until_ready(compiled.decoder(assemble(config))(params, embedding, prompts))

        yield _with_and_without(f"decode, {count_of('prompt', count)}", decode, stable)

    picture = read_picture(IMAGE)
    predictors: dict[SamConfig, Predictor] = {}

    def predict(config: SamConfig) -> np.ndarray:
        predictor = predictors.setdefault(config, Predictor(assemble(config), params))
        predictor.set_image(picture)
        return predictor.predict(box=[20, 20, 200, 200], multimask_output=False)[0]

    yield _with_and_without("picture to mask, sam_nano at 512 px", predict, MODELS["stable_sam_nano"])


def _with_and_without(name: str, work: Callable[[SamConfig], Any], stable: SamConfig) -> Case:
    without = {"without plugin": functools.partial(work, dataclasses.replace(stable, plugin=None))}
    return Case(name, functools.partial(work, stable), without)
