"""The offset network and its depthwise convolution (sec. 4.2)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stablesam_jax.config import PluginConfig
from stablesam_jax.plugin.dsp import OffsetNetwork, deformable_features, sampling_positions

WIDTH = 16  # channels in these tests; nothing depends on 256


def normal(seed: int, *shape: int) -> jax.Array:
    """NumPy's draw: JAX would compile its own for every shape."""
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def started(config: PluginConfig, features):
    """A network and its first parameters."""
    network = OffsetNetwork(config)
    return network, jax.jit(network.init)(jax.random.key(1), features)["params"]


@pytest.mark.parametrize("amplitude", ["project", "gate", "none"])
def test_at_the_start_nothing_moves_and_amplitudes_are_the_features(amplitude):
    network = OffsetNetwork(PluginConfig(amplitude=amplitude))
    features = normal(0, 2, 4, 6, WIDTH)
    (amplitudes, offsets), _ = jax.jit(network.init_with_output)(jax.random.key(1), features)
    np.testing.assert_array_equal(amplitudes, features)
    np.testing.assert_array_equal(offsets, np.zeros((2, 4, 6, 1, 2)))


def test_only_the_chosen_amplitude_has_parameters():
    features = jnp.zeros((1, 4, 4, WIDTH))
    names = {
        amplitude: set(started(PluginConfig(amplitude=amplitude), features)[1])
        for amplitude in ("project", "gate", "none")
    }
    shared = {"depthwise", "norm", "offset"}
    assert names == {"project": shared | {"project"}, "gate": shared | {"gate"}, "none": shared}


def test_gate_multiplies_the_features():
    features = normal(0, 1, 4, 4, WIDTH)
    network, params = started(PluginConfig(amplitude="gate"), features)
    params["gate"]["bias"] = jnp.full(WIDTH, 2.0)
    amplitudes, _ = network.apply({"params": params}, features)
    np.testing.assert_array_equal(amplitudes, 3 * features)


def test_offsets_reach_the_limit_scaled_with_the_map_in_x_y_order():
    features = normal(0, 1, 16, 32, WIDTH)
    network, params = started(PluginConfig(max_offset_cells=8.0), features)
    params["offset"]["bias"] = jnp.array([99.0, -99.0])
    _, offsets = network.apply({"params": params}, features)
    np.testing.assert_array_equal(offsets[..., 0], np.full((1, 16, 32, 1), 8 * 32 / 64))
    np.testing.assert_array_equal(offsets[..., 1], np.full((1, 16, 32, 1), -8 * 16 / 64))


@pytest.mark.slow
def test_offsets_of_bfloat16_features_are_float32():
    features = normal(0, 1, 8, 8, WIDTH)
    network, params = started(PluginConfig(), features)
    params["offset"]["kernel"] = normal(2, WIDTH, 2)
    amplitudes, offsets = network.apply({"params": params}, features.astype(jnp.bfloat16))
    assert (amplitudes.dtype, offsets.dtype) == (jnp.bfloat16, jnp.float32)
    # Eight bits of mantissa through five layers, of offsets up to one cell.
    np.testing.assert_allclose(offsets, network.apply({"params": params}, features)[1], atol=0.1)


@pytest.mark.parametrize("weight", [1e3, 1e9, 1e15])
def test_no_weights_move_an_offset_beyond_its_bound(weight):
    features = normal(0, 2, 16, 32, WIDTH)
    network, params = started(PluginConfig(max_offset_cells=8.0), features)
    params = jax.tree.map(lambda leaf: leaf + weight * normal(2, *leaf.shape), params)
    _, offsets = network.apply({"params": params}, features)
    assert np.all(np.abs(offsets) <= np.array([4.0, 2.0]))  # 8 cells of 64, on a map of 32 x 16
    assert np.all(np.abs(offsets).max(axis=(0, 1, 2, 3)) == [4.0, 2.0])


def test_the_start_may_be_perturbed_by_less_than_a_cell():
    features = normal(0, 2, 64, 64, WIDTH)
    network, params = started(PluginConfig(start="perturbed"), features)
    amplitudes, offsets = network.apply({"params": params}, features)
    np.testing.assert_array_equal(amplitudes, features)
    assert 0 < np.abs(offsets).max() < 1


MAP = jnp.arange(12.0).reshape(1, 3, 4, 1)


def moved(offset, features=MAP, padding="border"):
    """Every cell of a 3 x 4 map moved by the same (groups, 2) offset."""
    offsets = jnp.tile(jnp.array(offset)[None, None, None], (1, 3, 4, 1, 1))
    return deformable_features(features, sampling_positions(offsets, padding), padding)[0]


def test_an_offset_of_one_cell_reads_the_neighbour():
    assert moved([[1.0, 0.0]])[..., 0].tolist() == [[1, 2, 3, 3], [5, 6, 7, 7], [9, 10, 11, 11]]
    assert moved([[0.0, 1.0]])[..., 0].tolist() == [[4, 5, 6, 7], [8, 9, 10, 11], [8, 9, 10, 11]]


def test_what_comes_from_outside_the_map_is_the_border_or_zero_as_configured():
    assert moved([[1.5, 0.0]], padding="border")[0, :, 0].tolist() == [1.5, 2.5, 3, 3]
    assert moved([[1.5, 0.0]], padding="zeros")[0, :, 0].tolist() == [1.5, 2.5, 1.5, 0]


def test_each_group_of_channels_goes_its_own_way():
    both = moved([[1.0, 0.0], [0.0, 1.0]], jnp.concatenate([MAP, 100 + MAP], axis=-1))
    np.testing.assert_array_equal(both[..., 0], moved([[1.0, 0.0]])[..., 0])
    np.testing.assert_array_equal(both[..., 1], 100 + moved([[0.0, 1.0]])[..., 0])


@pytest.mark.parametrize(("padding", "last"), [("border", 3.0), ("zeros", 5.0)])
def test_positions_are_cells_plus_offsets_kept_in_the_map_unless_zeros_lie_outside(padding, last):
    positions = sampling_positions(jnp.tile(jnp.array([2.0, -0.5]), (1, 3, 4, 1, 1)), padding)
    assert positions[0, 1, 0, 0].tolist() == [2.0, 0.5]
    assert positions[0, 0, 3, 0].tolist() == [last, 0.0 if padding == "border" else -0.5]
