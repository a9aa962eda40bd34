"""Attention is the same in every form; that by head equals segment_anything's (test_image_encoder.py)."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stablesam_jax.model import attention
from stablesam_jax.model.attention import attend_at_once, attend_by_head
from tests.reference.sam_pair import normal


def attention_inputs(dtype=jnp.float32):
    batch, height, width, heads, head_width = 3, 6, 5, 2, 12
    channels = heads * head_width
    shapes = [
        (batch, height, width, channels),
        (heads, 3, channels, head_width),
        (heads, 3, head_width),
        (height, height, head_width),
        (width, width, head_width),
    ]
    return [jnp.asarray(normal(*shape) / shape[-1] ** 0.5, dtype) for shape in shapes]


@pytest.mark.parametrize("maps", [1, 2, 3])
def test_attention_at_once_is_that_by_head(monkeypatch, maps):
    monkeypatch.setattr(attention, "LOGITS", maps * 30**2)
    inputs = attention_inputs()
    np.testing.assert_allclose(attend_at_once(*inputs), attend_by_head(*inputs), atol=1e-6)


@pytest.mark.slow
def test_both_forms_have_the_same_gradient():
    def gradient(form):
        return jax.grad(lambda inputs: jnp.square(form(*inputs)).sum())(attention_inputs())

    for ours, expected in zip(gradient(attend_at_once), gradient(attend_by_head), strict=True):
        np.testing.assert_allclose(ours, expected, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize(
    ("kind", "capability", "dtype", "channels", "taken"),
    [
        ("NVIDIA H200", "9.0", "bfloat16", 192, True),
        ("NVIDIA H200", "9.0", "bfloat16", 264, False),
        ("NVIDIA H200", "9.0", "float32", 192, False),
        ("NVIDIA A100", "8.0", "bfloat16", 192, False),
        ("AMD Instinct", "gfx942", "bfloat16", 192, False),
    ],
)
def test_flash_attention_is_used_where_it_is_to_be_had(monkeypatch, kind, capability, dtype, channels, taken):
    found = types.SimpleNamespace(device_kind=kind, compute_capability=capability)
    monkeypatch.setattr(jax, "devices", lambda: [found])
    assert attention.flash_takes(jnp.dtype(dtype), channels) is taken


def use_flash_attention(monkeypatch):
    """cuDNN's form with JAX's plain attention in its place."""
    plain = jax.nn.dot_product_attention

    def flash(q, k, v, *, scale, implementation):
        assert q.shape[-1] % attention.FLASH_MULTIPLE == 0
        assert implementation == "cudnn"
        return plain(q, k, v, scale=scale)

    monkeypatch.setattr(jax.nn, "dot_product_attention", flash)
    monkeypatch.setattr(attention, "flash_takes", lambda dtype, channels: True)


def test_positions_folded_into_queries_and_keys_are_exact(monkeypatch):
    inputs = attention_inputs()
    expected = attend_by_head(*inputs)
    use_flash_attention(monkeypatch)
    np.testing.assert_allclose(attend_at_once(*inputs), expected, atol=1e-6)


def test_folded_attention_is_near_in_bfloat16(monkeypatch):
    expected = attend_by_head(*attention_inputs())
    use_flash_attention(monkeypatch)
    ours = attend_at_once(*attention_inputs(jnp.bfloat16))
    assert ours.dtype == jnp.bfloat16
    np.testing.assert_allclose(ours.astype(jnp.float32), expected, atol=0.03)
