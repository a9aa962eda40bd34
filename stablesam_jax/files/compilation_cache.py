"""Compiled programs on disk, so that the next process starts without compiling."""

import os
import pathlib

import jax


def keep_compiled_programs(folder: str | os.PathLike[str] | None = None) -> pathlib.Path:
    """Lets JAX read and write compiled programs in a folder, from now on, for this process.

    The commands of this project call it; a library must not change settings of the whole process by being imported.
    JAX names each program by a hash of its code, of the compiler and of the machine, so what does not fit is never
    used.

    Args:
        folder: where; by default `$JAX_COMPILATION_CACHE_DIR`, or `stablesam_jax/compiled` in the user's cache folder
            (`$XDG_CACHE_HOME`, `~/.cache`).

    Returns:
        the folder. It is made when the first program is written.
    """
    if folder is None:
        user_cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache")
        folder = os.environ.get("JAX_COMPILATION_CACHE_DIR") or user_cache / "stablesam_jax" / "compiled"
    path = pathlib.Path(folder).absolute()
    jax.config.update("jax_compilation_cache_dir", str(path))
    # The second run of a command is faster by the sum of many small programs, which JAX would not keep.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    return path
