"""Writes a model as ONNX files for the programs that run SAM in onnxruntime: an encoder and a decoder.

python -m convert.to_onnx --system sam_nano+stable_sam_nano --output runs/onnx --single

Names, shapes and habits are those of segment_anything's exporter, see `onnx_graph`; the plugin is inside.
"""

import contextlib
import dataclasses
import pathlib
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import onnx
import torch
import tyro

from convert.flax_to_torch import NANO, plugin_state
from convert.onnx_check import equal_pixels
from convert.onnx_graph import EMBEDDING, FRAME, MASKS, Decoder, Encoder
from convert.onnx_store import LARGEST, Dtype, stored
from convert.rules import to_torch
from stablesam_jax.build import load_model
from stablesam_jax.commands import called, command_line
from stablesam_jax.errors import InputError, exit_on_input_error
from stablesam_jax.files.disk import whole_file
from stablesam_jax.model.encoders import encoder_of
from stablesam_jax.model.sam import Sam
from stablesam_jax.params import Params
from stablesam_torch.nano import NanoSam
from stablesam_torch.plugin import stabilise

ENCODER, DECODER = "encoder.onnx", "decoder.onnx"
OPSET = 17  # has LayerNormalization, and runtimes of 2022 read it
RAW, NORMALISED = "input_image", "x"  # the names by which clients feed either form of a picture


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Writes encoder.onnx and decoder.onnx, for programs that run SAM's ONNX files. docs/onnx.md says which options
    each of them needs."""

    system: str
    """A shipped model, a checkpoint folder, or BASE+PLUGIN_FILE."""
    output: pathlib.Path
    """Folder for the two files."""
    single: bool = False
    """One mask a prompt: of a single point the best of three, else the single mask. Otherwise all four."""
    boxes: bool = False
    """CVAT's outputs, with --single: the mask as bytes, cropped to its box, and the edges xtl, ytl, xbr, ybr."""
    low_res_masks: bool = True
    """The third output. samexporter makes its masks of it, which for sam_nano is less exact than the first output."""
    encoder_input: Literal["raw", "normalised"] = "raw"
    """raw: `input_image`, (H, W, 3) of 0..255, any size. normalised: `x`, (1, 3, 1024, 1024), as osam feeds it."""
    dtype: Dtype = "float32"
    """How weights are stored: int8 only in the encoder. Arithmetic is float32 in any case."""
    check: bool = False
    """Runs both files on included pictures beside our own predictor and reports the share of equal mask pixels."""


def convert(options: Options) -> list[tuple[str, str]]:
    """Writes both files.

    Returns:
        a report, as (item, value).

    Raises:
        InputError: the system cannot be used or has no ONNX form, or a file exists or cannot be written. No partial
            output remains.
    """
    began = time.monotonic()
    if options.boxes and not options.single:
        raise InputError("--boxes: crops one mask to its box; add --single.")
    sam, params = load_model(options.system)
    model = torch_model(sam, params, options.system)
    report = [("model", sam.config.name)]
    folder = options.output
    with whole_file(folder / ENCODER) as encoder_file, whole_file(folder / DECODER) as decoder_file:
        _write(export_encoder(model, normalised=options.encoder_input == "normalised"), encoder_file, options.dtype)
        decoder = export_decoder(model, single=options.single, boxes=options.boxes, low_res=options.low_res_masks)
        _write(decoder, decoder_file, "float32" if options.dtype == "int8" else options.dtype)
        if options.check:
            shares = equal_pixels(encoder_file, decoder_file, sam, params)
            report += [(f"equal, {name}", f"{100 * share:.4f} % of the pixels") for name, share in shares.items()]
    report += [
        (name.removesuffix(".onnx"), f"{folder / name}, {(folder / name).stat().st_size / 1e6:.1f} MB")
        for name in (ENCODER, DECODER)
    ]
    return [*report, ("seconds", f"{time.monotonic() - began:.1f}")]


def torch_model(sam: Sam, params: Params, name: str) -> Any:
    """The model in PyTorch, with our parameters and plugin: NanoSam or a class of segment_anything, in eval mode.

    Raises:
        InputError: it has no such class, or ONNX clients cannot use it.
    """
    config = sam.config
    if config.hq or config.sam2:
        kind = "an HQ-SAM" if config.hq else "a SAM 2"
        raise InputError(f"{name}: is {kind}, whose early features SAM's ONNX files have no input for. Give a SAM.")
    if FRAME % config.image_size or (FRAME // config.image_size).bit_count() != 1:
        raise InputError(f"{name}: is for {config.image_size} px; ONNX clients can use 1024, 512, 256 and so on.")
    if config.name == NANO or (config.plugin is not None and config.name == f"stable_{NANO}"):
        model: Any = NanoSam(config.image_size)
    elif encoder_of(config).official is None:
        raise InputError(f"{name}: has an encoder that neither the official packages nor stablesam_torch have.")
    else:
        model = _official(config)
    base = {part: subtree for part, subtree in params.items() if part != "plugin"}
    state = {weight: torch.tensor(array) for weight, array in to_torch(base).items()}
    model.load_state_dict(state, assign=True)
    if config.plugin is not None:
        stabilise(model, plugin_state(params["plugin"], config.plugin, {}))
    return model.eval().requires_grad_(False)


def _official(config: Any) -> Any:
    try:
        from convert import official_torch
    except ImportError as error:
        raise InputError(
            f"{error.name}: is not installed; the graph of {config.name} comes from the official packages: "
            'pip install "stablesam-jax[onnx,parity]".'
        ) from None
    return official_torch.build(config)


def export_encoder(model: Any, *, normalised: bool) -> onnx.ModelProto:
    """The graph of `Encoder`."""
    picture = torch.zeros(1, 3, FRAME, FRAME) if normalised else torch.zeros(96, 128, 3)
    name = NORMALISED if normalised else RAW
    sizes = {} if normalised else {RAW: {0: "height", 1: "width"}}
    return _export(Encoder(model, normalised=normalised), {name: picture}, ["image_embeddings"], sizes)


def export_decoder(model: Any, *, single: bool, boxes: bool, low_res: bool) -> onnx.ModelProto:
    """The graph of `Decoder`."""
    feeds = {
        "image_embeddings": torch.zeros(1, model.prompt_encoder.embed_dim, EMBEDDING, EMBEDDING),
        "point_coords": torch.tensor([[[100.0, 200], [500, 600], [0, 0]]]),
        "point_labels": torch.tensor([[2.0, 3, -1]]),
        "mask_input": torch.zeros(1, 1, MASKS, MASKS),
        "has_mask_input": torch.zeros(1),
        "orig_im_size": torch.tensor([96.0, 128.0]),
    }
    outputs = ["masks", "iou_predictions", *(["low_res_masks"] if low_res else [])]
    outputs += ["xtl", "ytl", "xbr", "ybr"] if boxes else []
    sizes = {name: {1: "num_points"} for name in ("point_coords", "point_labels")}
    sizes["masks"] = {2: "height", 3: "width"}
    return _export(Decoder(model, single=single, boxes=boxes, low_res=low_res), feeds, outputs, sizes)


def _export(
    module: torch.nn.Module, feeds: dict[str, torch.Tensor], outputs: list[str], sizes: dict[str, dict[int, str]]
) -> onnx.ModelProto:
    """Traces a module. Parameters of more than 2 GB need a folder."""
    with tempfile.TemporaryDirectory() as folder, torch.no_grad(), _quiet():
        file = pathlib.Path(folder, "model.onnx")
        torch.onnx.export(
            module.eval(),
            tuple(feeds.values()),
            str(file),
            # The exporter by tracing: twenty times faster than the newer one, and without the source's paths inside.
            dynamo=False,
            opset_version=OPSET,
            input_names=list(feeds),
            output_names=outputs,
            dynamic_axes=sizes,
        )
        return onnx.load(file)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silences warnings of values that tracing makes constant: here only sizes of the model."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.filterwarnings("ignore", module="torch.onnx")
        yield


def _write(model: onnx.ModelProto, file: pathlib.Path, dtype: Dtype) -> None:
    """Writes a model in one file.

    Raises:
        InputError: it is larger than one file can be.
    """
    model = stored(model, dtype)
    if (size := model.ByteSize()) > LARGEST:
        raise InputError(f"{size / 1e9:.1f} GB of weights: an ONNX file holds at most 2 GB; give --dtype float16.")
    onnx.save(model, file)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command; bad input exits with status 2."""
    with exit_on_input_error():
        options = tyro.cli(Options, args=command_line(arguments), prog=called("onnx"))
        for item, value in convert(options):
            print(f"{item:<16} {value}")


if __name__ == "__main__":
    main()
