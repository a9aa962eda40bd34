"""Atomic writing of files, and one-line messages for errors of the disk."""

import contextlib
import logging
import os
import pathlib
import re
import shutil
import uuid
from collections.abc import Iterator

from safetensors import SafetensorError

from stablesam_jax.errors import InputError

PathLike = str | os.PathLike[str]


def new_path(path: PathLike) -> pathlib.Path:
    """Checks that nothing exists at a path.

    Raises:
        InputError: something does.
    """
    path = pathlib.Path(path)
    if os.path.lexists(path):
        raise InputError(f"{path}: exists already, and nothing is overwritten. Give another path, or remove it first.")
    return path


def check_writable(path: pathlib.Path, option: str) -> None:
    """Checks that `whole_file` can write or replace a file, before hours of work; creates nothing.

    Raises:
        InputError: it cannot; names the option that the path comes from.
    """
    place = next(folder for folder in path.absolute().parents if folder.exists())
    if path.is_dir() or not place.is_dir() or not os.access(place, os.W_OK):
        raise InputError(f"{option} {path}: must be a file in a folder that can be written to or created.")


@contextlib.contextmanager
def whole_file(path: PathLike, *, replace: bool = False) -> Iterator[pathlib.Path]:
    """Yields a temporary path to write to; renames it to `path` once it is complete and synced.

    Args:
        path: of the file; missing folders are created.
        replace: whether an existing file is replaced.

    Raises:
        InputError: the file exists and `replace` is False, or it cannot be written.
    """
    path = pathlib.Path(path) if replace else new_path(path)
    temporary = beside(path)
    try:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            sync(temporary)
            os.replace(temporary, path)
            sync(path.parent)  # makes the rename itself durable
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


@contextlib.contextmanager
def whole_folder(path: PathLike) -> Iterator[pathlib.Path]:
    """Yields a temporary folder to write into; renames it to `path` once everything in it is complete and synced.

    Args:
        path: of a folder that does not exist yet; missing parents are created.

    Raises:
        InputError: it exists, or cannot be written.
    """
    path = new_path(path)
    temporary = beside(path)
    try:
        with writing(path):
            temporary.mkdir(parents=True)
            yield temporary
            for part in (*temporary.rglob("*"), temporary):
                sync(part)  # before the rename, else a power failure may leave a complete name with empty files
            temporary.rename(path)
            sync(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_text(path: pathlib.Path, text: str) -> None:
    """Writes or replaces a text file atomically, as UTF-8, without changing line ends.

    What UTF-8 cannot hold, as bytes of a file's name that are none, is escaped: a report never fails on a name.

    Raises:
        InputError: it cannot be written.
    """
    with whole_file(path, replace=True) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace", newline="")


def beside(path: pathlib.Path) -> pathlib.Path:
    """A unique temporary path in the same folder, hence on the same file system, which a rename needs."""
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
    """Turns errors of the disk into one line.

    Raises:
        InputError: the disk is full, read-only, or failed otherwise.
    """
    log = logging.getLogger("absl")  # Orbax logs the traceback of each of its threads there
    quiet = _Quiet()  # a filter of this call: setting the level would not survive that two writes overlap
    log.addFilter(quiet)
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
        log.removeFilter(quiet)


class _Quiet(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        return record.levelno >= logging.CRITICAL


def _disk_fault(error: BaseException | None) -> str | None:
    """The disk's error message inside an error of Orbax, safetensors, ArrayRecord or PyTorch; None of another error."""
    while error is not None:
        if isinstance(error, OSError):
            return error.strerror
        if code := re.search(r"os[_ ]error(?:_code=')? ?(\d+)", str(error)):  # in messages of Orbax and safetensors
            return os.strerror(int(code[1]))
        if call := re.match(r"\w+\(\) failed: ([^;]+);", str(error)):  # of ArrayRecord
            return call[1]
        error = error.__context__  # PyTorch raises another error while it handles the disk's
    return None
