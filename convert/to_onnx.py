"""Writes a model as ONNX files for the programs that run SAM in onnxruntime: an encoder and a decoder.

python -m convert.to_onnx --system sam_nano+stable_sam_nano --output runs/onnx --single

Names, shapes and habits are those of segment_anything's exporter, see `onnx_graph`; of a SAM 2 those of samexporter's,
see `onnx_sam2`. The plugin is inside.
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

from convert import official_sam2, onnx_check, onnx_sam2_check
from convert.flax_to_torch import NANO, plugin_state
from convert.onnx_graph import EARLY, EMBEDDING, FRAME, MASKS, Decoder, Encoder
from convert.onnx_sam2 import MAPS, Sam2Decoder, Sam2Encoder
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
    """One mask a prompt: of a single point the best of three, else the single mask. Otherwise all four, of a SAM 2 the
    three for ambiguous prompts."""
    boxes: bool = False
    """CVAT's outputs, with --single: the mask as bytes, cropped to its box, and the edges xtl, ytl, xbr, ybr."""
    low_res_masks: bool = True
    """The third output. samexporter makes its masks of it, which for sam_nano is less exact than the first output."""
    encoder_input: Literal["raw", "normalised"] | None = None
    """Input of the encoder. raw, the default: `input_image`, (H, W, 3) of 0..255, any size. normalised: `x`,
    (1, 3, 1024, 1024), as for osam. A SAM 2 always has `image`, (1, 3, S, S), normalised."""
    dtype: Dtype = "float32"
    """How weights are stored: int8 only in the encoder. Arithmetic is float32 in any case."""
    check: bool = False
    """Compares the masks of both files with those of Predictor on included pictures, and reports the share of equal
    pixels."""


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
    is_sam2 = sam.config.sam2
    if is_sam2 and (options.boxes or not options.low_res_masks or options.encoder_input == "raw"):
        raise InputError(
            f"{options.system}: is a SAM 2, whose clients take one form of files; leave out --boxes, "
            "--no-low-res-masks and --encoder-input raw."
        )
    model = torch_model(sam, params, options.system)
    report = [("model", sam.config.name)]
    folder = options.output
    with whole_file(folder / ENCODER) as encoder_file, whole_file(folder / DECODER) as decoder_file:
        if is_sam2:
            encoder, decoder = export_sam2(model, single=options.single)
        else:
            encoder = export_encoder(model, normalised=options.encoder_input == "normalised")
            decoder = export_decoder(model, single=options.single, boxes=options.boxes, low_res=options.low_res_masks)
        _write(encoder, encoder_file, options.dtype)
        _write(decoder, decoder_file, "float32" if options.dtype == "int8" else options.dtype)
        if options.check:
            equal_pixels = onnx_sam2_check.equal_pixels if is_sam2 else onnx_check.equal_pixels
            shares = equal_pixels(encoder_file, decoder_file, sam, params)
            report += [(f"equal, {name}", f"{100 * share:.4f} % of the pixels") for name, share in shares.items()]
    report += [
        (name.removesuffix(".onnx"), f"{folder / name}, {(folder / name).stat().st_size / 1e6:.1f} MB")
        for name in (ENCODER, DECODER)
    ]
    return [*report, ("seconds", f"{time.monotonic() - began:.1f}")]


def torch_model(sam: Sam, params: Params, name: str) -> Any:
    """The model in PyTorch, with our parameters and plugin, in eval mode.

    Returns:
        NanoSam, or a class of segment_anything or sam2.

    Raises:
        InputError: it has no such class, or ONNX clients cannot use it.
    """
    config = sam.config
    if config.sam2 and config.plugin is not None and config.plugin.first_pass is not None:
        raise InputError(f"{name}: its plugin has a first pass, which PyTorch's SAM 2 cannot have. Give one without.")
    if not config.sam2 and (FRAME % config.image_size or (FRAME // config.image_size).bit_count() != 1):
        raise InputError(f"{name}: is for {config.image_size} px; ONNX clients can use 1024, 512, 256 and so on.")
    if config.name in (NANO, f"stable_{NANO}"):
        model: Any = NanoSam(config.image_size)
    elif encoder_of(config).official is None:
        raise InputError(f"{name}: has an encoder that neither the official packages nor stablesam_torch have.")
    else:
        model = _official(config)
    base = {part: subtree for part, subtree in params.items() if part != "plugin"}
    state = {weight: torch.tensor(array) for weight, array in to_torch(base).items()}
    model.load_state_dict(state, assign=True, strict=not config.sam2)  # that of a SAM 2 has no weights for videos
    if config.plugin is not None:
        stabilise(model, plugin_state(params["plugin"], config.plugin, {}))
    return model.eval().requires_grad_(False)


def _official(config: Any) -> Any:
    if config.sam2:
        return official_sam2.build(config)
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
    outputs = ["image_embeddings", *([EARLY] if _early_width(model) else [])]
    return _export(Encoder(model, normalised=normalised), {name: picture}, outputs, sizes)


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
    if width := _early_width(model):
        feeds[EARLY] = torch.zeros(1, 1, EMBEDDING, EMBEDDING, width)
    outputs = ["masks", "iou_predictions", *(["low_res_masks"] if low_res else [])]
    outputs += ["xtl", "ytl", "xbr", "ybr"] if boxes else []
    sizes = {name: {1: "num_points"} for name in ("point_coords", "point_labels")}
    sizes |= {"masks": {2: "height", 3: "width"}, EARLY: {0: "num_layers"}}
    graph = _export(Decoder(model, single=single, boxes=boxes, low_res=low_res), feeds, outputs, sizes)
    if EARLY in feeds:  # the second in HQ-SAM's own exporter; some clients feed by position
        inputs = graph.graph.input
        inputs.insert(1, inputs.pop())
    return graph


def _early_width(model: Any) -> int:
    """Channels of the early features that an HQ-SAM's decoder reads, 0 of another model."""
    compress = getattr(model.mask_decoder, "compress_vit_feat", None)
    return 0 if compress is None else compress[0].in_channels


def export_sam2(model: Any, *, single: bool) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """The graphs of `Sam2Encoder` and `Sam2Decoder`."""
    encoder = Sam2Encoder(model)
    picture = torch.zeros(1, 3, model.image_size, model.image_size)
    stride_4, stride_8, embedding = encoder(picture)
    feeds = {
        "image_embed": embedding,
        "high_res_feats_0": stride_4,
        "high_res_feats_1": stride_8,
        "point_coords": torch.tensor([[[10.0, 20], [50, 60]]]),
        "point_labels": torch.tensor([[2.0, 3]]),
        "mask_input": torch.zeros(1, 1, *stride_4.shape[2:]),
        "has_mask_input": torch.zeros(1),
    }
    sizes = {name: {0: "num_labels", 1: "num_points"} for name in ("point_coords", "point_labels")}
    sizes |= {name: {0: "num_labels"} for name in ("mask_input", "has_mask_input", "masks", "iou_predictions")}
    outputs = ["masks", "iou_predictions"]
    return (
        _export(encoder, {"image": picture}, list(MAPS), {}),
        _export(Sam2Decoder(model, single=single), feeds, outputs, sizes),
    )


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
