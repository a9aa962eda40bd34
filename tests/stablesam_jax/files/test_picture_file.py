"""Picture files: what is read is what a viewer shows; what cannot be trusted is refused in one line."""

import struct
import warnings

import cv2
import numpy as np
import pytest
from PIL import Image, TiffImagePlugin, TiffTags

from stablesam_jax.data import collage
from stablesam_jax.errors import InputError
from stablesam_jax.files.picture_file import count_frames, read_header, read_picture, white_of
from tests.reference.pictures import deep_png, disc, exif, ramp, refusal, save, turned

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


# JPEG files at a part of their size


def small_and_full(path, reduce):
    return read_picture(path, reduce=reduce), read_picture(path)


@pytest.mark.parametrize("reduce", [2, 4, 8])
def test_a_reduced_photograph_is_the_mean_of_its_pixels(reduce):
    reduced, full = small_and_full(PHOTOGRAPH, reduce)
    height, width = full.shape[:2]
    assert reduced.shape == (-(-height // reduce), -(-width // reduce), 3)
    inside = full[: height // reduce * reduce, : width // reduce * reduce].astype(float)
    means = inside.reshape(height // reduce, reduce, width // reduce, reduce, 3).mean((1, 3))
    assert np.abs(reduced[: height // reduce, : width // reduce] - means).mean() < 1


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_reduced_picture_is_turned_upright(tmp_path, orientation):
    scene = np.kron(ramp()[:24, :32], np.ones((8, 8, 1), np.uint8))
    path = save(tmp_path / "a.jpg", np.ascontiguousarray(turned(scene, orientation)), exif=exif(orientation))
    reduced, full = small_and_full(path, 8)
    assert (full.shape, reduced.shape) == ((192, 256, 3), (24, 32, 3))
    assert np.abs(reduced.astype(int) - full[4::8, 4::8]).mean() < 6


@pytest.mark.parametrize(("orientation", "shape"), [(1, (13, 17, 3)), (3, (25, 33, 3))])
def test_sides_that_are_no_multiples_are_not_reduced_where_the_picture_is_turned(tmp_path, orientation, shape):
    path = save(tmp_path / "a.jpg", np.zeros((25, 33, 3), np.uint8), exif=exif(orientation))
    assert read_picture(path, reduce=2).shape == shape


def test_only_jpeg_files_are_reduced(tmp_path):
    reduced, full = small_and_full(save(tmp_path / "a.png", ramp()), 2)
    assert np.array_equal(reduced, full)
    assert read_picture(save(tmp_path / "a.jpg", ramp()[:1]), reduce=2).shape == (1, 36, 3)  # a pixel stays one


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


# How a camera's values of fewer bits lie in a file of 16.
@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
@pytest.mark.parametrize("share", [1, 0.6])
@pytest.mark.parametrize("suffix", ["png", "tif", "pgm"])
def test_white_is_that_of_the_bits_that_the_values_need(tmp_path, bits, share, suffix):
    white = 2**bits - 1
    values = np.round(np.linspace(0, share * white, 24 * 36)).astype(np.uint16).reshape(24, 36)
    picture = read_picture(save(tmp_path / f"a.{suffix}", values))
    assert np.array_equal(picture, np.stack([values.astype(int) * 255 // white] * 3, axis=-1))


@pytest.mark.parametrize("channels", [2, 3, 4])
@pytest.mark.parametrize("white", [4095, 65535])
def test_sixteen_bits_of_colour_keep_all_of_them(tmp_path, channels, white):
    colours = ramp().astype(np.uint16) * (white // 255)
    if channels == 2:
        colours = colours[..., :1]
    opaque = np.full((24, 36, 1), 65535, np.uint16)
    array = colours if channels == 3 else np.concatenate([colours, opaque], axis=-1)
    largest = 175 * (white // 255)
    expected = np.broadcast_to(colours.astype(int) * 255 // white_of(largest), (24, 36, 3))
    assert np.array_equal(read_picture(deep_png(tmp_path / "a.png", array)), expected)


@pytest.mark.parametrize("compression", [1, 5, 8])
@pytest.mark.parametrize("channels", [3, 4])
def test_a_tiff_of_sixteen_bits_of_colour_keeps_all_of_them(tmp_path, compression, channels):
    array = np.random.default_rng(0).integers(4096, size=(24, 36, channels)).astype(np.uint16)
    order = [2, 1, 0, 3][:channels]
    cv2.imwrite(str(tmp_path / "a.tif"), array[..., order], [cv2.IMWRITE_TIFF_COMPRESSION, compression])
    assert np.array_equal(read_picture(tmp_path / "a.tif"), array[..., :3].astype(int) * 255 // 4095)


def tiff(path, samples, **tags):
    """Writes (H, W, C) uint16, or in planes (C, H, W), as an uncompressed TIFF with one strip a plane."""
    apart = tags.get("planar") == 2
    planes = samples if apart else samples[None]
    channels, height, width = samples.shape if apart else (samples.shape[2], *samples.shape[:2])
    size = planes[0].nbytes
    entries = {256: [width], 257: [height], 258: [16] * channels, 259: [1], 262: [2]}
    entries |= {273: [8 + number * size for number in range(len(planes))], 277: [channels], 278: [height]}
    entries |= {279: [size] * len(planes), 284: [1 + apart]} | ({338: [tags["extra"]]} if "extra" in tags else {})
    at = 8 + planes.nbytes
    table, more = struct.pack("<H", len(entries)), b""
    for tag, values in entries.items():
        packed = struct.pack(f"<{len(values)}I", *values)
        place = at + 2 + 12 * len(entries) + 4 + len(more)
        table += struct.pack("<HHI", tag, 4, len(values)) + (packed if len(packed) == 4 else struct.pack("<I", place))
        more += packed if len(packed) > 4 else b""
    path.write_bytes(struct.pack("<2sHI", b"II", 42, at) + planes.astype("<u2").tobytes() + table + bytes(4) + more)
    return path


def test_a_further_channel_of_a_tiff_is_left_out(tmp_path):
    array = np.random.default_rng(0).integers(4096, size=(24, 36, 4)).astype(np.uint16)
    read = read_picture(tiff(tmp_path / "a.tif", array, extra=0))
    assert np.array_equal(read, array[..., :3].astype(int) * 255 // 4095)


@pytest.mark.parametrize(("shape", "tags"), [((3, 24, 36), {"planar": 2}), ((24, 36, 4), {"extra": 1})])
def test_planes_and_colours_times_alpha_of_sixteen_bits_are_refused(tmp_path, shape, tags):
    array = np.random.default_rng(0).integers(4096, size=shape).astype(np.uint16)
    message = refusal(read_picture, tiff(tmp_path / "a.tif", array, **tags))
    assert "a.tif: has 16 bits a channel in separate planes, or multiplied by alpha" in message


def test_a_file_that_says_how_large_its_values_may_be_is_believed(tmp_path):
    values = np.linspace(0, 3000, 24 * 36).astype(np.uint16).reshape(24, 36)
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    for stated, largest in ((65535, 3000 // 257), ("65535", 3000 * 255 // 4095)):  # a text is not a number
        tags.tagtype[281] = TiffTags.ASCII if isinstance(stated, str) else TiffTags.SHORT
        tags[281] = stated
        assert read_picture(save(tmp_path / "a.tif", values, tiffinfo=tags)).max() == largest


def test_a_ppm_file_of_sixteen_bits_of_colour_keeps_all_of_them(tmp_path):
    array = np.random.default_rng(0).integers(4096, size=(24, 36, 3)).astype(np.uint16)
    cv2.imwrite(str(tmp_path / "a.ppm"), array[..., ::-1])
    assert np.array_equal(read_picture(tmp_path / "a.ppm"), array.astype(int) * 255 // 4095)
    assert read_header(tmp_path / "a.ppm").deep


@pytest.mark.parametrize(("kind", "channels"), [(b"P5", 1), (b"P6", 3)])
def test_the_largest_value_that_a_pgm_or_ppm_file_states_is_its_white(tmp_path, kind, channels):
    values = np.linspace(0, 900, 24 * 36 * channels).astype(">u2").reshape(24, 36, channels)
    (tmp_path / "a.pnm").write_bytes(kind + b" 36 24 4095\n" + values.tobytes())
    assert np.array_equal(
        read_picture(tmp_path / "a.pnm"), np.broadcast_to(values, (24, 36, 3)).astype(int) * 255 // 4095
    )
    (tmp_path / "a.pnm").write_bytes(kind + b" 36 24 100\n" + (values // 9).astype(np.uint8).tobytes())
    assert read_picture(tmp_path / "a.pnm").max() == 255


def test_a_film_of_sixteen_bits_whose_zero_is_white_is_read_so(tmp_path):
    values = np.linspace(0, 65535, 24 * 36).astype(np.uint16).reshape(24, 36)
    path = save(tmp_path / "a.tif", values)
    data = path.read_bytes()
    black_is_zero = struct.pack("<HHIH", 262, 3, 1, 1)
    assert data.count(black_is_zero) == 1
    path.write_bytes(data.replace(black_is_zero, struct.pack("<HHIH", 262, 3, 1, 0)))
    assert np.array_equal(read_picture(path)[..., 0], (65535 - values) // 257)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_sixteen_bits_are_turned_upright_too(tmp_path, orientation):
    colours = np.ascontiguousarray(turned(ramp(), orientation)).astype(np.uint16) * 257
    assert np.array_equal(read_picture(deep_png(tmp_path / "a.png", colours, orientation)), ramp())
    grey = save(tmp_path / "a.tif", colours[..., 0], exif=exif(orientation))
    assert np.array_equal(read_picture(grey)[..., 0], ramp()[..., 0])


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp"])
def test_a_header_tells_the_size_as_the_picture_is_read(tmp_path, orientation, suffix):
    path = save(tmp_path / f"a.{suffix}", np.ascontiguousarray(turned(ramp(), orientation)), exif=exif(orientation))
    header = read_header(path)
    assert header.size == read_picture(path).shape[1::-1] == (36, 24)
    assert header.stored_size == ((24, 36) if orientation >= 5 else (36, 24))
    assert header.orientation == orientation


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


@pytest.mark.parametrize("name", ["a.HEIC", "a.jpg", "no_suffix"])
def test_a_heic_picture_is_named_whatever_its_name(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    assert refusal(read_picture, path) == f"{path}: is a HEIC picture, which is not read; convert it to JPEG or PNG."


def test_a_picture_of_a_kind_that_is_not_read_is_called_so(tmp_path):
    (tmp_path / "a.NEF").write_bytes(b"anything")
    assert "a.NEF: is a camera's raw picture, which is not read; convert" in refusal(read_picture, tmp_path / "a.NEF")
    (tmp_path / "a.jpg").write_bytes(b"")
    assert "a.jpg: cannot be read (the file is empty)" in refusal(read_picture, tmp_path / "a.jpg")


def test_no_program_is_run_for_a_picture(tmp_path):
    path = tmp_path / "a.jpg"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n")
    assert "cannot be read (not a picture)" in refusal(read_picture, path)


def test_of_several_pages_the_first_is_read_and_all_are_counted(tmp_path):
    other = Image.fromarray(np.zeros((24, 36, 3), np.uint8))
    for suffix in ("tif", "png"):
        path = save(tmp_path / f"a.{suffix}", ramp(), save_all=True, append_images=[other])
        assert np.array_equal(read_picture(path), ramp())
        assert count_frames(path) == 2


@pytest.mark.parametrize("mode", ["LAB", "YCbCr"])
def test_other_colour_spaces_become_rgb(tmp_path, mode):
    assert read_picture(save(tmp_path / "a.tif", Image.new(mode, (8, 6)))).shape == (6, 8, 3)


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


@pytest.mark.slow
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
