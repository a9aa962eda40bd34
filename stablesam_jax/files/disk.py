"""Files that are whole or as they were, whatever ends the program, and one line for what the disk objects to."""

import contextlib
import logging
import os
import pathlib
import re
import uuid
from collections.abc import Iterator

from safetensors import SafetensorError

from stablesam_jax.errors import InputError

PathLike = str | os.PathLike[str]


def new_path(path: PathLike) -> pathlib.Path:
    """The path of something to be written.

    Raises:
        InputError: something is there already.
    """
    path = pathlib.Path(path)
    if os.path.lexists(path):
        raise InputError(f"{path}: exists already, and nothing is overwritten. Give another path, or remove it first.")
    return path


def check_writable(path: pathlib.Path, option: str) -> None:
    """Looks whether `whole_file` can write or replace a file, hours before it does; makes nothing.

    Raises:
        InputError: it cannot; names the option that it comes from.
    """
    place = next(folder for folder in path.absolute().parents if folder.exists())
    if path.is_dir() or not place.is_dir() or not os.access(place, os.W_OK):
        raise InputError(f"{option} {path}: must be a file in a folder that can be written to or made.")


@contextlib.contextmanager
def whole_file(path: PathLike, *, replace: bool = False) -> Iterator[pathlib.Path]:
    """Gives a temporary path to write a file to, which moves to its place when it is whole and on the disk.

    Args:
        path: of the file; missing folders are made.
        replace: it takes the place of one that is there.

    Raises:
        InputError: the file exists and is not to be replaced, or cannot be written.
    """
    path = pathlib.Path(path) if replace else new_path(path)
    temporary = beside(path)
    try:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            sync(temporary)
            os.replace(temporary, path)
            sync(path.parent)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def write_text(path: pathlib.Path, text: str) -> None:
    """Writes or replaces a text file as a whole, UTF-8, line ends as they are.

    Raises:
        InputError: it cannot be written.
    """
    with whole_file(path, replace=True) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="")


def beside(path: pathlib.Path) -> pathlib.Path:
    """A name that nothing else has, in the same folder, for what is not whole yet."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")


def sync(path: pathlib.Path) -> None:
    """Waits until a file's contents or a folder's entries are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def writing(path: pathlib.Path) -> Iterator[None]:
    """Says in one line what the disk objects to; Orbax would log the traceback of each of its threads besides.

    Raises:
        InputError: it objects.
    """
    log = logging.getLogger("absl")
    level = log.level
    log.setLevel(logging.CRITICAL)
    try:
        yield
    except InputError:
        raise
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        if (reason := _disk_fault(error)) is None:
            raise
        raise InputError(
            f"{path}: cannot be written ({reason}). Make room, or give a place that you may write to."
        ) from None
    finally:
        log.setLevel(level)


def _disk_fault(error: BaseException | None) -> str | None:
    """What the disk said, from an error of any of the libraries that write for us; None where it is another fault."""
    while error is not None:
        if isinstance(error, OSError):
            return error.strerror
        if code := re.search(r"os[_ ]error(?:_code=')? ?(\d+)", str(error)):  # Orbax and safetensors
            return os.strerror(int(code[1]))
        error = error.__context__  # PyTorch fails on, at what it has not written
    return None
