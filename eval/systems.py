"""Every system on every data set: what the commands of `eval.main` share, whatever they measure."""

import csv
import dataclasses
import io
import pathlib
import time
from collections.abc import Callable, Iterable, Mapping, Sequence, Sized
from typing import TypeVar

from eval.loop import Summary
from eval.report import MEAN, check_output, mean_of_sets, show, table, write_results
from stablesam_jax.build import load_model
from stablesam_jax.checkpoint import version
from stablesam_jax.errors import InputError
from stablesam_jax.model.sam import Sam
from stablesam_jax.params import Params
from stablesam_jax.text_file import write_text

Source = TypeVar("Source", bound=Sized)
Line = Mapping[str, object]  # of the csv: column -> value
Evaluate = Callable[[Sam, Params, Source], tuple[Summary, Iterable[Line]]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """What every evaluation asks."""

    system: tuple[str, ...]
    """A shipped model, a checkpoint folder, or BASE+PLUGIN_FILE; one or more."""
    data_dir: tuple[pathlib.Path, ...]
    """The data sets, one or more; see README.md, "Data"."""
    output: pathlib.Path
    """Folder for results.json, results.md and a csv with the single figures."""
    seed: int = 0
    """Of the prompts; the same for every system."""
    limit: int | None = None
    """Only the first pictures of each data set."""

    def first(self, source: Sized) -> range:
        """Which pictures of a data set are looked at."""
        return range(len(source) if self.limit is None else min(self.limit, len(source)))


def check_options(options: Options, prompts: Sequence[str], known: Iterable[str]) -> None:
    """Looks at what needs neither data nor model.

    Raises:
        InputError: unknown prompts, a limit below 1, or results that cannot be written.
    """
    known = tuple(known)
    if unknown := [kind for kind in prompts if kind not in known]:
        raise InputError(f"--prompts {' '.join(unknown)}: unknown; known are {', '.join(known)}.")
    if not prompts:
        raise InputError(f"--prompts: give at least one of {', '.join(known)}.")
    if options.limit is not None and options.limit < 1:
        raise InputError(f"--limit {options.limit}: must be at least 1.")
    check_output(options.output)


def run(
    options: Options,
    sources: Mapping[str, Source],
    evaluate: Evaluate[Source],
    *,
    protocol: str,
    metrics: Sequence[str],
    lines_file: str,
    means: Callable[[Mapping[str, Summary]], Mapping[str, Summary]] | None = None,
    more: Mapping[str, object] | None = None,
) -> None:
    """Evaluates, writes the results and prints a table for each data set.

    Args:
        options: those of the command; they go into the meta data.
        sources: data sets by name.
        evaluate: a system on one data set -> its figures and the lines of the csv.
        protocol: name of the command.
        metrics: those that tables show.
        lines_file: name of the csv.
        means: figures of several sets by name; by default their mean, where there are several.
        more: meta data beside the options, or in the place of one.

    Raises:
        InputError: a system cannot be loaded, a picture cannot be read, or a data set has the name of the mean.
    """
    if MEAN in sources:
        raise InputError(f"--data-dir: a data set cannot be called {MEAN!r} in the results; rename its folder.")
    built = {system: load_model(system) for system in options.system}
    results: dict[str, dict[str, Summary]] = {}
    lines: list[Line] = []
    for system, (sam, params) in built.items():
        sets: dict[str, Summary] = {}
        for name, source in sources.items():
            began = time.monotonic()
            sets[name], found = evaluate(sam, params, source)
            lines += [{"system": system, "data_set": name, **line} for line in found]
            seconds = time.monotonic() - began
            print(f"{system}, {name}: {len(options.first(source))} pictures in {seconds:.0f} s", flush=True)
        if means is not None:
            sets |= means(sets)
        elif len(sources) > 1:
            sets[MEAN] = mean_of_sets(sets)
        results[system] = sets

    left_out = {"system", "data_dir", "output"}  # results name the first two, and the third says nothing
    asked = {name: value for name, value in dataclasses.asdict(options).items() if name not in left_out}
    options.output.mkdir(parents=True, exist_ok=True)
    write_text(options.output / lines_file, _csv(lines))
    meta = {"protocol": protocol, **asked, **(more or {}), "version": version()}
    write_results(options.output, results, meta, metrics=metrics)
    datasets = next(iter(results.values()))
    show(
        [
            table(
                {system: sets[dataset] for system, sets in results.items()},
                title=dataset,
                first="system",
                metrics=metrics,
            )
            for dataset in datasets
        ]
    )
    print(f"written: {options.output / 'results.json'}")


def _csv(lines: Sequence[Line]) -> str:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, fieldnames=list(lines[0]) if lines else [])
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()
