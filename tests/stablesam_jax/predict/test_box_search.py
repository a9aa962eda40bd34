"""The search is Adam on the loss of BREPS, whose parts equal plain references, and starts at the given box."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from stablesam_jax.errors import InputError
from stablesam_jax.metrics import mask_iou
from stablesam_jax.predict import box_search
from stablesam_jax.predict.box_search import GAMMA_SCALE, GAMMA_SHAPE, STEPS, distance, log_density, search
from stablesam_jax.prompts import box_iou
from tests.reference import small
from tests.reference.squares import SQUARES, nano

TIGHT = np.array([[10, 20, 60, 80], [0, 0, 30, 10], [5, 5, 9, 90]], np.float32)


def moved(seed):
    return TIGHT + np.random.default_rng(seed).normal(0, 4, TIGHT.shape).astype(np.float32)


def ciou_loss(box, tight):
    """Zheng et al. 2020, one box."""
    hull = [min(box[0], tight[0]), min(box[1], tight[1]), max(box[2], tight[2]), max(box[3], tight[3])]
    diagonal = (hull[2] - hull[0]) ** 2 + (hull[3] - hull[1]) ** 2
    centres = [((b[0] + b[2]) / 2, (b[1] + b[3]) / 2) for b in (box, tight)]
    between = sum((a - b) ** 2 for a, b in zip(*centres, strict=True))
    angles = [np.arctan((b[2] - b[0]) / (b[3] - b[1])) for b in (box, tight)]
    v = 4 / np.pi**2 * (angles[1] - angles[0]) ** 2
    iou = float(box_iou(np.array(box), np.array(tight)))
    return 1 - iou + between / diagonal + v * v / (1 - iou + v)


@pytest.mark.parametrize("seed", range(5))
def test_the_distance_is_the_ciou_loss(seed):
    boxes = moved(seed)
    expected = [ciou_loss(box, tight) for box, tight in zip(boxes.tolist(), TIGHT.tolist(), strict=True)]
    np.testing.assert_allclose(distance(jnp.asarray(boxes), jnp.asarray(TIGHT)), expected, rtol=1e-4, atol=1e-5)


def test_equal_boxes_have_no_distance_no_density_and_finite_gradients():
    boxes = jnp.asarray(TIGHT)
    gradient = jax.grad(lambda moving: log_density(distance(moving, boxes)).sum())(boxes)
    np.testing.assert_allclose(distance(boxes, boxes), 0, atol=1e-6)
    assert np.isfinite(gradient).all()
    assert log_density(jnp.zeros(2)).tolist() == [0, 0]


def test_the_density_is_that_of_the_gamma_distribution():
    distances = np.linspace(0.01, 1.5, 40, dtype=np.float32)
    expected = scipy.stats.gamma.logpdf(distances, GAMMA_SHAPE, scale=GAMMA_SCALE)
    np.testing.assert_allclose(log_density(jnp.asarray(distances)), expected, rtol=1e-4, atol=1e-4)


MASKS = np.zeros((3, 40, 64), bool)
MASKS[0, 5:20, 10:30], MASKS[1, 25:38, 30:60], MASKS[2, 2:39, 2:9] = True, True, True
BOXES = np.array([[10, 5, 29, 19], [30, 25, 59, 37], [2, 2, 8, 38]], np.float32)


@pytest.fixture(scope="module")
def found():
    arguments = *small.nano(), nano()[0].encode(SQUARES[0]).embedding
    return {goal: search(*arguments, BOXES, list(MASKS), [goal] * 3) for goal in ("worst", "best")}


@pytest.mark.slow
def test_the_first_box_is_the_given_one_with_its_own_mask(found):
    predictor = nano()[0]
    picture = predictor.encode(SQUARES[0])
    _, _, low_res = predictor.predict(box=BOXES, picture=picture, multimask_output=False)
    for one in found.values():
        assert one.boxes.shape == (STEPS, 3, 4)
        np.testing.assert_allclose(one.boxes[0], BOXES, atol=1e-4)
        np.testing.assert_allclose(one.low_res_masks[0], low_res[:, 0], atol=2e-4)


@pytest.mark.slow
def test_the_best_of_three_masks_is_chosen_anew_for_each_box_and_object():
    predictor = nano()[0]
    picture = predictor.encode(SQUARES[0])
    found = search(*small.nano(), picture.embedding, BOXES, list(MASKS), ["worst"] * 3, "multi")
    for step in (0, STEPS - 1):
        boxes = found.boxes[step]
        _, predicted, low_res = predictor.predict(box=boxes, picture=picture, multimask_output=True)
        chosen = np.argmax(predicted, axis=1)
        np.testing.assert_allclose(found.low_res_masks[step], low_res[np.arange(3), chosen], atol=2e-4)


def soft_dice(logits, mask):
    """Of (G, G) logits and a mask of 40 x 64 pixels in a frame of 64 x 64."""
    side = len(logits)
    target = np.zeros((side, side))
    target[: side * 40 // 64] = mask.reshape(side * 40 // 64, 4, side, 4).mean(axis=(1, 3))
    shares = 1 / (1 + np.exp(-logits))
    shares[side * 40 // 64 :] = 0
    return 2 * (shares * target).sum() / (shares.sum() + target.sum())


@pytest.mark.slow
def test_the_worst_search_lowers_dice_and_the_best_one_raises_it(found):
    for number, mask in enumerate(MASKS):
        worst, best = (
            [soft_dice(logits.astype(np.float64), mask) for logits in found[goal].low_res_masks[:, number]]
            for goal in ("worst", "best")
        )
        assert worst[0] == pytest.approx(best[0])
        assert min(worst) < worst[0] - 2e-5  # random weights hardly look at the box
        assert max(best) >= best[0]
        assert min(worst) < min(best)


@pytest.mark.slow
def test_the_first_step_is_adams_against_the_gradient_of_the_loss(found):
    """Adam's first step is the learning rate in the direction of the gradient, taken here by differences."""
    predictor = nano()[0]
    picture = predictor.encode(SQUARES[0])
    rate = box_search.RATE * predictor.sam.config.image_size

    def loss(box, number):
        _, _, low_res = predictor.predict(box=box, picture=picture, multimask_output=False)
        return soft_dice(low_res[0].astype(np.float64), MASKS[number])

    for goal, sign in (("worst", -1), ("best", 1)):
        steps = found[goal].boxes[1] - found[goal].boxes[0]
        np.testing.assert_allclose(np.abs(steps), rate, rtol=0.1)  # less where a gradient is near Adam's epsilon
        for number, edge in ((0, 0), (1, 2), (2, 3)):
            shift = np.zeros(4)
            shift[edge] = 0.5
            slope = loss(BOXES[number] + shift, number) - loss(BOXES[number] - shift, number)
            if abs(slope) > 1e-5:
                assert np.sign(steps[number, edge]) == sign * np.sign(slope)


@pytest.mark.slow
def test_objects_are_searched_for_as_alone(found):
    alone = search(*small.nano(), nano()[0].encode(SQUARES[0]).embedding, BOXES[1:2], [MASKS[1]], ["worst"])
    np.testing.assert_allclose(alone.boxes[:10, 0], found["worst"].boxes[:10, 1], atol=0.05)


@pytest.mark.slow
def test_each_search_has_its_own_goal(found):
    arguments = *small.nano(), nano()[0].encode(SQUARES[0]).embedding
    both = search(*arguments, np.tile(BOXES[1], (2, 1)), [MASKS[1]] * 2, ["best", "worst"])
    for place, goal in enumerate(("best", "worst")):
        np.testing.assert_allclose(both.boxes[:10, place], found[goal].boxes[:10, 1], atol=0.05)
    assert np.abs(both.boxes[5, 0] - both.boxes[5, 1]).max() > 0.1


@pytest.mark.slow
def test_a_predictor_finds_the_box_whose_mask_differs_most_from_that_of_the_given_one():
    predictor = nano()[0]
    picture = predictor.encode(SQUARES[0])
    found = predictor.worst_box(BOXES[0], picture=picture)
    own, _, _ = predictor.predict(box=BOXES[0], picture=picture, multimask_output=False)
    again, _, _ = predictor.predict(box=found.box, picture=picture, multimask_output=False)
    assert found.iou_before > 0.999  # its own mask, decoded in another batch
    assert found.iou <= found.iou_before
    assert mask_iou(found.mask, own[0]) == pytest.approx(found.iou, abs=1e-3)
    assert mask_iou(found.mask, again[0]) > 0.999


def test_the_worst_box_is_one_that_can_be_given_to_predict(monkeypatch):
    boxes = np.array([[9, 9, 12, 12], [9, 12, 12, 9], [8, 9, 12, 12]], np.float32)[:, None]
    logits = np.ones((3, 1, 16, 16), np.float32)
    logits[1], logits[2, :, :, 8:] = -1, -1
    monkeypatch.setattr(box_search, "search", lambda *_: box_search.Search(boxes=boxes, low_res_masks=logits))
    predictor = nano()[0]
    found = predictor.worst_box(boxes[0, 0], np.ones((40, 64), bool), picture=predictor.encode(SQUARES[0]))
    assert found.box.tolist() == [8, 9, 12, 12]
    assert (found.iou, found.iou_before) == (0.5, 1)


@pytest.mark.slow
def test_an_object_of_one_pixel_is_searched_for_with_finite_numbers():
    mask = np.zeros((40, 64), bool)
    mask[7, 9] = True
    embedding = nano()[0].encode(SQUARES[0]).embedding
    found = search(*small.nano(), embedding, np.array([[9.0, 7, 9, 7]]), [mask], ["worst"])
    assert np.isfinite(found.boxes).all()
    assert np.isfinite(found.low_res_masks).all()


@pytest.mark.parametrize(
    ("box", "mask", "words"),
    [
        (BOXES, None, "takes one box; call it for each of the list"),
        ([1, 2, np.nan, 4], None, "values that are not finite"),
        ([9, 9, 3, 3], None, "is inverted"),
        (None, None, "no prompt is given"),
        (BOXES[0], np.ones((3, 3), bool), r"mask is \(3, 3\); it must have the picture's size \(40, 64\)"),
    ],
)
def test_what_is_no_box_or_another_pictures_mask_is_refused(box, mask, words):
    predictor = nano()[0]
    with pytest.raises(InputError, match=words):
        predictor.worst_box(box, mask, picture=predictor.encode(SQUARES[0]))
