"""A service of a small model, and a client of its application."""

import base64
import io

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

from serve.application import application
from serve.limits import Limits
from serve.service import Service
from stablesam_jax.predict.predictor import Predictor
from stablesam_jax.predict.slots import Slots
from tests.reference import small

LIMITS = Limits(max_pixels=10_000, max_megabytes=1, max_points=4, pictures=3)
JITTERS = 3
SLOTS = Slots((4,), 8)  # a single shape, so that little is compiled


def png(seed=0, size_hw=(40, 60)):
    """The file of a picture of coarse blocks, and its pixels."""
    rng = np.random.default_rng(seed)
    blocks = Image.fromarray(rng.integers(0, 255, (5, 6, 3), np.uint8))
    image = blocks.resize(size_hw[::-1], Image.Resampling.BILINEAR)
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue(), np.asarray(image)


def in_base64(content):
    return base64.b64encode(content).decode()


def connect(service, origins=None, *, token=None, base_url="http://127.0.0.1", **options):
    return TestClient(application(service, origins, token=token), base_url=base_url, **options)


@pytest.fixture(scope="session")
def predictor():
    return Predictor(*small.stable_nano(), slots=SLOTS)


@pytest.fixture
def service(predictor):
    return Service(predictor, "small", limits=LIMITS, jitters=JITTERS)


@pytest.fixture
def client(service):
    return connect(service)


@pytest.fixture
def expected(predictor):
    """What the predictor answers to a prompt on a picture (H, W, 3)."""

    def expected(pixels, **prompt):
        return predictor.predict_stable(**prompt, jitters=JITTERS, picture=predictor.encode(pixels))

    return expected
