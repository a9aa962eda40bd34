"""Prepares batches ahead of the steps and beside them: pictures, cached features, and their place on the devices."""

import queue
import threading
from collections.abc import Callable, Generator, Iterator
from typing import Any, TypeVar

import numpy as np

from stablesam_jax.data.pipeline import Batch, Views
from stablesam_jax.files.feature_cache import FeatureCache

AHEAD = 2  # batches that wait on the devices; the pipeline has some more in memory

Item = TypeVar("Item")


def ahead(items: Iterator[Item], depth: int = AHEAD) -> Generator[Item]:
    """Yields the items of an iterator that runs in a thread, up to `depth` of them in advance.

    An error of the iterator is raised where its item would have been. When the generator is closed, nothing more is
    taken than the item that is being made.
    """
    made: queue.Queue[tuple[Item | None, BaseException | None]] = queue.Queue(depth)
    closed = threading.Event()

    def put(item: Item | None, error: BaseException | None) -> None:
        while not closed.is_set():
            try:
                made.put((item, error), timeout=0.1)
                return
            except queue.Full:
                continue

    def run() -> None:
        try:
            for item in items:
                put(item, None)
                if closed.is_set():
                    return
            put(None, StopIteration())
        except BaseException as error:  # it is raised in the thread that waits
            put(None, error)

    thread = threading.Thread(target=run, name="feeding", daemon=True)
    thread.start()
    try:
        while True:
            item, error = made.get()
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            assert item is not None
            yield item
    finally:
        closed.set()
        thread.join()


def kept_in_cache(indices: np.ndarray, views: Views, capacity: int) -> np.ndarray:
    """Which views are worth writing to a cache that may be too small for all.

    Every epoch has the next view of all pictures. If the cache were filled in that order and the least recently used
    were removed, a view would always be gone when it comes again. So only the first `capacity` are kept: the first view
    of all pictures, then the second, and so on.

    Args:
        indices: (B,) of views, see `pipeline.Views`.
        views: of the run.
        capacity: views that the cache holds for certain.

    Returns:
        (B,) bool.
    """
    picture, view = np.divmod(indices, views.config.views)
    return view * len(views.pictures) + picture < capacity


def feed(
    stream: Iterator[Batch], views: Views, cache: FeatureCache | None, place: Callable[[Any], Any]
) -> Iterator[Any]:
    """Batches for the steps, on the devices.

    Args:
        stream: of `pipeline.batches`; ends after the last step, so that nothing is encoded in vain.
        views: of the run.
        cache: in place of the pictures their features are fed; None: the pictures.
        place: puts a batch onto the devices.
    """
    for batch in stream:
        indices = batch.pop("view")
        if cache is not None:
            batch["features"] = cache(batch.pop("picture"), kept_in_cache(indices, views, cache.capacity))
        yield place(batch)
