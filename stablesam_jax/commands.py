"""The project's commands, and how a user calls them."""

import difflib
import sys
from collections.abc import Collection, Sequence
from typing import NamedTuple

from stablesam_jax.errors import InputError


class Command(NamedTuple):
    """A tool with a command line."""

    module: str  # has main(), without arguments; bears the name that `python -m` gives it
    extra: str  # of pip, one or more: packages that the tool needs beyond the library's
    purpose: str


COMMANDS = {
    "convert": Command(
        "convert.sam_to_flax", "convert", "official weights of SAM, HQ-SAM, MobileSAM or SAM 2.1 to a checkpoint folder"
    ),
    "export": Command("convert.flax_to_torch", "convert", "a checkpoint folder or a plugin to PyTorch"),
    "fold": Command("convert.fold", "convert", "a plugin into its base's weights: a plain SAM file for any program"),
    "onnx": Command("convert.to_onnx", "onnx", "a model to ONNX files for labelme, CVAT, X-AnyLabeling and others"),
    "hub": Command("convert.to_hub", "convert", "a model as a folder for the Hugging Face hub, or for transformers"),
    "stablehlo": Command("convert.to_stablehlo", "eval", "a model as exported JAX programs and StableHLO"),
    "check": Command("convert.check_data", "train", "lists every fault in folders of pictures and masks"),
    "build": Command("convert.build_dataset", "train", "a data set to ArrayRecord files"),
    "train": Command("train.main", "train", "trains the plugin, or another part of a model"),
    "embed": Command("train.embed", "train", "fills the feature cache of a training run in advance"),
    "average": Command("train.average", "train", "averages plugins or models; sets a plugin's strength and first pass"),
    "preview": Command("train.preview", "train", "draws the first samples of a training run"),
    "eval": Command("eval.main", "eval", "compares systems under sloppy prompts; eval --help has the protocols"),
    "predict": Command("predict.__main__", "eval", "masks for boxes or points of many pictures, sorted for review"),
    "serve": Command("serve.__main__", "serve", "masks by HTTP for annotation tools, and a page to try them"),
    "report": Command("eval.report.__main__", "eval", "one HTML page of several evaluations"),
    "parity": Command("eval.parity.__main__", "parity", "compares a model with the official PyTorch code"),
    "bench": Command("bench.__main__", "train,parity", "compares the speed with other implementations"),
    "tables": Command("experiments.tables", "train", "trains and compares the systems of the paper's tables"),
    "paper": Command("experiments.paper", "train,eval", "plans and makes all tables of the paper at full size"),
    "nano-start": Command("convert.lite_to_flax", "nano", "ImageNet weights as the start of pre-training sam_nano"),
}


def called(name: str) -> str:
    """What to type for a command: `python -m train.main` in a process that was started so, else `stablesam train`.

    The tools can be found by `python -m` in a clone alone, `stablesam` is there wherever the package is installed.
    """
    started = sys.modules["__main__"].__spec__  # None for a script
    if started is not None and any(command.module == started.name for command in COMMANDS.values()):
        return f"python -m {COMMANDS[name].module.removesuffix('.__main__')}"
    return f"stablesam {name}"


def command_line(arguments: Sequence[str] | None = None) -> list[str]:
    """The arguments of a command, for a parser that would silently take the last of two equal options.

    Args:
        arguments: in place of the process's.

    Raises:
        InputError: an option is given twice.
    """
    found = list(sys.argv[1:] if arguments is None else arguments)
    seen = set()
    for argument in found:
        if argument.startswith("--") and len(argument) > 2:
            option = argument.partition("=")[0]
            name = option[2:].replace("_", "-").removeprefix("no-")
            if name in seen:
                raise InputError(f"{option}: is given twice; give it once, with all its values behind it.")
            seen.add(name)
    return found


def check_choice(given: str, choices: Collection[str], what: str) -> None:
    """Raises InputError, with the nearest names, unless `given` is among the choices.

    Args:
        given: by the user.
        choices: all names.
        what: that is chosen, such as "preset".
    """
    if given not in choices:
        every = {choice.lower(): choice for choice in choices}
        near = [every[name] for name in difflib.get_close_matches(given.lower(), every, n=2, cutoff=0.6)]
        hint = f"did you mean {' or '.join(near)}?" if near else f"choose from {', '.join(choices)}."
        raise InputError(f"{given}: is no {what}; {hint}")
