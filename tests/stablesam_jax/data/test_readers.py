"""Folders of pictures and masks: what is read is what a viewer shows, in the order of the names."""

import pathlib
import pickle

import numpy as np
import pytest
from PIL import Image

from stablesam_jax.data import collage, readers
from stablesam_jax.errors import InputError
from tests.reference.pictures import ORIENTATION, disc, ramp, refusal, save

ASSETS = collage.ASSETS


def pairs(folder, stems=("a", "b"), suffix=".png"):
    for stem in stems:
        save(folder / "im" / f"{stem}{suffix}", ramp(40, 60))
        save(folder / "gt" / f"{stem}.png", disc().astype(np.uint8) * 255)
    return folder


def test_every_shared_set_with_many_objects_is_read_whole(shared):
    for name, pictures, objects in (("droplets", 13, 151), ("msrc_cow", 30, 30)):
        source = readers.PairsFolder(shared / "data" / "train" / name)
        assert len(source) == pictures
        assert sum(len(source[index].masks) for index in range(pictures)) == objects


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
    assert "6 of 8 pictures have no mask here (b.png, d.png, e.png, f.png, g.png, ...)" in message


def test_two_pictures_of_one_name_are_refused(tmp_path):
    folder = pairs(tmp_path / "set")
    save(folder / "im" / "a.jpg", ramp())
    assert "a.jpg and a.png differ in suffix alone" in refusal(readers.PairsFolder, folder)


def test_a_folder_given_as_a_dot_has_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(pairs(tmp_path / "set"))
    assert readers.PairsFolder(pathlib.Path(".")).names == ["set/a", "set/b"]
    assert readers.PairsFolder(pathlib.Path("../set")).names == ["set/a", "set/b"]


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


def test_the_check_names_every_bad_pair_without_reading_it(tmp_path):
    for name in ("im", "gt"):
        (tmp_path / name).mkdir()
    for stem, size in (("a", (6, 4)), ("b", (6, 4)), ("c", (6, 4))):
        Image.new("RGB", size).save(tmp_path / "im" / f"{stem}.jpg")
    Image.new("L", (6, 4), 255).save(tmp_path / "gt" / "a.png")
    Image.new("L", (4, 6), 255).save(tmp_path / "gt" / "b.png")
    (tmp_path / "gt" / "c.png").write_bytes(b"text")
    with pytest.raises(InputError) as error:
        readers.PairsFolder(tmp_path).check()
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
    readers.PairsFolder(tmp_path).check()


# masks that are soft at their edges


def soft_pairs(folder, stems="ab"):
    for stem in stems:
        save(folder / f"{stem}.jpg", ramp(40, 60))
        save(folder / f"{stem}.png", disc().astype(np.uint8) * 255)
    return folder


def test_pictures_and_masks_of_one_folder_differ_by_their_suffix(tmp_path):
    source = readers.SoftPairs("fss", soft_pairs(tmp_path), tmp_path)
    assert source.names == ["fss/a", "fss/b"]
    assert np.array_equal(source[1].masks, disc()[None])
    assert source[1].numbers == (1,)


def test_a_folder_without_the_pictures_is_refused(tmp_path):
    assert refusal(readers.SoftPairs, "fss", tmp_path / "no", tmp_path) == f"{tmp_path / 'no'}: no such folder."
    assert "holds no picture NAME.jpg" in refusal(readers.SoftPairs, "fss", tmp_path, tmp_path)


# what is refused may be gathered


def test_what_has_no_twin_is_gathered_by_name_and_the_rest_is_read(tmp_path):
    folder = pairs(tmp_path / "set", "abcd")
    (folder / "gt" / "b.png").unlink()
    (folder / "im" / "d.png").unlink()
    refused = {}
    source = readers.PairsFolder(folder, refused)
    assert source.names == ["set/a", "set/c"]
    assert sorted(refused) == ["set/b", "set/d"]
    assert f"{folder}/im/b.png: has no mask in {folder}/gt" in refused["set/b"]
    assert f"{folder}/gt/d.png: the mask has no picture" in refused["set/d"]


def test_the_number_of_an_object_is_that_in_its_mask(tmp_path):
    folder = pairs(tmp_path / "set", "a")
    save(folder / "gt" / "a.png", disc().astype(np.uint8) * 7 + disc(radius=5))
    assert readers.PairsFolder(folder)[0].numbers == (7, 8)


def test_readers_can_be_sent_to_another_process(tmp_path):
    source = pickle.loads(pickle.dumps(readers.PairsFolder(pairs(tmp_path / "set"))))
    assert np.array_equal(source[1].masks, disc()[None])
