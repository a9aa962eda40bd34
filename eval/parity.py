"""Is our SAM the official one? Runs both on one picture and bounds the difference at every stage.

    python -m eval.parity --random sam_vit_b
    python -m eval.parity --checkpoint sam_vit_b_01ec64.pth --picture dog.jpg

Exit status 1 where a bound is exceeded, 2 for bad input.
"""

import dataclasses
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import rich.console
import rich.table
import torch
import tyro
from PIL import Image

from convert.rules import to_flax
from convert.sam_to_flax import recognise
from convert.torch_file import read_state
from eval import torch_sam
from stablesam_jax.build import assemble, shapes
from stablesam_jax.config import MODELS, SamConfig
from stablesam_jax.data.readers import read_picture
from stablesam_jax.errors import InputError, exit_on_input_error
from stablesam_jax.model.prompt_encoder import Prompts, sparse_tokens
from stablesam_jax.model.sam import ImageEmbedding, Sam
from stablesam_jax.params import Params
from stablesam_jax.preprocess import preprocess, to_model_frame, upscale_logits

# 451 x 300 pixels: enlarged and padded.
PICTURE = pathlib.Path(__file__).resolve().parents[1] / "stablesam_jax/data/collage_assets/im/chelsea.jpg"
TOKENS = 8  # every prompt is padded to as many, so that the comparison covers padding


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Compares our SAM with segment_anything, both in float32. Give --random or --checkpoint."""

    random: Literal["sam_vit_b", "sam_vit_l", "sam_vit_h"] | None = None
    """Model with random weights in every tensor."""
    checkpoint: pathlib.Path | None = None
    """Official checkpoint, a .pth file; its model is recognised."""
    picture: pathlib.Path = PICTURE
    """Any picture."""
    image_size: int | None = None
    """Side of the model's input in pixels, with --random only; by default the model's own."""
    seed: int = 0
    """Of the weights and of the prompts."""
    threads: int = 1
    """Of PyTorch, whose results depend on them."""


@dataclasses.dataclass(frozen=True)
class Bound:
    """What a difference may be: at its largest, and in the root mean square, which sees broad small faults."""

    largest: float
    rms: float
    relative: bool  # in deviations of the reference


# float32 against float32 on one input: 2 to 4 times the error of PyTorch's float32 against its own float64.
BOUNDS = {
    "model input": Bound(0, 0, relative=False),
    "image embedding": Bound(4e-5, 3e-6, relative=True),
    "sparse embeddings": Bound(5e-6, 1e-6, relative=False),
    "dense embeddings": Bound(5e-6, 1e-6, relative=False),
    "image_pe": Bound(5e-6, 1e-6, relative=False),
    "decoder alone": Bound(1.5e-5, 3e-6, relative=True),
    "low-resolution logits": Bound(2.5e-5, 4e-6, relative=True),
    "IoU predictions": Bound(2e-6, 2e-6, relative=False),
    "full-resolution logits": Bound(1.5e-4, 1.5e-5, relative=True),
}
FLIPS = 1e-5  # share of mask pixels that may differ, each with a logit below the bound of full-resolution logits


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the table."""

    quantity: str
    deviation: float
    largest: float
    largest_bound: float
    rms: float
    rms_bound: float

    @property
    def ok(self) -> bool:
        """Both columns hold; a difference that is not a number does not."""
        return self.largest <= self.largest_bound and self.rms <= self.rms_bound


@dataclasses.dataclass(frozen=True)
class Prompt:
    """One prompt in pixels of the picture."""

    points: np.ndarray  # (k, 2) float64
    labels: np.ndarray  # (k,) int32, 0 or 1
    box: np.ndarray | None  # (2, 2) float64, two corners
    mask: np.ndarray | None  # (4G, 4G) float32 logits


Outputs = dict[str, np.ndarray]


def draw_prompts(seed: int, size_hw: tuple[int, int], mask_size: int) -> list[Prompt]:
    """Every combination that the model distinguishes: points with and without box, box, masks with and without box."""
    rng = np.random.default_rng(seed)
    height, width = size_hw

    def points(count: int) -> np.ndarray:
        return rng.uniform(0, (width, height), (count, 2))

    box = np.array([[0.21, 0.17], [0.74, 0.83]]) * (width, height)
    mask = 8 * smooth_noise(rng, mask_size)
    none, one, three = (np.array(labels, np.int32) for labels in ([], [1], [1, 0, 1]))
    return [
        Prompt(points(0), none, box, None),
        Prompt(points(1), one, None, None),
        Prompt(points(3), three, None, None),
        Prompt(points(3), three, box, None),
        Prompt(points(0), none, None, mask),
        Prompt(points(0), none, box, mask),
    ]


def smooth_noise(rng: np.random.Generator, side: int) -> np.ndarray:
    """(side, side) float32 of mean 0 and deviation 1, smooth over an eighth of the side, as coarse masks are."""
    coarse = Image.fromarray(rng.standard_normal((9, 9), np.float32))
    noise = np.asarray(coarse.resize((side, side), Image.Resampling.BICUBIC))
    return (noise - noise.mean()) / noise.std()


@torch.no_grad()
def run_official(sam: torch_sam.modeling.Sam, picture: np.ndarray, prompts: list[Prompt]) -> Outputs:
    """Runs segment_anything, one prompt at a time.

    Args:
        sam: from `torch_sam.build`.
        picture: (H, W, 3) uint8.
        prompts: N of them.

    Returns:
        model input (S, S, 3), image embedding (G, G, C), sparse embeddings (tokens of all prompts, C), dense embeddings
        (N, G, G, C), image_pe (G, G, C), low-resolution logits (N, 4, 4G, 4G), IoU predictions (N, 4), full-resolution
        logits (N, 4, H, W); "decoder alone" is the low-resolution logits.
    """
    size_hw = picture.shape[:2]
    transform = torch_sam.ResizeLongestSide(sam.image_encoder.img_size)

    def to_model(coords: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(transform.apply_coords(coords, size_hw)).float()[None]

    resized = torch.from_numpy(transform.apply_image(picture)).permute(2, 0, 1)
    pixels = sam.preprocess(resized[None])
    embedding = sam.image_encoder(pixels)
    image_pe = sam.prompt_encoder.get_dense_pe()
    all_sparse, all_dense, all_logits, all_iou = [], [], [], []
    for prompt in prompts:
        points = (to_model(prompt.points), torch.from_numpy(prompt.labels)[None]) if len(prompt.labels) else None
        boxes = None if prompt.box is None else to_model(prompt.box).reshape(1, 4)
        masks = None if prompt.mask is None else torch.from_numpy(prompt.mask)[None, None]
        sparse, dense = sam.prompt_encoder(points, boxes, masks)
        logits, iou = sam.mask_decoder.predict_masks(embedding, image_pe, sparse, dense)
        all_sparse.append(sparse[0])
        all_dense.append(dense[0].permute(1, 2, 0))
        all_logits.append(logits)
        all_iou.append(iou)
    low_res = torch.cat(all_logits)
    outputs = {
        "model input": pixels[0].permute(1, 2, 0),
        "image embedding": embedding[0].permute(1, 2, 0),
        "sparse embeddings": torch.cat(all_sparse),
        "dense embeddings": torch.stack(all_dense),
        "image_pe": image_pe[0].permute(1, 2, 0),
        "decoder alone": low_res,
        "low-resolution logits": low_res,
        "IoU predictions": torch.cat(all_iou),
        "full-resolution logits": sam.postprocess_masks(low_res, resized.shape[1:], size_hw),
    }
    return {name: tensor.numpy() for name, tensor in outputs.items()}


def run_ours(
    sam: Sam, params: Params, picture: np.ndarray, prompts: list[Prompt], official_embedding: np.ndarray
) -> Outputs:
    """Runs our SAM, all prompts at once.

    Args:
        sam: our module.
        params: its parameters.
        picture: (H, W, 3) uint8.
        prompts: N of them.
        official_embedding: (G, G, C), for "decoder alone".

    Returns:
        the arrays of `run_official`.
    """
    variables = {"params": jax.device_put(params)}
    size_hw = picture.shape[:2]
    pixels = preprocess(picture, sam.config)
    batch = stack_prompts(prompts, size_hw, sam.config)
    run = jax.jit(sam.apply, static_argnames=("method", "masks"))

    def embed_prompts(sam: Sam, prompts: Prompts) -> tuple[jax.Array, jax.Array, jax.Array]:
        return *sam.prompt_encoder(prompts), sam.prompt_encoder.get_dense_pe()

    def decode(embedding: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        single, multi = (
            run(variables, ImageEmbedding(embedding[None]), batch, method="decode", masks=m)
            for m in ("single", "multi")
        )
        logits = np.concatenate([single.low_res_masks[0], multi.low_res_masks[0]], axis=1)
        return logits, np.concatenate([single.iou_predictions[0], multi.iou_predictions[0]], axis=1)

    embedding = np.asarray(run(variables, pixels[None], method="encode").features[0])
    sparse, dense, image_pe = run(variables, batch, method=embed_prompts)
    low_res, iou = decode(embedding)
    return {
        "model input": pixels,
        "image embedding": embedding,
        "sparse embeddings": np.asarray(sparse)[np.asarray(batch.valid)],
        "dense embeddings": np.asarray(dense[0]),
        "image_pe": np.asarray(image_pe[0, 0]),
        "decoder alone": decode(official_embedding)[0],
        "low-resolution logits": low_res,
        "IoU predictions": iou,
        "full-resolution logits": upscale_logits(low_res, size_hw, sam.config.image_size),
    }


def stack_prompts(prompts: list[Prompt], size_hw: tuple[int, int], config: SamConfig) -> Prompts:
    """N prompts of one picture in static shapes."""

    def tokens(prompt: Prompt) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        points = to_model_frame(prompt.points, size_hw, config.image_size)
        box = None if prompt.box is None else to_model_frame(prompt.box, size_hw, config.image_size)
        return sparse_tokens(points, prompt.labels, box, length=TOKENS)

    coords, labels, valid = (jnp.stack(arrays)[None] for arrays in zip(*map(tokens, prompts), strict=True))
    absent = np.zeros((config.mask_size, config.mask_size), np.float32)
    masks = [absent if prompt.mask is None else prompt.mask for prompt in prompts]
    masks_valid = jnp.array([[prompt.mask is not None for prompt in prompts]])
    return Prompts(coords, labels, valid, jnp.stack(masks)[None], masks_valid)


def convert(state: Mapping[str, torch.Tensor], config: SamConfig) -> Params:
    """Our parameters from an official state dict."""
    return to_flax({name: tensor.numpy() for name, tensor in state.items()}, shapes(assemble(config)))


def compare(ours: Outputs, theirs: Outputs) -> list[Row]:
    """Rows of the table, in the order of computation.

    Args:
        ours: from `run_ours`.
        theirs: from `run_official`.
    """
    rows = []
    for quantity, bound in BOUNDS.items():
        reference = theirs[quantity].astype(np.float64)
        difference = np.abs(ours[quantity] - reference)
        scale = reference.std() if bound.relative else 1.0
        rms = np.sqrt(np.mean(difference**2))
        rows.append(Row(quantity, reference.std(), difference.max(), bound.largest * scale, rms, bound.rms * scale))
    logits = theirs["full-resolution logits"]
    flipped = (ours["full-resolution logits"] > 0) != (logits > 0)
    largest = np.abs(logits[flipped]).max(initial=0.0)
    rows.append(Row("masks", (logits > 0).std(), largest, rows[-1].largest_bound, flipped.mean(), FLIPS))
    return rows


def load(options: Options) -> tuple[torch_sam.modeling.Sam, Params, SamConfig]:
    """The model that the options name, official and ours, with the same weights.

    Raises:
        InputError: not exactly one model is named, its size cannot be had, or its file cannot be used.
    """
    if options.random is not None and options.checkpoint is None:
        config = _resized(MODELS[options.random], options.image_size)
        official = torch_sam.build(config)
        torch_sam.randomise(official, options.seed)
        return official, convert(official.state_dict(), config), config
    if options.checkpoint is not None and options.random is None and options.image_size is None:
        state, _ = read_state(options.checkpoint)
        try:
            config = recognise({name: array.shape for name, array in state.items()})
            params = to_flax(state, shapes(assemble(config)))
        except InputError as error:
            raise InputError(f"{options.checkpoint}: {error}") from None
        official = torch_sam.build(config)
        official.load_state_dict({name: torch.from_numpy(array) for name, array in state.items()})
        return official, params, config
    raise InputError("Give either --random MODEL, with or without --image-size, or --checkpoint FILE.")


def _resized(config: SamConfig, image_size: int | None) -> SamConfig:
    if image_size is None:
        return config
    if image_size < 16 or image_size % 16:
        raise InputError(f"--image-size {image_size}: give a multiple of 16, the side of a patch in pixels.")
    return dataclasses.replace(config, image_size=image_size)


def print_table(rows: list[Row]) -> None:
    """One line for each quantity."""
    caption = "masks: the largest logit of a pixel that differs, and the share of such pixels"
    table = rich.table.Table("quantity", "std", "max abs", "bound", "rms", "bound", "", caption=caption)
    for row in rows:
        numbers = (row.deviation, row.largest, row.largest_bound, row.rms, row.rms_bound)
        table.add_row(row.quantity, *(f"{number:.2g}" for number in numbers), "ok" if row.ok else "FAIL")
    rich.console.Console().print(table)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    options = tyro.cli(Options, args=arguments, prog="python -m eval.parity")
    torch.set_num_threads(options.threads)
    with exit_on_input_error():
        official, params, config = load(options)
        picture = read_picture(options.picture)
    prompts = draw_prompts(options.seed, picture.shape[:2], config.mask_size)
    theirs = run_official(official, picture, prompts)
    with jax.default_matmul_precision("highest"):  # products in TF32 or bfloat16 are not float32
        ours = run_ours(assemble(config), params, picture, prompts, theirs["image embedding"])
    rows = compare(ours, theirs)
    print_table(rows)
    return 0 if all(row.ok for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
