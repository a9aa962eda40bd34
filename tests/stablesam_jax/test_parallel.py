"""Two devices do what one does with the whole batch."""

import os

import jax
import jax.numpy as jnp
import numpy as np
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
    assert message == f"--devices {count}: this machine shows JAX 2 device(s); ask for 1 to 2."


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


def test_a_replicated_tree_comes_back_as_it_was(two):
    everywhere = parallel.replicate(TREE, two)
    assert all(leaf.shape[0] == 2 for leaf in jax.tree.leaves(everywhere))
    assert everywhere["kernel"].sharding.device_set == set(two)
    back = parallel.unreplicate(everywhere)
    assert jax.tree.structure(back) == jax.tree.structure(TREE)
    for leaf, original in zip(jax.tree.leaves(back), jax.tree.leaves(TREE), strict=True):
        assert isinstance(leaf, np.ndarray)
        assert leaf.dtype == original.dtype
        assert np.array_equal(leaf, original)


def test_shards_are_consecutive_rows(two):
    batch = {"a": np.arange(12).reshape(6, 2), "b": np.arange(6)}
    shards = parallel.shard(batch, two)
    assert shards["a"].shape == (2, 3, 2)
    assert shards["b"].tolist() == [[0, 1, 2], [3, 4, 5]]


def test_every_device_sees_its_own_shard_and_the_mean_is_over_all(two):
    def function(rows):
        return rows.sum(), parallel.mean({"sum": rows.sum()})

    own, everyones = parallel.run_on_all(function, two)(parallel.shard(np.arange(4, dtype=np.float32), two))
    assert own.tolist() == [1, 5]
    assert everyones["sum"].tolist() == [3, 3]


@pytest.mark.parametrize("donate", [(), (0,)])
def test_steps_on_two_devices_equal_steps_on_one(two, donate):
    generator = np.random.default_rng(0)
    inputs, targets = generator.normal(size=(8, 3)).astype(np.float32), generator.normal(size=8).astype(np.float32)

    def loss(weights, batch):
        return ((batch["x"] @ weights - batch["y"]) ** 2).mean()

    def update(weights, batch):
        value, gradient = parallel.mean(jax.value_and_grad(loss)(weights, batch))
        return weights - jnp.float32(0.1) * gradient, value

    results = []
    for devices in (two[:1], two):
        step = parallel.run_on_all(update, devices, donate=donate)
        state = parallel.replicate(np.zeros(3, np.float32), devices)
        for _ in range(5):
            state, value = step(state, parallel.shard({"x": inputs, "y": targets}, devices))
        assert np.array_equal(*np.asarray(state)[[0, -1]])
        results.append((parallel.unreplicate(state), parallel.unreplicate(value)))
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-5)
    assert results[0][1] == pytest.approx(results[1][1], rel=1e-5)
    assert results[0][1] < loss(np.zeros(3, np.float32), {"x": inputs, "y": targets})


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
