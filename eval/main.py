"""`python -m eval.main hq --system NAME ... --data-dir DIR ... --output DIR`: the paper's tables on any pictures."""

import csv
import dataclasses
import io
import pathlib
import time
from typing import Annotated

import tyro

from eval.loop import METRICS, Protocol, Score, Segmenter, Summary, evaluate, summarise
from eval.protocols import PROMPT_KINDS, PROMPTS_PER_OBJECT
from eval.report import MEAN, check_output, mean_of_sets, show, table, write_results, write_text
from stablesam_jax.build import load_model
from stablesam_jax.checkpoint import version
from stablesam_jax.compilation_cache import keep_compiled_programs
from stablesam_jax.data.readers import Pictures, Selection
from stablesam_jax.data.sources import open_sources
from stablesam_jax.errors import InputError, exit_on_input_error


@dataclasses.dataclass(frozen=True, kw_only=True)
class HqConfig:
    """Masks from sloppy prompts on folders of pictures and masks, as in Tables 1, 2, 5 and 6."""

    system: tuple[str, ...]
    """A shipped model, a checkpoint folder, or BASE+PLUGIN_FILE; one or more."""
    data_dir: tuple[pathlib.Path, ...]
    """Folders with im/ and gt/, COCO folders, built data sets, or NAME:DIR as dis5k-vd:/data/hq; one or more."""
    output: pathlib.Path
    """Folder for results.json, results.md and per_image.csv."""
    prompts: tuple[str, ...] = ("gt-box", "noisy-box", "1-point", "3-points")
    """Kinds: gt-box noisy-box 1-point 3-points 5-points 10-points n-box-50 n-box-60."""
    count: int = PROMPTS_PER_OBJECT
    """Prompts of each random kind and object."""
    seed: int = 0
    """Of the prompts; the same for every system."""
    limit: int | None = None
    """Only the first pictures of each folder."""


def hq(config: Annotated[HqConfig, tyro.conf.arg(name="")]) -> None:
    """Every system on every folder, with the same prompts."""
    unknown = [kind for kind in config.prompts if kind not in PROMPT_KINDS]
    if unknown:
        raise InputError(f"--prompts {' '.join(unknown)}: unknown; known are {', '.join(PROMPT_KINDS)}.")
    if config.count < 1 or (config.limit is not None and config.limit < 1):
        raise InputError(f"--count {config.count} --limit {config.limit}: must be at least 1.")
    check_output(config.output)
    sources = open_sources(config.data_dir)  # faults of the data before the first second of work
    if MEAN in sources:
        raise InputError(f"--data-dir: a data set cannot be called {MEAN!r} in the results; rename its folder.")
    built = {system: load_model(system) for system in config.system}

    protocol = Protocol(kinds=config.prompts, prompts=config.count, seed=config.seed)
    results: dict[str, dict[str, Summary]] = {}
    records: list[tuple[str, str, Score]] = []
    for system, (sam, params) in built.items():
        segmenter = Segmenter(sam, params)
        results[system] = {}
        for name, source in sources.items():
            pictures: Pictures = source
            if config.limit is not None:
                pictures = Selection(source, range(min(config.limit, len(source))))
            began = time.monotonic()
            scores = [score for per_picture in evaluate(segmenter, pictures, protocol) for score in per_picture]
            print(f"{system}, {name}: {len(pictures)} pictures in {time.monotonic() - began:.0f} s", flush=True)
            records += [(system, name, score) for score in scores]
            results[system][name] = summarise(scores)
        if len(sources) > 1:
            results[system][MEAN] = mean_of_sets(results[system])

    write_records(config.output / "per_image.csv", records)
    meta = {
        "protocol": "hq",
        "prompts": list(config.prompts),
        "count": config.count,
        "seed": config.seed,
        "limit": config.limit,
        "version": version(),
    }
    write_results(config.output, results, meta)
    datasets = next(iter(results.values()))
    show(
        [
            table({system: sets[dataset] for system, sets in results.items()}, title=dataset, first="system")
            for dataset in datasets
        ]
    )
    print(f"written: {config.output / 'results.json'}")


def write_records(path: pathlib.Path, records: list[tuple[str, str, Score]]) -> None:
    """One line per system, picture, object and kind of prompt."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = io.StringIO(newline="")
    writer = csv.writer(lines)
    writer.writerow(["system", "data_set", "picture", "object", "kind", *METRICS])
    for system, dataset, score in records:
        values = [f"{getattr(score, metric):.6f}" for metric in METRICS]
        writer.writerow([system, dataset, score.picture, score.object_id, score.kind, *values])
    write_text(path, lines.getvalue())


def main() -> None:
    """Reads the protocol and its options, and evaluates."""
    keep_compiled_programs()
    with exit_on_input_error():
        tyro.extras.subcommand_cli_from_dict({"hq": hq}, prog="python -m eval.main")


if __name__ == "__main__":
    main()
