"""HQ-SAM's loss (train/utils/loss_mask.py) for given points, in PyTorch, step by step."""

import torch.nn.functional as F


def hq_sam_loss(logits, targets, points):
    """(N, 1, h, w) logits, (N, 1, S, S) targets in 0..1, (N, P, 2) points (x, y) in 0..1 -> BCE, dice."""
    grid = 2 * points[:, :, None] - 1
    sampled = F.grid_sample(logits, grid, align_corners=False)[:, 0, :, 0]
    truth = F.grid_sample(targets, grid, align_corners=False)[:, 0, :, 0]
    number = len(logits)
    cross_entropy = F.binary_cross_entropy_with_logits(sampled, truth, reduction="none").mean(1).sum() / number
    probs = sampled.sigmoid()
    numerator = 2 * (probs * truth).sum(-1)
    denominator = probs.sum(-1) + truth.sum(-1)
    dice = (1 - (numerator + 1) / (denominator + 1)).sum() / number
    return float(cross_entropy), float(dice)
