"""Rows of the way from nothing to a first mask, as a program of its own: imports, weights from a file, one picture.

Models have their own input size. Ours compiles all anew ("cold") or finds what an earlier run has compiled ("warm").
"""

import itertools
import os
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Iterator

import numpy as np
import torch

from eval import twins
from eval.benchmark.case import Case, Options, share_of_flips
from eval.benchmark.inference import SAME_MASKS
from eval.parity import IMAGE, draw_params
from stablesam_jax.checkpoint import save_model
from stablesam_jax.config import MODELS


def startup_cases(options: Options) -> Iterator[Case]:
    """Without and with compiled programs on disk."""
    for name in options.models:
        with tempfile.TemporaryDirectory() as folder:
            yield from _cases(name, pathlib.Path(folder))


def _cases(name: str, folder: pathlib.Path) -> Iterator[Case]:
    config = MODELS[name]
    params = draw_params(config, seed=0)
    save_model(folder / "model", params, config=config, source={})
    torch.save(twins.load_official(config, params).state_dict(), folder / "sam.pth")
    del params
    numbers = itertools.count()

    def run(module: str, *arguments: object, cache: pathlib.Path) -> np.ndarray:
        mask = folder / "mask.npy"
        command = [sys.executable, "-m", f"eval.benchmark.{module}", *map(str, arguments), str(IMAGE), str(mask)]
        environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(cache), "JAX_ENABLE_COMPILATION_CACHE": "true"}
        subprocess.run(command, check=True, env=environment)
        return np.load(mask)

    def theirs() -> np.ndarray:
        return run("first_mask_torch", name, folder / "sam.pth", cache=folder)

    def cold() -> np.ndarray:
        return run("first_mask", folder / "model", cache=folder / f"cache_{next(numbers)}")

    def warm() -> np.ndarray:
        return run("first_mask", folder / "model", cache=folder / "cache")

    for what, ours in (("cold", cold), ("warm", warm)):
        yield Case(f"start-up, {what}", ours, {"PyTorch": theirs}, name, share_of_flips, SAME_MASKS["float32"])
