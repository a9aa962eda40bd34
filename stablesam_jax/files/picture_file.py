"""Picture files: upright RGB of 8 bits, whatever is stored.

Pillow decodes; pictures are turned as their EXIF data say, so they look as any viewer shows them.
"""

import contextlib
import os
import threading
import warnings
from collections.abc import Iterator
from typing import IO

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from stablesam_jax.errors import InputError

MAX_PIXELS = 150_000_000  # half a gigabyte of RGB; a file of a few bytes may claim any size
UPRIGHT = {  # EXIF orientation -> what turns the stored picture upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
SIDEWAYS = (5, 6, 7, 8)  # the orientations that swap width and height

Source = str | os.PathLike[str] | Image.Image | IO[bytes]


def read_picture(source: Source, *, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Reads a picture as (H, W, 3) uint8 RGB, turned upright as its EXIF data say.

    Grey values of 16 bits are scaled, not cut; where a picture is transparent, the colour stored beneath is shown.

    Args:
        source: path of a file, an open file, or a picture that Pillow opened.
        max_pixels: H times W at most, checked before anything is decoded. Pillow has a limit of its own above ours,
            twice PIL.Image.MAX_IMAGE_PIXELS.

    Raises:
        InputError: the file is missing, broken, cut short, of floating-point pixels, or larger than `max_pixels`.
    """
    picture = open_upright(source, max_pixels=max_pixels)
    if picture.mode.startswith("I;16"):  # Pillow would turn everything above 255 into white
        grey = (np.asarray(picture) // 257).astype(np.uint8)
        return np.stack([grey] * 3, axis=-1)
    if picture.mode in ("I", "F"):
        raise InputError(
            f"{_name(source)}: has pixels of 32 bits, whose white is not known; store 8 or 16 bits per channel."
        )
    if "transparency" in picture.info:
        picture = picture.convert("RGBA")
    return np.asarray(picture if picture.mode == "RGB" else picture.convert("RGB"))


def open_upright(source: Source, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """The decoded picture, upright, in its own mode.

    Raises:
        InputError: it cannot be read, or is larger than `max_pixels`.
    """
    with _opened(source) as picture:
        width, height = picture.size
        if width * height > max_pixels:
            raise InputError(
                f"{_name(source)}: has {width} x {height} pixels, more than the {max_pixels} that are allowed; "
                "make it smaller or raise max_pixels."
            )
        picture.load()
        # Not ImageOps.exif_transpose: it writes the EXIF data anew, which fails on what some cameras put there.
        turn = UPRIGHT.get(_orientation(picture))
        if turn is None:
            return picture
        upright = picture.transpose(turn)
        upright.format = picture.format
        return upright


def upright_size(path: str | os.PathLike[str]) -> tuple[int, int]:
    """Width and height of a picture as its EXIF turns it, from the header alone.

    Raises:
        InputError: it cannot be read.
    """
    with _opened(path) as picture:
        return picture.size[::-1] if _orientation(picture) in SIDEWAYS else picture.size


def _orientation(picture: Image.Image) -> int:
    return picture.getexif().get(ExifTags.Base.Orientation, 1)


def _name(source: Source) -> str:
    if isinstance(source, Image.Image):
        return getattr(source, "filename", "") or "the picture"
    return os.fspath(source) if isinstance(source, str | os.PathLike) else "the picture"


_filters = threading.Lock()  # Python's warning filters are one list for all threads


@contextlib.contextmanager
def _opened(source: Source) -> Iterator[Image.Image]:
    """The picture before it is decoded; what Pillow raises on a bad file becomes an InputError."""
    try:
        if isinstance(source, Image.Image):
            yield source
            return
        with _filters, warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the limit is the caller's
            picture = Image.open(source)
        with picture:
            yield picture
    except InputError:
        raise
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        unidentified = isinstance(error, UnidentifiedImageError)
        reason = "not a picture" if unidentified else getattr(error, "strerror", None) or str(error).split("\n")[0]
        raise InputError(f"{_name(source)}: cannot be read ({reason}); replace the file.") from error
