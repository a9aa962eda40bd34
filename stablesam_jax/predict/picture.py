"""An encoded picture, with the identity of the model that encoded it."""

import dataclasses
import functools
import hashlib
import os
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from stablesam_jax.config import SamConfig
from stablesam_jax.errors import InputError
from stablesam_jax.files import embedding_file
from stablesam_jax.model.sam import ImageEmbedding
from stablesam_jax.params import Params


class Encoder:
    """The encoder of a model: its configuration without plugin, and the parameters that embeddings depend on.

    Two are equal if they give the same embeddings. Usually they share arrays; otherwise bytes are hashed and compared,
    once, which takes seconds per gigabyte.
    """

    def __init__(self, config: SamConfig, params: Params):
        self._config = dataclasses.replace(config, plugin=None)
        self._params = embedding_file.encoding(config, params)

    @functools.cached_property
    def identity(self) -> dict[str, Any]:
        """The identity that embedding files contain, see `embedding_file.identity`."""
        return embedding_file.identity(self._config, self._params)

    def check(self, picture: object) -> None:
        """Raises InputError unless `picture` is a `Picture` that this encoder could have made."""
        if not isinstance(picture, Picture):
            raise InputError(f"picture is of type {type(picture).__name__}; give what `encode` returned.")
        if picture.model != self:
            reason = embedding_file.difference(picture.model.identity, self.identity)
            raise InputError(f"picture: encoded by {picture.model}, {reason}. Encode it with this predictor.")

    def load(self, path: str | os.PathLike[str], expected: Any) -> "Picture":
        """Reads a file of `Picture.save`.

        Args:
            path: of the file.
            expected: the embedding's tree with jax.ShapeDtypeStruct as leaves.

        Raises:
            InputError: the file is absent, damaged, or of another encoder.
        """
        embedding, original_size, digest = embedding_file.load_embedding(path, expected=expected, maker=self.identity)
        return Picture(embedding=embedding, original_size=original_size, digest=digest, model=self)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Encoder) or self._config != other._config:
            return NotImplemented if not isinstance(other, Encoder) else False
        ours, theirs = (jax.tree.leaves(encoder._params) for encoder in (self, other))
        if len(ours) == len(theirs) and all(one is another for one, another in zip(ours, theirs, strict=True)):
            return True
        return self.identity == other.identity

    __hash__ = None  # type: ignore[assignment]  # hashing would have to read all parameters

    def __str__(self) -> str:
        return self.identity["model"]


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Picture:
    """A picture encoded by `Predictor.encode`. Immutable, so threads may share it.

        picture = predictor.encode("dog.jpg")
        masks, iou_predictions, low_res_masks = predictor.predict(box=boxes, picture=picture)

    It keeps the encoder's parameters in memory.
    """

    embedding: ImageEmbedding = dataclasses.field(repr=False)  # B = 1, of HQ-SAM fused
    original_size: tuple[int, int]  # height and width in pixels
    digest: str  # SHA-256 of size and pixels, upright and in RGB
    model: Encoder = dataclasses.field(repr=False)  # that made the embedding

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the picture to a new file atomically, see `embedding_file`.

        Raises:
            InputError: the file exists or cannot be written.
        """
        embedding_file.save_embedding(
            path,
            self.embedding,
            original_size=self.original_size,
            picture=self.digest,
            maker=self.model.identity,
        )


def select(pictures: Sequence[Picture], image_index: int | None) -> Picture:
    """The picture of an index; without an index, the only one."""
    count = len(pictures)
    if count == 0:
        raise InputError("no picture is set; call set_image, set_images or load_embedding first.")
    if image_index is None and count > 1:
        raise InputError(f"{count} pictures are set; choose one with image_index, 0 to {count - 1}.")
    index = image_index or 0
    if not 0 <= index < count:
        raise InputError(f"image_index is {index}; it must be 0 to {count - 1}, for the pictures that are set.")
    return pictures[index]


def digest(picture: np.ndarray) -> str:
    """SHA-256 of the size and the bytes of (H, W, 3) uint8."""
    sha = hashlib.sha256(repr(picture.shape).encode())
    sha.update(np.ascontiguousarray(picture).data)
    return sha.hexdigest()
