"""The next click falls where the mask is wrong, and the prompt is one that the prompt encoder knows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stablesam_jax.model.prompt_encoder import Prompts, sparse_tokens
from train.clicks import click_on_errors

SIDE, CELLS = 64, 16
TARGET = np.zeros((CELLS, CELLS), np.float32)
TARGET[4:12, 2:10] = 1
NOBODY = (np.zeros((0, 2)), np.zeros(0, np.int32))


def prompts_of(points, labels, box):
    coords, kinds, valid = sparse_tokens(points, labels, box, length=4)
    count = 1, 1
    return Prompts(
        coords=jnp.array(coords)[None, None],
        labels=jnp.array(kinds)[None, None],
        valid=jnp.array(valid)[None, None],
        masks=jnp.zeros((*count, CELLS, CELLS)),
        masks_valid=jnp.zeros(count, bool),
    )


MASK_ALONE = prompts_of(*NOBODY, None)


def click(logits, *, prompts=MASK_ALONE, seed=0):
    rng = jax.random.split(jax.random.key(seed), 1)[None]
    return click_on_errors(rng, prompts, jnp.array(logits)[None, None], jnp.array(TARGET)[None, None], size=SIDE)


def cell_of(prompts):
    """(row, column) of the low-resolution pixel that was clicked."""
    x, y = np.asarray(prompts.coords)[0, 0, 4]
    return int((y + 0.5) * CELLS / SIDE), int((x + 0.5) * CELLS / SIDE)


@pytest.mark.parametrize("seed", range(5))
def test_what_is_missed_gets_a_click_on_the_object(seed):
    logits = np.where(TARGET, 1.0, -1.0).astype(np.float32)
    logits[4:6, 2:10] = -1
    clicked = click(logits, seed=seed)
    row, column = cell_of(clicked)
    assert 4 <= row < 6
    assert 2 <= column < 10
    assert clicked.labels[0, 0, 4] == 1
    assert clicked.valid[0, 0, 4]


def test_what_is_too_much_gets_a_click_off_the_object_at_the_centre_of_its_cell():
    logits = np.where(TARGET, 1.0, -1.0).astype(np.float32)
    logits[14, 15] = 1
    clicked = click(logits)
    assert clicked.labels[0, 0, 4] == 0
    assert clicked.coords[0, 0, 4].tolist() == [15.5 * 4 - 0.5, 14.5 * 4 - 0.5]


def test_clicks_are_spread_over_all_errors_and_a_right_mask_gets_one_anywhere():
    wrong = np.full((CELLS, CELLS), -1, np.float32)  # all of the object is missed
    assert len({cell_of(click(wrong, seed=seed)) for seed in range(40)}) > 20
    right = np.where(TARGET, 1.0, -1.0).astype(np.float32)
    clicked = [click(right, seed=seed) for seed in range(40)]
    assert {int(one.labels[0, 0, 4]) for one in clicked} == {0, 1}


@pytest.mark.parametrize(
    ("prompt", "padded"),
    [
        (MASK_ALONE, True),
        (prompts_of(*NOBODY, np.array([8.0, 16, 40, 48])), False),
        (prompts_of(np.array([[20.0, 20]]), np.array([1]), None), False),  # has the token already
    ],
    ids=["mask", "box", "point"],
)
def test_the_token_not_a_point_is_there_once_where_there_is_no_box(prompt, padded):
    clicked = click(np.full((CELLS, CELLS), -1, np.float32), prompts=prompt)
    assert clicked.labels[0, 0, 5] == -1
    assert bool(clicked.valid[0, 0, 5]) == padded
    np.testing.assert_array_equal(clicked.coords[0, 0, :4], prompt.coords[0, 0])
    np.testing.assert_array_equal(clicked.valid[0, 0, :4], prompt.valid[0, 0])
    again = click_on_errors(
        jax.random.split(jax.random.key(1), 1)[None], clicked, clicked.masks, jnp.array(TARGET)[None, None], size=SIDE
    )
    assert not again.valid[0, 0, 7]


def test_the_masks_logits_are_the_next_mask_prompt_and_carry_no_gradient():
    logits = jnp.array(np.random.default_rng(0).standard_normal((CELLS, CELLS)), jnp.float32)
    clicked = click(logits)
    np.testing.assert_array_equal(clicked.masks[0, 0], logits)
    assert clicked.masks_valid.all()
    gradient = jax.grad(lambda values: click(values).masks.sum())(logits)
    assert not gradient.any()
