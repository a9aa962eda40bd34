"""One model, its encoded pictures, and what every kind of client asks of them."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from serve.limits import Limits
from serve.pictures import Pictures, encoder
from stablesam_jax.build import assemble
from stablesam_jax.errors import InputError
from stablesam_jax.predict.picture import Picture
from stablesam_jax.predict.predictor import Predictor
from stablesam_jax.predict.stable import StableMask

JITTERS = 10  # half the paper's number: a second prompt on a picture is answered within 0.3 s by two cores
STRENGTHS = 20  # steps of the plugin's strength; each has a predictor, of the same parameters


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prompt:
    """A box, points, or both, in pixels of the picture."""

    box: ArrayLike | None = None  # XYXY
    points: ArrayLike = ()  # (x, y)
    labels: Sequence[int] = ()  # 1 on the object, 0 beside it

    @property
    def arguments(self) -> dict[str, Any]:
        """Arguments of `Predictor.predict`.

        Raises:
            InputError: neither a box nor points, or not a label for each point.
        """
        points, labels = np.reshape(self.points, (-1, 2)).astype(np.float64), np.array(self.labels, np.int32)
        if self.box is None and not len(points):
            raise InputError("no prompt is given; give a box or points.")
        if len(points) != len(labels):
            raise InputError(f"{len(points)} points have {len(labels)} labels; give a label for each.")
        box = {} if self.box is None else {"box": np.array(self.box, np.float64)}
        return box | ({"point_coords": points, "point_labels": labels} if len(points) else {})


class Service:
    """A model that several threads may use."""

    def __init__(self, predictor: Predictor, name: str, *, limits: Limits | None = None, jitters: int = JITTERS):
        """Shares a predictor.

        Args:
            predictor: of the model.
            name: of the model, as a user calls it.
            limits: of pictures and prompts.
            jitters: slightly different prompts that the stability of a mask is measured with.
        """
        self.predictor, self.name, self.jitters = predictor, name, jitters
        self.limits = limits or Limits()
        self.pictures = Pictures(encoder(predictor, self.limits.max_pixels), self.limits.pictures)
        self._of_step = functools.lru_cache(STRENGTHS + 1)(self._make)

    @functools.cached_property
    def plain(self) -> Predictor | None:
        """The model without its plugin; None if it has none."""
        return None if self.predictor.sam.config.plugin is None else self.predictor.without_plugin()

    @property
    def strength(self) -> float | None:
        """Of the plugin, see `PluginConfig`; None without one."""
        plugin = self.predictor.sam.config.plugin
        return None if plugin is None else plugin.strength

    def at_strength(self, strength: float | None) -> Predictor:
        """The model with its plugin at another strength, rounded to one of `STRENGTHS` steps.

        Args:
            strength: from 0 to 1; None for the model's own.
        """
        if strength is None or self.strength is None:
            return self.predictor
        return self._of_step(round(strength * STRENGTHS))

    def _make(self, step: int) -> Predictor:
        """The model at a step of the plugin's strength."""
        config = self.predictor.sam.config
        assert config.plugin is not None
        plugin = dataclasses.replace(config.plugin, strength=step / STRENGTHS)
        sam = assemble(dataclasses.replace(config, plugin=plugin))
        return Predictor(sam, dict(self.predictor.params), slots=self.predictor.slots)

    def stable_mask(self, picture: Picture, prompt: Prompt, jitters: int | None = None) -> StableMask:
        """The mask of a prompt with its predicted IoU and its stability.

        Raises:
            InputError: no prompt, or one outside the picture.
        """
        return self.predictor.predict_stable(**prompt.arguments, jitters=jitters or self.jitters, picture=picture)

    def three_masks(self, picture: Picture, prompt: Prompt) -> list[tuple[np.ndarray, float]]:
        """The masks of an ambiguous prompt, each with its predicted IoU; one of an HQ-SAM.

        Raises:
            InputError: no prompt, or one outside the picture.
        """
        masks, ious, _ = self.predictor.predict(**prompt.arguments, picture=picture)
        return list(zip(masks, ious.tolist(), strict=True))

    def warm_up(self) -> None:
        """Compiles what a first box and a first click need."""
        picture = self.predictor.encode(np.zeros((512, 512, 3), np.uint8))
        self.stable_mask(picture, Prompt(box=(100, 100, 400, 400)))  # a click is padded to as many tokens
