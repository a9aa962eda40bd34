"""Runs ONNX files beside our own predictor, on the same pictures and prompts, in the form in which clients run them."""

import pathlib
from collections.abc import Iterator, Mapping

import numpy as np
import onnxruntime
from PIL import Image

from convert.onnx_graph import EARLY, FRAME, MASKS, NOT_A_POINT, SAM_MEAN, SAM_STD
from stablesam_jax.config import Frame
from stablesam_jax.data.collage import ASSETS, SPLITS
from stablesam_jax.data.label_file import read_masks
from stablesam_jax.files.picture_file import read_picture
from stablesam_jax.model.sam import Sam
from stablesam_jax.params import Params
from stablesam_jax.predict.picture import Picture
from stablesam_jax.predict.postprocess import upscale_masks
from stablesam_jax.predict.predictor import Predictor
from stablesam_jax.predict.preprocess import resized_size
from stablesam_jax.prompts import Prompt, gt_box, random_points


class Client:
    """Both files in onnxruntime on the CPU, fed as SAM's clients feed them."""

    def __init__(self, encoder: pathlib.Path, decoder: pathlib.Path, threads: int = 0):
        """Args: the two files; threads of onnxruntime, 0 for as many as it chooses."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self.encoder, self.decoder = (
            onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
            for file in (encoder, decoder)
        )

    def encode(self, picture: np.ndarray) -> dict[str, np.ndarray]:
        """A picture (H, W, 3) uint8, its longer side FRAME pixels -> what the decoder reads of it, by name."""
        (given,) = self.encoder.get_inputs()
        pixels = picture.astype(np.float32)
        if len(given.shape) == 4:
            normalised = (pixels - np.array(SAM_MEAN, np.float32)) / np.array(SAM_STD, np.float32)
            pixels = np.zeros((1, 3, FRAME, FRAME), np.float32)
            pixels[0, :, : picture.shape[0], : picture.shape[1]] = normalised.transpose(2, 0, 1)
        features, *layers = self.encoder.run(None, {given.name: pixels})
        return {"image_embeddings": features} | ({EARLY: np.stack(layers)} if layers else {})

    def decode(
        self, embedding: Mapping[str, np.ndarray], prompt: Prompt, size_hw: tuple[int, int]
    ) -> dict[str, np.ndarray]:
        """The decoder's outputs by name.

        Args:
            embedding: of `encode`.
            prompt: in pixels of the resized picture, without a mask.
            size_hw: of the original picture.
        """
        corners = np.empty((0, 2)) if prompt.box is None else np.reshape(prompt.box, (2, 2))
        labels = [*prompt.labels, *range(2, 2 + len(corners)), NOT_A_POINT]
        feeds = {
            **embedding,
            "point_coords": np.concatenate([prompt.points, corners, np.zeros((1, 2))])[None].astype(np.float32),
            "point_labels": np.array([labels], np.float32),
            "mask_input": np.zeros((1, 1, MASKS, MASKS), np.float32),
            "has_mask_input": np.zeros(1, np.float32),
            "orig_im_size": np.array(size_hw, np.float32),
        }
        names = [output.name for output in self.decoder.get_outputs()]
        return dict(zip(names, self.decoder.run(None, feeds), strict=True))

    def mask(self, embedding: Mapping[str, np.ndarray], prompt: Prompt, size_hw: tuple[int, int]) -> np.ndarray:
        """The mask (H, W) bool that a client shows: the single one, or of one point the best of three."""
        found = self.decode(embedding, prompt, size_hw)
        if "xtl" in found:
            return uncropped(found, size_hw)
        scores = found["iou_predictions"][0]
        best = 0
        if len(scores) > 1 and len(prompt.points) == 1 and prompt.box is None:
            best = 1 + int(np.argmax(scores[1:]))
        return found["masks"][0, best] > 0


def uncropped(outputs: Mapping[str, np.ndarray], size_hw: tuple[int, int]) -> np.ndarray:
    """CVAT's mask and its box -> (H, W) bool."""
    mask = np.zeros(size_hw, bool)
    left, top, right, bottom = (int(outputs[name]) for name in ("xtl", "ytl", "xbr", "ybr"))
    mask[top : bottom + 1, left : right + 1] = outputs["masks"][0, 0] > 0
    return mask


def equal_pixels(encoder: pathlib.Path, decoder: pathlib.Path, sam: Sam, params: Params) -> dict[str, float]:
    """Compares the files with our predictor on the included photographs.

    Both get the picture as clients resize it; our logits are resized to the original as the files do it.

    Returns:
        for each form of prompt the share of pixels whose masks are equal.
    """
    client, predictor = Client(encoder, decoder), Predictor(sam, params)
    shares: dict[str, list[float]] = {}
    for picture, mask in photographs():
        size_hw = picture.shape[:2]
        resized = in_frame(picture)
        embedding, own = client.encode(resized), predictor.encode(resized)
        for form, prompt in prompts(mask, resized.shape[:2]).items():
            expected = our_mask(predictor, own, prompt, size_hw)
            shares.setdefault(form, []).append(float(np.mean(client.mask(embedding, prompt, size_hw) == expected)))
    return {form: float(np.mean(found)) for form, found in shares.items()}


def our_mask(predictor: Predictor, picture: Picture, prompt: Prompt, size_hw: tuple[int, int]) -> np.ndarray:
    """Our mask at the size of the original, from a picture that was resized to FRAME; as `Client.mask` chooses."""
    ambiguous = prompt.box is None and len(prompt.points) == 1
    points, labels = (prompt.points, prompt.labels) if len(prompt.points) else (None, None)
    logits, scores = predictor.predict_low_res(
        points,
        labels,
        box=prompt.box,
        multimask_output=ambiguous,
        picture=picture,
    )
    best = logits[int(np.argmax(scores))]
    frame = predictor.sam.config.frame
    return upscale_masks(best, size_hw, frame, resized_size(resized_size(size_hw, Frame(FRAME)), frame))


def photographs() -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The included photographs that no shipped model has learned from, each with the mask of its largest object."""
    for name in SPLITS["held_out"].labelled:
        picture = read_picture(ASSETS / "im" / f"{name}.jpg")
        masks, _ = read_masks(ASSETS / "gt" / f"{name}.png", picture.shape[:2])
        yield picture, max(masks, key=np.sum)


def in_frame(picture: np.ndarray) -> np.ndarray:
    """A picture (H, W, 3) uint8, resized as clients resize it."""
    height, width = resized_size(picture.shape[:2], Frame(FRAME))
    return np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.BILINEAR))


def prompts(mask: np.ndarray, frame_hw: tuple[int, int]) -> dict[str, Prompt]:
    """Prompts for an object in pixels of the resized picture: every form that clients send."""
    scale = np.array([frame_hw[1] / mask.shape[1], frame_hw[0] / mask.shape[0]])
    rng = np.random.default_rng(0)
    points = random_points(rng, mask, 2) * scale
    box = gt_box(mask) * np.tile(scale, 2)
    positive = np.ones(2, np.int64)
    return {
        "box": Prompt(box=box),
        "point": Prompt(points=points[:1], labels=positive[:1]),
        "points": Prompt(points=points, labels=positive),
        "box+point": Prompt(points=points[:1], labels=positive[:1], box=box),
    }
