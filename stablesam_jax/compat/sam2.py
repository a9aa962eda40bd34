"""sam2's models: `SAM2Base`, as far as image predictors use it, and `build_sam2`."""

import inspect
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from stablesam_jax import build
from stablesam_jax.compat.tensors import cpu_device
from stablesam_jax.config import MODELS
from stablesam_jax.errors import InputError
from stablesam_jax.model import sam as linen
from stablesam_jax.model.mask_decoder import MaskChoice
from stablesam_jax.params import Params

_SIZE = re.compile(r"sam2(?:\.1)?_hiera_(t|s|b\+|b_plus|l)(?:\.yaml)?")  # a configuration's file, or a name of MODELS


class SAM2Base:
    """A SAM 2 by the name of sam2's class (modeling/sam2_base.py); `SAM2ImagePredictor` prompts it."""

    def __init__(
        self,
        sam: linen.Sam,
        params: Params,
        dynamic_multimask_via_stability: bool = True,
        *,
        shared_picture: bool = False,
    ):
        """Prepares a model.

        Args:
            sam, params: from `load_model`.
            dynamic_multimask_via_stability: in place of an unstable single mask there is the best of the other three.
            shared_picture: as of `compat.Sam`.

        Raises:
            InputError: it is a SAM, which `SamPredictor` prompts.
        """
        if not sam.config.sam2:
            raise InputError(f"{sam.config.name}: is not a SAM 2; give it to compat.SamPredictor, or take a SAM 2.")
        self.sam = sam
        self.params = jax.device_put(params)
        self.dynamic_multimask_via_stability = dynamic_multimask_via_stability
        self.shared_picture = shared_picture

    def choice(self, multimask_output: bool) -> tuple[MaskChoice, slice]:
        """Which masks are decoded, and which of these are returned."""
        if multimask_output:
            return "multi", slice(None)
        return "single" if self.dynamic_multimask_via_stability else "all", slice(1)

    @property
    def image_size(self) -> int:
        """Side of the model's input in pixels."""
        return self.sam.config.image_size

    @property
    def device(self) -> Any:
        """The device of returned tensors: the CPU."""
        return cpu_device()

    def to(self, *_: Any, **__: Any) -> "SAM2Base":
        """Returns itself: JAX decides where the model runs."""
        return self

    cuda = cpu = to

    def eval(self) -> "SAM2Base":
        """Itself."""
        return self


def build_sam2(
    config_file: str | os.PathLike[str] | None,
    ckpt_path: str | os.PathLike[str] | None = None,
    device: Any = None,
    mode: str = "eval",
    hydra_overrides_extra: Sequence[str] = (),
    apply_postprocessing: bool = True,
    *,
    shared_picture: bool = False,
) -> SAM2Base:
    """A SAM 2 by the arguments of sam2's `build_sam2` (build_sam.py).

    Args:
        config_file: of sam2, such as "configs/sam2.1/sam2.1_hiera_l.yaml", or a name of `MODELS`. None: the model that
            ckpt_path holds.
        ckpt_path: a name of `load_model`: a checkpoint folder, `BASE+PLUGIN_FILE`, or OWNER/NAME of a folder of
            `stablesam hub`.
        device: not used: JAX decides where the model runs.
        mode, hydra_overrides_extra: as by default.
        apply_postprocessing: see `dynamic_multimask_via_stability` of `SAM2Base`.
        shared_picture: as of `compat.Sam`.

    Raises:
        InputError: see `load_model`; the folder holds another model, or mode or hydra_overrides_extra is not the
            default.
    """
    if mode != "eval" or list(hydra_overrides_extra):
        raise InputError("build_sam2: mode and hydra_overrides_extra cannot be changed here; leave them out.")
    name = None if config_file is None else _model_name(config_file)
    if ckpt_path is None:
        raise InputError("build_sam2: ckpt_path is missing; no weights are shipped, name the folder of a SAM 2.")
    sam, params = build.load_model(ckpt_path)
    if name is not None and sam.config.encoder != MODELS[name].encoder:
        raise InputError(f"{ckpt_path}: holds another model than {name}. Name the one that it holds.")
    return SAM2Base(sam, params, apply_postprocessing, shared_picture=shared_picture)


def build_sam2_hf(model_id: str | os.PathLike[str], **options: Any) -> SAM2Base:
    """The SAM 2 of a name of `load_model`, by the arguments of sam2's `build_sam2_hf`: `build_sam2(None, model_id)`."""
    return build_sam2(None, model_id, **options)


def from_hub(model_id: str | os.PathLike[str], options: Mapping[str, Any]) -> tuple[SAM2Base, dict[str, Any]]:
    """The model, and the options that are not of `build_sam2`, for `from_pretrained` of sam2's classes."""
    own = inspect.signature(build_sam2).parameters.keys() & options.keys()
    model = build_sam2_hf(model_id, **{name: options[name] for name in own})
    return model, {name: value for name, value in options.items() if name not in own}


def _model_name(config_file: str | os.PathLike[str]) -> str:
    """The name in MODELS of a configuration file of sam2."""
    named = _SIZE.fullmatch(os.path.basename(config_file).removeprefix("stable_"))
    if named is None:
        raise InputError(f"{config_file}: is no SAM 2; name one as configs/sam2.1/sam2.1_hiera_t.yaml, _s, _b+ or _l.")
    return f"sam2_hiera_{named[1].replace('b+', 'b_plus')}"
