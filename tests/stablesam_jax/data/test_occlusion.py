"""An object is hidden by a cut-out, or hides one, never for the most part; masks are what can be seen."""

import pickle

import cv2
import numpy as np
import pytest

from stablesam_jax.data import occlusion
from stablesam_jax.data.occlusion import Cutout, Cutouts, cut_out, occlude
from stablesam_jax.data.readers import LabelledPicture

GREY, TARGET, OTHER, PASTED = 90, (200, 0, 0), (0, 200, 0), (0, 0, 200)


def scene():
    """A grey picture with a red disc and a green rectangle, and their masks."""
    masks = np.zeros((2, 120, 160), np.uint8)
    cv2.circle(masks[0], (60, 60), 30, 1, -1)
    masks[1, 40:80, 110:140] = 1
    picture = np.full((120, 160, 3), GREY, np.uint8)
    for mask, colour in zip(masks, (TARGET, OTHER), strict=True):
        picture[mask > 0] = colour
    return picture, masks.astype(bool)


def cutout(height=40, width=30):
    mask = np.zeros((height, width), np.uint8)
    cv2.ellipse(mask, (width // 2, height // 2), (width // 2, height // 2), 0, 0, 360, 1, -1)
    return Cutout(np.broadcast_to(np.array(PASTED, np.uint8), (height, width, 3)), mask.astype(bool))


def occluded(seed):
    return occlude(np.random.default_rng(seed), *scene(), cutout())


SEEDS = range(200)
PASTES = [(picture, masks) for picture, masks in map(occluded, SEEDS) if len(masks) == 3]


def inner(mask):
    """Without the edge, which is blurred."""
    return cv2.erode(mask.astype(np.uint8), np.ones((7, 7)), borderType=cv2.BORDER_CONSTANT, borderValue=0) > 0


def test_nearly_every_picture_with_room_gets_its_cutout():
    assert len(PASTES) > 0.9 * len(SEEDS)


def test_masks_are_what_can_be_seen():
    for picture, masks in PASTES:
        assert masks.sum(0).max() == 1  # a pixel shows one object
        for mask, colour in zip(masks, (TARGET, OTHER, PASTED), strict=True):
            assert np.abs(picture[inner(mask)].astype(int) - colour).max(initial=0) <= 2
        assert np.abs(picture[inner(~masks.any(0))].astype(int) - GREY).max(initial=0) <= 2


def test_nothing_is_hidden_for_the_most_part_and_the_cutout_meets_what_hides_it_or_is_hidden():
    _, whole = scene()
    for _, masks in PASTES:
        shares = masks[:2].sum((1, 2)) / whole.sum((1, 2))
        assert shares.min() >= 1 - occlusion.MOST_HIDDEN
        grown = cv2.dilate(masks[-1].astype(np.uint8), np.ones((3, 3))) > 0
        at_border = masks[-1][[0, -1]].any() or masks[-1][:, [0, -1]].any()
        assert shares.min() < 1 - occlusion.LEAST_HIDDEN or at_border or (grown & masks[:2].any(0)).any()


def test_both_roles_are_as_likely():
    _, whole = scene()
    in_front = [bool((masks[:2].sum((1, 2)) < whole.sum((1, 2))).any()) for _, masks in PASTES]
    assert 0.4 < np.mean(in_front) < 0.62  # behind one object it may still cover the other


def test_a_cutout_that_would_hide_too_much_everywhere_is_not_pasted(monkeypatch):
    monkeypatch.setattr(occlusion, "RELATIVE_SIZE", (8.0, 9.0))
    picture, masks = scene()
    same, kept = occlude(np.random.default_rng(0), picture, masks, cutout())
    assert same is picture
    assert kept is masks


def test_an_object_is_cut_out_with_its_own_shape_at_most_512_pixels_large():
    picture, masks = scene()
    large = np.repeat(np.repeat(picture, 12, 0), 12, 1), np.repeat(np.repeat(masks[0], 12, 0), 12, 1)
    found = cut_out(*large)
    assert max(found.mask.shape) == 512
    assert abs(found.mask.mean() - masks[0].sum() / 61**2) < 0.005
    assert np.abs(found.picture[inner(found.mask)].astype(int) - TARGET).max() <= 2


@pytest.mark.parametrize("mask", ["speck", "background", "two pieces"])
def test_what_is_no_object_by_itself_is_not_cut_out(mask):
    masks = {name: np.zeros((60, 80), bool) for name in ("speck", "background", "two pieces")}
    masks["speck"][3:5, 3:5] = True
    masks["background"][:50] = True
    masks["two pieces"][10:20, 10:20] = masks["two pieces"][40:50, 60:70] = True
    assert cut_out(np.zeros((60, 80, 3), np.uint8), masks[mask]) is None


class Counted:
    """Pictures that count how often they are read."""

    names = ("a", "b", "c")

    def __init__(self):
        self.reads = 0

    def __len__(self):
        return 3

    def __getitem__(self, index):
        self.reads += 1
        picture, masks = scene()
        return LabelledPicture(self.names[index], picture + np.uint8(index), masks)


def test_cutouts_depend_on_seed_and_number_alone_and_are_read_once():
    pictures = Counted()
    cutouts = Cutouts(pictures, 5)
    first = [cutouts[number] for number in range(10)]
    reads = pictures.reads
    assert [cutouts[number] for number in range(10)] == first
    assert pictures.reads == reads
    again = pickle.loads(pickle.dumps(cutouts))  # as a worker process gets it
    for number in reversed(range(10)):
        for array, same in zip(first[number], again[number], strict=True):
            np.testing.assert_array_equal(array, same)
    assert any((cutouts[n].mask.shape != Cutouts(pictures, 6)[n].mask.shape) for n in range(10))


def test_pictures_without_a_fit_object_have_no_cutouts():
    class Backgrounds(Counted):
        def __getitem__(self, index):
            return LabelledPicture("a", np.zeros((60, 80, 3), np.uint8), np.ones((1, 60, 80), bool))

    assert Cutouts(Backgrounds(), 0)[0] is None


@pytest.mark.parametrize(("pictures", "cutouts"), [(1, 128), (2048, 128), (8000, 500), (44320, 1024)])
def test_large_sets_have_more_cutouts_within_bounds_of_memory(pictures, cutouts):
    assert len(Cutouts(range(pictures), 0)) == cutouts
