"""Small pictures, files of them with EXIF data, and what every refusal must look like."""

import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from stablesam_jax.errors import InputError

ORIENTATION = 0x0112


def ramp(height=24, width=36):
    """A picture no two pixels of which agree in red and green."""
    rows, columns = np.mgrid[:height, :width].astype(np.uint8)
    return np.stack([rows * 5, columns * 5, np.full_like(rows, 90)], axis=-1)


def disc(height=40, width=60, radius=12):
    rows, columns = np.mgrid[:height, :width]
    return np.hypot(rows - height // 2, columns - width // 2) <= radius


def save(path, array, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = array if isinstance(array, Image.Image) else Image.fromarray(array)
    image.save(path, **options)
    return path


def raw_png(path, size, bits, colour_type, rows, orientation=1):
    """A PNG file of the bytes of its rows: Pillow writes neither 16 bits of colour nor 2 or 4 of grey."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    parts = {
        b"IHDR": struct.pack(">IIBBBBB", *size, bits, colour_type, 0, 0, 0),
        b"eXIf": exif(orientation).tobytes().removeprefix(b"Exif\0\0"),
        b"IDAT": zlib.compress(b"".join(b"\0" + row for row in rows)),
        b"IEND": b"",
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunk(kind, data) for kind, data in parts.items()))
    return path


def deep_png(path, array, orientation=1):
    """A PNG file of 16 bits a channel, (H, W, C): grey and alpha, colours, or colours and alpha."""
    height, width, channels = array.shape
    rows = [row.astype(">u2").tobytes() for row in array]
    return raw_png(path, (width, height), 16, {2: 4, 3: 2, 4: 6}[channels], rows, orientation)


def turned(array, orientation):
    """Stored pixels whose EXIF orientation leads back to `array`."""
    return {
        1: array,
        2: array[:, ::-1],
        3: array[::-1, ::-1],
        4: array[::-1],
        5: array.swapaxes(0, 1),
        6: np.rot90(array),
        7: array[::-1, ::-1].swapaxes(0, 1),
        8: np.rot90(array, -1),
    }[orientation]


def exif(orientation):
    data = Image.Exif()
    data[ORIENTATION] = orientation
    return data


def refusal(call, *arguments):
    with pytest.raises(InputError) as caught:
        call(*arguments)
    message = str(caught.value)
    assert "\n" not in message
    assert message.endswith(".")
    return message
