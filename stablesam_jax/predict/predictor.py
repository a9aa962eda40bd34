"""What SamPredictor does (segment_anything/predictor.py), for lists of prompts and pictures too, and `predict_stable`.

predictor = Predictor(*load_model("sam_nano"))
predictor.set_image("dog.jpg")
masks, iou_predictions, low_res_masks = predictor.predict(box=[75, 60, 420, 380], multimask_output=False)
"""

import dataclasses
import functools
import itertools
import os
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike
from PIL import Image

from stablesam_jax.build import assemble
from stablesam_jax.errors import InputError
from stablesam_jax.files import embedding_file
from stablesam_jax.files.picture_file import MAX_PIXELS, read_picture
from stablesam_jax.metrics import stability
from stablesam_jax.model.mask_decoder import MaskChoice
from stablesam_jax.model.prompt_encoder import Prompts, sparse_tokens, token_count
from stablesam_jax.model.sam import ImageEmbedding, Sam
from stablesam_jax.params import Params
from stablesam_jax.predict import compiled
from stablesam_jax.predict.postprocess import upscale_logits, upscale_masks
from stablesam_jax.predict.preprocess import check_picture, preprocess, resized_size, to_model_frame
from stablesam_jax.predict.user_prompts import Points, read_prompts
from stablesam_jax.prompts import JITTER_LIMIT, Prompt, jittered_box

PROMPT_SLOTS = (1, 2, 4, 8, 16, 24)  # numbers of prompts that programs are compiled for; more are decoded in turns
FEWEST_TOKENS = 4  # of a prompt; slots double from here
PICTURES = 4  # encoded at once by set_images

JITTERS = 20  # the paper's number of prompts per object
POINT_JITTER = 0.01  # deviation of a jittered point from its place, share of the picture's longer side
# Stability below which a mask should be looked at. Measured with sam_nano on 98 pictures of seven sets (true box, noisy
# box, one point): flags 75 % of the masks with an IoU below 0.6, and 6 % of those with 0.8 or more. At 0.90 these are
# 62 % and 3 %, at 0.95 87 % and 16 %.
STABLE = 0.92

Picture = str | os.PathLike[str] | Image.Image | np.ndarray


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class StableMask:
    """A mask, and how much it depends on the exact prompt."""

    mask: np.ndarray  # (H, W) bool, for the user's own prompt
    iou_prediction: float  # the model's estimate of the mask's IoU; may leave 0..1
    low_res_mask: np.ndarray  # (1, 4G, 4G) float32 logits, a mask_input for the next call
    stability: float  # mSF (eq. 1) of this mask and those of the jittered prompts, in (0, 1]; 0 if all are empty
    needs_review: bool  # look at this one: the stability is below the threshold


@dataclasses.dataclass(frozen=True, eq=False)
class _Encoded:
    """A picture, ready to be prompted."""

    embedding: ImageEmbedding  # B = 1
    original_size: tuple[int, int]


class Predictor:
    """Masks for prompts on pictures, by SamPredictor's names and arguments.

    `set_image` sets one picture, `set_images` several; methods then ask for `image_index`, its place in the list.

    Programs are compiled when first used and shared by all predictors of a model: one encoder for each number of
    pictures in a batch (1, 2, 4), one decoder for each slot that prompts are padded to, of 1, 2, 4, 8, 16 or 24 prompts
    and 4, 8, 16, ... tokens (a point is one, a box two, points without a box one more), and for each of: one mask or
    three, with mask inputs or without. Padding is never attended to. Others bring masks, or logits,
    to the size of the picture, for each pair of `postprocess.padded_side`.
    """

    def __init__(self, sam: Sam, params: Params, *, max_pixels: int = MAX_PIXELS):
        """Prepares a model.

        Args:
            sam, params: from `load_model`.
            max_pixels: larger picture files are refused unread; arrays are taken as they are.
        """
        self.sam = sam
        self.params = jax.device_put(params)
        self.max_pixels = max_pixels
        self._pictures: tuple[_Encoded, ...] = ()

    @property
    def is_image_set(self) -> bool:
        """Whether there is anything to prompt."""
        return bool(self._pictures)

    @property
    def original_size(self) -> tuple[int, int]:
        """Height and width of the picture that is set."""
        return self._picture(None).original_size

    @property
    def input_size(self) -> tuple[int, int]:
        """Height and width of the picture in the model's input, before padding."""
        return resized_size(self.original_size, self.sam.config.image_size)

    def set_image(self, image: Picture, image_format: str = "RGB") -> None:
        """Encodes a picture, to be prompted from then on.

        Args:
            image: (H, W, 3) uint8, a file, or a picture that Pillow opened. The latter two are turned upright as their
                EXIF data say, and may be grey, transparent, of a palette or of 16 bits.
            image_format: "RGB" or "BGR", the order of an array's channels.

        Raises:
            InputError: no such picture; none is set then.
        """
        self.reset_image()
        self._pictures = self._encode([self._read(image, image_format)], slot=1)

    def set_images(self, images: Iterable[Picture], image_format: str = "RGB", *, batch_size: int = PICTURES) -> None:
        """Encodes several pictures of any sizes; `image_index` names one of them from then on.

            predictor.set_images(["a.jpg", "b.jpg"])
            masks, _, _ = predictor.predict(box=boxes, image_index=1)

        Args:
            images: see `set_image`; read one batch at a time.
            image_format: see `set_image`.
            batch_size: pictures that are encoded at once, with so much more memory; the last batch is padded.

        Raises:
            InputError: no pictures, or one that cannot be used; none is set then.
        """
        self.reset_image()
        if isinstance(images, str | os.PathLike | Image.Image | np.ndarray):
            raise InputError("set_images takes a list of pictures; give [picture], or use set_image.")
        if batch_size < 1:
            raise InputError(f"batch_size is {batch_size}; it must be at least 1.")
        pictures: tuple[_Encoded, ...] = ()
        remaining = enumerate(images)
        while batch := list(itertools.islice(remaining, batch_size)):
            read = [self._read(image, image_format, f"images[{index}]: ") for index, image in batch]
            pictures += self._encode(read, slot=min(_power_of_two(len(read)), batch_size))
        if not pictures:
            raise InputError("set_images was given an empty list; give at least one picture.")
        self._pictures = pictures

    def reset_image(self) -> None:
        """Forgets all pictures."""
        self._pictures = ()

    def predict(
        self,
        point_coords: Points | None = None,
        point_labels: Points | None = None,
        box: ArrayLike | None = None,
        mask_input: ArrayLike | None = None,
        multimask_output: bool = True,
        return_logits: bool = False,
        hq_token_only: bool = False,
        *,
        image_index: int | None = None,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Masks for one prompt, or for a list of N.

        What SamPredictor takes gives what it gives. A list has one axis more in front, and so have the results:

            predict(box=boxes)                                      boxes (N, 4); with N = 1 this is one prompt, as in
            predict(box=boxes[:, None])                             SamPredictor, unless it is given as (N, 1, 4)
            predict(point_coords=points, point_labels=labels)       (N, k, 2) and (N, k), or N arrays of any lengths
            predict(box=boxes, mask_input=low_res_masks[:, :1])     (N, 4) and (N, 1, 4G, 4G)

        Args:
            point_coords: (k, 2) (x, y) in pixels of the picture.
            point_labels: (k,) 1 on the object, 0 not on it, -1 none, whose token the model attends to all the same.
            box: (4,) XYXY in pixels of the picture.
            mask_input: (1, 4G, 4G) logits, from `low_res_masks` of an earlier answer.
            multimask_output: three masks, for prompts that leave open what is meant; HQ-SAM gives the best of them.
            return_logits: logits instead of masks.
            hq_token_only: of HQ-SAM, the mask of its own token instead of its sum with SAM's.
            image_index: which picture of `set_images`.

        Returns:
            masks (M, H, W) bool, or float32 logits, above 0 on the object; iou_predictions (M,) float32, the model's
            estimate of each mask's IoU; low_res_masks (M, 4G, 4G) float32 logits. M is 3 or 1. A list of prompts gives
            a leading N.

        Raises:
            InputError: no picture is set, or the prompts are none, see `read_prompts`.
        """
        low_res_masks, iou_predictions = self.predict_low_res(
            point_coords,
            point_labels,
            box,
            mask_input,
            multimask_output,
            hq_token_only,
            image_index=image_index,
        )
        upscale = upscale_logits if return_logits else upscale_masks
        masks = upscale(low_res_masks, self._picture(image_index).original_size, self.sam.config.image_size)
        return masks, iou_predictions, low_res_masks

    def predict_low_res(
        self,
        point_coords: Points | None = None,
        point_labels: Points | None = None,
        box: ArrayLike | None = None,
        mask_input: ArrayLike | None = None,
        multimask_output: bool = True,
        hq_token_only: bool = False,
        *,
        image_index: int | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """`predict` without the masks at the picture's size, for whom hundreds of these are too many at once.

        `postprocess.upscale_masks` and `upscale_logits` bring any of the logits there.

        Returns:
            low_res_masks and iou_predictions of `predict`.
        """
        picture = self._picture(image_index)
        prompts, is_list = self._prompts(picture, point_coords, point_labels, box, mask_input)
        choice: MaskChoice = "multi" if multimask_output else "single"
        low_res_masks, iou_predictions = self._decode(picture, prompts, choice, hq_token_only)
        return (low_res_masks, iou_predictions) if is_list else (low_res_masks[0], iou_predictions[0])

    def without_plugin(self) -> "Predictor":
        """The model without its plugin, for the pictures that are set now: they are not encoded again."""
        base = assemble(dataclasses.replace(self.sam.config, plugin=None))
        params = {part: leaves for part, leaves in self.params.items() if part != "plugin"}
        predictor = Predictor(base, params, max_pixels=self.max_pixels)
        predictor._pictures = self._pictures
        return predictor

    def predict_stable(
        self,
        point_coords: Points | None = None,
        point_labels: Points | None = None,
        box: ArrayLike | None = None,
        mask_input: ArrayLike | None = None,
        hq_token_only: bool = False,
        *,
        jitters: int = JITTERS,
        threshold: float = STABLE,
        seed: int = 0,
        image_index: int | None = None,
    ) -> StableMask:
        """The mask for one prompt, and whether it would have been the same had the hand slipped a little.

        The prompt is decoded together with `jitters` slightly different ones, in one batch on the embedding at hand.
        Each edge of a box is moved as in SAM's own training (normal, 10 % of the side, at most 2 % of the picture's
        longer side), each point by normal noise of 1 % of it (at most 2 %), within the picture. A mask input stays.

        No ground truth is needed. Stability is no accuracy: a model may be wrong with confidence. But masks that depend
        on chance are bad more often than others.

        Args:
            point_coords, point_labels, box, mask_input, hq_token_only, image_index: of one prompt, see `predict`; with
                points or a box.
            jitters: how many slightly different prompts.
            threshold: a mask of lower stability needs review.
            seed: of the noise.

        Raises:
            InputError: as `predict`; or a list of prompts, or nothing that can be moved.
        """
        picture = self._picture(image_index)
        prompts, is_list = self._prompts(picture, point_coords, point_labels, box, mask_input)
        if is_list:
            raise InputError("predict_stable takes one prompt; call it for each of the list.")
        if jitters < 1 or (point_coords is None and box is None):
            raise InputError("predict_stable needs points or a box to move, and jitters of at least 1.")
        rng = np.random.default_rng(seed)
        prompts += [jittered(rng, prompts[0], picture.original_size) for _ in range(jitters)]
        low_res_masks, iou_predictions = self._decode(picture, prompts, "single", hq_token_only)
        masks = (
            upscale_masks(logits[0], picture.original_size, self.sam.config.image_size) for logits in low_res_masks
        )
        mask = next(masks)
        share = stability(itertools.chain([mask], masks))
        return StableMask(
            mask=mask,
            iou_prediction=float(iou_predictions[0, 0]),
            low_res_mask=low_res_masks[0],
            stability=share,
            needs_review=share < threshold,
        )

    def get_image_embedding(self, *, image_index: int | None = None) -> np.ndarray:
        """SAM's embedding of the picture that is set, (1, C, G, G) float32."""
        features = np.asarray(self._picture(image_index).embedding.features, np.float32)
        return np.ascontiguousarray(features.transpose(0, 3, 1, 2))

    def save_embedding(self, path: str | os.PathLike[str], *, image_index: int | None = None) -> None:
        """Writes what is known of the picture that is set, see `embedding_file`; it appears whole or not at all.

        Raises:
            InputError: no picture is set, or the file exists or cannot be written.
        """
        picture = self._picture(image_index)
        embedding_file.save_embedding(
            path, picture.embedding, original_size=picture.original_size, maker=self._identity
        )

    def load_embedding(self, path: str | os.PathLike[str]) -> None:
        """Sets the picture of `save_embedding` without encoding it.

        Raises:
            InputError: the file is absent, damaged, or made by a model that encodes otherwise; no picture is set then.
        """
        self.reset_image()
        expected = jax.eval_shape(compiled.encoder(self.sam), self.params, _inputs(self.sam, 1))
        embedding, original_size = embedding_file.load_embedding(path, expected=expected, maker=self._identity)
        self._pictures = (_Encoded(embedding, original_size),)

    @functools.cached_property
    def _identity(self) -> dict[str, Any]:
        return embedding_file.identity(self.sam.config, self.params)

    def _picture(self, image_index: int | None) -> _Encoded:
        count = len(self._pictures)
        if count == 0:
            raise InputError("no picture is set; call set_image, set_images or load_embedding first.")
        if image_index is None and count > 1:
            raise InputError(f"{count} pictures are set; say which one with image_index, 0 to {count - 1}.")
        index = image_index or 0
        if not 0 <= index < count:
            raise InputError(f"image_index is {index}; it must be 0 to {count - 1}, for the pictures that are set.")
        return self._pictures[index]

    def _read(self, image: Picture, image_format: str, place: str = "") -> np.ndarray:
        """Any picture as (H, W, 3) uint8 RGB."""
        if image_format not in ("RGB", "BGR"):
            raise InputError(f"image_format is {image_format!r}; it must be RGB or BGR.")
        if isinstance(image, str | os.PathLike | Image.Image):
            return read_picture(image, max_pixels=self.max_pixels)
        try:
            check_picture(picture := np.asarray(image))
        except InputError as error:
            raise InputError(f"{place}{error}") from None
        return picture if image_format == "RGB" else picture[..., ::-1]

    def _encode(self, pictures: Sequence[np.ndarray], *, slot: int) -> tuple[_Encoded, ...]:
        """Pictures that are encoded at once, padded to `slot` of them by repeating the last."""
        inputs = [preprocess(picture, self.sam.config) for picture in pictures]
        inputs += [inputs[-1]] * (slot - len(inputs))
        embeddings = _split(compiled.encoder(self.sam)(self.params, np.stack(inputs)))
        return tuple(
            _Encoded(embedding, picture.shape[:2])
            for embedding, picture in zip(embeddings, pictures, strict=False)  # those of padding are dropped
        )

    def _prompts(
        self,
        picture: _Encoded,
        point_coords: Points | None,
        point_labels: Points | None,
        box: ArrayLike | None,
        mask_input: ArrayLike | None,
    ) -> tuple[list[Prompt], bool]:
        return read_prompts(
            point_coords,
            point_labels,
            box,
            mask_input,
            size_hw=picture.original_size,
            mask_size=self.sam.config.mask_size,
        )

    def _decode(
        self, picture: _Encoded, prompts: Sequence[Prompt], choice: MaskChoice, hq_token_only: bool
    ) -> tuple[np.ndarray, np.ndarray]:
        """(N, M, 4G, 4G) logits and (N, M) predicted IoU of prompts that have all a mask input or none."""
        if hq_token_only and not self.sam.config.hq:
            raise InputError("hq_token_only is for HQ-SAM; this model has no HQ token. Leave it out.")
        decode = compiled.decoder(self.sam, choice, hq_token_only)
        tokens = max(token_count(prompt.points, prompt.box) for prompt in prompts)
        length = max(FEWEST_TOKENS, _power_of_two(tokens))
        answers = []
        for start in range(0, len(prompts), PROMPT_SLOTS[-1]):
            chunk = prompts[start : start + PROMPT_SLOTS[-1]]
            slot = next(slot for slot in PROMPT_SLOTS if slot >= len(chunk))
            padded = [*chunk, *[chunk[-1]] * (slot - len(chunk))]
            batch = self._batch(padded, picture.original_size, length)
            answer = jax.device_get(decode(self.params, picture.embedding, batch))
            answers.append((answer.low_res_masks[0, : len(chunk)], answer.iou_predictions[0, : len(chunk)]))
        low_res_masks, iou_predictions = (np.concatenate(parts) for parts in zip(*answers, strict=True))
        return low_res_masks, iou_predictions

    def _batch(self, prompts: Sequence[Prompt], size_hw: tuple[int, int], length: int) -> Prompts:
        """Prompts in pixels of the picture -> in the model's frame, B = 1, with `length` tokens each."""

        def tokens(prompt: Prompt) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
            size = self.sam.config.image_size
            box = None if prompt.box is None else to_model_frame(prompt.box.reshape(2, 2), size_hw, size)
            return sparse_tokens(to_model_frame(prompt.points, size_hw, size), prompt.labels, box, length=length)

        columns = zip(*map(tokens, prompts), strict=True)
        coords, labels, valid = (jnp.asarray(np.stack(column)[None]) for column in columns)
        given = [prompt.mask for prompt in prompts if prompt.mask is not None]
        if not given:
            return Prompts(coords, labels, valid)
        masks = jnp.asarray(np.stack(given)[None], jnp.float32)
        return Prompts(coords, labels, valid, masks, jnp.ones(masks.shape[:2], bool))


def _inputs(sam: Sam, count: int) -> jax.ShapeDtypeStruct:
    side = sam.config.image_size
    return jax.ShapeDtypeStruct((count, side, side, 3), np.float32)


@jax.jit
def _split(embedding: ImageEmbedding) -> list[ImageEmbedding]:
    """B pictures -> a list of one each."""
    count = len(embedding.features)
    return [jax.tree.map(lambda leaf, place=place: leaf[place : place + 1], embedding) for place in range(count)]


def _power_of_two(count: int) -> int:
    """The least power of two that is not less than `count`, at least 1."""
    return 1 << max(count - 1, 0).bit_length()


def jittered(rng: np.random.Generator, prompt: Prompt, size_hw: tuple[int, int]) -> Prompt:
    """The prompt of a hand that slipped a little."""
    longest, limit = max(size_hw), np.array(size_hw[::-1])
    noise = np.clip(POINT_JITTER * rng.standard_normal(prompt.points.shape), -JITTER_LIMIT, JITTER_LIMIT)
    points = np.clip(prompt.points + noise * longest, 0, limit - 1)
    box = None if prompt.box is None else jittered_box(rng, prompt.box, size_hw=size_hw)
    return dataclasses.replace(prompt, points=points, box=box)
