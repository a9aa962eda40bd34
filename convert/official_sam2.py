"""The official SAM 2 (sam2), of any size."""

import torch

from convert import stand_ins
from stablesam_jax.config import HieraConfig, SamConfig
from stablesam_jax.errors import InputError
from stablesam_jax.model.encoders import hiera
from stablesam_jax.model.sam2 import STABILITY_DELTA, STABLE

stand_ins.provide()

try:
    import sam2  # noqa: F401  (its configurations become known to hydra)
    from hydra import compose
    from hydra.utils import instantiate
    from sam2.modeling.backbones.image_encoder import FpnNeck
    from sam2.modeling.sam2_base import SAM2Base
    from sam2.sam2_image_predictor import SAM2ImagePredictor

    INSTALLED = True
except ModuleNotFoundError as missing:  # no extra can bring sam2, and all other models do without it
    if missing.name != "sam2":
        raise
    INSTALLED = False
    FpnNeck, SAM2Base, SAM2ImagePredictor = (
        type(name, (torch.nn.Module,), {}) for name in ("FpnNeck", "SAM2Base", "SAM2ImagePredictor")
    )

__all__ = ["FpnNeck", "SAM2Base", "SAM2ImagePredictor", "build", "compose"]

INSTALL = "SAM2_BUILD_CUDA=0 pip install --no-deps --no-build-isolation sam2==1.1.0"
# One of the four. They differ in the sizes of the encoder alone, which `build` sets.
CONFIGURATION = "configs/sam2.1/sam2.1_hiera_b+.yaml"


def build(config: SamConfig) -> SAM2Base:
    """Builds the official model of a configuration without its plugin, with the parts for videos, in eval mode.

    It is configured as `build_sam2` does, but for the sizes.

    Raises:
        InputError: sam2 is not installed.
    """
    if not INSTALLED:
        raise InputError(f"{config.name}: needs sam2, not installed here; {INSTALL}.")
    assert isinstance(config.encoder, HieraConfig)
    name, sizes = hiera.official(config)
    extra = "++model.sam_mask_decoder_extra_args.dynamic_multimask"
    model = compose(
        CONFIGURATION,
        overrides=[
            f"{extra}_via_stability=true",
            f"{extra}_stability_delta={STABILITY_DELTA}",
            f"{extra}_stability_thresh={STABLE}",
            f"model.image_size={config.image_size}",
        ],
    ).model
    model.image_encoder.trunk = {"_target_": f"sam2.modeling.backbones.hieradet.{name}", **sizes}
    model.image_encoder.neck.backbone_channel_list = list(config.encoder.widths[::-1])
    return instantiate(model, _recursive_=True).eval()
