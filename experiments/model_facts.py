"""What the paper's tables say of a model alone: parameters, speed and memory."""

import json
import pathlib
import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.full_size import Model
from experiments.options import PaperConfig
from stablesam_jax import params
from stablesam_jax.build import load_model
from stablesam_jax.files.disk import write_text
from stablesam_jax.model.prompt_encoder import Prompts, sparse_tokens
from stablesam_jax.predict.predictor import Predictor

TURNS = 5


def measure(config: PaperConfig, model: Model, system: str, folder: pathlib.Path) -> None:
    """Measures a model and writes results.json: parameters, learnable, fps, memory (GiB).

    Args:
        config: of the command.
        model: the row.
        system: its name for `load_model`.
        folder: of the results.
    """
    sam, tree = load_model(system, image_size=config.scale.image_size, dtype=config.compute)
    learnable = tree if not model.system else params.split(tree, config.run_of(model).trainable)[0]
    predictor = Predictor(sam, tree)
    side = sam.config.image_size
    picture = np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)
    box = np.array([0.25, 0.25, 0.75, 0.75]) * side

    def once() -> float:
        began = time.perf_counter()
        encoded = predictor.encode(picture)
        predictor.predict(box=box, multimask_output=False, picture=encoded)
        return time.perf_counter() - began

    once()  # compiles
    seconds = statistics.median(once() for _ in range(TURNS))

    def masks(tree: params.Params, normalised: jax.Array, prompts: Prompts) -> Any:
        embedding = sam.apply({"params": tree}, normalised, method="encode")
        return sam.apply({"params": tree}, embedding, prompts, method="decode")

    tokens = sparse_tokens(np.zeros((0, 2)), np.zeros(0, np.int32), box, length=2)
    coords, labels, valid = (jnp.asarray(part)[None, None] for part in tokens)
    prompt = Prompts(coords=coords, labels=labels, valid=valid)
    normalised = jnp.zeros((1, side, side, 3))
    analysis = jax.jit(masks).lower(tree, normalised, prompt).compile().memory_analysis()
    taken = sum(getattr(analysis, f"{part}_size_in_bytes") for part in ("argument", "output", "temp"))
    facts = {
        "parameters": params.count(tree),
        "learnable": params.count(learnable),
        "fps": 1 / seconds,
        "memory": taken / 2**30,
        "device": jax.devices()[0].device_kind,
        "dtype": config.compute,
    }
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "results.json", json.dumps(facts, indent=1) + "\n")
