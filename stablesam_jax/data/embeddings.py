"""A cache of what a frozen encoder makes of each view, on disk, in float16.

The folder's name holds a fingerprint of everything that decides the features, so a cache is never read by another
encoder, other pictures or another augmentation. Filling is resumable: what is done is marked view by view.
"""

import hashlib
import json
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from stablesam_jax.data.pipeline import Views

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
        self.arrays = [
            _open(self.folder / f"features_{number}.npy", (len(views), *leaf.shape[1:]), np.float16)
            for number, leaf in enumerate(leaves)
        ]
        self.done = _open(self.folder / "done.npy", (len(views),), np.bool_)

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
        """Features of the views `indices` (B,), as float32 arrays with a leading axis B."""
        return jax.tree.unflatten(self.structure, [array[indices].astype(np.float32) for array in self.arrays])


def _open(path: pathlib.Path, shape: tuple[int, ...], dtype: type) -> np.memmap:
    if path.exists():
        array = np.load(path, mmap_mode="r+")
        if array.shape == shape and array.dtype == dtype:
            return array
    return np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)
