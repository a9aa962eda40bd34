"""Official SAM weights to a checkpoint folder of this package.

python -m convert.sam_to_flax --checkpoint sam_vit_b_01ec64.pth --output checkpoints/sam_vit_b
"""

import dataclasses
import pathlib
import re
import time
from collections.abc import Mapping, Sequence

import tyro

from convert.rules import to_flax
from convert.torch_file import read_state, sha256
from stablesam_jax.build import shapes
from stablesam_jax.checkpoint import new_path, save_model
from stablesam_jax.config import MODELS, ViTConfig
from stablesam_jax.errors import InputError, exit_on_input_error
from stablesam_jax.model.sam import Sam
from stablesam_jax.params import count

# Names by which files of other models are told apart.
STRANGERS = {
    "mask_decoder.hf_token.": "HQ-SAM",
    "image_encoder.trunk.": "SAM 2",
    "image_encoder.layers.": "a SAM with TinyViT, as MobileSAM",
    "transformer.": "a mask decoder alone",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Converts official SAM weights (ViT-B, L or H, recognised from the weights) into a checkpoint folder."""

    checkpoint: pathlib.Path
    """File of segment_anything: .pth, .pt or .safetensors."""
    output: pathlib.Path
    """Folder to make; it must not exist."""


def recognise(shapes_by_name: Mapping[str, tuple[int, ...]]) -> str:
    """The model in MODELS to which a state dict belongs, by the width and depth of its image encoder.

    Args:
        shapes_by_name: official name -> shape.

    Returns:
        a name in MODELS.

    Raises:
        InputError: it is none of them; names what it is where that can be told.
    """
    for prefix, stranger in STRANGERS.items():
        if any(name.startswith(prefix) for name in shapes_by_name):
            raise InputError(f"This is {stranger}, which cannot be converted. Give SAM ViT-B, L or H as a whole.")
    width = shapes_by_name.get("image_encoder.patch_embed.proj.bias", (0,))[0]
    depth = len({found[1] for name in shapes_by_name if (found := re.match(r"image_encoder\.blocks\.(\d+)\.", name))})
    for name, config in MODELS.items():
        if isinstance(config.encoder, ViTConfig) and (config.encoder.width, config.encoder.depth) == (width, depth):
            return name
    raise InputError(
        f"The image encoder is {width} wide and {depth} blocks deep, which is no SAM. Give SAM ViT-B, L or H."
    )


def convert(checkpoint: pathlib.Path, output: pathlib.Path) -> list[tuple[str, str]]:
    """Converts one file.

    Returns:
        what was done, as (item, value).

    Raises:
        InputError: the file cannot be used, or the output exists; nothing is written then.
    """
    began = time.monotonic()
    new_path(output)
    state, remarks = read_state(checkpoint)
    try:
        model = recognise({name: array.shape for name, array in state.items()})
        params = to_flax(state, shapes(Sam(MODELS[model])))
    except InputError as error:
        raise InputError(f"{checkpoint}: {error}") from None
    source = {"file": checkpoint.name, "sha256": sha256(checkpoint), "remarks": remarks}
    save_model(output, params, model=model, source=source)
    return [
        ("model", model),
        ("tensors", f"{len(state)}"),
        ("numbers", f"{count(params):,}"),
        ("source", f"{checkpoint.name}, SHA-256 {source['sha256']}"),
        *(("remark", remark) for remark in remarks),
        ("output", f"{output}"),
        ("seconds", f"{time.monotonic() - began:.1f}"),
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command; bad input exits with status 2."""
    options = tyro.cli(Options, args=arguments, prog="python -m convert.sam_to_flax")
    with exit_on_input_error():
        for item, value in convert(options.checkpoint, options.output):
            print(f"{item:<8} {value}")


if __name__ == "__main__":
    main()
