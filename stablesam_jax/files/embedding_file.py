"""The image embedding of one picture as a sealed safetensors file, so that it is prompted later without its encoder.

The header says what the embedding depends on: the configuration without plugin, and a SHA-256 of the parameters that
encode. So an embedding serves every plugin on one base, and no other model.
"""

import dataclasses
import json
from typing import Any

import jax

from stablesam_jax import params
from stablesam_jax.config import SamConfig
from stablesam_jax.errors import InputError
from stablesam_jax.files import sealed_file
from stablesam_jax.files.checkpoint import check_arrays, describe
from stablesam_jax.files.disk import PathLike
from stablesam_jax.model.sam import ImageEmbedding
from stablesam_jax.version import __version__

HEADER = "embedding"
ENCODING = ("image_encoder/.*",)  # parameters that decide an embedding; after `Sam.fuse`, of HQ-SAM also:
FUSING = ("mask_decoder/(compress_vit_feat|embedding_encoder)_.*",)


def identity(config: SamConfig, tree: params.Params) -> dict[str, Any]:
    """What decides the embedding of a picture, as JSON gives it back: the model in words, its numbers, its weights.

    Args:
        config: of the model.
        tree: its parameters; all that encode are read, which takes seconds for a gigabyte.
    """
    base = dataclasses.replace(config, plugin=None)
    try:
        name = base.name
    except LookupError:
        name = "a model without a name"
    encoding, _ = params.split(tree, ENCODING + (FUSING if config.hq else ()))
    return {
        "model": f"{name} at {config.image_size} pixels in {config.dtype}",
        "config": json.loads(json.dumps(dataclasses.asdict(base))),
        "weights": params.digest(encoding),
    }


def save_embedding(
    path: PathLike, embedding: ImageEmbedding, *, original_size: tuple[int, int], maker: dict[str, Any]
) -> None:
    """Writes a file that does not exist yet; it appears whole or not at all.

    Args:
        path: as `NAME.safetensors`.
        embedding: of one picture, from `Sam.fuse`.
        original_size: height and width of the picture.
        maker: `identity` of the model.

    Raises:
        InputError: the file exists, or cannot be written.
    """
    about = {"version": __version__, "original_size": original_size, **maker}
    sealed_file.write(path, _tensors(embedding), {HEADER: json.dumps(about)})


def load_embedding(
    path: PathLike, *, expected: ImageEmbedding, maker: dict[str, Any]
) -> tuple[ImageEmbedding, tuple[int, int]]:
    """Reads a file after verifying every byte of it.

    Args:
        path: from `save_embedding`.
        expected: leaves with the `shape` and `dtype` that the model gives.
        maker: `identity` of the model.

    Returns:
        embedding, on the default device, and the height and width of its picture.

    Raises:
        InputError: the file is absent, damaged, no embedding, or that of another model.
    """
    tensors, header = sealed_file.read(path, kind="embedding", keys=(HEADER,))
    about = json.loads(header[HEADER])
    if any(about[key] != maker[key] for key in maker):
        reason = "with other weights" if about["model"] == maker["model"] else f"not {maker['model']}"
        raise InputError(f"{path}: made by {about['model']}, {reason}. Load that model, or encode the picture anew.")
    check_arrays(path, describe(tensors), describe(_tensors(expected)))
    height, width = about["original_size"]
    return ImageEmbedding(**jax.device_put(tensors)), (height, width)


def _tensors(embedding: ImageEmbedding) -> dict[str, Any]:
    return {name: leaf for name, leaf in vars(embedding).items() if leaf is not None}
