"""What is current is right for whoever asks, or refused: never what someone else has set in between."""

import asyncio
import copy
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from stablesam_jax.errors import InputError
from stablesam_jax.predict.current import Current


def in_thread(function, *arguments):
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(function, *arguments).result()


@pytest.fixture
def refused():
    return pytest.raises(InputError, match=r"several threads or tasks have set pictures.*picture=predictor\.encode")


def test_nothing_is_set_at_first_and_after_clearing():
    current = Current()
    assert current.read() is None
    current.set("a")
    current.set("b")
    assert current.read() == "b"
    current.clear()
    assert current.read() is None


def test_two_do_not_share_their_values():
    first, second = Current("a"), Current("b")
    assert (first.read(), second.read()) == ("a", "b")


def test_each_thread_reads_what_it_has_set_however_they_take_turns():
    current, turn = Current(), threading.Barrier(4)

    def job(name):
        found = []
        for index in range(5):
            turn.wait()
            current.set((name, index))
            turn.wait()
            found.append(current.read())
        return found

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(job, "abcd"))
    assert found == [[(name, index) for index in range(5)] for name in "abcd"]


def test_a_thread_that_has_set_none_reads_what_the_only_one_that_sets_has_set_last():
    current = Current("a")
    assert in_thread(current.read) == "a"
    current.set("b")
    assert in_thread(current.read) == "b"
    current.clear()
    assert in_thread(current.read) is None


def test_once_several_threads_set_one_that_sets_none_is_refused(refused):
    current = Current("a")
    in_thread(current.set, "b")
    assert current.read() == "a"
    with refused:
        in_thread(current.read)
    with refused:
        in_thread(in_thread, current.read)


def test_a_thread_of_the_same_number_as_one_that_has_ended_is_another(refused):
    current = Current()
    in_thread(current.set, "a")
    in_thread(current.set, "b")
    with refused:
        current.read()


def test_clearing_in_one_thread_leaves_the_others_what_they_have():
    current = Current("a")
    in_thread(current.clear)
    assert current.read() == in_thread(current.read) == "a"


def test_tasks_read_what_they_have_set_or_are_refused(refused):
    current = Current()

    async def job(name):
        current.set(name)
        assert current.read() == name
        await asyncio.sleep(0)
        try:
            return current.read()
        except InputError:
            return "refused"

    async def jobs():
        return await asyncio.gather(*map(job, "abc"))

    assert asyncio.run(jobs()) == ["refused", "refused", "c"]


def test_a_task_reads_what_was_set_before_it_began():
    current = Current()

    async def read():
        return current.read()

    async def jobs():
        current.set("a")
        return await asyncio.gather(read(), asyncio.to_thread(current.read))

    assert asyncio.run(jobs()) == ["a", "a"]


def test_what_a_task_of_its_own_has_set_is_read_or_refused_where_something_older_is_set(refused):
    current = Current()

    async def set_elsewhere(value):
        await asyncio.create_task(asyncio.to_thread(current.set, value))

    async def jobs():
        await set_elsewhere("a")
        assert current.read() == "a"
        current.set("b")
        await set_elsewhere("c")
        with refused:  # the thread pool's thread is another
            await asyncio.to_thread(current.read)
        return current.read()

    assert asyncio.run(jobs()) == "b"


def test_a_copy_keeps_what_is_read_where_it_is_made():
    current = Current("a")
    for copied in (pickle.loads(pickle.dumps(current)), copy.deepcopy(current)):
        assert copied.read() == "a"
        copied.set("b")
    assert current.read() == "a"
    in_thread(current.set, "c")
    assert in_thread(copy.copy, current).read() is None


def test_values_go_with_their_predictor():
    import gc
    import weakref

    class Value:
        pass

    current, value = Current(), Value()
    current.set(value)
    gone = weakref.ref(value)
    del current, value
    gc.collect()
    assert gone() is None
