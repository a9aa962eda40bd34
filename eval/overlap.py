"""What is left of an item once a model has answered, in threads beside the next items; the results in order."""

import collections
import concurrent.futures
import os
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

THREADS = min(8, os.cpu_count() or 1)


def overlapped(begin: Callable[[Item], Callable[[], Result]], items: Iterable[Item]) -> Iterator[Result]:
    """The results for all items, one after the other.

    Args:
        begin: asks the model, in this thread, and returns the rest of the item's work, which is done in another while
            the next items begin. numpy, OpenCV and XLA let go of the interpreter.
        items: in the order of the results; a few more are begun than are done.
    """
    with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
        waiting: collections.deque[concurrent.futures.Future[Result]] = collections.deque()
        for item in items:
            waiting.append(pool.submit(begin(item)))
            if len(waiting) > THREADS:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
