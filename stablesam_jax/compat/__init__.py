"""The classes of segment_anything and sam2 over these models, for programs that were written for them.

    from stablesam_jax.compat import SamAutomaticMaskGenerator, SamPredictor, sam_model_registry

    sam = sam_model_registry["stable_sam_nano"]()  # or ["vit_b"](checkpoint="FOLDER"), a plugin as "FOLDER+PLUGIN_FILE"
    predictor = SamPredictor(sam)

    from stablesam_jax.compat import SAM2ImagePredictor, build_sam2

    predictor = SAM2ImagePredictor(build_sam2("configs/sam2.1/sam2.1_hiera_t.yaml", "FOLDER"))

Names, arguments, shapes and values are those of segment_anything and sam2. If PyTorch is loaded, tensors there are
tensors here, on the CPU; otherwise they are numpy arrays of the same layout. Arguments may be tensors of any device.
JAX decides where the model runs, and nothing has gradients. Input for which the official code returns meaningless
masks, such as a box in another frame, is refused.

Clients may assign `features`, `interm_features`, `original_size`, `input_size` and `is_image_set`; of SAM 2
`_features`, `_orig_hw`, `_is_image_set` and `_is_batch`. The model, its weights and its parts are fixed.
"""

from stablesam_jax.compat.predictor import ImageNotSet, SamAutomaticMaskGenerator, SamPredictor
from stablesam_jax.compat.registry import (
    build_sam,
    build_sam_vit_b,
    build_sam_vit_h,
    build_sam_vit_l,
    build_sam_vit_t,
    sam_model_registry,
)
from stablesam_jax.compat.sam import Sam
from stablesam_jax.compat.sam2 import SAM2Base, build_sam2, build_sam2_hf
from stablesam_jax.compat.sam2_predictor import SAM2AutomaticMaskGenerator, SAM2ImagePredictor
from stablesam_jax.compat.transforms import ResizeLongestSide

__all__ = [
    "ImageNotSet",
    "ResizeLongestSide",
    "SAM2AutomaticMaskGenerator",
    "SAM2Base",
    "SAM2ImagePredictor",
    "Sam",
    "SamAutomaticMaskGenerator",
    "SamPredictor",
    "build_sam",
    "build_sam2",
    "build_sam2_hf",
    "build_sam_vit_b",
    "build_sam_vit_h",
    "build_sam_vit_l",
    "build_sam_vit_t",
    "sam_model_registry",
]
