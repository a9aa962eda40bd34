"""Overlaps the host's work on one item with the device's work on the next ones; results come in order."""

import collections
import concurrent.futures
import os
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

THREADS = min(8, os.cpu_count() or 1)


def overlapped(begin: Callable[[Item], Callable[[], Result]], items: Iterable[Item]) -> Iterator[Result]:
    """Yields the results of all items in order.

    Args:
        begin: runs the model, in this thread, and returns the rest of the item's work. That runs in another thread
            while the next items begin: numpy, OpenCV and XLA release the interpreter lock.
        items: in the order of the results; at most `THREADS` + 1 are in flight.
    """
    with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
        waiting: collections.deque[concurrent.futures.Future[Result]] = collections.deque()
        for item in items:
            waiting.append(pool.submit(begin(item)))
            if len(waiting) > THREADS:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
