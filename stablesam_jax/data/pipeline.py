"""Training batches as a pure function of (seed, step): pictures, targets, prompts.

A view is an augmented picture: (picture, view) always has the same bits, so that its features can be cached. The views,
objects and prompts of step t depend on (seed, t) alone, not on devices, threads or the step of resuming.
"""

import dataclasses
import functools
import hashlib
import math
from collections.abc import Iterator, Mapping

import absl.flags
import cv2
import grain
import numpy as np

from stablesam_jax import prompts
from stablesam_jax.data.augment import draw_cut, pad
from stablesam_jax.data.occlusion import Cutouts, occlude
from stablesam_jax.data.readers import Pictures
from stablesam_jax.data.reduced import masks_first
from stablesam_jax.errors import InputError
from stablesam_jax.model.prompt_encoder import sparse_tokens
from stablesam_jax.parallel import count_cores

THREADS_OF_WORKER = 8  # decoding and resizing release the interpreter lock, the rest of a sample does not
TOKENS = 11  # K: ten points and the token "not a point"
COARSE_MASK_LOGIT = 255.0  # HQ-SAM passes its coarse masks as 0 and 255 in place of logits
REFINED_MASK_LOGIT = 10.0  # order of magnitude of SAM's own logits


@dataclasses.dataclass(frozen=True, kw_only=True)
class ViewConfig:
    """How pictures are augmented."""

    size: int  # S, pixels
    scale_range: tuple[float, float]  # of large-scale jitter
    views: int  # augmented versions of each picture
    occlusion: float = 0.0  # share of the views with synthetic occlusion (sec. 4.4)
    reduced_jpeg: bool = False  # whether JPEG files are decoded no larger than a view needs them
    seed: int

    def __post_init__(self):
        low, high = self.scale_range
        if not 0 < low <= high < math.inf:
            raise InputError(
                f"scale range {low} to {high}: give two positive shares of the frame, the lower one first."
            )
        if not 0 <= self.occlusion <= 1:
            raise InputError(f"occlusion {self.occlusion}: must be a share, from 0 to 1.")
        _check_range("views", self.views, 1)
        _check_range("seed", self.seed, 0)


class Views:
    """All augmented versions of all pictures; index = picture * views + view."""

    def __init__(self, pictures: Pictures, config: ViewConfig):
        """Computes nothing; views are computed on access."""
        self.pictures = pictures
        self.config = config
        self.cutouts = Cutouts(pictures, config.seed)
        # Seeded by the picture's name, not its index, so that adding other pictures does not change its views.
        self._numbers = [int.from_bytes(hashlib.sha256(name.encode()).digest()[:8]) for name in pictures.names]

    def __len__(self) -> int:
        return len(self.pictures) * self.config.views

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """The picture (S, S, 3) uint8 and the masks of its objects (M, S, S) bool, M >= 1."""
        number, view = divmod(index, self.config.views)
        rng = np.random.default_rng([self.config.seed, self._numbers[number], view])
        draw = functools.partial(draw_cut, rng, size=self.config.size, scale_range=self.config.scale_range)
        if self.config.reduced_jpeg:
            every, read = masks_first(self.pictures, number)
            cut = draw(every)
            try:
                picture, masks = cut.read(read, every.shape[1:]), cut.masks
            except ValueError:
                name = self.pictures.names[number]
                raise InputError(f"{name}: picture and label differ in size; make them equal.") from None
        else:
            labelled = self.pictures[number]
            cut = draw(labelled.masks)
            picture, masks = cut.of(labelled.picture), cut.masks
        if self.config.occlusion and rng.random() < self.config.occlusion:
            cutout = self.cutouts[int(rng.integers(len(self.cutouts)))]
            if cutout is not None:
                picture, masks = occlude(rng, picture, masks, cutout)
        return pad(picture, masks, size=self.config.size)


def draw_prompt(rng: np.random.Generator, kind: str, mask: np.ndarray, *, mask_size: int) -> prompts.Prompt:
    """Draws a training prompt for an object.

    Args:
        rng: advanced by the call.
        kind: one of `TRAINING_KINDS`.
        mask: (S, S) bool, not empty.
        mask_size: 4G, side of a mask prompt, a multiple of 8.

    Returns:
        The prompt, in the frame of the mask; its mask, if it has one, is (4G, 4G) float32 logits.

    Raises:
        ValueError: an unknown kind.
    """
    if kind == "gt-box":
        return prompts.Prompt(box=prompts.gt_box(mask))
    if kind == "jittered-box":
        return prompts.Prompt(box=prompts.jittered_box(rng, prompts.gt_box(mask), size_hw=mask.shape))
    if kind == "noisy-box":
        accepted = (prompts.MIN_TRAINING_IOU, 1.0)
        return prompts.Prompt(box=prompts.noisy_box(rng, prompts.gt_box(mask), size_hw=mask.shape, iou_range=accepted))
    if kind == "points":
        return _points(rng, mask, int(rng.choice(prompts.POINT_COUNTS)))
    if kind == "10-points":
        return _points(rng, mask, 10)
    if kind == "coarse-mask":
        coarse = prompts.coarse_mask(rng, mask, size=mask_size)
        return prompts.Prompt(mask=coarse.astype(np.float32) * np.float32(COARSE_MASK_LOGIT))
    if kind == "refine":
        coarse = prompts.coarse_mask(rng, mask, size=mask_size).astype(np.float32)
        smooth = cv2.GaussianBlur(coarse, (0, 0), 1.5)
        logits = np.float32(2 * REFINED_MASK_LOGIT) * (smooth - np.float32(0.5))
        return dataclasses.replace(_points(rng, mask, 1), mask=logits)
    raise ValueError(f"unknown kind of training prompt {kind!r}; known: {', '.join(TRAINING_KINDS)}")


TRAINING_KINDS = {
    "gt-box": "the box around the object",
    "jittered-box": "that box as SAM's own training jitters it: still a good prompt",
    "noisy-box": "noise of scale 0.4, IoU >= 0.5 (sec. 4.4, 9)",
    "points": "1, 3, 5 or 10 points on the object, each count as likely (sec. 9)",
    "10-points": "10 points on the object: HQ-SAM's only count",
    "coarse-mask": "HQ-SAM's coarse mask alone",
    "refine": "one point and the smooth logits of a coarse mask, as in SAM's second iteration",
}


def _points(rng: np.random.Generator, mask: np.ndarray, count: int) -> prompts.Prompt:
    points = prompts.random_points(rng, mask, count)
    return prompts.Prompt(points=points, labels=np.ones(count, np.int32))


Batch = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True, kw_only=True)
class BatchConfig:
    """Contents of a batch."""

    pictures: int  # B
    prompts_per_picture: int  # N; a picture with fewer objects has several prompts for some
    kinds: Mapping[str, float]  # kind of prompt -> weight
    mask_size: int  # 4G
    seed: int

    def __post_init__(self):
        _check_range("pictures per batch", self.pictures, 1)
        _check_range("prompts per picture", self.prompts_per_picture, 1)
        _check_range("seed", self.seed, 0)


def _check_range(name: str, value: int, lowest: int) -> None:
    if not lowest <= value < 2**32:  # JAX takes a seed of 32 bits
        raise InputError(f"{name} {value}: must be at least {lowest} and below 2^32.")


def make_sample(views: Views, config: BatchConfig, index: int, position: int) -> Batch:
    """Makes a sample: one picture with N objects and prompts.

    Args:
        views: augmented pictures.
        config: kinds and counts.
        index: of the view.
        position: index of the sample in the whole training run, which seeds the draws.

    Returns:
        `view` (), `picture` (S, S, 3) uint8, `targets` (N, S, S) bool, `coords` (N, K, 2), `labels`, `valid` (N, K),
        `masks` (N, 4G, 4G), `masks_valid` (N,), `position` ().
    """
    rng = np.random.default_rng([config.seed, position])
    picture, masks = views[index]
    count = config.prompts_per_picture
    order = rng.permutation(len(masks))
    chosen = masks[np.resize(order, count)]
    weights = np.array(list(config.kinds.values()), np.float64)
    kinds = rng.choice(list(config.kinds), size=count, p=weights / weights.sum())
    drawn = [draw_prompt(rng, kind, mask, mask_size=config.mask_size) for kind, mask in zip(kinds, chosen, strict=True)]
    tokens = [sparse_tokens(prompt.points, prompt.labels, prompt.box, length=TOKENS) for prompt in drawn]
    coords, labels, valid = (np.stack(column) for column in zip(*tokens, strict=True))
    no_mask = np.zeros((config.mask_size, config.mask_size), np.float32)
    sample = {
        "view": np.int32(index),
        "position": np.uint32(position),
        "picture": picture,
        "targets": chosen,
        "coords": coords,
        "labels": labels,
        "valid": valid,
        "masks": np.stack([no_mask if prompt.mask is None else prompt.mask for prompt in drawn]),
        "masks_valid": np.array([prompt.mask is not None for prompt in drawn]),
    }
    return {key: np.asarray(value) for key, value in sample.items()}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Feeding:
    """How batches are computed; their contents do not depend on it."""

    start_step: int = 0  # number of steps done before
    host: int = 0  # index of this host; each makes its share of every batch
    hosts: int = 1
    workers: int = 0  # further processes; on a few cores threads are enough, and start at once
    threads: int = dataclasses.field(default_factory=lambda: min(16, count_cores()))  # of each process

    @classmethod
    def on_all_cores(cls, workers: int | None, **share: int) -> "Feeding":
        """Threads, and processes where there are more cores than one interpreter keeps busy.

        Args:
            workers: processes; None: one for every `THREADS_OF_WORKER` cores beyond as many of this process.
            share: other fields.
        """
        if workers is None:
            workers = max(count_cores() // THREADS_OF_WORKER - 1, 0)
        return cls(workers=workers, **share | ({"threads": THREADS_OF_WORKER} if workers else {}))


def batches(views: Views, config: BatchConfig, feeding: Feeding = Feeding()) -> Iterator[Batch]:
    """Yields batches from a step on, without end.

    Every epoch has all pictures in an order of its own, and the next view of each; the first view follows the last.

    Args:
        views: augmented pictures.
        config: contents of a batch over all hosts.
        feeding: this host's share, and its workers.

    Returns:
        An iterator over dictionaries as in `make_sample`, with a leading axis B / hosts. Host h has the samples h, h +
        hosts, h + 2 hosts, ... of the batch that a single host would make.

    Raises:
        InputError: the hosts do not divide the batch.
    """
    if config.pictures % feeding.hosts:
        raise InputError(f"batch size {config.pictures}: must be a multiple of the {feeding.hosts} hosts.")
    count = len(views.pictures)
    order = grain.MapDataset.range(count).seed(config.seed).shuffle().repeat(None)

    def sample(position: int, picture: int) -> Batch:
        view = position // count % views.config.views
        return make_sample(views, config, int(picture) * views.config.views + view, position)

    # Numbered before they are distributed over hosts and steps, so that a sample depends on its index in the run alone.
    dataset = order.map_with_index(sample)[feeding.start_step * config.pictures + feeding.host :: feeding.hosts]
    dataset = dataset.batch(config.pictures // feeding.hosts, drop_remainder=True)
    # Few prefetched batches, since each may take tens of megabytes.
    fed = dataset.to_iter_dataset(grain.ReadOptions(num_threads=feeding.threads, prefetch_buffer_size=4))
    if feeding.workers:
        if not absl.flags.FLAGS.is_parsed():  # grain reads an absl flag in its workers
            absl.flags.FLAGS.mark_as_parsed()
        fed = fed.mp_prefetch(grain.MultiprocessingOptions(num_workers=feeding.workers, per_worker_buffer_size=2))
    return iter(fed)
