"""segment_anything's classes over these models, for programs that were written for it.

    from stablesam_jax.compat import SamAutomaticMaskGenerator, SamPredictor, sam_model_registry

    sam = sam_model_registry["stable_sam_nano"]()  # or ["vit_b"](checkpoint="FOLDER"), a plugin as "FOLDER+PLUGIN_FILE"
    predictor = SamPredictor(sam)

Names, arguments, shapes and values are those of segment_anything. If PyTorch is loaded, tensors there are tensors here,
on the CPU; otherwise they are numpy arrays of the same layout. Arguments may be tensors of any device. JAX decides
where the model runs, and nothing has gradients. Input for which the official code returns meaningless masks, such as a
box in another frame, is refused.

Clients may assign `features`, `interm_features`, `original_size`, `input_size` and `is_image_set`. The model, its
weights and its parts are fixed.
"""

from stablesam_jax.compat.predictor import ImageNotSet, SamAutomaticMaskGenerator, SamPredictor
from stablesam_jax.compat.registry import sam_model_registry
from stablesam_jax.compat.sam import Sam
from stablesam_jax.compat.transforms import ResizeLongestSide

__all__ = [
    "ImageNotSet",
    "ResizeLongestSide",
    "Sam",
    "SamAutomaticMaskGenerator",
    "SamPredictor",
    "sam_model_registry",
]
