"""The embedded pictures and the scenes composed from them."""

import cv2
import numpy as np
import pytest

from stablesam_jax.data import collage
from stablesam_jax.data.collage import ASSETS, MIN_AREA, PARTS, SPLITS, Collage
from stablesam_jax.data.label_file import read_masks
from stablesam_jax.errors import InputError
from stablesam_jax.files.picture_file import read_picture

LABELLED = sorted(name for split in SPLITS.values() for name in split.labelled)
TEXTURES = sorted(name for split in SPLITS.values() for name in split.textures)


@pytest.mark.parametrize("split", SPLITS)
def test_same_seed_and_index_give_the_same_bits_whatever_was_drawn_before(split):
    drawn_last = [Collage(split, 9, seed=3, size=128)[i] for i in (0, 5, 8)][-1]
    drawn_alone = Collage(split, 400, seed=3, size=128)[8]
    assert drawn_last.name == drawn_alone.name
    np.testing.assert_array_equal(drawn_last.picture, drawn_alone.picture)
    np.testing.assert_array_equal(drawn_last.masks, drawn_alone.masks)


def test_another_seed_index_or_split_gives_another_scene():
    scenes = [Collage("train", 2, 0, 64)[0], Collage("train", 2, 1, 64)[0], Collage("train", 2, 0, 64)[1]]
    scenes.append(Collage("held_out", 2, 0, 64)[0])
    assert len({scene.picture.tobytes() for scene in scenes}) == len({scene.name for scene in scenes}) == 4


def test_splits_share_no_photograph():
    used = [set(split.labelled + split.textures) for split in SPLITS.values()]
    assert not set.intersection(*used)


def test_a_split_opens_only_its_own_photographs(monkeypatch):
    opened = set()

    def note(path):
        opened.add(path.stem)
        return read_picture(path)

    monkeypatch.setattr(collage, "read_picture", note)
    for cached in (collage._labelled, collage._texture, collage._largest_piece):
        cached.cache_clear()
    for index in range(40):
        Collage("held_out", 40, 0, 64)[index]
    assert opened == set(SPLITS["held_out"].labelled + SPLITS["held_out"].textures)


@pytest.mark.parametrize("split", SPLITS)
def test_every_scene_has_a_picture_and_the_mask_of_one_object_in_the_promised_form(split):
    for scene in Collage(split, 60, seed=1, size=160):
        assert scene.picture.shape == (160, 160, 3)
        assert scene.picture.dtype == np.uint8
        assert scene.masks.shape[1:] == (160, 160)
        assert scene.masks.dtype == np.bool_
        assert len(scene.masks) == 1
        assert scene.masks.mean((1, 2)).min() >= MIN_AREA


@pytest.mark.parametrize("split", SPLITS)
def test_masks_of_a_photograph_overlap_only_where_a_part_lies_in_its_whole(split):
    for name in SPLITS[split].labelled:
        _, masks = collage._labelled(name)
        parts = {(whole - 1, part - 1) for (of, whole), numbers in PARTS.items() if of == name for part in numbers}
        for i in range(len(masks)):
            for j in range(len(masks)):
                if i != j and (masks[i] & masks[j]).any():
                    assert (i, j) in parts or (j, i) in parts
        for whole, part in parts:
            assert not (masks[part] & ~masks[whole]).any()


OPAQUE, LIT = np.ones((20, 20), np.float32), np.ones((64, 64), np.float32)


def paste(grey, *, onto, centre_xy, light=1.0):
    """A square of one grey on a background of another: scene, mask."""
    scene, light = np.full((64, 64, 3), onto, np.uint8), np.broadcast_to(np.float32(light), (64, 64))
    colour = np.full((20, 20, 3), grey, np.uint8)
    return collage._paste(scene, colour, OPAQUE, centre_xy=np.array(centre_xy), light=light)


@pytest.mark.parametrize("centre_xy", [(30.0, 30.0), (0.0, 60.0), (64.0, 5.0)])
def test_the_mask_is_where_the_object_is_seen(centre_xy):
    scene, mask = paste(200, onto=50, centre_xy=centre_xy)
    np.testing.assert_array_equal(mask, (scene == 200).all(-1))
    x, y = (slice(max(int(at) - 10, 0), int(at) + 10) for at in centre_xy)
    assert mask[y, x].all()
    assert np.count_nonzero(mask) == mask[y, x].size


def test_what_is_half_transparent_mixes_both():
    scene, half = np.full((64, 64, 3), 50, np.uint8), np.full((20, 20), 0.5, np.float32)
    mixed, _ = collage._paste(scene, np.full((20, 20, 3), 200, np.uint8), half, centre_xy=np.array([30, 30]), light=LIT)
    assert (mixed[20:40, 20:40] == 125).all()
    assert (mixed[:20] == 50).all()


def test_a_shadow_darkens_what_lies_beside_an_object_and_not_the_object():
    shadow = collage._shadow(OPAQUE, 64, np.array([36.0, 30.0]), softness=1.0)
    scene, mask = paste(90, onto=200, centre_xy=(30.0, 30.0), light=1 - 0.5 * shadow)
    assert (scene[mask] == 90).all()
    assert (scene[24:36, 41:44] == 100).all()  # to the right, in full shadow
    assert (scene[24:36, 5:18] == 200).all()


def test_an_object_that_nobody_could_see_has_no_mask():
    _, mask = paste(110, onto=100, centre_xy=(30.0, 30.0))
    assert not mask.any()


@pytest.mark.parametrize("split", SPLITS)
def test_an_object_never_lies_on_its_own_photograph(split, monkeypatch):
    opened, pairs = [], []
    labelled, cut_out = collage._labelled, collage._cut_out

    def note(rng, name, k, longest):
        pairs.extend((name, background) for background in opened)  # opened so far
        return cut_out(rng, name, k, longest)

    monkeypatch.setattr(collage, "_cut_outs", lambda name: [0])
    monkeypatch.setattr(collage, "_labelled", lambda name: opened.append(name) or labelled(name))
    monkeypatch.setattr(collage, "_cut_out", note)
    for seed in range(60):
        opened.clear()
        collage._scene(np.random.default_rng(seed), SPLITS[split], 64)
    assert 15 < len(pairs) < 45
    assert all(name != background for name, background in pairs)


@pytest.mark.parametrize("side", [(0.3, 0.3), (0.8, 0.8)])
def test_an_object_is_as_large_as_was_asked(side, monkeypatch):
    monkeypatch.setattr(collage, "LONGEST_SIDE", side)
    monkeypatch.setattr(collage, "MAX_ENLARGEMENT", 100.0)
    longest = [max(np.ptp(np.argwhere(scene.masks[0]), axis=0)) / 128 for scene in Collage("train", 40, 0, 128)]
    assert 0.85 * side[0] < np.quantile(longest, 0.7) < 1.3 * side[0]  # turned ones are longer, cut ones shorter


@pytest.mark.parametrize("name", LABELLED)
def test_a_photograph_and_its_mask_have_equal_sizes_and_numbers_without_gaps(name):
    picture = read_picture(ASSETS / "im" / f"{name}.jpg")
    label = cv2.imread(str(ASSETS / "gt" / f"{name}.png"), cv2.IMREAD_UNCHANGED)
    assert label.shape == picture.shape[:2]
    assert max(label.shape) <= 512
    numbers = np.unique(label)
    np.testing.assert_array_equal(numbers, np.arange(len(numbers)))
    assert len(read_masks(ASSETS / "gt" / f"{name}.png", label.shape)[0]) == len(numbers) - 1


def test_every_file_is_used_and_its_licence_stated():
    files = {f"{path.parent.name}/{path.name}" for path in ASSETS.rglob("*.*") if path.name != "LICENCES.md"}
    used = {f"im/{name}.jpg" for name in LABELLED} | {f"gt/{name}.png" for name in LABELLED}
    assert files == used | {f"background/{name}.jpg" for name in TEXTURES}
    licences = (ASSETS / "LICENCES.md").read_text(encoding="utf-8")
    assert [name for name in sorted(files) if f"`{name}`" not in licences] == []


def test_the_files_weigh_less_than_three_mebibytes():
    assert sum(path.stat().st_size for path in ASSETS.rglob("*.*")) < 3 * 2**20


@pytest.mark.parametrize("wrong", [{"split": "test"}, {"count": 0}, {"seed": -1}, {"size": 32}])
def test_a_value_out_of_range_is_refused_with_the_choices(wrong):
    with pytest.raises(InputError, match=r"choose one of train, held_out|must be at least 1, 0 and 64"):
        Collage(**({"split": "train", "count": 1, "seed": 0, "size": 64} | wrong))


def test_a_sequence_ends_at_its_count_and_counts_back_from_its_end():
    scenes = Collage("train", 3, 0, 64)
    assert len(list(scenes)) == len(scenes) == 3
    assert scenes[-1].name == scenes[2].name
    with pytest.raises(IndexError, match="scene 3 of 3"):
        scenes[3]
