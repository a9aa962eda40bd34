"""JAX's persistent compilation cache."""

import os
import pathlib

import jax


def keep_compiled_programs(folder: str | os.PathLike[str] | None = None) -> pathlib.Path | None:
    """Makes JAX read and write compiled programs in a folder, so that the next process starts without compiling.

    The setting holds for the whole process, so commands call this, and importing the library does not. JAX names each
    program by a hash of its code, compiler and machine, so a cached program always fits.

    Args:
        folder: default: `$JAX_COMPILATION_CACHE_DIR`, or `stablesam_jax/compiled` in the user's cache folder
            (`$XDG_CACHE_HOME`, `~/.cache`).

    Returns:
        the folder. It is created when the first program is written. None, and nothing is kept, where no folder is given
            and the user has no home, as in some containers.
    """
    if folder is None:
        folder = os.environ.get("JAX_COMPILATION_CACHE_DIR") or None
    if folder is None:
        try:
            user_cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache")
        except RuntimeError:
            return None
        folder = user_cache / "stablesam_jax" / "compiled"
    path = pathlib.Path(folder).absolute()
    jax.config.update("jax_compilation_cache_dir", str(path))
    # By default JAX keeps only programs that compile in over 1 s; a command has many smaller ones.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    return path
