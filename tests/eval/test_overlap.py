"""Results come in order, whichever thread is done first, and few items are begun before they are consumed."""

import threading
import time

import pytest

from eval import overlap
from eval.overlap import overlapped


def test_results_are_in_order_though_later_ones_are_done_first(monkeypatch):
    monkeypatch.setattr(overlap, "THREADS", 3)

    def begin(item):
        return lambda: time.sleep(0.02 * (3 - item % 4)) or item

    assert list(overlapped(begin, range(8))) == list(range(8))


def test_the_next_item_is_begun_while_one_is_finished(monkeypatch):
    monkeypatch.setattr(overlap, "THREADS", 1)
    second_begun = threading.Event()

    def begin(item):
        if item == 1:
            second_begun.set()
        return lambda: second_begun.wait(10)

    assert next(overlapped(begin, range(2)))


def test_no_more_is_begun_than_there_are_threads_for(monkeypatch):
    monkeypatch.setattr(overlap, "THREADS", 2)
    begun = []
    results = overlapped(lambda item: begun.append(item) or (lambda: item), range(100))
    assert next(results) == 0
    assert len(begun) == 3


def test_an_error_of_a_thread_is_raised_at_its_item():
    results = overlapped(lambda item: lambda: 1 / item, [1, 0])
    assert next(results) == 1
    with pytest.raises(ZeroDivisionError):
        next(results)
