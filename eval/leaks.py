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
    for folder in dict.fromkeys(_folder_of_run(system) for system in systems):
        if folder is not None:
            of_run = _pictures_of_run(folder)
            if len(of_run) > MOST_OF_A_RUN:
                print(f"{folder}: its {len(of_run):,} training pictures are not compared; --trained-on DIR does so")
            else:
                training[f"{folder}"] = of_run
    if training := {name: source for name, source in training.items() if len(source)}:
        refuse_leaks(training, {name: Selection(source, drawn(source)) for name, source in sources.items()})


def _folder_of_run(system: str) -> pathlib.Path | None:
    """The folder of the training run that a system's plugin, or else model, lies in."""
    try:
        base, plugin = find(system)
    except InputError:  # loading it says what is wrong
        return None
    folder = (plugin or base).parent
    return folder if (folder / "pictures.json").is_file() and (folder / "config.json").is_file() else None


def _pictures_of_run(folder: pathlib.Path) -> Pictures:
    """The training pictures of a run, as far as they are where they were."""
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
    return Selection(joined, [index for index, name in enumerate(joined.names) if name in names])
