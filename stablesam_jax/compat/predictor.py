"""segment_anything's `SamPredictor` and `SamAutomaticMaskGenerator`."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from stablesam_jax.compat import sam
from stablesam_jax.compat.holder import Holder
from stablesam_jax.compat.sam import Sam, Shown
from stablesam_jax.compat.tensors import Tensor, array, tensor
from stablesam_jax.compat.transforms import ResizeLongestSide
from stablesam_jax.errors import InputError
from stablesam_jax.model import sam as linen
from stablesam_jax.model.mask_decoder import Masks
from stablesam_jax.model.prompt_encoder import Prompts
from stablesam_jax.model.sam import ImageEmbedding
from stablesam_jax.params import Params
from stablesam_jax.predict.mask_generator import MaskGenerator
from stablesam_jax.predict.postprocess import Size
from stablesam_jax.predict.preprocess import check_picture
from stablesam_jax.predict.user_prompts import read_prompts


class ImageNotSet(InputError, RuntimeError):
    """There is no picture to prompt; a RuntimeError, which segment_anything raises."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class _State:
    """The picture of a predictor. Immutable: every assignment makes another state."""

    of: Sam
    embedding: ImageEmbedding | None = None  # B = 1, of HQ-SAM with early features, not fused
    original_size: Size | None = None
    input_size: Size | None = None
    is_image_set: bool = False

    @functools.cached_property
    def shown(self) -> Shown:
        """The picture as prompts need it."""
        if not self.is_image_set:
            raise ImageNotSet("no picture is set; call set_image first.")
        if self.embedding is None or self.original_size is None or self.input_size is None:
            raise InputError(
                "is_image_set was assigned without features, original_size or input_size; assign these, too, or call "
                "set_image."
            )
        return Shown(sam.fuse(self.of, self.embedding), self.original_size, self.input_size)


class SamPredictor(Holder[Sam, _State]):
    """segment_anything/predictor.py, with the additional argument of segment_anything_hq.

    Threads may share it: each has its own picture, see `stablesam_jax.Predictor`, and its own assigned values. With
    `shared_picture` of the model all have the latest, as in the official class.
    """

    def __init__(self, sam_model: Sam | linen.Sam, params: Params | None = None):
        """Prepares a model.

        Args:
            sam_model, params: a model of `sam_model_registry` alone, or the two that `load_model` returns.
        """
        if not isinstance(sam_model, Sam):
            if params is None:
                raise InputError("sam_model has no parameters; give SamPredictor(*load_model(...)).")
            sam_model = Sam(sam_model, params)
        self.model = sam_model
        self.transform = ResizeLongestSide(sam_model.image_encoder.img_size)

    def _empty(self) -> _State:
        return _State(of=self.model)

    @property
    def is_image_set(self) -> bool:
        """Whether there is a picture to prompt."""
        return self._has_picture

    @is_image_set.setter
    def is_image_set(self, value: bool) -> None:
        self._assign(is_image_set=bool(value))

    @property
    def original_size(self) -> Size | None:
        """Height and width of the picture."""
        return self._state.original_size

    @original_size.setter
    def original_size(self, value: Sequence[int] | None) -> None:
        self._assign(original_size=None if value is None else sam.size(value))

    @property
    def input_size(self) -> Size | None:
        """Height and width of the picture in the model's input."""
        return self._state.input_size

    @input_size.setter
    def input_size(self, value: Sequence[int] | None) -> None:
        self._assign(input_size=None if value is None else sam.size(value))

    @property
    def features(self) -> Tensor | None:
        """(1, C, G, G) float32, the image embedding."""
        embedding = self._state.embedding
        return None if embedding is None else tensor(sam.channels_first(embedding.features))

    @features.setter
    def features(self, value: Tensor | None) -> None:
        self._assign(embedding=None if value is None else sam.embedding_of(self.model, value))

    @property
    def interm_features(self) -> list[Tensor] | None:
        """Of HQ-SAM: one (1, G, G, any) float32, an early layer of the encoder. Assigned after `features`."""
        embedding = self._state.embedding
        if embedding is None or embedding.early is None:
            return None
        return [tensor(np.asarray(embedding.early, np.float32))]

    @interm_features.setter
    def interm_features(self, value: Sequence[Tensor]) -> None:
        features = self.features
        if features is None or not self.model.sam.config.hq:
            raise InputError("interm_features are of HQ-SAM, and assigned after features.")
        self._assign(embedding=sam.embedding_of(self.model, features, value[0]))

    def set_image(self, image: np.ndarray, image_format: str = "RGB") -> None:
        """Encodes a picture and makes it the current one.

        Args:
            image: (H, W, 3) uint8.
            image_format: "RGB" or "BGR".

        Raises:
            InputError: the picture is malformed; none is set then.
        """
        with self._current.cleared_on_failure():
            if image_format not in ("RGB", "BGR"):
                raise InputError(f"image_format is {image_format!r}; it must be RGB or BGR.")
            check_picture(image)
            rgb = image if image_format == "RGB" else image[..., ::-1]
            pixels = self.transform.apply_image(np.ascontiguousarray(rgb))
            self.set_torch_image(tensor(pixels.transpose(2, 0, 1)[None]), image.shape[:2])

    def set_torch_image(self, transformed_image: Tensor, original_image_size: Sequence[int]) -> None:
        """Encodes a picture that has been resized already.

        Args:
            transformed_image: (1, 3, h, w) pixels of 0..255, RGB, from `transform`; the longer side is the model's.
            original_image_size: height and width before.

        Raises:
            InputError: another shape; no picture is set then.
        """
        shape, side = tuple(transformed_image.shape), self.model.image_encoder.img_size
        with self._current.cleared_on_failure():
            if len(shape) != 4 or shape[:2] != (1, 3) or max(shape[2:]) != side:
                raise InputError(
                    f"transformed_image has shape {shape}; expected (1, 3, h, w) with a longer side of {side} pixels."
                )
            (embedding,) = sam.encode(self.model, array(self.model.preprocess(transformed_image)))
            state = _State(
                of=self.model,
                embedding=embedding,
                original_size=sam.size(original_image_size),
                input_size=sam.size(shape[2:]),
                is_image_set=True,
            )
        self._current.set(state)

    def predict(
        self,
        point_coords: np.ndarray | None = None,
        point_labels: np.ndarray | None = None,
        box: np.ndarray | None = None,
        mask_input: np.ndarray | None = None,
        multimask_output: bool = True,
        return_logits: bool = False,
        hq_token_only: bool = False,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Masks for one prompt.

        Args:
            point_coords: (k, 2) (x, y) in pixels of the picture.
            point_labels: (k,) 1 on the object, 0 not on it.
            box: (4,) or (1, 4) XYXY in pixels of the picture.
            mask_input: (1, 4G, 4G) logits of an earlier prediction.
            multimask_output: three masks.
            return_logits: logits instead of masks.
            hq_token_only: for HQ-SAM, the mask of its own token.

        Returns:
            masks (M, H, W) bool or float32, predicted IoU (M,), low-resolution logits (M, 4G, 4G).

        Raises:
            ImageNotSet: no picture is set.
            InputError: the prompt is malformed.
        """
        shown = self._state.shown
        arguments = (point_coords, point_labels, box, mask_input)
        given = [None if each is None else array(each, np.float64) for each in arguments]
        if given[2] is not None and given[2].shape == (1, 4):
            given[2] = given[2][0]
        prompts, is_list = read_prompts(*given, size_hw=shown.original_size, mask_size=self.model.sam.config.mask_size)
        if is_list:
            raise InputError("predict takes one prompt; predict_torch, or stablesam_jax.Predictor, takes a list.")
        (prompt,) = prompts
        moved = dataclasses.replace(
            prompt,
            points=self.transform.apply_coords(prompt.points, shown.original_size),
            box=None if prompt.box is None else self.transform.apply_boxes(prompt.box, shown.original_size)[0],
        )
        answer = sam.answer(self.model, shown, [moved], multimask_output, return_logits, hq_token_only)
        masks, iou, low_res = (part[0] for part in answer)
        return masks, iou, low_res

    def predict_torch(
        self,
        point_coords: Tensor | None,
        point_labels: Tensor | None,
        boxes: Tensor | None = None,
        mask_input: Tensor | None = None,
        multimask_output: bool = True,
        return_logits: bool = False,
        hq_token_only: bool = False,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Masks for N prompts, for every N, in the frame of the model, see `transform`.

        Args:
            point_coords, point_labels: (N, k, 2) and (N, k); a label of -1 is no point.
            boxes: (N, 4).
            mask_input: (N, 1, 4G, 4G).
            multimask_output, return_logits, hq_token_only: see `predict`.

        Returns:
            masks (N, M, H, W), predicted IoU (N, M), low-resolution logits (N, M, 4G, 4G).

        Raises:
            ImageNotSet: no picture is set.
            InputError: the prompts are malformed.
        """
        shown = self._state.shown
        prompts = sam.read(self.model, shown, point_coords, point_labels, boxes, mask_input)
        answer = sam.answer(self.model, shown, prompts, multimask_output, return_logits, hq_token_only)
        masks, iou, low_res = map(tensor, answer)
        return masks, iou, low_res

    def get_image_embedding(self) -> Tensor:
        """(1, C, G, G) float32.

        Raises:
            ImageNotSet: no picture is set.
        """
        state = self._state
        if not state.is_image_set or state.embedding is None:
            raise ImageNotSet("no picture is set; call set_image first.")
        return tensor(sam.channels_first(state.embedding.features))

    def reset_image(self) -> None:
        """Removes the current picture."""
        self._current.clear()


class SamAutomaticMaskGenerator(MaskGenerator):
    """`MaskGenerator` by its official name, with the model in one argument and a `predictor` of it."""

    def __init__(self, model: Sam, *arguments: Any, **options: Any):
        """`model` is of `sam_model_registry`; all others as in `MaskGenerator`."""
        super().__init__(model.sam, model.params, *arguments, **options)
        self._predictor = SamPredictor(model)

    @property
    def predictor(self) -> SamPredictor:
        """A predictor of the generator's model."""
        return self._predictor

    def _decode(self, embedding: ImageEmbedding, prompts: Prompts) -> Masks:
        masks = super()._decode(embedding, prompts)
        return dataclasses.replace(
            masks, low_res_masks=masks.low_res_masks - float(self.predictor.model.mask_threshold)
        )
