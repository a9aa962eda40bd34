"""Pictures that are decoded no larger than a view needs them: nearly the same pixels, exactly the same masks."""

import dataclasses

import cv2
import numpy as np
import pytest
from PIL import Image

from stablesam_jax.data import augment
from stablesam_jax.data.collage import ASSETS
from stablesam_jax.data.pipeline import ViewConfig, Views
from stablesam_jax.data.readers import Joined, PairsFolder, Selection
from stablesam_jax.errors import InputError
from stablesam_jax.files.picture_file import read_picture

PHOTOGRAPH = ASSETS / "im" / "coffee.jpg"
CONFIG = ViewConfig(size=128, scale_range=(0.3, 1.8), views=30, seed=0, reduced_jpeg=True)


@pytest.fixture
def folder(tmp_path):
    """A photograph as JPEG, once more turned by its EXIF orientation, and as PNG; with the mask of a disc."""
    (tmp_path / "im").mkdir()
    (tmp_path / "gt").mkdir()
    upright = Image.open(PHOTOGRAPH).crop((0, 0, 512, 336))
    mask = np.zeros((336, 512), np.uint8)
    cv2.circle(mask, (250, 170), 120, 255, -1)
    exif = Image.Exif()
    exif[274] = 6  # stored turned to the left
    upright.save(tmp_path / "im" / "jpeg.jpg", quality=95)
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "im" / "turned.jpg", quality=95, exif=exif)
    upright.save(tmp_path / "im" / "whole.png")
    for name in ("jpeg", "turned", "whole"):
        Image.fromarray(mask).save(tmp_path / "gt" / f"{name}.png")
    return tmp_path


def both(pictures):
    """Views, decoded no larger than needed and in full."""
    reduced, full = (
        Views(pictures, dataclasses.replace(CONFIG, reduced_jpeg=reduced_jpeg)) for reduced_jpeg in (True, False)
    )
    return [(reduced[index], full[index]) for index in range(len(reduced))]


def test_pixels_differ_little_and_masks_not_at_all(folder, monkeypatch):
    decoded = []
    monkeypatch.setattr(
        "stablesam_jax.data.readers.read_picture",
        lambda path, reduce=1: decoded.append((path.suffix, reduce)) or read_picture(path, reduce=reduce),
    )
    pictures = PairsFolder(folder)
    made = both(Selection(Joined([pictures]), [0, 1, 2]))
    for index, ((picture, masks), (expected, expected_masks)) in enumerate(made):
        assert np.array_equal(masks, expected_masks)
        difference = np.abs(picture.astype(int) - expected).mean()
        moved = np.abs(np.roll(expected.astype(int), 1, axis=1) - expected).mean()  # by one pixel of the frame
        assert difference < 0.4 * moved, (pictures.names[index // CONFIG.views], index)
        assert index < 2 * CONFIG.views or difference == 0  # a PNG
    used = {reduce for suffix, reduce in decoded if suffix == ".jpg"}
    assert {2, 4, 8} <= used


def test_a_picture_is_never_decoded_smaller_than_its_view():
    masks = np.zeros((1, 900, 1300), bool)
    masks[0, 200:700, 300:1000] = True
    reductions = set()
    for seed in range(300):
        cut = augment.draw_cut(np.random.default_rng(seed), masks, size=512, scale_range=(0.1, 2.0))
        reductions.add(cut.reduction)
        for part, side in zip(cut.crop, cut.size_hw, strict=True):
            assert (part.stop - part.start) / cut.reduction >= side
    assert reductions == {1, 2, 4, 8}


def test_a_label_of_another_size_is_refused_in_one_line(folder):
    Image.fromarray(np.full((400, 600), 255, np.uint8)).save(folder / "gt" / "jpeg.png")
    views = Views(PairsFolder(folder), CONFIG)
    with pytest.raises(InputError, match=r"/jpeg: picture and label differ in size; make them equal\.$"):
        views[0]
