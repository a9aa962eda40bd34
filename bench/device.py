"""Device and precision of both sides: the CPU, or one NVIDIA GPU that they share, in the same precision."""

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
    """Dtype of the arrays. TF32 is a precision of matmuls (10 bits of mantissa); arrays are float32."""
    return "bfloat16" if precision == "bfloat16" else "float32"


def torch_device() -> torch.device:
    """PyTorch's device, of the kind on which JAX computes.

    Raises:
        InputError: JAX computes on a GPU, and this build of PyTorch does not support one.
    """
    if jax.default_backend() == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise InputError(
            "JAX computes on a GPU and this PyTorch cannot; install PyTorch's build for it, or set JAX_PLATFORMS=cpu."
        )
    return torch.device("cuda")


def share_gpu() -> None:
    """Keeps JAX from reserving three quarters of the GPU's memory. Must be called before JAX starts its backend."""
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # inherited by child processes


def set_up(precision: Precision) -> None:
    """Gives both sides the same matmul precision on a GPU; changes nothing on a CPU.

    By default JAX uses TF32 for all float32 matmuls, PyTorch for convolutions only. With bfloat16 both may use TF32 for
    what remains in float32.
    """
    if torch_device().type == "cpu":
        return
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision != "float32"
    jax.config.update("jax_default_matmul_precision", "highest" if precision == "float32" else None)
    keep_compiled_programs()  # memory.py measures in a child process, where XLA's autotuning would raise the peak


def finished(result: Anything) -> Anything:
    """Waits for the device and returns the result: JAX dispatches asynchronously, and PyTorch does on a GPU."""
    jax.block_until_ready(result)
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return result


def on_host(result: Any) -> np.ndarray:
    """Copies an array of either library to numpy."""
    return np.asarray(result.cpu() if isinstance(result, torch.Tensor) else result)


def free_unused() -> None:
    """Frees GPU memory that PyTorch caches for later tensors, so that JAX can allocate it."""
    gc.collect()  # a module with a wrapped forward is a reference cycle
    torch.cuda.empty_cache()
