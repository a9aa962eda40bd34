"""A bounded cache on disk of what a frozen encoder makes of a picture, in float16, under the picture's own hash.

An entry's name is the SHA-256 of all that decides it, the pixels that the encoder sees and the encoder itself, so it
is never stale. Each is a sealed file, `ab/abcdef....safetensors`, that knows its name: one that is damaged, or not what
its name says, is noticed on reading and made anew. Any number of processes read at once; four may write at once without
going over the limit. An entry takes 2 MiB for SAM at 1024 pixels, 8 to 12 with HQ-SAM's early features, 0.5 for
sam_nano at 512.
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
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np

from stablesam_jax.errors import InputError
from stablesam_jax.files import sealed_file
from stablesam_jax.files.checkpoint import check_arrays, describe
from stablesam_jax.files.disk import PathLike

Encode = Callable[[np.ndarray], Any]  # (1, S, S, 3) uint8 -> tree of (1, ...) arrays
Entry = dict[str, np.ndarray]  # float16 arrays of one picture by name

KEY = "key"  # in the header of an entry: its own name
WRITERS = 4  # processes that may write at once without going over the limit
LOOKS = 64  # a process counts the folder anew when it has written a 64th of the limit
FEWEST_ENTRIES = 32  # that the limit must hold
ABANDONED = 3600.0  # seconds, age from which a temporary file has no writer any more
THREADS = 8  # of reading and hashing


class EntryFolder:
    """Sealed files by key under a limit of size; those that were not read or written for longest go first."""

    def __init__(self, folder: PathLike, *, arrays: dict[str, Any], limit: int):
        """Opens the folder, or makes it, and counts what is there.

        Args:
            folder: shared by all encoders and processes.
            arrays: `describe` of an entry.
            limit: bytes.

        Raises:
            InputError: the folder cannot be made.
        """
        self.folder = pathlib.Path(folder)
        self.arrays = arrays
        self.limit = limit
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"{folder}: cannot be made ({error.strerror}); give another folder.") from None
        # Bytes, as last counted and with what this process has written since. Nothing is removed before it writes: who
        # finds everything is no danger to a folder that was filled under a higher limit.
        self.size = sum(size for _, size, _ in self._files())
        self._allowed = 0  # bytes to write until the next count

    def read(self, key: str) -> Entry | None:
        """The entry, or None; what is damaged or foreign is said on standard error and removed."""
        path = self._path(key)
        try:
            tensors, header = sealed_file.read(path, kind="feature", keys=(KEY,))
            if header[KEY] != key:
                raise InputError(f"{path}: is a copy of entry {header[KEY]}.")
            check_arrays(path, describe(tensors), self.arrays)
        except InputError as error:
            if path.exists():  # else it never was, or another process has just removed it
                print(f"removed, and made anew: {error}", file=sys.stderr, flush=True)
                with contextlib.suppress(OSError):
                    path.unlink()
            return None
        with contextlib.suppress(OSError):  # removed meanwhile, or another user's
            os.utime(path)
        return tensors

    def write(self, key: str, entry: Entry) -> None:
        """Adds an entry; one that is there stays. `make_room` comes first.

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
            raise InputError(f"{path.parent}: cannot be made ({error.strerror}). Make room.") from None
        except InputError:
            if not path.exists():  # else another process was faster, with the same bits
                raise

    def make_room(self, size: int) -> None:
        """Removes what was not used for longest, so that `size` bytes may be written.

        Whoever counted last left the folder below the limit by the allowances of all writers, and since then none has
        written more than one allowance, or it would have counted again. So the limit holds without a lock.
        """
        if size > self._allowed:
            self._allowed = _allowance(self.limit, size)
            self._shrink(self.limit - WRITERS * self._allowed)
        self._allowed -= size
        self.size += size

    def _shrink(self, most: int) -> None:
        """Counts, and where it is more than `most` bytes, removes the entries used least recently and some more."""
        files = sorted(self._files())
        self.size = sum(size for _, size, _ in files)
        if self.size <= most:
            return
        for _, size, path in files:
            if path.suffix != ".tmp":  # its writer may live
                with contextlib.suppress(OSError):
                    path.unlink()
                self.size -= size
            if self.size <= most - self.limit // LOOKS:
                break

    def _path(self, key: str) -> pathlib.Path:
        return self.folder / key[:2] / f"{key}.safetensors"

    def _files(self) -> list[tuple[float, int, pathlib.Path]]:
        """Time of last use, bytes and path of entries and of what is being written; what dead writers left goes."""
        files = []
        for path in self.folder.glob("??/*"):
            if not re.fullmatch(r"[0-9a-f]{64}\.safetensors|\.[0-9a-f]{64}\.safetensors\..+\.tmp", path.name):
                continue  # not ours
            with contextlib.suppress(OSError):  # gone meanwhile
                status = path.stat()
                if path.suffix == ".tmp" and time.time() - status.st_mtime > ABANDONED:
                    path.unlink()
                else:
                    files.append((status.st_mtime, status.st_size, path))
        return files


class FeatureCache:
    """Pictures to features: read where they are known, encoded and kept where not."""

    def __init__(self, folder: PathLike, *, identity: dict[str, Any], encode: Encode, size: int, limit: int):
        """Opens the cache; nothing is encoded yet.

        Args:
            folder: where entries lie, of this and any other encoder.
            identity: JSON that decides what the encoder makes of a picture, e.g. a SHA-256 of its parameters.
            encode: a picture to features, jitted.
            size: S, side of a picture in pixels.
            limit: bytes that the folder may hold.

        Raises:
            InputError: the folder cannot be made, or the limit is too small to be of use.
        """
        self.encode = encode
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
        spared = limit - (WRITERS + 1) * _allowance(limit, self.entry_size)  # by `make_room` and `_shrink`
        self.capacity = spared // self.entry_size  # of so many pictures all is kept, whatever else lies in the folder
        self.entries = EntryFolder(folder, arrays=describe(kept), limit=limit)
        self.fault: str | None = None  # why nothing is kept any more
        self.found = self.encoded = 0  # pictures so far
        self._readers = ThreadPoolExecutor(THREADS)
        self._writer = ThreadPoolExecutor(1)  # one, so that none of its own entries is on its way when it counts

    def __call__(self, pictures: np.ndarray) -> Any:
        """Features of pictures, the same bits whether they were known or not.

        Args:
            pictures: (B, S, S, 3) uint8, any B.

        Returns:
            tree of (B, ...) float16 arrays, for a batch of 8 at 1024 pixels 16 MiB in all (64 to 96 with early
            features); whoever computes with them widens them there.

        Raises:
            InputError: the encoder gives numbers that float16 does not hold.
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
        # Each alone: one shape is compiled, and the last bits of ViT-B would depend on a picture's place in a batch.
        for key, rows in missing.items():
            entry = self._encode(pictures[rows[0]])
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

    def _encode(self, picture: np.ndarray) -> Entry:
        leaves = jax.tree.leaves(self.encode(picture[None]))
        with np.errstate(over="ignore"):
            entry = {
                name: np.asarray(leaf)[0].astype(np.float16) for name, leaf in zip(self._shapes, leaves, strict=True)
            }
        if not all(np.isfinite(leaf).all() for leaf in entry.values()):
            raise InputError(f"{self.entries.folder}: the encoder gives numbers beyond float16; go without a cache.")
        return entry

    def _keep(self, key: str, entry: Entry) -> None:
        """Writes an entry, until one fails: that is said once, and from then on what is missing is always encoded."""
        if self.fault is not None:
            return
        try:
            self.entries.make_room(self.entry_size)
            self.entries.write(key, entry)
        except InputError as error:
            self.fault = str(error)
            print(f"features are not kept from here on: {error}", file=sys.stderr, flush=True)


def _allowance(limit: int, size: int) -> int:
    """Bytes that a process writes between two counts of the folder: a small part of the limit, or one entry."""
    return max(limit // LOOKS, size)
