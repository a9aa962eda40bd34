"""A trained plugin as one safetensors file, with its configuration and history in the header.

safetensors hands out a flipped bit as a number, so the header also holds a SHA-256 over everything else.
"""

import dataclasses
import hashlib
import json
import os
import pathlib
import uuid
from collections.abc import Mapping
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from stablesam_jax.checkpoint import PathLike, new_path, sync
from stablesam_jax.config import PluginConfig
from stablesam_jax.errors import InputError
from stablesam_jax.params import Params, flatten, unflatten


def save_plugin(path: PathLike, plugin_params: Params, *, config: PluginConfig, metadata: Mapping[str, Any]) -> None:
    """Writes a plugin file; it appears whole or not at all.

    Args:
        path: file that does not exist yet, in a folder that does.
        plugin_params: the subtree `plugin`, float32.
        config: configuration it was trained with.
        metadata: base model, data, recipe, figures; what JSON can hold.

    Raises:
        InputError: the file exists, or its folder does not.
    """
    path = new_path(path)
    tensors = {name: np.array(leaf, order="C") for name, leaf in flatten(plugin_params).items()}
    header = {"config": json.dumps(dataclasses.asdict(config)), "metadata": json.dumps(dict(metadata))}
    data = safetensors.numpy.save(tensors, header | {"sha256": _digest(tensors, header)})
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        temporary.write_bytes(data)
        sync(temporary)
        os.replace(temporary, path)
        sync(path.parent)
    except (FileNotFoundError, NotADirectoryError, PermissionError) as error:
        raise InputError(
            f"{path}: cannot be written ({error.strerror}). Give a folder that you may write to."
        ) from None
    finally:
        temporary.unlink(missing_ok=True)


def load_plugin(path: PathLike) -> tuple[Params, PluginConfig, dict[str, Any]]:
    """Reads a plugin file after verifying every byte of it.

    Returns:
        parameters as numpy arrays (the subtree `plugin`), their configuration, and the metadata.

    Raises:
        InputError: the file is absent, no plugin, damaged, or of a configuration that this version does not know.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such plugin file. Check the path.")
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            stored = file.metadata() or {}
            header = {key: stored[key] for key in ("config", "metadata")}
            expected = stored["sha256"]
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dictionary)
    except safetensors.SafetensorError as error:
        raise InputError(f"{path}: not a safetensors file, or cut short ({error}). Copy or train it again.") from None
    except KeyError as error:
        raise InputError(
            f"{path}: not a plugin of this package, its header has no {error}. Give another file."
        ) from None
    if _digest(tensors, header) != expected:
        raise InputError(f"{path}: damaged, its SHA-256 differs from that in its header. Copy or train it again.")
    return unflatten(tensors), _config(path, json.loads(header["config"])), json.loads(header["metadata"])


def _digest(tensors: Mapping[str, np.ndarray], header: Mapping[str, str]) -> str:
    """SHA-256 over header texts and tensors, each with its name, type and shape."""
    sha = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        sha.update(json.dumps([name, str(tensor.dtype), tensor.shape]).encode())
        sha.update(tensor.tobytes())
    return sha.hexdigest()


def _config(path: pathlib.Path, fields: dict[str, Any]) -> PluginConfig:
    try:
        return PluginConfig.from_json(fields)
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path}: its configuration does not fit this version ({error}). Train it again.") from None
