"""A picture is known again after what happens to pictures on their way; others are not taken for it."""

import cv2
import numpy as np
import pytest

from stablesam_jax.data import collage, near_duplicates
from stablesam_jax.files.picture_file import read_picture

ASSETS = sorted((collage.ASSETS / "im").iterdir())


def jpeg(picture, quality=50):
    return cv2.imdecode(cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, quality])[1], cv2.IMREAD_COLOR)


def shrunk(picture):
    height, width = picture.shape[:2]
    return cv2.resize(picture, (round(width * 0.6), round(height * 0.6)), interpolation=cv2.INTER_AREA)


CHANGES = {
    "the same": lambda picture: picture,
    "JPEG of quality 50": jpeg,
    "60 %": shrunk,
    "grey": lambda picture: np.stack([cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)] * 3, axis=-1),
    "brighter": lambda picture: np.minimum(picture.astype(int) + 12, 255).astype(np.uint8),
}
MIRRORED = {
    "mirrored": lambda picture: picture[:, ::-1],
    "mirrored, 60 %, JPEG": lambda picture: jpeg(shrunk(np.ascontiguousarray(picture[:, ::-1])), 60),
}


def thumbnails(pictures):
    return np.stack([near_duplicates.thumbnail(picture) for picture in pictures])


@pytest.fixture(scope="module")
def pictures():
    return [read_picture(path) for path in ASSETS]


@pytest.mark.parametrize("change", [*CHANGES, *MIRRORED])
def test_a_changed_picture_is_known_again_and_no_other_is(pictures, change):
    changed = [({**CHANGES, **MIRRORED})[change](picture) for picture in pictures]
    found = sorted(near_duplicates.between(thumbnails(pictures), thumbnails(changed)))
    assert found == [(index, index, change in MIRRORED) for index in range(len(pictures))]


def test_within_a_set_each_pair_is_named_once_and_no_picture_is_its_own_twin(pictures):
    copies = thumbnails([*pictures, *(picture[:, ::-1] for picture in pictures[:2]), pictures[0]])
    assert sorted(near_duplicates.within(copies)) == [(0, 9, True), (0, 11, False), (1, 10, True), (9, 11, True)]


def test_blocks_and_candidates_in_pieces_change_nothing(pictures, monkeypatch):
    copies = thumbnails([jpeg(picture, quality) for quality in (95, 50) for picture in pictures])
    whole = sorted(near_duplicates.within(copies)), sorted(near_duplicates.between(copies, copies))
    monkeypatch.setattr(near_duplicates, "BLOCK", 4)
    monkeypatch.setattr(near_duplicates, "CONFIRMED", 3)
    assert (sorted(near_duplicates.within(copies)), sorted(near_duplicates.between(copies, copies))) == whole
    assert len(whole[0]) == 9
    assert len(whole[1]) == 36


def test_a_picture_that_is_its_own_mirror_image_is_named_once(pictures):
    symmetric = np.concatenate([pictures[0], pictures[0][:, ::-1]], axis=1)
    assert list(near_duplicates.within(thumbnails([symmetric, symmetric]))) == [(0, 1, False)]


def test_plain_skies_are_no_twins():
    rng = np.random.default_rng(0)
    slope = np.linspace(200, 120, 90)[:, None, None] + np.zeros((90, 120, 3))
    skies = [(slope + shift + rng.normal(0, 2, slope.shape)).astype(np.uint8) for shift in (0, 0, 0.4, 5)]
    skies += [np.full((90, 120, 3), level, np.uint8) for level in (0, 0, 255)]
    hashes = near_duplicates.difference_hash(thumbnails(skies))
    assert (np.bitwise_count(hashes[4:, None] ^ hashes[4:]) == 0).all()  # the hash takes them for the same
    assert list(near_duplicates.within(thumbnails(skies))) == []


def test_the_hash_compares_neighbours_in_eight_rows():
    steps = np.repeat(np.arange(9, dtype=np.uint8), 4)  # every cell is darker than the next
    rising = np.tile(steps, (32, 1))
    assert near_duplicates.difference_hash(np.stack([rising, rising[:, ::-1]])).tolist() == [2**64 - 1, 0]
    rising[:4] = 7  # one of eight rows is plain
    assert np.bitwise_count(near_duplicates.difference_hash(rising[None])).tolist() == [56]


def test_sets_may_be_empty():
    none, one = np.zeros((0, 32, 36), np.uint8), np.zeros((1, 32, 36), np.uint8)
    for pair in ((none, one), (one, none), (none, none)):
        assert list(near_duplicates.between(*pair)) == []
    assert list(near_duplicates.within(none)) == []


@pytest.mark.slow
def test_a_thousand_real_pictures_have_no_twins(shared):
    names = ("ecssd_a", "ecssd_b", "bsds_regions")
    paths = [path for name in names for path in sorted((shared / "data" / "train" / name / "im").iterdir())][:1000]
    assert len(paths) == 1000
    assert list(near_duplicates.within(thumbnails(map(read_picture, paths)))) == []
