"""Locks for folders, so that one process at a time writes to each."""

import contextlib
import datetime
import fcntl
import os
import pathlib
import socket
from collections.abc import Iterator

import filelock

from stablesam_jax.errors import InputError
from stablesam_jax.files.disk import PathLike

ANOTHER = "another process"


@contextlib.contextmanager
def owned(folder: PathLike) -> Iterator[None]:
    """Locks a folder, which need not exist, until the end of the context or of the process.

    The lock is a file `.NAME.lock` beside the folder, which names its owner. The operating system releases it when the
    process ends, even by kill -9, so that no lock is ever stale. At the end the file is removed, and so are parent
    folders that were created for it and are empty. Where nothing can be created beside the folder, as beside the volume
    of a container, the folder itself is locked, and its owner has no name.

    Raises:
        InputError: another process has locked the folder, and the message names it; or the lock cannot be created.
    """
    folder = pathlib.Path(folder).resolve()
    if folder.is_dir() and not os.access(folder.parent, os.W_OK):
        with _locked(folder):
            yield
        return
    path = folder.with_name(f".{folder.name}.lock")
    made = [parent for parent in folder.parents if not parent.exists()]
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(path, timeout=0)
        lock.acquire()
    except filelock.Timeout:
        raise _in_use(folder, _owner(path)) from None
    except (OSError, NotImplementedError) as error:  # the latter where a file system has no locks
        raise _unusable(folder, getattr(error, "strerror", "its file system has no locks")) from None
    try:
        with contextlib.suppress(OSError):  # a full disk, which what is done here will report
            path.write_text(f"process {os.getpid()} on {socket.gethostname()} since {datetime.datetime.now():%F %T}")
        yield
    finally:
        # Unlinked before the release: a process that gets the lock then checks whether its file still exists.
        with contextlib.suppress(OSError):
            path.unlink()
        lock.release()
        with contextlib.suppress(OSError):
            for parent in made:
                parent.rmdir()


@contextlib.contextmanager
def _locked(folder: pathlib.Path) -> Iterator[None]:
    """Locks an existing folder without a file; raises an InputError if another process has."""
    with contextlib.ExitStack() as at_end:
        try:
            handle = os.open(folder, os.O_RDONLY)
            at_end.callback(os.close, handle)
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise _in_use(folder, ANOTHER) from None
        except OSError as error:
            raise _unusable(folder, error.strerror) from None
        yield


def _in_use(folder: pathlib.Path, owner: str) -> InputError:
    return InputError(f"{folder}: in use by {owner}. Wait for its end, or give another folder; nothing was changed.")


def _unusable(folder: pathlib.Path, reason: str | None) -> InputError:
    return InputError(f"{folder}: cannot be used ({reason}); give a place that you may write to.")


def _owner(path: pathlib.Path) -> str:
    with contextlib.suppress(OSError, UnicodeDecodeError):
        return path.read_text().strip() or ANOTHER
    return ANOTHER
