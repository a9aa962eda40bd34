"""Results come in order, whichever thread is done first, and few items are begun before they are consumed."""

import threading
import time

import jax
import pytest

from eval import overlap
from eval.overlap import overlapped, overlapped_on


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


def test_several_devices_take_items_in_turns_and_results_keep_their_order():
    began = []

    def begin_on(name):
        def begin(item):
            time.sleep(0.02 * (item % 3))
            began.append(name)
            return lambda: (item, name)

        return begin

    devices = [(device, begin_on(number)) for number, device in enumerate(jax.devices()[:2])]
    found = list(overlapped_on(devices, range(12)))
    assert [item for item, _ in found] == list(range(12))
    assert {name for _, name in found} == set(range(len(devices)))


def test_an_error_on_one_of_several_devices_is_raised_at_its_place_and_nothing_more_begins():
    begun = []

    def begin(item):
        begun.append(item)
        return lambda: 1 / (item - 2)

    results = overlapped_on([(device, begin) for device in jax.devices()[:2]], range(1000))
    assert next(results) == -0.5
    assert next(results) == -1
    with pytest.raises(ZeroDivisionError):
        next(results)
    assert len(begun) < 100
