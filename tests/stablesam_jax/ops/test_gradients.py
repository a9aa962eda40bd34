"""Gradients that are written out are those of PyTorch, and of JAX's own."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from stablesam_jax.ops import gradients
from stablesam_jax.ops.gradients import convolve, gelu, layer_norm, matmul, sum_of_taps


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def torch_gradients(function, arrays, cotangent):
    """Value and gradients in float64."""
    tensors = [torch.from_numpy(array).double().requires_grad_() for array in arrays]
    value = function(*tensors)
    value.backward(torch.from_numpy(cotangent).double())
    return [value.detach().numpy(), *(tensor.grad.numpy() for tensor in tensors)]


def our_gradients(function, arrays, cotangent):
    value, pull = jax.vjp(function, *arrays)
    return [value, *pull(jnp.asarray(cotangent, value.dtype))]


def assert_close(ours, theirs, bound=2e-6):
    for left, right in zip(ours, theirs, strict=True):
        assert left.shape == right.shape
        assert np.abs(np.asarray(left, np.float64) - right).max() <= bound * right.std()


@pytest.mark.parametrize("shape", [(24,), (7, 24), (2, 1, 4, 4, 2, 2, 24)], ids=str)
def test_layer_norm_and_its_gradients_are_pytorchs(shape):
    x, scale, bias, cotangent = (
        3 + 2 * normal(*shape),
        1 + normal(24, seed=1),
        normal(24, seed=2),
        normal(*shape, seed=3),
    )
    theirs = torch_gradients(
        lambda x, scale, bias: torch.nn.functional.layer_norm(x, (24,), scale, bias, 1e-6), (x, scale, bias), cotangent
    )
    assert_close(our_gradients(lambda *arrays: layer_norm(*arrays, 1e-6), (x, scale, bias), cotangent), theirs, 5e-6)


@pytest.mark.parametrize(
    ("size_hw", "k", "stride", "padding"),
    [
        ((8, 7), 3, 1, 1),
        ((33, 40), 3, 1, 1),
        ((1, 600), 3, 1, 1),
        ((9, 8), 5, 1, 2),
        ((8, 7), 3, 1, 0),
        ((9, 8), 3, 2, 1),
    ],
    ids=str,
)
def test_convolution_and_its_gradients_are_pytorchs(size_hw, k, stride, padding):
    x, kernel = normal(2, *size_hw, 3), normal(k, k, 3, 5, seed=1)

    def theirs(x, kernel):
        maps = torch.nn.functional.conv2d(
            x.permute(0, 3, 1, 2), kernel.permute(3, 2, 0, 1), stride=stride, padding=padding
        )
        return maps.permute(0, 2, 3, 1)

    def ours(x, kernel):
        return convolve(x, kernel, stride, padding)

    cotangent = normal(*jax.eval_shape(ours, x, kernel).shape, seed=2)
    expected = torch_gradients(theirs, (x, kernel), cotangent)
    # A processor may add the kernel's 600 products one by one, which loses a unit of float32 times the root of 600 / 2.
    assert_close(jax.jit(lambda *arrays: our_gradients(ours, *arrays))((x, kernel), cotangent), expected, 1e-5)


def test_off_the_cpu_the_gradient_of_a_kernel_is_xlas(monkeypatch):
    x, kernel, cotangent = normal(2, 8, 7, 3), normal(3, 3, 3, 5, seed=1), normal(2, 8, 7, 5, seed=2)

    def ours():
        return our_gradients(lambda *both: convolve(*both, 1, 1), (x, kernel), cotangent)

    on_cpu = ours()
    monkeypatch.setattr(jax.lax, "platform_dependent", lambda *arrays, cpu, default: default(*arrays))
    for left, right in zip(ours(), on_cpu, strict=True):
        np.testing.assert_allclose(left, right, rtol=1e-5, atol=1e-4)


def test_sums_of_taps_and_their_gradient_are_those_of_a_convolution():
    maps, cotangent = normal(2, 3, 6, 5, 3, 3), normal(2, 3, 6, 5, seed=1)

    def plain(maps):
        total = np.zeros((3, 3, 9, 1), np.float32)
        for i, j in itertools.product(range(3), repeat=2):
            total[i, j, 3 * i + j] = 1  # each tap takes its own map
        summed = jax.lax.conv_general_dilated(
            maps.reshape(6, 6, 5, 9), total, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return summed.reshape(2, 3, 6, 5)

    for left, right in zip(
        our_gradients(sum_of_taps, (maps,), cotangent), our_gradients(plain, (maps,), cotangent), strict=True
    ):
        np.testing.assert_allclose(left, right, rtol=1e-6, atol=1e-6)


def test_gelu_and_its_gradient_are_pytorchs():
    x, cotangent = 3 * normal(2, 3, 4, 24), normal(2, 3, 4, 24, seed=1)
    x[0, 0, 0, :3] = 0, -12, 12
    assert_close(our_gradients(gelu, (x,), cotangent), torch_gradients(torch.nn.functional.gelu, (x,), cotangent))


@pytest.mark.parametrize("prompts", [1, 3])  # of b; one is shared by all
def test_matmul_and_its_gradients_are_pytorchs(prompts):
    arrays = normal(2, 3, 5, 7), normal(2, prompts, 7, 4, seed=1)
    cotangent = normal(2, 3, 5, 4, seed=2)
    assert_close(our_gradients(matmul, arrays, cotangent), torch_gradients(torch.matmul, arrays, cotangent))


@pytest.mark.slow
def test_in_bfloat16_gradients_have_the_types_of_their_arguments_and_sums_are_of_float32(monkeypatch):
    monkeypatch.setattr(gradients, "PATCHES", 32)  # 32 blocks that are added up
    shapes = (1, 32, 32, 8), (3, 3, 8, 8), (1, 32, 32, 8)
    x, kernel, cotangent = (normal(*shape, seed=seed).astype(jnp.bfloat16) for seed, shape in enumerate(shapes))
    scale, bias, weights = normal(8, seed=1), normal(8, seed=2), normal(1, 32, 8, 8, seed=3).astype(jnp.bfloat16)
    for function, arrays, bounds in (
        (lambda *both: convolve(*both, 1, 1), (x, kernel), (0.02, 0.015)),
        (lambda *three: layer_norm(*three, 1e-6), (x, scale, bias), (0.05, 1e-3, 1e-3)),
        (gelu, (x,), (0.02,)),
        (matmul, (x, weights), (0.02, 0.02)),
    ):
        exact = our_gradients(function, [np.asarray(array, np.float32) for array in arrays], cotangent)
        found = our_gradients(function, arrays, cotangent)
        for ours, plain, array, bound in zip(found[1:], exact[1:], arrays, bounds, strict=True):
            assert ours.dtype == array.dtype
            assert np.abs(np.asarray(ours, np.float32) - np.asarray(plain)).max() < bound * np.asarray(plain).std()
