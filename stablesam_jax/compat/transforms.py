"""Pictures, coordinates and boxes into the frame of the model (segment_anything/utils/transforms.py)."""

import numpy as np
from PIL import Image

from stablesam_jax.compat.tensors import Tensor, array, like
from stablesam_jax.config import Frame
from stablesam_jax.predict.postprocess import Size
from stablesam_jax.predict.preprocess import resized_size


class ResizeLongestSide:
    """Resizes the longer side to a length. Methods that end in `_torch` take and return tensors."""

    def __init__(self, target_length: int):
        """Side of the model's input in pixels."""
        self.target_length = target_length

    def apply_image(self, image: np.ndarray) -> np.ndarray:
        """(H, W, C) uint8 -> the same, resized as the model expects it."""
        height, width = self.get_preprocess_shape(image.shape[0], image.shape[1], self.target_length)
        return np.array(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))

    def apply_coords(self, coords: np.ndarray, original_size: Size) -> np.ndarray:
        """(..., 2) (x, y) in pixels of a picture of that height and width -> float64, in the model's frame."""
        return np.asarray(coords, np.float64) * self._scale(original_size)

    def apply_boxes(self, boxes: np.ndarray, original_size: Size) -> np.ndarray:
        """(..., 4) XYXY -> (N, 4)."""
        return self.apply_coords(np.reshape(boxes, (-1, 2, 2)), original_size).reshape(-1, 4)

    def apply_image_torch(self, image: Tensor) -> Tensor:
        """(B, C, H, W) float -> the same, resized bilinearly with antialiasing, about as `apply_image` does it."""
        pixels = array(image)
        height, width = pixels.shape[-2:]
        new_height, new_width = self.get_preprocess_shape(height, width, self.target_length)
        rows, columns = _resampling(height, new_height), _resampling(width, new_width)
        return like(image, np.einsum("hi,bcij,wj->bchw", rows, pixels, columns, optimize=True))

    def apply_coords_torch(self, coords: Tensor, original_size: Size) -> Tensor:
        """As `apply_coords`, float32."""
        return like(coords, array(coords) * np.float32(self._scale(original_size)))

    def apply_boxes_torch(self, boxes: Tensor, original_size: Size) -> Tensor:
        """As `apply_boxes`, float32."""
        moved = array(boxes).reshape(-1, 2, 2) * np.float32(self._scale(original_size))
        return like(boxes, moved.reshape(-1, 4))

    @staticmethod
    def get_preprocess_shape(oldh: int, oldw: int, long_side_length: int) -> Size:
        """Height and width after the longer side is resized to a length."""
        return resized_size((oldh, oldw), Frame(long_side_length))

    def _scale(self, original_size: Size) -> np.ndarray:
        """Of x and y."""
        height, width = map(int, original_size)
        new_height, new_width = self.get_preprocess_shape(height, width, self.target_length)
        return np.array([new_width / width, new_height / height])


def _resampling(old: int, new: int) -> np.ndarray:
    """(new, old) float32 weights of an axis: a triangle as wide as a pixel of the coarser side, half-pixel centres."""
    scale = old / new
    centres = scale * (np.arange(new)[:, None] + 0.5) - 0.5
    weights = np.maximum(1 - np.abs(np.arange(old) - centres) / max(scale, 1), 0)
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
