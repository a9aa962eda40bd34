"""The worst and the best box that a user might draw around an object, found by gradient (BREPS, arXiv 2601.15123)."""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import optax

from stablesam_jax.errors import InputError
from stablesam_jax.metrics import mask_iou
from stablesam_jax.model.mask_decoder import MaskChoice
from stablesam_jax.model.prompt_encoder import BOTTOM_RIGHT, TOP_LEFT, Prompts
from stablesam_jax.model.sam import ImageEmbedding, Sam
from stablesam_jax.params import Params
from stablesam_jax.predict import compiled
from stablesam_jax.predict.decode import decode
from stablesam_jax.predict.picture import Picture
from stablesam_jax.predict.postprocess import upscale_masks
from stablesam_jax.predict.preprocess import in_model_frame, resized_size, to_model_frame
from stablesam_jax.predict.slots import Slots
from stablesam_jax.prompts import Prompt

STEPS = 50  # boxes that are tried, the given one included
RATE = 9 / 1024  # Adam's learning rate, as a share of the input's side S: 9 px times its diagonal / (1024 sqrt(2))
# Distances 1 - CIoU of users' boxes from the tight box have a Gamma distribution, fitted to 25,000 boxes.
GAMMA_SHAPE, GAMMA_SCALE = 1.789, 0.121
EPSILON = 1e-7  # against division by zero
DENSITY_WEIGHT = 0.1  # of the negative log density in the loss

Goal = Literal["worst", "best"]
SLOTS = Slots((1, 2, 4, 8))  # searches at once; memory holds STEPS masks of each


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Search:
    """The boxes that were tried in N searches, and their masks."""

    boxes: np.ndarray  # (STEPS, N, 4) float32 XYXY in pixels of the picture; the first are the given ones
    low_res_masks: np.ndarray  # (STEPS, N, 4G, 4G) float32 logits


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class WorstBox:
    """A box near a given one, and what it does to the mask."""

    box: np.ndarray  # (4,) float32 XYXY in pixels of the picture
    mask: np.ndarray  # (H, W) bool, predicted for it
    iou: float  # of that mask with the object's
    iou_before: float  # of the given box's mask with the object's


class _Inputs(NamedTuple):
    boxes: jax.Array | np.ndarray  # (N, 4) XYXY in the frame of the model's input
    targets: jax.Array | np.ndarray  # (N, 4G, 4G) float32, share of each pixel that belongs to the object
    inside: jax.Array | np.ndarray  # (4G, 4G) float32, 1 in the picture, 0 in the padding
    signs: jax.Array | np.ndarray  # (N,) float32, 1 for the worst box, -1 for the best


def search(
    sam: Sam,
    params: Params,
    embedding: ImageEmbedding,
    boxes: np.ndarray,
    targets: Sequence[np.ndarray],
    goals: Sequence[Goal],
    masks: MaskChoice = "single",
) -> Search:
    """Moves boxes by Adam so that their masks get worse, or better, and they stay such as users draw them.

    The loss is the dice coefficient of the single mask's probabilities for the worst box, and its negative for the best
    one, minus 0.1 times the log density of the box's distance 1 - CIoU from the given one. Other than in BREPS, dice is
    computed at the size of the low-resolution logits.

    Args:
        sam, params: the model.
        embedding: of one picture.
        boxes: (N, 4) XYXY in pixels of the picture, N at least 1.
        targets: N masks (H, W) bool of the objects.
        goals: N times "worst" or "best".
        masks: "multi" takes the best of three by predicted IoU at every step, as BREPS's released search for SAM does.

    Returns:
        all boxes that were tried; which was worst or best is for the caller to measure at the picture's size.
    """
    size_hw = targets[0].shape
    frame, mask_side = sam.config.frame, sam.config.mask_size
    start = to_model_frame(np.reshape(boxes, (-1, 2, 2)), size_hw, frame).reshape(-1, 4)
    height, width = (max(1, round(mask_side / frame.size * length)) for length in resized_size(size_hw, frame))
    shares = np.zeros((len(targets), mask_side, mask_side), np.float32)
    for share, target in zip(shares, targets, strict=True):
        share[:height, :width] = cv2.resize(target.astype(np.float32), (width, height), interpolation=cv2.INTER_AREA)
    inside = np.zeros((mask_side, mask_side), np.float32)
    inside[:height, :width] = 1
    signs = np.array([1 if goal == "worst" else -1 for goal in goals], np.float32)
    program = compiled.of_decoder(sam, functools.partial(_searching, masks=masks))
    found_boxes, found_masks = [], []
    for places in SLOTS.turns(len(start)):
        inputs = _Inputs(start[places], shares[places], inside, signs[places])
        tried, logits = jax.device_get(program(params, embedding, inputs))
        found_boxes.append(tried[:, : len(set(places))])
        found_masks.append(logits[:, : len(set(places))])
    tried = np.concatenate(found_boxes, axis=1).astype(np.float64)
    scale = np.array(size_hw[::-1]) / np.array(resized_size(size_hw, frame)[::-1])
    return Search(
        boxes=(tried * np.tile(scale, 2)).astype(np.float32), low_res_masks=np.concatenate(found_masks, axis=1)
    )


def worst_box(
    sam: Sam, params: Params, picture: Picture, prompts: Sequence[Prompt], is_list: bool, mask: np.ndarray | None
) -> WorstBox:
    """The rest of `Predictor.worst_box`, after `read_prompts`."""
    if is_list:
        raise InputError("worst_box takes one box; call it for each of the list.")
    sides = picture.original_size, sam.config.frame
    if mask is None:
        low_res_masks, _ = decode(sam, params, picture.embedding, [in_model_frame(prompts[0], *sides)], "single")
        mask = upscale_masks(low_res_masks[0, 0], *sides)
    target = np.asarray(mask, bool)
    if target.shape != picture.original_size:
        raise InputError(f"mask is {target.shape}; it must have the picture's size {picture.original_size}.")
    tried = search(sam, params, picture.embedding, np.asarray(prompts[0].box).reshape(1, 4), [target], ["worst"])
    boxes = tried.boxes[:, 0]
    masks = [upscale_masks(logits[0], *sides) for logits in tried.low_res_masks]
    ious = [mask_iou(one, target) for one in masks]
    upright = (boxes[:, :2] <= boxes[:, 2:]).all(axis=1)  # edges of a small box may change places on the way
    worst = int(np.argmin(np.where(upright, ious, np.inf)))
    return WorstBox(box=boxes[worst], mask=masks[worst], iou=ious[worst], iou_before=ious[0])


def distance(boxes: jax.Array, tight: jax.Array) -> jax.Array:
    """1 - CIoU of boxes (N, 4) XYXY (Zheng et al. 2020, eq. 7 to 9): 0 for equal boxes."""
    width, height = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    tight_width, tight_height = tight[:, 2] - tight[:, 0], tight[:, 3] - tight[:, 1]
    shared = jnp.maximum(jnp.minimum(boxes[:, 2:], tight[:, 2:]) - jnp.maximum(boxes[:, :2], tight[:, :2]), 0)
    intersection = shared[:, 0] * shared[:, 1]
    iou = intersection / (width * height + tight_width * tight_height - intersection + EPSILON)
    hull = jnp.maximum(boxes[:, 2:], tight[:, 2:]) - jnp.minimum(boxes[:, :2], tight[:, :2])
    between = (boxes[:, :2] + boxes[:, 2:] - tight[:, :2] - tight[:, 2:]) / 2
    apart = jnp.sum(between**2, axis=1) / (jnp.sum(hull**2, axis=1) + EPSILON)
    angles = jnp.arctan2(tight_width, tight_height + EPSILON) - jnp.arctan2(width, height + EPSILON)
    aspect = 4 / math.pi**2 * angles**2
    weight = jax.lax.stop_gradient(aspect / (1 - iou + aspect + EPSILON))
    return 1 - iou + apart + weight * aspect


def log_density(distances: jax.Array) -> jax.Array:
    """Log of the Gamma density of users' boxes; 0 at distance 0, where it has no value."""
    moved = distances > 0
    safe = jnp.where(moved, distances, 1.0)
    density = (GAMMA_SHAPE - 1) * jnp.log(safe) - safe / GAMMA_SCALE
    return jnp.where(moved, density - math.lgamma(GAMMA_SHAPE) - GAMMA_SHAPE * math.log(GAMMA_SCALE), 0.0)


@functools.lru_cache(compiled.KEPT)
def _searching(sam: Sam, masks: MaskChoice) -> Callable[..., tuple[jax.Array, jax.Array]]:
    """Compiles (variables, image embedding of one picture, inputs) -> boxes (STEPS, N, 4), (STEPS, N, 4G, 4G)."""
    optimizer = optax.adam(RATE * sam.config.image_size)

    def run(variables: compiled.Variables, embedding: ImageEmbedding, inputs: _Inputs) -> tuple[jax.Array, jax.Array]:
        start = jnp.asarray(inputs.boxes)
        count = len(start)
        labels = jnp.tile(jnp.array([TOP_LEFT, BOTTOM_RIGHT], jnp.int32), (1, count, 1))

        def loss(boxes: jax.Array) -> tuple[jax.Array, jax.Array]:
            prompts = Prompts(boxes.reshape(1, count, 2, 2), labels, jnp.ones((1, count, 2), bool))
            found = sam.apply(variables, embedding, prompts, masks=masks, at_once=True, method="decode")
            best = jnp.argmax(found.iou_predictions[0], axis=1)  # 0 of the single mask
            logits = jnp.take_along_axis(found.low_res_masks[0], best[:, None, None, None], axis=1)[:, 0]
            shares = jax.nn.sigmoid(logits) * inputs.inside[None]
            overlap = jnp.sum(shares * inputs.targets, axis=(1, 2))
            sizes = jnp.sum(shares, axis=(1, 2)) + jnp.sum(inputs.targets, axis=(1, 2))
            dice = 2 * overlap / (sizes + EPSILON)  # the coefficient, which the worst box makes small
            density = log_density(distance(boxes, start))
            return jnp.sum(inputs.signs * dice - DENSITY_WEIGHT * density), logits

        def step(state: tuple[jax.Array, optax.OptState], _: None) -> tuple[tuple, tuple[jax.Array, jax.Array]]:
            boxes, moments = state
            gradient, logits = jax.grad(loss, has_aux=True)(boxes)
            with jax.numpy_dtype_promotion("standard"):  # optax takes powers of a step count
                updates, moments = optimizer.update(gradient, moments)
            return (boxes + updates, moments), (boxes, logits)

        return jax.lax.scan(step, (start, optimizer.init(start)), length=STEPS)[1]

    return jax.jit(run)
