"""Two devices do what one does with the whole batch."""

import functools
import logging
import os
import threading

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from stablesam_jax import parallel
from stablesam_jax.errors import InputError

TREE = {"kernel": np.arange(6, dtype=np.float32).reshape(2, 3), "step": np.int32(7), "deep": [np.ones((1,), bool)]}


@pytest.fixture(scope="module")
def two():
    devices = parallel.choose_devices(2)
    assert len(devices) == 2
    return devices


def refusal(call, *arguments):
    with pytest.raises(InputError) as caught:
        call(*arguments)
    return str(caught.value)


def test_all_devices_are_taken_or_the_first_few():
    assert parallel.choose_devices(None) == jax.local_devices()
    assert parallel.choose_devices(1) == jax.local_devices()[:1]


@pytest.mark.parametrize("count", [0, -1, 3])
def test_devices_that_are_not_there_are_refused(count):
    message = refusal(parallel.choose_devices, count)
    assert message == f"--devices {count}: JAX has 2 device(s) on this machine; give 1 to 2."


@pytest.mark.parametrize(("batch_size", "devices"), [(1, 1), (7, 1), (2, 2), (32, 8)])
def test_a_batch_that_divides_passes(batch_size, devices):
    parallel.check_divides(batch_size, devices)


@pytest.mark.parametrize(
    ("batch_size", "devices", "fitting"), [(7, 2, 6), (1, 2, 2), (31, 8, 24), (0, 2, 2), (-4, 2, 2)]
)
def test_a_batch_that_does_not_divide_is_refused_with_one_that_does(batch_size, devices, fitting):
    message = refusal(parallel.check_divides, batch_size, devices)
    start = f"--batch-size {batch_size} cannot be divided among {devices} devices; take {fitting}, or set --devices."
    assert message == start
    parallel.check_divides(fitting, devices)


def test_a_batch_without_pictures_is_refused_on_one_device_too():
    assert "--batch-size 0" in refusal(parallel.check_divides, 0, 1)


# engines


@pytest.fixture(params=sorted(parallel.ENGINES))
def make_engine(request):
    return parallel.ENGINES[request.param]


def test_a_replicated_tree_comes_back_as_it_was(make_engine, two):
    engine = make_engine(two)
    everywhere = engine.replicate(TREE)
    assert everywhere["kernel"].sharding.device_set == set(two)
    back = engine.unreplicate(everywhere)
    assert jax.tree.structure(back) == jax.tree.structure(TREE)
    for leaf, original in zip(jax.tree.leaves(back), jax.tree.leaves(TREE), strict=True):
        assert isinstance(leaf, np.ndarray)
        assert leaf.shape == np.shape(original)
        assert leaf.dtype == original.dtype
        assert np.array_equal(leaf, original)


def test_every_device_sees_consecutive_rows_and_the_mean_is_over_all(make_engine, two):
    def function(batch):
        rows = {name: jax.lax.all_gather(leaf, parallel.AXIS) for name, leaf in batch.items()}
        return rows, parallel.mean(batch["b"].sum())

    engine = make_engine(two)
    batch = {"a": np.arange(12, dtype=np.uint8).reshape(6, 2), "b": np.arange(6, dtype=np.float32)}
    rows, everyones = engine.unreplicate(engine.run_on_all(function, sharded=(0,))(engine.shard(batch)))
    assert rows["a"].tolist() == [[[0, 1], [2, 3], [4, 5]], [[6, 7], [8, 9], [10, 11]]]
    assert rows["b"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert everyones == (3 + 12) / 2


@pytest.fixture(scope="module")
def regression():
    generator = np.random.default_rng(0)
    return {
        "x": generator.normal(size=(8, 3)).astype(np.float32),
        "y": generator.normal(size=8).astype(np.float32),
    }


def loss(weights, batch):
    return ((batch["x"] @ weights - batch["y"]) ** 2).mean()


def update(state, batch):
    value, gradient = parallel.mean(jax.value_and_grad(loss)(state["weights"], batch))
    return {"weights": state["weights"] - jnp.float32(0.1) * gradient, "step": state["step"] + 1}, value


def start():
    return {"weights": np.zeros(3, np.float32), "step": np.int32(0)}


@pytest.mark.parametrize("donate", [(), (0,)])
def test_steps_on_two_devices_equal_steps_on_one(make_engine, two, regression, donate):
    results = []
    for devices in (two[:1], two):
        engine = make_engine(devices)
        step = engine.run_on_all(update, sharded=(1,), donate=donate)
        state = engine.replicate(start())
        for _ in range(5):
            before = state
            state, value = step(state, engine.shard(regression))
            assert [leaf.is_deleted() for leaf in jax.tree.leaves(before)] == [bool(donate)] * 2
        copies = [np.asarray(copy.data).ravel() for copy in state["weights"].addressable_shards]
        assert len(copies) == len(devices)
        assert all(np.array_equal(copy, copies[0]) for copy in copies)
        results.append(engine.unreplicate((state, value)))
    (first, first_loss), (second, second_loss) = results
    assert first["step"] == second["step"] == 5
    assert first["weights"] == pytest.approx(second["weights"], rel=1e-5)
    assert first_loss == pytest.approx(second_loss, rel=1e-5)
    assert first_loss < loss(start()["weights"], regression)


def test_what_was_replicated_stays_as_it_was_though_its_copies_are_donated(make_engine, two):
    engine = make_engine(two)
    double = engine.run_on_all(lambda state: 2 * state, sharded=(), donate=(0,))
    given = np.ones(2**16, np.float32)
    state = engine.replicate(given)
    for _ in range(3):
        state = double(state)
    assert (engine.unreplicate(state) == 8).all()
    assert (given == 1).all()


def test_both_engines_train_to_the_same_bits_and_continue_each_other(two, regression):
    """A small network; tests/train/test_processes.py has a segmenter, more devices, and two hosts."""
    engines = {name: engine(two) for name, engine in parallel.ENGINES.items()}
    optimizer = optax.adam(1e-2)
    generator = np.random.default_rng(1)
    layers = [generator.normal(size=shape).astype(np.float32) for shape in ((3, 16), (16, 16), (16, 1))]

    def loss(layers, batch):
        x = batch["x"]
        for layer in layers:
            x = jax.nn.gelu(x) @ layer
        return ((x[:, 0] - batch["y"]) ** 2).mean()

    def update(state, batch):
        layers, moments = state
        value, gradient = parallel.mean(jax.value_and_grad(loss)(layers, batch))
        with jax.numpy_dtype_promotion("standard"):
            changes, moments = optimizer.update(gradient, moments, layers)
            return (optax.apply_updates(layers, changes), moments), value

    steps = {name: engine.run_on_all(update, sharded=(1,), donate=(0,)) for name, engine in engines.items()}

    def bits(names):
        """Of layers, moments and losses, after a step by each of these engines."""
        state, losses = (layers, optimizer.init(layers)), []
        for name in names:
            engine = engines[name]
            state, value = engine.unreplicate(steps[name](engine.replicate(state), engine.shard(regression)))
            losses.append(value)
        assert len({float(value) for value in losses}) == len(names)
        return [(leaf.shape, leaf.dtype, leaf.tobytes()) for leaf in jax.tree.leaves((state, losses))]

    expected = bits(["pmap"] * 4)
    assert bits(["jit"] * 4) == expected
    assert bits(["pmap", "pmap", "jit", "jit"]) == bits(["jit", "jit", "pmap", "pmap"]) == expected


@pytest.mark.parametrize("count", [1, 2])
def test_all_steps_are_one_compiled_program(make_engine, two, regression, count, caplog):
    engine = make_engine(two[:count])
    anew = functools.partial(update)  # pmap knows a function that it has compiled for another test
    step = engine.run_on_all(anew, sharded=(1,), donate=(0,))
    state = engine.replicate(start())
    compiled = []
    for _ in range(3):
        with jax.log_compiles(), caplog.at_level(logging.WARNING):
            state, _ = step(state, engine.shard(regression))
        compiled.append(sum(record.getMessage().startswith("Compiling") for record in caplog.records))
        caplog.clear()
    assert compiled == [1, 0, 0]


def test_a_step_and_the_next_batch_are_handed_over_without_waiting_for_the_result(make_engine, two):
    opened, passed = threading.Event(), []

    def wait(value):
        passed.append(opened.wait(20))
        return value

    def function(state, batch):
        return state + parallel.mean(jax.pure_callback(wait, jax.ShapeDtypeStruct((), np.float32), batch.sum()))

    engine = make_engine(two)
    step = engine.run_on_all(function, sharded=(1,), donate=(0,))
    state = step(engine.replicate(np.float32(0)), engine.shard(np.ones(4, np.float32)))
    engine.shard(np.ones(4, np.float32))
    opened.set()
    assert engine.unreplicate(state) == 2
    assert passed == [True, True]


# the processor's cores


@pytest.mark.parametrize(("batch_size", "cores", "devices"), [(8, 2, 2), (8, 3, 2), (9, 3, 3), (7, 2, 1), (8, 64, 4)])
def test_a_processor_is_shown_as_devices_that_divide_the_batch(monkeypatch, batch_size, cores, devices):
    shown = {}
    monkeypatch.delenv("JAX_NUM_CPU_DEVICES")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)))
    monkeypatch.setattr(jax.config, "update", shown.__setitem__)
    parallel.split_cpu(batch_size)
    assert shown == {"jax_num_cpu_devices": devices}


def test_the_users_own_number_of_devices_is_kept(monkeypatch):
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "1")
    monkeypatch.setattr(jax.config, "update", lambda *_: pytest.fail("the setting was changed"))
    parallel.split_cpu(8)


@pytest.mark.parametrize("coordinator", [None, "auto"])
def test_numbers_of_hosts_without_an_address_are_refused_and_none_are_a_host_alone(coordinator):
    for numbers in ((2, 1), (None, 0), (1, None)):
        assert "belong to --coordinator HOST:PORT" in refusal(parallel.join_hosts, coordinator, *numbers)
    parallel.join_hosts(None, None, None)
    assert jax.process_count() == 1


def test_rows_that_are_spread_over_devices_have_the_bits_of_one_by_one():
    rng = np.random.default_rng(0)
    weights, rows = rng.standard_normal((12, 7), np.float32), rng.standard_normal((5, 12), np.float32)

    def function(shared, inputs):
        return {"twice": [jnp.tanh(inputs @ shared["w"])], "sum": inputs.sum(axis=1)}

    alone = [jax.jit(function)({"w": weights}, row[None]) for row in rows]
    for count in (1, 2):
        run = parallel.spread(function, {"w": weights}, jax.devices()[:count])
        for number in (1, 2, 5):
            found = run(rows[:number])
            assert found["twice"][0].shape == (number, 7)
            for row in range(number):
                assert found["twice"][0][row].tobytes() == np.asarray(alone[row]["twice"][0])[0].tobytes()
                assert found["sum"][row].tobytes() == np.asarray(alone[row]["sum"])[0].tobytes()
