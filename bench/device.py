"""Where both sides compute: the processors, or an NVIDIA GPU that they share, in the same precision."""

import gc
import os
from typing import Any, Literal, TypeVar

import jax
import numpy as np
import torch

from stablesam_jax.config import Dtype
from stablesam_jax.errors import InputError
from stablesam_jax.files.compilation_cache import keep_compiled_programs

Precision = Literal["float32", "tf32", "bfloat16"]
Anything = TypeVar("Anything")


def dtype_of(precision: Precision) -> Dtype:
    """What arrays hold: TF32 is float32 whose products keep ten bits."""
    return "bfloat16" if precision == "bfloat16" else "float32"


def torch_device() -> torch.device:
    """Where PyTorch computes: on the kind of device that JAX computes on.

    Raises:
        InputError: that is a GPU, for which this PyTorch was not built.
    """
    if jax.default_backend() == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise InputError(
            "JAX computes on a GPU and this PyTorch cannot; install PyTorch's build for it, or set JAX_PLATFORMS=cpu."
        )
    return torch.device("cuda")


def share_gpu() -> None:
    """Leaves PyTorch its part of a GPU, of which JAX would take three quarters; call it before JAX starts."""
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # processes that are started inherit it


def set_up(precision: Precision) -> None:
    """Gives both sides the same products on a GPU.

    By default JAX multiplies float32 in TF32 there, PyTorch does so in convolutions alone. In bfloat16 both may use
    TF32 for what stays in float32. On the CPU nothing is changed.
    """
    if torch_device().type == "cpu":
        return
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision != "float32"
    jax.config.update("jax_default_matmul_precision", "highest" if precision == "float32" else None)
    keep_compiled_programs()  # what XLA tries when it compiles is then no part of a peak, see memory.py


def finished(result: Anything) -> Anything:
    """What a work returned, once its device is done: on a GPU neither library waits by itself."""
    jax.block_until_ready(result)
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return result


def on_host(result: Any) -> np.ndarray:
    """An array of either library."""
    return np.asarray(result.cpu() if isinstance(result, torch.Tensor) else result)


def free_unused() -> None:
    """Returns what PyTorch holds of a GPU's memory for tensors to come, which JAX could not have otherwise."""
    gc.collect()  # a module whose forward is wrapped holds itself
    torch.cuda.empty_cache()
