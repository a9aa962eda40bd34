"""Writes a model as a folder for the Hugging Face hub: ours, plugin included, or that of the library transformers.

python -m convert.to_hub --system stable_sam_nano --output runs/hub
python -m convert.to_hub --system runs/sam_vit_b --layout transformers --output runs/sam_vit_b_hf
"""

import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax
import numpy as np
import safetensors.numpy
import tyro

from convert.hub_card import METRICS, card
from convert.rules import to_torch
from convert.transformers_names import transformers_names
from stablesam_jax import names
from stablesam_jax.build import load_model
from stablesam_jax.commands import called, command_line
from stablesam_jax.config import SamConfig, ViTConfig
from stablesam_jax.errors import InputError, exit_on_input_error, shown
from stablesam_jax.files import hub_folder
from stablesam_jax.files.disk import new_path, whole_folder
from stablesam_jax.files.hub_folder import CARD, CONFIG, WEIGHTS
from stablesam_jax.files.plugin_file import load_plugin
from stablesam_jax.params import Params, count

PROCESSOR = "preprocessor_config.json"
Layout = Literal["ours", "transformers"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Writes config.json, model.safetensors and README.md (the model card) to a folder, ready to be uploaded."""

    system: str
    """A shipped model, a checkpoint folder, or BASE+PLUGIN_FILE."""
    output: pathlib.Path
    """New folder."""
    layout: Layout = "ours"
    """ours: for load_model, with the plugin. transformers: for SamModel or SamHQModel; a ViT without a plugin only."""
    strength: float | None = None
    """Strength of the plugin, 0 to 1. Default: its own."""
    license: str | None = None
    """Licence of the weights, as the hub spells it, such as apache-2.0. Default: the card names none."""
    results: pathlib.Path | None = None
    """results.json of an evaluation of this system, under the same name; its values are added to the card."""


def convert(options: Options) -> list[tuple[str, str]]:
    """Writes one folder.

    Returns:
        a report, as (item, value).

    Raises:
        InputError: the system cannot be loaded or has no such layout, the results are not of this system, or the output
            exists or cannot be written. No partial output remains.
    """
    new_path(options.output)
    results = {} if options.results is None else read_results(options.results, options.system)
    sam, params = load_model(options.system, strength=options.strength)
    params = jax.device_get(params)
    plugin_file = names.find(options.system).plugin
    source: dict[str, Any] = {"system": pathlib.Path(options.system).name}
    if plugin_file is not None:
        source["plugin"] = load_plugin(plugin_file)[2]
    text = card(shown(options.output.name), sam.config, params, source, results, options.license, options.layout)
    if options.layout == "ours":
        hub_folder.save_model(options.output, params, config=sam.config, source=source, card=text)
    else:
        _save_transformers(options.output, sam.config, params, text, options.system)
    return [
        ("model", sam.config.name),
        ("layout", options.layout),
        ("parameters", f"{count(params):,}"),
        ("output", str(options.output)),
        ("upload", f"hf upload OWNER/NAME {options.output}"),
    ]


def _save_transformers(folder: pathlib.Path, config: SamConfig, params: Params, text: str, system: str) -> None:
    if config.plugin is not None:
        raise InputError(
            f"{system}: has a plugin, which transformers has no class for. Fold it first (stablesam fold), or write "
            "the layout ours."
        )
    described = transformers_config(config, system)
    # safetensors writes the memory of an array, whatever its strides: transposed views would be other values.
    state = {name: np.array(array, order="C") for name, array in transformers_names(to_torch(params)).items()}
    with whole_folder(folder) as temporary:
        (temporary / WEIGHTS).write_bytes(safetensors.numpy.save(state, {"format": "pt"}))
        for name, content in ((CONFIG, described), (PROCESSOR, _processor(config))):
            (temporary / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        (temporary / CARD).write_text(text, encoding="utf-8")


def transformers_config(config: SamConfig, system: str) -> dict[str, Any]:
    """The config.json of transformers' SamModel or SamHQModel (5.24).

    Args:
        config: of the model.
        system: its name, for the message.

    Raises:
        InputError: the image encoder is no ViT.
    """
    encoder, width = config.encoder, config.embedding_width
    if not isinstance(encoder, ViTConfig):
        raise InputError(f"{system}: {config.name} is no ViT, and transformers' SamModel has no other encoder.")
    kind = "sam_hq" if config.hq else "sam"
    size = {"image_size": config.image_size, "patch_size": encoder.patch_size}
    hq = {"vit_dim": encoder.width} if config.hq else {}
    return {
        "architectures": ["SamHQModel" if config.hq else "SamModel"],
        "model_type": kind,
        "dtype": "float32",
        "vision_config": {
            "model_type": f"{kind}_vision_model",
            **size,
            "hidden_size": encoder.width,
            "num_hidden_layers": encoder.depth,
            "num_attention_heads": encoder.heads,
            "window_size": encoder.window_size,
            "global_attn_indexes": list(encoder.global_blocks),
            "mlp_dim": 4 * encoder.width,
            "output_channels": width,
            "num_pos_feats": width // 2,
        },
        "prompt_encoder_config": {"model_type": f"{kind}_prompt_encoder", **size, "hidden_size": width},
        "mask_decoder_config": {
            "model_type": f"{kind}_mask_decoder",
            "hidden_size": width,
            "iou_head_hidden_dim": width,
            **hq,
        },
    }


def _processor(config: SamConfig) -> dict[str, Any]:
    """The configuration of transformers' SamImageProcessor."""
    side, mask_side = config.image_size, config.mask_size
    return {
        "image_processor_type": "SamImageProcessor",
        "processor_class": "SamHQProcessor" if config.hq else "SamProcessor",
        **dict.fromkeys(("do_convert_rgb", "do_normalize", "do_pad", "do_rescale", "do_resize"), True),
        "image_mean": [value / 255 for value in config.pixel_mean],
        "image_std": [value / 255 for value in config.pixel_std],
        "rescale_factor": 1 / 255,
        "resample": 2,  # bilinear
        "size": {"longest_edge": side},
        "pad_size": {"height": side, "width": side},
        "mask_size": {"longest_edge": mask_side},
        "mask_pad_size": {"height": mask_side, "width": mask_side},
    }


def read_results(path: pathlib.Path, system: str) -> Mapping[str, Any]:
    """Data set -> kind of prompts -> metric -> fraction, of one system."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))["systems"][system]
        metrics = {metric for kinds in found.values() for of in kinds.values() for metric in of}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise InputError(f"--results {path}: is no results.json of an evaluation of {system}.") from None
    if not metrics & METRICS.keys():
        raise InputError(f"--results {path}: has none of {', '.join(METRICS.values())}, which the card shows.")
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command; bad input exits with status 2."""
    with exit_on_input_error():
        options = tyro.cli(Options, args=command_line(arguments), prog=called("hub"))
        for item, value in convert(options):
            print(f"{item:<10} {value}")


if __name__ == "__main__":
    main()
