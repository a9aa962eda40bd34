"""Pictures in the frame of training: masks stay on their objects, no sample is without one."""

import cv2
import numpy as np
import pytest

from stablesam_jax.data import augment
from stablesam_jax.data.collage import ASSETS
from stablesam_jax.data.readers import PairsFolder

SIZE = 64
RANGE = (0.1, 2.0)  # HQ-SAM's
COLOURS = np.array([[255, 0, 0], [0, 255, 0]], np.uint8)


def rng(seed=0):
    return np.random.default_rng(seed)


def painted(height=90, width=120):
    """A black picture with a red ellipse and a green rectangle, and their masks."""
    masks = np.zeros((2, height, width), np.uint8)
    cv2.ellipse(masks[0], (width // 3, height // 2), (width // 5, height // 3), 0, 0, 360, 1, -1)
    masks[1, height // 8 : height // 2, width * 6 // 10 : width * 9 // 10] = 1
    picture = masks[0, ..., None] * COLOURS[0] + masks[1, ..., None] * COLOURS[1]
    return picture, masks.astype(bool)


def jitter(seed, picture, masks, size=SIZE, scale_range=RANGE):
    cut = augment.draw_cut(rng(seed), masks, size=size, scale_range=scale_range)
    found = cut.of(picture), cut.masks
    return augment.pad(*found, size=size)


def whole_picture(picture, masks, size=SIZE):
    return augment.pad(*augment.whole_picture(picture, masks, size=size), size=size)


def eroded(mask):
    """The mask without its edge, that along the frame too, where the object may end just outside."""
    core = cv2.erode(mask.astype(np.uint8), np.ones((3, 3)), borderType=cv2.BORDER_CONSTANT, borderValue=0)
    return core.astype(bool)


def grown(mask):
    return cv2.dilate(mask.astype(np.uint8), np.ones((3, 3))).astype(bool)


def extent(frame):
    """Rows and columns that are not padding, of a frame that begins with a picture without the grey of padding."""
    filled = (frame != augment.PADDING).any(-1)
    return filled.any(1).sum(), filled.any(0).sum()


def assert_masks_fit(frame, masks):
    for mask in masks:
        colour = COLOURS[int(np.median(frame[mask][:, 1]) > 127)]
        assert np.abs(frame[eroded(mask)].astype(int) - colour).max(initial=0) <= 3  # a drawn ellipse has steps
        elsewhere = frame[~grown(mask)]
        assert not (elsewhere == colour).all(-1).any()


# alignment


@pytest.mark.parametrize("shape", [(90, 120), (120, 90), (500, 333)])
def test_an_object_keeps_its_colour_under_its_mask_and_has_it_nowhere_else(shape):
    picture, masks = painted(*shape)
    for seed in range(25):
        assert_masks_fit(*jitter(seed, picture, masks))
    assert_masks_fit(*whole_picture(picture, masks))


def test_an_enlarged_mask_is_where_the_enlarged_colour_is():
    picture, masks = painted(30, 40)
    for seed in range(25):
        frame, kept = jitter(seed, picture, masks, scale_range=(1.0, 4.0))
        for mask in kept:
            assert any(np.array_equal(mask, (frame[..., channel] > 127) & (frame[..., 2] == 0)) for channel in (0, 1))


def test_the_frame_has_the_promised_form():
    picture, masks = painted()
    for frame, kept in (jitter(1, picture, masks), whole_picture(picture, masks)):
        assert (frame.shape, frame.dtype) == ((SIZE, SIZE, 3), np.uint8)
        assert kept.shape[1:] == (SIZE, SIZE)
        assert kept.dtype == bool
        assert kept.any((1, 2)).all()


def test_what_is_given_is_not_changed():
    picture, masks = painted()
    before = picture.copy(), masks.copy()
    for seed in range(5):
        jitter(seed, picture, masks)
    assert np.array_equal(picture, before[0])
    assert np.array_equal(masks, before[1])


def test_the_scale_one_without_flip_changes_nothing():
    picture, masks = painted(SIZE, SIZE)
    seed = next(seed for seed in range(9) if rng(seed).random() >= 0.5)
    frame, kept = jitter(seed, picture, masks, scale_range=(1.0, 1.0))
    assert np.array_equal(frame, picture)
    assert np.array_equal(kept, masks)


# chance


def test_the_same_generator_gives_the_same_bits_and_another_gives_others():
    picture, masks = painted()
    first, again, other = jitter(3, picture, masks), jitter(3, picture, masks), jitter(4, picture, masks)
    assert np.array_equal(first[0], again[0])
    assert np.array_equal(first[1], again[1])
    assert not np.array_equal(first[0], other[0])


def test_half_of_the_pictures_are_flipped():
    picture, masks = painted(SIZE, SIZE)
    flips = 0
    for seed in range(400):
        frame, kept = jitter(seed, picture, masks, scale_range=(1.0, 1.0))
        straight, flipped = np.array_equal(frame, picture), np.array_equal(frame, picture[:, ::-1])
        assert straight != flipped
        assert np.array_equal(kept, masks[:, :, ::-1] if flipped else masks)
        flips += flipped
    assert abs(flips - 200) < 40  # 4 standard deviations


def test_the_longest_side_is_uniform_between_the_bounds():
    picture = np.zeros((60, 120, 3), np.uint8)
    masks = np.ones((1, 60, 120), bool)
    sides = np.array([extent(jitter(seed, picture, masks, scale_range=(0.25, 1.0))[0]) for seed in range(300)])
    assert sides[:, 1].min() in (16, 17)
    assert sides[:, 1].max() in (63, 64)
    assert sides[:, 1].mean() == pytest.approx(40, abs=4 * 48 / np.sqrt(12 * 300))
    assert np.abs(sides[:, 0] - sides[:, 1] / 2).max() <= 0.5


def test_crops_reach_every_border():
    ramp = np.arange(100, dtype=np.uint8)  # below the grey of padding
    picture = np.stack(np.broadcast_arrays(ramp[:, None], ramp, np.uint8(0)), -1)
    tiles = np.arange(100) // 25
    masks = np.stack([(tiles[:, None] == row) & (tiles == column) for row in range(4) for column in range(4)])
    frames = [jitter(seed, picture, masks, size=50, scale_range=(2.0, 2.0))[0] for seed in range(300)]
    for channel in (0, 1):
        lowest = [frame[..., channel].min() for frame in frames]
        assert min(lowest) == 0
        assert max(lowest) == 50


# what lies beyond the picture and what is lost


@pytest.mark.parametrize("shape", [(20, 64), (64, 20), (31, 47)])
def test_beyond_the_picture_lies_grey_without_an_object(shape):
    picture = np.zeros((*shape, 3), np.uint8)
    frame, masks = whole_picture(picture, np.ones((1, *shape), bool))
    rows, columns = (round(side * SIZE / max(shape)) for side in shape)
    inside = np.zeros((SIZE, SIZE), bool)
    inside[:rows, :columns] = True
    assert (frame[inside] == 0).all()
    assert (frame[~inside] == augment.PADDING).all()
    assert np.array_equal(masks[0], inside)


def test_objects_that_are_cut_off_or_too_small_are_dropped():
    picture, masks = painted(200, 200)
    speck = np.zeros((1, 200, 200), bool)
    speck[0, 5:7, 5:7] = True
    masks = np.concatenate([masks, speck])
    for seed in range(60):
        _, kept = jitter(seed, picture, masks, scale_range=(2.0, 2.0), size=100)  # four frames cover the picture
        whole = [masks[0].sum(), masks[1].sum()]
        assert len(kept) <= 2  # the speck has 4 pixels of 10,000
        assert all(mask.sum() >= augment.MIN_VISIBLE * min(whole) for mask in kept)
    counts = {len(jitter(seed, picture, masks, scale_range=(2.0, 2.0), size=100)[1]) for seed in range(60)}
    assert counts == {1, 2}


def test_where_no_crop_keeps_an_object_the_whole_picture_is_taken():
    picture = np.zeros((200, 300, 3), np.uint8)
    masks = np.zeros((1, 200, 300), bool)
    masks[0, 100, 150] = True  # one pixel: a frame of 64 px has no room for it
    for seed in range(10):
        frame, kept = jitter(seed, picture, masks)
        assert extent(frame) == (43, 64)
        assert kept.shape == (1, SIZE, SIZE)
        row, column = (int(index[0]) for index in np.nonzero(kept[0]))
        assert kept.sum() == 1
        assert row == int(100 * SIZE / 300)
        assert column in (int(150 * SIZE / 300), int(149 * SIZE / 300))


def test_of_several_objects_those_that_vanish_are_dropped():
    masks = np.zeros((3, 300, 300), bool)
    masks[0, 10, 10] = masks[2, 299, 299] = True
    picture = np.zeros((300, 300, 3), np.uint8)
    _, kept = whole_picture(picture, masks[[0, 2]])
    assert len(kept) == 2  # all would vanish: none does
    masks[1, 100:200, 100:200] = True
    _, kept = whole_picture(picture, masks)
    assert len(kept) == 1
    assert kept[0].sum() == pytest.approx((100 * SIZE / 300) ** 2, rel=0.1)


@pytest.mark.parametrize("shape", [(1, 1), (1, 500), (500, 1), (1, 3), (2, 1000)])
def test_the_thinnest_pictures_have_a_frame(shape):
    picture = np.zeros((*shape, 3), np.uint8)
    masks = np.ones((1, *shape), bool)
    for seed in range(10):
        frame, kept = jitter(seed, picture, masks)
        assert kept.any()
        assert (frame[kept[0]] == 0).all()


def test_a_long_strip_is_shrunk_without_aliasing():
    strip = np.tile(np.array([0, 255], np.uint8)[:, None], (320, 3))[None]  # black and white by turns
    frame, _ = whole_picture(strip, np.ones((1, 1, 640), bool))
    assert frame[0].min() >= 127
    assert frame[0].max() <= 128


# masks alone


def test_masks_of_the_right_size_are_left_alone():
    _, masks = painted()
    assert augment.resize_masks(masks, masks.shape[1:]) is masks


def test_masks_are_resized_about_pixel_centres():
    masks = np.zeros((1, 4, 6), bool)
    masks[0, 1:3, 2:5] = True
    assert np.array_equal(augment.resize_masks(masks, (8, 12)), masks.repeat(2, 1).repeat(2, 2))
    assert np.array_equal(augment.resize_masks(masks.repeat(2, 1).repeat(2, 2), (4, 6)), masks)


def test_real_objects_survive_with_their_share_of_the_picture():
    source = PairsFolder(ASSETS)
    labelled = source[source.names.index("collage_assets/coffee")]
    _, masks = whole_picture(labelled.picture, labelled.masks, size=128)
    assert len(masks) == len(labelled.masks)
    scale = 128 / max(labelled.picture.shape[:2])
    assert masks.sum((1, 2)) == pytest.approx(labelled.masks.sum((1, 2)) * scale**2, rel=0.05, abs=4)
