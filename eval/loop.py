"""One encoding of each picture, many prompts: the protocol of the four HQ sets (protocol: HQ-SAM, train/train.py).

The picture is resized to the square input of the model without keeping its aspect ratio. The single low-resolution mask
is resized to the picture's own size in one bilinear step and thresholded at 0. Metrics are computed at that size.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import cv2
import jax
import jax.numpy as jnp
import numpy as np

from eval.overlap import overlapped
from eval.prompt_kinds import PROMPTS_PER_OBJECT, draw_prompts
from stablesam_jax.data.readers import LabelledPicture, Pictures
from stablesam_jax.metrics import boundary_iou, mask_iou, stability
from stablesam_jax.model.prompt_encoder import Prompts, sparse_tokens, token_count
from stablesam_jax.model.sam import ImageEmbedding, Sam
from stablesam_jax.ops.layers import one_by_one
from stablesam_jax.params import Params
from stablesam_jax.predict import compiled
from stablesam_jax.predict.preprocess import preprocess
from stablesam_jax.prompts import Prompt

METRICS = ("miou", "mbiou", "msf")
CHUNK = 10  # prompts per call of the decoder, half of the paper's 20; the last chunk is padded by repeating a prompt
TOKEN_BUCKETS = (2, 4, 6, 11)  # prompts are padded to one of these numbers of tokens: one compiled program for each


@dataclasses.dataclass(frozen=True)
class Protocol:
    """Which prompts every system gets."""

    kinds: tuple[str, ...] = ("gt-box", "noisy-box", "1-point", "3-points")
    prompts: int = PROMPTS_PER_OBJECT  # of each random kind and object
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class Score:
    """One object under all prompts of one kind; fractions."""

    picture: str
    object_id: int
    kind: str
    miou: float  # mean IoU with the true mask
    mbiou: float  # mean boundary IoU
    msf: float  # stability of the object's masks, see `metrics.stability`
    alpha: float | None = None  # mean of the plugin's alpha_1, where there is one


class Predictions(NamedTuple):
    """Output of a system for N prompts."""

    low_res_masks: np.ndarray  # (N, 4G, 4G) float32, logits of the single mask
    predicted_iou: np.ndarray  # (N,) float32, the model's own estimate
    alpha: np.ndarray | None  # (N,) float32, the plugin's alpha_1 at the last attention that it resamples for, if any


class Segmenter:
    """A compiled system: encodes squeezed pictures, decodes prompts to low-resolution masks."""

    def __init__(self, sam: Sam, params: Params):
        """Prepares encoder and decoder. They compile on first use; models that differ in parameters alone share them.

        For HQ-SAM the masks are those of the HQ token, as in its own evaluation (train/train.py). Its predictor returns
        the sum of that mask and SAM's instead.
        """
        self.config = sam.config
        self.params = jax.device_put(params)
        self._encode, self._decode = compiled.encoder(sam), _decoder(sam)

    def encode(self, picture: np.ndarray) -> ImageEmbedding:
        """(H, W, 3) uint8 -> image embedding of the squeezed picture, B = 1."""
        return self._encode(self.params, preprocess(squeeze(picture, self.config.image_size), self.config)[None])

    def predict(self, embedding: ImageEmbedding, prompts: Sequence[Prompt], size_hw: tuple[int, int]) -> Predictions:
        """Decodes prompts in chunks of `CHUNK`, padded to one of `TOKEN_BUCKETS`.

        Args:
            embedding: from `encode`.
            prompts: at least one; points and boxes in pixels of the picture.
            size_hw: the picture's size.
        """
        longest = max(token_count(prompt.points, prompt.box) for prompt in prompts)
        length = next(bucket for bucket in TOKEN_BUCKETS if bucket >= longest)
        tokens = [self._tokens(prompt, size_hw, length) for prompt in prompts]
        chunks = []
        for start in range(0, len(tokens), CHUNK):
            chunk = tokens[start : start + CHUNK]
            padded = chunk + [chunk[-1]] * (CHUNK - len(chunk))
            coords, labels, valid = (jnp.asarray(np.stack(column)[None]) for column in zip(*padded, strict=True))
            chunks.append(self._decode(self.params, embedding, Prompts(coords=coords, labels=labels, valid=valid)))
        return jax.tree.map(lambda *parts: np.concatenate(parts)[: len(tokens)], *chunks)

    def low_res_masks(
        self, embedding: ImageEmbedding, prompts: Sequence[Prompt], size_hw: tuple[int, int]
    ) -> np.ndarray:
        """The low-resolution masks of `predict`."""
        return self.predict(embedding, prompts, size_hw).low_res_masks

    def _tokens(
        self, prompt: Prompt, size_hw: tuple[int, int], length: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        box = None if prompt.box is None else to_frame(prompt.box.reshape(2, 2), size_hw, self.config.image_size)
        return sparse_tokens(
            to_frame(prompt.points, size_hw, self.config.image_size), prompt.labels, box, length=length
        )


@functools.cache
def _decoder(sam: Sam) -> Callable[[Params, ImageEmbedding, Prompts], Predictions]:
    """Compiles (parameters, image embedding of one picture, prompts) -> `Predictions` on the device."""

    def decode(params: Params, embedding: ImageEmbedding, prompts: Prompts) -> Any:
        def predict(coords: jax.Array, labels: jax.Array, valid: jax.Array) -> Predictions:
            masks, state = sam.apply(
                {"params": params},
                embedding,
                Prompts(coords=coords, labels=labels, valid=valid),
                masks="single",
                hq_token_only=sam.config.hq,
                method="decode",
                mutable=["intermediates"],
            )
            alpha = None if sam.config.plugin is None else state["intermediates"]["plugin"]["alpha"][-1][..., 0]
            return Predictions(masks.low_res_masks[:, :, 0], masks.iou_predictions[:, :, 0], alpha)

        # Loop over prompts here: alpha is an intermediate, and intermediates do not leave the decoder's own loop.
        predictions = one_by_one(predict)(prompts.coords, prompts.labels, prompts.valid)
        return jax.tree.map(lambda x: x[0], predictions)

    return jax.jit(decode)


def to_frame(coords: np.ndarray, size_hw: tuple[int, int], size: int) -> np.ndarray:
    """Maps pixels of a picture to pixels of its squeezed frame, centre to centre: (K, 2) (x, y) -> (K, 2).

    An integer coordinate names a pixel; the prompt encoder adds the half pixel to its centre. Mapping centres keeps
    prompts symmetric: a mirrored picture with mirrored prompts gives the mirrored frame, as in HQ-SAM, which draws its
    prompts in the frame. Scaling alone, as SamPredictor does, would shift them by half the change of a pixel's size.
    Prompts are drawn in the picture because the frame's size differs between systems and the prompts must not.
    """
    return (coords + 0.5) * (size / np.array([size_hw[::-1]], np.float64)) - 0.5


def squeeze(picture: np.ndarray, size: int) -> np.ndarray:
    """(H, W, 3) uint8 -> (size, size, 3) uint8: bilinear without antialias in float32, truncated, as HQ-SAM does."""
    resized = cv2.resize(picture.astype(np.float32), (size, size), interpolation=cv2.INTER_LINEAR)
    return resized.astype(np.uint8)


def to_picture(low_res: np.ndarray, size_hw: tuple[int, int]) -> np.ndarray:
    """(4G, 4G) logits of a squeezed picture -> (H, W) bool mask: resized in one bilinear step, thresholded at 0."""
    return cv2.resize(low_res, size_hw[::-1], interpolation=cv2.INTER_LINEAR) > 0


class Prompted(NamedTuple):
    """An object, prompts of one kind for it, and a system's predictions for them."""

    object_id: int
    kind: str
    prompts: list[Prompt]  # in pixels of the picture
    predictions: Predictions


def prompt_objects(
    segmenter: Segmenter, embedding: ImageEmbedding, labelled: LabelledPicture, protocol: Protocol
) -> list[Prompted]:
    """Prompts a system for every object of a picture with every kind of prompt."""
    size_hw = labelled.picture.shape[:2]
    prompted = []
    for object_id, target in enumerate(labelled.masks):
        for kind in protocol.kinds:
            drawn = draw_prompts(
                kind,
                target,
                picture_id=labelled.name,
                object_id=object_id,
                seed=protocol.seed,
                count=protocol.prompts,
            )
            prompted.append(Prompted(object_id, kind, drawn, segmenter.predict(embedding, drawn, size_hw)))
    return prompted


def begin_picture(segmenter: Segmenter, labelled: LabelledPicture, protocol: Protocol) -> Callable[[], list[Score]]:
    """Encodes a picture and prompts for all its objects.

    Returns:
        the rest of the work, which needs the host alone: a function that resizes the masks and scores them.
    """
    prompted = prompt_objects(segmenter, segmenter.encode(labelled.picture), labelled, protocol)
    return lambda: [score_object(labelled, one) for one in prompted]


def score_object(labelled: LabelledPicture, prompted: Prompted) -> Score:
    """Compares the predicted masks of an object with its true mask and with each other."""
    target, predictions = labelled.masks[prompted.object_id], prompted.predictions
    masks = [to_picture(logits, target.shape) for logits in predictions.low_res_masks]
    return Score(
        picture=labelled.name,
        object_id=prompted.object_id,
        kind=prompted.kind,
        miou=float(np.mean([mask_iou(mask, target) for mask in masks])),
        mbiou=float(np.mean([boundary_iou(mask, target) for mask in masks])),
        msf=stability(masks),
        alpha=None if predictions.alpha is None else float(predictions.alpha.mean(dtype=np.float64)),
    )


def evaluate(segmenter: Segmenter, pictures: Pictures, protocol: Protocol) -> Iterator[list[Score]]:
    """Yields the scores of each picture, in order."""
    return overlapped(lambda index: begin_picture(segmenter, pictures[index], protocol), range(len(pictures)))


Summary = dict[str, dict[str, float]]  # kind -> metric -> mean


Values = dict[str, dict[str, np.ndarray]]  # kind -> metric -> (P,) float64, one value per picture


def by_picture(scores: Sequence[Score]) -> Values:
    """Means over the objects of each picture, in the order of the pictures."""
    values: Values = {}
    for kind in dict.fromkeys(score.kind for score in scores):
        groups: dict[str, list[Score]] = {}
        for score in scores:
            if score.kind == kind:
                groups.setdefault(score.picture, []).append(score)
        values[kind] = {
            metric: np.array([np.mean([getattr(score, metric) for score in group]) for group in groups.values()])
            for metric in METRICS
        }
    return values


def summarise(scores: Sequence[Score]) -> Summary:
    """Means over the objects of a picture, then over pictures. HQ-SAM's sets have one object a picture."""
    return {
        kind: {metric: math.fsum(column) / len(column) for metric, column in metrics.items()}
        for kind, metrics in by_picture(scores).items()
    }
