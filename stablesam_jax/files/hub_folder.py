"""A model as a folder for a hub of models, plugin included: one file of weights, its configuration, and a card.

    model.safetensors   all arrays by path, sealed, see `sealed_file`; its header has the configuration, too
    config.json         the configuration, for readers and for the hub
    README.md           the card

No file can run code, and one that was changed or cut short is refused.
"""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from stablesam_jax.config import SamConfig
from stablesam_jax.errors import InputError
from stablesam_jax.files import sealed_file
from stablesam_jax.files.checkpoint import config_of, metadata_of
from stablesam_jax.files.disk import PathLike, whole_folder
from stablesam_jax.params import Params, flatten, unflatten

CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"
HEADER = "metadata"  # of the weights' file
MODEL_TYPE = "stablesam_jax"
TRANSFORMERS = ("sam", "sam_hq")  # model types of the library transformers that can be converted


def is_hub_folder(folder: PathLike) -> bool:
    """Whether a folder has a configuration and one file of weights, ours or those of the library transformers."""
    return all((pathlib.Path(folder) / name).is_file() for name in (CONFIG, WEIGHTS))


def save_model(folder: PathLike, params: Params, *, config: SamConfig, source: Mapping[str, Any], card: str) -> None:
    """Writes a folder atomically.

    Args:
        folder: path that does not exist yet; missing parents are created.
        params: tree, float32, that of a plugin included.
        config: of the model.
        source: origin of the parameters; values that JSON can hold.
        card: text of README.md.

    Raises:
        InputError: the folder exists, or cannot be written.
    """
    metadata = metadata_of(config, source)
    with whole_folder(folder) as temporary:
        sealed_file.write(temporary / WEIGHTS, flatten(params), {HEADER: json.dumps(metadata)})
        stated = {"model_type": MODEL_TYPE, "library_name": "stablesam-jax", **metadata}
        (temporary / CONFIG).write_text(json.dumps(stated, indent=1) + "\n", encoding="utf-8")
        (temporary / CARD).write_text(card, encoding="utf-8")


def load_model(folder: PathLike) -> tuple[SamConfig, Params, dict[str, Any]]:
    """Reads a model after verifying every byte of its weights and configuration.

    Returns:
        as `checkpoint.load_model`.

    Raises:
        InputError: the folder is not of this package, damaged, or of a model that this version lacks.
    """
    folder = pathlib.Path(folder)
    try:
        stated = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        kind = stated["model_type"]
    except (OSError, ValueError, KeyError, TypeError):
        raise InputError(f"{folder}: its {CONFIG} is no configuration of a model. Copy the folder again.") from None
    if kind in TRANSFORMERS:
        raise InputError(
            f"{folder}: is a model of the library transformers. Convert it once: stablesam convert --checkpoint "
            f"{folder} --output DIR; give DIR."
        )
    if kind != MODEL_TYPE:
        raise InputError(f"{folder}: is a model of type {kind!r}, not of this package. Give another folder.")
    tensors, header = sealed_file.read(folder / WEIGHTS, kind="model", keys=(HEADER,))
    metadata = json.loads(header[HEADER])
    if any(stated.get(name) != value for name, value in metadata.items()):
        raise InputError(
            f"{folder}: {CONFIG} differs from the configuration in {WEIGHTS}. Copy both again; options such as "
            "strength are arguments of load_model."
        )
    params = {path: leaf.astype(np.float32, copy=False) for path, leaf in tensors.items()}
    return config_of(folder, metadata), unflatten(params), metadata


def download(repository: str) -> pathlib.Path:
    """Fetches the two files of a model from the Hugging Face hub, or finds them in its cache.

    With HF_HUB_OFFLINE=1 in the environment the cache alone is searched.

    Args:
        repository: owner/name.

    Raises:
        InputError: huggingface_hub is not installed, or there is no such model.
    """
    try:
        from huggingface_hub import errors, snapshot_download
    except ImportError:
        raise InputError(
            f"{repository}: no such folder; of the Hugging Face hub it would be a model, but the package "
            "huggingface_hub is not installed. Check the path, or pip install 'stablesam-jax[hub]'."
        ) from None
    try:
        found = snapshot_download(repository, allow_patterns=[CONFIG, WEIGHTS])
    except (OSError, ValueError, errors.HfHubHTTPError) as error:
        raise InputError(
            f"{repository}: no such folder, and no such model in the cache of the Hugging Face hub or on it "
            f"({type(error).__name__}). Check the name and the connection; HF_HUB_OFFLINE must not be set to fetch it."
        ) from None
    if not is_hub_folder(found):
        raise InputError(f"{repository}: this repository of the hub has no {CONFIG} with {WEIGHTS}. Give another one.")
    return pathlib.Path(found)
