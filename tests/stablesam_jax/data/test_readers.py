"""Folders of pictures and masks: what is read is what a viewer shows, in the order of the names."""

import os
import pathlib
import pickle
import unicodedata

import numpy as np
import pytest
from PIL import Image

from stablesam_jax.data import collage, readers
from stablesam_jax.errors import shown
from tests.reference.pictures import disc, exif, ramp, refusal, save, turned

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
    for name in (".DS_Store", "._a.png", "Thumbs.db", "notes.txt"):
        (tmp_path / "set" / "im" / name).write_bytes(b"\0")
    (tmp_path / "set" / "im" / "folder.jpg").mkdir()
    (tmp_path / "set" / "im" / ".hidden").mkdir()
    source = readers.PairsFolder(tmp_path / "set")
    assert source.names == ["set/C", "set/a", "set/b"]
    assert [source[index].name for index in range(3)] == source.names


def test_a_folder_without_the_layout_is_refused_with_the_layout(tmp_path):
    assert "holds no im/ and no gt/" in refusal(readers.PairsFolder, tmp_path)
    (tmp_path / "im").mkdir()
    assert "holds no gt/; pictures go to im/NAME.jpg" in refusal(readers.PairsFolder, tmp_path)
    (tmp_path / "gt").mkdir()
    assert "im: holds no picture (.avif, .bmp, .gif" in refusal(readers.PairsFolder, tmp_path)


def test_pictures_without_a_mask_are_named_all_at_once(tmp_path):
    folder = pairs(tmp_path / "set", "abcdefgh")
    for stem in "bdefgh":
        (folder / "gt" / f"{stem}.png").unlink()
    message = refusal(readers.PairsFolder, folder)
    for stem in "bdefg":
        assert f"{folder}/im/{stem}.png: has no mask in {folder}/gt" in message
    assert message.endswith("; and 1 more.")


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
    for stem, size in (("a", (6, 4)), ("b", (6, 4)), ("c", (6, 4))):
        save(tmp_path / "im" / f"{stem}.jpg", Image.new("RGB", size))
    save(tmp_path / "gt" / "a.png", Image.new("L", (6, 4), 255))
    save(tmp_path / "gt" / "b.png", Image.new("L", (4, 6), 255))
    (tmp_path / "gt" / "c.png").write_bytes(b"text")
    found = []
    readers.PairsFolder(tmp_path).check(found)
    assert [(finding.kind, finding.line) for finding in found] == [
        ("size", f"{tmp_path}/im/b.jpg: is 6 x 4 pixels, and 4 x 6 in {tmp_path}/gt/b.png; make them equal."),
        ("mask", f"{tmp_path}/gt/c.png: cannot be read (not a picture); replace the file."),
    ]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp"])
def test_a_mask_of_the_picture_as_it_is_stored_is_refused_or_said_to_be_doubtful(tmp_path, orientation, suffix):
    stored = np.ascontiguousarray(turned(ramp(), orientation))
    save(tmp_path / "im" / f"a.{suffix}", stored, exif=exif(orientation))
    save(tmp_path / "gt" / "a.png", Image.fromarray(stored[..., 0] > 60))
    found = []
    readers.PairsFolder(tmp_path).check(found)
    if orientation == 1:
        assert found == []
    elif orientation < 5:
        (finding,) = found
        assert (finding.kind, finding.severity) == ("turned", "hint")
        assert f"has the EXIF orientation {orientation}, {tmp_path}/gt/a.png none; make sure" in finding.text
    else:
        (finding,) = found
        assert finding.kind == "size"
        assert "24 x 36 before its EXIF data turn it, and 24 x 36 in" in finding.text
        assert "the label was drawn without them" in finding.text


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_mask_of_the_upright_picture_is_not_doubted_where_its_size_shows_it(tmp_path, orientation):
    save(tmp_path / "im" / "a.png", np.ascontiguousarray(turned(ramp(), orientation)), exif=exif(orientation))
    save(tmp_path / "gt" / "a.png", disc(24, 36, 8))
    found = []
    readers.PairsFolder(tmp_path).check(found)
    assert [finding.kind for finding in found] == (["turned"] if orientation in (2, 3, 4) else [])


@pytest.mark.parametrize("orientation", range(2, 9))
def test_in_a_square_every_turn_is_doubtful_and_a_mask_that_is_turned_alike_is_not(tmp_path, orientation):
    picture = save(tmp_path / "im" / "a.png", ramp(30, 30), exif=exif(orientation))
    mask = save(tmp_path / "gt" / "a.png", disc(30, 30, 8))
    for of_picture, of_mask, kinds in (
        (orientation, 1, ["turned"]),
        (1, orientation, ["turned"]),
        (orientation, orientation, []),
    ):
        save(picture, ramp(30, 30), exif=exif(of_picture))
        save(mask, disc(30, 30, 8), exif=exif(of_mask))
        found = []
        readers.PairsFolder(tmp_path).check(found)
        assert [finding.kind for finding in found] == kinds


# names


def test_pictures_in_folders_have_masks_in_the_same_folders(tmp_path):
    for stem in ("a", "x/a", "x/y/b"):
        pairs(tmp_path / "set", [stem])
    (tmp_path / "set" / "im" / "x" / "back").symlink_to(tmp_path / "set" / "im")
    source = readers.PairsFolder(tmp_path / "set")
    assert source.names == ["set/a", "set/x/a", "set/x/y/b"]


NAMES = {
    "no UTF-8": os.fsdecode(b"caf\xe9"),
    "a line break": "a\nb",
    "control characters": "a\x1b[31m\tb\x7f",
    "long": "x" * 251,
    "blanks": "  a  ",
    "other letters": "日本語 ñ",
    "a direction": "a\u202eb",
    "composed": unicodedata.normalize("NFC", "éü"),
    "decomposed": unicodedata.normalize("NFD", "éü"),
    "dots": "a.b.c",
    "a dash": "-rf",
    "quotes": """'a"b`$(c)""",
    "a backslash": "a\\b",
    "brackets": "[bold]a[/bold]*?",
}


@pytest.mark.parametrize("kind", NAMES)
def test_a_picture_is_found_whatever_its_name_and_is_called_by_what_any_terminal_can_show(tmp_path, kind):
    source = readers.PairsFolder(pairs(tmp_path / "set", [NAMES[kind]]))
    assert source.names == [f"set/{shown(NAMES[kind])}"]
    assert source.names[0].isprintable()
    assert np.array_equal(source[0].masks, disc()[None])


def test_a_mask_whose_name_has_another_unicode_form_belongs_to_its_picture(tmp_path):
    composed, decomposed = NAMES["composed"], NAMES["decomposed"]
    folder = pairs(tmp_path / "set", [composed])
    (folder / "gt" / f"{composed}.png").rename(folder / "gt" / f"{decomposed}.png")
    assert readers.PairsFolder(folder).names == [f"set/{composed}"]


def test_two_pictures_that_differ_in_their_unicode_form_alone_are_two(tmp_path):
    folder = pairs(tmp_path / "set", [NAMES["composed"], NAMES["decomposed"]])
    assert len(readers.PairsFolder(folder)) == 2


def test_pictures_of_a_kind_that_is_not_read_are_named(tmp_path):
    folder = pairs(tmp_path / "set", "ab")
    (folder / "im" / "a.png").rename(folder / "im" / "a.HEIC")
    assert "a.HEIC: is a HEIC picture, which is not read; convert it to JPEG or PNG" in refusal(
        readers.PairsFolder, folder
    )
    (folder / "im" / "b.png").unlink()
    assert "a.HEIC: is a HEIC picture" in refusal(readers.PairsFolder, folder)


def test_a_mask_that_may_be_blurred_is_named_and_not_missed(tmp_path):
    folder = pairs(tmp_path / "set", "a")
    (folder / "gt" / "a.png").rename(folder / "gt" / "a.jpg")
    assert f"{folder}/gt/a.jpg: is of a format that may blur a mask" in refusal(readers.PairsFolder, folder)


def test_a_mask_that_is_not_read_is_named_and_not_missed(tmp_path):
    folder = pairs(tmp_path / "set", "ab")
    (folder / "gt" / "a.png").rename(folder / "gt" / "a.npy")
    (folder / "gt" / "b.npy").write_bytes(b"")  # beside the mask: of another program
    message = refusal(readers.PairsFolder, folder)
    assert message.endswith(f"{folder}/gt/a.npy: is an array; store 0 and 255, or a number per object, as PNG.")


@pytest.mark.parametrize("suffix", ["tif", "bmp", "TIFF"])
def test_masks_of_other_formats_are_found(tmp_path, suffix):
    folder = pairs(tmp_path / "set", "a")
    (folder / "gt" / "a.png").unlink()
    save(folder / "gt" / f"a.{suffix}", disc().astype(np.uint8) * 255)
    assert np.array_equal(readers.PairsFolder(folder)[0].masks, disc()[None])


def test_a_link_that_leads_nowhere_and_an_empty_file_are_named(tmp_path):
    folder = pairs(tmp_path / "set", "abc")
    (folder / "im" / "a.png").unlink()
    (folder / "im" / "a.png").symlink_to(tmp_path / "absent.png")
    (folder / "gt" / "b.png").write_bytes(b"")
    found = []
    readers.PairsFolder(folder).check(found)
    assert [finding.kind for finding in found] == ["picture", "mask"]
    assert "a.png: cannot be read (No such file or directory)" in found[0].line
    assert "b.png: cannot be read (the file is empty)" in found[1].line


def test_a_folder_whose_mask_lies_beside_its_picture(tmp_path):
    save(tmp_path / "set" / "a.jpg", ramp(40, 60))
    save(tmp_path / "set" / "a.png", disc().astype(np.uint8) * 255)
    found = []
    source = readers.Beside(tmp_path / "set", found)
    assert (source.names, found) == (["set/a"], [])
    assert np.array_equal(source[0].masks, disc()[None])


# masks that are soft at their edges


def soft_pairs(folder, stems="ab"):
    for stem in stems:
        save(folder / f"{stem}.jpg", ramp(40, 60))
        save(folder / f"{stem}.png", disc().astype(np.uint8) * 255)
    return folder


def test_pictures_and_masks_of_one_folder_differ_by_their_suffix(tmp_path):
    source = readers.SoftPairs("fss", soft_pairs(tmp_path), tmp_path, [])
    assert source.names == ["fss/a", "fss/b"]
    assert np.array_equal(source[1].masks, disc()[None])
    assert source[1].numbers == (1,)


def test_a_folder_without_the_pictures_is_refused(tmp_path):
    assert refusal(readers.SoftPairs, "fss", tmp_path / "no", tmp_path, []) == f"{tmp_path / 'no'}: no such folder."
    assert "holds no picture NAME.jpg" in refusal(readers.SoftPairs, "fss", tmp_path, tmp_path, [])


# what is refused may be gathered


def test_what_has_no_twin_is_gathered_by_name_and_the_rest_is_read(tmp_path):
    folder = pairs(tmp_path / "set", "abcd")
    (folder / "gt" / "b.png").unlink()
    (folder / "im" / "d.png").unlink()
    found = []
    source = readers.PairsFolder(folder, found)
    assert source.names == ["set/a", "set/c"]
    assert [(finding.kind, finding.picture) for finding in found] == [("no mask", "set/b"), ("no picture", "set/d")]
    assert f"{folder}/im/b.png: has no mask in {folder}/gt" in found[0].line
    assert f"{folder}/gt/d.png: the mask has no picture" in found[1].line


def test_the_number_of_an_object_is_that_in_its_mask(tmp_path):
    folder = pairs(tmp_path / "set", "a")
    save(folder / "gt" / "a.png", disc().astype(np.uint8) * 7 + disc(radius=5))
    assert readers.PairsFolder(folder)[0].numbers == (7, 8)


def test_readers_can_be_sent_to_another_process(tmp_path):
    source = pickle.loads(pickle.dumps(readers.PairsFolder(pairs(tmp_path / "set"))))
    assert np.array_equal(source[1].masks, disc()[None])
