"""The image embedding of one picture as a sealed safetensors file, so that it is prompted later without its encoder.

The header says what the embedding depends on: the configuration without plugin, and a SHA-256 of the parameters that
encode. So an embedding serves every plugin on one base, and no other model.
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
ENCODING = ("image_encoder/.*",)  # parameters that decide an embedding; after `Sam.fuse`, of HQ-SAM also:
FUSING = ("mask_decoder/(compress_vit_feat|embedding_encoder)_.*",)


def encoding(config: SamConfig, tree: params.Params) -> params.Params:
    """The parameters that decide an embedding.

    Args:
        config: of the model.
        tree: its parameters.
    """
    chosen, _ = params.split(tree, ENCODING + (FUSING if config.hq else ()))
    return chosen


def identity(config: SamConfig, tree: params.Params) -> dict[str, Any]:
    """What decides the embedding of a picture, as JSON gives it back: the model in words, configuration, weights.

    Args:
        config: of the model.
        tree: its parameters; all that encode are read, which takes seconds for a gigabyte.
    """
    base = dataclasses.replace(config, plugin=None)
    try:
        name = base.name
    except LookupError:
        name = "a model without a name"
    return {
        "model": f"{name} at {config.image_size} pixels in {config.dtype}",
        "config": json.loads(json.dumps(dataclasses.asdict(base))),
        "weights": params.digest(encoding(config, tree)),
    }


def difference(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> str:
    """In what another model encodes otherwise, in a few words; empty if in nothing.

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
    """Writes a file that does not exist yet; it appears whole or not at all.

    Args:
        path: as `NAME.safetensors`.
        embedding: of one picture, from `Sam.fuse`.
        original_size: height and width of the picture.
        picture: digest of it.
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
        expected: leaves with the `shape` and `dtype` that the model gives.
        maker: `identity` of the model.

    Returns:
        embedding, on the default device; height and width of its picture; digest of it.

    Raises:
        InputError: the file is absent, damaged, no embedding, of another version, or that of another model.
    """
    tensors, header = sealed_file.read(path, kind="embedding", keys=(HEADER,))
    about = json.loads(header[HEADER])
    odd = _names(about) ^ _names({"version": "", "original_size": "", "picture": "", **maker})
    if odd and about.get("model", maker["model"]) == maker["model"]:
        raise InputError(
            f"{path}: another version of this package wrote it ({about.get('version', 'unknown')}; this is "
            f"{__version__}), with other fields in its header: {', '.join(sorted(odd)[:3])}. Encode the picture anew."
        )
    if reason := difference(about, maker):
        raise InputError(f"{path}: made by {about['model']}, {reason}. Load that model, or encode the picture anew.")
    check_arrays(path, describe(tensors), describe(_tensors(expected)))
    height, width = about["original_size"]
    return ImageEmbedding(**jax.device_put(tensors)), (height, width), about["picture"]


def _names(about: Mapping[str, Any], parents: str = "") -> set[str]:
    """Of all fields, those of fields too, as in `config.encoder.depth`."""
    names = set()
    for name, value in about.items():
        names |= {parents + name} | (_names(value, f"{parents}{name}.") if isinstance(value, Mapping) else set())
    return names


def _tensors(embedding: ImageEmbedding) -> dict[str, Any]:
    return {name: leaf for name, leaf in vars(embedding).items() if leaf is not None}
