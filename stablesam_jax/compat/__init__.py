"""segment_anything's classes over these models, for programs that were written for it.

    from stablesam_jax.compat import SamAutomaticMaskGenerator, SamPredictor, sam_model_registry

    sam = sam_model_registry["stable_sam_nano"]()  # or ["vit_b"](checkpoint="FOLDER"), a plugin as "FOLDER+PLUGIN_FILE"
    predictor = SamPredictor(sam)

Names, arguments, shapes and values are those of segment_anything. Where PyTorch is loaded, what are tensors there are
tensors here, on the CPU; where it is not, they are numpy arrays of the same layout. Tensors of any device are taken.
JAX decides where the model runs, and nothing has gradients. What the official code answers with nonsense is refused, as
a box in another frame.

What clients assign is supported: `features`, `interm_features`, `original_size`, `input_size`, `is_image_set`. The
model, its weights and its parts are fixed.
"""

from stablesam_jax.compat.predictor import ImageNotSet, SamAutomaticMaskGenerator, SamPredictor
from stablesam_jax.compat.sam import Sam, sam_model_registry
from stablesam_jax.compat.transforms import ResizeLongestSide

__all__ = [
    "ImageNotSet",
    "ResizeLongestSide",
    "Sam",
    "SamAutomaticMaskGenerator",
    "SamPredictor",
    "sam_model_registry",
]
