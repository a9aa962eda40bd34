"""One encoding of each picture, many prompts: the protocol of the four HQ sets (protocol: HQ-SAM, train/train.py).

The picture is squeezed to the square input of the model, its aspect lost; the single low-resolution mask is brought to
the picture's own size in one bilinear step and thresholded at 0; metrics are taken there.
"""

import dataclasses
import math
from collections.abc import Iterator, Sequence

import cv2
import jax
import jax.numpy as jnp
import numpy as np

from eval.protocols import PROMPTS_PER_OBJECT, draw_prompts
from stablesam_jax import compiled
from stablesam_jax.data.readers import LabelledPicture, Pictures
from stablesam_jax.metrics import boundary_iou, mask_iou, stability
from stablesam_jax.model.prompt_encoder import Prompts, sparse_tokens
from stablesam_jax.model.sam import ImageEmbedding, Sam
from stablesam_jax.params import Params
from stablesam_jax.preprocess import preprocess
from stablesam_jax.prompts import Prompt

METRICS = ("miou", "mbiou", "msf")
CHUNK = 10  # prompts that are decoded at once, half of the paper's 20; the last chunk is padded by repeating a prompt
TOKEN_BUCKETS = (2, 4, 6, 11)  # lengths that prompts are padded to, so that few programs are compiled


@dataclasses.dataclass(frozen=True)
class Protocol:
    """What is asked of every system."""

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
    msf: float  # stability (eq. 1)


class Segmenter:
    """A system, compiled: squeezed pictures to embeddings, prompts to masks of the picture's own size."""

    def __init__(self, sam: Sam, params: Params):
        """Prepares the two programs; they are compiled when first used, once for all parameters of a model.

        Of HQ-SAM the HQ token's mask counts, as in its own evaluation (train/train.py), though its predictor answers
        with the sum of that and SAM's.
        """
        self.config = sam.config
        self.params = jax.device_put(params)
        self._encode, self._decode = compiled.encoder(sam), compiled.decoder(sam, hq_token_only=sam.config.hq)

    def encode(self, picture: np.ndarray) -> ImageEmbedding:
        """(H, W, 3) uint8 -> image embedding of the squeezed picture, B = 1."""
        return self._encode(self.params, preprocess(squeeze(picture, self.config.image_size), self.config)[None])

    def low_res_masks(
        self, embedding: ImageEmbedding, prompts: Sequence[Prompt], size_hw: tuple[int, int]
    ) -> np.ndarray:
        """Logits of the single mask for each prompt.

        Args:
            embedding: from `encode`.
            prompts: at least one; points and boxes in pixels of the picture.
            size_hw: the picture's size.

        Returns:
            (len(prompts), 4G, 4G) float32.
        """
        longest = max(len(prompt.points) + (1 if prompt.box is None else 2) for prompt in prompts)
        length = next(bucket for bucket in TOKEN_BUCKETS if bucket >= longest)
        tokens = [self._tokens(prompt, size_hw, length) for prompt in prompts]
        chunks = []
        for start in range(0, len(tokens), CHUNK):
            chunk = tokens[start : start + CHUNK]
            padded = chunk + [chunk[-1]] * (CHUNK - len(chunk))
            coords, labels, valid = (jnp.asarray(np.stack(column)[None]) for column in zip(*padded, strict=True))
            masks = self._decode(self.params, embedding, Prompts(coords=coords, labels=labels, valid=valid))
            chunks.append(np.asarray(masks.low_res_masks)[0, : len(chunk), 0])
        return np.concatenate(chunks)

    def _tokens(
        self, prompt: Prompt, size_hw: tuple[int, int], length: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        box = None if prompt.box is None else to_frame(prompt.box.reshape(2, 2), size_hw, self.config.image_size)
        return sparse_tokens(
            to_frame(prompt.points, size_hw, self.config.image_size), prompt.labels, box, length=length
        )


def to_frame(coords: np.ndarray, size_hw: tuple[int, int], size: int) -> np.ndarray:
    """Pixels of a picture to pixels of its squeezed frame, centre to centre: (K, 2) (x, y) -> (K, 2).

    A whole number names a pixel; its centre lies half a pixel further, which the prompt encoder adds in the frame. So a
    mirrored picture with mirrored prompts is the mirrored frame, as for prompts that HQ-SAM draws in the frame itself;
    scaling alone, as SamPredictor does, would shift them by half the change of a pixel's size. We draw in the picture,
    because frames differ in size between systems and prompts must not.
    """
    return (coords + 0.5) * (size / np.array([size_hw[::-1]], np.float64)) - 0.5


def squeeze(picture: np.ndarray, size: int) -> np.ndarray:
    """(H, W, 3) uint8 -> (size, size, 3) uint8: bilinear without antialias in float, truncated, as HQ-SAM does."""
    resized = cv2.resize(picture.astype(np.float32), (size, size), interpolation=cv2.INTER_LINEAR)
    return resized.astype(np.uint8)


def to_picture(low_res: np.ndarray, size_hw: tuple[int, int]) -> np.ndarray:
    """(4G, 4G) logits of a squeezed picture -> (H, W) bool mask, one bilinear step, above 0."""
    return cv2.resize(low_res, size_hw[::-1], interpolation=cv2.INTER_LINEAR) > 0


def score_picture(segmenter: Segmenter, labelled: LabelledPicture, protocol: Protocol) -> Iterator[Score]:
    """Scores of every object of a picture under every kind of prompt."""
    embedding = segmenter.encode(labelled.picture)
    size_hw = labelled.picture.shape[:2]
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
            masks = [to_picture(logits, size_hw) for logits in segmenter.low_res_masks(embedding, drawn, size_hw)]
            yield Score(
                picture=labelled.name,
                object_id=object_id,
                kind=kind,
                miou=float(np.mean([mask_iou(mask, target) for mask in masks])),
                mbiou=float(np.mean([boundary_iou(mask, target) for mask in masks])),
                msf=stability(masks),
            )


def evaluate(segmenter: Segmenter, pictures: Pictures, protocol: Protocol) -> Iterator[list[Score]]:
    """Scores picture by picture."""
    for index in range(len(pictures)):
        yield list(score_picture(segmenter, pictures[index], protocol))


Summary = dict[str, dict[str, float]]  # kind -> metric -> mean


def summarise(scores: Sequence[Score]) -> Summary:
    """Means over the objects of a picture, then over pictures (protocol: protocols of HQ-SAM, one object each)."""
    summary: Summary = {}
    for kind in dict.fromkeys(score.kind for score in scores):
        by_picture: dict[str, list[Score]] = {}
        for score in scores:
            if score.kind == kind:
                by_picture.setdefault(score.picture, []).append(score)
        summary[kind] = {
            metric: math.fsum(np.mean([getattr(score, metric) for score in group]) for group in by_picture.values())
            / len(by_picture)
            for metric in METRICS
        }
    return summary
