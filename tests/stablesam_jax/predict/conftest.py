"""A predictor whose programs compile in no time."""

import functools

import jax
import jax.numpy as jnp
import pytest

from stablesam_jax import Predictor
from stablesam_jax.model.mask_decoder import Masks
from stablesam_jax.model.sam import ImageEmbedding
from stablesam_jax.predict import compiled
from stablesam_jax.predict.picture import Picture
from tests.reference import small


@pytest.fixture
def stub(monkeypatch):
    """A predictor whose programs compile in no time, with the same inputs as the real ones.

    The answer to a prompt tells its place: logits are positive left of its first point.
    """
    sam, params = small.nano()

    @functools.cache
    def decoder(sam, masks="single", hq_token_only=False):
        count = {"single": 1, "multi": 3}[masks]
        side = sam.config.mask_size

        def decode(params, embedding, prompts):
            decoder.traced.append(prompts.labels.shape)
            edge = prompts.coords[:, :, 0, 0, None, None, None] * (side / sam.config.image_size)
            columns = jnp.arange(0.5, side).reshape(1, 1, 1, 1, side)
            logits = jnp.broadcast_to(edge - columns, (*edge.shape[:2], count, side, side))
            return Masks(logits, logits.mean((-1, -2)))

        return jax.jit(decode)

    decoder.traced = []
    monkeypatch.setattr(compiled, "decoder", decoder)
    ours = Predictor(sam, params)
    embedding = ImageEmbedding(jnp.ones((1, 4, 4, 256)))
    picture = Picture(embedding=embedding, original_size=(48, 64), digest="", model=ours._encoder)
    ours._current.set((picture,))  # S is 64: pixels are those of the model's frame
    return ours, decoder
