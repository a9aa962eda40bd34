"""Runs every system on every data set: what the protocols of `eval.main` share."""

import contextlib
import csv
import dataclasses
import functools
import hashlib
import importlib.metadata
import io
import itertools
import json
import pathlib
import platform
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TypeVar

import jax
import numpy as np

from eval.identity import TRUTH, Identify, check_unchanged, identity_of_objects
from eval.journal import Journal, Record
from eval.leaks import refuse_training_pictures
from eval.loop import Summary, Values
from eval.overlap import overlapped_on
from eval.parts import Choice
from eval.report import bootstrap
from eval.report.tables import (
    MEAN,
    SummaryIntervals,
    Uncertainty,
    check_output,
    mean_of_sets,
    show,
    table,
    write_results,
)
from stablesam_jax import parallel
from stablesam_jax.build import load_model
from stablesam_jax.commands import called
from stablesam_jax.config import Dtype
from stablesam_jax.data.readers import Named
from stablesam_jax.errors import InputError
from stablesam_jax.files.disk import write_text
from stablesam_jax.files.locks import owned
from stablesam_jax.model.sam import Sam
from stablesam_jax.params import Params, digest
from stablesam_jax.version import __version__

Source = TypeVar("Source", bound=Named)
Line = Mapping[str, object]  # of the csv: column -> value
Begin = Callable[[int], Callable[[], Record]]  # index of a picture -> the host's part of its work, see `eval.overlap`
# A function that makes the begin of a device from the parameters on it -> records, in the order of the pictures. They
# have the entries of `identity`.
EachPicture = Callable[[Callable[[Params], Begin]], Iterator[Record]]
PACKAGES = ("jax", "jaxlib", "flax", "numpy", "opencv-python-headless", "pillow", "faster-coco-eval")
PROGRESS = 15  # seconds between two lines of progress


@dataclasses.dataclass(frozen=True, kw_only=True)
class Found:
    """Results of a system on one data set."""

    summary: Summary
    lines: Sequence[Line]
    values: Values | None = None  # one value per picture, where the summary is a mean over pictures
    records: Sequence[Record] = ()  # of every picture, where the protocol draws figures of them


Evaluate = Callable[[Sam, Params, Source, EachPicture], Found]
Results = Mapping[str, Mapping[str, Found]]  # system -> data set
Built = Mapping[str, tuple[Sam, Params]]  # system -> model
Means = Callable[[Mapping[str, Summary]], Mapping[str, Summary]]  # summaries by data set -> means by name


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Options of every protocol."""

    system: tuple[str, ...]
    """One or more models: a shipped model, a checkpoint folder, the folder of a training run, or BASE+PLUGIN_FILE."""
    data_dir: tuple[pathlib.Path, ...]
    """One or more data sets, see docs/data.md."""
    output: pathlib.Path
    """Folder for results.json, results.md and a csv with the values of every picture, object or class. The same command
    continues a killed evaluation."""
    image_size: int | None = None
    """Side of every model's input in pixels. Default: the model's own."""
    dtype: Dtype | None = None
    """Compute dtype of the layers. Default: float32. bfloat16 is several times as fast on accelerators, and changes up
    to 1 % of a mask's pixels."""
    devices: int | None = None
    """Number of devices of each host that share the pictures. Default: all accelerators, or one CPU device. Results do
    not depend on it."""
    seed: int = 0
    """Seed of the prompts, which are the same for every system."""
    limit: int | None = None
    """Number of pictures of each data set to evaluate, spread evenly over the sorted names and drawn by the seed.
    Default: all."""
    splits: pathlib.Path | None = None
    """A json with the parts and groups of the data sets, such as results/splits.json; needs --part."""
    part: str | None = None
    """Part of --splits to evaluate, such as validation for choices and test for results."""
    trained_on: tuple[pathlib.Path, ...] = ()
    """Pictures that a system was trained on. If they are among the evaluated ones, also resized or mirrored, the
    evaluation is refused. Those of a training run's folder are found without this option."""
    coordinator: str | None = None
    """HOST:PORT of the first of several hosts that share the pictures, each started with this command and its own
    --host; or auto, on a cluster that JAX detects."""
    hosts: int | None = None
    """Number of hosts."""
    host: int | None = None
    """Index of this host, from 0; the first writes the results."""

    @property
    def choice(self) -> Choice:
        """Which pictures are evaluated."""
        return Choice(splits=self.splits, part=self.part, limit=self.limit, seed=self.seed)


def check_options(options: Options, prompts: Sequence[str], kinds: Iterable[str], name: str = "--prompts") -> None:
    """Checks the options that need neither data nor model, and joins the other hosts.

    Args:
        options, prompts, kinds: of the protocol.
        name: the option that `prompts` come from.

    Raises:
        InputError: unknown prompts, no data, a limit or seed out of range, results that cannot be written, or hosts
            that do not answer.
    """
    kinds = tuple(kinds)
    if unknown := [kind for kind in prompts if kind not in kinds]:
        raise InputError(f"{name} {' '.join(unknown)}: unknown; choose from {', '.join(kinds)}.")
    if len(set(prompts)) < len(prompts):
        raise InputError(f"{name} {' '.join(prompts)}: give each kind once.")
    if not prompts:
        raise InputError(f"{name}: give at least one of {', '.join(kinds)}.")
    if not options.data_dir:
        raise InputError("--data-dir: name at least one data set.")
    if options.seed < 0:
        raise InputError(f"--seed {options.seed}: must be at least 0.")
    options.choice.check()
    check_output(options.output)
    parallel.join_hosts(options.coordinator, options.hosts, options.host)


def run(
    options: Options,
    sources: Mapping[str, Source],
    evaluate: Evaluate[Source],
    *,
    protocol: str,
    metrics: Sequence[str],
    lines_file: str,
    identify: Identify[Source] | None = None,
    means: Means | None = None,
    more: Mapping[str, object] | None = None,
    illustrate: Callable[[Built, Results], Mapping[str, object]] | None = None,
) -> None:
    """Evaluates, writes the results and prints a table for each data set.

    Args:
        options: of the command; recorded in the metadata.
        sources: data sets by name.
        evaluate: (sam, params, source, each_picture) -> results of a system on one data set. It must get its records
            from `each_picture`, which resumes, overlaps and shares the work between hosts.
        protocol: name of the command.
        metrics: shown in tables.
        lines_file: name of the csv.
        identify: what the record of a picture must be of, for a resumed evaluation. Default: `identity_of_objects`.
        means: summaries by data set -> means by name. Default: the mean of all sets, if there are several.
        more: further metadata; replaces an option of the same name.
        illustrate: (systems, results) -> more entries of results.json; writes figures and pages.

    Raises:
        InputError: no system is named, one cannot be loaded, a picture cannot be read, a data set is called like the
            mean, or the output is in use or holds an unfinished evaluation with other options or of files that have
            changed since.
    """
    if not options.system:
        raise InputError("--system: name at least one.")
    if MEAN in sources:
        raise InputError(f"--data-dir: a data set cannot be called {MEAN!r} in the results; rename its folder.")
    with _alone(options.output):
        began = time.monotonic()
        built = {
            system: load_model(system, image_size=options.image_size, dtype=options.dtype) for system in options.system
        }
        metadata = _metadata(protocol, options, built, more or {})
        names = {
            name: [source.names[index] for index in options.choice.drawn(source)] for name, source in sources.items()
        }
        groups = {name: options.choice.groups(source) for name, source in sources.items()}
        refuse_training_pictures(options.system, options.trained_on, sources, options.choice.drawn)
        depends = {**metadata, "data": {name: _digest(of) for name, of in names.items()}}
        parallel.check_same_on_hosts(_digest(depends).encode(), "options, systems or pictures")
        journal = Journal(options.output, depends, host=jax.process_index())
        if jax.process_index() == 0:
            _announce(options, sources, journal)

        found, truths = _evaluate_all(options, built, sources, evaluate, identify or identity_of_objects, journal)
        if jax.process_index():
            parallel.on_any_host(False)  # a barrier: waits until the first host has written the results
            journal.remove()
            return
        results = {system: _with_means(of, means) for system, of in found.items()}
        shown = {} if illustrate is None else illustrate(built, found)
        write_text(options.output / lines_file, _csv(found))
        data = {
            name: {"pictures": len(of), "groups": len(set(groups[name])), "sha256": _digest([of, truths[name]])}
            for name, of in names.items()
        }
        this_run = {
            "command": [f"{called('eval')} {protocol}", *sys.argv[2:]] if sys.argv[1:2] == [protocol] else sys.argv,
            "device": jax.devices()[0].device_kind,
            "hosts": jax.process_count(),
            "seconds": round(time.monotonic() - began, 1),
        }
        write_results(
            options.output,
            results,
            {**metadata, "data": data, "run": this_run},
            metrics=metrics,
            uncertainty=_uncertainty(found, groups, options.seed),
            more=shown,
        )
        parallel.on_any_host(False)  # the barrier that the other hosts wait at
        journal.remove()
        _show(results, metrics)
        print(f"written: {options.output / 'results.json'}")


def _metadata(protocol: str, options: Options, built: Built, more: Mapping[str, object]) -> dict[str, object]:
    """What results depend on but for the data: options, systems and versions.

    Systems are identified by the digests of their parameters. Results do not depend on output, hosts and devices.
    """
    left_out = {"system", "data_dir", "output", "splits", "trained_on", "coordinator", "hosts", "host"}
    left_out |= {"devices", "figures"} | ({"dtype"} if options.dtype is None else set())
    recorded = {name: value for name, value in dataclasses.asdict(options).items() if name not in left_out}
    return {
        "protocol": protocol,
        **recorded,
        **more,
        "version": __version__,
        "versions": versions(),
        "parameters": {name: digest(params) for name, (_, params) in built.items()},
        "plugins": {
            name: dataclasses.asdict(sam.config.plugin)
            for name, (sam, _) in built.items()
            if sam.config.plugin is not None
        },
    }


def _announce(options: Options, sources: Mapping[str, Named], journal: Journal) -> None:
    """Prints what was done before and where only a part of the pictures is evaluated."""
    if journal.found:
        print(f"continuing: {journal.found} pictures are done", flush=True)
    for name, source in sources.items():
        count = len(options.choice.drawn(source))
        if count < len(source):
            part = "" if options.part is None else f" of {options.part}"
            drawn = "" if options.limit is None else f", drawn evenly with seed {options.seed}"
            print(f"{name}: {count} of {len(source)} pictures{part}{drawn}")


def _evaluate_all(
    options: Options,
    built: Built,
    sources: Mapping[str, Source],
    evaluate: Evaluate[Source],
    identify: Identify[Source],
    journal: Journal,
) -> tuple[dict[str, dict[str, Found]], dict[str, list[str]]]:
    """The results of every system on every data set, and the digests of the annotations of each data set."""
    alone = options.devices is None and jax.default_backend() == "cpu"  # a program on one of a CPU's has all cores
    devices = parallel.of_this_host(parallel.choose_devices(1 if alone else options.devices))
    found: dict[str, dict[str, Found]] = {}
    truths: dict[str, list[str]] = {}
    for system, (sam, params) in built.items():
        found[system] = {}
        for name, source in sources.items():
            truths[name] = []
            of_devices = parallel.on_each(params, devices)
            indices = options.choice.drawn(source)
            check = functools.partial(check_unchanged, source, identify)
            each = _each_picture(journal, system, name, indices, check, truths[name], of_devices)
            found[system][name] = evaluate(sam, params, source, each)
    return found, truths


def _with_means(found: Mapping[str, Found], means: Means | None) -> dict[str, Summary]:
    """Summaries of a system by data set, and by the name of each mean of them."""
    summaries = {name: one.summary for name, one in found.items()}
    if means is not None:
        return summaries | dict(means(summaries))
    return summaries | ({MEAN: mean_of_sets(summaries)} if len(summaries) > 1 else {})


def _show(results: Mapping[str, Mapping[str, Summary]], metrics: Sequence[str]) -> None:
    """Prints a table for each data set."""
    show(
        [
            table({system: sets[name] for system, sets in results.items()}, title=name, first="system", metrics=metrics)
            for name in next(iter(results.values()))
        ]
    )


@contextlib.contextmanager
def _alone(output: pathlib.Path) -> Iterator[None]:
    """Locks the output, so that no other evaluation writes into it, and checks it again, since one may have ended.

    Raises:
        InputError: another evaluation is running there, or has left results.
    """
    if jax.process_index():
        yield  # the first host has the lock
        return
    with owned(output):
        check_output(output)
        yield


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that results may depend on."""
    return {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in PACKAGES}}


def _each_picture(
    journal: Journal,
    system: str,
    data_set: str,
    indices: Sequence[int],
    check: Callable[[Mapping[int, Record]], None],
    truths: list[str],
    of_devices: Sequence[tuple[jax.Device, Params]],
) -> EachPicture:
    """Yields the record of each picture: from the journals, or computed by one of the hosts. Prints progress.

    Appends the digest of each picture's annotations to `truths`. The devices of a host take pictures in turns.
    Records of an earlier run are checked first.
    """
    host, hosts = jax.process_index(), jax.process_count()

    def together(own: Mapping[int, Record]) -> dict[int, Record]:
        """Gathers the records of all hosts."""
        return {index: record for pairs in parallel.gather(list(own.items())) for index, record in pairs}

    def records(make: Callable[[Params], Begin]) -> Iterator[Record]:
        own = {index: record for index in indices if (record := journal.get(system, data_set, index)) is not None}
        check(own)
        done_by_all = together(own)
        todo = [index for index in indices if index not in done_by_all][host::hosts]
        results = overlapped_on([(device, make(params)) for device, params in of_devices], todo)
        began = said = time.monotonic()
        for done, index in enumerate(todo, start=1):
            own[index] = done_by_all[index] = journal.add(system, data_set, index, next(results))
            now = time.monotonic()
            if (done == len(todo) or now - said > PROGRESS) and host == 0:
                said, speed = now, done / (now - began)
                left = f", {(len(todo) - done) / speed:.0f} s left" if done < len(todo) else f" in {now - began:.0f} s"
                share = f" (this host's share of {hosts})" if hosts > 1 else ""
                print(
                    f"{system}, {data_set}: {len(done_by_all)} of {len(indices)} pictures{share}{left}, "
                    f"{speed:.1f} pictures/s",
                    flush=True,
                )
        done_by_all = together(own)
        for index in indices:
            truths.append(done_by_all[index][TRUTH])
            yield done_by_all[index]

    return records


def _uncertainty(found: Results, groups: Mapping[str, Sequence[str]], seed: int) -> Uncertainty | None:
    """Bootstrap intervals over groups, or None where results are not means over pictures."""
    first = next(iter(found.values()))
    columns = {
        name: [(kind, metric) for kind, metrics in one.values.items() for metric in metrics]
        for name, one in first.items()
        if one.values is not None
    }
    if len(columns) < len(first):
        return None
    samples = {
        name: bootstrap.Sample(
            [
                np.stack([per_picture[kind][metric] for kind, metric in of], axis=-1)[None]
                for sets in found.values()
                if (per_picture := sets[name].values) is not None
            ],
            groups[name],
        )
        for name, of in columns.items()
    }
    own, differences = bootstrap.intervals(samples, seed=seed, mean=MEAN if len(samples) > 1 else None)
    places = next(iter(columns.values()))
    systems = list(found)
    pairs = itertools.combinations(range(len(systems)), 2)
    return Uncertainty(
        intervals={
            system: {name: _by_kind(of[number], places) for name, of in own.items()}
            for number, system in enumerate(systems)
        },
        differences={
            (systems[one], systems[other]): {name: _by_kind(of[one, other], places) for name, of in differences.items()}
            for one, other in pairs
        },
    )


def _by_kind(row: Sequence[bootstrap.Interval], places: Sequence[tuple[str, str]]) -> SummaryIntervals:
    """K intervals -> kind -> metric -> interval."""
    kinds: dict[str, dict[str, bootstrap.Interval]] = {}
    for (kind, metric), one in zip(places, row, strict=True):
        kinds.setdefault(kind, {})[metric] = one
    return kinds


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def _csv(found: Results) -> str:
    """The lines of all systems and data sets."""
    lines = [
        {"system": system, "data_set": name, **line}
        for system, sets in found.items()
        for name, one in sets.items()
        for line in one.lines
    ]
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, fieldnames=list(lines[0]) if lines else [])
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()
