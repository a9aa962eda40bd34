"""Writes a model as two programs that JAX alone can run, without this package.

python -m convert.to_stablehlo --system stable_sam_nano --output runs/stablehlo

Numbers of pictures, prompts and tokens are symbolic: one file takes any. Parameters are constants of the programs.
"""

import dataclasses
import pathlib
import shutil
from collections.abc import Sequence
from typing import Any, Literal

import jax
import numpy as np
import tyro
from jax import export

from stablesam_jax.build import load_model
from stablesam_jax.commands import called, command_line
from stablesam_jax.config import SamConfig
from stablesam_jax.errors import InputError, exit_on_input_error
from stablesam_jax.files.disk import beside, new_path, sync, writing
from stablesam_jax.model.prompt_encoder import Prompts
from stablesam_jax.model.sam import ImageEmbedding, Sam
from stablesam_jax.params import Params

ENCODER, DECODER, README = "encoder", "decoder", "README.md"
SUFFIX = ".jaxexport"
MOST_BYTES = 2**31  # a flatbuffer's offsets are signed and of 32 bits
Platform = Literal["cpu", "cuda", "rocm", "tpu"]
Arrays = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Writes encoder and decoder of a model as serialised programs of jax.export and as StableHLO."""

    system: str
    """Shipped model, checkpoint folder, or BASE+PLUGIN_FILE."""
    output: pathlib.Path
    """New folder."""
    platforms: tuple[Platform, ...] = ("cpu",)
    """Kinds of devices that the programs will run on, one or more."""


def exported(sam: Sam, params: Params, platforms: Sequence[Platform]) -> dict[str, export.Exported]:
    """Encoder and decoder of a model, of plain arrays by name.

    The encoder: {"pictures": (b, S, S, 3) float32} to {"features", "hq_features" of an HQ-SAM}. The decoder: these, and
    {"coords": (b, n, k, 2) float32, "labels": (b, n, k) int32, "valid": (b, n, k) bool, "masks": (b, n, 4G, 4G)
    float32, "masks_valid": (b, n) bool} to {"low_res_masks": (b, n, 4, 4G, 4G), "iou_predictions": (b, n, 4)}, and
    {"hq_masks": (b, n, 1, 4G, 4G)} of an HQ-SAM.

    Args:
        sam, params: from `load_model`.
        platforms: as of Options.
    """
    b, n, k = export.symbolic_shape("b, n, k")
    config = sam.config
    variables = {"params": jax.device_get(params)}
    at_once = "cpu" not in platforms

    def encode(pictures: Arrays) -> Arrays:
        embedding = sam.apply(variables, pictures["pictures"], method=lambda sam, x: sam.fuse(sam.encode(x)))
        return _given({"features": embedding.features, "hq_features": embedding.hq_features})

    def decode(embedding: Arrays, prompts: Arrays) -> Arrays:
        masks: Any = sam.apply(
            variables,
            ImageEmbedding(embedding["features"], hq_features=embedding.get("hq_features")),
            Prompts(**prompts),
            masks="all",
            at_once=at_once,
            method="decode",
        )
        return _given({name: getattr(masks, name) for name in ("low_res_masks", "iou_predictions", "hq_masks")})

    pictures = {"pictures": jax.ShapeDtypeStruct((b, config.image_size, config.image_size, 3), np.float32)}
    prompts = {
        "coords": jax.ShapeDtypeStruct((b, n, k, 2), np.float32),
        "labels": jax.ShapeDtypeStruct((b, n, k), np.int32),
        "valid": jax.ShapeDtypeStruct((b, n, k), bool),
        "masks": jax.ShapeDtypeStruct((b, n, config.mask_size, config.mask_size), np.float32),
        "masks_valid": jax.ShapeDtypeStruct((b, n), bool),
    }
    encoder = export.export(jax.jit(encode), platforms=platforms)(pictures)
    embedding = jax.tree.unflatten(
        encoder.out_tree, [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in encoder.out_avals]
    )
    return {ENCODER: encoder, DECODER: export.export(jax.jit(decode), platforms=platforms)(embedding, prompts)}


def _given(arrays: dict[str, jax.Array | None]) -> Arrays:
    return {name: array for name, array in arrays.items() if array is not None}


def write(output: pathlib.Path, system: str, config: SamConfig, programs: dict[str, export.Exported]) -> None:
    """Writes a new folder, whole or not at all.

    Raises:
        InputError: it exists, cannot be written, or a program is too large for its format.
    """
    temporary = beside(new_path(output))
    try:
        with writing(output):
            temporary.mkdir(parents=True)
            for name, program in programs.items():
                module = program.mlir_module_serialized
                if len(module) >= MOST_BYTES:
                    raise InputError(f"{system}: its {name} has {len(module):,} bytes, more than the format's 2 GiB.")
                (temporary / f"{name}{SUFFIX}").write_bytes(program.serialize())
                (temporary / f"{name}.stablehlo").write_bytes(module)
            (temporary / README).write_text(readme(system, config, programs), encoding="utf-8")
            for path in (*temporary.iterdir(), temporary):
                sync(path)
            temporary.rename(output)
            sync(output.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def readme(system: str, config: SamConfig, programs: dict[str, export.Exported]) -> str:
    """How to call the programs, as Markdown with one example that runs."""
    shapes = "\n".join(
        f"- `{name}` -> {', '.join(f'`{key}` {aval.str_short()}' for key, aval in _outputs(program).items())}"
        for name, program in programs.items()
    )
    hq = "hq_masks, the HQ token's mask, is apart: add it to a mask of low_res_masks.\n" if config.hq else ""
    return f"""# {system} as StableHLO

Runs on {", ".join(programs[DECODER].platforms)} with jax {jax.__version__} or later, see "Compatibility guarantees" in
jax.export. The `.stablehlo` files hold the same programs as portable StableHLO bytecode for other compilers; their
inputs are those of `program.in_avals`, after one for each of the symbols b, n, k. Sizes: b pictures, n prompts each, k
tokens each; any, at every call.

{shapes}

low_res_masks are logits, above 0 on the object: first the single mask, then the three of multimask_output.
{hq}
```python
import numpy as np
from jax import export
from PIL import Image

def load(file):
    return export.deserialize(bytearray(open(file, "rb").read()))

encoder, decoder = load("{ENCODER}{SUFFIX}"), load("{DECODER}{SUFFIX}")
SIDE, MASK = {config.image_size}, {config.mask_size}

picture = Image.open("picture.jpg").convert("RGB")
scale = SIDE / max(picture.size)
width, height = (max(int(side * scale + 0.5), 1) for side in picture.size)
pixels = np.asarray(picture.resize((width, height), Image.Resampling.BILINEAR), np.float32)
frame = np.zeros((1, SIDE, SIDE, 3), np.float32)
frame[0, :height, :width] = (pixels - np.float32({list(config.pixel_mean)})) / np.float32({list(config.pixel_std)})
embedding = encoder.call({{"pictures": frame}})

# A box is two tokens of labels 2 and 3. Points have label 1 (object) or 0 (beside it); points without a box are
# followed by a token (0, 0) of label -1. Coordinates are pixels of the frame: x * width / picture.width, and so on.
box = np.float32([[[[40, 30], [300, 250]]]]) * scale
prompts = {{
    "coords": box, "labels": np.int32([[[2, 3]]]), "valid": np.ones((1, 1, 2), bool),
    "masks": np.zeros((1, 1, MASK, MASK), np.float32), "masks_valid": np.zeros((1, 1), bool),  # none
}}
found = decoder.call(embedding, prompts)
logits = np.asarray(found["low_res_masks"])[0, 0, 0]
large = Image.fromarray(logits).resize((SIDE, SIDE), Image.Resampling.BILINEAR).crop((0, 0, width, height))
mask = np.asarray(large.resize(picture.size, Image.Resampling.BILINEAR)) > 0
print(mask.shape, mask.sum(), float(found["iou_predictions"][0, 0, 0]))
```
"""


def _outputs(program: export.Exported) -> dict[str, jax.core.ShapedArray]:
    return jax.tree.unflatten(program.out_tree, program.out_avals)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command."""
    with exit_on_input_error():
        options = tyro.cli(Options, args=command_line(arguments), prog=called("stablehlo"))
        new_path(options.output)
        if not options.platforms:
            raise InputError("--platforms: give at least one of cpu, cuda, rocm, tpu.")
        sam, params = load_model(options.system)
        if sam.config.sam2:
            raise InputError(
                f"{options.system}: is a SAM 2, whose frame differs; export your own program, docs/jax.md."
            )
        programs = exported(sam, params, options.platforms)
        write(options.output, options.system, sam.config, programs)
        sizes = ", ".join(f"{path.name} {path.stat().st_size:,} bytes" for path in sorted(options.output.iterdir()))
        print(f"written: {options.output} ({sizes})")


if __name__ == "__main__":
    main()
