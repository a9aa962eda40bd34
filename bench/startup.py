"""Rows of start-up: a new process imports a library, reads weights from a file and predicts one mask.

Models have their own input size. "cold": nothing is compiled yet. "warm": the compilation cache of an earlier run is
used. Both hold for PyTorch with torch.compile too.
"""

import functools
import itertools
import os
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Iterator

import numpy as np
import torch

from bench.case import Case, Options, share_of_flips
from bench.inference import SAME_MASKS
from eval.parity import twins
from eval.parity.__main__ import IMAGE, draw_params
from stablesam_jax.config import MODELS
from stablesam_jax.files.checkpoint import save_model


def startup_cases(options: Options) -> Iterator[Case]:
    """Start-up with an empty and with a filled compilation cache."""
    for name in options.models:
        with tempfile.TemporaryDirectory() as folder:
            yield from _cases(name, pathlib.Path(folder), options)


def _cases(name: str, folder: pathlib.Path, options: Options) -> Iterator[Case]:
    config = MODELS[name]
    params = draw_params(config, seed=0)
    save_model(folder / "model", params, config=config, source={})
    torch.save(twins.load_official(config, params).state_dict(), folder / "sam.pth")
    del params
    numbers = itertools.count()

    def run(module: str, *arguments: object, warm: bool) -> np.ndarray:
        mask, cache = folder / "mask.npy", str(folder / (f"{module}_warm" if warm else f"{module}_{next(numbers)}"))
        command = [sys.executable, "-P", "-m", f"bench.{module}", *map(str, arguments), str(IMAGE), str(mask)]
        caches = {"JAX_COMPILATION_CACHE_DIR": cache, "TORCHINDUCTOR_CACHE_DIR": cache}
        # The installed command `stablesam` extends sys.path to find `bench`, which a child process does not inherit.
        path = {"PYTHONPATH": os.pathsep.join(sys.path)}
        environment = os.environ | caches | path | {"JAX_ENABLE_COMPILATION_CACHE": "true"}
        subprocess.run(command, check=True, env=environment)
        return np.load(mask)

    hows = {"PyTorch": "eager"} | ({"PyTorch, compiled": "compiled"} if options.compile else {})
    for what, warm in (("cold", False), ("warm", True)):
        ours = functools.partial(run, "first_mask", folder / "model", warm=warm)
        theirs = {
            side: functools.partial(run, "first_mask_torch", how, name, folder / "sam.pth", warm=warm)
            for side, how in hows.items()
        }
        yield Case(f"start-up, {what}", ours, theirs, name, share_of_flips, SAME_MASKS["float32"])
