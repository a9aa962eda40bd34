"""segment_anything's `Sam` and its three parts, with the same inputs and outputs, and the registry of models."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from stablesam_jax.compat.tensors import CHANNELS_FIRST, CHANNELS_LAST, Tensor, array, cpu_device, like, tensor
from stablesam_jax.config import MASK_TOKENS
from stablesam_jax.errors import InputError
from stablesam_jax.model import sam as linen
from stablesam_jax.model.mask_decoder import MaskChoice
from stablesam_jax.model.prompt_encoder import Prompts, token_count
from stablesam_jax.model.sam import ImageEmbedding
from stablesam_jax.params import Params
from stablesam_jax.predict import compiled
from stablesam_jax.predict.decode import decode
from stablesam_jax.predict.encode import PICTURES
from stablesam_jax.predict.postprocess import Size, upscale_logits, upscale_masks
from stablesam_jax.predict.slots import SLOTS, Slots
from stablesam_jax.predict.user_prompts import read_prompts
from stablesam_jax.prompts import Prompt

FARTHEST = 0.75  # of a box in the model's frame from its centre, in sides: a quarter of a side outside
_ENCODED_AT_ONCE = Slots((1, 2, PICTURES))


class Sam:
    """A model by the names of segment_anything's `Sam` (modeling/sam.py)."""

    mask_threshold = 0.0  # logits above are the object
    image_format = "RGB"

    def __init__(self, sam: linen.Sam, params: Params, *, shared_picture: bool = False):
        """Prepares a model.

        Args:
            sam, params: from `load_model`.
            shared_picture: each `SamPredictor` of it has one picture for all threads, the latest, as segment_anything's
                has. For programs with a pool of threads, which set a picture in one and prompt it in another.

        Raises:
            InputError: it is a SAM 2, which segment_anything's classes do not fit.
        """
        if sam.config.sam2:
            raise InputError(f"{sam.config.name}: segment_anything's classes do not fit a SAM 2; use Predictor.")
        self.sam = sam
        self.params = jax.device_put(params)
        self.shared_picture = shared_picture
        self._image_encoder = ImageEncoder(self)
        self._prompt_encoder = PromptEncoder(self)
        self._mask_decoder = MaskDecoder(self)

    @property
    def image_encoder(self) -> "ImageEncoder":
        """Pictures -> embeddings."""
        return self._image_encoder

    @property
    def prompt_encoder(self) -> "PromptEncoder":
        """Prompts -> tokens and maps."""
        return self._prompt_encoder

    @property
    def mask_decoder(self) -> "MaskDecoder":
        """Embeddings of pictures and prompts -> masks."""
        return self._mask_decoder

    @property
    def pixel_mean(self) -> Tensor:
        """(3, 1, 1) float32."""
        return tensor(self._of_channels(self.sam.config.pixel_mean))

    @property
    def pixel_std(self) -> Tensor:
        """(3, 1, 1) float32."""
        return tensor(self._of_channels(self.sam.config.pixel_std))

    @property
    def device(self) -> Any:
        """The device of returned tensors: the CPU."""
        return cpu_device()

    def to(self, *_: Any, **__: Any) -> "Sam":
        """Returns itself: JAX decides where the model runs."""
        return self

    cuda = cpu = to

    def eval(self) -> "Sam":
        """Itself."""
        return self

    def preprocess(self, x: Tensor) -> Tensor:
        """(..., 3, H, W) pixels of 0..255, resized -> (..., 3, S, S) float32, normalised and padded.

        Raises:
            InputError: the picture is larger than S.
        """
        config, pixels = self.sam.config, array(x)
        below, beside = (config.image_size - side for side in pixels.shape[-2:])
        if min(below, beside) < 0:
            raise InputError(
                f"the picture has {pixels.shape[-2]} x {pixels.shape[-1]} pixels, more than the {config.image_size} "
                "of the model's input; resize it with SamPredictor.transform."
            )
        normalised = (pixels - self._of_channels(config.pixel_mean)) / self._of_channels(config.pixel_std)
        return like(x, np.pad(normalised, [(0, 0)] * (pixels.ndim - 2) + [(0, below), (0, beside)]))

    def postprocess_masks(self, masks: Tensor, input_size: Sequence[int], original_size: Sequence[int]) -> Tensor:
        """(..., 4G, 4G) logits -> (..., H, W) logits of the picture.

        Args:
            masks: from the mask decoder.
            input_size: height and width of the picture in the model's input.
            original_size: of the picture.
        """
        return like(masks, self.upscale(array(masks), size(input_size), size(original_size), return_logits=True))

    def upscale(self, masks: np.ndarray, input_size: Size, original_size: Size, *, return_logits: bool) -> np.ndarray:
        """The same of arrays: (..., H, W) logits, or bool where they are above `mask_threshold`."""
        frame = self.sam.config.frame
        if max(input_size) > frame.size or min(*input_size, *original_size) < 1:
            faulty = f"input_size {input_size}, original_size {original_size}"
            raise InputError(f"{faulty}: the sides of input_size are at most {frame.size}.")
        if not return_logits and self.mask_threshold == 0:
            return upscale_masks(masks, original_size, frame, input_size)
        logits = upscale_logits(masks, original_size, frame, input_size)
        return logits if return_logits else logits > self.mask_threshold

    def __call__(self, batched_input: Sequence[Mapping[str, Any]], multimask_output: bool) -> list[dict[str, Tensor]]:
        """Masks for pictures and their prompts.

        Args:
            batched_input: for each picture its `image` (3, H, W), resized, its `original_size`, and `point_coords`,
                `point_labels`, `boxes` and `mask_inputs`, see `SamPredictor.predict_torch`.
            multimask_output: three masks.

        Returns:
            for each picture `masks` (N, M, H, W) bool, `iou_predictions` (N, M), `low_res_logits` (N, M, 4G, 4G).
        """
        pictures = [array(self.preprocess(record["image"])) for record in batched_input]
        embeddings = encode(self, np.stack(pictures)) if pictures else ()
        answers = []
        for record, embedding in zip(batched_input, embeddings, strict=True):
            shown = Shown(fuse(self, embedding), size(record["original_size"]), size(record["image"].shape[-2:]))
            coords, labels, boxes, mask_inputs = (
                record.get(name) for name in ("point_coords", "point_labels", "boxes", "mask_inputs")
            )
            prompts = read(self, shown, coords, labels, boxes, mask_inputs)
            masks, iou, low_res = answer(self, shown, prompts, multimask_output)
            answers.append({"masks": tensor(masks), "iou_predictions": tensor(iou), "low_res_logits": tensor(low_res)})
        return answers

    forward = __call__

    @staticmethod
    def _of_channels(numbers: tuple[float, ...]) -> np.ndarray:
        return np.array(numbers, np.float32)[:, None, None]


class ImageEncoder:
    """`sam.image_encoder`."""

    def __init__(self, of: Sam):
        self._of = of

    @property
    def img_size(self) -> int:
        """Side of the model's input in pixels."""
        return self._of.sam.config.image_size

    def __call__(self, x: Tensor) -> Any:
        """(B, 3, S, S) from `Sam.preprocess` -> (B, C, G, G) float32; of HQ-SAM with a list of its early features."""
        found = encode(self._of, array(x))
        features = like(x, np.concatenate([channels_first(one.features) for one in found]))
        if not self._of.sam.config.hq:
            return features
        return features, [like(x, np.concatenate([np.asarray(one.early, np.float32) for one in found]))]

    forward = __call__


class PromptEncoder:
    """`sam.prompt_encoder`."""

    def __init__(self, of: Sam):
        self._of = of
        config = of.sam.config
        self.embed_dim = config.embedding_width
        self.image_embedding_size = config.grid_size, config.grid_size
        self.input_image_size = config.image_size, config.image_size
        self.mask_input_size = config.mask_size, config.mask_size

    def __call__(
        self, points: tuple[Tensor, Tensor] | None, boxes: Tensor | None, masks: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Embeds prompts.

        Args:
            points: (N, k, 2) in the model's frame and their labels (N, k).
            boxes: (N, 4) in the model's frame.
            masks: (N, 1, 4G, 4G) logits.

        Returns:
            sparse (N, K, C) and dense (N, C, G, G) embeddings.
        """
        coords, labels = points or (None, None)
        prompts = read(self._of, None, coords, labels, boxes, masks)
        if not prompts:
            width, grid = self.embed_dim, self.image_embedding_size
            return tensor(np.zeros((0, 0, width), np.float32)), tensor(np.zeros((0, width, *grid), np.float32))
        embed = compiled.of_base(self._of.sam, _prompt_encoder)
        sparse, dense = SLOTS.answer(functools.partial(embed, self._of.params), prompts)
        tokens = token_count(prompts[0].points, prompts[0].box)  # the same for all prompts
        return tensor(sparse[:, :tokens]), tensor(channels_first(dense))

    forward = __call__

    def get_dense_pe(self) -> Tensor:
        """(1, C, G, G) positional encoding of the image embedding."""
        return tensor(channels_first(compiled.of_base(self._of.sam, _dense_pe)(self._of.params)))


class MaskDecoder:
    """`sam.mask_decoder`."""

    num_mask_tokens = MASK_TOKENS.stop - MASK_TOKENS.start
    num_multimask_outputs = num_mask_tokens - 1

    def __init__(self, of: Sam):
        self._of = of

    def __call__(
        self,
        image_embeddings: Tensor,
        image_pe: Tensor,
        sparse_prompt_embeddings: Tensor,
        dense_prompt_embeddings: Tensor,
        multimask_output: bool,
        hq_token_only: bool = False,
        interm_embeddings: Sequence[Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Masks of one picture.

        Args:
            image_embeddings: (1, C, G, G).
            image_pe: (1, C, G, G) from `PromptEncoder.get_dense_pe`.
            sparse_prompt_embeddings: (N, K, C), N at least 1.
            dense_prompt_embeddings: (N, C, G, G).
            multimask_output: three masks.
            hq_token_only, interm_embeddings: of HQ-SAM, see `ImageEncoder`.

        Returns:
            (N, M, 4G, 4G) logits and (N, M) predicted IoU.
        """
        early = None if interm_embeddings is None else interm_embeddings[0]
        embedding = fuse(self._of, embedding_of(self._of, image_embeddings, early))
        pe, sparse, dense = array(image_pe), array(sparse_prompt_embeddings), array(dense_prompt_embeddings)
        dense = np.broadcast_to(dense, (len(sparse), *dense.shape[1:])).transpose(CHANNELS_LAST)
        tokens, length = sparse.shape[1], SLOTS.tokens_up_to(sparse.shape[1])[-1]
        sparse = np.pad(sparse, ((0, 0), (0, length - tokens), (0, 0)))
        valid = np.broadcast_to(np.arange(length) < tokens, (len(sparse), length))
        make = functools.partial(_mask_decoder, choice=_choice(multimask_output), hq_token_only=hq_token_only)
        program = compiled.of_decoder(self._of.sam, make)
        answers = []
        for turn in SLOTS.turns(len(sparse)):
            inputs = (pe.transpose(CHANNELS_LAST), sparse[turn], dense[turn], valid[turn])
            found = jax.device_get(program(self._of.params, embedding, inputs))
            answers.append([part[: len(set(turn))] for part in found])
        masks, iou = (np.concatenate(parts) for parts in zip(*answers, strict=True))
        return tensor(masks), tensor(iou)

    forward = __call__


@dataclasses.dataclass(frozen=True, eq=False)
class Shown:
    """A picture, ready to be prompted."""

    embedding: ImageEmbedding  # B = 1, of HQ-SAM fused
    original_size: Size
    input_size: Size  # in the model's input, without padding


def encode(of: Sam, pictures: np.ndarray) -> tuple[ImageEmbedding, ...]:
    """(B, 3, S, S), any B -> an embedding of each, not fused."""
    side = of.sam.config.image_size
    if pictures.shape[1:] != (3, side, side):
        raise InputError(f"pictures have shape {pictures.shape}; expected (B, 3, {side}, {side}), see Sam.preprocess.")
    program = compiled.of_base(of.sam, _image_encoder)
    found: list[ImageEmbedding] = []
    for turn in _ENCODED_AT_ONCE.turns(len(pictures)):
        batch = program(of.params, pictures[turn].transpose(CHANNELS_LAST))
        found += [
            jax.tree.map(lambda leaf, place=place: leaf[place : place + 1], batch) for place in range(len(set(turn)))
        ]
    return tuple(found)


def embedding_of(of: Sam, features: Tensor, early: Tensor | None = None) -> ImageEmbedding:
    """(1, C, G, G) or (C, G, G), and of HQ-SAM (1, G, G, any) -> an embedding in the model's dtype, not fused."""
    config, values = of.sam.config, array(features)
    expected = config.embedding_width, config.grid_size, config.grid_size
    if values.shape not in (expected, (1, *expected)):
        raise InputError(f"features have shape {values.shape}; those of this model have {(1, *expected)}.")
    maps = jnp.asarray(values.reshape(1, *expected).transpose(CHANNELS_LAST), config.dtype)
    return ImageEmbedding(maps, None if early is None else jnp.asarray(array(early), config.dtype))


def fuse(of: Sam, embedding: ImageEmbedding) -> ImageEmbedding:
    """Puts HQ-SAM's features of the picture in the place of the early ones, see `Sam.fuse`."""
    return compiled.of_base(of.sam, _fusion)(of.params, embedding) if of.sam.config.hq else embedding


def read(
    of: Sam,
    shown: Shown | None,
    point_coords: Tensor | None,
    point_labels: Tensor | None,
    boxes: Tensor | None,
    mask_input: Tensor | None,
) -> list[Prompt]:
    """Checks N prompts in the model's frame.

    Args:
        of: the model.
        shown: the picture, within which they must be; None: anywhere in the model's input.
        point_coords, point_labels, boxes, mask_input: see `SamPredictor.predict_torch`.

    Raises:
        InputError: they are outside, or malformed.
    """
    side = of.sam.config.image_size
    size_hw, margin = (side, side), 1.0
    if shown is not None:  # a margin of one pixel of the picture may be several pixels of the input, after rounding
        size_hw, margin = shown.input_size, 1 + float(np.max(np.divide(shown.input_size, shown.original_size)))
    given = [None if each is None else array(each) for each in (point_coords, point_labels, boxes, mask_input)]
    prompts, is_list = read_prompts(*given, size_hw=size_hw, mask_size=of.sam.config.mask_size, margin=margin)
    if not is_list:
        raise InputError("the arguments are of one prompt; give each of them one axis more, as box[None].")
    for index, prompt in enumerate(prompts):
        # Some clients assume an input of 1024 pixels: some of their boxes reach far beyond a smaller one.
        if prompt.box is not None and not (np.abs(prompt.box - side / 2) <= FARTHEST * side).all():
            raise InputError(
                f"boxes[{index}] {prompt.box.tolist()} reaches far beyond the model's input of {side} pixels; bring it "
                "there with SamPredictor.transform, or load the model with the image_size that the program assumes."
            )
    return prompts


def answer(
    of: Sam,
    shown: Shown,
    prompts: Sequence[Prompt],
    multimask_output: bool,
    return_logits: bool = False,
    hq_token_only: bool = False,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(N, M, H, W), (N, M) and (N, M, 4G, 4G) for prompts in the model's frame."""
    low_res, iou = decode(of.sam, of.params, shown.embedding, prompts, _choice(multimask_output), hq_token_only)
    masks = of.upscale(low_res, shown.input_size, shown.original_size, return_logits=return_logits)
    return masks, iou, low_res


def channels_first(maps: Any) -> np.ndarray:
    """(B, H, W, C) of any dtype -> (B, C, H, W) float32."""
    return np.ascontiguousarray(np.asarray(maps, np.float32).transpose(CHANNELS_FIRST))


def size(height_width: Iterable[Any]) -> Size:
    """Height and width as whole numbers, from a torch.Size or an array."""
    height, width = map(int, height_width)
    return height, width


def _choice(multimask_output: bool) -> MaskChoice:
    return "multi" if multimask_output else "single"


@functools.lru_cache(compiled.KEPT)
def _image_encoder(sam: linen.Sam) -> Callable[[Params, np.ndarray], ImageEmbedding]:
    return jax.jit(lambda params, pictures: sam.apply({"params": params}, pictures, method="encode"))


@functools.lru_cache(compiled.KEPT)
def _fusion(sam: linen.Sam) -> Callable[[Params, ImageEmbedding], ImageEmbedding]:
    return jax.jit(lambda params, embedding: sam.apply({"params": params}, embedding, method="fuse"))


@functools.lru_cache(compiled.KEPT)
def _prompt_encoder(sam: linen.Sam) -> Callable[[Params, Prompts], tuple[jax.Array, jax.Array]]:
    """(parameters, prompts) -> sparse (N, K, C), dense (N, G, G, C)."""

    def embed(params: Params, prompts: Prompts) -> Any:
        found: Any = sam.apply({"params": params}, prompts, method=lambda sam, prompts: sam.prompt_encoder(prompts))
        sparse, dense = found
        return sparse[0], jnp.broadcast_to(dense[0], (sparse.shape[1], *dense.shape[2:]))

    return jax.jit(embed)


@functools.lru_cache(compiled.KEPT)
def _dense_pe(sam: linen.Sam) -> Callable[[Params], jax.Array]:
    """(parameters) -> (1, G, G, C)."""
    return jax.jit(
        lambda params: sam.apply({"params": params}, method=lambda sam: sam.prompt_encoder.get_dense_pe()[0])
    )


@functools.lru_cache(compiled.KEPT)
def _mask_decoder(sam: linen.Sam, *, choice: MaskChoice, hq_token_only: bool) -> Callable[..., Any]:
    """(variables, fused embedding, (positional encoding, sparse, dense, valid)) -> (N, M, 4G, 4G), (N, M)."""

    def run(sam: linen.Sam, embedding: ImageEmbedding, inputs: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
        dtype = embedding.features.dtype
        pe, sparse, dense, valid = inputs
        masks = sam.mask_decoder(
            embedding.features,
            pe[None].astype(dtype),
            sparse[None].astype(dtype),
            dense[None].astype(dtype),
            valid[None],
            hq_features=embedding.hq_features,
            masks=choice,
            hq_token_only=hq_token_only,
            hooks=sam._hooks(),
        )
        return masks.low_res_masks[0], masks.iou_predictions[0]

    return jax.jit(lambda variables, embedding, inputs: sam.apply(variables, embedding, inputs, method=run))
