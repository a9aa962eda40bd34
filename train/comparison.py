"""Compares a system before and after training on held-out pictures: a table and a figure."""

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
GOOD_IOU = 0.75  # an object counts as well segmented from this IoU with the true box as prompt
REMEMBERED = 2**29  # bytes of embeddings kept in memory: 2 to 12 MiB a picture, 0.5 MiB for sam_nano


class RememberingSegmenter(Segmenter):
    """A system with a frozen encoder: it encodes each picture once in a run."""

    def __init__(self, sam: Sam, params: Params, embeddings: dict[bytes, ImageEmbedding]):
        """Shares `embeddings`, by digest of the picture, with all systems that have the same encoder."""
        super().__init__(sam, params)
        self.embeddings = embeddings

    def encode(self, picture: np.ndarray) -> ImageEmbedding:
        """As `Segmenter.encode`, but from memory where the picture was encoded before."""
        key = hashlib.sha256(picture.tobytes()).digest()
        embedding = self.embeddings[key] if key in self.embeddings else super().encode(picture)
        if sum(leaf.nbytes for leaf in jax.tree.leaves(self.embeddings)) < REMEMBERED:
            self.embeddings[key] = embedding
        return embedding


class Comparison:
    """Compares a system with its state before training, on the same pictures and prompts."""

    def __init__(self, before: Segmenter, pictures: Pictures, protocol: Protocol):
        """Computes nothing; the scores before training are computed on the first call."""
        self.before, self.pictures, self.protocol = before, pictures, protocol

    @functools.cached_property
    def _scores_before(self) -> list[Score]:
        return self._score(self.before)

    def _score(self, segmenter: Segmenter) -> list[Score]:
        return [score for scores in evaluate(segmenter, self.pictures, self.protocol) for score in scores]

    def __call__(self, after: Segmenter) -> tuple[dict[str, Summary], Figure]:
        """Returns the means of both, and a figure of unstable objects with the masks of both."""
        scores = {"before": self._scores_before, "after": self._score(after)}
        figure = wobble({"before": self.before, "after": after}, scores, self.pictures, self.protocol)
        return {name: summarise(values) for name, values in scores.items()}, figure


def wobble(
    systems: dict[str, Segmenter], scores: dict[str, list[Score]], pictures: Pictures, protocol: Protocol
) -> Figure:
    """Draws, for each kind of prompt, the object on which the first system is least stable, with all systems' masks.

    The object with the lowest mSF is chosen among those that the first system segments well from the true box, or among
    all where it segments none well; each from another picture where there are enough. The other systems do not
    influence the choice.

    Args:
        systems: by name.
        scores: of every system, on the same prompts.
        pictures: those that the scores are of.
        protocol: seed and number of prompts.
    """
    first = next(iter(scores.values()))
    good = {(s.picture, s.object_id) for s in first if s.kind == "gt-box" and s.miou >= GOOD_IOU}
    by_name = {name: index for index, name in enumerate(pictures.names)}
    shown: set[str] = set()
    rows = []
    for kind in FIGURE_KINDS:
        of_kind = [s for s in first if s.kind == kind]
        candidates = [s for s in of_kind if (s.picture, s.object_id) in good] or of_kind
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
