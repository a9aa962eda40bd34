"""Picture to model input, coordinates to the model's frame, and low-resolution logits back to the picture.

The same arithmetic as segment_anything's ResizeLongestSide, Sam.preprocess and Sam.postprocess_masks.
"""

from collections.abc import Iterator

import numpy as np
from PIL import Image

from stablesam_jax.config import SamConfig
from stablesam_jax.errors import InputError

TAPS = 3  # neighbouring low-resolution logits that make one of the picture, per axis
BLOCK_ROWS = 64  # of a picture whose logits exist at once: 3 MB of a picture 12,000 pixels wide


def resized_size(size_hw: tuple[int, int], image_size: int) -> tuple[int, int]:
    """Height and width after the longer side is brought to `image_size`; halves go up, and no side vanishes.

    >>> resized_size((333, 500), 1024)
    (682, 1024)
    """
    scale = image_size / max(size_hw)
    height, width = (max(int(side * scale + 0.5), 1) for side in size_hw)
    return height, width


def check_picture(picture: np.ndarray) -> None:
    """Raises an `InputError`, with the remedy, for anything but (H, W, 3) uint8 with at least one pixel."""
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
            return "Bring 0..65535 to 0..255: (picture // 257).astype(np.uint8)."
        case "b":
            return "Bring False and True to 0 and 255: picture.astype(np.uint8) * 255."
        case "f":
            return "Round it, if it holds 0..255: picture.round().astype(np.uint8)."
        case _:
            return "Change the type, if it holds 0..255: picture.astype(np.uint8)."


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
    check_picture(picture)
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


def upscaling(size_hw: tuple[int, int], *, mask_size: int, image_size: int) -> tuple[np.ndarray, np.ndarray]:
    """The two matrices that bring logits to the size of a picture, as Sam.postprocess_masks does.

    It resizes bilinearly to S x S, crops the padding, and resizes bilinearly to the picture. All three are linear and
    act on each axis alone: together they are one matrix per axis.

    Args:
        size_hw: of the picture.
        mask_size: 4G, side of the logits.
        image_size: S.

    Returns:
        rows (H, 4G) and columns (W, 4G), float32, such that `rows @ logits @ columns.T` are the picture's logits. No
        more than TAPS weights of a row differ from 0, and they are neighbours.
    """
    square = _resize_rows(np.eye(mask_size, dtype=np.float32), image_size)
    rows, columns = (
        _resize_rows(square[:cropped], size)
        for cropped, size in zip(resized_size(size_hw, image_size), size_hw, strict=True)
    )
    return rows, columns


def taps(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What is not 0 of one of these matrices (size, 4G): the first of TAPS neighbours (size,), weights (size, TAPS)."""
    first = np.minimum((matrix != 0).argmax(axis=1), matrix.shape[1] - TAPS)
    return first, np.take_along_axis(matrix, first[:, None] + np.arange(TAPS), axis=1)


def upscale_logits(low_res_masks: np.ndarray, size_hw: tuple[int, int], image_size: int) -> np.ndarray:
    """Brings logits to the size of the picture, see `upscaling`.

    Args:
        low_res_masks: (..., 4G, 4G) float32 logits.
        size_hw: of the picture.
        image_size: S.

    Returns:
        (..., H, W) float32 logits; above 0 is foreground.
    """
    logits = np.empty((*low_res_masks.shape[:-2], *size_hw), np.float32)
    for place, block in _upscaled(low_res_masks, size_hw, image_size):
        logits[place] = block
    return logits


def upscale_masks(low_res_masks: np.ndarray, size_hw: tuple[int, int], image_size: int) -> np.ndarray:
    """`upscale_logits(...) > 0` to the bit, but without the memory of the logits: (..., H, W) bool."""
    masks = np.empty((*low_res_masks.shape[:-2], *size_hw), bool)
    for place, block in _upscaled(low_res_masks, size_hw, image_size):
        np.greater(block, 0, out=masks[place])
    return masks


def _upscaled(
    low_res_masks: np.ndarray, size_hw: tuple[int, int], image_size: int
) -> Iterator[tuple[tuple[int | slice, ...], np.ndarray]]:
    """The picture's logits in blocks of rows of one mask, each with its place in (..., H, W)."""
    matrices = upscaling(size_hw, mask_size=low_res_masks.shape[-1], image_size=image_size)
    rows, columns = (taps(matrix) for matrix in matrices)
    for index in np.ndindex(low_res_masks.shape[:-2]):
        widened = np.ascontiguousarray(_combined(low_res_masks[index].T, *columns).T)
        for start in range(0, size_hw[0], BLOCK_ROWS):
            block = slice(start, start + BLOCK_ROWS)
            yield (*index, block), _combined(widened, *(part[block] for part in rows))


def _combined(x: np.ndarray, first: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """(4G, any) -> (size, any). A product with the whole matrix would cost 4G / TAPS times as much, and all cores."""
    result = x[first] * weights[:, :1]
    for tap in range(1, TAPS):
        result += x[first + tap] * weights[:, tap : tap + 1]
    return result


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
