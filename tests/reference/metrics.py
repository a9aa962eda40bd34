"""Slow twins of stablesam_jax/metrics.py: pixel by pixel, erosion by erosion, as the definitions read."""

import math

import numpy as np


def mask_iou(predicted, target):
    pairs = list(zip(predicted.ravel().tolist(), target.ravel().tolist(), strict=True))
    union = sum(p or t for p, t in pairs)
    return sum(p and t for p, t in pairs) / union if union else math.nan


def erode_once(mask):
    """A pixel stays if all of its 3 x 3 neighbourhood is foreground; there is none outside the picture."""
    height, width = mask.shape
    padded = np.zeros((height + 2, width + 2), bool)
    padded[1:-1, 1:-1] = mask
    eroded = np.ones_like(mask)
    for dy in range(3):
        for dx in range(3):
            eroded &= padded[dy : dy + height, dx : dx + width]
    return eroded


def boundary_iou(predicted, target, dilation_ratio=0.02):
    height, width = target.shape
    distance = max(1, int(round(dilation_ratio * math.sqrt(height**2 + width**2))))  # noqa: RUF046  as in the reference
    inside = [predicted, target]
    for _ in range(distance):
        inside = [erode_once(mask) for mask in inside]
    return mask_iou(predicted & ~inside[0], target & ~inside[1])


def stability(masks):
    union = np.any(masks, axis=0)
    return float(np.mean([mask_iou(mask, union) for mask in masks])) if union.any() else 0.0


def class_iou(pairs, classes, ignore):
    """IoU of each class over (predicted, target) maps, pixel by pixel; None for a class that is nowhere."""
    agreed, either = [0] * classes, [0] * classes
    for predicted, target in pairs:
        for guess, truth in zip(predicted.ravel().tolist(), target.ravel().tolist(), strict=True):
            if truth == ignore:
                continue
            if guess == truth:
                agreed[truth] += 1
                either[truth] += 1
            else:
                either[guess] += 1
                either[truth] += 1
    return [a / e if e else None for a, e in zip(agreed, either, strict=True)]
