"""Picture to model input, coordinates to the model's frame, and low-resolution logits back to the picture.

The same arithmetic as segment_anything's ResizeLongestSide, Sam.preprocess and Sam.postprocess_masks.
"""

import numpy as np
from PIL import Image

from stablesam_jax.config import SamConfig
from stablesam_jax.errors import InputError


def resized_size(size_hw: tuple[int, int], image_size: int) -> tuple[int, int]:
    """Height and width after the longer side is brought to `image_size`; halves go up, and no side vanishes.

    >>> resized_size((333, 500), 1024)
    (682, 1024)
    """
    scale = image_size / max(size_hw)
    height, width = (max(int(side * scale + 0.5), 1) for side in size_hw)
    return height, width


def preprocess(picture: np.ndarray, config: SamConfig) -> np.ndarray:
    """Resizes, normalises, then pads with zeros at the bottom and on the right.

    Pillow resizes, because it rounds to 8 bits between its two passes: nothing else gives the official model's input.

    Args:
        picture: (H, W, 3) uint8, RGB.
        config: for the size S of the model's input, the mean and the deviation of pixels.

    Returns:
        (S, S, 3) float32. Padding is 0, the mean colour.

    Raises:
        InputError: another shape or dtype, or an empty picture.
    """
    if picture.ndim != 3 or picture.shape[2] != 3 or picture.dtype != np.uint8 or picture.size == 0:
        raise InputError(
            f"picture has shape {picture.shape} and dtype {picture.dtype}; expected (H, W, 3) uint8 in RGB. "
            "Convert it, as with PIL.Image.open(file).convert('RGB')."
        )
    height, width = resized_size(picture.shape[:2], config.image_size)
    resized = np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.BILINEAR), np.float32)
    padded = np.zeros((config.image_size, config.image_size, 3), np.float32)
    mean, deviation = np.array([config.pixel_mean, config.pixel_std], np.float32)
    padded[:height, :width] = (resized - mean) / deviation
    return padded


def to_model_frame(coords: np.ndarray, size_hw: tuple[int, int], image_size: int) -> np.ndarray:
    """Maps pixels of a picture to pixels of the model's input.

    Args:
        coords: (..., 2) (x, y); a box is two of them.
        size_hw: of the picture.
        image_size: S.

    Returns:
        (..., 2) float32. The factors come from the rounded sizes, so they differ a little between x and y.
    """
    height, width = size_hw
    new_height, new_width = resized_size(size_hw, image_size)
    return (np.asarray(coords, np.float64) * (new_width / width, new_height / height)).astype(np.float32)


def upscale_logits(low_res_masks: np.ndarray, size_hw: tuple[int, int], image_size: int) -> np.ndarray:
    """Brings logits to the size of the picture: bilinearly to S x S, crop of the padding, bilinearly to the picture.

    Both resizes and the crop are linear and act on each axis alone: together they are one small matrix per axis.

    Args:
        low_res_masks: (..., 4G, 4G) float32 logits.
        size_hw: of the picture.
        image_size: S.

    Returns:
        (..., H, W) float32 logits; above 0 is foreground.
    """
    rows, columns = (
        _resize_rows(_resize_rows(np.eye(side, dtype=np.float32), image_size)[:cropped], size)
        for side, cropped, size in zip(
            low_res_masks.shape[-2:], resized_size(size_hw, image_size), size_hw, strict=True
        )
    )
    return rows @ (low_res_masks @ columns.T)


def _resize_rows(x: np.ndarray, size: int) -> np.ndarray:
    """Bilinear resize of axis 0 without antialiasing, half-pixel centres: (rows, ...) -> (size, ...).

    Positions are rounded as PyTorch rounds them, in float32 after one multiply-add: where rows / size is not exact,
    exact positions would move steep logits by 5e-4.
    """
    scale = np.float64(np.float32(len(x) / size))
    position = np.maximum(np.float32(scale * (np.arange(size) + 0.5) - 0.5), 0)
    lower = np.minimum(position.astype(np.int64), len(x) - 1)
    upper = np.minimum(lower + 1, len(x) - 1)
    weight = np.minimum(position - lower.astype(np.float32), 1)[:, None]
    return x[lower] * (1 - weight) + x[upper] * weight
