"""Reads picture files as upright RGB of 8 bits, whatever is stored.

Pillow decodes. Pictures are rotated by their EXIF orientation, as viewers show them.

Files of 16 bits may hold values of 8, 10, 12, 14 or 16 bits, depending on the camera or scanner. White is the largest
value of the smallest of these depths that holds every value of the picture. So nothing is clipped, brightness is linear
from black, and a picture of 12 bits, whose white would otherwise be 16 of 255, has its full range. A dark picture of 16
bits, with all values below a quarter of white, is brightened by an integer factor.
"""

import contextlib
import dataclasses
import numbers
import os
import pathlib
import struct
import sys
import threading
import warnings
import zlib
from collections.abc import Iterator
from typing import IO

import numpy as np
from PIL import ExifTags, Image, ImageFile, UnidentifiedImageError

from stablesam_jax.errors import InputError

MAX_PIXELS = 150_000_000  # half a gigabyte of RGB; a file of a few bytes may declare any size
# Formats that Pillow may decode. Not EPS, which runs an external program, nor formats without a magic number.
FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
SUFFIXES = frozenset(
    (
        *(".avif", ".bmp", ".gif", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg"),
        *(".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp"),
    )
)
UNREAD = {  # suffix of an unsupported format -> its name
    **dict.fromkeys((".heic", ".heif", ".hif"), "a HEIC picture"),
    **dict.fromkeys((".arw", ".cr2", ".cr3", ".dng", ".nef", ".orf", ".raf", ".raw", ".rw2"), "a camera's raw picture"),
    **dict.fromkeys((".exr", ".hdr"), "a picture without a known white"),
    **dict.fromkeys((".dcm", ".nii", ".nii.gz"), "a medical picture"),
    **dict.fromkeys((".npy", ".npz", ".mat"), "an array"),
    **{".jxl": "a JPEG XL picture", ".psd": "a Photoshop picture", ".svg": "a drawing", ".tga": "a Targa picture"},
}
CONVERT = "which is not read; convert it to JPEG or PNG"
HEIC_BRANDS = (b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1")
TIFF_BITS, TIFF_PHOTOMETRIC, TIFF_MAX_SAMPLE_VALUE, TIFF_PLANAR = 258, 262, 281, 284  # tags
MAXVAL = "maxval"  # in the info of a PGM or PPM file: the largest value that it may hold
PILLOWS_FAULTS = (  # exceptions that Pillow raises on broken files
    *(ArithmeticError, AttributeError, EOFError, LookupError, MemoryError, OSError, RuntimeError, SyntaxError),
    *(TypeError, ValueError, struct.error, zlib.error, Image.DecompressionBombError),
)

UPRIGHT = {  # EXIF orientation -> transposition that makes the stored picture upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
SIDEWAYS = (5, 6, 7, 8)  # the orientations that swap width and height
DEPTHS = (8, 10, 12, 14, 16)  # bits of cameras and scanners
# Pillow keeps only the high byte of 16-bit channels. Raw mode of the file -> raw mode with which it reads the low byte.
LOW_BYTES = {
    "RGB;16B": "RGB;16L",
    "RGB;16L": "RGB;16B",
    "RGBA;16B": "RGBA;16L",
    "RGBA;16L": "RGBA;16B",
    "RGBX;16B": "RGBX;16L",
    "RGBX;16L": "RGBX;16B",
    "LA;16B": "RGBA",  # as four bytes: two of grey, two of alpha
}
if sys.byteorder == "little":
    LOW_BYTES |= {"RGB;16N": "RGB;16B", "RGBA;16N": "RGBA;16B", "RGBX;16N": "RGBX;16B"}

Source = str | os.PathLike[str] | Image.Image | IO[bytes]


@dataclasses.dataclass(frozen=True)
class Header:
    """Size, orientation and depth of a picture, from its header."""

    size: tuple[int, int]  # W, H, upright
    orientation: int = 1  # EXIF, 1 to 8; 1 is upright as stored
    deep: bool = False  # 16 bits a channel

    @property
    def stored_size(self) -> tuple[int, int]:
        """W, H as stored, before the rotation by the orientation."""
        return self.size[::-1] if self.orientation in SIDEWAYS else self.size


@dataclasses.dataclass(frozen=True)
class Stored:
    """A decoded picture, upright, with the values of the file."""

    image: Image.Image
    deep: np.ndarray | None  # (H, W) or (H, W, C) uint16, if the file has 16 bits a channel
    white: int  # value of white in `deep`
    white_is_zero: bool  # whether `deep` is inverted, as in X-ray films
    raw: str  # Pillow's raw mode of the file, such as "L;4"


def read_picture(source: Source, *, max_pixels: int = MAX_PIXELS, reduce: int = 1) -> np.ndarray:
    """Reads a picture as (H, W, 3) uint8 RGB, upright by its EXIF orientation.

    Transparency is ignored: pixels have their stored colour. Of several frames or pages the first is read.

    Args:
        source: path of a file, an open file, or a picture that Pillow opened.
        max_pixels: largest H times W, checked before decoding. Pillow has its own, higher limit, twice
            PIL.Image.MAX_IMAGE_PIXELS.
        reduce: 1, 2, 4 or 8: a JPEG file is decoded at this part of its size, each side rounded up, in less time. Other
            formats have their full size, and so has a picture that is turned by its orientation if its sides are no
            multiples.

    Raises:
        InputError: the file is missing, broken, cut short, of floating-point pixels, or larger than `max_pixels`.
    """
    stored = read_stored(source, max_pixels=max_pixels, reduce=reduce)
    if stored.deep is not None:
        return _eight_bits(stored.deep, stored.white, white_is_zero=stored.white_is_zero)
    picture = stored.image
    if picture.mode in ("I", "F"):
        raise InputError(
            f"{_name(source)}: has pixels of 32 bits, whose white is not known; store 8 or 16 bits per channel."
        )
    with _faults(source):
        if "transparency" in picture.info:
            picture = picture.convert("RGBA")
        return np.asarray(picture if picture.mode == "RGB" else picture.convert("RGB"))


def read_stored(source: Source, *, max_pixels: int = MAX_PIXELS, reduce: int = 1) -> Stored:
    """Decodes a picture with the values of the file, and makes it upright; `reduce` as in `read_picture`.

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
        tags = getattr(picture, "tag_v2", {})  # of a TIFF
        said = tags.get(TIFF_MAX_SAMPLE_VALUE, 0)
        white_is_zero = tags.get(TIFF_PHOTOMETRIC) == 0
        largest = picture.info.get(MAXVAL, 0)
        raw = f"L;{largest.bit_length()}" if 0 < largest < 255 and picture.mode == "L" else _raw_mode(picture)
        bits = np.ravel(tags.get(TIFF_BITS, 8)).tolist()
        if len(bits) > 1 and max(bits) == 16 and (tags.get(TIFF_PLANAR) == 2 or raw.startswith("RGBa")):
            raise InputError(
                f"{_name(source)}: has 16 bits a channel in separate planes, or multiplied by alpha, which is not "
                "read; store them pixel by pixel, as in a PNG file."
            )
        # A side that is no multiple ends with a smaller pixel, which must not come first when the picture is turned.
        even = width % reduce == height % reduce == 0 or _orientation(picture) == 1
        if reduce > 1 and min(width, height) >= reduce and even:
            picture.draft(None, (width // reduce, height // reduce))  # of JPEG alone
        image = _loaded_upright(picture)
        deep = None
        if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM"):
            deep = np.asarray(image).astype(np.uint16)  # in native byte order
        elif raw in LOW_BYTES and not isinstance(source, Image.Image):  # an opened Image may be decoded already
            deep = _both_bytes(source, image, raw)
    if deep is None:
        return Stored(image, None, 255, False, raw)
    stated = [float(one) for one in np.ravel(said).tolist() if isinstance(one, numbers.Real)]  # may be a text
    stated.append(largest if largest < 65535 else 0)  # most programs write 65535, whatever the values need
    return Stored(image, deep, white_of(max([int(_colours(deep).max()), *stated])), white_is_zero, raw)


def white_of(largest: float) -> int:
    """The value of white in a picture of 16 bits with the given largest value.

    >>> [white_of(value) for value in (200, 900, 2288, 4095, 4096, 30000)]
    [255, 1023, 4095, 4095, 16383, 65535]
    """
    return next(2**bits - 1 for bits in DEPTHS if largest < 2**bits or bits == DEPTHS[-1])


def read_header(path: str | os.PathLike[str]) -> Header:
    """Size and orientation of a picture.

    Raises:
        InputError: it cannot be read.
    """
    with _opened(path) as picture:
        deep = picture.mode.startswith("I;16") or ";16" in _raw_mode(picture)
        orientation = _orientation(picture)  # decodes a PNG file, whose EXIF data may come last
        # Pillow swaps width and height of a rotated TIFF on opening, and of no other format.
        sideways = orientation in SIDEWAYS and picture.format != "TIFF"
        size = picture.size[::-1] if sideways else picture.size
        return Header(size, orientation, deep)


def count_frames(path: str | os.PathLike[str]) -> int:
    """Number of frames or pages of a file.

    Raises:
        InputError: it cannot be read.
    """
    with _opened(path) as picture:
        # An MPO file of a camera has a second picture, a preview of the first or its stereo partner.
        return 1 if picture.format == "MPO" else getattr(picture, "n_frames", 1)


def unread(path: pathlib.PurePath) -> str | None:
    """The name of an unsupported picture format by the file's suffix; None for other files."""
    name = path.name.lower()
    return next((what for suffix, what in UNREAD.items() if name.endswith(suffix)), None)


def _loaded_upright(picture: Image.Image) -> Image.Image:
    if isinstance(picture, ImageFile.ImageFile):
        # Pillow memory-maps an uncompressed grey TIFF that has a file name, and then scrambles a rotated one.
        name, picture.filename = picture.filename, ""
        picture.load()
        picture.filename = name
    # Not ImageOps.exif_transpose: it rewrites the EXIF data, which fails on data of some cameras.
    turn = UPRIGHT.get(_orientation(picture))
    if turn is None:
        return picture
    upright = picture.transpose(turn)
    upright.format = picture.format
    return upright


def _colours(deep: np.ndarray) -> np.ndarray:
    """Drops alpha of (H, W, C); returns (H, W) unchanged."""
    return deep[..., :3] if deep.ndim == 3 else deep


def _eight_bits(deep: np.ndarray, white: int, *, white_is_zero: bool) -> np.ndarray:
    """Converts a picture of 16 bits to (H, W, 3) uint8."""
    levels = (np.arange(white + 1) * 255 // white).astype(np.uint8)
    levels = levels[::-1] if white_is_zero else levels
    values = np.stack([levels[row] for row in _colours(deep)])  # row by row, because indexing makes int64 indices
    return values if values.ndim == 3 else np.stack([values] * 3, axis=-1)


def _raw_mode(picture: Image.Image) -> str:
    """Pillow's raw mode of a picture that is not decoded yet; "" if it has none."""
    args = picture.tile[0].args if isinstance(picture, ImageFile.ImageFile) and picture.tile else ""
    raw = args[0] if isinstance(args, tuple) and args else args
    return raw if isinstance(raw, str) else ""


def _both_bytes(source: Source, high: Image.Image, raw: str) -> np.ndarray:
    """The channels (H, W, C) uint16 of a picture, of which `high` has the high bytes."""
    if hasattr(source, "seek"):
        source.seek(0)
    with _opened(source) as picture:
        assert isinstance(picture, ImageFile.ImageFile)
        for number, tile in enumerate(picture.tile):
            args = (LOW_BYTES[raw], *tile.args[1:]) if isinstance(tile.args, tuple) else LOW_BYTES[raw]
            picture.tile[number] = tile._replace(args=args)
        low = np.asarray(_loaded_upright(picture)).astype(np.uint16)
    if raw == "LA;16B":
        grey, alpha = low[..., 0] * 256 + low[..., 1], low[..., 2] * 256 + low[..., 3]
        return np.stack([grey, grey, grey, alpha], axis=-1)
    return np.asarray(high).astype(np.uint16) * 256 + low


def _keep_values(picture: ImageFile.ImageFile) -> None:
    """Notes the largest value that a PGM or PPM file may hold, and has 16 bits decoded without being scaled by it."""
    (tile,) = picture.tile
    if not tile.codec_name.startswith("ppm") or not isinstance(tile.args, tuple):
        return
    mode, largest = tile.args
    picture.info[MAXVAL] = largest
    if tile.codec_name == "ppm" and largest > 255:  # not of numbers as text
        raw = "I;16B" if mode == "L" else "RGB;16B"
        picture.tile[0] = tile._replace(codec_name="raw", args=(raw, 0, 1))


def _orientation(picture: Image.Image) -> int:
    orientation = picture.getexif().get(ExifTags.Base.Orientation, 1)
    return orientation if orientation in UPRIGHT else 1


def _name(source: Source) -> str:
    if isinstance(source, Image.Image):
        return getattr(source, "filename", "") or "the picture"
    return os.fspath(source) if isinstance(source, str | os.PathLike) else "the picture"


_filters = threading.Lock()  # warnings.catch_warnings changes filters that all threads share


@contextlib.contextmanager
def _opened(source: Source) -> Iterator[Image.Image]:
    """Opens a picture without decoding it; Pillow's errors on bad files become an InputError."""
    with _faults(source):
        if isinstance(source, Image.Image):
            yield source
            return
        with _filters, warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # max_pixels is the limit here
            picture = Image.open(source, formats=FORMATS)
        with picture:
            if picture.format == "PPM":
                _keep_values(picture)
            yield picture


@contextlib.contextmanager
def _faults(source: Source) -> Iterator[None]:
    """Turns Pillow's errors on bad files into an InputError."""
    try:
        yield
    except InputError:
        raise
    except UnidentifiedImageError:
        raise InputError(f"{_name(source)}: {_no_picture(source)}.") from None
    except PILLOWS_FAULTS as error:
        reason = getattr(error, "strerror", None) or str(error).split("\n")[0].rstrip(".") or type(error).__name__
        raise InputError(f"{_name(source)}: cannot be read ({reason}); replace the file.") from error


def _no_picture(source: Source) -> str:
    """The message for a file that Pillow does not recognise."""
    if isinstance(source, str | os.PathLike):
        path = pathlib.Path(source)
        with open(path, "rb") as file:
            begins = file.read(12)
        if begins[4:8] == b"ftyp" and begins[8:] in HEIC_BRANDS:
            return f"is a HEIC picture, {CONVERT}"
        if (what := unread(path)) is not None:
            return f"is {what}, {CONVERT}"
        if not begins:
            return "cannot be read (the file is empty); replace the file"
    return "cannot be read (not a picture); replace the file"
