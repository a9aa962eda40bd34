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

from stablesam_jax import sealed_file
from stablesam_jax.checkpoint import PathLike, check_arrays, describe
from stablesam_jax.errors import InputError

Encode = Callable[[np.ndarray], Any]  # (B, S, S, 3) uint8 -> tree of (B, ...) arrays
Entry = dict[str, np.ndarray]  # float16 arrays of one picture by name

KEY = "key"  # in the header of an entry: its own name
WRITERS = 4  # processes that may write at once without going over the limit
LOOKS = 64  # a process counts the folder anew when it has written a 64th of the limit
FEWEST_BATCHES = 8  # that the limit must hold
ABANDONED = 3600.0  # seconds, age from which a temporary file has no writer any more
THREADS = 8  # of reading, hashing and writing; they mostly wait


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

    def __init__(
        self, folder: PathLike, *, identity: dict[str, Any], encode: Encode, size: int, batch_size: int, limit: int
    ):
        """Opens the cache; nothing is encoded yet.

        Args:
            folder: where entries lie, of this and any other encoder.
            identity: JSON that decides what the encoder makes of a picture, e.g. a SHA-256 of its parameters.
            encode: pictures to features, jitted.
            size: S, side of a picture in pixels.
            batch_size: pictures that `encode` is given, always as many, so that it is compiled once.
            limit: bytes that the folder may hold.

        Raises:
            InputError: the folder cannot be made, or the limit is too small to be of use.
        """
        self.encode = encode
        self.batch_size = batch_size
        self._identity = hashlib.sha256(json.dumps(identity, sort_keys=True).encode())
        shapes = jax.eval_shape(encode, jax.ShapeDtypeStruct((batch_size, size, size, 3), np.uint8))
        kept = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], np.float16), shapes)
        self._structure = jax.tree.structure(kept)
        self._names = list(describe(kept))
        self._shapes = [leaf.shape for leaf in jax.tree.leaves(kept)]
        self.entry_size = sum(2 * math.prod(shape) for shape in self._shapes) + 1024  # bytes, header included
        spared = limit - (WRITERS + 1) * _allowance(limit, batch_size * self.entry_size)  # `make_room`, `_shrink`
        self.capacity = spared // self.entry_size  # of so many pictures all is kept, whatever else lies in the folder
        if limit < FEWEST_BATCHES * batch_size * self.entry_size:
            least = FEWEST_BATCHES * batch_size * self.entry_size / 2**30
            raise InputError(f"{folder}: {limit / 2**30:.3g} GiB hold too few entries; allow {least:.2g} GiB or more.")
        self.entries = EntryFolder(folder, arrays=describe(kept), limit=limit)
        self.fault: str | None = None  # why nothing is kept any more
        self.found = self.encoded = 0  # pictures so far
        self._threads = ThreadPoolExecutor(THREADS)

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
        features = [np.empty((len(pictures), *shape), np.float16) for shape in self._shapes]

        def look_up(row: int) -> tuple[str, bool]:
            key = self._key(pictures[row])
            entry = self.entries.read(key)
            if entry is not None:
                for leaf, name in zip(features, self._names, strict=True):
                    leaf[row] = entry[name]
            return key, entry is not None

        missing: dict[str, list[int]] = {}  # key -> rows: a batch may hold a picture twice
        for row, (key, found) in enumerate(self._threads.map(look_up, range(len(pictures)))):
            if not found:
                missing.setdefault(key, []).append(row)
        keys = list(missing)
        for start in range(0, len(keys), self.batch_size):
            chunk = keys[start : start + self.batch_size]
            encoded = self._encode(pictures, [missing[key][0] for key in chunk])
            self._keep(chunk, encoded)
            for leaf, values in zip(features, encoded, strict=True):
                for key, value in zip(chunk, values, strict=True):
                    leaf[missing[key]] = value
        self.encoded += len(keys)
        self.found += len(pictures) - len(keys)
        return jax.tree.unflatten(self._structure, features)

    def _key(self, picture: np.ndarray) -> str:
        sha = self._identity.copy()
        sha.update(np.ascontiguousarray(picture).reshape(-1).data)
        return sha.hexdigest()

    def _encode(self, pictures: np.ndarray, rows: list[int]) -> list[np.ndarray]:
        """Features of at most `batch_size` rows, rounded; the batch is filled up by repeating them."""
        leaves = jax.tree.leaves(self.encode(pictures[np.resize(rows, self.batch_size)]))
        with np.errstate(over="ignore"):
            rounded = [np.asarray(leaf)[: len(rows)].astype(np.float16) for leaf in leaves]
        if not all(np.isfinite(leaf).all() for leaf in rounded):
            raise InputError(f"{self.entries.folder}: the encoder gives numbers beyond float16; go without a cache.")
        return rounded

    def _keep(self, keys: list[str], encoded: list[np.ndarray]) -> None:
        """Writes entries, until it fails: that is said once, and then features are encoded again and again."""
        if self.fault is not None:
            return
        self.entries.make_room(len(keys) * self.entry_size)

        def write(row: int) -> None:
            self.entries.write(keys[row], {name: leaf[row] for name, leaf in zip(self._names, encoded, strict=True)})

        try:
            list(self._threads.map(write, range(len(keys))))
        except InputError as error:
            self.fault = str(error)
            print(f"features are not kept from here on: {error}", file=sys.stderr, flush=True)


def _allowance(limit: int, size: int) -> int:
    """Bytes that a process writes between two counts of the folder: a small part of the limit, or one batch."""
    return max(limit // LOOKS, size)
