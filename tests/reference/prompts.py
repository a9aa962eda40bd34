"""Slow twin of the coarse mask: bilinear interpolation written out, then the four steps one after another."""

import math

import numpy as np


def interpolate(picture, size):
    """Bilinear, no antialias, pixel centres at halves, the border repeated: align_corners=False of PyTorch."""
    old = len(picture)
    result = np.zeros((size, size))
    for i in range(size):
        for j in range(size):
            y, x = (min(max((k + 0.5) * old / size - 0.5, 0), old - 1) for k in (i, j))
            top, left = math.floor(y), math.floor(x)
            bottom, right = min(top + 1, old - 1), min(left + 1, old - 1)
            fy, fx = y - top, x - left
            above = (1 - fx) * picture[top, left] + fx * picture[top, right]
            below = (1 - fx) * picture[bottom, left] + fx * picture[bottom, right]
            result[i, j] = (1 - fy) * above + fy * below
    return result


def coarse_mask(mask, noise, size):
    soft = interpolate(mask.astype(float), size)
    recovered = interpolate(interpolate(soft, size // 8), size)
    incoherent = np.abs(soft - recovered) >= 0.01
    return np.where(incoherent, soft + noise, soft) > 0.5
