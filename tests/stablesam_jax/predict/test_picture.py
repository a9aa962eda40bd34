"""An encoded picture: what it is of, and who may use it."""

import dataclasses

import jax
import numpy as np
import pytest

from stablesam_jax.config import PluginConfig
from stablesam_jax.predict import picture
from stablesam_jax.predict.picture import Encoder, digest
from tests.reference import small

PIXELS = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)


def encoder(system):
    sam, params = system
    return Encoder(sam.config, params)


def test_one_changed_byte_or_another_shape_of_the_same_bytes_is_another_picture():
    changed = PIXELS.copy()
    changed[3, 4, 1] ^= 1
    pictures = [PIXELS, changed, PIXELS.reshape(7, 5, 3), PIXELS[..., ::-1]]
    assert len({digest(each) for each in pictures}) == 4
    assert digest(PIXELS) == digest(np.asfortranarray(PIXELS))


def test_the_same_arrays_encode_alike_without_a_look_at_their_bytes(monkeypatch):
    monkeypatch.setattr(picture.embedding_file, "identity", None)
    assert encoder(small.nano()) == encoder(small.nano())


def test_a_plugin_encodes_nothing_and_equal_arrays_encode_alike():
    sam, params = small.system(hq=False, plugin=PluginConfig())
    assert encoder((sam, jax.tree.map(np.copy, params))) == encoder(small.nano())


def test_another_weight_or_configuration_encodes_otherwise():
    sam, params = small.nano()
    larger = dataclasses.replace(sam.config, pixel_std=(1.0, 2.0, 3.0))
    assert Encoder(larger, params) != encoder(small.nano())
    changed = params | {"image_encoder": jax.tree.map(lambda leaf: leaf + 1, params["image_encoder"])}
    assert encoder((sam, changed)) != encoder(small.nano())
    assert encoder((sam, params | {"mask_decoder": {}})) == encoder(small.nano())
    assert encoder(small.nano()) != "sam_nano"


def test_it_says_what_it_is():
    assert str(encoder(small.nano())) == "sam_nano at 64 pixels in float32"


def test_a_picture_does_not_change():
    made = picture.Picture(embedding=None, original_size=(5, 7), digest="d", model=encoder(small.nano()))
    with pytest.raises(dataclasses.FrozenInstanceError):
        made.original_size = (1, 1)
    assert repr(made) == "Picture(original_size=(5, 7), digest='d')"
