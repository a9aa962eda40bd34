"""Small pictures, files of them with EXIF data, and what every refusal must look like."""

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
