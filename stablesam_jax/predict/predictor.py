"""SamPredictor (segment_anything/predictor.py), extended to lists of prompts and pictures, and `predict_stable`.

predictor = Predictor(*load_model("sam_nano"))
predictor.set_image("dog.jpg")
masks, iou_predictions, low_res_masks = predictor.predict(box=[75, 60, 420, 380], multimask_output=False)
"""

import dataclasses
import itertools
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import flax
import jax
import numpy as np
from numpy.typing import ArrayLike
from PIL import Image

from stablesam_jax.build import assemble
from stablesam_jax.errors import InputError
from stablesam_jax.files.picture_file import MAX_PIXELS
from stablesam_jax.model.mask_decoder import MaskChoice
from stablesam_jax.model.sam import Sam
from stablesam_jax.params import Params
from stablesam_jax.predict import compiled
from stablesam_jax.predict.box_search import WorstBox, worst_box
from stablesam_jax.predict.current import Current
from stablesam_jax.predict.decode import CHOICES, as_mask_inputs, decode
from stablesam_jax.predict.encode import PICTURES, ImageLike, encode, read
from stablesam_jax.predict.picture import Encoder, Picture, select
from stablesam_jax.predict.postprocess import upscale_logits, upscale_masks
from stablesam_jax.predict.preprocess import in_model_frame, resized_size
from stablesam_jax.predict.slots import SLOTS, Slots
from stablesam_jax.predict.stable import JITTERS, Singles, StableMask, stable_mask
from stablesam_jax.predict.user_prompts import Points, read_prompts
from stablesam_jax.prompts import Prompt

_FIXED = "make another Predictor"
_OF_THE_PICTURE = "set_image, load_embedding or predict(picture=...) set it, or use stablesam_jax.compat.SamPredictor"
_NOT_ASSIGNED = dict.fromkeys(("sam", "params", "model", "device", "transform"), _FIXED) | dict.fromkeys(
    ("features", "interm_features", "original_size", "input_size", "is_image_set"), _OF_THE_PICTURE
)


class Predictor:
    """Masks for prompts on pictures, by SamPredictor's names and arguments.

    `encode` makes a `Picture`, which `predict(picture=...)` prompts. `set_image` and `set_images` keep one picture or
    several as the current ones, for calls that name none; of several, `image_index` says which.

    Threads may share a predictor. A call uses one picture from its start to its end. Each thread has its own current
    pictures: after `set_image`, `predict` in the same thread uses that picture, whatever other threads do. A thread
    that has set none uses those of the only thread that has; if several threads have, this is an error, and so it is
    for an asyncio task after another task of its thread has set a picture. To encode in one thread and prompt in
    another, pass the picture: `encode`, then `predict(picture=...)`.

    Programs compile on first use or by `warm_up`, and all predictors of a model share them: one encoder for each batch
    size (1, 2, 4); one decoder for each of `Slots` (1, 2, 4, 8, 16 or 24 prompts and 4, 8, 16, ... tokens; a point is
    one, a box two, points without a box one more), for one mask or three, with mask inputs or without. Padding is
    masked in attention. Further programs resize masks or logits, for each pair of `postprocess.padded_side`.

    Model and parameters are fixed.
    """

    def __init__(self, sam: Sam, params: Params, *, max_pixels: int = MAX_PIXELS, slots: Slots = SLOTS):
        """Prepares a model.

        Args:
            sam, params: from `load_model`.
            max_pixels: larger picture files are refused before decoding; arrays are not limited.
            slots: shapes that prompts are padded to. `Slots((8,), 8)` is a single one: every call costs as much as 8
                prompts of 8 tokens, and no other program is needed unless a prompt has more tokens.
        """
        self._sam = sam
        self._params = jax.device_put(flax.core.unfreeze(params))
        self._encoder = Encoder(sam.config, self._params)
        self._current: Current[tuple[Picture, ...]] = Current()
        self.max_pixels = max_pixels
        self.slots = slots

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _NOT_ASSIGNED and getattr(type(self), name, None) is getattr(Predictor, name, None):
            raise AttributeError(f"{type(self).__name__}.{name} cannot be assigned: {_NOT_ASSIGNED[name]}.")
        super().__setattr__(name, value)

    @property
    def sam(self) -> Sam:
        """The model."""
        return self._sam

    @property
    def params(self) -> Mapping[str, Any]:
        """The parameters, read-only; `flax.core.unfreeze` makes a copy that may be changed."""
        return flax.core.freeze(self._params)

    @property
    def is_image_set(self) -> bool:
        """Whether a picture is set for this thread."""
        try:
            return bool(self._current.read())
        except InputError:  # those of several other threads
            return False

    @property
    def original_size(self) -> tuple[int, int]:
        """Height and width of the current picture."""
        return self._chosen(None, None).original_size

    @property
    def input_size(self) -> tuple[int, int]:
        """Height and width of the picture in the model's input, before padding."""
        return resized_size(self.original_size, self.sam.config.frame)

    def encode(self, image: ImageLike, image_format: str = "RGB") -> Picture:
        """Encodes a picture, to be passed to any call; does not change the current pictures.

        Args:
            image: (H, W, 3) uint8, a file, or a picture that Pillow opened. The latter two are rotated by their EXIF
                orientation, and may be grey, transparent, with a palette or of 16 bits.
            image_format: "RGB" or "BGR", the order of an array's channels.

        Raises:
            InputError: the picture cannot be read.
        """
        (picture,) = encode(self.sam, self._params, self._encoder, [read(image, image_format, self.max_pixels)])
        return picture

    def encode_all(
        self, images: Iterable[ImageLike], image_format: str = "RGB", *, batch_size: int = PICTURES
    ) -> tuple[Picture, ...]:
        """Encodes pictures of any sizes, in batches.

        Args:
            images: see `encode`; read one batch at a time.
            image_format: see `encode`.
            batch_size: pictures that are encoded at once, in proportionally more memory; the last batch is padded.

        Raises:
            InputError: a picture cannot be read.
        """
        if isinstance(images, str | os.PathLike | Image.Image | np.ndarray):
            raise InputError("images is a single picture; give a list of them, as [picture].")
        if batch_size < 1:
            raise InputError(f"batch_size is {batch_size}; it must be at least 1.")
        pictures: tuple[Picture, ...] = ()
        remaining = (self._read_one(index, image, image_format) for index, image in enumerate(images))
        while batch := list(itertools.islice(remaining, batch_size)):
            pictures += encode(self.sam, self._params, self._encoder, batch, batch_size)
        return pictures

    def set_image(self, image: ImageLike, image_format: str = "RGB") -> None:
        """Encodes a picture and makes it the current one of this thread.

        Args:
            image, image_format: see `encode`.

        Raises:
            InputError: the picture cannot be read; none is set then.
        """
        with self._current.cleared_on_failure():
            self._current.set((self.encode(image, image_format),))

    def set_images(self, images: Iterable[ImageLike], image_format: str = "RGB", *, batch_size: int = PICTURES) -> None:
        """Encodes pictures and makes them the current ones of this thread; calls select one by `image_index`.

            predictor.set_images(["a.jpg", "b.jpg"])
            masks, _, _ = predictor.predict(box=boxes, image_index=1)

        Args:
            images, image_format, batch_size: see `encode_all`.

        Raises:
            InputError: no pictures, or one that cannot be read; none is set then.
        """
        with self._current.cleared_on_failure():
            pictures = self.encode_all(images, image_format, batch_size=batch_size)
            if not pictures:
                raise InputError("set_images was given an empty list; give at least one picture.")
            self._current.set(pictures)

    def reset_image(self) -> None:
        """Removes the current pictures."""
        self._current.clear()

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
        picture: Picture | None = None,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Predicts masks for one prompt, or for a list of N.

        One prompt, as for SamPredictor, gives M masks. A list has one more leading axis, and so have the results, for
        every N including 0 and 1:

            predict(box=box)                                        box (4,): masks (M, H, W)
            predict(box=boxes)                                      boxes (N, 4) or (N, 1, 4): masks (N, M, H, W)
            predict(point_coords=points, point_labels=labels)       (N, k, 2) and (N, k), or N arrays of any lengths
            predict(box=boxes, mask_input=low_res_masks[:, :1])     (N, 4) and (N, 1, 4G, 4G)

        Args:
            point_coords: (k, 2) (x, y) in pixels of the picture.
            point_labels: (k,) 1 on the object, 0 beside it, -1 no point, whose token still takes part in attention.
            box: (4,) XYXY in pixels of the picture.
            mask_input: (1, 4G, 4G) logits, from `low_res_masks` of an earlier prediction.
            multimask_output: three masks, for ambiguous prompts; HQ-SAM gives one, of the highest predicted IoU.
            return_logits: logits instead of masks.
            hq_token_only: for HQ-SAM, the mask of its own token instead of its sum with SAM's.
            image_index: index of the picture of `set_images`.
            picture: from `encode`, in place of the current one.

        Returns:
            masks (M, H, W) bool, or float32 logits, above 0 on the object; iou_predictions (M,) float32, the model's
            estimate of each mask's IoU; low_res_masks (M, 4G, 4G) float32 logits. M is 3 or 1. A list of prompts gives
            a leading N.

        Raises:
            InputError: no picture is set, or the prompts are malformed, see `read_prompts`.
        """
        picture = self._chosen(picture, image_index)
        low_res_masks, iou_predictions = self.predict_low_res(
            point_coords, point_labels, box, mask_input, multimask_output, hq_token_only, picture=picture
        )
        upscale = upscale_logits if return_logits else upscale_masks
        masks = upscale(low_res_masks, picture.original_size, self.sam.config.frame)
        return masks, iou_predictions, as_mask_inputs(low_res_masks, self.sam.config)

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
        picture: Picture | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """`predict` without resizing masks to the picture's size, where hundreds of such masks would fill the memory.

        `postprocess.upscale_masks` and `upscale_logits` resize any later; `as_mask_inputs` makes mask inputs of them.

        Returns:
            low_res_masks and iou_predictions of `predict`.
        """
        picture = self._chosen(picture, image_index)
        prompts, is_list = self._prompts(picture, point_coords, point_labels, box, mask_input)
        choice: MaskChoice = "multi" if multimask_output else "single"
        low_res_masks, iou_predictions = self._decode(picture, prompts, choice, hq_token_only)
        return (low_res_masks, iou_predictions) if is_list else (low_res_masks[0], iou_predictions[0])

    def without_plugin(self) -> "Predictor":
        """A predictor of the model without its plugin. Encoded pictures fit both; the current ones are copied."""
        base = assemble(dataclasses.replace(self.sam.config, plugin=None))
        params = {part: leaves for part, leaves in self._params.items() if part != "plugin"}
        predictor = Predictor(base, params, max_pixels=self.max_pixels, slots=self.slots)
        if pictures := self._current.read():
            predictor._current.set(pictures)
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
        threshold: float | None = None,
        clicks: int = 0,
        seed: int = 0,
        image_index: int | None = None,
        picture: Picture | None = None,
    ) -> StableMask:
        """Predicts the mask for one prompt, and its stability under small changes of the prompt.

        The prompt is decoded together with `jitters` slightly different ones (`stable.jittered`), in one batch on the
        same embedding. Stability is not accuracy, since a model may be stable and wrong; but unstable masks are bad
        more often than others.

        Args:
            point_coords, point_labels, box, mask_input, hq_token_only, image_index, picture: of one prompt, see
                `predict`; with points or a box.
            jitters: number of slightly different prompts.
            threshold: of stability, for review. None: `stable.STABLE` with a box, else `stable.STABLE_POINTS`.
            clicks: on the predicted mask, for `StableMask.ambiguity`; as many as jitters double the time.
            seed: of the noise and of the clicks.

        Raises:
            InputError: as `predict`; or a list of prompts, or neither points nor a box.
        """
        picture = self._chosen(picture, image_index)
        prompts, is_list = self._prompts(picture, point_coords, point_labels, box, mask_input)
        if is_list:
            raise InputError("predict_stable takes one prompt; call it for each of the list.")
        if jitters < 1 or min(clicks, seed) < 0 or (point_coords is None and box is None):
            raise InputError("Stability needs points or a box, jitters of at least 1, clicks and seed of at least 0.")

        def predict(prompts: list[Prompt]) -> Singles:
            logits, iou_predictions = self._decode(picture, prompts, "single", hq_token_only)
            masks = (upscale_masks(one[0], picture.original_size, self.sam.config.frame) for one in logits)
            return masks, logits, iou_predictions

        return stable_mask(
            predict, prompts[0], picture.original_size, jitters=jitters, threshold=threshold, clicks=clicks, seed=seed
        )

    def warm_up(
        self,
        sizes_hw: Iterable[tuple[int, int]] = (),
        *,
        most_prompts: int = 1,
        most_tokens: int = 1,
        mask_inputs: bool = False,
    ) -> None:
        """Compiles programs in advance that first calls would compile, in some seconds each.

        These are the encoder for one picture, and decoders for one mask and for three, in each slot up to the given
        numbers of prompts and tokens. `keep_compiled_programs` keeps them on disk for the next process.

        Args:
            sizes_hw: heights and widths of expected pictures, for the programs that resize masks.
            most_prompts: in one call.
            most_tokens: of a prompt; a point is one, a box two, points without a box one more.
            mask_inputs: whether to compile for prompts with a mask input too.

        Raises:
            InputError: `sizes_hw` is no list of sizes.
        """
        sizes_hw = list(sizes_hw)
        if not all(np.shape(size) == (2,) and min(size) > 0 for size in sizes_hw):
            raise InputError(f"sizes_hw is a list of (height, width), such as [(480, 640)]; got {sizes_hw}.")
        picture = self.encode(np.zeros((*(sizes_hw[0] if sizes_hw else (1, 1)), 3), np.uint8))
        blank = np.zeros((self.sam.config.mask_size,) * 2, np.float32)
        for mask, choice in itertools.product((None, blank) if mask_inputs else (None,), CHOICES):
            for prompts in self.slots.examples(most_prompts, most_tokens):
                self._decode(picture, [dataclasses.replace(one, mask=mask) for one in prompts], choice, False)
        for size_hw in sizes_hw:
            upscale_masks(blank, size_hw, self.sam.config.frame)

    def worst_box(
        self,
        box: ArrayLike,
        mask: np.ndarray | None = None,
        *,
        image_index: int | None = None,
        picture: Picture | None = None,
    ) -> WorstBox:
        """Finds a box near the given one, such as users draw, whose mask is worst; see `box_search.search`.

        Args:
            box, image_index, picture: see `predict`.
            mask: (H, W) bool of the object; by default the predicted mask of `box`.

        Raises:
            InputError: as `predict`; or a list of boxes, or a mask of another size.
        """
        picture = self._chosen(picture, image_index)
        return worst_box(self.sam, self._params, picture, *self._prompts(picture, None, None, box, None), mask)

    def get_image_embedding(self, *, image_index: int | None = None, picture: Picture | None = None) -> np.ndarray:
        """SAM's embedding of the current picture, or of another, (1, C, G, G) float32."""
        features = np.asarray(self._chosen(picture, image_index).embedding.features, np.float32)
        return np.ascontiguousarray(features.transpose(0, 3, 1, 2))

    def save_embedding(
        self, path: str | os.PathLike[str], *, image_index: int | None = None, picture: Picture | None = None
    ) -> None:
        """Writes an encoded picture to a new file atomically, see `embedding_file`.

        Args:
            path: such as `NAME.safetensors`.
            image_index, picture: see `predict`.

        Raises:
            InputError: no picture is set, or the file exists or cannot be written.
        """
        self._chosen(picture, image_index).save(path)

    def load_embedding(self, path: str | os.PathLike[str]) -> Picture:
        """Reads a file of `save_embedding` and makes its picture the current one.

        Returns:
            the picture.

        Raises:
            InputError: the file is absent, damaged, or of a model with another encoder; no picture is set then.
        """
        side = self.sam.config.image_size
        with self._current.cleared_on_failure():
            pictures = jax.ShapeDtypeStruct((1, side, side, 3), np.float32)
            expected = jax.eval_shape(compiled.encoder(self.sam), self._params, pictures)
            picture = self._encoder.load(path, expected)
        self._current.set((picture,))
        return picture

    def _chosen(self, picture: Picture | None, image_index: int | None) -> Picture:
        """The picture of a call. Read once per call, so that another thread cannot change it in between."""
        if picture is None:
            return select(self._current.read() or (), image_index)
        if image_index is not None:
            raise InputError("picture and image_index are both given; give one of them.")
        self._encoder.check(picture)
        return picture

    def _read_one(self, index: int, image: ImageLike, image_format: str) -> np.ndarray:
        try:
            return read(image, image_format, self.max_pixels)
        except InputError as error:
            if isinstance(image, str | os.PathLike):  # named in the message
                raise
            raise InputError(f"images[{index}]: {error}") from None

    def _prompts(
        self,
        picture: Picture,
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
        self, picture: Picture, prompts: Sequence[Prompt], choice: MaskChoice, hq_token_only: bool
    ) -> tuple[np.ndarray, np.ndarray]:
        """(N, M, 4G, 4G) logits and (N, M) predicted IoU of prompts. All have a mask input, or none has."""
        size_hw, frame = picture.original_size, self.sam.config.frame
        return decode(
            self.sam,
            self._params,
            picture.embedding,
            [in_model_frame(prompt, size_hw, frame) for prompt in prompts],
            choice,
            hq_token_only,
            self.slots,
        )
