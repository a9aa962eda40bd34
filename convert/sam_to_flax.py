"""Converts official weights of SAM, HQ-SAM, MobileSAM or SAM 2 to a checkpoint folder of this package.

python -m convert.sam_to_flax --checkpoint sam_vit_b_01ec64.pth --output runs/sam_vit_b
"""

import collections
import dataclasses
import itertools
import pathlib
import re
import time
from collections.abc import Mapping, Sequence

import numpy as np
import tyro

from convert.rules import dropped, to_flax
from convert.torch_file import file_of, read_state, sha256
from convert.transformers_names import MARK, official_names
from stablesam_jax.build import assemble, shapes
from stablesam_jax.commands import called, command_line
from stablesam_jax.config import MODELS, SamConfig
from stablesam_jax.errors import InputError, exit_on_input_error
from stablesam_jax.files.checkpoint import save_model
from stablesam_jax.files.disk import new_path
from stablesam_jax.model.encoders import encoder_of
from stablesam_jax.params import count

Shapes = Mapping[str, tuple[int, ...]]

OURS = "Give SAM or HQ-SAM with ViT-B, L, H or TinyViT (MobileSAM), or SAM 2."
WHOLE = "Give the file of the whole model, as sam_hq_epoch_K.pth or sam_vit_b_01ec64.pth."

# Unsupported models: prefix of a tensor's name, model, remedy. The first row that fits counts.
UNSUPPORTED = (
    ("hf_token.", "HQ-SAM's mask decoder alone, as epoch_K.pth of its training", WHOLE),
    ("transformer.", "SAM's mask decoder alone, as *_maskdecoder.pth", WHOLE),
    ("sam_mask_decoder.hf_", "HQ-SAM 2", OURS),
    ("detector.", "SAM 3", OURS),
    ("mask_decoder.final_output_upscaling_layers.", "EfficientSAM", OURS),
    ("image_encoder.backbone.", "EfficientViT-SAM", OURS),
    ("image_encoder.features.", "a SAM with RepViT, as EdgeSAM", OURS),
    ("vision_encoder.backbone.", "SAM 2 or 3 as the library transformers stores it", OURS),
)
HQ_PARTS = ("mask_decoder.hf_", "mask_decoder.compress_vit_feat.", "mask_decoder.embedding_")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Converts official weights into a checkpoint folder. The model is recognised from the weights."""

    checkpoint: pathlib.Path
    """File of segment_anything, segment_anything_hq, MobileSAM or sam2: .pth, .pt or .safetensors; or a folder of the
    library transformers, of SamModel or SamHQModel."""
    output: pathlib.Path
    """New folder."""
    model: str | None = None
    """The expected model, such as sam_vit_b; a file of another one is refused."""


def recognise(shapes_by_name: Shapes) -> SamConfig:
    """Recognises the model to which a state dict belongs.

    Args:
        shapes_by_name: official name -> shape.

    Returns:
        one of MODELS; for a ViT at the input size of its absolute positions. Weights of others do not depend on it.

    Raises:
        InputError: it is none of MODELS; names the model if it is in UNSUPPORTED.
    """
    for prefix, unsupported, remedy in UNSUPPORTED:
        if any(name.startswith(prefix) for name in shapes_by_name):
            raise InputError(f"This is {unsupported}, which cannot be converted. {remedy}")
    # Any part of HQ-SAM counts, so that a file without hf_token is an HQ-SAM with a missing tensor, not a SAM.
    hq = any(name.startswith(HQ_PARTS) for name in shapes_by_name)
    depths, width = _depths(shapes_by_name), _width(shapes_by_name)
    for config in MODELS.values():
        fits = encoder_of(config).recognise
        if config.plugin is None and config.hq == hq and fits is not None and fits(config.encoder, depths, width):
            return _at_its_size(config, shapes_by_name)
    if not depths:
        raise InputError(f"This holds no image encoder of a SAM. {OURS}")
    blocks = " + ".join(map(str, depths))
    raise InputError(
        f"Its image encoder has {blocks} blocks and {width} output channels, unlike any supported model. {OURS}"
    )


def convert(checkpoint: pathlib.Path, output: pathlib.Path, model: str | None = None) -> list[tuple[str, str]]:
    """Converts one file.

    Args:
        checkpoint: the file, or a folder that holds it.
        output: new folder.
        model: name of the expected model in MODELS, or None for any.

    Returns:
        a report, as (item, value).

    Raises:
        InputError: the file cannot be used, or the output exists or cannot be written. No partial output remains.
    """
    began = time.monotonic()
    if model is not None and model not in MODELS:
        raise InputError(
            f"--model {model}: unknown; choose from {', '.join(MODELS)}. Leave it out to have it recognised."
        )
    new_path(output)
    state, remarks = read_state(checkpoint)
    try:
        if any(map(MARK.match, state)):
            state = official_names(state)
            remarks.append("names of the library transformers")
        config = recognise({name: array.shape for name, array in state.items()})
        if model not in (None, config.name):
            raise InputError(f"This is {config.name}, not {model}. Give another file, or leave out --model.")
        _check_normalisation(state, config)
        params = to_flax(state, shapes(assemble(config)))
    except InputError as error:
        read = f" (Read: {'; '.join(remarks)}.)" if remarks else ""
        raise InputError(f"{checkpoint}: {error}{read}") from None
    remarks += dropped(state)
    if config != MODELS[config.name]:
        remarks.append(f"for an input of {config.image_size} pixels")
    source = {"file": checkpoint.name, "sha256": sha256(file_of(checkpoint)), "remarks": remarks}
    save_model(output, params, config=config, source=source)
    return [
        ("model", config.name),
        ("tensors", f"{len(state)}"),
        ("parameters", f"{count(params):,}"),
        ("source", f"{checkpoint.name}, SHA-256 {source['sha256']}"),
        *(("remark", remark) for remark in remarks),
        ("output", f"{output}"),
        ("seconds", f"{time.monotonic() - began:.1f}"),
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command; bad input exits with status 2."""
    with exit_on_input_error():
        options = tyro.cli(Options, args=command_line(arguments), prog=called("convert"))
        for item, value in convert(options.checkpoint, options.output, options.model):
            print(f"{item:<10} {value}")


def _depths(shapes_by_name: Shapes) -> tuple[int, ...]:
    """Number of blocks in each stage: a ViT has one stage, others four. `to_flax` checks all other sizes."""
    if starts := _hiera_stages(shapes_by_name):
        return tuple(after - start for start, after in itertools.pairwise(starts))
    pattern = re.compile(r"image_encoder\.(layers\.\d+\.)?blocks\.\d+\.")
    blocks = {match[0]: match[1] or "" for name in shapes_by_name if (match := pattern.match(name))}
    return tuple(depth for _, depth in sorted(collections.Counter(blocks.values()).items()))


def _hiera_stages(shapes_by_name: Shapes) -> list[int]:
    """First block of each stage of SAM 2, those but the first with a projection, and the number of blocks; or []."""
    pattern = re.compile(r"image_encoder\.trunk\.blocks\.(\d+)\.(proj\.weight)?")
    blocks = {(int(match[1]), bool(match[2])) for name in shapes_by_name if (match := pattern.match(name))}
    return sorted({0, *(block for block, begins in blocks if begins), 1 + max(blocks)[0]}) if blocks else []


def _width(shapes_by_name: Shapes) -> int | None:
    """Channels before the neck, of SAM 2 those of its last stage."""
    for name in ("image_encoder.neck.0.weight", "image_encoder.neck.convs.0.conv.weight"):
        match shapes_by_name.get(name):
            case (_, width, 1, 1):
                return width
    return None


def _at_its_size(config: SamConfig, shapes_by_name: Shapes) -> SamConfig:
    """The configuration at the input size of the absolute positions (1, G, G, C); unchanged for TinyViT."""
    match shapes_by_name.get("image_encoder.pos_embed"):
        case (1, rows, columns, _) if rows == columns:
            return dataclasses.replace(config, image_size=rows * config.encoder.patch_size)
    return config


def _check_normalisation(state: Mapping[str, np.ndarray], config: SamConfig) -> None:
    """Compares the pixel constants, which some files hold, with ours before they are dropped."""
    for name in ("pixel_mean", "pixel_std"):
        if name in state and not np.allclose(state[name].ravel(), getattr(config, name)):
            values = ", ".join(f"{value:g}" for value in state[name].ravel())
            raise InputError(
                f"Its {name} is {values} instead of {getattr(config, name)}: it was trained with other preprocessing."
            )


if __name__ == "__main__":
    main()
