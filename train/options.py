"""The command line of training: a preset, or the options that a run wrote, and changes to them."""

import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar, get_args

import tyro

from stablesam_jax.commands import check_choice, command_line
from stablesam_jax.config import PluginConfig
from stablesam_jax.errors import InputError
from train.presets import CACHE, TrainConfig

FROM_RUN = "--config"

Config = TypeVar("Config")


def parse(program: str, presets: Mapping[str, tuple[str, Config]], arguments: Sequence[str] | None = None) -> Config:
    """Parses the command line: a preset, by default the first, and options.

    Args:
        program: name in the usage text.
        presets: name -> purpose and configuration.
        arguments: in place of the command line's.

    Raises:
        InputError: no such preset, or an option that is given twice.
    """
    given = command_line(arguments)
    if given[:1] in (["-h"], ["--help"]):
        print("presets, each with its own defaults (PRESET --help); without one, the first:")
        print("\n".join(f"  {name:18} {purpose}" for name, (purpose, _) in presets.items()) + "\n")
    if not given or given[0].startswith("-"):
        given = [next(iter(presets)), *given]
    name, *options = given
    check_choice(name, presets, "preset")
    purpose, preset = presets[name]
    # Not presets as subcommands: with an option that is not known, tyro names the help of each, without the program.
    config = (tyro.conf.AvoidSubcommands,)
    program = f"{program} {name}"
    return tyro.cli(type(preset), default=preset, args=options, prog=program, description=purpose, config=config)


def parse_run(program: str, presets: Mapping[str, tuple[str, TrainConfig]]) -> TrainConfig:
    """As `parse`, or instead of a preset `--config FILE`: what a run wrote as its config.json.

    Raises:
        InputError: as `parse`; or the file cannot be used.
    """
    given = command_line()
    if given and given[0].startswith(f"{FROM_RUN}="):
        given[:1] = given[0].split("=", 1)
    if given[:1] != [FROM_RUN]:
        return parse(program, presets)
    if len(given) < 2:
        raise InputError(f"{FROM_RUN}: name the config.json of a run.")
    return tyro.cli(TrainConfig, default=read_config(pathlib.Path(given[1])), args=given[2:], prog=program)


def read_config(path: pathlib.Path) -> TrainConfig:
    """The options that a run wrote; those that its result does not depend on have their defaults.

    A run with a cache, which rounds features, is one with a cache again, in the folder of the presets.

    Raises:
        InputError: it cannot be read, or is not of a run.
    """
    try:
        stored: dict[str, Any] = json.loads(path.read_text())
        known = {field.name for field in dataclasses.fields(TrainConfig)}
        values = {name: _tuples(value) for name, value in stored.items() if name in known}
        values["cache"] = CACHE if stored.get("cached") else None
        values["data_dir"] = tuple(map(pathlib.Path, stored["data_dir"]))
        if stored["plugin"] is not None:
            values["plugin"] = PluginConfig.from_json(stored["plugin"])
        for field in dataclasses.fields(TrainConfig):
            numeric = {int, float} & {field.type, *get_args(field.type)}
            if numeric and isinstance(values.get(field.name), str):
                raise ValueError(field.name)
        return TrainConfig(**values)
    except OSError as error:
        raise InputError(f"{FROM_RUN} {path}: cannot be read ({error.strerror}).") from None
    except (ValueError, TypeError, KeyError, AttributeError):
        raise InputError(f"{FROM_RUN} {path}: is not the config.json of a training run.") from None


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
