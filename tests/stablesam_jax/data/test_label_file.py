"""Label files: exact masks that cannot be trusted are refused in one line, soft ones thresholded, classes kept."""

import cv2
import numpy as np
import pytest
from PIL import Image

from stablesam_jax.data import label_file
from stablesam_jax.errors import InputError
from tests.reference.pictures import deep_png, disc, exif, raw_png, refusal, save


@pytest.mark.parametrize("value", [1, 7, 127, 255])
def test_one_value_is_one_object(tmp_path, value):
    masks, numbers = label_file.read_masks(save(tmp_path / "a.png", disc().astype(np.uint8) * value), (40, 60))
    assert numbers == (value,)
    assert masks.dtype == bool
    assert np.array_equal(masks, disc()[None])


def test_a_mask_of_one_bit_is_one_object(tmp_path):
    assert np.array_equal(label_file.read_masks(save(tmp_path / "a.png", disc()), (40, 60))[0], disc()[None])


def test_every_number_is_an_object_and_255_is_none(tmp_path):
    label = np.zeros((15, 8), np.uint8)
    label[:3], label[3:6, 2:5], label[7:10], label[12:] = 3, 1, 254, 255
    masks, numbers = label_file.read_masks(save(tmp_path / "a.png", label), (15, 8))
    assert numbers == (1, 3, 254)
    assert np.array_equal(masks, np.stack([label == 1, label == 3, label == 254]))


def test_a_palette_counts_by_its_indices(tmp_path):
    image = Image.new("P", (60, 40))
    image.putpalette([0, 0, 0, 128, 0, 0, 255, 255, 255])
    label = disc().astype(np.uint8) + disc(radius=5)
    image.putdata(label.ravel().tolist())
    masks, _ = label_file.read_masks(save(tmp_path / "a.png", image), (40, 60))
    assert np.array_equal(masks, np.stack([label == 1, label == 2]))


@pytest.mark.parametrize("suffix", ["bmp", "tif", "gif", "webp"])
def test_any_lossless_file_holds_a_mask(tmp_path, suffix):
    path = save(tmp_path / f"a.{suffix}", disc().astype(np.uint8) * 255, lossless=True)
    assert np.array_equal(label_file.read_masks(path, (40, 60))[0], disc()[None])


@pytest.mark.parametrize("suffix", ["tif", "gif", "png"])
def test_a_file_of_several_masks_is_refused(tmp_path, suffix):
    other = Image.fromarray(disc(radius=5).astype(np.uint8))
    path = save(tmp_path / f"a.{suffix}", disc().astype(np.uint8), save_all=True, append_images=[other])
    assert "the mask has 2 frames or pages; store one" in refusal(label_file.read_masks, path, (40, 60))


@pytest.mark.parametrize("channels", [2, 3, 4])
def test_sixteen_bits_of_grey_in_colours_are_numbers(tmp_path, channels):
    label = disc().astype(np.uint16) * 300 + disc(radius=5)
    opaque = [np.full_like(label, 65535)] if channels != 3 else []
    path = deep_png(tmp_path / "a.png", np.stack([label] * (channels - len(opaque)) + opaque, axis=-1))
    masks, numbers = label_file.read_masks(path, (40, 60))
    assert numbers == (300, 301)
    assert np.array_equal(masks[1], disc(radius=5))


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA"])
def test_a_grey_mask_in_a_colour_file_is_a_mask(tmp_path, mode):
    path = save(tmp_path / "a.png", Image.fromarray(disc().astype(np.uint8) * 255).convert(mode))
    assert np.array_equal(label_file.read_masks(path, (40, 60))[0], disc()[None])


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize("value", [1, 300, 26001, 65535])
def test_one_value_of_sixteen_bits_is_one_object(tmp_path, value, suffix):
    label = disc().astype(np.uint16) * value
    masks, numbers = label_file.read_masks(save(tmp_path / f"a.{suffix}", label), (40, 60))
    assert numbers == (value,)
    assert np.array_equal(masks, disc()[None])


def test_sixteen_bits_hold_more_objects_than_eight(tmp_path):
    rows, columns = np.mgrid[:80, :120]
    label = (1 + rows // 4 * 30 + columns // 4).astype(np.uint16)  # 20 x 30 squares of 4 pixels
    masks, numbers = label_file.read_masks(save(tmp_path / "a.png", label), (80, 120))
    assert numbers == tuple(range(1, 601))
    assert np.array_equal(masks[254], label == 255)


@pytest.mark.parametrize("dtype", [np.uint16, np.int32])
def test_large_numbers_are_numbers(tmp_path, dtype):
    label = disc().astype(dtype) * 26001 + disc(radius=5) * dtype(7000)
    masks, numbers = label_file.read_masks(save(tmp_path / "a.tif", label), (40, 60))
    assert numbers == (26001, 33001)
    assert np.array_equal(masks, np.stack([label == 26001, label == 33001]))


def test_65535_is_ignored_where_numbers_exceed_255(tmp_path):
    label = np.zeros((15, 8), np.uint16)
    label[:3], label[3:6], label[6:10], label[10:] = 255, 256, 1000, 65535
    assert label_file.read_masks(save(tmp_path / "a.png", label), (15, 8))[1] == (255, 256, 1000)


@pytest.mark.parametrize("number", [1, 7])
@pytest.mark.parametrize("scale", [1, 257])
def test_a_thin_object_in_a_border_that_is_ignored_is_one_object(tmp_path, number, scale):
    label = np.zeros((180, 240), np.uint8 if scale == 1 else np.uint16)
    label[20:160, 98:108] = 255 * scale
    label[22:158, 102:104] = number * (1 if scale == 1 else 300)
    masks, numbers = label_file.read_masks(save(tmp_path / "a.png", label), (180, 240))
    assert numbers == (label[30, 102],)
    assert np.array_equal(masks, (label == numbers[0])[None])


def test_a_stray_pixel_does_not_turn_its_object_into_what_is_ignored(tmp_path):
    label = disc().astype(np.uint8) * 255
    label[20, 30] = 1
    assert "has grey levels (1)" in refusal(label_file.read_masks, save(tmp_path / "a.png", label), (40, 60))


def grey_png(path, bits, values):
    """A row of grey values of fewer than 8 bits."""
    row = int("".join(f"{value:0{bits}b}" for value in values), 2).to_bytes(len(values) * bits // 8)
    return raw_png(path, (len(values), 1), bits, 0, [row])


@pytest.mark.parametrize("bits", [2, 4])
def test_few_bits_hold_one_object_and_no_numbers_that_are_known(tmp_path, bits):
    path = grey_png(tmp_path / "a.png", bits, [0, 3, 3, 0])
    assert label_file.read_masks(path, (1, 4))[0].tolist() == [[[False, True, True, False]]]
    grey_png(path, bits, [0, 1, 2, 3])
    assert f"has {bits} bits a pixel, so that its numbers are not known" in refusal(label_file.read_masks, path, (1, 4))


@pytest.mark.parametrize("kind", [b"P5", b"P2"])
def test_numbers_of_a_pgm_file_are_those_that_it_holds_or_refused(tmp_path, kind):
    def write(numbers, largest):
        sizes = "u1" if largest < 256 else ">u2"
        pixels = np.array(numbers, sizes).tobytes() if kind == b"P5" else " ".join(map(str, numbers)).encode()
        (tmp_path / "a.pgm").write_bytes(kind + f" {len(numbers)} 1 {largest}\n".encode() + pixels)
        return tmp_path / "a.pgm"

    assert label_file.read_masks(write([0, 1, 2, 3], 255), (1, 4))[1] == (1, 2, 3)
    assert label_file.read_masks(write([0, 1, 1, 0], 3), (1, 4))[0].tolist() == [[[False, True, True, False]]]
    message = refusal(label_file.read_masks, write([0, 1, 2, 3], 3), (1, 4))  # 3 would be 255, which is ignored
    assert "has 2 bits a pixel, so that its numbers are not known" in message
    if kind == b"P5":
        assert label_file.read_masks(write([0, 1, 500, 1000], 1000), (1, 4))[1] == (1, 500, 1000)


def test_masks_that_no_memory_holds_are_refused_before_it_is_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(label_file, "MOST_MASK_BYTES", 2 * 40 * 60 - 1)
    label = disc().astype(np.uint8) + disc(radius=5)
    message = refusal(label_file.read_masks, save(tmp_path / "a.png", label), (40, 60))
    assert "holds 2 objects of a picture of 60 x 40 pixels" in message


def test_a_mask_is_turned_as_its_own_exif_data_say(tmp_path):
    path = save(tmp_path / "a.png", np.rot90(disc()).astype(np.uint8), exif=exif(6))
    assert np.array_equal(label_file.read_masks(path, (40, 60))[0], disc()[None])


def test_thin_objects_are_objects(tmp_path):
    label = np.zeros((20, 20), np.uint8)
    label[3], label[:, 7], label[15, 15] = 1, 2, 3
    assert len(label_file.read_masks(save(tmp_path / "a.png", label), (20, 20))[0]) == 3


def test_many_objects_are_objects(tmp_path):
    rows, columns = np.mgrid[:56, :72]
    label = (1 + rows // 4 * 18 + columns // 4).astype(np.uint8)  # 14 x 18 squares of 4 pixels
    assert len(label_file.read_masks(save(tmp_path / "a.png", label), (56, 72))[0]) == 252


def test_soft_masks_of_sixteen_bits_are_refused(tmp_path):
    soft = cv2.GaussianBlur(disc(400, 600, 150).astype(np.uint16) * 65535, (0, 0), 3)
    message = refusal(label_file.read_masks, save(tmp_path / "a.png", soft), soft.shape)
    assert "has grey levels" in message
    assert "threshold it to 0 and 65535" in message


SOFT = {
    "shrunk": lambda mask: cv2.resize(mask, (151, 101), interpolation=cv2.INTER_AREA),
    "enlarged": lambda mask: cv2.resize(mask, (1200, 800), interpolation=cv2.INTER_LINEAR),
    "blurred": lambda mask: cv2.GaussianBlur(mask, (0, 0), 3),
    "small and dim": lambda mask: cv2.GaussianBlur(cv2.resize(mask, (60, 40)), (0, 0), 3),
    "once JPEG": lambda mask: cv2.imdecode(cv2.imencode(".jpg", mask, [cv2.IMWRITE_JPEG_QUALITY, 95])[1], 0),
    "of 254 too": lambda mask: np.where(cv2.erode(mask, np.ones((3, 3))) == mask, mask, 254).astype(np.uint8),
    "a few grey pixels": lambda mask: np.where(np.arange(600) == 300, mask // 5, mask).astype(np.uint8),
    "trimap": lambda mask: (mask // 2 + cv2.dilate(mask, np.ones((25, 25))) // 2 + (mask > 0)).astype(np.uint8),
}


@pytest.mark.parametrize("kind", SOFT)
def test_soft_masks_are_refused(tmp_path, kind):
    label = SOFT[kind](disc(400, 600, 150).astype(np.uint8) * 255)
    assert len(np.unique(label)) > 2
    message = refusal(label_file.read_masks, save(tmp_path / "a.png", label), label.shape)
    assert "has grey levels" in message
    assert "threshold it to 0 and 255" in message


def test_a_lossy_file_is_refused_whatever_its_suffix(tmp_path):
    path = save(tmp_path / "a.jpg", disc().astype(np.uint8) * 255).rename(tmp_path / "a.png")
    assert "is a JPEG file, which blurs a mask" in refusal(label_file.read_masks, path, (40, 60))


def test_colours_are_refused(tmp_path):
    label = np.where(disc()[..., None], (128, 0, 0), (0, 0, 0)).astype(np.uint8)
    assert "the mask is coloured" in refusal(label_file.read_masks, save(tmp_path / "a.png", label), (40, 60))


def test_a_mask_in_the_transparency_is_refused(tmp_path):
    label = np.full((40, 60, 4), 255, np.uint8)
    label[..., 3] = disc() * 255
    assert "transparent in places" in refusal(label_file.read_masks, save(tmp_path / "a.png", label), (40, 60))


@pytest.mark.parametrize("mode", ["CMYK", "F"])
def test_pixels_of_another_kind_are_refused(tmp_path, mode):
    path = save(tmp_path / "a.tif", Image.new(mode, (60, 40)))
    assert f"pixels of mode {mode}" in refusal(label_file.read_masks, path, (40, 60))


def test_an_empty_mask_is_refused(tmp_path):
    path = save(tmp_path / "a.png", np.zeros((40, 60), np.uint8))
    assert refusal(label_file.read_masks, path, (40, 60)).startswith(f"{path}: the mask is empty")


def test_a_mask_of_another_size_is_refused_with_both_sizes(tmp_path):
    path = save(tmp_path / "a.png", disc().astype(np.uint8))
    assert "is 60 x 40 pixels, its picture 61 x 40; make" in refusal(label_file.read_masks, path, (40, 61))
    assert "one is turned; mind the EXIF" in refusal(label_file.read_masks, path, (60, 40))


def test_a_broken_mask_is_refused(tmp_path):
    path = save(tmp_path / "a.png", disc().astype(np.uint8))
    path.write_bytes(path.read_bytes()[:60])
    assert "a.png: cannot be read" in refusal(label_file.read_masks, path, (40, 60))


# soft masks


@pytest.mark.parametrize("mode", ["L", "RGB", "LA", "RGBA", "1", "P"])
def test_a_soft_mask_is_what_is_above_128_in_its_first_channel(tmp_path, mode):
    soft = cv2.GaussianBlur(disc().astype(np.uint8) * 255, (0, 0), 2)
    soft[0, :3] = 127, 128, 129
    expected = soft > 128
    if mode == "1":
        picture = Image.fromarray(expected)
    elif mode == "P":  # a palette of greys, of which 255 comes first
        picture = Image.fromarray(255 - soft).convert("P")
        picture.putpalette([255 - grey // 3 for grey in range(768)])
        picture.putdata((255 - soft).ravel().tolist())
    else:
        picture = Image.fromarray(soft).convert(mode)
    assert np.array_equal(label_file.read_soft_mask(save(tmp_path / "a.png", picture), (40, 60)), expected)


def test_a_soft_mask_ignores_all_channels_but_the_first(tmp_path):
    colours = np.zeros((40, 60, 3), np.uint8)
    colours[..., 0], colours[..., 1] = disc() * 255, 255
    assert np.array_equal(label_file.read_soft_mask(save(tmp_path / "a.png", colours), (40, 60)), disc())


def test_a_soft_mask_that_is_nowhere_above_128_is_refused(tmp_path):
    path = save(tmp_path / "a.png", disc().astype(np.uint8) * 3)
    message = refusal(label_file.read_soft_mask, path, (40, 60))
    assert message.startswith(f"{path}: the mask is empty (its largest value is 3, an object is above 128)")


def test_a_soft_mask_of_another_size_is_refused(tmp_path):
    path = save(tmp_path / "a.png", disc().astype(np.uint8) * 255)
    assert "is 60 x 40 pixels, its picture 30 x 20" in refusal(label_file.read_soft_mask, path, (20, 30))


# class maps


def test_a_class_map_keeps_its_numbers_and_255(tmp_path):
    label = np.array([[0, 1], [18, 255]], np.uint8)
    read = label_file.read_classes(save(tmp_path / "a.png", label), (2, 2), classes=19)
    assert read.dtype == np.uint8
    assert np.array_equal(read, label)


def test_a_class_map_of_one_bit_has_the_classes_0_and_1(tmp_path):
    read = label_file.read_classes(save(tmp_path / "a.png", disc()), (40, 60), classes=2)
    assert np.array_equal(read, disc())


def test_a_number_that_is_no_class_is_refused(tmp_path):
    path = save(tmp_path / "a.png", np.array([[0, 1], [19, 255]], np.uint8))
    with pytest.raises(InputError, match="holds 19, which is no class; give numbers from 0 to 18"):
        label_file.read_classes(path, (2, 2), classes=19)
