"""Any number of prompts on one picture, decoded in a few fixed shapes."""

from collections.abc import Sequence

import jax
import numpy as np

from stablesam_jax.config import SamConfig
from stablesam_jax.errors import InputError
from stablesam_jax.model.mask_decoder import MaskChoice
from stablesam_jax.model.prompt_encoder import Prompts
from stablesam_jax.model.sam import ImageEmbedding, Sam
from stablesam_jax.model.sam2 import LOGIT_LIMIT
from stablesam_jax.params import Params
from stablesam_jax.predict import compiled
from stablesam_jax.predict.slots import SLOTS, Slots
from stablesam_jax.prompts import Prompt

CHOICES: tuple[MaskChoice, ...] = ("single", "multi")  # by `multimask_output`


def as_mask_inputs(low_res_masks: np.ndarray, config: SamConfig) -> np.ndarray:
    """Logits as the official predictor returns them beside its masks: of SAM 2 limited to -32..32, else unchanged."""
    return np.clip(low_res_masks, -LOGIT_LIMIT, LOGIT_LIMIT) if config.sam2 else low_res_masks


def decode(
    sam: Sam,
    params: Params,
    embedding: ImageEmbedding,
    prompts: Sequence[Prompt],
    choice: MaskChoice,
    hq_token_only: bool = False,
    slots: Slots = SLOTS,
) -> tuple[np.ndarray, np.ndarray]:
    """Decodes any number of prompts in a few fixed shapes.

    Args:
        sam, params: the model.
        embedding: of one picture.
        prompts: in the frame of the model's input; all have a mask, or none has.
        choice: see `MaskChoice`.
        hq_token_only: see `Sam.decode`.
        slots: shapes.

    Returns:
        (N, M, 4G, 4G) logits and (N, M) predicted IoU, float32.
    """
    if hq_token_only and not sam.config.hq:
        raise InputError("hq_token_only is for HQ-SAM; this model has no HQ token. Leave it out.")
    if not prompts:
        count, side = 3 if choice == "multi" and not sam.config.hq else 1, sam.config.mask_size
        return np.zeros((0, count, side, side), np.float32), np.zeros((0, count), np.float32)
    program = compiled.decoder(sam, choice, hq_token_only)

    def answer(batch: Prompts) -> tuple[np.ndarray, np.ndarray]:
        masks = jax.device_get(program(params, embedding, batch))
        return masks.low_res_masks[0], masks.iou_predictions[0]

    return slots.answer(answer, prompts)
