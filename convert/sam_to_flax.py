"""Official weights of SAM, HQ-SAM or MobileSAM to a checkpoint folder of this package.

python -m convert.sam_to_flax --checkpoint sam_vit_b_01ec64.pth --output checkpoints/sam_vit_b
"""

import dataclasses
import pathlib
import re
import time
from collections.abc import Mapping, Sequence

import numpy as np
import tyro

from convert.rules import dropped, to_flax
from convert.torch_file import read_state, sha256
from stablesam_jax.build import assemble, shapes
from stablesam_jax.checkpoint import new_path, save_model
from stablesam_jax.config import MODELS, LiteConfig, SamConfig, TinyViTConfig, ViTConfig
from stablesam_jax.errors import InputError, exit_on_input_error
from stablesam_jax.params import count

Shapes = Mapping[str, tuple[int, ...]]

# Names by which files of other models are told apart: what the file holds, and what to give instead.
STRANGERS = (
    (r"(?!mask_decoder\.).*hf_token\.", "HQ-SAM's mask decoder alone, as its training writes epoch_K.pth", "whole"),
    (r"transformer\.", "SAM's mask decoder alone, as *_maskdecoder.pth", "whole"),
    (r"image_encoder\.trunk\.", "SAM 2", "other"),
    (r"(detector|tracker)\.", "SAM 3", "other"),
    (r"mask_decoder\.final_output_upscaling_layers\.", "EfficientSAM", "other"),
    (r"image_encoder\.backbone\.", "EfficientViT-SAM", "other"),
    (r"image_encoder\.features\.", "a SAM with RepViT, as EdgeSAM", "other"),
    (r"vision_encoder\.", "a SAM as the library transformers stores it", "official"),
)
REMEDIES = {
    "whole": "Give the file of the whole model, as sam_hq_epoch_K.pth or sam_vit_b_01ec64.pth.",
    "other": "Give SAM or HQ-SAM with ViT-B, L, H or TinyViT (MobileSAM).",
    "official": "Give the file that its authors published, as sam_vit_b_01ec64.pth.",
}
HQ_PART = r"mask_decoder\.(hf_|compress_vit_feat\.|embedding_)"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Converts official weights into a checkpoint folder; which model they are is recognised."""

    checkpoint: pathlib.Path
    """File of segment_anything, segment_anything_hq or MobileSAM: .pth, .pt or .safetensors."""
    output: pathlib.Path
    """Folder to make; it must not exist."""
    model: str | None = None
    """What the file should be, as sam_vit_b; another model is refused."""


def recognise(shapes_by_name: Shapes) -> SamConfig:
    """The configuration of the model to which a state dict belongs.

    A ViT's input size follows from its absolute positions; TinyViT's does not depend on its weights.

    Args:
        shapes_by_name: official name -> shape.

    Returns:
        one of MODELS, at the input size of the weights where they tell it.

    Raises:
        InputError: it is none of them; says what it is where that can be told.
    """
    for pattern, stranger, remedy in STRANGERS:
        if any(re.match(pattern, name) for name in shapes_by_name):
            raise InputError(f"This is {stranger}, which cannot be converted. {REMEDIES[remedy]}")
    hq = any(re.match(HQ_PART, name) for name in shapes_by_name)
    tiny = any(name.startswith("image_encoder.layers.") for name in shapes_by_name)
    found = _tiny_vit(shapes_by_name) if tiny else _vit(shapes_by_name)
    for config in MODELS.values():
        if config.hq == hq and config.plugin is None and _measures(config) == found:
            return config if tiny else _at_size_of(shapes_by_name, config)
    measures = ", ".join(f"{name} {value}" for name, value in found.items())
    raise InputError(f"The image encoder is a {'TinyViT' if tiny else 'ViT'} of {measures}; that is none of ours. {REMEDIES['other']}")


def convert(checkpoint: pathlib.Path, output: pathlib.Path, model: str | None = None) -> list[tuple[str, str]]:
    """Converts one file.

    Args:
        checkpoint: the file.
        output: folder to make.
        model: name in MODELS that the file must be, or None.

    Returns:
        what was done, as (item, value).

    Raises:
        InputError: the file cannot be used, or the output exists or cannot be written; nothing is left of it then.
    """
    began = time.monotonic()
    if model is not None and model not in MODELS:
        raise InputError(f"--model {model}: unknown; known are {', '.join(MODELS)}. Leave it out to have it recognised.")
    new_path(output)
    state, remarks = read_state(checkpoint)
    tensors = len(state)
    try:
        config = recognise({name: array.shape for name, array in state.items()})
        if model not in (None, config.name):
            raise InputError(f"This is {config.name}, not {model}. Give another file, or leave out --model.")
        _check_normalisation(state, config)
        params = to_flax(state, shapes(assemble(config)))
    except InputError as error:
        raise InputError(f"{checkpoint}: {error}") from None
    remarks += dropped(state)
    if config != MODELS[config.name]:
        remarks.append(f"for an input of {config.image_size} pixels")
    del state  # or it would be held while the output is written
    source = {"file": checkpoint.name, "sha256": sha256(checkpoint), "remarks": remarks}
    save_model(output, params, config=config, source=source)
    return [
        ("model", config.name),
        ("tensors", f"{tensors}"),
        ("parameters", f"{count(params):,}"),
        ("source", f"{checkpoint.name}, SHA-256 {source['sha256']}"),
        *(("remark", remark) for remark in remarks),
        ("output", f"{output}"),
        ("seconds", f"{time.monotonic() - began:.1f}"),
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command; bad input exits with status 2."""
    options = tyro.cli(Options, args=arguments, prog="python -m convert.sam_to_flax")
    with exit_on_input_error():
        for item, value in convert(options.checkpoint, options.output, options.model):
            print(f"{item:<10} {value}")


