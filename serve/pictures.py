"""Encoded pictures by the digest of their files: each is encoded once, and a bounded number is kept."""

import collections
import concurrent.futures
import hashlib
import io
import threading
from collections.abc import Callable

import numpy as np

from serve.refusal import Refusal
from stablesam_jax.errors import InputError
from stablesam_jax.files.picture_file import read_picture
from stablesam_jax.predict.picture import Picture
from stablesam_jax.predict.predictor import Predictor

MAX_SIDE = 20_000  # pixels; a mask is computed in padded rows, whose memory a picture one pixel high would multiply

Slot = concurrent.futures.Future[Picture]


class Pictures:
    """Encoded pictures. Threads may share it: those that ask for one picture at the same time wait for one encoding."""

    def __init__(self, encode: Callable[[bytes], Picture], most: int):
        """Keeps at most `most` pictures.

        Args:
            encode: the file of a picture -> the encoded picture.
            most: pictures that are kept; the least recently used are dropped.
        """
        self._encode = encode
        self._most = most
        self._lock = threading.Lock()
        self._kept: collections.OrderedDict[str, Slot] = collections.OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def add(self, content: bytes) -> tuple[str, Picture]:
        """The digest of a file, SHA-256 in hexadecimal, and the encoded picture.

        Raises:
            InputError: the file is not a picture that can be read.
        """
        key = hashlib.sha256(content).hexdigest()
        with self._lock:
            slot = self._kept.get(key)
            is_first = slot is None
            if slot is None:
                slot = self._kept[key] = concurrent.futures.Future()
            self._kept.move_to_end(key)
            while len(self._kept) > self._most:
                self._kept.popitem(last=False)
        if is_first:
            try:
                slot.set_result(self._encode(content))
            except BaseException as error:
                with self._lock:
                    if self._kept.get(key) is slot:
                        del self._kept[key]
                slot.set_exception(error)
        return key, slot.result()

    def held(self, key: str) -> Picture:
        """The encoded picture of a digest.

        Raises:
            Refusal: 404, it is not kept.
        """
        with self._lock:
            slot = self._kept.get(key)
            if slot is not None:
                self._kept.move_to_end(key)
        if slot is None:
            raise Refusal(404, f"picture {key[:12]}...: is not held here, or no longer; send the picture again.")
        return slot.result()


def encoder(predictor: Predictor, max_pixels: int) -> Callable[[bytes], Picture]:
    """The function that reads and encodes the file of a picture."""

    def encode(content: bytes) -> Picture:
        return predictor.encode(read(content, max_pixels))

    return encode


def read(content: bytes, max_pixels: int) -> np.ndarray:
    """Decodes the file of a picture, (H, W, 3) uint8.

    Raises:
        InputError: it cannot be read, or is too large.
    """
    pixels = read_picture(io.BytesIO(content), max_pixels=max_pixels)
    height, width = pixels.shape[:2]
    if max(height, width) > MAX_SIDE:
        raise InputError(f"the picture is {width} x {height} pixels; give one of at most {MAX_SIDE} a side.")
    return pixels
