"""A cache of what a frozen encoder makes of each view, on disk, in float16.

The folder's name is a fingerprint of what its maker says decides the features, so a cache is never read by another
encoder, other pictures or another augmentation. Filling is resumable: what is done is marked view by view, and files
that are not whole are made anew. A view takes 2 MiB on disk for SAM at 1024 px, 0.5 MiB for sam_nano at 512 px.
"""

import dataclasses
import hashlib
import io
import json
import math
import pathlib
import shutil
from collections.abc import Callable, Iterator
from typing import Any, Literal

import jax
import numpy as np

from stablesam_jax.data.pipeline import Views
from stablesam_jax.errors import InputError

Encode = Callable[[np.ndarray], Any]  # (B, S, S, 3) uint8 -> tree of (B, ...) arrays


class FeatureCache:
    """Features of every view as memory-mapped arrays, one for each leaf of the encoder's output."""

    def __init__(self, folder: pathlib.Path, views: Views, *, identity: dict[str, Any], encode: Encode):
        """Opens or prepares the cache; no view is encoded yet.

        Args:
            folder: where caches lie; this one gets a subfolder of its own.
            views: what is encoded.
            identity: JSON that names encoder and data, e.g. a SHA-256 of the parameters and the picture's names.
            encode: pictures to features, jitted.

        Raises:
            InputError: the disk cannot hold what is still missing.
        """
        text = json.dumps(identity, sort_keys=True)
        self.folder = pathlib.Path(folder) / hashlib.sha256(text.encode()).hexdigest()[:16]
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "identity.json").write_text(text)
        self.views = views
        self.encode = encode
        size = views.config.size
        shapes = jax.eval_shape(encode, jax.ShapeDtypeStruct((1, size, size, 3), np.uint8))
        leaves, self.structure = jax.tree.flatten(shapes)
        features = [
            _Array(self.folder / f"features_{number}.npy", (len(views), *leaf.shape[1:]), np.dtype(np.float16))
            for number, leaf in enumerate(leaves)
        ]
        marks = _Array(self.folder / "done.npy", (len(views),), np.dtype(np.bool_))
        if not all(array.is_whole() for array in (marks, *features)):
            for array in (marks, *features):  # the marks go first: they must not outlive what they vouch for
                array.path.unlink(missing_ok=True)
        missing = sum(array.missing_bytes() for array in features)
        free = shutil.disk_usage(self.folder).free
        complete = marks.path.exists() and bool(marks.open().all())
        if missing > free and not complete:
            raise InputError(
                f"{folder}: the features of {len(views)} views need {missing / 2**30:.1f} GiB more, "
                f"{free / 2**30:.1f} GiB are free; make room, name another folder, or take fewer views."
            )
        self.arrays = [array.open() for array in features]
        self.done = marks.open()  # the marks come last, when all that they will vouch for is there

    def fill(self, batch_size: int) -> Iterator[int]:
        """Encodes what is missing, yielding the number of views done so far after each batch."""
        missing = np.flatnonzero(~self.done)
        for start in range(0, len(missing), batch_size):
            chosen = missing[start : start + batch_size]
            padded = np.resize(chosen, batch_size)  # static shape: the last batch repeats views
            features = self.encode(np.stack([self.views[int(index)][0] for index in padded]))
            for array, leaf in zip(self.arrays, jax.tree.leaves(features), strict=True):
                array[chosen] = np.asarray(leaf)[: len(chosen)].astype(np.float16)
                array.flush()
            self.done[chosen] = True  # after the features are on disk: a view that is marked is whole
            self.done.flush()
            yield int(self.done.sum())

    def __getitem__(self, indices: np.ndarray) -> Any:
        """Features of the views `indices` (B,), as float32 arrays with a leading axis B.

        Raises:
            ValueError: views that `fill` has not encoded.
        """
        if not self.done[indices].all():
            raise ValueError(f"{self.folder}: some of the views {indices} are not encoded; let fill() run to its end.")
        return jax.tree.unflatten(self.structure, [array[indices].astype(np.float32) for array in self.arrays])


@dataclasses.dataclass(frozen=True)
class _Array:
    """A file that holds, when it is whole, an array of this shape and type in NumPy's format."""

    path: pathlib.Path
    shape: tuple[int, ...]
    dtype: np.dtype

    def is_whole(self) -> bool:
        """Whether the file begins and ends as it should; NumPy would lengthen a file that was cut short, by zeros."""
        header = io.BytesIO()
        described = {"descr": self.dtype.str, "fortran_order": False, "shape": self.shape}
        np.lib.format.write_array_header_1_0(header, described)
        begin = header.getvalue()
        if not self.path.is_file() or self.path.stat().st_size != len(begin) + self._bytes():
            return False
        with self.path.open("rb") as file:
            return file.read(len(begin)) == begin

    def missing_bytes(self) -> int:
        """What the disk has yet to find: the file has holes where nothing was written."""
        held = self.path.stat().st_blocks * 512 if self.path.exists() else 0
        return max(self._bytes() - held, 0)

    def open(self) -> np.memmap:
        """The array, to be read and written in place; zeros where the file is missing."""
        mode: Literal["r+", "w+"] = "r+" if self.path.exists() else "w+"
        return np.lib.format.open_memmap(self.path, mode=mode, dtype=self.dtype, shape=self.shape)

    def _bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize
