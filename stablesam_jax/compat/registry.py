"""Models by the names of segment_anything's registry (build_sam.py)."""

import os
from collections.abc import Callable, Mapping

from stablesam_jax import build
from stablesam_jax.compat.sam import Sam
from stablesam_jax.config import MODELS
from stablesam_jax.errors import InputError


def _builder(name: str) -> Callable[..., Sam]:
    def build_sam(checkpoint: str | os.PathLike[str] | None = None, *, shared_picture: bool = False) -> Sam:
        """A model from a checkpoint folder or `BASE+PLUGIN_FILE`; without one, the shipped model of that name.

        `shared_picture`: as of `Sam`.

        Raises:
            InputError: see `load_model`; or the folder holds another model.
        """
        sam, params = build.load_model(name if checkpoint is None else checkpoint)
        if sam.config.encoder != MODELS[name].encoder:
            raise InputError(f"{checkpoint}: holds another model than {name}. Name the one that it holds.")
        return Sam(sam, params, shared_picture=shared_picture)

    return build_sam


_OFFICIAL_NAMES = {
    "default": "sam_vit_h",
    "vit_h": "sam_vit_h",
    "vit_l": "sam_vit_l",
    "vit_b": "sam_vit_b",
    "vit_t": "mobile_sam",
}

# Builders by name: the official names, which need a checkpoint folder, and all of MODELS.
sam_model_registry: Mapping[str, Callable[..., Sam]] = {
    name: _builder(ours) for name, ours in (_OFFICIAL_NAMES | {name: name for name in MODELS}).items()
}

build_sam = build_sam_vit_h = sam_model_registry["vit_h"]
build_sam_vit_l = sam_model_registry["vit_l"]
build_sam_vit_b = sam_model_registry["vit_b"]
build_sam_vit_t = sam_model_registry["vit_t"]
