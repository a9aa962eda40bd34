"""Rows of the search for the worst box, against the same search in PyTorch, an object at a time as BREPS does it.

The search alone starts from an image embedding. The protocol starts from a picture and ends with the IoU of the tight,
the worst and the best box at the picture's size; as released, it encodes the picture anew for every search.
"""

import functools
import math
from collections.abc import Callable, Iterator

import jax
import numpy as np
import torch

from bench.case import Case, Options, Work, count_of, peers, prepared
from bench.device import on_host, torch_device
from bench.inference import official_model, photograph, random_embedding, wrapped_model
from eval.parity import torch_sam
from eval.parity.__main__ import draw_params
from eval.protocols.breps import begin
from stablesam_jax.build import assemble
from stablesam_jax.config import SamConfig
from stablesam_jax.data.readers import LabelledPicture
from stablesam_jax.metrics import mask_iou
from stablesam_jax.predict.box_search import DENSITY_WEIGHT, EPSILON, GAMMA_SCALE, GAMMA_SHAPE, RATE, STEPS, search
from stablesam_jax.predict.predictor import Predictor
from stablesam_jax.prompts import gt_box

OBJECTS = (1, 4)  # on one picture
COMPARED = 5  # first boxes, which must agree; later ones drift apart by rounding
SAME_BOXES = 2e-3  # largest difference of these, as a share of the input's side
SAME_TIGHT = 2e-3  # largest difference of the IoU of a tight box's mask


def box_search_cases(options: Options) -> Iterator[Case]:
    """Objects on one embedding to the boxes that were tried: 50 passes through the decoder and back for each.

    Other than in BREPS both sides compute the loss at the size of the low-resolution logits, which is less work.
    """
    for name, config in options.configs().items():
        for count in OBJECTS:
            targets = _discs(count, config.image_size)
            yield Case(
                f"worst box, {count_of('object', count)}",
                prepared(functools.partial(_ours, config, targets)),
                peers(options, functools.partial(_theirs, config, targets)),
                name,
                functools.partial(_largest_difference, config.image_size),
                SAME_BOXES,
            )
        for count in OBJECTS:
            picture = photograph((config.image_size, config.image_size))
            targets = _discs(count, config.image_size)
            yield Case(
                f"BREPS's protocol, {count_of('object', count)}",
                prepared(functools.partial(_our_protocol, config, picture, targets)),
                peers(options, functools.partial(_their_protocol, config, picture, targets)),
                name,
                lambda ours, theirs: float(np.abs(ours[:, 0] - theirs[:, 0]).max()),
                SAME_TIGHT,
            )


def _discs(count: int, side: int) -> np.ndarray:
    """(N, side, side) bool."""
    rows, columns = np.mgrid[:side, :side] / side
    centres = np.random.default_rng(0).uniform(0.3, 0.7, (count, 2))
    return np.stack([(rows - y) ** 2 + (columns - x) ** 2 < 0.04 for y, x in centres])


def _ours(config: SamConfig, targets: np.ndarray) -> Work:
    sam, params = assemble(config), jax.device_put(draw_params(config, seed=0))
    embedding = jax.jit(functools.partial(sam.apply, method="fuse"))({"params": params}, random_embedding(config))
    boxes = np.stack([gt_box(target) for target in targets])
    return lambda: search(sam, params, embedding, boxes, list(targets), ["worst"] * len(targets)).boxes


def _theirs(config: SamConfig, targets: np.ndarray, wrap: Callable) -> Work:
    official, device = official_model(config).requires_grad_(False), torch_device()
    features = torch.tensor(np.asarray(random_embedding(config).features, np.float32)).permute(0, 3, 1, 2).to(device)

    def decode(box: torch.Tensor) -> torch.Tensor:
        sparse, dense = official.prompt_encoder(points=None, boxes=box, masks=None)
        image_pe = official.prompt_encoder.get_dense_pe()
        return official.mask_decoder(features, image_pe, sparse, dense, multimask_output=False)[0][0, 0]

    wrapped, rate = wrap(decode), RATE * config.image_size

    def one(target: np.ndarray) -> np.ndarray:
        share = torch.tensor(target, dtype=torch.float32, device=device)[None, None]
        share = torch.nn.functional.interpolate(share, (config.mask_size, config.mask_size), mode="area")[0, 0]
        start = torch.tensor(gt_box(target), device=device)[None]
        return np.concatenate([box for box, _ in _their_search(wrapped, start, share, rate, sign=1)])

    return lambda: np.stack([one(target) for target in targets], axis=1)


def _their_search(
    decode: Callable[[torch.Tensor], torch.Tensor], start: torch.Tensor, target: torch.Tensor, rate: float, sign: int
) -> Iterator[tuple[np.ndarray, torch.Tensor]]:
    """Every box (1, 4) that is tried, with the logits (H, W) of its mask."""
    box = start.clone().requires_grad_()
    optimizer = torch.optim.Adam([box], lr=rate)
    for _ in range(STEPS):
        tried, logits = box.detach().cpu().numpy().copy(), decode(box)
        yield tried, logits.detach()
        probabilities = torch.sigmoid(logits)
        dice = 2 * (probabilities * target).sum() / (probabilities.sum() + target.sum() + EPSILON)
        loss = sign * dice - DENSITY_WEIGHT * _log_density(_distance(box[0], start[0]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def _our_protocol(config: SamConfig, picture: np.ndarray, targets: np.ndarray) -> Work:
    sam, params = assemble(config), jax.device_put(draw_params(config, seed=0))
    predictor = Predictor(sam, params)
    labelled = LabelledPicture("picture", picture, targets)

    def work() -> np.ndarray:
        objects = begin(predictor, params, labelled, np.zeros((0, 4), np.float32), "best")()["objects"]
        return np.array([[one[metric] for metric in ("tight", "worst", "best")] for one in objects])

    return work


def _their_protocol(config: SamConfig, picture: np.ndarray, targets: np.ndarray, wrap: Callable) -> Work:
    """As the released search for SAM: the best of three masks by predicted IoU, at the picture's size."""
    official, rate = wrapped_model(config, wrap).requires_grad_(False), RATE * config.image_size
    predictor = torch_sam.SamPredictor(official)

    def decode(box: torch.Tensor) -> torch.Tensor:
        predict = torch_sam.SamPredictor.predict_torch.__wrapped__  # without its no_grad
        masks, scores, _ = predict(predictor, None, None, boxes=box, multimask_output=True, return_logits=True)
        return masks[0, scores[0].argmax()]

    def one(target: np.ndarray) -> list[float]:
        ious = []
        for sign in (1, -1):
            predictor.set_image(picture)
            start = torch.tensor(gt_box(target), device=torch_device())[None]
            share = torch.tensor(target, dtype=torch.float32, device=torch_device())
            found = _their_search(decode, start, share, rate, sign)
            ious.append([mask_iou((logits > 0).cpu().numpy(), target) for _, logits in found])
        worst, best = ious
        return [worst[0], min(worst), max(best)]

    return lambda: np.array([one(target) for target in targets])


def _distance(box: torch.Tensor, tight: torch.Tensor) -> torch.Tensor:
    """1 - CIoU of two boxes (4,)."""
    side, tight_side = box[2:] - box[:2], tight[2:] - tight[:2]
    shared = (torch.minimum(box[2:], tight[2:]) - torch.maximum(box[:2], tight[:2])).clamp(min=0).prod()
    iou = shared / (side.prod() + tight_side.prod() - shared + EPSILON)
    hull = torch.maximum(box[2:], tight[2:]) - torch.minimum(box[:2], tight[:2])
    between = (box[:2] + box[2:] - tight[:2] - tight[2:]) / 2
    angles = torch.atan(tight_side[0] / (tight_side[1] + EPSILON)) - torch.atan(side[0] / (side[1] + EPSILON))
    aspect = 4 / math.pi**2 * angles**2
    weight = (aspect / (1 - iou + aspect + EPSILON)).detach()
    return 1 - iou + between.square().sum() / (hull.square().sum() + EPSILON) + weight * aspect


def _log_density(distance: torch.Tensor) -> torch.Tensor:
    if distance <= 0:
        return torch.zeros_like(distance)
    constant = math.lgamma(GAMMA_SHAPE) + GAMMA_SHAPE * math.log(GAMMA_SCALE)
    return (GAMMA_SHAPE - 1) * torch.log(distance) - distance / GAMMA_SCALE - constant


def _largest_difference(side: int, ours: np.ndarray, theirs: np.ndarray) -> float:
    return float(np.abs(on_host(ours)[:COMPARED] - on_host(theirs)[:COMPARED]).max() / side)
