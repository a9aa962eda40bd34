"""`hq`: masks from sloppy prompts on pictures with object masks, as in Tables 1, 2, 5 and 6."""

import dataclasses
from typing import Annotated

import tyro

from eval import systems
from eval.loop import METRICS, Protocol, Segmenter, Summary, evaluate, summarise
from eval.protocols import PROMPT_KINDS, PROMPTS_PER_OBJECT
from stablesam_jax.data.readers import Pictures, Selection
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

    def score(sam: Sam, params: Params, source: Pictures) -> tuple[Summary, list[systems.Line]]:
        pictures = Selection(source, config.first(source))
        scores = [one for per_picture in evaluate(Segmenter(sam, params), pictures, protocol) for one in per_picture]
        lines: list[systems.Line] = [
            {"picture": one.picture, "object": one.object_id, "kind": one.kind}
            | {metric: f"{getattr(one, metric):.6f}" for metric in METRICS}
            for one in scores
        ]
        return summarise(scores), lines

    systems.run(config, sources, score, protocol="hq", metrics=METRICS, lines_file="per_image.csv")
