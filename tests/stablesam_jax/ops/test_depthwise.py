"""Shifted products are a depthwise convolution."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from stablesam_jax.ops.depthwise import depthwise_conv
from tests.reference.tiers import slow


def grouped_convolution(x, kernel, stride):
    return jax.lax.conv_general_dilated(
        x,
        kernel[:, :, None],
        (stride, stride),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1],
    )


def case(size_hw, k):
    rng = np.random.default_rng(0)
    return rng.standard_normal((2, *size_hw, 3), np.float32), rng.standard_normal((k, k, 3), np.float32)


@pytest.mark.parametrize("size_hw", [(8, 7), (7, 6), (1, 2), (1, 1)], ids=str)
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("k", [1, 3, 5])
def test_values_and_gradients_are_those_of_a_grouped_convolution(k, stride, size_hw):
    x, kernel = case(size_hw, k)

    @jax.jit
    def value_and_gradients(x, kernel):
        ours, pull_ours = jax.vjp(lambda x, kernel: depthwise_conv(x, kernel, stride=stride), x, kernel)
        theirs, pull_theirs = jax.vjp(lambda x, kernel: grouped_convolution(x, kernel, stride), x, kernel)
        return (ours, *pull_ours(theirs)), (theirs, *pull_theirs(theirs))

    for ours, theirs in zip(*value_and_gradients(x, kernel), strict=True):
        assert ours.shape == theirs.shape
        # Sums of up to 2 * 8 * 7 products of deviation 5.
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-4)


def test_one_weight_in_the_centre_keeps_the_map():
    x, _ = case((4, 6), 3)
    kernel = np.zeros((3, 3, 3), np.float32)
    kernel[1, 1] = 1
    np.testing.assert_array_equal(depthwise_conv(x, kernel), x)


def test_leading_axes_are_kept():
    x, kernel = case((4, 6), 3)
    np.testing.assert_array_equal(depthwise_conv(x[:, None, None], kernel)[:, 0, 0], depthwise_conv(x, kernel))


def test_under_vmap_values_and_gradients_are_those_of_an_axis_more():
    x, kernel = case((6, 5), 5)

    def mapped(x, kernel):
        return jax.vmap(depthwise_conv, (0, None))(x, kernel)

    ours, pull_ours = jax.vjp(mapped, x, kernel)
    theirs, pull_theirs = jax.vjp(depthwise_conv, x, kernel)
    for left, right in zip((ours, *pull_ours(theirs)), (theirs, *pull_theirs(theirs)), strict=True):
        np.testing.assert_allclose(left, right, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("size_hw", [(8, 7), (1, 2)], ids=str)
@pytest.mark.parametrize("stride", [1, 2])
def test_padding_on_every_side_is_pytorchs(stride, size_hw):
    x, kernel = case(size_hw, 3)
    theirs = torch.nn.functional.conv2d(
        torch.from_numpy(x).permute(0, 3, 1, 2),
        torch.from_numpy(kernel).permute(2, 0, 1)[:, None],
        stride=stride,
        padding=1,
        groups=3,
    )
    ours = depthwise_conv(x, kernel, stride=stride, padding=1)
    np.testing.assert_allclose(ours, theirs.permute(0, 2, 3, 1).numpy(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("stride", [*slow(1), 2])
def test_in_bfloat16_values_and_both_gradients_are_sums_of_float32(stride):
    # 25 taps added up in bfloat16 are off by 0.006 of the deviation; one rounding of a float32 sum by 0.002.
    x, kernel = (jnp.asarray(array, jnp.bfloat16) for array in case((12, 9), 5))

    @jax.jit
    def value_and_gradients(x, kernel):
        value, pull = jax.vjp(lambda x, kernel: depthwise_conv(x, kernel, stride=stride), x, kernel)
        return value, *pull(value)

    half = value_and_gradients(x, kernel)
    assert {array.dtype for array in half} == {jnp.dtype(jnp.bfloat16)}
    value = half[0].astype(jnp.float32)  # what the gradients below are asked for
    _, pull = jax.vjp(
        lambda x, kernel: depthwise_conv(x, kernel, stride=stride), x.astype(jnp.float32), kernel.astype(jnp.float32)
    )
    whole = depthwise_conv(x.astype(jnp.float32), kernel.astype(jnp.float32), stride=stride), *pull(value)
    for narrow, exact in zip(half, whole, strict=True):
        error = np.asarray(narrow.astype(jnp.float32) - exact)
        assert np.sqrt(np.mean(error**2)) < 0.0025 * np.std(exact)
