"""`hq`: masks from sloppy prompts on pictures with object masks, as in Tables 1, 2, 5 and 6."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Annotated

import tyro

from eval import systems
from eval.journal import Record
from eval.loop import METRICS, Protocol, Score, Segmenter, begin_picture, by_picture, summarise
from eval.protocols import PROMPT_KINDS, PROMPTS_PER_OBJECT
from stablesam_jax.data.readers import Pictures
from stablesam_jax.data.sources import open_sources
from stablesam_jax.errors import InputError
from stablesam_jax.model.sam import Sam
from stablesam_jax.params import Params


@dataclasses.dataclass(frozen=True, kw_only=True)
class HqConfig(systems.Options):
    """Masks from sloppy prompts on folders of pictures and masks, as in Tables 1, 2, 5 and 6.

    Data: folders with im/ and gt/, COCO folders, built data sets, or NAME:DIR as dis5k-vd:/data/hq.
    """

    prompts: tuple[str, ...] = ("gt-box", "noisy-box", "1-point", "3-points")
    """Kinds: gt-box noisy-box 1-point 3-points 5-points 10-points n-box-50 n-box-60."""
    count: int = PROMPTS_PER_OBJECT
    """Prompts of each random kind and object."""


def hq(config: Annotated[HqConfig, tyro.conf.arg(name="")]) -> None:
    """Every system on every folder, with the same prompts."""
    if config.count < 1:
        raise InputError(f"--count {config.count}: must be at least 1.")
    systems.check_options(config, config.prompts, PROMPT_KINDS)
    sources = open_sources(config.data_dir)  # faults of the data before the first second of work
    protocol = Protocol(kinds=config.prompts, prompts=config.count, seed=config.seed)

    def score(sam: Sam, params: Params, source: Pictures, each_picture: systems.EachPicture) -> systems.Found:
        return evaluate(Segmenter(sam, params), source, protocol, each_picture)

    systems.run(config, sources, score, protocol="hq", metrics=METRICS, lines_file="per_image.csv")


def evaluate(
    segmenter: Segmenter, source: Pictures, protocol: Protocol, each_picture: systems.EachPicture
) -> systems.Found:
    """A system on one data set."""

    def begin(index: int) -> Callable[[], Record]:
        labelled = source[index]
        finish = begin_picture(segmenter, labelled, protocol)
        return lambda: {
            systems.TRUTH: systems.annotation_digest(labelled.masks),
            "scores": [dataclasses.asdict(score) for score in finish()],
        }

    return found(list(each_picture(begin)))


def found(records: Sequence[Record]) -> systems.Found:
    """Means, lines and single figures of records that have "scores"."""
    scores = [Score(**score) for record in records for score in record["scores"]]
    lines: list[systems.Line] = [
        {"picture": one.picture, "object": one.object_id, "kind": one.kind}
        | {metric: f"{getattr(one, metric):.6f}" for metric in METRICS}
        | {"alpha": "" if one.alpha is None else f"{one.alpha:.6f}"}
        for one in scores
    ]
    return systems.Found(summary=summarise(scores), lines=lines, values=by_picture(scores), records=records)
