"""Name -> (model, parameters). The one place that puts a plugin into a Sam."""

import dataclasses
import functools
import os
from collections.abc import Callable

import jax
import jax.numpy as jnp

from stablesam_jax import names
from stablesam_jax.config import Dtype, PluginConfig, SamConfig
from stablesam_jax.errors import InputError
from stablesam_jax.files import checkpoint, hub_folder
from stablesam_jax.files.checkpoint import check_arrays, describe
from stablesam_jax.files.plugin_file import check_base, load_plugin
from stablesam_jax.model.prompt_encoder import Prompts
from stablesam_jax.model.sam import Sam
from stablesam_jax.params import Params, flatten, unflatten
from stablesam_jax.plugin import Plugin


def load_model(
    system: str | os.PathLike[str],
    *,
    image_size: int | None = None,
    dtype: Dtype | None = None,
    strength: float | None = None,
) -> tuple[Sam, Params]:
    """Reads a model, with its plugin if the name has one.

    Args:
        system: a shipped model of MODELS, a checkpoint folder, OWNER/NAME on the Hugging Face hub, or
            `BASE+PLUGIN_FILE`; see `names.find`.
        image_size: side S of the model's input in pixels, instead of the one that it was made for.
        dtype: compute dtype of the layers, instead of float32.
        strength: of the plugin, 0 to 1, instead of its file's, see `PluginConfig`.

    Returns:
        model and parameters, float32, on the default device.

    Raises:
        InputError: nothing is found under that name, what is found cannot be used, the plugin was trained on another
            base, or the model cannot have that size or strength.
    """
    base, plugin_file = names.find(os.fspath(system))
    read = hub_folder.load_model if hub_folder.is_hub_folder(base) else checkpoint.load_model
    config, params, _ = read(base)
    sam = assemble(config)
    check_arrays(base, describe(params), describe(shapes(sam)))
    if plugin_file is not None:
        plugin_params, plugin, metadata = load_plugin(plugin_file)
        check_base(plugin_file, metadata, sam.config, params)
        check_arrays(plugin_file, describe(plugin_params), describe(_plugin_shapes(sam.config, plugin)))
        sam, params = with_plugin(sam, params, plugin, plugin_params)
    if image_size is not None:
        sam, params = with_image_size(sam, params, image_size)
    if dtype is not None:
        sam = assemble(dataclasses.replace(sam.config, dtype=dtype))
    if strength is not None:
        if sam.config.plugin is None:
            raise InputError(f"strength {strength}: {system} has no plugin; name one, as BASE+PLUGIN_FILE.")
        plugin = dataclasses.replace(sam.config.plugin, strength=strength)
        sam = assemble(dataclasses.replace(sam.config, plugin=plugin))
    return sam, jax.device_put(params)


def assemble(config: SamConfig) -> Sam:
    """The model of a configuration."""
    return Sam(config, plugin=None if config.plugin is None else Plugin(config.plugin, config.output_token))


def with_plugin(sam: Sam, params: Params, config: PluginConfig, plugin: Params | jax.Array) -> tuple[Sam, Params]:
    """Puts a plugin into a Sam.

    Args:
        sam: model without a plugin.
        params: its parameters.
        config: which plugin.
        plugin: the plugin's parameters, or a PRNG key to draw them with.

    Returns:
        model and parameters, those of the plugin in the subtree `plugin`, all others as they were.

    Raises:
        InputError: the model has a plugin already, or is of another width.
    """
    if sam.config.plugin is not None:
        raise InputError("The model has a plugin already; give the base that the plugin was trained on.")
    stable = assemble(dataclasses.replace(sam.config, plugin=config))
    if not isinstance(plugin, dict):
        plugin = _drawing_plugin(stable.config)(plugin)
    return stable, params | {"plugin": jax.device_put(plugin)}


def with_hq(sam: Sam, params: Params, rng: jax.Array) -> tuple[Sam, Params]:
    """Puts HQ-SAM's token and fusion of features into a Sam, to be trained.

    Args:
        sam: model without them.
        params: its parameters.
        rng: key to draw those of HQ-SAM with.

    Returns:
        model and parameters, all of `params` as they were.

    Raises:
        InputError: the model has HQ-SAM's parts already.
    """
    if sam.config.hq:
        raise InputError("The model has HQ-SAM's parts already; give one without them.")
    hq = assemble(dataclasses.replace(sam.config, hq=True))
    return hq, unflatten(flatten(params) | _drawing(hq.config, without=sam.config)(rng))


def with_image_size(sam: Sam, params: Params, image_size: int) -> tuple[Sam, Params]:
    """The model for another side of its input.

    Only positions of a ViT depend on it. Relative ones are resized as the official get_rel_pos does: linearly,
    half-pixel, without antialiasing. The official code never resizes the absolute ones; here they are resized in the
    same way, bilinearly.

    Args:
        sam: model.
        params: its parameters.
        image_size: S, a multiple of the encoder's `size_multiple`.

    Returns:
        model and parameters; all leaves but the positions are those of `params`.

    Raises:
        InputError: the encoder cannot have that size.
    """
    sam = assemble(dataclasses.replace(sam.config, image_size=image_size))
    target = flatten(shapes(sam))
    leaves = flatten(params)
    for path, leaf in leaves.items():
        if leaf.shape != target[path].shape:
            leaves[path] = jax.image.resize(leaf, target[path].shape, "linear", antialias=False)
    return sam, unflatten(leaves)


def init(config: SamConfig, rng: jax.Array) -> Params:
    """Random parameters of a model, float32."""
    return unflatten(_drawing(config)(rng))


def shapes(sam: Sam) -> Params:
    """The parameter tree of a model with jax.ShapeDtypeStruct as leaves; nothing is computed."""
    return jax.tree.map(lambda leaf: leaf, _shapes(sam))  # a copy of the dictionaries, which callers may change


@functools.lru_cache(32)
def _shapes(sam: Sam) -> Params:
    return jax.eval_shape(lambda: sam.init(jax.random.key(0), *_inputs(sam.config)))["params"]


def _plugin_shapes(config: SamConfig, plugin: PluginConfig) -> Params:
    return shapes(assemble(dataclasses.replace(config, plugin=plugin)))["plugin"]


@functools.cache
def _drawing(config: SamConfig, *, without: SamConfig | None = None) -> Callable[[jax.Array], dict[str, jax.Array]]:
    """Compiles initialisation: key -> leaves by path, without those of `without`. XLA drops the forward pass.

    Hundreds of random generators take seconds to compile; LLVM's optimisation, which is off here, doubles that.
    """

    own = {} if without is None else flatten(shapes(assemble(without)))

    def draw(rng: jax.Array) -> dict[str, jax.Array]:
        drawn = flatten(assemble(config).init(rng, *_inputs(config))["params"])
        return {path: leaf for path, leaf in drawn.items() if path not in own}

    return jax.jit(draw, compiler_options={"xla_backend_optimization_level": 0})


@functools.lru_cache(32)
def _drawing_plugin(config: SamConfig) -> Callable[[jax.Array], Params]:
    """Compiles initialisation of the plugin alone: key -> its parameters.

    Not `_drawing`: without LLVM's optimisation some last bits differ, and a seed must give the same plugin as before.
    """
    return jax.jit(lambda rng: assemble(config).init(rng, *_inputs(config))["params"]["plugin"])


def _inputs(config: SamConfig) -> tuple[jax.Array, Prompts]:
    """One picture with one prompt of every kind, so that every parameter is used."""
    side = config.image_size
    prompts = Prompts(
        coords=jnp.zeros((1, 1, 1, 2), jnp.float32),
        labels=jnp.zeros((1, 1, 1), jnp.int32),
        valid=jnp.ones((1, 1, 1), bool),
        masks=jnp.zeros((1, 1, config.mask_size, config.mask_size), jnp.float32),
        masks_valid=jnp.ones((1, 1), bool),
    )
    return jnp.zeros((1, side, side, 3), jnp.float32), prompts
