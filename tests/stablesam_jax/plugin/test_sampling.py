"""Bilinear sampling against four nested loops and against torch's grid_sample."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from stablesam_jax.plugin import sampling

bilinear_sample = jax.jit(sampling.bilinear_sample, static_argnames="padding")
PADDINGS = ("border", "zeros")


def normal(seed: int, *shape: int) -> jax.Array:
    """NumPy's draw: JAX would compile its own for every shape."""
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def sample_by_loops(features: np.ndarray, positions: np.ndarray, padding: str) -> np.ndarray:
    """(B, H, W, C), (B, P, 2) -> (B, P, C), one number at a time."""
    pictures, height, width, channels = features.shape
    samples = np.zeros((pictures, positions.shape[1], channels), features.dtype)
    for b in range(pictures):
        for p in range(positions.shape[1]):
            x, y = positions[b, p]
            if padding == "border":
                x, y = min(max(x, 0), width - 1), min(max(y, 0), height - 1)
            for row in range(height):
                for column in range(width):
                    weight = max(0, 1 - abs(x - column)) * max(0, 1 - abs(y - row))
                    samples[b, p] += weight * features[b, row, column]
    return samples


def mixed_positions(rng: np.random.Generator, pictures: int, height: int, width: int) -> np.ndarray:
    """On cells, on edges, on the border, between cells and outside the map on whole numbers and between: (B, 60, 2)."""
    size = np.array([width, height])
    on_cells = rng.integers(-2, size + 2, (pictures, 15, 2)).astype(np.float64)
    on_edges = np.where([True, False], rng.integers(0, size, (pictures, 15, 2)), rng.uniform(0, size - 1, (1, 15, 2)))
    anywhere = rng.uniform(-3, size + 2, (pictures, 30, 2))
    return np.concatenate([on_cells, on_edges, anywhere], axis=1)


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 5), (4, 1), (2, 2), (5, 9)])
def test_equals_four_nested_loops(height, width, padding):
    rng = np.random.default_rng(0)
    features = rng.normal(size=(2, height, width, 3))
    positions = mixed_positions(rng, 2, height, width)
    with jax.enable_x64(True):
        samples = bilinear_sample(jnp.asarray(features), jnp.asarray(positions), padding=padding)
    np.testing.assert_allclose(samples, sample_by_loops(features, positions, padding), rtol=0, atol=1e-14)


@pytest.mark.parametrize("padding", PADDINGS)
def test_equals_grid_sample_in_values_and_both_gradients(padding):
    # Sides of 2^k + 1 cells: torch's way from [-1, 1] to cells and back is then exact, on cells and borders too.
    rng = np.random.default_rng(1)
    height, width = 5, 9
    features = rng.normal(size=(2, height, width, 3))
    positions = mixed_positions(rng, 2, height, width)
    cotangent = rng.normal(size=(2, positions.shape[1], 3))

    torch_features = torch.tensor(features.transpose(0, 3, 1, 2), requires_grad=True)
    torch_positions = torch.tensor(positions, requires_grad=True)
    grid = torch_positions[:, None] * 2 / torch.tensor([width - 1, height - 1]) - 1
    expected = torch.nn.functional.grid_sample(torch_features, grid, "bilinear", padding, align_corners=True)
    expected = expected[:, :, 0].transpose(1, 2)
    expected.backward(torch.tensor(cotangent))

    with jax.enable_x64(True):
        sample = functools.partial(bilinear_sample, padding=padding)
        samples, pull_back = jax.vjp(sample, jnp.asarray(features), jnp.asarray(positions))
        feature_gradient, position_gradient = pull_back(jnp.asarray(cotangent))
    np.testing.assert_allclose(samples, expected.detach(), rtol=0, atol=1e-13)
    np.testing.assert_allclose(feature_gradient, torch_features.grad.permute(0, 2, 3, 1), rtol=0, atol=1e-13)
    np.testing.assert_allclose(position_gradient, torch_positions.grad, rtol=0, atol=1e-13)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_whole_positions_return_the_features_to_the_bit(dtype):
    features = normal(0, 2, 4, 6, 8).astype(dtype)
    x, y = jnp.meshgrid(jnp.arange(6.0), jnp.arange(4.0))
    samples = bilinear_sample(features, jnp.stack([x, y], axis=-1)[None])
    np.testing.assert_array_equal(samples, features)


def test_beyond_the_border_the_value_stays_and_the_position_has_no_gradient():
    features = jnp.arange(6.0).reshape(2, 3, 1)
    position = jnp.array([[7.0, 0.25]])
    assert bilinear_sample(features, position)[0, 0] == 2 + 0.25 * 3
    gradient = jax.grad(lambda p: bilinear_sample(features, p)[0, 0])(position)
    assert gradient.tolist() == [[0.0, 3.0]]


def test_on_a_cell_the_gradient_is_that_towards_the_next_cell():
    features = jnp.array([0.0, 1.0, 5.0]).reshape(1, 3, 1)
    for padding, expected in (("border", [0, 4, 0]), ("zeros", [1, 4, -5])):
        for x, slope in enumerate(expected):
            position = jnp.array([[float(x), 0.0]])
            gradient = jax.grad(lambda p, pad=padding: bilinear_sample(features, p, padding=pad)[0, 0])(position)
            assert gradient[0, 0] == slope


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("position", [[1e30, -1e30], [-np.inf, np.inf]], ids=str)
def test_positions_far_away_read_the_border_or_zero(position, padding):
    features = normal(0, 4, 5, 3)
    corner = features[0, -1] if position[0] > 0 else features[-1, 0]
    sample, pull_back = jax.vjp(lambda f: bilinear_sample(f, jnp.array([position]), padding=padding), features)
    np.testing.assert_array_equal(sample[0], corner if padding == "border" else np.zeros(3))
    assert pull_back(jnp.ones((1, 3)))[0].sum() == (3 if padding == "border" else 0)


@pytest.mark.parametrize("padding", PADDINGS)
def test_a_position_that_is_no_number_reads_none_and_touches_no_other_sample(padding):
    features, positions = normal(0, 4, 5, 3), jnp.array([[np.nan, 1.0], [3.5, 3.0]])
    samples, pull_back = jax.vjp(lambda f: bilinear_sample(f, positions, padding=padding), features)
    assert np.all(np.isnan(samples[0]))
    np.testing.assert_allclose(samples[1], (features[3, 3] + features[3, 4]) / 2, atol=1e-6)
    assert np.all(pull_back(jnp.ones((2, 3)))[0][3, 3:] == 0.5)


@pytest.mark.parametrize("size_hw", [(1, 5), (4, 7)], ids=str)
@pytest.mark.parametrize("channels", [3, 32])
def test_what_accelerators_run_equals_what_processors_run(size_hw, channels):
    height, width = size_hw
    features, gradient = normal(0, 2, height, width, channels), normal(1, 40, channels)
    rng = np.random.default_rng(2)
    corner = (max(height - 1, 1), max(width - 1, 1))
    starts = jnp.asarray(rng.integers(0, (2, *corner), (40, 3)), jnp.int32)
    weights = normal(3, 40, min(height, 2), min(width, 2))
    spread = sampling.spread_by_loop(features.shape, gradient, starts, weights)
    # Up to 40 float32 terms in another order.
    by_scatter = sampling.spread_by_scatter(features.shape, gradient, starts, weights)
    np.testing.assert_allclose(spread, by_scatter, rtol=0, atol=1e-5)
    products = sampling.products_by_loop(features, gradient, starts)
    np.testing.assert_allclose(products, sampling.products_by_gather(features, gradient, starts), rtol=0, atol=1e-5)


def test_nothing_is_as_large_as_features_repeated_for_every_prompt():
    shape = (1, 1, 32, 32, 64)  # one picture's map; 16 prompts read 4 positions each

    def loss(features, positions):
        return jnp.sum(jnp.square(bilinear_sample(features, positions)))

    lowered = jax.jit(jax.grad(loss, (0, 1))).lower(jnp.zeros(shape), jnp.zeros((1, 16, 4, 2)))
    assert lowered.compile().memory_analysis().temp_size_in_bytes < 2 * 4 * np.prod(shape)


def test_features_shared_by_prompts_equal_repeated_features():
    features = normal(0, 2, 1, 5, 6, 3)
    positions = 2.5 + 2.5 * normal(1, 2, 4, 7, 8, 2)

    def loss(features, positions):
        samples = bilinear_sample(features, positions)
        return jnp.sum(jnp.sin(samples)), samples

    def repeated_loss(features, positions):
        return loss(jnp.repeat(features, 4, axis=1), positions)

    shared_gradients, shared = jax.jit(jax.grad(loss, (0, 1), has_aux=True))(features, positions)
    repeated_gradients, repeated = jax.jit(jax.grad(repeated_loss, (0, 1), has_aux=True))(features, positions)
    assert shared.shape == (2, 4, 7, 8, 3)
    np.testing.assert_allclose(shared, repeated, rtol=0, atol=1e-6)
    # Some 40 float32 terms per cell, in another order.
    np.testing.assert_allclose(shared_gradients[0], repeated_gradients[0], rtol=0, atol=1e-5)
    np.testing.assert_allclose(shared_gradients[1], repeated_gradients[1], rtol=0, atol=1e-5)


def test_positions_shared_by_pictures_equal_repeated_positions():
    features = normal(0, 3, 5, 6, 2)
    positions = 2.5 + 2.5 * normal(1, 1, 9, 2)
    shared = bilinear_sample(features, positions)
    np.testing.assert_array_equal(shared, bilinear_sample(features, jnp.repeat(positions, 3, axis=0)))


@pytest.mark.slow
def test_vmap_equals_the_leading_axis_and_jit_the_plain_call():
    features = normal(0, 3, 5, 6, 2)
    positions = 2.5 + 2.5 * normal(1, 3, 9, 2)
    cotangent = normal(2, 3, 9, 2)
    plain, pull_back = jax.vjp(sampling.bilinear_sample, features, positions)
    for other in (jax.vmap(bilinear_sample), bilinear_sample):
        values, pull_other_back = jax.vjp(other, features, positions)
        # A compiler may contract multiply and add: one rounding less.
        np.testing.assert_allclose(values, plain, rtol=0, atol=1e-6)
        for ours, theirs in zip(pull_other_back(cotangent), pull_back(cotangent), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)


def test_bfloat16_features_are_read_at_float32_positions():
    # Column x of a map with 64 columns; bfloat16 cannot tell 40.25 from 40.
    ramp = jnp.where(jnp.arange(64) > 40, 1.0, 0.0).astype(jnp.bfloat16).reshape(1, 64, 1)
    sample = bilinear_sample(ramp, jnp.array([[40.25, 0.0]]))
    assert sample.dtype == jnp.bfloat16
    assert sample[0, 0] == 0.25


def test_gradients_of_bfloat16_features_are_summed_in_float32():
    features = jnp.zeros((1, 2, 1), jnp.bfloat16)
    positions = jnp.tile(jnp.array([0.25, 0.0]), (1000, 1))  # summed in bfloat16 1,000 times 0.25 stay at 64
    gradient = jax.grad(lambda f: jnp.sum(bilinear_sample(f, positions).astype(jnp.float32)))(features)
    assert gradient.dtype == jnp.bfloat16
    assert gradient[0, :, 0].tolist() == [752.0, 250.0]  # 750 is not a bfloat16
