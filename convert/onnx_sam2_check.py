"""Runs the ONNX files of a SAM 2 beside our own predictor, on the same pictures and prompts."""

import pathlib
from collections.abc import Sequence

import numpy as np
import onnxruntime

from convert.onnx_check import photographs, prompts
from convert.onnx_sam2 import MAPS
from stablesam_jax.config import Frame, SamConfig
from stablesam_jax.model.sam import Sam
from stablesam_jax.params import Params
from stablesam_jax.predict.picture import Picture
from stablesam_jax.predict.postprocess import upscale_masks
from stablesam_jax.predict.predictor import Predictor
from stablesam_jax.predict.preprocess import preprocess, to_model_frame
from stablesam_jax.prompts import Prompt


class Sam2Client:
    """Both files in onnxruntime on the CPU, fed as SAM 2's clients feed them, with pictures resized as we do it."""

    def __init__(self, encoder: pathlib.Path, decoder: pathlib.Path):
        """Args: the two files."""
        self.encoder, self.decoder = (
            onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"]) for file in (encoder, decoder)
        )

    def encode(self, picture: np.ndarray, config: SamConfig) -> list[np.ndarray]:
        """A picture (H, W, 3) uint8 -> `MAPS`."""
        return self.encoder.run(None, {"image": preprocess(picture, config).transpose(2, 0, 1)[None]})

    def decode(
        self, maps: Sequence[np.ndarray], prompts: Sequence[Prompt], size_hw: tuple[int, int]
    ) -> tuple[np.ndarray, np.ndarray]:
        """(N, M, 4G, 4G) logits and (N, M) predicted IoU.

        Args:
            maps: of `encode`.
            prompts: in pixels of the picture, of as many tokens each; all have a mask input, or none has.
            size_hw: of the picture.
        """
        side = maps[0].shape[-1]
        frame = Frame(4 * side, stretched=True)
        corners = [np.empty((0, 2)) if one.box is None else np.reshape(one.box, (2, 2)) for one in prompts]
        coords = [np.concatenate([box, one.points]) for box, one in zip(corners, prompts, strict=True)]
        labels = [[2, 3][: len(box)] + list(one.labels) for box, one in zip(corners, prompts, strict=True)]
        absent = np.zeros((side, side), np.float32)
        feeds = dict(zip(MAPS, maps, strict=True)) | {
            "point_coords": np.stack([to_model_frame(one, size_hw, frame) for one in coords]),
            "point_labels": np.array(labels, np.float32),
            "mask_input": np.stack([absent if one.mask is None else one.mask for one in prompts])[:, None],
            "has_mask_input": np.array([one.mask is not None for one in prompts], np.float32),
        }
        masks, iou = self.decoder.run(None, feeds)
        return masks, iou


def equal_pixels(encoder: pathlib.Path, decoder: pathlib.Path, sam: Sam, params: Params) -> dict[str, float]:
    """Compares the files with our predictor on the included photographs.

    Returns:
        for each form of prompt the share of pixels whose masks are equal.
    """
    client, predictor = Sam2Client(encoder, decoder), Predictor(sam, params)
    shares: dict[str, list[float]] = {}
    for picture, mask in photographs():
        size_hw = picture.shape[:2]
        maps, own = client.encode(picture, sam.config), predictor.encode(picture)
        for form, prompt in prompts(mask, size_hw).items():
            masks, iou = client.decode(maps, [prompt], size_hw)
            found = upscale_masks(masks[0, int(np.argmax(iou[0]))], size_hw, sam.config.frame)  # as clients choose
            expected = our_mask(predictor, own, prompt, single=masks.shape[1] == 1)
            shares.setdefault(form, []).append(float(np.mean(found == expected)))
    return {form: float(np.mean(equal)) for form, equal in shares.items()}


def our_mask(predictor: Predictor, picture: Picture, prompt: Prompt, *, single: bool) -> np.ndarray:
    """Our mask (H, W), the best of those that the files give."""
    ambiguous = prompt.box is None and len(prompt.points) == 1
    points, labels = (prompt.points, prompt.labels) if len(prompt.points) else (None, None)
    mask = None if prompt.mask is None else prompt.mask[None]
    masks, scores, _ = predictor.predict(
        points, labels, prompt.box, mask, multimask_output=ambiguous or not single, picture=picture
    )
    return masks[int(np.argmax(scores))]
