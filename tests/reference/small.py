"""A small sam_nano with random parameters of sensible size, drawn without compiling anything, and small pictures."""

import dataclasses
import functools
import math
import pathlib

import jax
import numpy as np
from PIL import Image

from stablesam_jax import build, checkpoint
from stablesam_jax.config import MODELS, PluginConfig
from stablesam_jax.model.sam import Sam
from stablesam_jax.params import Params, flatten, unflatten

SIZE = 64  # pixels; 4 x 4 cells, low-resolution masks of 16 x 16
CONFIG = dataclasses.replace(MODELS["sam_nano"], image_size=SIZE)


@functools.cache
def nano() -> tuple[Sam, Params]:
    """The model and its parameters, without a plugin."""
    rng = np.random.default_rng(0)
    sam = Sam(CONFIG)
    return sam, unflatten({path: _draw(rng, path, leaf.shape) for path, leaf in flatten(build.shapes(sam)).items()})


@functools.cache
def stable_nano() -> tuple[Sam, Params]:
    """The same with a fresh plugin."""
    sam, params = build.with_plugin(*nano(), PluginConfig(), jax.random.key(0))
    return sam, jax.device_get(params)


def save_nano(folder: pathlib.Path) -> pathlib.Path:
    """Writes a checkpoint of `nano`."""
    checkpoint.save_model(folder, nano()[1], config=MODELS["sam_nano"], source={})
    return folder


def save_pairs(folder: pathlib.Path, count: int, *, size: tuple[int, int] = (48, 40)) -> pathlib.Path:
    """Writes `count` pictures of a light rectangle on noise, with their masks."""
    rng = np.random.default_rng(0)
    width, height = size
    for part in ("im", "gt"):
        (folder / part).mkdir(parents=True)
    for index in range(count):
        mask = np.zeros((height, width), np.uint8)
        mask[8 + index % 5 : 28, 10 : 34 - index % 7] = 255
        picture = rng.integers(0, 100, (height, width, 3), np.uint8) + mask[..., None] // 2
        Image.fromarray(picture).save(folder / "im" / f"{index:02d}.png")
        Image.fromarray(mask).save(folder / "gt" / f"{index:02d}.png")
    return folder


def _draw(rng: np.random.Generator, path: str, shape: tuple[int, ...]) -> np.ndarray:
    if path.endswith("scale"):
        return np.ones(shape, np.float32)
    deviation = 1 / math.sqrt(math.prod(shape[:-1])) if path.endswith("kernel") else 0.1
    return (deviation * rng.standard_normal(shape)).astype(np.float32)
