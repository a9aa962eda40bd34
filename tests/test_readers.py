"""Folders of pictures and masks: what is read is what a viewer shows; what cannot be trusted is refused in one line."""

import pathlib

import cv2
import numpy as np
import pytest
from PIL import Image

from stablesam_jax.data import collage, readers
from stablesam_jax.errors import InputError
from tests.reference.pictures import ORIENTATION, disc, exif, ramp, refusal, save

ASSETS = collage.ASSETS


def pairs(folder, stems=("a", "b"), suffix=".png"):
    for stem in stems:
        save(folder / "im" / f"{stem}{suffix}", ramp(40, 60))
        save(folder / "gt" / f"{stem}.png", disc().astype(np.uint8) * 255)
    return folder


# masks


@pytest.mark.parametrize("value", [1, 7, 127, 255])
def test_one_value_is_one_object(tmp_path, value):
    masks = readers.read_masks(save(tmp_path / "a.png", disc().astype(np.uint8) * value), (40, 60))
    assert masks.dtype == bool
    assert np.array_equal(masks, disc()[None])


def test_a_mask_of_one_bit_is_one_object(tmp_path):
    assert np.array_equal(readers.read_masks(save(tmp_path / "a.png", disc()), (40, 60)), disc()[None])


def test_every_number_is_an_object_and_255_is_none(tmp_path):
    label = np.zeros((15, 8), np.uint8)
    label[:3], label[3:6, 2:5], label[7:10], label[12:] = 3, 1, 254, 255
    masks = readers.read_masks(save(tmp_path / "a.png", label), (15, 8))
    assert np.array_equal(masks, np.stack([label == 1, label == 3, label == 254]))


def test_a_palette_counts_by_its_indices(tmp_path):
    image = Image.new("P", (60, 40))
    image.putpalette([0, 0, 0, 128, 0, 0, 255, 255, 255])
    label = disc().astype(np.uint8) + disc(radius=5)
    image.putdata(label.ravel().tolist())
    masks = readers.read_masks(save(tmp_path / "a.png", image), (40, 60))
    assert np.array_equal(masks, np.stack([label == 1, label == 2]))


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA"])
def test_a_grey_mask_in_a_colour_file_is_a_mask(tmp_path, mode):
    path = save(tmp_path / "a.png", Image.fromarray(disc().astype(np.uint8) * 255).convert(mode))
    assert np.array_equal(readers.read_masks(path, (40, 60)), disc()[None])


@pytest.mark.parametrize("value", [1, 300, 65535])
def test_sixteen_bits_hold_one_object_or_small_numbers(tmp_path, value):
    label = disc().astype(np.uint16) * value
    assert np.array_equal(readers.read_masks(save(tmp_path / "a.png", label), (40, 60)), disc()[None])
    label[0, 0] = 1
    if value > 255:
        assert f"numbers up to {value}" in refusal(readers.read_masks, save(tmp_path / "a.png", label), (40, 60))


def test_a_mask_is_turned_as_its_own_exif_data_say(tmp_path):
    path = save(tmp_path / "a.png", np.rot90(disc()).astype(np.uint8), exif=exif(6))
    assert np.array_equal(readers.read_masks(path, (40, 60)), disc()[None])


def test_thin_objects_are_objects(tmp_path):
    label = np.zeros((20, 20), np.uint8)
    label[3], label[:, 7], label[15, 15] = 1, 2, 3
    assert len(readers.read_masks(save(tmp_path / "a.png", label), (20, 20))) == 3


def test_many_objects_are_objects(tmp_path):
    rows, columns = np.mgrid[:56, :72]
    label = (1 + rows // 4 * 18 + columns // 4).astype(np.uint8)  # 14 x 18 squares of 4 pixels
    assert len(readers.read_masks(save(tmp_path / "a.png", label), (56, 72))) == 252


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
    message = refusal(readers.read_masks, save(tmp_path / "a.png", label), label.shape)
    assert "has grey levels" in message
    assert "threshold it to 0 and 255" in message


def test_a_lossy_file_is_refused_whatever_its_suffix(tmp_path):
    path = save(tmp_path / "a.jpg", disc().astype(np.uint8) * 255).rename(tmp_path / "a.png")
    assert "is a JPEG file, which blurs a mask" in refusal(readers.read_masks, path, (40, 60))


def test_colours_are_refused(tmp_path):
    label = np.where(disc()[..., None], (128, 0, 0), (0, 0, 0)).astype(np.uint8)
    assert "the mask is coloured" in refusal(readers.read_masks, save(tmp_path / "a.png", label), (40, 60))


def test_a_mask_in_the_transparency_is_refused(tmp_path):
    label = np.full((40, 60, 4), 255, np.uint8)
    label[..., 3] = disc() * 255
    assert "transparent in places" in refusal(readers.read_masks, save(tmp_path / "a.png", label), (40, 60))


@pytest.mark.parametrize("mode", ["CMYK", "F"])
def test_pixels_of_another_kind_are_refused(tmp_path, mode):
    path = save(tmp_path / "a.tif", Image.new(mode, (60, 40)))
    assert f"pixels of mode {mode}" in refusal(readers.read_masks, path, (40, 60))


def test_an_empty_mask_is_refused(tmp_path):
    path = save(tmp_path / "a.png", np.zeros((40, 60), np.uint8))
    assert refusal(readers.read_masks, path, (40, 60)).startswith(f"{path}: the mask is empty")


def test_a_mask_of_another_size_is_refused_with_both_sizes(tmp_path):
    path = save(tmp_path / "a.png", disc().astype(np.uint8))
    assert "is 60 x 40 pixels, its picture 61 x 40; make" in refusal(readers.read_masks, path, (40, 61))
    assert "one is turned; mind the EXIF" in refusal(readers.read_masks, path, (60, 40))


def test_a_broken_mask_is_refused(tmp_path):
    path = save(tmp_path / "a.png", disc().astype(np.uint8))
    path.write_bytes(path.read_bytes()[:60])
    assert "a.png: cannot be read" in refusal(readers.read_masks, path, (40, 60))


def test_every_shared_set_with_many_objects_is_read_whole(shared):
    for name, pictures, objects in (("droplets", 13, 151), ("msrc_cow", 30, 30)):
        source = readers.PairsFolder(shared / "data" / "train" / name)
        assert len(source) == pictures
        assert sum(len(source[index].masks) for index in range(pictures)) == objects


# folders


def test_the_embedded_pictures_are_pairs():
    source = readers.PairsFolder(ASSETS)
    assert source.names[0] == "collage_assets/astronaut"
    assert len(source) == 9
    first = source[0]
    assert first.masks.shape == (5, *first.picture.shape[:2])
    assert first.masks.any((1, 2)).all()


def test_pairs_come_in_the_order_of_their_names_and_hidden_or_other_files_do_not(tmp_path):
    pairs(tmp_path / "set", ("b", "a"))
    pairs(tmp_path / "set", ("C",), suffix=".PNG")
    (tmp_path / "set" / "gt" / "C.png").rename(tmp_path / "set" / "gt" / "C.PNG")
    for name in (".DS_Store", "._a.png", "notes.txt"):
        (tmp_path / "set" / "im" / name).write_bytes(b"\0")
    (tmp_path / "set" / "im" / "folder.jpg").mkdir()
    save(tmp_path / "set" / "gt" / "no_picture.png", disc())
    source = readers.PairsFolder(tmp_path / "set")
    assert source.names == ["set/C", "set/a", "set/b"]
    assert [source[index].name for index in range(3)] == source.names


def test_a_folder_without_the_layout_is_refused_with_the_layout(tmp_path):
    absent = tmp_path / "absent"
    assert refusal(readers.PairsFolder, absent).startswith(f"{absent}: no such folder")
    assert "holds no im/ and no gt/" in refusal(readers.PairsFolder, tmp_path)
    (tmp_path / "im").mkdir()
    assert "holds no gt/; pictures go to im/NAME.jpg" in refusal(readers.PairsFolder, tmp_path)
    (tmp_path / "gt").mkdir()
    assert "im: holds no picture (.bmp, .jpeg, .jpg" in refusal(readers.PairsFolder, tmp_path)


def test_pictures_without_a_mask_are_named_all_at_once(tmp_path):
    folder = pairs(tmp_path / "set", "abcdefgh")
    for stem in "bdefgh":
        (folder / "gt" / f"{stem}.png").unlink()
    message = refusal(readers.PairsFolder, folder)
    assert "6 of 8 pictures have no mask in gt/ (b.png, d.png, e.png, f.png, g.png, ...)" in message


def test_two_pictures_of_one_name_are_refused(tmp_path):
    folder = pairs(tmp_path / "set")
    save(folder / "im" / "a.jpg", ramp())
    assert "a.jpg and a.png differ in suffix alone" in refusal(readers.PairsFolder, folder)


def test_a_folder_given_as_a_dot_has_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(pairs(tmp_path / "set"))
    assert readers.PairsFolder(pathlib.Path(".")).names == ["set/a", "set/b"]
    assert readers.open_folders([pathlib.Path("../set")]).names == ["set/a", "set/b"]


def test_several_folders_follow_one_another(tmp_path):
    joined = readers.open_folders([pairs(tmp_path / "one"), pairs(tmp_path / "two")])
    assert joined.names == ["one/a", "one/b", "two/a", "two/b"]
    assert [joined[index].name for index in range(len(joined))] == joined.names


def test_two_folders_of_one_name_are_refused(tmp_path):
    folders = [pairs(tmp_path / "x" / "set"), pairs(tmp_path / "y" / "set")]
    assert "set: two data folders have this name" in refusal(readers.open_folders, folders)
    assert "set: two data folders have this name" in refusal(readers.open_folders, folders[:1] * 2)


def test_a_selection_keeps_its_own_order():
    source = readers.PairsFolder(ASSETS)
    chosen = readers.Selection(source, [8, 1])
    assert len(chosen) == 2
    assert chosen.names == ["collage_assets/rocket", "collage_assets/camera"]
    assert chosen[1].name == "collage_assets/camera"


def test_a_source_ends_where_its_pictures_end():
    source = readers.PairsFolder(ASSETS)
    for empty in (source, readers.Selection(source, range(9)), readers.Joined([source])):
        with pytest.raises(IndexError):
            empty[9]


def test_opening_a_folder_names_every_bad_pair_before_anything_is_read(tmp_path):
    for name in ("im", "gt"):
        (tmp_path / name).mkdir()
    for stem, size in (("a", (6, 4)), ("b", (6, 4)), ("c", (6, 4))):
        Image.new("RGB", size).save(tmp_path / "im" / f"{stem}.jpg")
    Image.new("L", (6, 4), 255).save(tmp_path / "gt" / "a.png")
    Image.new("L", (4, 6), 255).save(tmp_path / "gt" / "b.png")
    (tmp_path / "gt" / "c.png").write_bytes(b"text")
    with pytest.raises(InputError) as error:
        readers.open_folders([tmp_path])
    assert str(error.value) == (
        f"{tmp_path}/gt/b.png: the mask is 4 x 6 pixels, its picture 6 x 4 (make them equal); "
        f"{tmp_path}/gt/c.png: cannot be read (not a picture); replace the file."
    )


def test_the_header_check_turns_pictures_as_their_exif_says(tmp_path):
    for name in ("im", "gt"):
        (tmp_path / name).mkdir()
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    Image.new("RGB", (6, 4)).save(tmp_path / "im" / "a.jpg", exif=exif)
    Image.new("L", (4, 6), 255).save(tmp_path / "gt" / "a.png")
    assert len(readers.open_folders([tmp_path])) == 1
