"""Rows of the search for the worst box, against the same search in PyTorch, an object at a time as BREPS does it."""

import functools
import math
from collections.abc import Callable, Iterator

import jax
import numpy as np
import torch

from bench.case import Case, Options, Work, count_of, peers, prepared
from bench.device import on_host, torch_device
from bench.inference import official_model, random_embedding
from eval.parity.__main__ import draw_params
from stablesam_jax.build import assemble
from stablesam_jax.config import SamConfig
from stablesam_jax.predict.box_search import DENSITY_WEIGHT, EPSILON, GAMMA_SCALE, GAMMA_SHAPE, RATE, STEPS, search
from stablesam_jax.prompts import gt_box

OBJECTS = (1, 4)  # on one picture
COMPARED = 5  # first boxes, which must agree; later ones drift apart by rounding
SAME_BOXES = 2e-3  # largest difference of these, as a share of the input's side


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


def _discs(count: int, side: int) -> np.ndarray:
    """(N, side, side) bool."""
    rows, columns = np.mgrid[:side, :side] / side
    centres = np.random.default_rng(0).uniform(0.3, 0.7, (count, 2))
    return np.stack([(rows - y) ** 2 + (columns - x) ** 2 < 0.04 for y, x in centres])


def _ours(config: SamConfig, targets: np.ndarray) -> Work:
    sam, params = assemble(config), jax.device_put(draw_params(config, seed=0))
    embedding = jax.jit(functools.partial(sam.apply, method="fuse"))({"params": params}, random_embedding(config))
    boxes = np.stack([gt_box(target) for target in targets])
    return lambda: search(sam, params, embedding, boxes, list(targets), "worst").boxes


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
        box = start.clone().requires_grad_()
        optimizer = torch.optim.Adam([box], lr=rate)
        tried = []
        for _ in range(STEPS):
            tried.append(box.detach().cpu().numpy().copy())
            probabilities = torch.sigmoid(wrapped(box))
            dice = 2 * (probabilities * share).sum() / (probabilities.sum() + share.sum() + EPSILON)
            loss = dice - DENSITY_WEIGHT * _log_density(_distance(box[0], start[0]))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return np.concatenate(tried)

    return lambda: np.stack([one(target) for target in targets], axis=1)


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
