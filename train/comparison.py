"""What training has changed: a table and a figure on held-out pictures."""

import pathlib

import numpy as np

from eval.loop import Protocol, Score, Segmenter, Summary, evaluate, summarise, to_picture
from eval.protocols import draw_prompts
from eval.report import markdown
from stablesam_jax.data.readers import Pictures
from stablesam_jax.text_file import write_text
from stablesam_jax.visualize import Wobble, save_figure, wobble_figure

FIGURE_KINDS = ("noisy-box", "1-point", "3-points")  # a row each
KNOWN_IOU = 0.75  # with the true box, from which an object counts as known to a system


def compare(systems: dict[str, Segmenter], pictures: Pictures, protocol: Protocol) -> dict[str, list[Score]]:
    """Scores of every system on the same pictures and prompts."""
    return {
        name: [score for per_picture in evaluate(segmenter, pictures, protocol) for score in per_picture]
        for name, segmenter in systems.items()
    }


def write_report(path: pathlib.Path, rows: dict[str, Summary], heading: str) -> None:
    """The table before / after as Markdown."""
    text = f"# {heading}\n\n{markdown(rows, first='')}\nmIoU / mBIoU / mSF in percent.\n"
    write_text(path, text)


def write_figure(
    path: pathlib.Path,
    systems: dict[str, Segmenter],
    scores: dict[str, list[Score]],
    pictures: Pictures,
    protocol: Protocol,
) -> None:
    """Held-out objects that the first system knows and yet wobbles on, one for each kind of prompt, before and after.

    Of the objects that it segments well from the true box, the one with the least mSF, each from another picture where
    there are enough; the second system plays no part in the choice. Where it segments none well, of all objects.

    Args:
        path: of the PNG file.
        systems: as given to `compare`.
        scores: its result.
        pictures: the held-out pictures.
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
    path.parent.mkdir(exist_ok=True)
    save_figure(wobble_figure(rows), path)


def summaries(scores: dict[str, list[Score]]) -> dict[str, Summary]:
    """Means of every system."""
    return {name: summarise(values) for name, values in scores.items()}


def _key(score: Score) -> tuple[str, int, str]:
    return score.picture, score.object_id, score.kind
