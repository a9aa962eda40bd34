"""A cache of bounded size on disk for the features that a frozen encoder computes, in float16.

An entry's key is the SHA-256 of the encoder's identity and of the picture's pixels, so entries are never stale. Each is
a sealed file, `ab/abcdef....safetensors`, that contains its own key; a damaged or renamed entry is detected on reading
and encoded again. Any number of processes may read at the same time, and four may write without exceeding the limit;
one at a time removes entries. An entry takes 2 MiB for SAM at 1024 pixels, 8 to 12 MiB with HQ-SAM's early features,
0.5 MiB for sam_nano at 512.
"""

import contextlib
import hashlib
import json
import math
import os
import pathlib
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import filelock
import jax
import numpy as np

from stablesam_jax.errors import InputError
from stablesam_jax.files import sealed_file
from stablesam_jax.files.checkpoint import check_arrays, describe
from stablesam_jax.files.disk import PathLike

Encode = Callable[[np.ndarray], Any]  # (N, S, S, 3) uint8 -> tree of (N, ...) arrays
Entry = dict[str, np.ndarray]  # float16 arrays of one picture by name

LOCK = ".lock"  # file of a folder, locked by the process that removes entries
KEY = "key"  # field of an entry's header: its own key
WRITERS = 4  # processes that may write at the same time without exceeding the limit
COUNTS = 64  # a process counts the folder again after it has written a 64th of the limit
FEWEST_ENTRIES = 32  # least number of entries that the limit must allow
ABANDONED = 3600.0  # seconds; an older temporary file is one of a killed process
THREADS = 8  # for reading and hashing


class EntryFolder:
    """Sealed files by key, in total below a limit; the least recently used are removed first."""

    def __init__(self, folder: PathLike, *, arrays: dict[str, Any], limit: int):
        """Opens or creates the folder and counts its bytes.

        Args:
            folder: may be shared by encoders and processes.
            arrays: `describe` of an entry.
            limit: bytes.

        Raises:
            InputError: the folder cannot be created.
        """
        self.folder = pathlib.Path(folder)
        self.arrays = arrays
        self.limit = limit
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"{folder}: cannot be created ({error.strerror}); give another folder.") from None
        # Entries are removed only when this process writes, so that a run with a lower limit that finds all its
        # entries leaves a fuller folder unchanged.
        self.size = sum(size for _, size, _ in self._files())  # bytes at the last count, plus own writes since
        self._allowed = 0  # bytes that may be written until the next count

    def read(self, key: str) -> Entry | None:
        """The entry, or None. One that is damaged or of another key is reported on standard error and removed."""
        path = self._path(key)
        try:
            tensors, header = sealed_file.read(path, kind="feature", keys=(KEY,))
            if header[KEY] != key:
                raise InputError(f"{path}: is a copy of the entry {header[KEY]}.")
            check_arrays(path, describe(tensors), self.arrays)
        except InputError as error:
            if path.exists():  # else there is no entry, or another process has just removed it
                print(f"removed, to be encoded again: {error}", file=sys.stderr, flush=True)
                with contextlib.suppress(OSError):
                    path.unlink()
            return None
        with contextlib.suppress(OSError):  # removed by another process, or owned by another user
            os.utime(path)  # marks the entry as recently used
        return tensors

    def write(self, key: str, entry: Entry) -> None:
        """Adds an entry unless it exists. Call `make_room` before.

        Raises:
            InputError: the disk is full, or the folder may not be written to.
        """
        path = self._path(key)
        if path.exists():
            return
        try:
            path.parent.mkdir(exist_ok=True)
            sealed_file.write(path, entry, {KEY: key})
        except OSError as error:
            raise InputError(f"{path.parent}: cannot be created ({error.strerror}). Free some space.") from None
        except InputError:
            if not path.exists():  # else another process has just written the same entry
                raise

    def make_room(self, size: int) -> None:
        """Removes the least recently used entries as needed, so that `size` bytes may be written.

        Writers do not wait for each other: each count leaves the folder below the limit by one allowance for every
        writer, and a writer counts again once it has used up its allowance. Counts wait, because two at the same time
        would remove twice as much as is needed.
        """
        if size > self._allowed:
            self._allowed = _allowance(self.limit, size)
            with filelock.FileLock(self.folder / LOCK):
                self._shrink(self.limit - WRITERS * self._allowed)
        self._allowed -= size
        self.size += size

    def _shrink(self, most: int) -> None:
        """Counts the folder; above `most` bytes, removes the least recently used entries, and some more than needed."""
        files = sorted(self._files())
        self.size = sum(size for _, size, _ in files)
        if self.size <= most:
            return
        for _, size, path in files:
            if path.suffix != ".tmp":  # its writer may be running
                with contextlib.suppress(OSError):
                    path.unlink()
                self.size -= size
            if self.size <= most - self.limit // COUNTS:
                break

    def _path(self, key: str) -> pathlib.Path:
        return self.folder / key[:2] / f"{key}.safetensors"

    def _files(self) -> list[tuple[float, int, pathlib.Path]]:
        """Time of last use, bytes and path of entries and of temporary files; removes abandoned temporary files."""
        files = []
        for path in self.folder.glob("??/*"):
            if not re.fullmatch(r"[0-9a-f]{64}\.safetensors|\.[0-9a-f]{64}\.safetensors\..+\.tmp", path.name):
                continue  # not a file of this cache
            with contextlib.suppress(OSError):  # removed by another process
                status = path.stat()
                if path.suffix == ".tmp" and time.time() - status.st_mtime > ABANDONED:
                    path.unlink()
                else:
                    files.append((status.st_mtime, status.st_size, path))
        return files


class FeatureCache:
    """Maps pictures to features, from the cache where possible."""

    def __init__(
        self,
        folder: PathLike,
        *,
        identity: dict[str, Any],
        encode: Encode,
        size: int,
        limit: int,
        encode_all: Encode | None = None,
    ):
        """Opens the cache; nothing is encoded yet.

        Args:
            folder: of entries; may be shared with other encoders.
            identity: values that JSON can hold and that identify the encoder, e.g. a SHA-256 of its parameters.
            encode: picture -> features, jitted; only called with N = 1.
            size: S, side of a picture in pixels.
            limit: bytes that the folder may hold.
            encode_all: the same for any N, such as `parallel.spread`: the features of a picture must not depend on the
                others. Without it pictures are encoded one by one.

        Raises:
            InputError: the folder cannot be created, or the limit is below `FEWEST_ENTRIES` entries.
        """
        self.encode, self._encode_all = encode, encode_all
        self._identity = hashlib.sha256(json.dumps(identity, sort_keys=True).encode())
        shapes = jax.eval_shape(encode, jax.ShapeDtypeStruct((1, size, size, 3), np.uint8))
        kept = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], np.float16), shapes)
        self._structure = jax.tree.structure(kept)
        self._shapes = {name: tuple(shape) for name, (_, shape) in describe(kept).items()}
        self.entry_size = sum(2 * math.prod(shape) for shape in self._shapes.values()) + 1024  # bytes, with its header
        if limit < (least := FEWEST_ENTRIES * self.entry_size):
            raise InputError(
                f"{folder}: {limit / 2**30:.3g} GiB hold too few entries; allow {least / 2**30:.2g} GiB or more."
            )
        spared = limit - (WRITERS + 1) * _allowance(limit, self.entry_size)  # left after `make_room` and `_shrink`
        self.capacity = spared // self.entry_size  # pictures whose entries all remain, whatever else is in the folder
        self.entries = EntryFolder(folder, arrays=describe(kept), limit=limit)
        self.fault: str | None = None  # the error after which nothing is written
        self.found = self.encoded = 0  # pictures so far
        self._readers = ThreadPoolExecutor(THREADS)
        self._writer = ThreadPoolExecutor(1)  # a single thread, so that no own write is in flight during a count

    def __call__(self, pictures: np.ndarray, keep: np.ndarray | None = None) -> Any:
        """Features of pictures, with the same bits whether they were cached or not.

        Args:
            pictures: (B, S, S, 3) uint8, any B.
            keep: (B,) bool, which of them are written if they are encoded; all by default.

        Returns:
            tree of (B, ...) float16 arrays: 16 MiB for 8 pictures at 1024 pixels, 64 to 96 MiB with early features.
            Cast them to float32 on the device.

        Raises:
            InputError: the encoder gives values that float16 cannot hold.
        """
        features = {name: np.empty((len(pictures), *shape), np.float16) for name, shape in self._shapes.items()}

        def look_up(row: int) -> tuple[str, bool]:
            key = self._key(pictures[row])
            entry = self.entries.read(key)
            if entry is not None:
                for name, leaf in features.items():
                    leaf[row] = entry[name]
            return key, entry is not None

        missing: dict[str, list[int]] = {}  # key -> rows: a batch may hold a picture twice
        for row, (key, found) in enumerate(self._readers.map(look_up, range(len(pictures)))):
            if not found:
                missing.setdefault(key, []).append(row)
        writing = []
        encoded = self._encode([pictures[rows[0]] for rows in missing.values()])
        for (key, rows), entry in zip(missing.items(), encoded, strict=True):
            if keep is None or keep[rows].any():
                writing.append(self._writer.submit(self._keep, key, entry))
            for name, leaf in entry.items():
                features[name][rows] = leaf
        for future in writing:
            future.result()
        self.encoded += len(missing)
        self.found += len(pictures) - len(missing)
        return jax.tree.unflatten(self._structure, features.values())

    def _key(self, picture: np.ndarray) -> str:
        sha = self._identity.copy()
        sha.update(np.ascontiguousarray(picture).reshape(-1).data)
        return sha.hexdigest()

    def _encode(self, pictures: Sequence[np.ndarray]) -> Iterator[Entry]:
        """An entry for each picture."""
        if self._encode_all is not None and pictures:
            leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(self._encode_all(np.stack(pictures)))]
            for row in range(len(pictures)):
                yield self._entry([leaf[row] for leaf in leaves])
        else:
            for picture in pictures:
                yield self._entry([np.asarray(leaf)[0] for leaf in jax.tree.leaves(self.encode(picture[None]))])

    def _entry(self, leaves: Sequence[np.ndarray]) -> Entry:
        with np.errstate(over="ignore"):
            entry = {name: leaf.astype(np.float16) for name, leaf in zip(self._shapes, leaves, strict=True)}
        if not all(np.isfinite(leaf).all() for leaf in entry.values()):
            raise InputError(f"{self.entries.folder}: the encoder gives values beyond float16; leave out the cache.")
        return entry

    def _keep(self, key: str, entry: Entry) -> None:
        """Writes an entry. After the first failure, which is reported, nothing is written any more."""
        if self.fault is not None:
            return
        try:
            self.entries.make_room(self.entry_size)
            self.entries.write(key, entry)
        except (InputError, OSError, NotImplementedError) as error:  # the last where a file system has no locks
            self.fault = str(error)
            print(f"features are not cached from here on: {error}", file=sys.stderr, flush=True)


def _allowance(limit: int, size: int) -> int:
    """Bytes that a process may write between two counts of the folder: a 64th of the limit, or one entry."""
    return max(limit // COUNTS, size)
