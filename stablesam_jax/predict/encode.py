"""From a user's pictures to `Picture`s, in batches."""

import os
from collections.abc import Sequence

import jax
import numpy as np
from PIL import Image

from stablesam_jax.errors import InputError
from stablesam_jax.files.picture_file import read_picture
from stablesam_jax.model.sam import ImageEmbedding, Sam
from stablesam_jax.params import Params
from stablesam_jax.predict import compiled
from stablesam_jax.predict.picture import Encoder, Picture, digest
from stablesam_jax.predict.preprocess import check_picture, preprocess

PICTURES = 4  # that are encoded at once by default

ImageLike = str | os.PathLike[str] | Image.Image | np.ndarray


def read(image: ImageLike, image_format: str, max_pixels: int) -> np.ndarray:
    """Reads any picture as (H, W, 3) uint8 RGB, see `Predictor.encode`."""
    if image_format not in ("RGB", "BGR"):
        raise InputError(f"image_format is {image_format!r}; it must be RGB or BGR.")
    if isinstance(image, str | os.PathLike | Image.Image):
        return read_picture(image, max_pixels=max_pixels)
    check_picture(picture := np.asarray(image))
    return picture if image_format == "RGB" else picture[..., ::-1]


def encode(
    sam: Sam, params: Params, encoder: Encoder, pictures: Sequence[np.ndarray], batch_size: int = PICTURES
) -> tuple[Picture, ...]:
    """Encodes pictures in one batch, padded to a power of two or to `batch_size`, by the program of that size.

    Args:
        sam, params: the model.
        encoder: the model's identity.
        pictures: (H, W, 3) uint8 RGB of any sizes, from 1 to `batch_size` of them.
        batch_size: the largest batch.
    """
    inputs = [preprocess(picture, sam.config) for picture in pictures]
    slot = min(1 << (len(pictures) - 1).bit_length(), batch_size)
    inputs += [inputs[-1]] * (slot - len(inputs))
    embeddings = _split(compiled.encoder(sam)(params, np.stack(inputs)))
    return tuple(
        Picture(embedding=embedding, original_size=picture.shape[:2], digest=digest(picture), model=encoder)
        for embedding, picture in zip(embeddings, pictures, strict=False)  # those of padding are dropped
    )


@jax.jit
def _split(embedding: ImageEmbedding) -> list[ImageEmbedding]:
    """B pictures -> a list of one each."""
    count = len(embedding.features)
    return [jax.tree.map(lambda leaf, place=place: leaf[place : place + 1], embedding) for place in range(count)]
