"""Prompts in SamPredictor's arguments become prompts, one or a list; what is none is refused with the remedy."""

import numpy as np
import pytest

from stablesam_jax.errors import InputError
from stablesam_jax.predict.user_prompts import read_prompts

SIZE = (30, 40)  # height and width
SIDE = 8  # of mask inputs
BOX = np.array([3.0, 4.0, 20.0, 25.0])
POINTS, LABELS = np.array([[5.0, 6.0], [39.0, 29.0]]), np.array([1, 0])
MASK = np.linspace(-4, 4, SIDE**2).reshape(1, SIDE, SIDE)


def read(point_coords=None, point_labels=None, box=None, mask_input=None):
    return read_prompts(point_coords, point_labels, box, mask_input, size_hw=SIZE, mask_size=SIDE)


@pytest.mark.parametrize("box", [BOX, list(BOX)], ids=["4", "list"])
def test_what_sampredictor_takes_is_one_prompt(box):
    (prompt,), is_list = read(POINTS.tolist(), LABELS.tolist(), box, MASK)
    assert not is_list
    np.testing.assert_array_equal(prompt.points, POINTS)
    np.testing.assert_array_equal(prompt.labels, LABELS)
    np.testing.assert_array_equal(prompt.box, BOX)
    np.testing.assert_array_equal(prompt.mask, MASK[0])


def test_one_axis_more_is_a_list():
    boxes, masks = np.stack([BOX, BOX + 1]), np.stack([MASK, -MASK])
    for given in (boxes, boxes[:, None], boxes.tolist()):
        for mask_input in (masks, masks[:, 0]):
            prompts, is_list = read(POINTS[None].repeat(2, 0), LABELS[None].repeat(2, 0), given, mask_input)
            assert is_list
            np.testing.assert_array_equal([prompt.box for prompt in prompts], boxes)
            np.testing.assert_array_equal([prompt.mask for prompt in prompts], masks[:, 0])
            np.testing.assert_array_equal([prompt.points for prompt in prompts], [POINTS, POINTS])


def test_a_list_of_one_is_a_list():
    assert read(box=BOX[None, None])[1]
    assert read(box=BOX[None])[1]
    assert read(box=BOX[None], mask_input=MASK)[1]  # one mask for the one box of the list
    assert read(mask_input=MASK[None])[1]
    assert not read(mask_input=MASK)[1]  # SamPredictor's one prompt
    assert read(POINTS[None], LABELS[None])[1]
    assert read(POINTS[None], LABELS[None], BOX[None], MASK)[1]  # what could be either goes with the rest


@pytest.mark.parametrize(
    "arguments",
    [
        {"box": np.zeros((0, 4))},
        {"box": []},
        {"box": np.zeros((0, 1, 4)), "mask_input": np.zeros((0, SIDE, SIDE))},
        {"mask_input": []},
        {"point_coords": np.zeros((0, 3, 2)), "point_labels": np.zeros((0, 3))},
        {"point_coords": [], "point_labels": [], "box": []},
    ],
    ids=lambda arguments: "-".join(arguments),
)
def test_a_list_may_hold_no_prompt(arguments):
    assert read(**arguments) == ([], True)


def test_point_sets_may_differ_in_length():
    prompts, is_list = read([POINTS, POINTS[:1]], [LABELS, LABELS[:1]])
    assert is_list
    assert [len(prompt.points) for prompt in prompts] == [2, 1]
    assert prompts[1].box is prompts[1].mask is None


def test_coordinates_keep_their_digits():
    (prompt,), _ = read(np.array([[1 / 3, 2 / 3]]), [1])
    assert prompt.points[0, 0] == 1 / 3


def test_points_of_no_kind_may_lie_anywhere():
    (prompt,), _ = read([[5, 6], [999, 999]], [1, -1])
    assert prompt.labels.tolist() == [1, -1]


def test_boxes_may_leave_the_picture_and_points_lie_a_pixel_beside_it():
    (prompt,), _ = read([[-1, 0], [40, 30]], [1, 1], [-10, -20, 50, 60])
    np.testing.assert_array_equal(prompt.box, [-10, -20, 50, 60])  # not clipped, as in the reference


def test_a_box_may_have_no_area():
    assert read(box=[7, 8, 7, 8])[0][0].box.tolist() == [7, 8, 7, 8]  # that of an object of one pixel


NAN, INF = np.nan, np.inf
WRONG = {
    "nothing": ({}, "no prompt is given; give"),
    "points-without-labels": ({"point_coords": POINTS}, "point_coords is given without point_labels; give both"),
    "labels-without-points": ({"point_labels": LABELS, "box": BOX}, "point_labels is given without point_coords"),
    "fewer-labels": ({"point_coords": POINTS, "point_labels": [1]}, r"\(2, 2\) and point_labels \(1,\)"),
    "label-2": ({"point_coords": POINTS, "point_labels": [1, 2]}, "point_labels holds 2; expected 1 .* 0 .* or -1"),
    "label-half": ({"point_coords": POINTS, "point_labels": [1, 0.5]}, "point_labels holds 0.5"),
    "label-nan": (
        {"point_coords": POINTS, "point_labels": [1, NAN]},
        "point_labels holds values that are not finite",
    ),
    "point-nan": (
        {"point_coords": [[1, NAN]], "point_labels": [1]},
        "point_coords holds values that are not finite",
    ),
    "point-inf": ({"point_coords": [[[1, 2]], [[INF, 2]]], "point_labels": [[1], [1]]}, r"point_coords\[1\] holds"),
    "point-outside": (
        {"point_coords": [[29, 39]], "point_labels": [1]},
        r"\(29, 39\).* outside the picture of 40 x 30",
    ),
    "points-flat": ({"point_coords": [5, 6], "point_labels": [1]}, r"point_coords has shape \(2,\); expected \(k, 2\)"),
    "points-3d": ({"point_coords": [[5, 6, 7]], "point_labels": [1]}, r"shape \(1, 3\) and"),
    "no-points": ({"point_coords": np.zeros((0, 2)), "point_labels": []}, "k of at least 1"),
    "no-points-in-a-list": ({"point_coords": np.zeros((1, 0, 2)), "point_labels": np.zeros((1, 0))}, "k of at least 1"),
    "labels-of-no-points": ({"point_coords": [], "point_labels": [1]}, r"\(point_coords 0, point_labels 1\)"),
    "a-box-and-no-points": ({"point_coords": [], "point_labels": [], "box": BOX}, r"point_labels 0, box 1\)"),
    "words": ({"point_coords": "left", "point_labels": [1]}, "point_coords is no array of numbers"),
    "uneven": ({"point_coords": [[5, 6], [7]], "point_labels": [1]}, "arrays of different depths|holds arrays"),
    "box-inverted": ({"box": [20, 4, 3, 25]}, r"box \(20, 4, 3, 25\) is inverted; .* x \+ w"),
    "box-upside-down": ({"box": [[3, 4, 20, 25], [3, 25, 20, 4]]}, r"box\[1\] \(3, 25, 20, 4\) is inverted"),
    "box-nan": ({"box": [3, 4, NAN, 25]}, "box holds values that are not finite"),
    "box-outside": ({"box": [41, 4, 50, 25]}, "outside the picture of 40 x 30 pixels; give XYXY"),
    "box-of-three": ({"box": [1, 2, 3]}, r"box has shape \(3,\); expected \(4,\)"),
    "box-corners": ({"box": [[1, 2], [3, 4]]}, r"box has shape \(2, 2\)"),
    "box-words": ({"box": [[1, 2, 3, 4], [1, 2]]}, "box is no array of numbers"),
    "no-boxes-of-five": ({"box": np.zeros((0, 5))}, r"box has shape \(0, 5\)"),
    "mask-flat": ({"mask_input": MASK[0]}, r"mask_input has shape \(8, 8\); expected \(1, 8, 8\)"),
    "mask-size": ({"mask_input": np.zeros((1, 16, 16))}, r"\(1, 16, 16\); expected \(1, 8, 8\)"),
    "mask-nan": ({"mask_input": np.full((1, SIDE, SIDE), NAN)}, "mask_input holds values that are not finite"),
    "mask-bool": ({"mask_input": MASK > 0}, "mask_input is boolean; give logits"),
    "two-counts": ({"box": np.stack([BOX] * 3), "mask_input": np.stack([MASK] * 2)}, r"\(box 3, mask_input 2\)"),
    "one-and-list": (
        {"point_coords": POINTS, "point_labels": LABELS, "box": BOX[None]},
        "point_coords, point_labels: of one prompt, while other arguments are lists",
    ),
    "points-for-a-list": (
        {"point_coords": POINTS, "point_labels": LABELS, "box": np.stack([BOX] * 2)},
        "point_coords 1, point_labels 1, box 2",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_no_prompt_is_refused_in_one_line(name):
    arguments, words = WRONG[name]
    with pytest.raises(InputError, match=words) as caught:
        read(**arguments)
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith(".")
