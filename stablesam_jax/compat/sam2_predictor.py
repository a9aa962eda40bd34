"""sam2's `SAM2ImagePredictor` and `SAM2AutomaticMaskGenerator`."""

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from stablesam_jax.compat.holder import Holder
from stablesam_jax.compat.predictor import ImageNotSet
from stablesam_jax.compat.sam import channels_first, size
from stablesam_jax.compat.sam2 import SAM2Base, from_hub
from stablesam_jax.compat.tensors import CHANNELS_LAST, Tensor, array, tensor
from stablesam_jax.errors import InputError
from stablesam_jax.model.mask_decoder import Masks
from stablesam_jax.model.prompt_encoder import Prompts
from stablesam_jax.model.sam import ImageEmbedding
from stablesam_jax.model.sam2 import LOGIT_LIMIT
from stablesam_jax.ops.layers import cells, pixels
from stablesam_jax.predict import compiled
from stablesam_jax.predict.decode import as_mask_inputs, decode
from stablesam_jax.predict.mask_generator import MaskGenerator, MaskRecord, regions
from stablesam_jax.predict.postprocess import Size, upscale_logits, upscale_masks
from stablesam_jax.predict.predictor import Predictor
from stablesam_jax.predict.preprocess import in_model_frame
from stablesam_jax.predict.user_prompts import read_prompts
from stablesam_jax.prompts import Prompt

Features = Mapping[str, Any]  # image_embed (B, C, G, G), high_res_feats [(B, C / 8, 4G, 4G), (B, C / 4, 2G, 2G)]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class _State:
    """The pictures of a predictor. Immutable: every assignment makes another state."""

    embeddings: tuple[ImageEmbedding, ...] | None = None  # B = 1 each, fused
    sizes: tuple[Size, ...] | None = None
    is_image_set: bool = False
    is_batch: bool = False

    def shown(self) -> tuple[tuple[ImageEmbedding, Size], ...]:
        """The pictures as prompts need them."""
        if not self.is_image_set:
            raise ImageNotSet("no picture is set; call set_image first.")
        if self.embeddings is None or self.sizes is None or len(self.embeddings) != len(self.sizes):
            raise InputError("_is_image_set was assigned without _features and _orig_hw of as many pictures; do so.")
        return tuple(zip(self.embeddings, self.sizes, strict=True))


class SAM2ImagePredictor(Holder[SAM2Base, _State]):
    """sam2/sam2_image_predictor.py.

    Threads may share it, see `SamPredictor`.
    """

    def __init__(
        self,
        sam_model: SAM2Base,
        mask_threshold: float = 0.0,
        max_hole_area: float = 0.0,
        max_sprinkle_area: float = 0.0,
        **_: Any,
    ):
        """Prepares a model.

        Args:
            sam_model: of `build_sam2`, or SAM2Base(*load_model(...)).
            mask_threshold: logits above are the object.
            max_hole_area, max_sprinkle_area: holes of masks up to this area are filled, specks removed; in pixels of
                the low-resolution logits. The logits themselves are returned as they are.
        """
        if not isinstance(sam_model, SAM2Base):
            raise InputError(f"sam_model is of type {type(sam_model).__name__}; give SAM2Base(*load_model(...)).")
        self.model = sam_model
        self.mask_threshold = mask_threshold
        self._areas = max_hole_area, max_sprinkle_area
        self._encoder = Predictor(sam_model.sam, sam_model.params)

    @classmethod
    def from_pretrained(cls, model_id: str | os.PathLike[str], **options: Any) -> "SAM2ImagePredictor":
        """A predictor by a name of `load_model`: a folder, `BASE+PLUGIN_FILE`, or OWNER/NAME, see `build_sam2_hf`."""
        model, own = from_hub(model_id, options)
        return cls(model, **own)

    def _empty(self) -> _State:
        return _State()

    @property
    def _is_image_set(self) -> bool:
        return self._has_picture

    @_is_image_set.setter
    def _is_image_set(self, value: bool) -> None:
        self._assign(is_image_set=bool(value))

    @property
    def _is_batch(self) -> bool:
        """Whether the pictures are of `set_image_batch`."""
        return self._state.is_batch

    @_is_batch.setter
    def _is_batch(self, value: bool) -> None:
        self._assign(is_batch=bool(value))

    @property
    def _orig_hw(self) -> list[Size] | None:
        """Height and width of each picture."""
        sizes = self._state.sizes
        return None if sizes is None else list(sizes)

    @_orig_hw.setter
    def _orig_hw(self, value: Sequence[Sequence[int]] | None) -> None:
        self._assign(sizes=None if value is None else tuple(map(size, value)))

    @property
    def _features(self) -> Features | None:
        """float32; of the finer maps what the mask decoder adds."""
        embeddings = self._state.embeddings
        if embeddings is None:
            return None
        maps: tuple[Callable[[Any], Any], ...] = (
            lambda one: one.features,
            lambda one: pixels(one.high_res_s0),
            lambda one: _doubled(one.high_res_s1),
        )
        embed, s0, s1 = (tensor(np.concatenate([channels_first(of(one)) for one in embeddings])) for of in maps)
        return {"image_embed": embed, "high_res_feats": [s0, s1]}

    @_features.setter
    def _features(self, value: Features | None) -> None:
        self._assign(embeddings=None if value is None else _embeddings(self.model, value))

    def set_image(self, image: np.ndarray | Image.Image) -> None:
        """Encodes a picture and makes it the current one.

        Args:
            image: (H, W, 3) uint8 RGB, or a picture of Pillow in mode RGB.

        Raises:
            InputError: the picture is malformed; none is set then.
        """
        self._set([image], is_batch=False)

    def set_image_batch(self, image_list: Sequence[np.ndarray]) -> None:
        """Encodes pictures of any sizes for `predict_batch`.

        Args:
            image_list: (H, W, 3) uint8 RGB each.

        Raises:
            InputError: a picture is malformed, or there is none; none is set then.
        """
        self._set(image_list, is_batch=True)

    def predict(
        self,
        point_coords: np.ndarray | None = None,
        point_labels: np.ndarray | None = None,
        box: np.ndarray | None = None,
        mask_input: np.ndarray | None = None,
        multimask_output: bool = True,
        return_logits: bool = False,
        normalize_coords: bool = True,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Masks for N prompts.

        Args:
            point_coords: (k, 2) or (N, k, 2) (x, y) in pixels of the picture.
            point_labels: (k,) or (N, k): 1 on the object, 0 not on it, -1 no point.
            box: (4,) or (N, 4) XYXY in pixels of the picture.
            mask_input: (1, 4G, 4G) for all prompts, or (N, 1, 4G, 4G): logits of an earlier prediction.
            multimask_output: three masks.
            return_logits: logits instead of masks.
            normalize_coords: False: coordinates are shares of the picture's sides, 0 to 1, instead of pixels.

        Returns:
            masks (M, H, W), 0 or 1, predicted IoU (M,), low-resolution logits (M, 4G, 4G), all float32; where N is not
            1, with N as first axis.

        Raises:
            ImageNotSet: no picture is set.
            InputError: the prompts are malformed.
        """
        arguments = point_coords, point_labels, box, mask_input
        return self._predict_one(*self._state.shown()[-1], arguments, multimask_output, return_logits, normalize_coords)

    def predict_batch(
        self,
        point_coords_batch: Sequence[np.ndarray] | None = None,
        point_labels_batch: Sequence[np.ndarray] | None = None,
        box_batch: Sequence[np.ndarray] | None = None,
        mask_input_batch: Sequence[np.ndarray] | None = None,
        multimask_output: bool = True,
        return_logits: bool = False,
        normalize_coords: bool = True,
    ) -> tuple[list[np.ndarray], list[np.ndarray], list[np.ndarray]]:
        """`predict` for each picture of `set_image_batch`; arguments and results are lists of its own."""
        shown = self._state.shown()
        if not self._is_batch:
            raise InputError("predict_batch is for pictures of set_image_batch; call that, or predict.")
        given = point_coords_batch, point_labels_batch, box_batch, mask_input_batch
        if any(of_all is not None and len(of_all) != len(shown) for of_all in given):
            raise InputError(f"predict_batch: {len(shown)} pictures are set; give each argument for as many.")
        found = [
            self._predict_one(
                *one,
                tuple(None if of_all is None else of_all[index] for of_all in given),
                multimask_output,
                return_logits,
                normalize_coords,
            )
            for index, one in enumerate(shown)
        ]
        masks, iou, low_res = map(list, zip(*found, strict=True))
        return masks, iou, low_res

    def get_image_embedding(self) -> Tensor:
        """(B, C, G, G) float32.

        Raises:
            ImageNotSet: no picture is set.
        """
        features = self._features
        if not self._is_image_set or features is None:
            raise ImageNotSet("no picture is set; call set_image first.")
        return features["image_embed"]

    def reset_predictor(self) -> None:
        """Removes the current pictures."""
        self._current.clear()

    def _set(self, images: Sequence[np.ndarray | Image.Image], *, is_batch: bool) -> None:
        with self._current.cleared_on_failure():
            arrays = [np.asarray(image) if isinstance(image, Image.Image) else image for image in images]
            pictures = self._encoder.encode_all(arrays)
            if not pictures:
                raise InputError("set_image_batch was given an empty list; give at least one picture.")
            state = _State(
                embeddings=tuple(picture.embedding for picture in pictures),
                sizes=tuple(picture.original_size for picture in pictures),
                is_image_set=True,
                is_batch=is_batch,
            )
        self._current.set(state)

    def _predict_one(
        self,
        embedding: ImageEmbedding,
        size_hw: Size,
        arguments: Sequence[Any],
        multimask_output: bool,
        return_logits: bool,
        normalize_coords: bool,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """`predict` on one picture; the first four arguments as there."""
        sam, params = self.model.sam, self.model.params
        frame = sam.config.frame
        prompts = _prompts(arguments, size_hw, sam.config.mask_size, normalize_coords)
        moved = [in_model_frame(prompt, size_hw, frame) for prompt in prompts]
        choice, returned = self.model.choice(multimask_output)
        low_res, iou = (part[:, returned] for part in decode(sam, params, embedding, moved, choice))
        cleaned = logits_without_small_regions(low_res, *self._areas, self.mask_threshold)
        if return_logits or self.mask_threshold != 0:
            masks = upscale_logits(cleaned, size_hw, frame)
        if not return_logits:
            above = masks > self.mask_threshold if self.mask_threshold != 0 else upscale_masks(cleaned, size_hw, frame)
            masks = above.astype(np.float32)
        found = masks, iou, as_mask_inputs(low_res, sam.config)
        masks, iou, low_res = (part[0] for part in found) if len(prompts) == 1 else found
        return masks, iou, low_res


class SAM2AutomaticMaskGenerator(MaskGenerator):
    """sam2/automatic_mask_generator.py: `MaskGenerator` with the defaults there, and a `predictor` of the model."""

    def __init__(
        self,
        model: SAM2Base,
        points_per_side: int | None = 32,
        points_per_batch: int = 64,
        pred_iou_thresh: float = 0.8,
        stability_score_thresh: float = 0.95,
        stability_score_offset: float = 1.0,
        mask_threshold: float = 0.0,
        *arguments: Any,
        use_m2m: bool = False,
        multimask_output: bool = True,
        **options: Any,
    ):
        """Prepares the search.

        Args:
            model: of `build_sam2`.
            mask_threshold: logits above are the object.
            use_m2m: every mask is predicted once more, with itself as mask input.
            multimask_output: three masks for a point; False: one.
            arguments, options: of `MaskGenerator`; `min_mask_region_area` is `max_hole_area` and `max_sprinkle_area` of
                `SAM2ImagePredictor`.

        Raises:
            InputError: an argument is out of its range.
        """
        first = points_per_side, points_per_batch, pred_iou_thresh, stability_score_thresh, stability_score_offset
        super().__init__(model.sam, model.params, *first, *arguments, **options)
        self.mask_threshold = mask_threshold
        self.use_m2m = use_m2m
        self.multimask_output = multimask_output
        area = self.min_mask_region_area
        self._predictor = SAM2ImagePredictor(model, max_hole_area=area, max_sprinkle_area=area)

    @property
    def predictor(self) -> SAM2ImagePredictor:
        """A predictor of the generator's model."""
        return self._predictor

    @classmethod
    def from_pretrained(cls, model_id: str | os.PathLike[str], **options: Any) -> "SAM2AutomaticMaskGenerator":
        """A generator by a name of `load_model`, see `SAM2ImagePredictor.from_pretrained`."""
        model, own = from_hub(model_id, options)
        return cls(model, **own)

    def _decode(self, embedding: ImageEmbedding, prompts: Prompts) -> Masks:
        masks = self._choose(embedding, prompts, self.multimask_output)
        if self.use_m2m:
            refined = [
                self._choose(embedding, _with_masks(prompts, masks.low_res_masks[:, :, index]), False)
                for index in range(masks.low_res_masks.shape[2])
            ]
            masks = jax.tree.map(lambda *parts: jnp.concatenate(parts, axis=2), *refined)
        area = self.min_mask_region_area
        low_res = logits_without_small_regions(np.asarray(masks.low_res_masks), area, area)
        return dataclasses.replace(masks, low_res_masks=jnp.asarray(low_res) - self.mask_threshold)

    def _choose(self, embedding: ImageEmbedding, prompts: Prompts, multimask_output: bool) -> Masks:
        choice, returned = self.predictor.model.choice(multimask_output)
        masks = compiled.decoder(self.sam, choice)(self.params, embedding, prompts)
        return Masks(masks.low_res_masks[:, :, returned], masks.iou_predictions[:, :, returned])

    def _records(self, found: Sequence[Any], size_hw: Size) -> list[MaskRecord]:
        return [self._record(one, one.draw(size_hw), one.box) for one in found]  # small regions are gone already


def logits_without_small_regions(
    low_res_masks: np.ndarray, hole_area: float, sprinkle_area: float, threshold: float = 0.0
) -> np.ndarray:
    """Fills small holes, and removes small specks, as `SAM2Transforms.postprocess_masks` in sam2/utils/transforms.py.

    Args:
        low_res_masks: (..., 4G, 4G) logits.
        hole_area, sprinkle_area: largest area of what is filled or removed, in their pixels; regions are 8-connected.
        threshold: logits above are the object.

    Returns:
        the logits, 10 above the threshold in holes, 10 below it in specks.
    """
    result = low_res_masks.copy() if hole_area > 0 or sprinkle_area > 0 else low_res_masks
    for index in np.ndindex(low_res_masks.shape[:-2]):
        above = low_res_masks[index] > threshold
        for part, area, value in ((~above, hole_area, 10), (above, sprinkle_area, -10)):
            if area > 0:
                labels, areas = regions(part)
                result[index][(areas <= area)[labels]] = threshold + value
    return result


def _with_masks(prompts: Prompts, low_res_masks: jax.Array) -> Prompts:
    """The prompts (1, N) with logits (1, N, 4G, 4G) of them as mask inputs."""
    limited = jnp.clip(low_res_masks, -LOGIT_LIMIT, LOGIT_LIMIT)
    return dataclasses.replace(prompts, masks=limited, masks_valid=jnp.ones(limited.shape[:2], bool))


def _prompts(arguments: Sequence[Any], size_hw: Size, mask_size: int, normalize_coords: bool) -> list[Prompt]:
    """N prompts in pixels of the picture, from the first four arguments of `SAM2ImagePredictor.predict`."""
    height, width = size_hw
    scale = np.ones(2) if normalize_coords else np.array([width, height])
    coords, labels, boxes, masks = (None if value is None else array(value, np.float64) for value in arguments)
    if coords is not None and coords.shape[-1:] == (2,):
        coords = coords * scale
    if coords is not None and coords.ndim == 2:
        coords, labels = coords[None], None if labels is None else labels[None]
    if boxes is not None and boxes.shape[-1:] == (4,):
        boxes = boxes.reshape(-1, 4) * np.tile(scale, 2)
    if masks is not None and masks.ndim == 3:
        masks = masks[None]
    counts = [len(each) for each in (coords, boxes) if each is not None and each.ndim]
    if masks is not None and len(masks) == 1 and counts:
        masks = np.broadcast_to(masks, (counts[0], *masks.shape[1:]))
    prompts, _ = read_prompts(coords, labels, boxes, masks, size_hw=size_hw, mask_size=mask_size)
    return prompts


def _embeddings(of: SAM2Base, features: Features) -> tuple[ImageEmbedding, ...]:
    """An embedding of each picture.

    Raises:
        InputError: a map is missing or has another shape than those of the model.
    """
    config = of.sam.config
    width, grid = config.embedding_width, config.grid_size
    try:
        maps = [array(features["image_embed"]), *map(array, features["high_res_feats"])]
    except (KeyError, TypeError):
        raise InputError("_features has no image_embed and high_res_feats; assign what _features gave.") from None
    expected = [(width // part, grid * part_side, grid * part_side) for part, part_side in ((1, 1), (8, 4), (4, 2))]
    if [one.shape[1:] for one in maps] != expected or len({len(one) for one in maps}) != 1:
        raise InputError(
            f"_features have shapes {[one.shape for one in maps]}; those of this model are (B, ...) of {expected}."
        )
    embed, s0, s1 = (jnp.asarray(one.transpose(CHANNELS_LAST), config.dtype) for one in maps)
    s0, s1 = cells(s0, 2), cells(s1, 1)
    return tuple(
        ImageEmbedding(embed[place], high_res_s0=s0[place], high_res_s1=s1[place])
        for place in (slice(index, index + 1) for index in range(len(embed)))
    )


def _doubled(squares: Any) -> np.ndarray:
    """(B, H, W, 2, 2, C) -> (B, 2H, 2W, C), the inverse of `cells` in one step."""
    batch, height, width, _, _, channels = squares.shape
    return np.asarray(squares).transpose(0, 1, 3, 2, 4, 5).reshape(batch, 2 * height, 2 * width, channels)
