"""A safetensors file that is written atomically and verified on reading.

safetensors has no checksum, so the header also holds a SHA-256 over tensors and header.
"""

import hashlib
import json
import pathlib
from collections.abc import Collection, Mapping

import numpy as np
import safetensors
import safetensors.numpy
from numpy.typing import ArrayLike

from stablesam_jax.errors import InputError
from stablesam_jax.files.disk import PathLike, whole_file


def write(path: PathLike, tensors: Mapping[str, ArrayLike], header: Mapping[str, str]) -> None:
    """Writes a new file atomically.

    Args:
        path: new file; missing folders are created.
        tensors: arrays by name.
        header: strings by name.

    Raises:
        InputError: the file exists, or cannot be written.
    """
    arrays = {name: np.array(tensor, order="C") for name, tensor in tensors.items()}
    data = safetensors.numpy.save(arrays, {**header, "sha256": _digest(arrays, header)})
    with whole_file(path) as temporary:
        temporary.write_bytes(data)


def read(path: PathLike, *, kind: str, keys: Collection[str]) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Reads a file after verifying every byte of it.

    Args:
        path: written by `write`.
        kind: expected kind of file, for messages.
        keys: of the header, all that were written.

    Returns:
        tensors and header.

    Raises:
        InputError: the file is absent, of another kind, or damaged.
    """
    path = pathlib.Path(path)
    if path.is_dir():
        raise InputError(f"{path}: is a folder, and no {kind} file. Give the file.")
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            stored = file.metadata() or {}
            header = {key: stored[key] for key in keys}
            expected = stored["sha256"]
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dictionary)
    except FileNotFoundError:
        raise InputError(f"{path}: no such {kind} file. Check the path.") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error}). Give a file that you may read.") from None
    except safetensors.SafetensorError as error:
        raise InputError(f"{path}: not a safetensors file, or cut short ({error}). Copy or make it again.") from None
    except KeyError as error:
        raise InputError(f"{path}: no {kind} of this package, its header has no {error}. Give another file.") from None
    if _digest(tensors, header) != expected:
        raise InputError(f"{path}: damaged, its SHA-256 differs from that in its header. Copy or make it again.")
    return tensors, header


def _digest(tensors: Mapping[str, np.ndarray], header: Mapping[str, str]) -> str:
    """SHA-256 over the header and the tensors, each with its name, dtype and shape."""
    sha = hashlib.sha256(json.dumps(dict(header), sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        sha.update(json.dumps([name, str(tensor.dtype), tensor.shape]).encode())
        sha.update(np.ascontiguousarray(tensor).reshape(-1).view(np.uint8).data)
    return sha.hexdigest()
