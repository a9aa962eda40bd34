"""Batches are a function of (seed, step), and every prompt in them fits its target."""

import itertools
import os
import pathlib
import subprocess
import sys
import tempfile

import numpy as np
import pytest

from stablesam_jax import prompts
from stablesam_jax.data import pipeline
from stablesam_jax.data.collage import ASSETS
from stablesam_jax.data.pipeline import (
    TOKENS,
    BatchConfig,
    Feeding,
    ViewConfig,
    Views,
    batches,
    draw_prompt,
    make_sample,
)
from stablesam_jax.data.readers import LabelledPicture, PairsFolder
from stablesam_jax.errors import InputError
from stablesam_jax.model.prompt_encoder import BOTTOM_RIGHT, NOT_A_POINT, POSITIVE, TOP_LEFT, sparse_tokens

SIZE, MASK_SIZE = 64, 16
EVEN = dict.fromkeys(pipeline.TRAINING_KINDS, 1.0)


class Painted:
    """Pictures that show their own number, with as many objects as that number says."""

    def __init__(self, count):
        self.names = [f"painted/{number}" for number in range(count)]

    def __len__(self):
        return len(self.names)

    def __getitem__(self, index):
        masks = np.zeros((index + 1, 48, 64), bool)
        for number in range(index + 1):
            masks[number, 8:40, 10 * number : 10 * number + 9] = True
        return LabelledPicture(self.names[index], np.full((48, 64, 3), 20 * index, np.uint8), masks)


def make_views(pictures=None, *, views=2, seed=0, scale_range=(0.6, 1.6), occlusion=0.0):
    config = ViewConfig(size=SIZE, scale_range=scale_range, views=views, occlusion=occlusion, seed=seed)
    return Views(Painted(5) if pictures is None else pictures, config)


def batch_config(**changes):
    options = {"pictures": 3, "prompts_per_picture": 4, "kinds": EVEN, "mask_size": MASK_SIZE, "seed": 0}
    return BatchConfig(**(options | changes))


def take(count, views, config, **feeding):
    stream = batches(views, config, Feeding(**feeding))
    return list(itertools.islice(stream, count))


def assert_equal(first, second):
    assert first.keys() == second.keys()
    for key in first:
        assert first[key].dtype == second[key].dtype
        assert np.array_equal(first[key], second[key])


@pytest.mark.parametrize(("cores", "workers", "threads"), [(2, 0, 2), (15, 0, 15), (16, 1, 8), (64, 7, 8)])
def test_batches_are_made_on_the_cores_that_the_process_may_use(monkeypatch, cores, workers, threads):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)))
    feeding = Feeding.on_all_cores(None)
    assert (feeding.workers, feeding.threads) == (workers, threads)
    assert Feeding.on_all_cores(3).workers == 3


def disc(radius=20):
    rows, columns = np.mgrid[:SIZE, :SIZE] - (SIZE - 1) / 2
    return np.hypot(rows, columns) <= radius


def rng(seed=0):
    return np.random.default_rng(seed)


# batches


def test_a_stream_from_a_step_on_equals_the_rest_of_the_stream_from_the_start():
    views, config = make_views(), batch_config()
    whole = take(9, views, config)
    for start in (0, 1, 4, 7):
        for batch, expected in zip(take(2, views, config, start_step=start), whole[start:], strict=False):
            assert_equal(batch, expected)


@pytest.mark.parametrize("threads", [0, 7])
def test_a_batch_does_not_depend_on_the_number_of_threads(threads):
    views, config = make_views(occlusion=0.5), batch_config()
    for batch, expected in zip(take(5, views, config, threads=threads), take(5, views, config, threads=2), strict=True):
        assert_equal(batch, expected)


@pytest.mark.slow
def test_worker_processes_make_the_same_batches_and_resume_at_any_step():
    script = """
import numpy as np
from tests.stablesam_jax.data.test_pipeline import assert_equal, batch_config, make_views, take
if __name__ == "__main__":
    views, config = make_views(occlusion=0.5), batch_config()
    expected = take(8, views, config)
    for workers in (1, 2):
        for batch, other in zip(take(5, views, config, start_step=3, workers=workers), expected[3:], strict=True):
            assert_equal(batch, other)
"""
    with tempfile.TemporaryDirectory() as folder:
        program = pathlib.Path(folder) / "feed.py"  # a worker imports the main program anew
        program.write_text(script)
        subprocess.run([sys.executable, program], check=True, env=os.environ | {"PYTHONPATH": os.getcwd()}, timeout=300)


@pytest.mark.parametrize("start", [0, 137])
def test_the_batches_of_two_hosts_are_together_those_of_one(start):
    views, config = make_views(occlusion=0.5), batch_config(pictures=4)
    alone = take(2, views, config, start_step=start)
    shares = [take(2, views, config, start_step=start, host=host, hosts=2) for host in range(2)]
    for expected, *parts in zip(alone, *shares, strict=True):
        joined = {key: np.stack([part[key] for part in parts], axis=1) for key in expected}
        assert_equal({key: array.reshape(4, *array.shape[2:]) for key, array in joined.items()}, expected)


def test_hosts_that_do_not_divide_a_batch_are_refused():
    with pytest.raises(InputError, match=r"^batch size 3: must be a multiple of the 2 hosts\.$"):
        take(1, make_views(), batch_config(), hosts=2)


def test_a_batch_is_its_samples_one_above_the_other():
    views, config = make_views(), batch_config()
    batch = take(3, views, config)[2]
    assert batch["position"].tolist() == [6, 7, 8]
    for row, (view, position) in enumerate(zip(batch["view"], batch["position"], strict=True)):
        sample = make_sample(views, config, int(view), int(position))
        assert_equal({key: column[row] for key, column in batch.items()}, sample)


def test_an_epoch_sees_every_picture_once_in_an_order_and_a_view_of_its_own():
    views, config = make_views(), batch_config(pictures=2, kinds={"gt-box": 1.0})
    seen = np.concatenate([batch["view"] for batch in take(10, views, config)]).reshape(4, 5)
    pictures, drawn = np.divmod(seen, 2)
    assert (np.sort(pictures) == np.arange(5)).all()
    assert len({tuple(epoch) for epoch in pictures}) == 4
    assert (drawn == [[0], [1], [0], [1]]).all()  # two views: the third epoch has the first again


def test_a_batch_may_reach_over_the_end_of_an_epoch():
    views, config = make_views(views=1), batch_config(pictures=3)
    seen = np.concatenate([batch["view"] for batch in take(5, views, config)])
    for epoch in seen.reshape(3, 5):
        assert sorted(epoch) == list(range(5))


def test_another_seed_gives_other_batches():
    first, second = (take(1, make_views(), batch_config(seed=seed))[0] for seed in (0, 1))
    assert not np.array_equal(first["view"], second["view"])
    first, second = (make_sample(make_views(), batch_config(seed=seed), 0, 0) for seed in (0, 1))
    assert not np.array_equal(first["coords"], second["coords"])


def test_the_same_view_has_other_prompts_at_another_position():
    first, second = (make_sample(make_views(), batch_config(), 4, position) for position in (0, 1))
    assert not np.array_equal(first["coords"], second["coords"])


def test_shapes_and_types_are_those_of_the_docstring():
    batch = take(1, make_views(), batch_config())[0]
    forms = {key: (value.shape, value.dtype) for key, value in batch.items()}
    assert forms == {
        "view": ((3,), np.int32),
        "position": ((3,), np.uint32),
        "picture": ((3, SIZE, SIZE, 3), np.uint8),
        "targets": ((3, 4, SIZE, SIZE), np.bool_),
        "coords": ((3, 4, TOKENS, 2), np.float32),
        "labels": ((3, 4, TOKENS), np.int32),
        "valid": ((3, 4, TOKENS), np.bool_),
        "masks": ((3, 4, MASK_SIZE, MASK_SIZE), np.float32),
        "masks_valid": ((3, 4), np.bool_),
    }


def test_a_broken_picture_ends_the_stream_with_its_own_error():
    class Broken(Painted):
        def __getitem__(self, index):
            if index == 3:
                raise InputError("im/3.jpg: cannot be read (truncated); replace the file.")
            return super().__getitem__(index)

    with pytest.raises(InputError) as caught:
        take(5, make_views(Broken(5)), batch_config())
    assert str(caught.value) == "im/3.jpg: cannot be read (truncated); replace the file."


# views


def test_a_view_has_the_same_bits_in_whatever_order_views_are_asked_for():
    first, second = make_views(), make_views()
    forwards = [first[index] for index in range(len(first))]
    backwards = [second[index] for index in reversed(range(len(second)))][::-1]
    for (picture, masks), (again, masks_again) in zip(forwards, backwards, strict=True):
        assert np.array_equal(picture, again)
        assert np.array_equal(masks, masks_again)


def test_the_views_of_a_picture_follow_one_another_and_differ():
    pictures = PairsFolder(ASSETS)
    views = make_views(pictures, views=3)
    assert len(views) == 27
    frames = [views[index][0] for index in (0, 1, 2)]
    assert len({frame.tobytes() for frame in frames}) == 3
    painted = make_views(views=3)
    assert [int(painted[index][0][0, 0, 0]) for index in (0, 2, 3, 14)] == [0, 0, 20, 80]


def test_another_seed_gives_other_views():
    pictures = PairsFolder(ASSETS)
    assert not np.array_equal(make_views(pictures)[0][0], make_views(pictures, seed=1)[0][0])


# objects


def test_a_picture_with_fewer_objects_than_prompts_repeats_them_evenly():
    views = make_views(views=1, scale_range=(1.0, 1.0))
    sample = make_sample(views, batch_config(prompts_per_picture=7), 2, 0)
    _, counts = np.unique(sample["targets"], axis=0, return_counts=True)
    assert sorted(counts) == [2, 2, 3]


def test_a_picture_with_more_objects_than_prompts_repeats_none_and_shows_all_in_time():
    views = make_views(views=1, scale_range=(1.0, 1.0))
    seen = set()
    for position in range(20):
        targets = make_sample(views, batch_config(prompts_per_picture=2), 4, position)["targets"]
        assert not np.array_equal(*targets)
        seen |= {int(target.any(0).argmax()) % 10 + 100 * int(target.any(0).argmax()) for target in targets}
    assert len(seen) >= 5


# prompts


def test_kinds_are_drawn_by_their_weights():
    views = make_views(views=1, scale_range=(1.0, 1.0))
    config = batch_config(prompts_per_picture=500, kinds={"gt-box": 3, "points": 1, "coarse-mask": 1, "noisy-box": 0})
    sample = make_sample(views, config, 0, 0)
    boxes = (sample["labels"] == TOP_LEFT).any(-1)
    points = (sample["labels"] == POSITIVE).any(-1)
    shares = [boxes.mean(), points.mean(), sample["masks_valid"].mean()]
    assert shares == pytest.approx([0.6, 0.2, 0.2], abs=0.09)  # 4 standard errors
    assert len(np.unique(sample["coords"][boxes], axis=0)) == 1  # the true box alone


def test_points_come_in_each_count_as_often():
    counts = [len(draw_prompt(rng(seed), "points", disc(), mask_size=16).points) for seed in range(400)]
    assert [counts.count(count) / 400 for count in prompts.POINT_COUNTS] == pytest.approx([0.25] * 4, abs=0.087)


@pytest.mark.parametrize("kind", pipeline.TRAINING_KINDS)
@pytest.mark.parametrize("shape", ["disc", "pixel", "row", "everything"])
def test_every_kind_prompts_every_object(kind, shape):
    mask = {
        "disc": disc(),
        "pixel": np.arange(SIZE * SIZE).reshape(SIZE, SIZE) == 63,
        "row": np.arange(SIZE)[:, None] * np.ones(SIZE, int) == 40,
        "everything": np.ones((SIZE, SIZE), bool),
    }[shape]
    for seed in range(20):
        prompt = draw_prompt(rng(seed), kind, mask, mask_size=MASK_SIZE)
        coords, labels, valid = sparse_tokens(prompt.points, prompt.labels, prompt.box, length=TOKENS)
        assert np.isfinite(coords).all()
        assert (coords >= 0).all()
        assert (coords <= SIZE).all()
        assert valid.sum() == len(prompt.points) + (2 if prompt.box is not None else len(prompt.points) > 0)
        columns, rows = coords[labels == POSITIVE].astype(int).T
        assert mask[rows, columns].all()
        if prompt.mask is not None:
            assert (prompt.mask.shape, prompt.mask.dtype) == ((MASK_SIZE, MASK_SIZE), np.float32)
        assert valid.any() or prompt.mask is not None


def test_hq_sams_points_are_always_ten():
    assert {len(draw_prompt(rng(seed), "10-points", disc(), mask_size=16).points) for seed in range(20)} == {10}


def test_tokens_are_padded_as_the_prompt_encoder_asks():
    views = make_views(views=1, scale_range=(1.0, 1.0))
    sample = make_sample(views, batch_config(prompts_per_picture=200), 0, 0)
    kinds = set()
    for labels, valid, has_mask in zip(sample["labels"], sample["valid"], sample["masks_valid"], strict=True):
        count = int(valid.sum())
        assert valid.tolist() == [True] * count + [False] * (TOKENS - count)
        given = labels[:count].tolist()
        kinds.add((*given, bool(has_mask)))
    points = {(*[POSITIVE] * count, NOT_A_POINT, False) for count in prompts.POINT_COUNTS}
    assert kinds == {(TOP_LEFT, BOTTOM_RIGHT, False), (True,), (POSITIVE, NOT_A_POINT, True), *points}


def test_boxes_are_true_good_and_sloppy():
    mask, overlaps = disc(), {}
    true = prompts.gt_box(mask)
    for kind in ("gt-box", "jittered-box", "noisy-box"):
        boxes = np.stack([draw_prompt(rng(seed), kind, mask, mask_size=16).box for seed in range(200)])
        overlaps[kind] = prompts.box_iou(boxes, true)
    assert (overlaps["gt-box"] == 1).all()
    assert overlaps["jittered-box"].mean() > overlaps["noisy-box"].mean() + 0.1
    assert overlaps["noisy-box"].min() >= prompts.MIN_TRAINING_IOU


def test_a_coarse_mask_is_0_and_255_and_comes_alone():
    prompt = draw_prompt(rng(), "coarse-mask", disc(), mask_size=32)
    assert set(np.unique(prompt.mask)) == {0, 255}
    assert (len(prompt.points), prompt.box) == (0, None)
    coarse, inside = prompt.mask > 0, disc()[::2, ::2]
    assert (coarse & inside).sum() / (coarse | inside).sum() > 0.5
    assert coarse[15:17, 15:17].all()


def test_a_refinement_is_one_point_and_smooth_logits_of_the_objects_shape():
    prompt = draw_prompt(rng(), "refine", disc(), mask_size=32)
    assert prompt.points.shape == (1, 2)
    assert prompt.mask.min() >= -10
    assert prompt.mask.max() <= 10
    assert prompt.mask[16, 16] > 9
    assert prompt.mask[0, 0] < -9
    assert np.abs(np.diff(prompt.mask, axis=0)).max() < 8  # a step from -10 to 10 would be 20


def test_an_unknown_kind_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="'lasso'; known: gt-box, jittered-box, noisy-box, points"):
        draw_prompt(rng(), "lasso", disc(), mask_size=16)


# options


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"occlusion": 1.5}, r"^occlusion 1.5: must be a share, from 0 to 1\.$"),
        ({"views": 0}, r"^views 0: must be at least 1 and below 2\^32\.$"),
        ({"seed": -1}, r"^seed -1: must be at least 0"),
        ({"seed": 2**32}, r"^seed 4294967296: must be at least 0 and below"),
        ({"scale_range": (1.0, 0.5)}, r"^scale range 1.0 to 0.5: give two positive shares"),
        ({"scale_range": (0.0, 0.5)}, r"^scale range 0.0 to 0.5: "),
        ({"scale_range": (0.5, float("nan"))}, r"^scale range 0.5 to nan: "),
    ],
)
def test_views_that_cannot_be_drawn_are_refused(changes, message):
    with pytest.raises(InputError, match=message):
        make_views(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pictures": 0}, r"^pictures per batch 0: must be at least 1"),
        ({"prompts_per_picture": 0}, r"^prompts per picture 0: must be at least 1"),
        ({"seed": -1}, r"^seed -1: must be at least 0"),
    ],
)
def test_batches_that_cannot_be_drawn_are_refused(changes, message):
    with pytest.raises(InputError, match=message):
        batch_config(**changes)
