"""Converts checkpoint folders to state dicts of the official PyTorch packages, or of stablesam_torch.

sam_nano and the plugins have their classes in stablesam_torch, all other models in segment_anything(_hq).

python -m convert.flax_to_torch --checkpoint runs/sam_vit_b --output runs/sam_vit_b.pth
python -m convert.flax_to_torch --checkpoint runs/mine/plugin.safetensors --output runs/plugin.pth
python -m convert.flax_to_torch --checkpoint runs/sam2 --video-weights sam2.1_hiera_small.pt --output runs/sam2.pt
"""

import dataclasses
import pathlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import safetensors.torch
import torch
import tyro
from numpy.typing import ArrayLike

from convert.rules import VIDEO_MODULES, to_torch
from convert.torch_file import read_state, sha256
from stablesam_jax.build import load_model
from stablesam_jax.commands import called, command_line
from stablesam_jax.config import PluginConfig, SamConfig
from stablesam_jax.errors import InputError, exit_on_input_error
from stablesam_jax.files.disk import new_path, whole_file
from stablesam_jax.files.plugin_file import load_plugin
from stablesam_jax.model.encoders import encoder_of
from stablesam_jax.params import Params, count, flatten
from stablesam_torch.plugin_config import CONFIG_KEY, packed

NANO = "sam_nano"
NO_MEMORY = "no_mem_embed"  # a tensor of every SAM 2
SUFFIXES = (".pth", ".pt", ".safetensors")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Writes a state dict: of a model, one that segment_anything, segment_anything_hq, `NanoSam` of stablesam_torch or,
    with --video-weights, sam2 loads with strict=True; of a plugin, one for `stabilise` of stablesam_torch."""

    checkpoint: str
    """Checkpoint folder, the name of a shipped model, or a plugin file."""
    output: pathlib.Path
    """New file: .pth, .pt or, for a model, .safetensors."""
    video_weights: pathlib.Path | None = None
    """Official file of the same SAM 2, whose weights for videos the output gets; they are no part of a checkpoint
    folder. Without it the output holds what pictures need, which sam2 loads with strict=False."""


def convert(checkpoint: str, output: pathlib.Path, video_weights: pathlib.Path | None = None) -> list[tuple[str, str]]:
    """Converts one folder or plugin, exactly: `sam_to_flax` converts a model's file back to the same folder.

    Returns:
        a report, as (item, value).

    Raises:
        InputError: the folder or plugin cannot be used or has no PyTorch twin, or the output exists or cannot be
            written. No partial output remains.
    """
    began = time.monotonic()
    if output.suffix not in SUFFIXES:
        raise InputError(f"{output}: unsupported type of file. Give a name that ends in {', '.join(SUFFIXES)}.")
    new_path(output)
    is_plugin = pathlib.Path(checkpoint).is_file()
    item, params, state = _plugin(checkpoint, output) if is_plugin else _model(checkpoint)
    more, remarks = of_videos(checkpoint, state, video_weights)
    write_state(state | more, output)
    return [
        item,
        *remarks,
        ("tensors", f"{len(flatten(params))}"),
        ("parameters", f"{count(params):,}"),
        ("output", f"{output}, SHA-256 {sha256(output)}"),
        ("seconds", f"{time.monotonic() - began:.1f}"),
    ]


def write_state(state: Mapping[str, Any], output: pathlib.Path) -> None:
    """Writes a state dict atomically to a new file, whose suffix is one of `SUFFIXES`.

    Raises:
        InputError: the file exists, or cannot be written.
    """
    with whole_file(output) as temporary:
        if output.suffix == ".safetensors":
            safetensors.torch.save_file(dict(state), temporary, metadata={"format": "pt"})
        else:
            with temporary.open("wb") as file:
                # Official files of sam2 have the state dict in an entry.
                torch.save({"model": dict(state)} if NO_MEMORY in state else dict(state), file)


def model_state(params: Params) -> dict[str, Any]:
    """The state dict of a model that passes `check_twin`."""
    return {name: _tensor(array) for name, array in to_torch(params).items()}


def check_twin(name: str, config: SamConfig) -> None:
    """Checks that PyTorch has a class for a model.

    Args:
        name: of the model, for the message.
        config: of the model.

    Raises:
        InputError: it has a plugin, or an encoder that no class has.
    """
    if config.plugin is not None:
        raise InputError(
            f"{name}: has a plugin, which no official package supports. Convert its base and the plugin file "
            "separately, or fold the plugin into the base by the command fold."
        )
    if encoder_of(config).official is None and config.name != NANO:
        raise InputError(
            f"{name}: {config.name} has an encoder that neither the official packages nor stablesam_torch have. Give a "
            "SAM with ViT or TinyViT, sam_nano, or a SAM 2."
        )


def of_videos(
    name: str, state: Mapping[str, torch.Tensor], file: pathlib.Path | None
) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    """What a state dict of SAM 2 lacks to be an official one.

    Args:
        name: of the model, for the message.
        state: of `model_state`.
        file: an official file of the same model, or None.

    Returns:
        the tensors for videos, none without a file; and items of a report.

    Raises:
        InputError: there is a file, and it is of another model, or the model is no SAM 2.
    """
    if file is None:
        remark = ("remark", "without weights for videos: see --video-weights, or load it with strict=False")
        return {}, [remark] * (NO_MEMORY in state)
    if NO_MEMORY not in state:
        raise InputError(f"--video-weights {file}: {name} is no SAM 2; leave the option out.")
    return _video_weights(file, state), []


def plugin_state(params: Params, config: PluginConfig, metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Converts a plugin to the state dict of `stablesam_torch.plugin.Plugin`.

    Args:
        params: the subtree `plugin`.
        config: its configuration.
        metadata: of the plugin file.

    Returns:
        leaves as tensors, named by their paths with dots, axes unchanged, and configuration and metadata in a tensor
        under PyTorch's key for what is no parameter, see `stablesam_torch.plugin_config.packed`.
    """
    state: dict[str, Any] = {path.replace("/", "."): _tensor(leaf) for path, leaf in flatten(params).items()}
    return state | {CONFIG_KEY: packed(dataclasses.asdict(config), metadata)}


def _model(checkpoint: str) -> tuple[tuple[str, str], Params, dict[str, Any]]:
    """The first item of the report, the parameters, and the state dict."""
    sam, params = load_model(checkpoint)
    check_twin(checkpoint, sam.config)
    return ("model", sam.config.name), params, model_state(params)


def _video_weights(file: pathlib.Path, state: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """The tensors of an official file of SAM 2 that the state lacks."""
    theirs, _ = read_state(file)
    found = {name: tensor for name, tensor in theirs.items() if name.partition(".")[0] in VIDEO_MODULES}
    shapes = {name: tensor.shape for name, tensor in theirs.items() if name not in found}
    if not found or shapes != {name: tuple(tensor.shape) for name, tensor in state.items()}:
        raise InputError(f"--video-weights {file}: is not of this SAM 2; give the official file that was converted.")
    return {name: _tensor(array) for name, array in found.items()}


def _plugin(file: str, output: pathlib.Path) -> tuple[tuple[str, str], Params, dict[str, Any]]:
    if output.suffix == ".safetensors":
        raise InputError(f"{output}: {file} is a plugin, and PyTorch alone cannot read .safetensors. Give a .pth file.")
    params, config, metadata = load_plugin(file)
    base = metadata.get("base", "a base that its file does not name")
    return ("plugin", f"for {base}"), params, plugin_state(params, config, metadata)


def _tensor(array: ArrayLike) -> torch.Tensor:
    # A copy, because leaves are read-only, in C order, because the files hold strides: official ones are contiguous.
    return torch.from_numpy(np.array(array, order="C"))


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command; bad input exits with status 2."""
    with exit_on_input_error():
        options = tyro.cli(Options, args=command_line(arguments), prog=called("export"))
        for item, value in convert(options.checkpoint, options.output, options.video_weights):
            print(f"{item:<10} {value}")


if __name__ == "__main__":
    main()
