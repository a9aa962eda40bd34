"""The doctor: each rule on a mask alone, each layout, and one planted fault of every kind, named once and no more."""

import shutil

import cv2
import numpy as np
import pytest
from PIL import Image

from stablesam_jax.data import collage, doctor, readers, sources
from stablesam_jax.files.picture_file import read_picture
from tests.reference.pictures import disc, save

ASSETS = sorted((collage.ASSETS / "im").iterdir())


def rectangle(top, bottom, left, right, height=100, width=100):
    mask = np.zeros((height, width), bool)
    mask[top:bottom, left:right] = True
    return mask


def kinds(*masks):
    return [kind for kind, _ in doctor.remarks(np.stack(masks))]


# rules on one mask


@pytest.mark.parametrize(("missing_rows", "named"), [(0, True), (2, True), (3, False)])
def test_a_mask_is_whole_from_98_percent(missing_rows, named):
    assert (kinds(rectangle(0, 100 - missing_rows, 0, 100)) == ["whole"]) == named


def test_the_outline_of_a_picture_is_its_outermost_pixels():
    assert doctor.edge_share(rectangle(0, 1, 0, 5, 3, 5)) == 5 / 12
    assert doctor.edge_share(rectangle(1, 2, 1, 4, 3, 5)) == 0
    assert doctor.edge_share(np.ones((1, 1), bool)) == 1


def test_an_inverted_mask_is_named_and_its_object_is_not():
    assert kinds(~disc()) == ["inverted"]
    assert kinds(disc()) == []


def test_an_object_that_fills_three_sides_is_no_inverted_mask():
    assert kinds(rectangle(10, 100, 0, 100)) == []


def test_a_background_with_a_number_is_named_by_that_number():
    ((kind, text),) = doctor.remarks(np.stack([disc(), ~disc()]))
    assert kind == "inverted"
    assert text.startswith("object 2 of 2 covers 100% of the picture's edge, as a background does; swap")


@pytest.mark.parametrize(
    ("second", "pieces"),
    [(rectangle(60, 70, 0, 20), 2), (rectangle(60, 69, 0, 20), 1), (rectangle(40, 50, 40, 60), 1)],
    ids=["half as large", "smaller", "touching by a corner"],
)
def test_pieces_count_from_half_the_largest(second, pieces):
    assert doctor.large_pieces(rectangle(30, 40, 0, 40) | second) == pieces


def test_specks_and_nothing_are_no_pieces():
    assert doctor.large_pieces(rectangle(0, 9, 0, 11) | rectangle(50, 59, 0, 11)) == 0  # 99 of 10,000 pixels each
    assert doctor.large_pieces(rectangle(0, 0, 0, 0)) == 0


# folders


def pair(folder, stem, number=0, mask=None, change=lambda picture: picture):
    """A real picture, and a rectangle of its own as a mask."""
    picture = change(cv2.resize(read_picture(ASSETS[number]), (120, 80), interpolation=cv2.INTER_AREA))
    if mask is None:
        mask = rectangle(10 + number, 60, 10, 90, *picture.shape[:2])
    save(folder / "im" / f"{stem}.png", picture)
    save(folder / "gt" / f"{stem}.png", mask.astype(np.uint8) * 255 if mask.dtype == bool else mask)


def findings(folder, against=None):
    named = []
    checked = [
        doctor.examine(reader, index)
        for found in sources.find(folder, named)
        for reader in found.readers
        for index in range(len(reader))
    ]
    others = [doctor.look(*one) for found in sources.find(against, []) for one in found.pictures] if against else []
    named += [finding for one in checked for finding in one.findings]
    return named + list(doctor.compare(checked, others))


def test_a_clean_folder_has_no_findings(tmp_path):
    for number in range(9):
        pair(tmp_path, f"p{number}", number)
    assert findings(tmp_path) == []


def test_the_embedded_pictures_are_clean():
    assert {finding.severity for finding in findings(collage.ASSETS)} <= {"hint"}


def sick_folder(folder):
    """A folder with one fault of each kind, and what must be named: (kind, file, other, part of the text)."""
    im, gt, inside = folder / "im", folder / "gt", rectangle(20, 60, 20, 90, 80, 120)
    for number in range(5):
        pair(folder, f"good{number}", number)
    pair(folder, "cut", 5)
    (im / "cut.png").write_bytes((im / "cut.png").read_bytes()[:9000])
    pair(folder, "cut_mask", 6)
    (gt / "cut_mask.png").write_bytes((gt / "cut_mask.png").read_bytes()[:60])
    pair(folder, "empty", 7, np.zeros((80, 120), bool))
    pair(folder, "soft", 8, cv2.GaussianBlur(inside.astype(np.uint8) * 255, (0, 0), 3))
    pair(folder, "flat", 0, change=lambda picture: picture[::-1])
    (gt / "flat.png").unlink()
    Image.fromarray(inside).convert("L").save(gt / "flat.jpg")
    pair(folder, "turned", 1, rectangle(10, 60, 10, 50, 120, 80), lambda picture: picture[::-1])
    pair(folder, "whole", 2, np.ones((80, 120), bool), lambda picture: picture[::-1])
    pair(folder, "inverted", 3, ~inside, lambda picture: picture[::-1])
    pair(folder, "group", 4, inside & ~rectangle(0, 80, 50, 60, 80, 120), lambda picture: picture[::-1])
    pair(folder, "alone", 5, change=lambda picture: picture[::-1])
    (gt / "alone.png").unlink()
    save(gt / "widow.png", inside)
    pair(folder, "copied_mask", 6, rectangle(14, 60, 10, 90, 80, 120), lambda picture: picture[::-1])
    pair(folder, "copy", 0, change=lambda picture: picture[:, ::-1])
    pair(folder, "two", 7, change=lambda picture: picture[::-1])
    save(im / "two.bmp", read_picture(ASSETS[8])[:80, :120][::-1])
    return {
        ("picture", im / "cut.png", None, "cannot be read"),
        ("mask", gt / "cut_mask.png", None, "cannot be read"),
        ("mask", gt / "empty.png", None, "the mask is empty"),
        ("mask", gt / "soft.png", None, "has grey levels"),
        ("mask", gt / "flat.jpg", None, "is of a format that may blur a mask"),
        ("size", gt / "turned.png", None, "the mask is 80 x 120 pixels, its picture 120 x 80 (one is turned"),
        ("whole", gt / "whole.png", None, "covers 100.0% of the picture"),
        ("inverted", gt / "inverted.png", None, "covers 100% of the picture's edge"),
        ("pieces", gt / "group.png", None, "has 2 large pieces"),
        ("no mask", im / "alone.png", None, "has no mask in"),
        ("no picture", gt / "widow.png", None, "the mask has no picture"),
        ("equal masks", gt / "good4.png", gt / "copied_mask.png", "pixel by pixel"),
        ("duplicate", im / "good0.png", im / "copy.png", "copy.png, mirrored; keep one"),
        ("suffix", im / "two.bmp", None, "two.bmp and two.png differ in suffix alone"),
    }


def test_every_planted_fault_is_named_once_and_nothing_else_is(tmp_path):
    expected = {planted[:3]: planted[3] for planted in sick_folder(tmp_path / "sick")}
    found = {(finding.kind, finding.file, finding.other): finding for finding in findings(tmp_path / "sick")}
    assert found.keys() == expected.keys()
    assert len(findings(tmp_path / "sick")) == len(expected)
    for place, finding in found.items():
        assert expected[place] in finding.text
        assert finding.text.endswith(".")
        assert "\n" not in finding.text


def test_a_bad_picture_does_not_hide_its_bad_mask(tmp_path):
    pair(tmp_path, "a", 0, np.zeros((80, 120), bool))
    (tmp_path / "im" / "a.png").write_bytes(b"text")
    assert [finding.kind for finding in findings(tmp_path)] == ["picture", "mask"]


def test_a_picture_whose_values_need_fewer_bits_and_one_of_several_pages_are_said(tmp_path):
    pair(tmp_path, "a", 0)
    pair(tmp_path, "b", 1)
    (tmp_path / "im" / "a.png").unlink()
    (tmp_path / "im" / "b.png").unlink()
    save(tmp_path / "im" / "a.png", read_picture(ASSETS[0])[:80, :120, 0].astype(np.uint16) * 16)
    pages = [Image.fromarray(read_picture(ASSETS[number])[:80, :120]) for number in (1, 2)]
    save(tmp_path / "im" / "b.tif", pages[0], save_all=True, append_images=pages[1:])
    assert [(finding.kind, finding.severity, finding.text) for finding in findings(tmp_path)] == [
        ("bits", "hint", "has values of 12 bits in a file of 16; white is 4095."),
        ("frames", "hint", "holds 2 frames or pages; the first is the picture."),
    ]


def test_twins_in_another_set_are_named_with_their_twin(tmp_path):
    for number in range(4):
        pair(tmp_path / "train", f"a{number}", number)
        pair(tmp_path / "test", f"b{number}", number + 3, change=lambda picture: picture[:, ::-1])
    (finding,) = findings(tmp_path / "train", tmp_path / "test")
    assert finding.kind == "twin"
    assert (finding.file.name, finding.other) == ("a3.png", tmp_path / "test" / "im" / "b0.png")
    assert "b0.png, mirrored; remove one" in finding.text


def test_what_cannot_be_used_is_found_by_its_number_with_the_reason(tmp_path):
    for number in range(4):
        pair(tmp_path / "set", f"p{number}", number)
    save(tmp_path / "set" / "gt" / "p1.png", np.zeros((80, 120), np.uint8))
    (tmp_path / "set" / "im" / "p3.png").write_bytes(b"text")
    source = readers.PairsFolder(tmp_path / "set")
    found = doctor.read_all(source)
    assert [reading.fault is None for reading in found] == [True, False, True, False]
    assert found[1].fault.startswith(f"{tmp_path}/set/gt/p1.png: the mask is empty")
    assert doctor.read_all(source, [2, 3]) == found[2:]


def test_pictures_are_told_apart_by_each_pixel_of_picture_and_mask_and_by_nothing_else(tmp_path):
    def digest(name, change=lambda picture: picture, shift=0):
        pair(tmp_path / name, f"{name}{shift}", 0, change=change)
        if shift:
            file = tmp_path / name / "gt" / f"{name}{shift}.png"
            save(file, np.roll(np.asarray(Image.open(file)), shift, axis=1))
        (reading,) = doctor.read_all(readers.PairsFolder(tmp_path / name))
        return reading.digest

    def one_pixel(picture):
        changed = picture.copy()
        changed[-1, -1, 2] ^= 1
        return changed

    assert digest("a") == digest("b")
    assert len({digest("c"), digest("d", one_pixel), digest("e", shift=1)}) == 3


def test_picture_and_mask_in_one_folder_are_pairs_by_suffix(tmp_path):
    for number, stem in enumerate("abc"):
        pair(tmp_path / "made", stem, number)
        Image.open(tmp_path / "made" / "im" / f"{stem}.png").save(tmp_path / f"{stem}.jpg", quality=95)
        shutil.copy(tmp_path / "made" / "gt" / f"{stem}.png", tmp_path)
    shutil.rmtree(tmp_path / "made")
    assert findings(tmp_path) == []
    (tmp_path / "a.jpg").unlink()
    (tmp_path / "b.png").unlink()
    assert {(finding.kind, finding.file.name) for finding in findings(tmp_path)} == {
        ("no picture", "a.png"),
        ("no mask", "b.jpg"),
    }
