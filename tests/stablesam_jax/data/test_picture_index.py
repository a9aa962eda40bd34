"""A picture is found by what a tool calls it, wherever it lies in its data set, and another never is."""

import unicodedata

import pytest

from stablesam_jax.data.picture_index import PictureIndex, clean_path
from tests.reference.pictures import ramp, save

COMPOSED, DECOMPOSED = (unicodedata.normalize(form, "é.jpg") for form in ("NFC", "NFD"))
SPELLINGS = {  # file below the folder -> what it may be called
    "images/a.jpg": [
        *("a.jpg", "images/a.jpg", "./images/a.jpg", "images//a.jpg", "images/x/../a.jpg", "images\\a.jpg", "A.JPG"),
        *("/home/me/images/a.jpg", "C:\\Users\\me\\images\\a.jpg", "/somewhere/else/a.jpg", "../../images/a.jpg"),
        *("http://localhost:8080/data/images/a.jpg", "s3://bucket/images/a.jpg?X-Signature=1"),
        *("/data/upload/1/0a1b2c3d-a.jpg", "upload/1/0a1b2c3d-a.jpg", "/data/local-files/?d=images/a.jpg"),
    ],
    "images/0a1b2c3d-a.jpg": ["upload/1/0a1b2c3d-a.jpg"],
    "images/a b%.jpg": ["a b%.jpg", "images/a%20b%25.jpg", "http://host/a%20b%25.jpg"],
    f"images/{COMPOSED}": [COMPOSED, DECOMPOSED, "%C3%A9.jpg"],
    f"images/{DECOMPOSED}": [COMPOSED, DECOMPOSED],
    "a\\b.jpg": ["a\\b.jpg"],
    "x/y/a.jpg": ["a.jpg", "y/a.jpg", "x/y/a.jpg", "z/x/y/a.jpg"],
    "images/x/a.jpg": ["x/a.jpg", "a.jpg"],
}


@pytest.mark.parametrize("file", SPELLINGS)
def test_a_picture_has_many_spellings(tmp_path, file):
    save(tmp_path / file, ramp())
    index = PictureIndex(tmp_path, [tmp_path / "images"])
    for said in SPELLINGS[file]:
        assert index.find(said) == tmp_path / file, said


@pytest.mark.parametrize(
    ("file", "said"),
    [
        ("valid/a.jpg", "train/a.jpg"),
        ("images/two/0001.jpg", "one/0001.jpg"),
        ("images/a.jpg", "a.png"),
        ("images/a.jpg", "b-a.jpg"),
        ("images/a.jpg", ""),
        ("images/a.jpg", ".."),
        ("images/a.jpg", "a\0.jpg"),
        ("images/a.jpg", "\ud800.jpg"),
        ("images/a.jpg", "x" * 5000),
    ],
)
def test_another_picture_is_not_taken_for_it(tmp_path, file, said):
    save(tmp_path / file, ramp())
    with pytest.raises(ValueError, match="is missing in"):
        PictureIndex(tmp_path, [tmp_path / "images"]).find(said)


def test_of_two_that_are_meant_alike_none_is_taken(tmp_path):
    for part in ("x", "y"):
        save(tmp_path / part / "a.jpg", ramp())
    index = PictureIndex(tmp_path)
    with pytest.raises(ValueError, match=r"may be .*x/a.jpg or .*y/a.jpg"):
        index.find("a.jpg")
    assert index.find("y/a.jpg") == tmp_path / "y" / "a.jpg"


def test_of_two_with_the_same_path_from_two_bases_none_is_taken(tmp_path):
    for file in ("a.jpg", "images/a.jpg"):
        save(tmp_path / file, ramp())
    index = PictureIndex(tmp_path, [tmp_path / "images"])
    with pytest.raises(ValueError, match=r"may be .*images/a\.jpg or .*a\.jpg"):
        index.find("a.jpg")
    assert index.find("images/a.jpg") == tmp_path / "images/a.jpg"
    assert PictureIndex(tmp_path, [tmp_path]).find("a.jpg") == tmp_path / "a.jpg"


def test_what_lies_outside_is_not_found(tmp_path):
    save(tmp_path / "a.jpg", ramp())
    (tmp_path / "set").mkdir()
    for said in ("../a.jpg", str(tmp_path / "a.jpg"), "x/../../a.jpg"):
        with pytest.raises(ValueError, match="is missing in"):
            PictureIndex(tmp_path / "set").find(said)


def test_a_clean_path_has_nothing_of_another_computer():
    assert clean_path("C:\\Users\\me\\a.jpg") == "Users/me/a.jpg"
    assert clean_path("file:///x/./y/../a.jpg") == "x/a.jpg"
