"""What files may hold, for properties that must hold of any: pictures, masks, annotation files and names.

A property is "right, or refused in one line": `right_or_refused` runs it. A few examples belong to every run of the
tests, 2,000 to the slow ones.
"""

import copy
import io
import os

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st
from PIL import Image

from stablesam_jax.errors import InputError
from tests.reference.pictures import exif

FEW, MANY = 25, 2000
examples = pytest.mark.parametrize("examples", [FEW, pytest.param(MANY, marks=pytest.mark.slow)])


def holds_for(count, strategy, claim):
    """Tries a claim on so many values: the same few each time, others of the many."""
    settings = hypothesis.settings(
        max_examples=count,
        deadline=None,
        database=None,
        derandomize=count == FEW,
        suppress_health_check=[hypothesis.HealthCheck.too_slow, hypothesis.HealthCheck.data_too_large],
    )
    settings(hypothesis.given(strategy)(claim))()


def right_or_refused(call, *arguments):
    """What a call returns, or None where it refuses its input as it must: in one line that any terminal can show."""
    try:
        return call(*arguments)
    except InputError as error:
        message = str(error)
        assert message.isprintable()
        assert message.endswith(".")
        return None


# names

LONGEST = 200  # bytes, so that a suffix can follow
names = st.one_of(
    st.binary(min_size=1, max_size=20).map(lambda data: data.translate(None, b"/\0").lstrip(b".") or b"x"),
    st.text(min_size=1, max_size=60).map(
        lambda text: text.encode("utf-8", "surrogatepass").translate(None, b"/\0").lstrip(b".")[:LONGEST] or b"x"
    ),
).map(os.fsdecode)


# pictures

MODES = {  # suffix -> modes that it can hold
    "png": ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"),
    "tif": ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "LAB", "YCbCr", "I;16", "I", "F"),
    "jpg": ("L", "RGB", "CMYK"),
    "webp": ("RGB", "RGBA"),
    "bmp": ("1", "L", "P", "RGB"),
    "gif": ("L", "P"),
}


@st.composite
def picture_files(draw, suffixes=tuple(MODES)):
    """(suffix, bytes, stored size, orientation) of a sound picture of any kind."""
    suffix = draw(st.sampled_from(suffixes))
    mode = draw(st.sampled_from(MODES[suffix]))
    width, height = draw(st.integers(1, 24)), draw(st.integers(1, 24))
    orientation = draw(st.integers(1, 8)) if suffix in ("png", "tif", "jpg", "webp") else 1
    values = np.random.default_rng(draw(st.integers(0, 2**32 - 1))).integers(
        draw(st.sampled_from([2, 256, 4096, 65536])), size=(height, width), dtype=np.uint16
    )
    image = Image.fromarray(values) if mode == "I;16" else Image.fromarray(values.astype(np.uint8)).convert("RGB")
    if mode == "LAB":
        image = Image.frombytes("LAB", (width, height), image.tobytes())
    elif image.mode != mode:
        image = image.convert("L").convert(mode) if mode in ("1", "LA", "P", "I", "F") else image.convert(mode)
    frames = draw(st.integers(1, 2)) if suffix in ("tif", "gif", "png") else 1
    options = {"exif": exif(orientation)} if orientation > 1 else {}
    if frames > 1:
        options |= {"save_all": True, "append_images": [image]}
    data = io.BytesIO()
    formats = {"jpg": "JPEG", "tif": "TIFF"}
    image.save(data, formats.get(suffix, suffix.upper()), **options)
    return suffix, data.getvalue(), (width, height), orientation


@st.composite
def broken(draw, files):
    """Such files with a piece cut off or some bytes changed."""
    suffix, data, *_ = draw(files)
    data = bytearray(data[: draw(st.integers(0, len(data)))] if draw(st.booleans()) else data)
    for _ in range(draw(st.integers(0, 6)) if data else 0):
        data[draw(st.integers(0, len(data) - 1))] = draw(st.integers(0, 255))
    return suffix, bytes(data)


# masks


@st.composite
def labels(draw):
    """An array (H, W) of numbers as a mask may hold them, of 1, 8 or 16 bits."""
    dtype = draw(st.sampled_from([bool, np.uint8, np.uint16]))
    shape = draw(st.tuples(st.integers(1, 30), st.integers(1, 30)))
    most = {np.uint8: 255, np.uint16: 65535}.get(dtype, 1)
    number = st.one_of(st.integers(0, min(3, most)), st.integers(0, most), st.just(most))
    blocks = draw(st.lists(st.tuples(number, *[st.integers(0, 30)] * 4), max_size=6))
    label = np.full(shape, draw(st.sampled_from([0, 0, most])), dtype)
    for value, top, left, height, width in blocks:
        label[top : top + height, left : left + width] = value
    return label


# annotation files

_SCALARS = (None, True, False, -1, 0, 1, 2.0, 1.5, -0.0, 1e9, 1e308, float("nan"), float("inf"), 10**30, "", "1", "x")
_OTHERS = ("é\ud800", [], {}, [[]], [1], [[1, 2]], [[1, 2, 3]], {"size": [40, 60]}, {"size": [40, 60], "counts": "1"})
odd_values = st.sampled_from([*_SCALARS, *_OTHERS]).map(copy.deepcopy)  # they may be spoilt in their turn


@st.composite
def spoilt(draw, content):
    """Content of a JSON file with up to four values exchanged, added or left out, anywhere."""
    content = copy.deepcopy(content)
    for _ in range(draw(st.integers(0, 4))):
        places = list(_places(content))
        if not places:
            break
        holder, key = draw(st.sampled_from(places))
        if draw(st.booleans()) or not isinstance(holder, dict):
            holder[key] = draw(odd_values)
        else:
            del holder[key]
    return content


def _places(value):
    """(holder, key) of everything within."""
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, entry in entries:
        yield value, key
        yield from _places(entry)


coordinates = st.one_of(
    st.integers(-80, 140), st.floats(-100, 200, allow_nan=False), st.integers(-200, 400).map(lambda value: value / 2)
)
polygons = st.lists(st.tuples(coordinates, coordinates), min_size=3, max_size=12).map(
    lambda points: [float(value) for point in points for value in point]
)
