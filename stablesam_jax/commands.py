"""The project's commands, and how a user calls them."""

import sys
from typing import NamedTuple


class Command(NamedTuple):
    """A tool with a command line."""

    module: str  # has main(), without arguments; bears the name that `python -m` gives it
    extra: str  # of pip, one or more: packages that the tool needs beyond the library's
    purpose: str


COMMANDS = {
    "convert": Command(
        "convert.sam_to_flax", "convert", "official weights of SAM, HQ-SAM or MobileSAM to a checkpoint folder"
    ),
    "export": Command("convert.flax_to_torch", "convert", "a checkpoint folder or a plugin to PyTorch"),
    "check": Command("convert.check_data", "train", "names every fault of folders of pictures and masks"),
    "build": Command("convert.build_dataset", "train", "a data set to ArrayRecord files"),
    "train": Command("train.main", "train", "trains the plugin, or another part of a model"),
    "embed": Command("train.embed", "train", "fills the feature cache of a training run ahead of it"),
    "average": Command("train.average", "train", "one plugin or model that is the mean of several"),
    "preview": Command("train.preview", "train", "draws the first samples of a training run"),
    "eval": Command("eval.main", "eval", "compares systems under sloppy prompts: hq, coco, sginw, mess, wobble"),
    "report": Command("eval.report.__main__", "eval", "one HTML page of several evaluations"),
    "parity": Command("eval.parity.__main__", "parity", "compares a model with the official PyTorch code"),
    "bench": Command("bench.__main__", "train,parity", "times this package against others"),
    "tables": Command("experiments.tables", "train", "trains and compares the systems of the paper's tables"),
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
