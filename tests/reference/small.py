"""A small sam_nano with random parameters of sensible size, drawn without compiling anything, and small pictures."""

import contextlib
import dataclasses
import functools
import math
import pathlib
from collections.abc import Iterator

import jax
import numpy as np
from PIL import Image

from stablesam_jax import build
from stablesam_jax.config import MODELS, HieraConfig, PluginConfig, SamConfig
from stablesam_jax.files import checkpoint
from stablesam_jax.model.sam import Sam
from stablesam_jax.params import Params, flatten, unflatten

SIZE = 64  # pixels; 4 x 4 cells, low-resolution masks of 16 x 16
CONFIG = dataclasses.replace(MODELS["sam_nano"], image_size=SIZE)
SAM2_CONFIG = SamConfig(
    encoder=HieraConfig(width=16, heads=2, depths=(1, 1, 2, 1), global_blocks=(3,)), image_size=SIZE
)


def nano() -> tuple[Sam, Params]:
    """The model and its parameters, without a plugin."""
    return _base(hq=False)


def sam2() -> tuple[Sam, Params]:
    """A small SAM 2 and its parameters."""
    return _sam2(None)


def stable_sam2() -> tuple[Sam, Params]:
    """The same with a fresh plugin."""
    return _sam2(PluginConfig())


@functools.cache
def _sam2(plugin: PluginConfig | None) -> tuple[Sam, Params]:
    rng = np.random.default_rng(0)
    sam = build.assemble(SAM2_CONFIG)
    params = unflatten({path: _draw(rng, path, leaf.shape) for path, leaf in flatten(build.shapes(sam)).items()})
    if plugin is not None:
        sam, params = build.with_plugin(sam, params, plugin, jax.random.key(0))
    return sam, jax.device_get(params)


def stable_nano() -> tuple[Sam, Params]:
    """The same with a fresh plugin."""
    return system(hq=False, plugin=PluginConfig())


def by_name(system: str, **_) -> tuple[Sam, Params]:
    """In the place of `load_model`, for which a shipped model would be too slow: with a plugin where one is named."""
    return stable_nano() if "+" in system else nano()


@functools.cache
def system(*, hq: bool, plugin: PluginConfig | None) -> tuple[Sam, Params]:
    """The same with the parts of HQ-SAM, likewise random, and with a fresh plugin."""
    sam, params = _base(hq=hq)
    if plugin is not None:
        sam, params = build.with_plugin(sam, params, plugin, jax.random.key(0))
    return sam, jax.device_get(params)


@functools.cache
def _base(*, hq: bool) -> tuple[Sam, Params]:
    rng = np.random.default_rng(0)
    sam = build.assemble(dataclasses.replace(CONFIG, hq=hq))
    own = flatten(nano()[1]) if hq else {}
    shapes = flatten(build.shapes(sam))
    drawn = {path: _draw(rng, path, leaf.shape) for path, leaf in shapes.items() if path not in own}
    return sam, unflatten(own | drawn)


@contextlib.contextmanager
def quick_compilation() -> Iterator[None]:
    """What is compiled inside is not optimised, which takes most of the time of a program that runs three times."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    try:
        yield
    finally:
        jax.config.update("jax_disable_most_optimizations", before)


def save_nano(folder: pathlib.Path) -> pathlib.Path:
    """Writes a checkpoint of `nano`."""
    checkpoint.save_model(folder, nano()[1], config=MODELS["sam_nano"], source={})
    return folder


def save_pairs(
    folder: pathlib.Path, count: int, *, size: tuple[int, int] = (48, 40), blocks: int | None = None
) -> pathlib.Path:
    """Writes `count` pictures of a light rectangle on noise, with their masks.

    Such pictures are near-duplicates of each other, unless a seed for coarse `blocks` in them is given.
    """
    rng = np.random.default_rng(blocks or 0)
    width, height = size
    for part in ("im", "gt"):
        (folder / part).mkdir(parents=True)
    for index in range(count):
        mask = np.zeros((height, width), np.uint8)
        mask[8 + index % 5 : 28, 10 : 34 - index % 7] = 255
        picture = rng.integers(0, 100, (height, width, 3), np.uint8) + mask[..., None] // 2
        if blocks is not None:
            coarse = Image.fromarray(rng.integers(0, 200, (6, 6, 3), np.uint8))
            picture = picture // 4 + np.asarray(coarse.resize(size, Image.Resampling.NEAREST))
        Image.fromarray(picture).save(folder / "im" / f"{index:02d}.png")
        Image.fromarray(mask).save(folder / "gt" / f"{index:02d}.png")
    return folder


def _draw(rng: np.random.Generator, path: str, shape: tuple[int, ...]) -> np.ndarray:
    if path.endswith("scale"):
        return np.ones(shape, np.float32)
    deviation = 1 / math.sqrt(math.prod(shape[:-1])) if path.endswith("kernel") else 0.1
    return (deviation * rng.standard_normal(shape)).astype(np.float32)
