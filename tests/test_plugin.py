"""The whole plugin: identity at the start, 81,829 parameters, and a twin in PyTorch."""

import functools

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

from stablesam_jax.config import PluginConfig
from stablesam_jax.plugin import Plugin

SMALL = PluginConfig(embedding_width=16, router_width=4, max_offset_cells=16.0)


def normal(seed: int, *shape: int) -> jax.Array:
    """NumPy's draw: JAX would compile its own for every shape."""
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def inputs(config: PluginConfig, *, key_prompts: int = 3, dtype=jnp.float32):
    keys = normal(0, 2, key_prompts, 6, 9, config.embedding_width).astype(dtype)
    tokens = normal(1, 2, 3, 7, config.embedding_width).astype(dtype)
    return keys, tokens


@functools.cache
def trained(config: PluginConfig):
    """Parameters with noise on every leaf, those that start at zero too."""
    start = jax.jit(Plugin(config).init)(jax.random.key(2), *inputs(config))
    return jax.tree.map(lambda leaf: leaf + 0.3 * normal(3, *leaf.shape), start)


apply = jax.jit(Plugin(SMALL).apply)


def torch_twin(params: dict[str, torch.Tensor], keys, tokens, amplitude: str, max_offset_cells: float):
    """One prompt: (H, W, C), (T, C) -> (H, W, C), written from the paper with PyTorch's own layers."""
    F = torch.nn.functional

    def layer_norm(x, name):
        return F.layer_norm(x, x.shape[-1:], params[f"{name}/scale"], params[f"{name}/bias"], eps=1e-6)

    height, width, channels = keys.shape
    if amplitude == "project":
        x_star = keys @ params["dsp/project/kernel"] + params["dsp/project/bias"]
    elif amplitude == "gate":
        x_star = keys * (1 + keys @ params["dsp/gate/kernel"] + params["dsp/gate/bias"])
    else:
        x_star = keys
    kernel = params["dsp/depthwise/kernel"].permute(2, 0, 1)[:, None]
    hidden = F.conv2d(x_star.permute(2, 0, 1), kernel, params["dsp/depthwise/bias"], padding=2, groups=channels)
    hidden = F.gelu(layer_norm(hidden.permute(1, 2, 0), "dsp/norm"))
    size = torch.tensor([width, height])
    direction = torch.tanh(hidden @ params["dsp/offset/kernel"] + params["dsp/offset/bias"])
    offsets = max_offset_cells / 64 * size * direction
    grid = torch.stack(torch.meshgrid(torch.arange(width), torch.arange(height), indexing="xy"), dim=-1)
    positions = (grid + offsets) * 2 / (size - 1) - 1
    moved = F.grid_sample(x_star.permute(2, 0, 1)[None], positions[None], "bilinear", "border", align_corners=True)

    hidden = tokens[1] @ params["drp/hidden/kernel"] + params["drp/hidden/bias"]
    logits = F.gelu(layer_norm(hidden, "drp/norm")) @ params["drp/logits/kernel"] + params["drp/logits/bias"]
    alpha = torch.softmax(logits, dim=-1) * params["drp/scale"]
    return alpha[0] * moved[0].permute(1, 2, 0) + alpha[1] * keys


@functools.partial(jax.jit, static_argnums=0)
def mixed_and_gradients(config: PluginConfig, params, keys, tokens, cotangent):
    mixed, pull_back = jax.vjp(lambda p, k, t: Plugin(config).apply({"params": p}, k, t), params, keys, tokens)
    return mixed, pull_back(cotangent)


@pytest.mark.parametrize("amplitude", ["project", "gate", "none"])
def test_equals_its_torch_twin_in_values_and_in_every_gradient(amplitude):
    config = PluginConfig(embedding_width=16, router_width=4, max_offset_cells=16.0, amplitude=amplitude)
    params = trained(config)["params"]
    with jax.enable_x64(True):
        keys, tokens = inputs(config, dtype=jnp.float64)
        params = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), params)
        cotangent = normal(4, *keys.shape).astype(jnp.float64)
        mixed, (gradients, key_gradient, token_gradient) = mixed_and_gradients(config, params, keys, tokens, cotangent)
    ours = flax.traverse_util.flatten_dict(gradients, sep="/") | {"keys": key_gradient, "tokens": token_gradient}

    flat = flax.traverse_util.flatten_dict(params, sep="/") | {"keys": keys, "tokens": tokens}
    leaves = {name: torch.tensor(np.asarray(leaf), requires_grad=True) for name, leaf in flat.items()}
    twin = torch.stack(
        [
            torch.stack([torch_twin(leaves, k, t, amplitude, 16.0) for k, t in zip(ks, ts, strict=True)])
            for ks, ts in zip(leaves["keys"], leaves["tokens"], strict=True)
        ]
    )
    twin.backward(torch.tensor(np.asarray(cotangent)))

    np.testing.assert_allclose(mixed, twin.detach(), rtol=1e-9, atol=1e-12)
    for name, gradient in ours.items():
        expected = leaves[name].grad.numpy()
        assert np.abs(expected).max() > 0, name
        np.testing.assert_allclose(gradient, expected, rtol=0, atol=1e-8 * np.abs(expected).max(), err_msg=name)


def test_has_the_papers_008_m_parameters():
    config = PluginConfig()
    params = jax.eval_shape(Plugin(config).init, jax.random.key(0), *inputs(config))["params"]
    counts = {name: leaf.size for name, leaf in flax.traverse_util.flatten_dict(params, sep="/").items()}
    assert counts == {
        "dsp/project/kernel": 256 * 256,
        "dsp/project/bias": 256,
        "dsp/depthwise/kernel": 5 * 5 * 256,
        "dsp/depthwise/bias": 256,
        "dsp/norm/scale": 256,
        "dsp/norm/bias": 256,
        "dsp/offset/kernel": 256 * 2,
        "dsp/offset/bias": 2,
        "drp/hidden/kernel": 256 * 32,
        "drp/hidden/bias": 32,
        "drp/norm/scale": 32,
        "drp/norm/bias": 32,
        "drp/logits/kernel": 32 * 2,
        "drp/logits/bias": 2,
        "drp/scale": 1,
    }
    assert sum(counts.values()) == 81_829


@pytest.mark.parametrize(
    ("amplitude", "dtype"),
    [("project", jnp.float32), ("project", jnp.bfloat16), ("gate", jnp.float32), ("none", jnp.float32)],
)
def test_starts_as_the_identity_to_the_bit(amplitude, dtype):
    config = PluginConfig(amplitude=amplitude)
    keys, tokens = inputs(config, dtype=dtype)
    params = jax.jit(Plugin(config).init)(jax.random.key(2), keys, tokens)
    mixed = jax.jit(Plugin(config).apply)(params, keys, tokens)
    assert mixed.dtype == dtype
    np.testing.assert_array_equal(mixed, keys)


def test_parameters_are_float32_whatever_the_compute_dtype():
    keys, tokens = inputs(SMALL, dtype=jnp.bfloat16)
    params = jax.eval_shape(Plugin(SMALL).init, jax.random.key(2), keys, tokens)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(jnp.float32)}


def test_three_adam_steps_change_every_tensor():
    # One step is not enough: at the identity the router and what precedes the zero layers have no gradient.
    keys, tokens = inputs(SMALL)
    target = normal(4, *keys.shape)
    start = jax.jit(Plugin(SMALL).init)(jax.random.key(2), keys, tokens)["params"]
    optimizer = optax.adam(1e-3)

    @jax.jit
    def step(params, state):
        def loss(params):
            return jnp.mean(jnp.square(Plugin(SMALL).apply({"params": params}, keys, tokens) - target))

        gradients = jax.grad(loss)(params)
        with jax.numpy_dtype_promotion("standard"):  # optax raises a float to an integer power
            updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    params, state = start, optimizer.init(start)
    for _ in range(3):
        params, state = step(params, state)
    flat_start = flax.traverse_util.flatten_dict(start, sep="/")
    for name, leaf in flax.traverse_util.flatten_dict(params, sep="/").items():
        assert np.all(np.isfinite(leaf)), name
        assert np.any(np.asarray(leaf) != flat_start[name]), name


def test_keys_shared_by_prompts_equal_repeated_keys():
    params = trained(SMALL)
    keys, tokens = inputs(SMALL, key_prompts=1)
    shared = apply(params, keys, tokens)
    repeated = apply(params, jnp.repeat(keys, 3, axis=1), tokens)
    assert shared.shape == (2, 3, 6, 9, 16)
    np.testing.assert_allclose(shared, repeated, rtol=0, atol=1e-5)


def test_only_the_output_mask_token_routes():
    params = trained(SMALL)
    keys, tokens = inputs(SMALL)
    mixed = apply(params, keys, tokens)
    others = jnp.array([0, 2, 3, 4, 5, 6])
    np.testing.assert_array_equal(apply(params, keys, tokens.at[:, :, others].set(0.0)), mixed)
    assert jnp.any(apply(params, keys, tokens.at[:, :, 1].set(0.0)) != mixed)


class TwoAttentions(nn.Module):
    """A decoder that asks the same plugin twice."""

    @nn.compact
    def __call__(self, keys, tokens):
        plugin = Plugin(SMALL, name="plugin")
        return plugin(plugin(keys, tokens), tokens)


def test_two_attentions_share_one_plugin():
    params = trained(SMALL)["params"]
    keys, tokens = inputs(SMALL)
    twice = jax.jit(TwoAttentions().apply)({"params": {"plugin": params}}, keys, tokens)
    once = apply({"params": params}, keys, tokens)
    np.testing.assert_allclose(twice, apply({"params": params}, once, tokens), rtol=1e-5, atol=1e-4)
    fresh = jax.eval_shape(TwoAttentions().init, jax.random.key(0), keys, tokens)["params"]
    assert jax.tree.map(jnp.shape, fresh) == {"plugin": jax.tree.map(jnp.shape, params)}


def test_offsets_and_alpha_are_available_by_name_one_entry_per_call():
    keys, tokens = inputs(SMALL, key_prompts=1)
    params = {"params": {"plugin": trained(SMALL)["params"]}}
    _, seen = jax.eval_shape(
        lambda *arguments: TwoAttentions().apply(*arguments, mutable="intermediates"), params, keys, tokens
    )
    assert jax.tree.map(jnp.shape, seen["intermediates"]["plugin"]) == {
        "offsets": ((2, 1, 6, 9, 2), (2, 3, 6, 9, 2)),
        "alpha": ((2, 3, 2), (2, 3, 2)),
    }


@pytest.mark.parametrize(
    ("keys", "tokens", "fault"),
    [
        ((2, 2, 6, 9, 16), (2, 3, 7, 16), "same B and N"),
        ((1, 3, 6, 9, 16), (2, 3, 7, 16), "same B and N"),
        ((2, 6, 9, 16), (2, 3, 7, 16), "same B and N"),
        ((2, 3, 6, 9, 8), (2, 3, 7, 8), "16 channels wide"),
    ],
)
def test_shapes_that_do_not_fit_are_refused_with_the_reason(keys, tokens, fault):
    with pytest.raises(ValueError, match=fault):
        jax.eval_shape(Plugin(SMALL).init, jax.random.key(0), jnp.zeros(keys), jnp.zeros(tokens))
