"""A checkpoint folder of this package to a state dict for the official PyTorch packages.

python -m convert.flax_to_torch --checkpoint checkpoints/sam_vit_b --output sam_vit_b.pth
"""

import dataclasses
import pathlib
import time
from collections.abc import Sequence

import numpy as np
import safetensors.torch
import torch
import tyro

from convert.rules import to_torch
from convert.torch_file import sha256
from stablesam_jax.build import load_model
from stablesam_jax.checkpoint import new_path, whole_file
from stablesam_jax.config import LiteConfig
from stablesam_jax.errors import InputError, exit_on_input_error
from stablesam_jax.params import count

SUFFIXES = (".pth", ".pt", ".safetensors")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Writes a state dict that segment_anything or segment_anything_hq loads with strict=True."""

    checkpoint: str
    """Checkpoint folder, or the name of a shipped model."""
    output: pathlib.Path
    """File to make, .pth, .pt or .safetensors; it must not exist."""


def convert(checkpoint: str, output: pathlib.Path) -> list[tuple[str, str]]:
    """Converts one folder; what `sam_to_flax` makes of the file is the folder again, to the bit.

    Returns:
        what was done, as (item, value).

    Raises:
        InputError: the folder cannot be used or has no official twin, or the output exists or cannot be written;
            nothing is left of it then.
    """
    began = time.monotonic()
    if output.suffix not in SUFFIXES:
        raise InputError(f"{output}: no known kind of file. Give a name that ends in {', '.join(SUFFIXES)}.")
    new_path(output)
    sam, params = load_model(checkpoint)
    if sam.config.plugin is not None:
        raise InputError(f"{checkpoint}: has a plugin, which no official package knows. Give its base alone.")
    if isinstance(sam.config.encoder, LiteConfig):
        raise InputError(
            f"{checkpoint}: {sam.config.name} has an encoder that no official package has. Give a SAM with ViT or "
            "TinyViT."
        )
    # Copies: leaves are read-only, and transposed ones would be written as they lie.
    state = {name: torch.from_numpy(np.array(array, order="C")) for name, array in to_torch(params).items()}
    with whole_file(output) as temporary:
        if output.suffix == ".safetensors":
            safetensors.torch.save_file(state, temporary, metadata={"format": "pt"})
        else:
            with temporary.open("wb") as file:
                torch.save(state, file)
    return [
        ("model", sam.config.name),
        ("tensors", f"{len(state)}"),
        ("parameters", f"{count(params):,}"),
        ("output", f"{output}, SHA-256 {sha256(output)}"),
        ("seconds", f"{time.monotonic() - began:.1f}"),
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command; bad input exits with status 2."""
    options = tyro.cli(Options, args=arguments, prog="python -m convert.flax_to_torch")
    with exit_on_input_error():
        for item, value in convert(options.checkpoint, options.output):
            print(f"{item:<10} {value}")


if __name__ == "__main__":
    main()
