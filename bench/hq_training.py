"""HQ-SAM's training step in PyTorch, after its train/train.py and train/utils/loss_mask.py.

Omitted, in favour of HQ-SAM: reading and augmenting pictures, other prompts than boxes, SAM's own decoder, whose masks
the loop does not use, DistributedDataParallel, and logging.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch.nn.functional import binary_cross_entropy_with_logits, grid_sample

from eval.parity import torch_sam, twins
from stablesam_jax.config import SamConfig
from stablesam_jax.params import Params
from train.losses import IMPORTANT, OVERSAMPLING, POINTS

ADDED = ("hf_token", "hf_mlp", "compress_vit_feat", "embedding_encoder", "embedding_maskfeature")


@dataclasses.dataclass(frozen=True, eq=False)
class Loop:
    """The state of a training run: HQ-SAM with SAM's parts frozen, and Adam for the added parts."""

    sam: torch_sam.Official
    optimizer: torch.optim.Optimizer

    @torch.no_grad()
    def encode(self, pictures: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, S, S, 3) uint8 -> image embedding (B, C, G, G), early features (B, G, G, any), all pictures at once."""
        channels_first = torch.from_numpy(pictures).permute(0, 3, 1, 2)
        embedding, early = self.sam.image_encoder(torch.stack([self.sam.preprocess(x) for x in channels_first]))
        return embedding, early[0]

    def step(self, encoded: tuple[torch.Tensor, torch.Tensor], boxes: np.ndarray, targets: np.ndarray) -> float:
        """One update.

        Args:
            encoded: from `encode`.
            boxes: (B, 4) XYXY in pixels of the model's input, a prompt for each picture.
            targets: (B, 1, S, S) 0..1.

        Returns:
            the loss.
        """
        embedding, early = encoded
        decoder, prompt_encoder = self.sam.mask_decoder, self.sam.prompt_encoder
        features = decoder.embedding_encoder(embedding) + decoder.compress_vit_feat(early.permute(0, 3, 1, 2))
        masks = []
        for index, box in enumerate(torch.from_numpy(boxes)):
            with torch.no_grad():
                sparse, dense = prompt_encoder(points=None, boxes=box[None], masks=None)
                image_pe = prompt_encoder.get_dense_pe()
            here = slice(index, index + 1)
            logits, _ = decoder.predict_masks(embedding[here], image_pe, sparse, dense, features[here])
            masks.append(logits[:, -1:])  # of the HQ token, the last
        loss = point_sampled_loss(torch.cat(masks), torch.from_numpy(targets).float())
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.item()


def start(config: SamConfig, params: Params, wrap: Callable[[Any], Any]) -> Loop:
    """Starts a run from our weights of an HQ-SAM. Everything is frozen except the parts that HQ-SAM adds to SAM.

    Args:
        config: of the HQ-SAM.
        params: its weights.
        wrap: applied to encoder and decoder: torch.compile or the identity.
    """
    sam = twins.load_official(config, params)
    sam.requires_grad_(False)
    trained: list[Any] = []
    for name in ADDED:
        trained += getattr(sam.mask_decoder, name).requires_grad_(True).parameters()
    sam.image_encoder.forward = wrap(sam.image_encoder.forward)
    sam.mask_decoder.predict_masks = wrap(sam.mask_decoder.predict_masks)
    return Loop(sam, torch.optim.Adam(trained, lr=1e-3))


def point_sampled_loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Cross entropy plus dice at sampled points, most of them where the logit is closest to 0.

    Args:
        logits: (B, 1, h, w).
        targets: (B, 1, S, S) 0..1.
    """
    count, important = len(logits), int(IMPORTANT * POINTS)
    with torch.no_grad():
        candidates = torch.rand(count, OVERSAMPLING * POINTS, 2)
        chosen = _sample(logits, candidates).abs().topk(important, dim=1, largest=False).indices
        uncertain = torch.gather(candidates, 1, chosen[..., None].expand(-1, -1, 2))
        points = torch.cat([uncertain, torch.rand(count, POINTS - important, 2)], dim=1)
        truth = _sample(targets, points)
    sampled = _sample(logits, points)
    cross_entropy = binary_cross_entropy_with_logits(sampled, truth, reduction="none").mean(dim=1)
    probs = sampled.sigmoid()
    dice = 1 - (2 * (probs * truth).sum(dim=1) + 1) / (probs.sum(dim=1) + truth.sum(dim=1) + 1)
    return (cross_entropy + dice).mean()


def _sample(maps: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
    """(B, 1, h, w), (B, P, 2) in 0..1 -> (B, P)."""
    return grid_sample(maps, 2 * points[:, :, None] - 1, align_corners=False)[:, 0, :, 0]


def join(parts: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Concatenates results of `encode`."""
    embeddings, early = zip(*parts, strict=True)
    return torch.cat(embeddings), torch.cat(early)
