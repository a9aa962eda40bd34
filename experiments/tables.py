"""`python -m experiments.tables`: trains and compares the systems of the paper's Tables 2, 5, 6, 7 and 11, in small.

Every system is trained once for every seed with the same budget, and evaluated with the same prompts on the same
held-out pictures. When killed, the same command continues: finished runs are not trained again, and a run whose scores
are in scores/ may be deleted.
"""

import dataclasses
import functools
import hashlib
import json
import pathlib
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import tyro

from eval import paper
from eval.identity import identity_of_objects
from eval.loop import METRICS, Protocol, Score, Summary, Values, by_picture, evaluate
from eval.parts import Choice
from eval.prompt_kinds import HQ_SAM_INPUT
from eval.report import bootstrap
from eval.report.tables import MEAN, cell, check_output, difference_cell, legend, mean_of_sets
from experiments.rows import OURS, SYSTEMS, TABLES, Row, System, trained_system
from stablesam_jax import parallel
from stablesam_jax.build import load_model
from stablesam_jax.commands import called, command_line
from stablesam_jax.data.leaks import refuse_leaks
from stablesam_jax.data.readers import Pictures, Selection, on_all_cores
from stablesam_jax.data.sources import open_sources
from stablesam_jax.errors import InputError, exit_on_input_error
from stablesam_jax.files.compilation_cache import keep_compiled_programs
from stablesam_jax.files.disk import write_text
from stablesam_jax.names import RUN_MODEL
from stablesam_jax.params import digest
from train.comparison import RememberingSegmenter
from train.main import RunError, train
from train.presets import OCCLUSION, PRESETS, TrainConfig
from train.run import FREE_FIELDS, changes

KINDS = ("gt-box", "noisy-box", "1-point", "3-points")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TablesConfig:
    """Trains the systems of the paper's Tables 2, 5, 6, 7 and 11 in miniature, and compares them on test pictures."""

    data_dir: tuple[pathlib.Path, ...]
    """Pictures to train on; see docs/data.md."""
    test_dir: tuple[pathlib.Path, ...]
    """Pictures to test on; tables have the mean of all folders. Training pictures among them are refused."""
    output: pathlib.Path = pathlib.Path("runs/tables")
    """Folder for the runs, their scores/ and tables.md. The same command continues where it was stopped."""
    model: str = "sam_nano"
    """The base of every system."""
    image_size: int | None = None
    """Side of the model's input in training, in pixels. Default: the model's own."""
    test_image_size: int | None = None
    """Side of the model's input in the comparison. Default: that of training."""
    seeds: int = 3
    """Number of runs of every system, which differ in prompts, views, order and initial parameters."""
    steps: int = 300
    """Number of steps of every run."""
    batch_size: int = 32
    """Pictures per step."""
    prompts_per_picture: int = 1
    """Prompts per picture; 8 pictures with 4 prompts take a quarter of the encoder's time."""
    learning_rate: float = 3e-3
    """Learning rate of Adam; decays to 1 % along a cosine. Three times the paper's, which is better in so few steps
    (results/plugin.md)."""
    scale_range: tuple[float, float] = (0.6, 1.6)
    """Range of the longer side of the picture, as a share of the model's input. Above 1 the picture is cropped; without
    crops clicks are better (results/plugin.md). Our tables have this default."""
    occlusion: float = OCCLUSION
    """Share of views with synthetic occlusion, in robust training. In 300 steps it takes the gain away, so our tables
    have 0 (results/README.md)."""
    count: int = 6
    """Number of prompts of each random kind for each object, in the comparison."""
    limit: int | None = 20
    """Number of pictures of each test folder, spread evenly over the sorted names. None: all."""
    splits: pathlib.Path | None = None
    """A json with the parts and groups of the test folders, such as results/splits.json; needs --part."""
    part: str | None = None
    """Part of --splits to evaluate, such as validation for choices and test for results."""
    only: tuple[str, ...] = ()
    """Names of systems to train and compare, as in the folders of their runs. Default: all."""
    cache: pathlib.Path = pathlib.Path(".cache/features")
    """Folder for the frozen encoder's features."""

    @property
    def compared_size(self) -> int | None:
        """Side of the model's input in the comparison, None: the model's own."""
        return self.image_size if self.test_image_size is None else self.test_image_size

    @property
    def choice(self) -> Choice:
        """Which test pictures are evaluated."""
        return Choice(splits=self.splits, part=self.part, limit=self.limit, seed=0)


def run_config(config: TablesConfig, name: str, seed: int) -> TrainConfig:
    """The training configuration of a system."""
    system = SYSTEMS[name]
    base = config.output / f"{system.base}-seed{seed}" / RUN_MODEL
    changes: dict[str, Any] = {
        "model": str(base) if system.base else config.model,
        "image_size": config.image_size,
        "data_dir": config.data_dir,
        "output": config.output / f"{system.run_of or name}-seed{seed}",
        "steps": system.budget * config.steps,
        "batch_size": config.batch_size,
        "prompts_per_picture": config.prompts_per_picture,
        "learning_rate": config.learning_rate,
        "schedule": "cosine",
        "scale_range": config.scale_range,
        "occlusion": config.occlusion,
        "views": system.budget,
        "cache": config.cache,
        "seed": seed,
        "held_out": 0,
        "eval_every": 0,
    }
    return dataclasses.replace(PRESETS[system.preset][1], **{**changes, **system.changes})


class Scorer:
    """Scores systems on the test pictures. Systems with the same encoder share the embeddings."""

    def __init__(self, config: TablesConfig):
        """Loads the base and opens the pictures."""
        self.config = config
        self.base = digest(load_model(config.model)[1])
        self.protocol = Protocol(kinds=KINDS, prompts=config.count)
        self.sources: dict[str, Pictures] = {}
        self.groups: dict[str, list[str]] = {}
        for name, source in open_sources(config.test_dir).items():
            self.sources[name] = Selection(source, config.choice.drawn(source))
            self.groups[name] = config.choice.groups(source)
        self.content = {name: _digest(source) for name, source in self.sources.items()}
        self.embeddings: dict[bool, dict] = {False: {}, True: {}}  # without and with HQ-SAM's early features

    def __call__(
        self,
        path: pathlib.Path,
        options: Mapping[str, Any],
        make: Callable[[], str | None],
        strength: float | None = None,
    ) -> dict[str, Values] | None:
        """Scores a system, or reads its scores from a file.

        Args:
            path: file of scores. It is replaced if its scores are of another base or of other prompts, pictures or
                options.
            options: of the system's training.
            make: trains the system if there are no scores; returns its name for `load_model`, or None if it was
                stopped.
            strength: of its plugin, in place of that of its training.

        Returns:
            values of each picture by data set, or None if the training was stopped.
        """
        settings = _plain(
            {
                "base": self.base,
                "options": {**options, "strength": strength, "compared_size": self.config.compared_size},
                "boxes_drawn_at": HQ_SAM_INPUT,
                "prompts": dataclasses.asdict(self.protocol),
                "pictures": {name: source.names for name, source in self.sources.items()},
                "content": self.content,
            }
        )
        kept = json.loads(path.read_text()) if path.exists() else {}
        if kept and _same(kept["asked"], settings):
            scores = {name: [Score(**score) for score in of] for name, of in kept["scores"].items()}
        else:
            system = make()
            if system is None:
                return None
            sam, params = load_model(system, image_size=self.config.compared_size, strength=strength)
            segmenter = RememberingSegmenter(sam, params, self.embeddings[sam.config.hq])
            scores = {
                name: [score for of in evaluate(segmenter, source, self.protocol) for score in of]
                for name, source in self.sources.items()
            }
            entries = {name: [dataclasses.asdict(score) for score in of] for name, of in scores.items()}
            path.parent.mkdir(exist_ok=True)
            write_text(path, json.dumps({"asked": settings, "scores": entries}) + "\n")
        return {name: by_picture(of) for name, of in scores.items()}


def _digest(source: Pictures) -> str:
    """SHA-256 over all pictures with their masks."""
    identities = list(on_all_cores(functools.partial(identity_of_objects, source), range(len(source))))
    return hashlib.sha256(json.dumps(identities).encode()).hexdigest()


def _what_matters(run: TrainConfig) -> dict[str, Any]:
    """The options that the result of a run depends on, without the base, of which the digest is compared."""
    options = dataclasses.asdict(run)
    return {name: options[name] for name in options.keys() - {*FREE_FIELDS, "model"}}


def _same(kept: Mapping[str, Any], settings: Mapping[str, Any]) -> bool:
    """Whether stored scores have these settings, see `train.run.changes`."""
    before, now = kept["options"], settings["options"]
    before = {name: value for name, value in before.items() if name in now}  # without options that no longer exist
    kept = {"content": settings["content"], **kept}  # scores of before 0.2 do not have it
    return {**kept, "options": None} == {**settings, "options": None} and not any(changes(before, now))


def _plain(value: object) -> Any:
    """A value in the form that JSON reads back."""
    return json.loads(json.dumps(value, default=str))


@dataclasses.dataclass(frozen=True)
class Found:
    """Scores of a system over all its seeds."""

    runs: Sequence[dict[str, Values]]  # of each seed: data set -> kind -> metric -> values of the pictures

    def mean(self) -> Summary:
        """The mean over seeds of the mean over data sets."""
        return mean_of_sets({str(seed): self.of_seed(seed) for seed in range(len(self.runs))})

    def of_seed(self, seed: int) -> Summary:
        """The mean over data sets of the means over pictures."""
        return mean_of_sets(
            {
                name: {kind: {metric: float(v.mean()) for metric, v in of.items()} for kind, of in values.items()}
                for name, values in self.runs[seed].items()
            }
        )

    def columns(self, kind: str, name: str) -> np.ndarray:
        """Values of each picture of a data set: (R, P, metrics)."""
        return np.stack([np.stack([of[name][kind][metric] for metric in METRICS], axis=-1) for of in self.runs])


def share_closed(true_box: float, before: float, after: float) -> str:
    """Share of the gap between the true box and a sloppy prompt that is closed.

    Args:
        true_box, before: the base's mIoU with each; any unit.
        after: the system's with the sloppy prompt.
    """
    if true_box <= before:
        return "no gap"
    share = (after - before) / (true_box - before)
    return f"{share:.0%}" + (", past the base's true box" if share > 1 else "")


def table_markdown(
    found: Mapping[str, Found], groups: Mapping[str, Sequence[str]], kind: str, rows: Sequence[Row], figures: paper.Rows
) -> str:
    """A table of one kind of prompt: our results, gains over the base, leads of `OURS`, and the paper's results.

    Args:
        found: scores by system, "" the base.
        groups: data set -> the group of each picture.
        kind: of prompt.
        rows: of the table; those without scores are left out.
        figures: the paper's.
    """
    rows = [row for row in rows if row[1] in found]
    names = [name for _, name in rows]
    samples = {
        data_set: bootstrap.Sample([found[name].columns(kind, data_set) for name in names], of)
        for data_set, of in groups.items()
    }
    _, sets = bootstrap.intervals(samples, seed=0, mean=MEAN)
    differences = {pair: row[METRICS.index("miou")] for pair, row in sets[MEAN].items()}
    base, ours = found[""].mean(), names.index(OURS) if OURS in names else None
    lines = [
        "| system | here | mIoU gained | of each seed | gap closed | our lead | paper | gap closed |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for number, (label, name) in enumerate(rows):
        one = found[name]
        gained = of_seeds = closed = lead = closed_in_paper = ""
        theirs = figures.get(label, {}).get(kind, ())
        if name:
            gained = difference_cell(differences[0, number], "miou")
            gains = [one.of_seed(seed)[kind]["miou"] - base[kind]["miou"] for seed in range(len(one.runs))]
            of_seeds = ", ".join(f"{100 * gain:+.1f}" for gain in gains)
            if ours is not None and ours != number:
                first, second = sorted((ours, number))
                pair = differences[first, second]
                lead = difference_cell(pair if second == ours else -pair, "miou")
        if name and kind != "gt-box":
            closed = share_closed(*(of["miou"] for of in (base["gt-box"], base[kind], one.mean()[kind])))
            if theirs:
                closed_in_paper = share_closed(paper.SAM["gt-box"][0], paper.SAM[kind][0], theirs[0])
        here, printed = cell(one.mean()[kind], METRICS), " / ".join(map(str, theirs))
        cells = [label, here, gained, of_seeds, closed, lead, printed, closed_in_paper]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def markdown(config: TablesConfig, found: Mapping[str, Found], groups: Mapping[str, Sequence[str]]) -> str:
    """All tables that have a row other than the base."""
    counts = ", ".join(f"{name} ({len(of)} pictures, {len(set(of))} groups)" for name, of in groups.items())
    part = "" if config.part is None else f", part {config.part}"
    trained, compared = (
        "its own size" if size is None else f"{size} px" for size in (config.image_size, config.compared_size)
    )
    size = trained if trained == compared else f"{compared}, trained at {trained}"
    sections = [
        f"{legend(METRICS)}, mean of {counts}{part}; {config.model} at {size}, {config.count} prompts of each random "
        f"kind and object, {config.steps} steps of training.\n",
        "Gained: over the base, with the 95 % interval over groups of pictures and seeds (paired bootstrap; ≈: it "
        "contains 0, or a set has too few groups). Our lead: mIoU of the row (ours) less that of this row. Gap closed: "
        "(after - before) / (true box before - before), in mIoU. The paper's figures are of ViT-L.\n",
        f"Command: `{called('tables')} {shlex.join(sys.argv[1:])}`\n",
    ]
    for number, (title, kinds, rows, figures) in TABLES.items():
        if not any(name and name in found for _, name in rows):
            continue
        sections.append(f"## {number}: {title}\n")
        sections += [f"{kind}:\n\n{table_markdown(found, groups, kind, rows, figures)}" for kind in kinds]
    return "\n".join(sections)


def tables(config: TablesConfig, do_train: Callable[[TrainConfig], object] = train) -> bool:
    """Trains and compares the systems that are not done yet, seed by seed, and writes tables.md after each.

    Returns:
        whether all were done; False after a signal.

    Raises:
        InputError: an option, the base or the pictures cannot be used, or a test picture is a training picture.
    """
    if unknown := [name for name in config.only if name not in SYSTEMS]:
        raise InputError(f"--only {' '.join(unknown)}: unknown; choose from {', '.join(SYSTEMS)}.")
    for option in ("seeds", "steps", "count"):
        if (value := getattr(config, option)) < 1:
            raise InputError(f"--{option} {value}: must be at least 1.")
    config.choice.check()
    for option in ("data_dir", "test_dir"):
        if not getattr(config, option):
            raise InputError(f"--{option.replace('_', '-')}: name at least one folder of pictures.")
    check_output(config.output)
    refuse_leaks(open_sources(config.data_dir), open_sources(config.test_dir))
    score = Scorer(config)
    config.output.mkdir(parents=True, exist_ok=True)
    kept = config.output / "scores"
    untrained = score(kept / "base.json", {}, lambda: config.model)
    assert untrained is not None
    runs = {"": [untrained]}
    for seed in range(config.seeds):
        for name in config.only or SYSTEMS:
            system = SYSTEMS[name]
            run = run_config(config, name, seed)

            def make(system: System = system, run: TrainConfig = run) -> str | None:
                if system.base:
                    do_train(run_config(config, system.base, run.seed))  # returns at once if it has ended
                do_train(run)  # resumes; raises if the folder holds a run with other options
                return trained_system(run)

            options = _what_matters(run) | {"base": system.base}
            found = score(kept / f"{name}-seed{seed}.json", options, make, system.strength)
            if found is None:
                return False
            runs.setdefault(name, []).append(found)
            write_text(
                config.output / "tables.md",
                markdown(config, {key: Found(of) for key, of in runs.items()}, score.groups),
            )
    print(f"written: {config.output / 'tables.md'}")
    return True


def main() -> None:
    """Parses the options, trains and compares."""
    with exit_on_input_error():
        config = tyro.cli(TablesConfig, args=command_line(), prog=called("tables"))
        parallel.split_cpu(config.batch_size)
        keep_compiled_programs()
        try:
            if not tables(config):
                sys.exit(130)  # stopped by a signal; the run has said so
        except RunError as error:
            raise SystemExit(f"error: {error}") from None
        except KeyboardInterrupt:
            print("interrupted; run the same command to continue", file=sys.stderr)
            sys.exit(130)


if __name__ == "__main__":
    main()
