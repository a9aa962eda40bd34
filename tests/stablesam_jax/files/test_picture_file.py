"""Picture files: what is read is what a viewer shows; what cannot be trusted is refused in one line."""

import warnings

import cv2
import numpy as np
import pytest
from PIL import Image

from stablesam_jax.data import collage
from stablesam_jax.errors import InputError
from stablesam_jax.files.picture_file import read_picture
from tests.reference.pictures import disc, exif, ramp, refusal, save, turned

PHOTOGRAPH = collage.ASSETS / "im" / "rocket.jpg"


def test_a_picture_is_rgb_of_eight_bits(tmp_path):
    picture = read_picture(save(tmp_path / "a.png", ramp()))
    assert picture.dtype == np.uint8
    assert np.array_equal(picture, ramp())


def test_a_real_photograph_is_read_as_opencv_reads_it():
    assert np.array_equal(read_picture(PHOTOGRAPH), cv2.imread(str(PHOTOGRAPH))[..., ::-1])


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "tif", "webp"])
def test_a_picture_is_turned_upright(tmp_path, orientation, suffix):
    stored = np.ascontiguousarray(turned(ramp(), orientation))
    lossless = {"lossless": True} if suffix == "webp" else {}
    path = save(tmp_path / f"a.{suffix}", stored, exif=exif(orientation), **lossless)
    assert np.array_equal(read_picture(path), ramp())


def test_a_turned_picture_is_read_as_opencv_reads_it(tmp_path):
    path = save(tmp_path / "a.jpg", ramp(), exif=exif(6))
    assert np.array_equal(read_picture(path), cv2.imread(str(path))[..., ::-1])
    assert read_picture(path).shape == (36, 24, 3)


def test_an_orientation_that_does_not_exist_is_ignored(tmp_path):
    assert np.array_equal(read_picture(save(tmp_path / "a.png", ramp(), exif=exif(77))), ramp())


@pytest.mark.parametrize("mode", ["L", "1", "LA"])
def test_grey_becomes_three_equal_channels(tmp_path, mode):
    grey = Image.fromarray(disc().astype(np.uint8) * 255).convert(mode)
    picture = read_picture(save(tmp_path / "a.png", grey))
    assert np.array_equal(picture, np.stack([disc().astype(np.uint8) * 255] * 3, -1))


def test_sixteen_bits_are_scaled_and_not_cut(tmp_path):
    grey = np.linspace(0, 65535, 24 * 36).astype(np.uint16).reshape(24, 36)
    picture = read_picture(save(tmp_path / "a.png", grey))
    assert picture[..., 0] == pytest.approx(grey / 257, abs=1)
    assert (picture == picture[..., :1]).all()


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_pixels_without_a_known_white_are_refused(tmp_path, dtype):
    path = save(tmp_path / "a.tif", ramp()[..., 0].astype(dtype))
    assert "a.tif: has pixels of 32 bits" in refusal(read_picture, path)


def test_a_palette_is_looked_up(tmp_path):
    image = Image.new("P", (60, 40))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putdata(disc().astype(int).ravel().tolist())
    picture = read_picture(save(tmp_path / "a.png", image))
    assert np.array_equal(picture, np.where(disc()[..., None], (200, 100, 50), (10, 20, 30)))


def test_a_palette_with_transparent_entries_is_looked_up_without_a_warning(tmp_path):
    image = Image.new("P", (60, 40), 1)
    image.putpalette([10, 20, 30, 200, 100, 50])
    path = save(tmp_path / "a.png", image, transparency=bytes([0, 128]))
    assert (read_picture(path) == (200, 100, 50)).all()


def test_transparency_is_dropped(tmp_path):
    see_through = np.concatenate([ramp(), np.full((24, 36, 1), 7, np.uint8)], axis=-1)
    assert np.array_equal(read_picture(save(tmp_path / "a.png", see_through)), ramp())


def test_cmyk_becomes_rgb(tmp_path):
    path = save(tmp_path / "a.jpg", Image.new("CMYK", (8, 8), (0, 255, 255, 0)), quality=100)
    picture = read_picture(path).astype(int)
    assert picture.shape == (8, 8, 3)
    assert np.abs(picture - [255, 0, 0]).max() <= 5  # the JPEG's own loss


def test_the_content_decides_and_not_the_suffix(tmp_path):
    path = save(tmp_path / "a.gif", disc().astype(np.uint8) * 255).rename(tmp_path / "a.jpg")
    assert np.array_equal(read_picture(path)[..., 0] > 0, disc())


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "bmp", "tif"])
@pytest.mark.parametrize("share", [0, 0.01, 0.5, 0.9])
def test_a_picture_that_was_cut_short_is_refused(tmp_path, suffix, share):
    noise = np.random.default_rng(0).integers(256, size=(60, 90, 3), dtype=np.uint8)
    path = save(tmp_path / f"cut.{suffix}", noise)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    assert f"cut.{suffix}: cannot be read" in refusal(read_picture, path)


def test_what_is_no_picture_is_refused_by_name(tmp_path):
    text = tmp_path / "text.jpg"
    text.write_text("not a picture")
    assert refusal(read_picture, text).startswith(f"{text}: cannot be read (not a picture)")
    absent = tmp_path / "absent.jpg"
    assert refusal(read_picture, absent).startswith(f"{absent}: cannot be read (No such file or directory)")


def test_a_picture_too_large_to_be_one_is_refused_before_it_is_decoded(tmp_path, monkeypatch):
    path = save(tmp_path / "bomb.png", ramp())
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert "exceeds limit" in refusal(read_picture, path)


def test_whatever_is_broken_in_a_header_is_read_or_refused(tmp_path):
    data = exif(6)
    data[0x010F] = "maker"
    whole = save(tmp_path / "whole.jpg", ramp(), exif=data).read_bytes()
    generator = np.random.default_rng(1)
    outcomes = set()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's own, about the EXIF data
        for _ in range(300):
            broken = bytearray(whole)
            for place in generator.integers(0, 200, 3):
                broken[place] = generator.integers(256)
            path = tmp_path / "broken.jpg"
            path.write_bytes(broken)
            try:
                outcomes.add(read_picture(path).ndim)
            except InputError:
                outcomes.add("refused")
    assert outcomes == {3, "refused"}


def test_the_limit_is_checked_before_anything_is_decoded(tmp_path):
    path = save(tmp_path / "bomb.png", ramp())
    path.write_bytes(path.read_bytes()[:60])  # the header is whole, the pixels are not
    message = refusal(lambda: read_picture(path, max_pixels=24 * 36 - 1))
    assert message.startswith(f"{path}: has 36 x 24 pixels, more than the 863 that are allowed")
    assert read_picture(save(tmp_path / "a.png", ramp()), max_pixels=24 * 36).shape == (24, 36, 3)


def test_a_hundred_million_pixels_are_read_without_a_warning(tmp_path):
    path = save(tmp_path / "large.png", Image.new("1", (12000, 9000), 1), compress_level=1)
    picture = read_picture(path)
    assert picture.shape == (9000, 12000, 3)
    assert picture[::1000, ::1000].min() == 255


@pytest.mark.parametrize("size_hw", [(1, 1), (1, 5000), (5000, 1)])
def test_a_picture_of_a_line_or_a_pixel_is_a_picture(tmp_path, size_hw):
    assert read_picture(save(tmp_path / "a.png", ramp(*size_hw))).shape == (*size_hw, 3)


def test_an_opened_picture_is_read_as_its_file_is(tmp_path):
    path = save(tmp_path / "a.png", np.ascontiguousarray(turned(ramp(), 6)), exif=exif(6))
    with Image.open(path) as picture:
        assert np.array_equal(read_picture(picture), ramp())
        assert np.array_equal(read_picture(picture), ramp())  # it stays open
    with Image.open(path) as picture:
        refused = refusal(lambda: read_picture(picture, max_pixels=100))
    assert refused.startswith(f"{path}: has 24 x 36 pixels")
    assert refusal(lambda: read_picture(Image.new("F", (3, 3)))).startswith("the picture: has pixels of 32 bits")
