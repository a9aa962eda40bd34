"""Overlaps the host's work on one item with the devices' work on the next ones; results come in order."""

import collections
import concurrent.futures
import os
import queue
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

import jax

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


def overlapped_on(
    begins: Sequence[tuple[jax.Device, Callable[[Item], Callable[[], Result]]]], items: Iterable[Item]
) -> Iterator[Result]:
    """The same on several devices: each takes the next item when it is free.

    Args:
        begins: a device with its `begin`, see `overlapped`. Of several, each runs in a thread whose default device is
            its own; on accelerators two items are begun there at a time, so that none waits for the host.
        items: in the order of the results; at most twice as many as threads are in flight.
    """
    if len(begins) == 1:
        yield from overlapped(begins[0][1], items)
        return
    free: queue.SimpleQueue[tuple[jax.Device, Callable[[Item], Callable[[], Result]]]] = queue.SimpleQueue()
    for device, begin in begins:
        for _ in range(1 if device.platform == "cpu" else 2):
            free.put((device, begin))
    threads = free.qsize()

    def work(item: Item) -> concurrent.futures.Future[Result]:
        device, begin = free.get()
        try:
            with jax.default_device(device):
                finish = begin(item)
        finally:
            free.put((device, begin))
        return finishers.submit(finish)

    with (
        concurrent.futures.ThreadPoolExecutor(max(THREADS, threads)) as finishers,
        concurrent.futures.ThreadPoolExecutor(threads) as workers,
    ):
        waiting: collections.deque[concurrent.futures.Future[concurrent.futures.Future[Result]]] = collections.deque()
        try:
            for item in items:
                waiting.append(workers.submit(work, item))
                if len(waiting) > 2 * threads:
                    yield waiting.popleft().result().result()
            while waiting:
                yield waiting.popleft().result().result()
        finally:
            workers.shutdown(cancel_futures=True)  # after an error or an interruption nothing more begins
