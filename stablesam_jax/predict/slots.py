"""Pads prompts to a few fixed shapes, so that few programs are compiled.

A slot is a number of prompts and a number of tokens. Padding tokens are masked in attention; padding prompts are copies
of the last one, and their results are dropped.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from stablesam_jax.errors import InputError
from stablesam_jax.model.prompt_encoder import Prompts, sparse_tokens, token_count
from stablesam_jax.prompts import Prompt


@dataclasses.dataclass(frozen=True)
class Slots:
    """The shapes. More prompts than the largest slot has are decoded in several batches."""

    prompts: tuple[int, ...] = (1, 2, 4, 8, 16, 24)  # ascending
    fewest_tokens: int = 4  # smallest number of tokens; the others are its doubles

    def __post_init__(self):
        if not self.prompts or min(self.prompts) < 1 or sorted(set(self.prompts)) != list(self.prompts):
            raise InputError(f"slots are ascending numbers of prompts, from 1; got {self.prompts}.")
        if self.fewest_tokens < 2:
            raise InputError(f"a slot has at least the 2 tokens of a box; got {self.fewest_tokens}.")

    def tokens_up_to(self, most: int) -> list[int]:
        """The numbers of tokens, to the first that holds `most`."""
        numbers = [self.fewest_tokens]
        while numbers[-1] < most:
            numbers.append(2 * numbers[-1])
        return numbers

    def prompts_up_to(self, most: int) -> list[int]:
        """The numbers of prompts, to the first that holds `most`."""
        return [slot for slot, before in zip(self.prompts, (0, *self.prompts), strict=False) if before < most]

    def examples(self, most_prompts: int, most_tokens: int) -> Iterator[list[Prompt]]:
        """Prompts that need each slot up to the given numbers, for compiling ahead of use."""
        for count, tokens in itertools.product(self.prompts_up_to(most_prompts), self.tokens_up_to(most_tokens)):
            points = np.zeros((tokens - 2, 2))
            yield [Prompt(points=points, labels=np.ones(tokens - 2, np.int32), box=np.zeros(4))] * count

    def answer(self, program: Callable[[Prompts], Any], prompts: Sequence[Prompt]) -> Any:
        """Runs a program on all prompts, at least one, in padded batches.

        Args:
            program: of prompts (B = 1, N, ...), to arrays (N, ...).
            prompts: in the frame of the model's input; all have a mask, or none has.

        Returns:
            results of the program, on the host, with N = len(prompts).
        """
        answers = [
            jax.tree.map(lambda leaf, count=count: leaf[:count], jax.device_get(program(batch)))
            for count, batch in self._batches(prompts)
        ]
        return jax.tree.map(lambda *parts: np.concatenate(parts), *answers)

    def turns(self, count: int) -> Iterator[list[int]]:
        """Splits `count` items into batches of indices, each padded to a slot by repeating the last.

        >>> list(Slots((1, 2, 4)).turns(7))
        [[0, 1, 2, 3], [4, 5, 6, 6]]
        """
        for start in range(0, count, self.prompts[-1]):
            indices = list(range(start, min(start + self.prompts[-1], count)))
            yield indices + indices[-1:] * (self.prompts_up_to(len(indices))[-1] - len(indices))

    def _batches(self, prompts: Sequence[Prompt]) -> Iterator[tuple[int, Prompts]]:
        """Yields the number of prompts in a batch, and the padded batch."""
        length = self.tokens_up_to(max(token_count(prompt.points, prompt.box) for prompt in prompts))[-1]
        for indices in self.turns(len(prompts)):
            yield len(set(indices)), stack([prompts[index] for index in indices], length)


SLOTS = Slots()


def stack(prompts: Sequence[Prompt], length: int) -> Prompts:
    """B = 1, with `length` tokens each."""
    columns = zip(
        *(sparse_tokens(prompt.points, prompt.labels, prompt.box, length=length) for prompt in prompts), strict=True
    )
    coords, labels, valid = (jnp.asarray(np.stack(column)[None]) for column in columns)
    given = [prompt.mask for prompt in prompts if prompt.mask is not None]
    if not given:
        return Prompts(coords, labels, valid)
    masks = jnp.asarray(np.stack(given)[None], jnp.float32)
    return Prompts(coords, labels, valid, masks, jnp.ones(masks.shape[:2], bool))
