"""The image embedding of one picture as a sealed safetensors file, for prompting later without the encoder.

The header identifies the model that made the embedding: its configuration without plugin, and a SHA-256 of the
parameters that the embedding depends on. So an embedding fits every plugin on one base, and no other model.
"""

import dataclasses
import json
from collections.abc import Mapping
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
ENCODING = ("image_encoder/.*",)  # parameters that an embedding depends on
FUSING_HQ = ("mask_decoder/(compress_vit_feat|embedding_encoder)_.*",)  # more of them in an HQ-SAM, after `Sam.fuse`
FUSING_SAM2 = ("mask_decoder/conv_s[01]/.*",)  # likewise in a SAM 2


def encoding(config: SamConfig, tree: params.Params) -> params.Params:
    """Selects the parameters that an embedding depends on.

    Args:
        config: of the model.
        tree: its parameters.
    """
    chosen, _ = params.split(tree, ENCODING + (FUSING_HQ if config.hq else FUSING_SAM2 if config.sam2 else ()))
    return chosen


def identity(config: SamConfig, tree: params.Params) -> dict[str, Any]:
    """Identifies a model as an encoder: name for messages, configuration without plugin, digest of the parameters.

    Args:
        config: of the model.
        tree: its parameters. Hashing those of `encoding` takes seconds per gigabyte.

    Returns:
        values in the form that JSON reads back.
    """
    base = dataclasses.replace(config, plugin=None)
    return {
        "model": f"{base.name} at {config.image_size} pixels in {config.dtype}",
        "config": json.loads(json.dumps(dataclasses.asdict(base))),
        "weights": params.digest(encoding(config, tree)),
    }


def difference(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> str:
    """Describes in a few words how two models differ as encoders; empty if they do not.

    Args:
        theirs, ours: `identity` of both.
    """
    if theirs["model"] != ours["model"]:
        return f"not {ours['model']}"
    if theirs["config"] != ours["config"]:
        fields = [key for key in ours["config"] if theirs["config"].get(key) != ours["config"][key]]
        return f"of another configuration ({', '.join(fields)})"
    return "with other weights" if theirs["weights"] != ours["weights"] else ""


def save_embedding(
    path: PathLike, embedding: ImageEmbedding, *, original_size: tuple[int, int], picture: str, maker: dict[str, Any]
) -> None:
    """Writes a new file atomically.

    Args:
        path: such as `NAME.safetensors`.
        embedding: of one picture, from `Sam.fuse`.
        original_size: height and width of the picture.
        picture: digest of the picture.
        maker: `identity` of the model.

    Raises:
        InputError: the file exists, or cannot be written.
    """
    about = {"version": __version__, "original_size": original_size, "picture": picture, **maker}
    sealed_file.write(path, _tensors(embedding), {HEADER: json.dumps(about)})


def load_embedding(
    path: PathLike, *, expected: ImageEmbedding, maker: dict[str, Any]
) -> tuple[ImageEmbedding, tuple[int, int], str]:
    """Reads a file after verifying every byte of it.

    Args:
        path: from `save_embedding`.
        expected: leaves with the `shape` and `dtype` of the model's embeddings.
        maker: `identity` of the model.

    Returns:
        embedding, on the default device; height and width of its picture; digest of its picture.

    Raises:
        InputError: the file is absent, damaged, not an embedding, or of another version or model.
    """
    tensors, header = sealed_file.read(path, kind="embedding", keys=(HEADER,))
    about = json.loads(header[HEADER])
    odd = _names(about) ^ _names({"version": "", "original_size": "", "picture": "", **maker})
    if odd and about.get("model", maker["model"]) == maker["model"]:
        raise InputError(
            f"{path}: another version of this package wrote it ({about.get('version', 'unknown')}; this is "
            f"{__version__}), with other fields in its header: {', '.join(sorted(odd)[:3])}. Encode the picture again."
        )
    if reason := difference(about, maker):
        raise InputError(f"{path}: made by {about['model']}, {reason}. Load that model, or encode the picture again.")
    check_arrays(path, describe(tensors), describe(_tensors(expected)))
    height, width = about["original_size"]
    return ImageEmbedding(**jax.device_put(tensors)), (height, width), about["picture"]


def _names(about: Mapping[str, Any], parents: str = "") -> set[str]:
    """Paths of all fields, nested ones too, such as `config.encoder.depth`."""
    names = set()
    for name, value in about.items():
        names |= {parents + name} | (_names(value, f"{parents}{name}.") if isinstance(value, Mapping) else set())
    return names


def _tensors(embedding: ImageEmbedding) -> dict[str, Any]:
    return {name: leaf for name, leaf in vars(embedding).items() if leaf is not None}
