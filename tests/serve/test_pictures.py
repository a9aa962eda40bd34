"""A picture is encoded once, however many ask for it; the least recently used are dropped."""

import concurrent.futures
import hashlib
import threading

import pytest

from serve.pictures import MAX_SIDE, Pictures, read
from serve.refusal import Refusal
from stablesam_jax.errors import InputError
from tests.serve.conftest import png


class Encode:
    """Counts what is encoded."""

    def __init__(self, ready=None):
        self.asked, self.ready = [], ready

    def __call__(self, content):
        self.asked.append(content)
        if self.ready is not None:
            self.ready.wait(10)
        return content.upper()


def test_a_second_click_on_a_picture_does_not_encode_again(client, service, monkeypatch):
    encoded = []
    encode = type(service.predictor).encode
    monkeypatch.setattr(type(service.predictor), "encode", lambda *given: encoded.append(1) or encode(*given))
    (key, other), content = ("0" * 64, "1" * 64), png()[0]
    assert key != other
    for _ in range(2):
        digest = client.post("/v1/pictures", content=content).json()["picture"]
        for point in ([10, 10], [30, 20]):
            assert client.post("/v1/masks", json={"picture": digest, "points": [point]}).status_code == 200
    assert digest == hashlib.sha256(content).hexdigest()
    assert len(encoded) == 1


def test_eight_threads_wait_for_one_encoding():
    ready = threading.Event()
    encode = Encode(ready)
    pictures = Pictures(encode, 4)
    with concurrent.futures.ThreadPoolExecutor(8) as threads:
        found = [threads.submit(pictures.add, b"a") for _ in range(8)]
        ready.set()
        assert {one.result()[1] for one in found} == {b"A"}
    assert encode.asked == [b"a"]


def test_the_least_recently_used_is_dropped():
    encode = Encode()
    pictures = Pictures(encode, 2)
    keys = [pictures.add(content)[0] for content in (b"a", b"b")]
    pictures.held(keys[0])
    pictures.add(b"c")
    assert pictures.held(keys[0]) == b"A"
    with pytest.raises(Refusal, match="is not held here") as caught:
        pictures.held(keys[1])
    assert caught.value.status == 404
    assert len(pictures) == 2


def test_a_picture_that_fails_is_tried_again():
    answers = iter([InputError("broken."), b"whole"])

    def encode(_):
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    pictures = Pictures(encode, 2)
    with pytest.raises(InputError, match="broken"):
        pictures.add(b"a")
    assert len(pictures) == 0
    assert pictures.add(b"a")[1] == b"whole"


def test_a_picture_of_one_row_and_millions_of_columns_is_refused():
    content = png(size_hw=(1, MAX_SIDE + 1))[0]
    with pytest.raises(InputError, match="give one of at most 20000 a side"):
        read(content, 10**6)
