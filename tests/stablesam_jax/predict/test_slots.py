"""Prompts in few shapes: each gets its own answer, and what pads is never seen."""

import jax.numpy as jnp
import numpy as np
import pytest

from stablesam_jax.errors import InputError
from stablesam_jax.predict.slots import Slots
from stablesam_jax.prompts import Prompt


def prompt(x, points=1, mask=None):
    return Prompt(points=np.full((points, 2), x, np.float32), labels=np.ones(points, np.int32), mask=mask)


def shapes(slots, prompts):
    seen = []

    def program(batch):
        seen.append(batch.labels.shape[1:])
        return batch.coords[0, :, 0, 0], {"tokens": batch.valid[0].sum(-1)}

    return slots.answer(program, prompts), seen


@pytest.mark.parametrize(
    ("count", "expected"), [(1, [1]), (3, [4]), (17, [24]), (24, [24]), (25, [24, 1]), (60, [24, 24, 16])]
)
def test_every_prompt_is_answered_in_a_slot_that_holds_it(count, expected):
    (x, more), seen = shapes(Slots(), [prompt(index) for index in range(count)])
    np.testing.assert_array_equal(x, np.arange(count))
    assert more["tokens"].tolist() == [2] * count  # a point without a box is followed by one token
    assert [slot for slot, _ in seen] == expected


@pytest.mark.parametrize(("points", "tokens"), [(1, 4), (3, 4), (4, 8), (7, 8), (8, 16), (40, 64)])
def test_tokens_double(points, tokens):
    _, seen = shapes(Slots(), [prompt(0), prompt(1, points)])
    assert seen == [(2, tokens)]


def test_one_slot_alone_serves_all():
    one = Slots((8,), 8)
    for count in (1, 5, 8, 20):
        (x, _), seen = shapes(one, [prompt(index, 1 + index % 3) for index in range(count)])
        assert set(seen) == {(8, 8)}
        np.testing.assert_array_equal(x, np.arange(count))


def test_masks_are_padded_as_their_prompts():
    masks = [np.full((4, 4), index, np.float32) for index in range(3)]
    found = Slots().answer(
        lambda batch: jnp.where(batch.masks_valid[0], batch.masks[0, :, 0, 0], jnp.nan),
        [prompt(index, mask=mask) for index, mask in enumerate(masks)],
    )
    assert found.tolist() == [0, 1, 2]


def test_the_slots_up_to_a_number_are_those_that_as_many_or_fewer_need():
    assert Slots().prompts_up_to(1) == [1]
    assert Slots().prompts_up_to(5) == [1, 2, 4, 8]
    assert Slots().prompts_up_to(99) == [1, 2, 4, 8, 16, 24]
    assert Slots((8,), 8).prompts_up_to(1) == [8]
    assert Slots().tokens_up_to(1) == [4]
    assert Slots().tokens_up_to(9) == [4, 8, 16]


@pytest.mark.parametrize("numbers", [(), (0,), (4, 2), (2, 2)], ids=str)
def test_slots_that_hold_nothing_are_refused(numbers):
    with pytest.raises(InputError, match="ascending numbers of prompts, from 1"):
        Slots(numbers)
    with pytest.raises(InputError, match="at least the 2 tokens of a box; got 1"):
        Slots(fewest_tokens=1)
