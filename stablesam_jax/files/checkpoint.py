"""Trees of arrays on disk, written atomically and verified on reading. The only file that imports Orbax.

A checkpoint is a folder:

    tree/           the arrays, written by Orbax
    metadata.json   the caller's metadata, and the shape and dtype of every array
    manifest.json   size and SHA-256 of every other file

It is written under a temporary name in the same folder (`.NAME.*.tmp`, which a killed process leaves behind) and then
renamed. Orbax does not detect flipped bits, so reading verifies the manifest first.
"""

import concurrent.futures
import dataclasses
import errno
import hashlib
import json
import os
import pathlib
import shutil
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from stablesam_jax.config import MODELS, OWN, PluginConfig, SamConfig
from stablesam_jax.errors import InputError
from stablesam_jax.files.disk import PathLike, whole_folder
from stablesam_jax.params import Params, flatten, unflatten
from stablesam_jax.version import __version__

TREE, METADATA, MANIFEST = "tree", "metadata.json", "manifest.json"
SHOWN_FAULTS = 8  # of each kind in a message; a tree of another model differs in hundreds of arrays


def save_tree(folder: PathLike, tree: Any, metadata: Mapping[str, Any]) -> None:
    """Writes a checkpoint atomically.

    Args:
        folder: path that does not exist yet; missing parents are created.
        tree: any tree of arrays and scalars, none of size 0. Convert PRNG keys by `jax.random.key_data`.
        metadata: values that JSON can hold.

    Raises:
        InputError: the folder exists, or cannot be written, as on a full disk.
    """
    leaves = {path: np.asarray(leaf) for path, leaf in _leaves(tree).items()}
    text = json.dumps({"metadata": metadata, "arrays": describe(leaves)}, indent=1)
    with whole_folder(folder) as temporary:
        if shutil.disk_usage(temporary).free < sum(leaf.nbytes for leaf in leaves.values()):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # Orbax would fail only at the end
        with _checkpointer() as checkpointer:
            checkpointer.save(temporary.absolute() / TREE, unflatten(leaves))
            checkpointer.wait_until_finished()
        # Orbax's success marker contains paths of this machine. The manifest and the rename replace it.
        (temporary / TREE / "commit_success.txt").unlink(missing_ok=True)
        (temporary / METADATA).write_text(text)
        manifest = {name: _fingerprint(path) for name, path in _files(temporary).items()}
        (temporary / MANIFEST).write_text(json.dumps(manifest, indent=1))


def load_tree(folder: PathLike, target: Any = None) -> tuple[Any, dict[str, Any]]:
    """Reads a checkpoint after verifying every byte of it.

    Args:
        folder: written by `save_tree`.
        target: tree whose leaves have `shape` and `dtype`, or None to accept any tree.

    Returns:
        tree of numpy arrays, with the structure of `target` or as nested dictionaries, and the metadata.

    Raises:
        InputError: the folder is absent, not a checkpoint, damaged, or its arrays differ from `target`.
    """
    folder = pathlib.Path(folder)
    _verify(folder)
    stored = json.loads((folder / METADATA).read_text())
    if target is not None:
        check_arrays(folder, stored["arrays"], describe(target))
    with _checkpointer() as checkpointer:
        tree = checkpointer.restore(folder.absolute() / TREE)
    if target is None:
        return tree, stored["metadata"]
    leaves = flatten(tree)
    return jax.tree.unflatten(jax.tree.structure(target), [leaves[path] for path in _leaves(target)]), stored[
        "metadata"
    ]


def save_model(
    folder: PathLike, params: Params, *, config: SamConfig, source: Mapping[str, Any], dtype: np.dtype | None = None
) -> None:
    """Writes the parameters of a model with its configuration.

    Args:
        folder: path that does not exist yet.
        params: tree, float32.
        config: of the model, one of MODELS or of any sizes.
        source: origin of the parameters: file name and SHA-256, or recipe; values that JSON can hold.
        dtype: of the stored parameters, by default float32; float16 halves the file and rounds to 11 bits.

    Raises:
        InputError: as `save_tree`, or a parameter is too large for `dtype`.
    """
    if dtype is not None:
        with np.errstate(over="ignore"):
            params = jax.tree.map(lambda leaf: np.asarray(leaf).astype(dtype), params)
        if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params)):
            raise InputError(f"{folder}: the parameters have values too large for {np.dtype(dtype)}. Store float32.")
    save_tree(folder, params, metadata_of(config, source))


def load_model(folder: PathLike) -> tuple[SamConfig, Params, dict[str, Any]]:
    """Reads a model.

    Args:
        folder: written by `save_model`.

    Returns:
        configuration, parameters as numpy arrays in float32, and the metadata: model, encoder, config, version, source.

    Raises:
        InputError: as `load_tree`; or the folder holds no model, an unknown one, or one whose sizes differ from those
            that MODELS has under its name.
    """
    params, metadata = load_tree(folder)
    config = config_of(folder, metadata)
    return config, jax.tree.map(lambda leaf: leaf.astype(np.float32, copy=False), params), metadata


def metadata_of(config: SamConfig, source: Mapping[str, Any]) -> dict[str, Any]:
    """What files of a model hold beside its arrays, in the form that JSON reads back.

    Args:
        config: of the model.
        source: origin of its parameters.
    """
    named = {"model": config.name, "encoder": type(config.encoder).__name__, "config": _plain(config)}
    return {**named, "version": __version__, "source": json.loads(json.dumps(dict(source)))}


def config_of(folder: PathLike, metadata: Mapping[str, Any]) -> SamConfig:
    """The configuration in the metadata of a model's files.

    Args:
        folder: for messages.
        metadata: of `metadata_of`, by this or an earlier version.

    Raises:
        InputError: it is of an unknown model, or of one with other sizes than MODELS has under its name.
    """
    name = metadata.get("model")
    if name not in (*MODELS, OWN):
        raise InputError(
            f"{folder}: the model {name!r} is unknown; choose from {', '.join(MODELS)}. Convert or save one."
        )
    try:
        if name == OWN:
            return SamConfig.from_json(metadata["config"], metadata["encoder"])
        return _known(name, metadata["config"])
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{folder}: made for another {name} ({error}). Convert or train it again.") from None


def describe(tree: Any) -> dict[str, Any]:
    """[dtype, shape] of every leaf by path, in the form that JSON reads back."""
    return {path: [str(leaf.dtype), list(leaf.shape)] for path, leaf in _leaves(tree).items()}


def check_arrays(place: object, found: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Compares the descriptions of two trees, see `describe`.

    Raises:
        InputError: they differ; one line with the differences.
    """
    faults = {
        "missing": [path for path in expected if path not in found],
        "unexpected": [path for path in found if path not in expected],
        "different": [
            f"{path} is {_words(found[path])} instead of {_words(expected[path])}"
            for path in expected
            if path in found and found[path] != expected[path]
        ],
    }
    if any(faults.values()):
        text = "; ".join(f"{kind}: {_some(paths)}" for kind, paths in faults.items() if paths)
        raise InputError(f"{place}: holds other arrays than expected: {text}. Use it with the model it was made for.")


def _checkpointer() -> ocp.StandardCheckpointer:
    # Arrays are on the host, so each process writes alone. By default Orbax would wait for all processes at a barrier.
    index = jax.process_index()
    options = ocp.options.MultiprocessingOptions(
        primary_host=index, active_processes={index}, barrier_sync_key_prefix=f"process_{index}"
    )
    return ocp.StandardCheckpointer(multiprocessing_options=options)


def _leaves(tree: Any) -> dict[str, Any]:
    """Leaves by path in the order of `jax.tree.leaves`: `params.flatten` for any tree, such as an optimizer's state."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def _words(description: list[Any]) -> str:
    dtype, shape = description
    return f"{dtype} ({', '.join(map(str, shape))})"


def _some(items: list[str]) -> str:
    rest = len(items) - SHOWN_FAULTS
    return ", ".join(items[:SHOWN_FAULTS]) + (f" and {rest} more" if rest > 0 else "")


def _plain(config: Any) -> Any:
    """A configuration in the form that JSON reads back: tuples become lists."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def _known(name: str, fields: Mapping[str, Any]) -> SamConfig:
    """The configuration of MODELS at a stored input size, dtype and plugin."""
    stored = dict(fields)
    free = {"image_size": stored.pop("image_size"), "dtype": stored.pop("dtype", "float32")}
    if (plugin := stored.pop("plugin", None)) is not None:
        free["plugin"] = PluginConfig.from_json(plugin)
    if not _agrees(stored, _plain(MODELS[name])):
        raise ValueError("its sizes differ from those of this version")
    return dataclasses.replace(MODELS[name], **free)


def _agrees(stored: Any, current: Any) -> bool:
    """Whether every stored field has the same value now; the default of a later field changes nothing."""
    if isinstance(stored, dict) and isinstance(current, dict):
        return all(key in current and _agrees(value, current[key]) for key, value in stored.items())
    return stored == current


def _files(folder: pathlib.Path) -> dict[str, pathlib.Path]:
    """Every file except the manifest, by its path inside the folder."""
    files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    files.pop(MANIFEST, None)
    return files


def _fingerprint(path: pathlib.Path) -> list[int | str]:
    with path.open("rb") as file:
        return [path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest()]


def _verify(folder: pathlib.Path) -> None:
    """Compares a folder with its manifest. Names in the manifest are never opened: they could point anywhere."""
    if not folder.is_dir():
        raise InputError(f"{folder}: no such checkpoint folder. Check the path.")
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        expected = {str(name): list(fingerprint) for name, fingerprint in manifest.items()}
    except FileNotFoundError:
        raise InputError(
            f"{folder}: not a checkpoint, it has no {MANIFEST}. Give a folder that this package wrote."
        ) from None
    except (ValueError, AttributeError, TypeError):
        raise InputError(f"{folder}: damaged, {MANIFEST} cannot be read. Copy or make the checkpoint again.") from None
    found = _files(folder)
    missing = [f"{name} is missing" for name in expected if name not in found]
    there = [name for name in expected if name in found]
    with concurrent.futures.ThreadPoolExecutor() as pool:  # hashing releases the interpreter lock
        fingerprints = pool.map(_fingerprint, [found[name] for name in there])
    pairs = zip(there, fingerprints, strict=True)
    changed = [f"{name} has changed" for name, fingerprint in pairs if fingerprint != expected[name]]
    if METADATA not in expected or missing or changed:
        faults = _some(missing + changed) or f"{METADATA} is not in {MANIFEST}"
        raise InputError(f"{folder}: damaged, {faults}. Copy or make the checkpoint again.")
