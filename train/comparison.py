"""What training has changed: a table and a figure on held-out pictures."""

import functools
import hashlib

import jax
import numpy as np
from matplotlib.figure import Figure

from eval.loop import Protocol, Score, Segmenter, Summary, evaluate, summarise, to_picture
from eval.prompt_kinds import draw_prompts
from stablesam_jax.data.readers import Pictures
from stablesam_jax.model.sam import ImageEmbedding, Sam
from stablesam_jax.params import Params
from stablesam_jax.visualize import Wobble, wobble_figure

FIGURE_KINDS = ("noisy-box", "1-point", "3-points")  # a row each
KNOWN_IOU = 0.75  # with the true box, from which an object counts as known to a system
REMEMBERED = 2**29  # bytes of embeddings that are kept: 2 to 12 MiB a picture, 0.5 of sam_nano


class RememberingSegmenter(Segmenter):
    """A system whose encoder rests: it encodes a picture once in a run."""

    def __init__(self, sam: Sam, params: Params, known: dict[bytes, ImageEmbedding]):
        """Shares what is known with all systems that have the same encoder."""
        super().__init__(sam, params)
        self.known = known

    def encode(self, picture: np.ndarray) -> ImageEmbedding:
        """As `Segmenter.encode`, from memory where it can be."""
        key = hashlib.sha256(picture.tobytes()).digest()
        embedding = self.known[key] if key in self.known else super().encode(picture)
        if sum(leaf.nbytes for leaf in jax.tree.leaves(self.known)) < REMEMBERED:
            self.known[key] = embedding
        return embedding


class Comparison:
    """A system as it was, against what becomes of it, on the same pictures and prompts."""

    def __init__(self, before: Segmenter, pictures: Pictures, protocol: Protocol):
        """Looks at nothing yet."""
        self.before, self.pictures, self.protocol = before, pictures, protocol

    @functools.cached_property
    def _scores_before(self) -> list[Score]:
        return self._score(self.before)

    def _score(self, segmenter: Segmenter) -> list[Score]:
        return [score for scores in evaluate(segmenter, self.pictures, self.protocol) for score in scores]

    def __call__(self, after: Segmenter) -> tuple[dict[str, Summary], Figure]:
        """Means of both, and what wobbled before, with both systems' masks."""
        scores = {"before": self._scores_before, "after": self._score(after)}
        figure = wobble({"before": self.before, "after": after}, scores, self.pictures, self.protocol)
        return {name: summarise(values) for name, values in scores.items()}, figure


def wobble(
    systems: dict[str, Segmenter], scores: dict[str, list[Score]], pictures: Pictures, protocol: Protocol
) -> Figure:
    """Objects that the first system knows and yet wobbles on, one for each kind of prompt, as all systems see them.

    Of the objects that it segments well from the true box, the one with the least mSF, each from another picture where
    there are enough; the other systems play no part in the choice. Where it segments none well, of all objects.

    Args:
        systems: by name.
        scores: of every system, on the same prompts.
        pictures: those that were asked about.
        protocol: seed and number of prompts.
    """
    first = next(iter(scores.values()))
    known = {(s.picture, s.object_id) for s in first if s.kind == "gt-box" and s.miou >= KNOWN_IOU}
    by_name = {name: index for index, name in enumerate(pictures.names)}
    shown: set[str] = set()
    rows = []
    for kind in FIGURE_KINDS:
        asked = [s for s in first if s.kind == kind]
        candidates = [s for s in asked if (s.picture, s.object_id) in known] or asked
        score = min(candidates, key=lambda s: (s.picture in shown, s.msf))
        shown.add(score.picture)
        labelled = pictures[by_name[score.picture]]
        size_hw = labelled.picture.shape[:2]
        target = labelled.masks[score.object_id]
        drawn = draw_prompts(
            kind,
            target,
            picture_id=score.picture,
            object_id=score.object_id,
            seed=protocol.seed,
            count=protocol.prompts,
        )
        masks, captions = {}, {}
        for name, segmenter in systems.items():
            logits = segmenter.low_res_masks(segmenter.encode(labelled.picture), drawn, size_hw)
            masks[name] = np.stack([to_picture(mask, size_hw) for mask in logits])
            same = next(s for s in scores[name] if (s.picture, s.object_id, s.kind) == _key(score))
            captions[name] = f"mIoU {100 * same.miou:.0f}, mSF {100 * same.msf:.0f}"
        rows.append(
            Wobble(picture=labelled.picture, target=target, kind=kind, prompts=drawn, masks=masks, captions=captions)
        )
    return wobble_figure(rows)


def _key(score: Score) -> tuple[str, int, str]:
    return score.picture, score.object_id, score.kind
