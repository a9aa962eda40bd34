"""A trained plugin as one sealed safetensors file, with its configuration and metadata in the header."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from stablesam_jax.config import PluginConfig, SamConfig
from stablesam_jax.errors import InputError
from stablesam_jax.files import sealed_file
from stablesam_jax.files.disk import PathLike
from stablesam_jax.params import Params, digest, flatten, unflatten


def save_plugin(path: PathLike, plugin_params: Params, *, config: PluginConfig, metadata: Mapping[str, Any]) -> None:
    """Writes a plugin file atomically.

    Args:
        path: new file; missing folders are created.
        plugin_params: the subtree `plugin`, float32.
        config: configuration that it was trained with.
        metadata: base model (`base` and `base_sha256`, see `check_base`), data, recipe, results; values that JSON can
            hold.

    Raises:
        InputError: the file exists, or cannot be written.
    """
    header = {"config": json.dumps(dataclasses.asdict(config)), "metadata": json.dumps(dict(metadata))}
    sealed_file.write(path, flatten(plugin_params), header)


def load_plugin(path: PathLike) -> tuple[Params, PluginConfig, dict[str, Any]]:
    """Reads a plugin file after verifying every byte of it.

    Returns:
        parameters as numpy arrays (the subtree `plugin`), their configuration, and the metadata.

    Raises:
        InputError: the file is absent, not a plugin, damaged, or of a configuration that this version lacks.
    """
    tensors, header = sealed_file.read(path, kind="plugin", keys=("config", "metadata"))
    return unflatten(tensors), _config(path, json.loads(header["config"])), json.loads(header["metadata"])


def check_base(path: PathLike, metadata: Mapping[str, Any], config: SamConfig, params: Params) -> None:
    """Checks that a plugin is used with the base that it was trained on; on another its offsets are meaningless.

    Args:
        path: of the plugin, for the message.
        metadata: from `load_plugin`. Without `base_sha256` any base passes.
        config: of the base.
        params: of the base as loaded, float32; their `params.digest` is compared.

    Raises:
        InputError: the base differs; names both.
    """
    expected = metadata.get("base_sha256")
    if expected is None or expected == (found := digest(params)):
        return
    raise InputError(
        f"{path}: was trained on {metadata.get('base')} with SHA-256 {str(expected)[:16]}, but the base given is "
        f"{config.name} with {found[:16]}. Give the base that it was trained on, or train a plugin for this one."
    )


def _config(path: PathLike, fields: dict[str, Any]) -> PluginConfig:
    try:
        return PluginConfig.from_json(fields)
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path}: its configuration does not fit this version ({error}). Train it again.") from None
