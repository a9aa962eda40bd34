"""Name or folder -> (model, parameters). The one place that puts a plugin into a Sam."""

import functools
import os
import pathlib
from collections.abc import Callable

import jax
import jax.numpy as jnp

from stablesam_jax.checkpoint import check_arrays, describe, load_model
from stablesam_jax.config import MODELS, PluginConfig, SamConfig
from stablesam_jax.errors import InputError
from stablesam_jax.model.prompt_encoder import Prompts
from stablesam_jax.model.sam import Sam
from stablesam_jax.params import Params
from stablesam_jax.plugin import Plugin
from stablesam_jax.plugin_file import load_plugin

PRETRAINED = pathlib.Path(__file__).parent / "pretrained"  # one checkpoint folder for each shipped model


def build(system: str | os.PathLike[str]) -> tuple[Sam, Params]:
    """Reads a model, with a plugin where one is named.

    Args:
        system: a shipped model of MODELS, a checkpoint folder, or `BASE+PLUGIN_FILE` where BASE is one of these; the
            last `+` counts. A name of MODELS goes before a folder of the same name.

    Returns:
        model and parameters, float32, on the default device.

    Raises:
        InputError: nothing is found under that name, or what is found cannot be used.
    """
    system = os.fspath(system)
    if _is_model(system) or "+" not in system:
        return _build_model(system)
    base, _, plugin_file = system.rpartition("+")
    sam, params = _build_model(base)
    plugin_params, config, _ = load_plugin(plugin_file)
    check_arrays(plugin_file, describe(plugin_params), describe(_plugin_shapes(sam, config)))
    return with_plugin(sam, params, config, plugin_params)


def with_plugin(sam: Sam, params: Params, config: PluginConfig, plugin: Params | jax.Array) -> tuple[Sam, Params]:
    """Puts a plugin into a Sam.

    Args:
        sam: model without a plugin.
        params: its parameters.
        config: which plugin.
        plugin: the plugin's parameters, or a PRNG key to draw them with.

    Returns:
        model and parameters, those of the plugin in the subtree `plugin`, all others as they were.
    """
    stable = Sam(sam.config, plugin=Plugin(config), plugin_attentions=config.attentions)
    if not isinstance(plugin, dict):
        plugin = jax.jit(lambda rng: stable.init(rng, *_inputs(sam.config))["params"]["plugin"])(plugin)
    return stable, params | {"plugin": jax.device_put(plugin)}


def init(config: SamConfig, rng: jax.Array) -> Params:
    """Random parameters of a model without a plugin, float32."""
    return _drawing(config)(rng)


def shapes(sam: Sam) -> Params:
    """The parameter tree of a model with jax.ShapeDtypeStruct as leaves; nothing is computed."""
    return jax.eval_shape(lambda: sam.init(jax.random.key(0), *_inputs(sam.config)))["params"]


def _is_model(system: str) -> bool:
    return system in MODELS or pathlib.Path(system).is_dir()


def _build_model(system: str) -> tuple[Sam, Params]:
    shipped = [name for name in MODELS if (PRETRAINED / name).is_dir()]
    if not (system in shipped or (system not in MODELS and _is_model(system))):
        raise InputError(
            f"{system}: neither a shipped model ({', '.join(shipped) or 'none is'}) nor a checkpoint folder. "
            "Convert an official file (python -m convert.sam_to_flax --checkpoint FILE.pth --output DIR); give DIR."
        )
    folder = PRETRAINED / system if system in shipped else pathlib.Path(system)
    name, params, _ = load_model(folder)
    sam = Sam(MODELS[name])
    check_arrays(folder, describe(params), describe(shapes(sam)))
    return sam, jax.device_put(params)


def _plugin_shapes(sam: Sam, config: PluginConfig) -> Params:
    return shapes(Sam(sam.config, plugin=Plugin(config), plugin_attentions=config.attentions))["plugin"]


@functools.cache
def _drawing(config: SamConfig) -> Callable[[jax.Array], Params]:
    """Key -> parameters. No picture is encoded: the compiler drops that part.

    It takes seconds to compile hundreds of generators; without LLVM's optimisation half as many.
    """

    def draw(rng: jax.Array) -> Params:
        return Sam(config).init(rng, *_inputs(config))["params"]

    return jax.jit(draw, compiler_options={"xla_backend_optimization_level": 0})


def _inputs(config: SamConfig) -> tuple[jax.Array, Prompts]:
    """One picture with one prompt of every kind, so that every parameter is used."""
    side = config.image_size
    prompts = Prompts(
        coords=jnp.zeros((1, 1, 1, 2)),
        labels=jnp.zeros((1, 1, 1), jnp.int32),
        valid=jnp.ones((1, 1, 1), bool),
        masks=jnp.zeros((1, 1, config.mask_size, config.mask_size)),
        masks_valid=jnp.ones((1, 1), bool),
    )
    return jnp.zeros((1, side, side, 3)), prompts
