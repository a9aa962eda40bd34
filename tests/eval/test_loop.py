"""Every system gets the same prompts, in the frame of the squeezed picture; means are taken in the right order."""

import dataclasses

import cv2
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eval import loop
from eval.loop import Predictions, Protocol, Score, Segmenter, evaluate, squeeze, summarise, to_frame, to_picture
from eval.prompt_kinds import PROMPT_KINDS
from stablesam_jax.data.readers import LabelledPicture
from stablesam_jax.prompts import Prompt
from tests.reference import small

ALL_KINDS = tuple(PROMPT_KINDS)


def rectangle(height, width, rows, columns):
    mask = np.zeros((height, width), bool)
    mask[slice(*rows), slice(*columns)] = True
    return mask


def labelled(name, *masks):
    rng = np.random.default_rng(0)
    return LabelledPicture(name, rng.integers(0, 256, (*masks[0].shape, 3), np.uint8), np.stack(masks))


class Stub:
    """A system whose masks are a function of the prompt; records the prompts."""

    def __init__(self, look_up):
        self.look_up = look_up
        self.prompts = []

    def encode(self, picture):
        return picture

    def predict(self, embedding, prompts, size_hw):
        assert embedding.shape[:2] == size_hw
        self.prompts.append(prompts)
        masks = np.stack([self.look_up(prompt, size_hw) for prompt in prompts])
        return Predictions(masks, np.ones(len(prompts), np.float32), None)


def perfect(*targets):
    """Full-size logits of the smallest target that holds the prompt."""

    def answer(prompt, size_hw):
        x, y = prompt.points[0] if prompt.box is None else (prompt.box[:2] + prompt.box[2:]) / 2
        held = [mask for mask in targets if mask[round(min(y, size_hw[0] - 1)), round(min(x, size_hw[1] - 1))]]
        return np.where(min(held, key=np.count_nonzero), 1, -1).astype(np.float32)

    return Stub(answer)


# scores


@pytest.mark.parametrize(
    "target",
    [rectangle(40, 60, (5, 30), (10, 50)), np.ones((40, 60), bool), rectangle(40, 60, (39, 40), (59, 60))],
    ids=["object", "whole picture", "one pixel"],
)
def test_a_perfect_system_scores_one_under_every_prompt(target):
    scores = next(evaluate(perfect(target), [labelled("a", target)], Protocol(kinds=ALL_KINDS, prompts=3)))
    assert [score.kind for score in scores] == list(ALL_KINDS)
    assert {(score.miou, score.mbiou, score.msf) for score in scores} == {(1, 1, 1)}


def test_a_system_with_empty_masks_scores_zero():
    nothing = Stub(lambda prompt, size_hw: np.full(size_hw, -1, np.float32))
    scores = next(evaluate(nothing, [labelled("a", rectangle(40, 60, (5, 30), (10, 50)))], Protocol(prompts=2)))
    assert {(score.miou, score.mbiou, score.msf) for score in scores} == {(0, 0, 0)}


def test_scores_are_means_over_the_prompts():
    left, right = rectangle(20, 20, (0, 20), (0, 10)), rectangle(20, 20, (0, 20), (10, 20))
    answers = iter([left, right, left, left | right])
    alternating = Stub(lambda *_: np.where(next(answers), 1, -1).astype(np.float32))
    protocol = Protocol(kinds=("1-point",), prompts=4)
    ((score,),) = evaluate(alternating, [labelled("a", left)], protocol)
    assert score.miou == (1 + 0 + 1 + 0.5) / 4
    assert score.msf == (0.5 + 0.5 + 0.5 + 1) / 4


def test_every_system_gets_the_same_prompts():
    pictures = [
        labelled(name, rectangle(40, 60, (5, 30), (10, 50)), rectangle(40, 60, (8, 12), (12, 20))) for name in "ab"
    ]
    systems = [perfect(*pictures[0].masks), Stub(lambda prompt, size_hw: np.ones(size_hw, np.float32))]
    for system in systems:
        assert len(list(evaluate(system, pictures, Protocol(kinds=ALL_KINDS, prompts=2)))) == 2
    first, second = ([prompt for of_kind in system.prompts for prompt in of_kind] for system in systems)
    assert len(first) == len(second) == 2 * 2 * (1 + 7 * 2)
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a.points, b.points)
        np.testing.assert_array_equal(a.box, b.box)


def test_means_are_over_the_objects_of_a_picture_and_then_over_pictures():
    def score(picture, object_id, value, kind="1-point"):
        return Score(picture=picture, object_id=object_id, kind=kind, miou=value, mbiou=value / 2, msf=1 - value)

    scores = [
        score("a", 0, 0.2),
        score("a", 1, 0.4),
        score("a", 2, 0.6),
        score("b", 0, 0.8),
        score("b", 0, 1, "gt-box"),
    ]
    summary = summarise(scores)
    assert list(summary) == ["1-point", "gt-box"]
    assert summary["1-point"] == pytest.approx({"miou": 0.6, "mbiou": 0.3, "msf": 0.4})
    assert summary["gt-box"] == {"miou": 1, "mbiou": 0.5, "msf": 0}


# the squeezed frame


def test_corners_and_middle_of_the_picture_are_those_of_the_frame():
    corners = np.array([[-0.5, -0.5], [299.5, 199.5], [149.5, 99.5]])  # outer edges: half a pixel beyond centres
    assert to_frame(corners, (200, 300), 64).tolist() == [[-0.5, -0.5], [63.5, 63.5], [31.5, 31.5]]


def test_a_frame_of_the_pictures_size_moves_nothing():
    points = np.array([[0, 0], [63, 17]])
    assert to_frame(points, (64, 64), 64).tolist() == points.tolist()


@pytest.mark.parametrize(("size_hw", "size"), [((200, 300), 64), ((48, 40), 64), ((4000, 3000), 1024)])
def test_mirrored_prompts_are_mirrored_in_the_frame(size_hw, size):
    points = np.random.default_rng(0).uniform(0, np.array(size_hw[::-1]) - 1, (5, 2))
    mirrored = to_frame(np.array(size_hw[::-1]) - 1 - points, size_hw, size)
    np.testing.assert_allclose(mirrored, size - 1 - to_frame(points, size_hw, size), atol=1e-9)


def test_a_point_meets_its_pixel_in_the_frame():
    # A light pixel of a small picture, enlarged eight times: the brightest place is where its point comes to lie.
    picture = np.zeros((8, 8, 3), np.uint8)
    picture[5, 2] = 255
    frame = squeeze(picture, 64)[..., 0].astype(float)
    centre = [(frame * axis).sum() / frame.sum() for axis in np.mgrid[:64, :64]]
    assert to_frame(np.array([[2, 5]]), (8, 8), 64)[0] == pytest.approx(centre[::-1], abs=0.02)


def test_a_box_stays_within_half_a_pixels_change_of_size_of_its_edges():
    # HQ-SAM takes the box of the resized mask: its edges are the scaled edges, give or take half a pixel.
    for size_hw, size in (((200, 300), 64), ((48, 40), 64), ((500, 400), 1024)):
        mask = rectangle(*size_hw, (11, 37), (5, 33))
        small_mask = cv2.resize(mask.astype(np.float32), (size, size), interpolation=cv2.INTER_LINEAR) > 0.5
        rows, columns = np.flatnonzero(small_mask.any(1)), np.flatnonzero(small_mask.any(0))
        factor = size / np.array(size_hw[::-1])
        box = to_frame(np.array([[5, 11], [32, 36]]), size_hw, size)
        expected = np.array([[columns[0], rows[0]], [columns[-1], rows[-1]]])
        assert (np.abs(box - expected) <= 0.51 + np.abs(factor - 1) / 2).all()


def test_a_picture_is_squeezed_bilinearly_and_truncated():
    row = np.array([[0, 101]], np.uint8)
    squeezed = squeeze(np.stack([row] * 3, axis=-1), 4)
    assert squeezed.shape == (4, 4, 3)
    assert squeezed[0, :, 0].tolist() == [0, 25, 75, 101]  # 25.25 and 75.75
    unchanged = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    assert np.array_equal(squeeze(unchanged, 64), unchanged)


def test_logits_return_in_one_bilinear_step_and_zero_is_background():
    low_res = np.array([[-1, 3], [-1, 3]], np.float32)
    assert to_picture(low_res, (2, 8)).tolist() == [[False, False, False, True, True, True, True, True]] * 2
    assert not to_picture(np.zeros((4, 4), np.float32), (7, 5)).any()


# the compiled system


@pytest.fixture(scope="module")
def segmenter():
    return Segmenter(*small.stable_nano())


@pytest.fixture(scope="module")
def prompts():
    rng = np.random.default_rng(0)
    points = rng.uniform(0, 40, (loop.CHUNK + 1, 1, 2)).astype(np.float32)
    return [Prompt(points=point, labels=np.ones(1, np.int32)) for point in points]


@pytest.fixture(scope="module")
def embedding(segmenter):
    return segmenter.encode(np.random.default_rng(1).integers(0, 256, (48, 40, 3), np.uint8))


@pytest.mark.slow
def test_chunks_and_their_padding_change_no_mask(segmenter, embedding, prompts):
    together = segmenter.low_res_masks(embedding, prompts, (48, 40))
    assert together.shape == (loop.CHUNK + 1, 16, 16)
    assert together.dtype == np.float32
    alone = np.concatenate([segmenter.low_res_masks(embedding, [prompt], (48, 40)) for prompt in prompts[-2:]])
    np.testing.assert_allclose(together[-2:], alone, atol=1e-5)
    assert np.abs(together[0] - together[1]).max() > 1e-3  # prompts do matter


@pytest.mark.slow
def test_longer_tokens_beside_a_prompt_change_no_mask(segmenter, embedding, prompts):
    many = Prompt(points=np.full((3, 2), 20, np.float32), labels=np.ones(3, np.int32))
    padded = segmenter.low_res_masks(embedding, [prompts[0], many], (48, 40))[0]
    np.testing.assert_allclose(padded, segmenter.low_res_masks(embedding, prompts[:1], (48, 40))[0], atol=1e-5)


@pytest.mark.slow
def test_of_hq_sam_the_hq_tokens_mask_counts_and_not_its_sum_with_sams(prompts):
    sam, tree = small.system(hq=True, plugin=None)
    hq = Segmenter(sam, tree)
    embedding = hq.encode(np.random.default_rng(1).integers(0, 256, (48, 40, 3), np.uint8))
    masks = hq.low_res_masks(embedding, prompts[:2], (48, 40))
    for mlp, counts in (("output_hypernetworks_mlps_0", False), ("hf_mlp", True)):
        without = jax.tree.map(np.zeros_like, tree["mask_decoder"][mlp])
        hq.params = tree | {"mask_decoder": tree["mask_decoder"] | {mlp: without}}
        assert (np.abs(hq.low_res_masks(embedding, prompts[:2], (48, 40)) - masks).max() > 1e-3) == counts


def test_alpha_is_the_plugins_own_and_absent_without_one(segmenter, embedding, prompts):
    sam, tree = small.stable_nano()
    drp = tree["plugin"]["drp"]
    other = tree | {"plugin": tree["plugin"] | {"drp": jax.tree.map(lambda leaf: leaf + 1, drp)}}
    alpha, changed = (one.predict(embedding, prompts, (48, 40)).alpha for one in (segmenter, Segmenter(sam, other)))
    assert alpha.shape == (loop.CHUNK + 1,)
    assert np.abs(alpha - changed).min() > 1e-3
    answers = Segmenter(*small.nano()).predict(embedding, prompts[:2], (48, 40))
    assert answers.alpha is None
    assert answers.predicted_iou.shape == (2,)


def test_two_parameter_trees_of_a_model_share_one_program(segmenter):
    sam, tree = small.stable_nano()
    other = Segmenter(dataclasses.replace(sam), tree)
    picture = np.zeros((1, small.SIZE, small.SIZE, 3), np.float32)
    expected = segmenter._encode(tree, picture)

    def refuse(call, arguments, options, context):
        raise AssertionError(f"{context.module} is traced once more")

    with nn.intercept_methods(refuse):
        found = other._encode(jax.tree.map(jnp.copy, tree), picture)
    np.testing.assert_array_equal(found.features, expected.features)


def test_the_buckets_of_tokens_hold_every_kind_of_prompt():
    assert max(kind.points for kind in PROMPT_KINDS.values()) + 1 <= max(loop.TOKEN_BUCKETS)
