"""Stable Segment Anything in JAX and Flax (arXiv 2311.15776).

    from stablesam_jax import Predictor, load_model

    predictor = Predictor(*load_model("sam_nano"))

Letters used in every docstring of this package:

    B  pictures in a batch              H, W  rows and columns
    N  prompts of a picture             G     side of the image embedding in cells
    K  sparse tokens of a prompt        C     channels
    T  tokens in the mask decoder       M     masks of a prompt

Coordinates are (x, y) in pixels, boxes are XYXY, pictures are (H, W, 3) uint8 in RGB.
"""

import importlib
from typing import TYPE_CHECKING, Any

from stablesam_jax.version import __version__ as __version__

if TYPE_CHECKING:
    from stablesam_jax.build import load_model
    from stablesam_jax.files.compilation_cache import keep_compiled_programs
    from stablesam_jax.predict.mask_generator import MaskGenerator
    from stablesam_jax.predict.picture import Picture
    from stablesam_jax.predict.predictor import Predictor
    from stablesam_jax.predict.slots import Slots

__all__ = ["MaskGenerator", "Picture", "Predictor", "Slots", "keep_compiled_programs", "load_model"]

# Imported on first access: JAX, Flax and Orbax take seconds to import, and importing any module of the package runs
# this file, even where a worker process or --help needs none of them.
_HOMES = {
    "MaskGenerator": "stablesam_jax.predict.mask_generator",
    "Picture": "stablesam_jax.predict.picture",
    "Predictor": "stablesam_jax.predict.predictor",
    "Slots": "stablesam_jax.predict.slots",
    "keep_compiled_programs": "stablesam_jax.files.compilation_cache",
    "load_model": "stablesam_jax.build",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
