"""Rows against onnxruntime: the shipped model with its plugin as `convert.to_onnx` writes it, and in our predictor."""

import functools
import pathlib
import tempfile
from collections.abc import Iterator

import numpy as np

from bench.case import Case, Options, Work, prepared, share_of_flips
from stablesam_jax.build import load_model
from stablesam_jax.predict.predictor import Predictor
from stablesam_jax.prompts import Prompt

SYSTEM = "sam_nano+stable_sam_nano"
SAME_MASKS = 1e-4  # share of the pixels that may differ


def onnx_cases(options: Options) -> Iterator[Case]:
    """Encoding a picture, and a box or a point on it to a mask at the picture's size, both on the CPU."""
    from convert.onnx_check import Client, in_frame, photographs  # needs the extra onnx, which other rows do not
    from convert.to_onnx import DECODER, ENCODER, convert
    from convert.to_onnx import Options as Export

    picture = in_frame(next(photographs())[0])
    size_hw = picture.shape[:2]

    @functools.cache
    def client() -> Client:
        with tempfile.TemporaryDirectory() as folder:
            output = pathlib.Path(folder)
            convert(Export(system=SYSTEM, output=output, single=True))
            return Client(output / ENCODER, output / DECODER, options.threads)

    predictor = functools.cache(lambda: Predictor(*load_model(SYSTEM)))

    def encode_ours() -> Work:
        return lambda: np.asarray(predictor().encode(picture).embedding.features)

    def encode_theirs() -> Work:
        return lambda: client().encode(picture)["image_embeddings"]

    yield Case("picture to embedding", prepared(encode_ours), {"onnxruntime": prepared(encode_theirs)}, SYSTEM)

    width, height = size_hw[1], size_hw[0]
    box = np.array([0.2 * width, 0.2 * height, 0.8 * width, 0.8 * height], np.float32)
    point = np.array([[0.5 * width, 0.5 * height]], np.float32)
    for name, prompt in {"box": Prompt(box=box), "point": Prompt(points=point, labels=np.ones(1, np.int32))}.items():

        def ours(prompt: Prompt = prompt) -> Work:
            own = predictor().encode(picture)
            points, labels = (None, None) if prompt.box is not None else (prompt.points, prompt.labels)

            def predict() -> np.ndarray:
                ambiguous = prompt.box is None
                masks, scores, _ = predictor().predict(points, labels, prompt.box, None, ambiguous, picture=own)
                return masks[int(np.argmax(scores))]

            return predict

        def theirs(prompt: Prompt = prompt) -> Work:
            embedding = client().encode(picture)
            return lambda: client().mask(embedding, prompt, size_hw)

        yield Case(
            f"a {name} to a mask",
            prepared(ours),
            {"onnxruntime": prepared(theirs)},
            SYSTEM,
            difference=share_of_flips,
            bound=SAME_MASKS,
        )
