"""Refuses to evaluate a system on pictures that it was trained on."""

import contextlib
import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from stablesam_jax.data.leaks import refuse_leaks
from stablesam_jax.data.readers import Joined, Pictures, Selection
from stablesam_jax.data.sources import open_sources
from stablesam_jax.errors import InputError
from stablesam_jax.names import find

MOST_OF_A_RUN = 5000  # pictures of a run that are compared unasked; reading as many takes about a minute


def refuse_training_pictures(
    systems: Sequence[str],
    trained_on: Sequence[pathlib.Path],
    sources: Mapping[str, Any],
    drawn: Callable[[Any], Sequence[int]],
) -> None:
    """Compares what is to be evaluated with the given training pictures and with those of training runs.

    Args:
        systems: names of models; of those in the folder of a run, up to `MOST_OF_A_RUN` pictures are compared if they
            are where they were.
        trained_on: further training pictures.
        sources: data sets by name, of objects or of class maps.
        drawn: the indices that are to be evaluated.

    Raises:
        InputError: a picture is among both, see `data.leaks`; or one cannot be read.
    """
    training: dict[str, Pictures] = dict(open_sources(trained_on))
    for folder in dict.fromkeys(folder for system in systems for folder in _folders_of_runs(system)):
        of_run, count = _pictures_of_run(folder)
        if len(of_run) > MOST_OF_A_RUN:
            print(f"{folder}: its {len(of_run):,} training pictures are not compared; --trained-on DIR does so")
            continue
        if len(of_run) < count:
            missing = f"{count - len(of_run):,} of its {count:,} training pictures"
            print(f"{folder}: {missing} are not found from here and not compared; --trained-on DIR does so")
        training[f"{folder}"] = of_run
    if training := {name: source for name, source in training.items() if len(source)}:
        refuse_leaks(training, {name: Selection(source, drawn(source)) for name, source in sources.items()})


def _folders_of_runs(system: str) -> list[pathlib.Path]:
    """The folders of the training runs that a system's model and plugin lie in."""
    try:
        base, plugin = find(system)
    except InputError:  # loading it says what is wrong
        return []
    folders = [pathlib.Path(part).parent for part in (base, plugin) if part is not None]
    return [folder for folder in folders if all((folder / name).is_file() for name in ("pictures.json", "config.json"))]


def _pictures_of_run(folder: pathlib.Path) -> tuple[Pictures, int]:
    """The training pictures of a run, as far as they are where they were, and how many it had."""
    try:
        specs = json.loads((folder / "config.json").read_text())["data_dir"]
        names = json.loads((folder / "pictures.json").read_text())["training"]
    except (OSError, ValueError, KeyError):
        raise InputError(
            f"{folder}: its config.json or pictures.json is damaged; give another copy of the run."
        ) from None
    sources: list[Pictures] = []
    for spec in specs:
        with contextlib.suppress(InputError):  # moved, or changed so that it cannot be read
            sources += open_sources([spec], [], check=False).values()
    joined = Joined(sources)
    return Selection(joined, [index for index, name in enumerate(joined.names) if name in names]), len(names)
