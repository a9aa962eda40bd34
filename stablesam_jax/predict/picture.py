"""An encoded picture: all that prompts need of it, and by whom it was encoded."""

import dataclasses
import functools
import hashlib
from typing import Any

import jax
import numpy as np

from stablesam_jax.config import SamConfig
from stablesam_jax.files import embedding_file
from stablesam_jax.model.sam import ImageEmbedding
from stablesam_jax.params import Params


class Encoder:
    """What of a model decides an embedding: its configuration without plugin, and the parameters that encode.

    Two are equal if they encode every picture alike. Most often they share their arrays; only where they do not, bytes
    are read and compared, once, which takes seconds for a gigabyte.
    """

    def __init__(self, config: SamConfig, params: Params):
        self._config = dataclasses.replace(config, plugin=None)
        self._params = embedding_file.encoding(config, params)

    @functools.cached_property
    def identity(self) -> dict[str, Any]:
        """The same in words and digests, as files hold it."""
        return embedding_file.identity(self._config, self._params)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Encoder) or self._config != other._config:
            return NotImplemented if not isinstance(other, Encoder) else False
        ours, theirs = (jax.tree.leaves(encoder._params) for encoder in (self, other))
        if len(ours) == len(theirs) and all(one is another for one, another in zip(ours, theirs, strict=True)):
            return True
        return self.identity == other.identity

    __hash__ = None  # type: ignore[assignment]  # no digest is worth a look-up

    def __str__(self) -> str:
        return self.identity["model"]


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Picture:
    """What `Predictor.encode` made of a picture. It never changes, so threads may share it.

        picture = predictor.encode("dog.jpg")
        masks, iou_predictions, low_res_masks = predictor.predict(box=boxes, picture=picture)

    It holds on to the parameters of the encoder that made it.
    """

    embedding: ImageEmbedding = dataclasses.field(repr=False)  # B = 1, of HQ-SAM fused
    original_size: tuple[int, int]  # height and width in pixels
    digest: str  # SHA-256 of size and pixels, upright and in RGB
    model: Encoder = dataclasses.field(repr=False)  # what made it


def digest(picture: np.ndarray) -> str:
    """SHA-256 of the size and the bytes of (H, W, 3) uint8."""
    sha = hashlib.sha256(repr(picture.shape).encode())
    sha.update(np.ascontiguousarray(picture).data)
    return sha.hexdigest()
