"""Converts pictures to the model's input, and coordinates to its frame.

The same arithmetic as segment_anything's ResizeLongestSide and Sam.preprocess; for SAM 2 as SAM2Transforms.
"""

import dataclasses

import numpy as np
from PIL import Image

from stablesam_jax.config import Frame, SamConfig
from stablesam_jax.errors import InputError
from stablesam_jax.files.picture_file import white_of
from stablesam_jax.prompts import Prompt


def resized_size(size_hw: tuple[int, int], frame: Frame) -> tuple[int, int]:
    """Height and width of a picture in a frame; halves round up, and no side is below 1.

    >>> resized_size((333, 500), Frame(1024)), resized_size((333, 500), Frame(1024, stretched=True))
    ((682, 1024), (1024, 1024))
    """
    if frame.stretched:
        return frame.size, frame.size
    scale = frame.size / max(size_hw)
    height, width = (max(int(side * scale + 0.5), 1) for side in size_hw)
    return height, width


def check_picture(picture: np.ndarray) -> None:
    """Raises an `InputError` with a remedy unless the picture is (H, W, 3) uint8 with at least one pixel."""
    shape, dtype = np.shape(picture), getattr(picture, "dtype", type(picture).__name__)
    if len(shape) != 3 or shape[2] != 3 or dtype != np.uint8 or 0 in shape:
        raise InputError(
            f"picture has shape {shape} and dtype {dtype}; expected (H, W, 3) uint8 in RGB. {_remedy(picture)}"
        )


def _remedy(picture: object) -> str:
    if not isinstance(picture, np.ndarray):
        return 'Make an array of it, as of a Pillow picture: np.asarray(picture.convert("RGB")).'
    match picture.shape:
        case shape if 0 in shape:
            return "It is empty; give one with pixels."
        case (_, _):
            return "Repeat the grey channel: np.stack([picture] * 3, axis=-1)."
        case (_, _, 1):
            return "Repeat the grey channel: np.repeat(picture, 3, axis=2)."
        case (_, _, 4):
            return "Drop the fourth channel: picture[..., :3]."
        case (_, _, 3):
            pass
        case (3, _, _):
            return "Put the channels last: picture.transpose(1, 2, 0)."
        case _:
            return "Give one picture at a time, as np.asarray(PIL.Image.open(file).convert('RGB'))."
    highest = picture.max()
    match picture.dtype.kind:
        case "f" if highest <= 1:
            return "Bring 0..1 to 0..255: (picture * 255).round().astype(np.uint8)."
        case "u" | "i" if highest > 255:
            white = white_of(highest)
            return f"Bring 0..{white} to 0..255: (picture / {white} * 255).astype(np.uint8)."
        case "b":
            return "Bring False and True to 0 and 255: picture.astype(np.uint8) * 255."
        case "f":
            return "Round it, if it holds 0..255: picture.round().astype(np.uint8)."
        case _:
            return "Change the type, if it holds 0..255: picture.astype(np.uint8)."


def preprocess(picture: np.ndarray, config: SamConfig) -> np.ndarray:
    """Resizes, normalises, then pads with zeros at the bottom and on the right.

    Pillow resizes, as in the official code: it rounds to 8 bits between its two passes, which other libraries do not.
    SAM 2 resizes float32 pixels without rounding, see `antialiased`.

    Args:
        picture: (H, W, 3) uint8, RGB.
        config: has the size S of the model's input, and mean and standard deviation of pixels.

    Returns:
        (S, S, 3) float32. Padding is 0, the mean colour.

    Raises:
        InputError: another shape or dtype, or an empty picture.
    """
    check_picture(picture)
    height, width = resized_size(picture.shape[:2], config.frame)
    mean, deviation = np.array([config.pixel_mean, config.pixel_std], np.float64)
    if config.sam2:
        resized = antialiased(antialiased(picture.astype(np.float32) / np.float32(255), width, axis=1), height, axis=0)
        return (resized - (mean / 255).astype(np.float32)) / (deviation / 255).astype(np.float32)
    resized = np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.BILINEAR), np.float32)
    padded = np.zeros((config.image_size, config.image_size, 3), np.float32)
    padded[:height, :width] = (resized - mean.astype(np.float32)) / deviation.astype(np.float32)
    return padded


def antialiased(pixels: np.ndarray, size: int, *, axis: int) -> np.ndarray:
    """Bilinear resize of one axis with antialiasing: a triangle as wide as an output pixel, in PyTorch's arithmetic.

    Positions and weights are rounded to float32 as in aten/src/ATen/native/cpu/UpSampleKernel.cpp. Exact ones would
    change values by up to 1e-4 where the ratio of sizes is not exact in float32.

    Args:
        pixels: (H, W, C) float32.
        size: of the axis after.
        axis: 0 or 1.

    Returns:
        the same with `size` at that axis.
    """
    before, real = pixels.shape[axis], np.float32
    scale = real(before / size)
    support = max(scale, real(1))
    centre = (np.float64(scale) * (np.arange(size) + 0.5)).astype(real)
    first = np.maximum(((centre - support).astype(np.float64) + 0.5).astype(np.int64), 0)
    count = np.minimum(((centre + support).astype(np.float64) + 0.5).astype(np.int64), before) - first
    taps = np.arange(count.max())
    distance = ((first[:, None] + taps).astype(real) - centre[:, None]).astype(np.float64) + 0.5
    weights = 1 - np.abs((distance * np.float64(1 / support)).astype(real))
    weights = np.where(taps < count[:, None], np.maximum(weights, real(0)), real(0))
    weights /= np.cumsum(weights, axis=1, dtype=real)[:, -1:]  # summed from left to right
    shape = [1, 1, 1]
    shape[axis] = size
    total = np.zeros((*pixels.shape[:axis], size, *pixels.shape[axis + 1 :]), real)
    for tap in taps:
        total += np.take(pixels, np.minimum(first + tap, before - 1), axis=axis) * weights[:, tap].reshape(shape)
    return total


def to_model_frame(coords: np.ndarray, size_hw: tuple[int, int], frame: Frame) -> np.ndarray:
    """Maps pixels of a picture to pixels of the model's input.

    Args:
        coords: (..., 2) (x, y); a box is two of them.
        size_hw: of the picture.
        frame: of the model.

    Returns:
        (..., 2) float32. The factors are ratios of rounded sizes, so those of x and y differ slightly.
    """
    height, width = size_hw
    new_height, new_width = resized_size(size_hw, frame)
    return (np.asarray(coords, np.float64) * (new_width / width, new_height / height)).astype(np.float32)


def in_model_frame(prompt: Prompt, size_hw: tuple[int, int], frame: Frame) -> Prompt:
    """Maps a prompt in pixels of a picture to pixels of the model's input; see `to_model_frame`."""
    box = None if prompt.box is None else to_model_frame(prompt.box.reshape(2, 2), size_hw, frame).reshape(4)
    return dataclasses.replace(prompt, points=to_model_frame(prompt.points, size_hw, frame), box=box)
