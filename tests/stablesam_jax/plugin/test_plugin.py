"""The whole plugin: identity at the start, 81,829 parameters, and a twin in PyTorch."""

import dataclasses
import functools

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

from convert.flax_to_torch import plugin_state
from stablesam_jax.build import assemble
from stablesam_jax.config import MODELS, PluginConfig
from stablesam_jax.plugin import Plugin
from stablesam_torch import plugin as torch_plugin
from tests.reference.tiers import slow

SMALL = PluginConfig(embedding_width=16, router_width=4, max_offset_cells=16.0)


def normal(seed: int, *shape: int) -> jax.Array:
    """NumPy's draw: JAX would compile its own for every shape."""
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


# What differs from the default, for every field that a plugin's arithmetic depends on.
VARIANTS = {
    "default": {},
    "gate": {"amplitude": "gate"},
    "offsets only": {"amplitude": "none"},
    "four groups": {"groups": 4},
    "zeros outside": {"padding": "zeros"},
    "positions resampled": {"positions": "resampled"},
    "mean token": {"router_token": "mean"},
    "no router": {"router": False},
    "no router, resampled": {"router": False, "positions": "resampled"},
    "half strength": {"strength": 0.5, "positions": "resampled"},
    "no router, half strength": {"router": False, "strength": 0.5},
    "cbam": {"resample": "cbam"},
    "coordinate": {"resample": "coordinate"},
    "linear": {"resample": "linear", "router": False, "rank": 3},
    "linear, half strength": {"resample": "linear", "router": False, "strength": 0.5},
}
DIFFERENT = ("default", "positions resampled", "no router", "cbam", "coordinate", "linear")  # in more than a detail


def small(variant: str, **fields) -> PluginConfig:
    return dataclasses.replace(SMALL, **VARIANTS[variant] | fields)


def inputs(config: PluginConfig, *, key_prompts: int = 3, dtype=jnp.float32):
    keys = normal(0, 2, key_prompts, 6, 9, config.embedding_width).astype(dtype)
    key_pe = normal(5, 1, 1, 6, 9, config.embedding_width).astype(dtype)
    tokens = normal(1, 2, 3, 7, config.embedding_width).astype(dtype)
    return keys, key_pe, tokens


# Much is compiled here and little computed: LLVM's optimisation takes half of the time.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


@functools.cache
def started(config: PluginConfig):
    """First parameters."""
    return jit(Plugin(config).init)(jax.random.key(2), *inputs(config))


@functools.cache
def trained(config: PluginConfig):
    """Parameters with noise on every leaf, those that start at zero too."""
    return jax.tree.map(lambda leaf: leaf + 0.3 * normal(3, *leaf.shape), started(config))


@functools.cache
def run(config: PluginConfig):
    """(variables, keys, key_pe, tokens) -> keys, key_pe."""
    return jit(Plugin(config).apply, static_argnames="attention")


apply = run(SMALL)


@functools.partial(jit, static_argnums=0)
def mixed_and_gradients(config: PluginConfig, params, arguments, cotangents):
    mixed, pull_back = jax.vjp(lambda p, a: Plugin(config).apply({"params": p}, *a), params, arguments)
    cotangents = tuple(c[:, :1] if m.shape[1] == 1 else c for m, c in zip(mixed, cotangents, strict=True))
    cotangents = tuple(c[:1] if m.shape[0] == 1 else c for m, c in zip(mixed, cotangents, strict=True))
    return mixed, cotangents, pull_back(cotangents)


@pytest.mark.parametrize("variant", ["default", *slow(*sorted(VARIANTS.keys() - {"default"}))])
def test_equals_its_torch_twin_in_values_and_in_every_gradient(variant):
    config = small(variant)
    params = trained(config)["params"]
    with jax.enable_x64(True):
        params = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), params)
        arguments = inputs(config, dtype=jnp.float64)
        cotangents = tuple(normal(seed, *arguments[0].shape).astype(jnp.float64) for seed in (4, 6))
        mixed, cotangents, (gradients, input_gradients) = mixed_and_gradients(config, params, arguments, cotangents)
    names = ("keys", "key_pe", "tokens")
    ours = flax.traverse_util.flatten_dict(gradients, sep="/") | dict(zip(names, input_gradients, strict=True))

    module = torch_plugin.Plugin(dataclasses.asdict(config), {}).double()
    module.load_state_dict(plugin_state(params, config, {}))
    leaves = {
        name: torch.tensor(np.asarray(leaf), requires_grad=True) for name, leaf in zip(names, arguments, strict=True)
    }
    key_pe = leaves["key_pe"][0].expand(6, -1, -1, -1)
    twin_keys, twin_pe = module(leaves["keys"].flatten(0, 1), key_pe, leaves["tokens"].flatten(0, 1))
    twin_keys, twin_pe = twin_keys.unflatten(0, (2, 3)), twin_pe.unflatten(0, (2, 3))
    pe_changes = config.positions == "resampled" or config.resample == "linear"
    twin_pe = twin_pe if pe_changes else leaves["key_pe"]
    leaves |= {name.replace(".", "/"): leaf for name, leaf in module.named_parameters()}
    torch.autograd.backward((twin_keys, twin_pe), [torch.tensor(np.asarray(c)) for c in cotangents])

    for ours_part, twin in zip(mixed, (twin_keys, twin_pe), strict=True):
        np.testing.assert_allclose(ours_part, twin.detach(), rtol=1e-9, atol=1e-12)
    for name, gradient in ours.items():
        if name == "tokens" and not config.router:
            assert not np.any(np.asarray(gradient))
            continue
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


DSP = 65_792 + 6_656 + 512 + 514  # project, depthwise, norm, offset
DRP = 8_224 + 64 + 66 + 1  # hidden, norm, logits, scale


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, DSP + DRP),
        ({"amplitude": "gate"}, DSP + DRP),
        ({"amplitude": "none"}, DSP - 65_792 + DRP),
        ({"groups": 4}, DSP + 3 * 514 + DRP),
        ({"offset_kernel": 3}, DSP - 16 * 256 + DRP),
        ({"router": False}, DSP),
        ({"router_width": 16}, DSP + 4_112 + 32 + 34 + 1),
        ({"resample": "cbam"}, 7 * 7 * 2 + 1 + DRP),
        ({"resample": "coordinate"}, 256 * 8 + 8 + 16 + 2 * (8 * 256 + 256) + DRP),
        ({"resample": "cbam", "router": False}, 99),
        ({"resample": "linear", "router": False}, 2 * (4 * 256 * 40 + 256)),
        ({"resample": "linear", "router": False, "rank": 8, "attentions": (1,)}, 4 * 256 * 8 + 256),
        ({"attentions": (0, 1, 2)}, DSP + DRP),
        ({"padding": "zeros", "positions": "resampled", "router_token": "mean", "start": "perturbed"}, DSP + DRP),
    ],
    ids=str,
)
def test_variants_have_as_many_parameters_as_their_description_says(fields, expected):
    config = PluginConfig(**fields)
    params = jax.eval_shape(Plugin(config).init, jax.random.key(0), *inputs(config))["params"]
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == expected


@pytest.mark.parametrize(
    ("variant", "dtype"),
    [(variant, jnp.float32) for variant in VARIANTS] + [(variant, jnp.bfloat16) for variant in DIFFERENT],
)
def test_starts_as_the_identity_to_the_bit(variant, dtype):
    config = small(variant)
    keys, key_pe, tokens = inputs(config, dtype=dtype)
    mixed, mixed_pe = run(config)(started(config), keys, key_pe, tokens)
    assert (mixed.dtype, mixed_pe.dtype) == (dtype, dtype)
    np.testing.assert_array_equal(mixed, keys)
    np.testing.assert_array_equal(mixed_pe, jnp.broadcast_to(key_pe, mixed_pe.shape))


@pytest.mark.parametrize("variant", ["no router", "linear", *slow("positions resampled", "cbam")])
def test_strength_goes_straight_from_the_features_as_they_were_to_the_plugins(variant):
    def mixed(strength):
        config = small(variant, strength=strength)
        return np.stack(jnp.broadcast_arrays(*run(config)(trained(config), *given)))

    given = inputs(SMALL)
    assert np.array_equal(mixed(0.0), np.stack(jnp.broadcast_arrays(*given[:2])))
    np.testing.assert_allclose(mixed(0.3), 0.7 * mixed(0.0) + 0.3 * mixed(1.0), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["default", "cbam", "coordinate"])
def test_a_perturbed_start_is_near_the_identity_and_every_tensor_has_a_gradient(variant):
    config = small(variant, start="perturbed")
    keys, key_pe, tokens = inputs(config)
    params = started(config)["params"]

    def loss(params):
        mixed, _ = Plugin(config).apply({"params": params}, keys, key_pe, tokens)
        return jnp.sum(normal(4, *keys.shape) * mixed), mixed

    gradients, mixed = jit(jax.grad(loss, has_aux=True))(params)
    change = np.sqrt(np.mean(np.square(mixed - keys)))
    assert 0 < change < 0.1  # of features of deviation 1
    for name, gradient in flax.traverse_util.flatten_dict(gradients, sep="/").items():
        assert np.any(gradient != 0), name


@pytest.mark.parametrize("variant", [*DIFFERENT, "four groups"])
def test_bfloat16_is_near_float32(variant):
    config = small(variant)
    keys, key_pe, tokens = inputs(config)
    wide, _ = run(config)(trained(config), keys, key_pe, tokens)
    half, half_pe = run(config)(trained(config), *(x.astype(jnp.bfloat16) for x in (keys, key_pe, tokens)))
    assert (half.dtype, half_pe.dtype) == (jnp.bfloat16, jnp.bfloat16)
    error = np.sqrt(np.mean(np.square(half.astype(jnp.float32) - wide))) / np.std(wide)
    assert error < 0.05  # 8 bits, through the offset network and over features as rough as noise


def test_parameters_are_float32_whatever_the_compute_dtype():
    arguments = inputs(SMALL, dtype=jnp.bfloat16)
    params = jax.eval_shape(Plugin(SMALL).init, jax.random.key(2), *arguments)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(jnp.float32)}


@pytest.mark.parametrize("variant", ["default", *slow("gate", "no router", "cbam", "coordinate")])  # other tensors
def test_three_adam_steps_change_every_tensor(variant):
    # One step is not enough: at the identity the router and what precedes the zero layers have no gradient.
    config = small(variant)
    keys, key_pe, tokens = inputs(config)
    target = normal(4, *keys.shape)
    start = started(config)["params"]
    optimizer = optax.adam(1e-3)

    @jit
    def step(params, state):
        def loss(params):
            mixed, _ = Plugin(config).apply({"params": params}, keys, key_pe, tokens)
            return jnp.mean(jnp.square(mixed - target))

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


@pytest.mark.parametrize("variant", DIFFERENT)
def test_keys_shared_by_prompts_equal_repeated_keys(variant):
    config = small(variant)
    keys, key_pe, tokens = inputs(config, key_prompts=1)
    shared = run(config)(trained(config), keys, key_pe, tokens)
    repeated = run(config)(trained(config), jnp.repeat(keys, 3, axis=1), key_pe, tokens)
    assert shared[0].shape[1] == (3 if config.router else 1)
    for ours, theirs in zip(shared, repeated, strict=True):
        np.testing.assert_allclose(jnp.broadcast_to(ours, theirs.shape), theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("router_token", "model", "read"),
    [("output", "sam_nano", {1}), ("output", "hq_sam_nano", {5}), ("mean", "hq_sam_nano", {1, 2, 3, 4})],
)
def test_the_token_of_the_mask_that_is_trained_routes_of_hq_sam_the_hq_token(router_token, model, read):
    config = dataclasses.replace(SMALL, router_token=router_token)
    mix = jit(dataclasses.replace(assemble(MODELS[f"stable_{model}"]).plugin, config=config).apply)
    keys, key_pe, tokens = inputs(config)
    mixed, _ = mix(trained(config), keys, key_pe, tokens)
    for token in range(7):
        other, _ = mix(trained(config), keys, key_pe, tokens.at[:, :, token].set(0.0))
        assert bool(jnp.any(other != mixed)) == (token in read)


class TwoAttentions(nn.Module):
    """A decoder that asks the same plugin twice."""

    config: PluginConfig

    @nn.compact
    def __call__(self, keys, key_pe, tokens):
        plugin = Plugin(self.config, name="plugin")
        return plugin(*plugin(keys, key_pe, tokens), tokens)


def test_each_attention_has_linear_maps_of_its_own():
    config = small("linear")
    given = inputs(config)
    first, again, final = (run(config)(trained(config), *given, attention=place)[0] for place in (None, 0, 2))
    np.testing.assert_array_equal(first, again)
    assert np.abs(final - first).max() > 0.1


def test_two_attentions_share_one_plugin():
    params = trained(SMALL)["params"]
    keys, key_pe, tokens = inputs(SMALL)
    twice, _ = jit(TwoAttentions(SMALL).apply)({"params": {"plugin": params}}, keys, key_pe, tokens)
    once = apply({"params": params}, keys, key_pe, tokens)
    np.testing.assert_allclose(twice, apply({"params": params}, *once, tokens)[0], rtol=1e-5, atol=1e-4)
    fresh = jax.eval_shape(TwoAttentions(SMALL).init, jax.random.key(0), keys, key_pe, tokens)["params"]
    assert jax.tree.map(jnp.shape, fresh) == {"plugin": jax.tree.map(jnp.shape, params)}


@pytest.mark.parametrize(
    ("variant", "expected"),
    [
        ("default", {"offsets": ((2, 1, 6, 9, 2), (2, 3, 6, 9, 2)), "positions": ((2, 1, 6, 9, 2), (2, 3, 6, 9, 2))}),
        (
            "four groups",
            {
                "offsets": 4 * ((2, 1, 6, 9, 2),) + 4 * ((2, 3, 6, 9, 2),),
                "positions": 4 * ((2, 1, 6, 9, 2),) + 4 * ((2, 3, 6, 9, 2),),
            },
        ),
        ("no router", {"offsets": 2 * ((2, 1, 6, 9, 2),), "positions": 2 * ((2, 1, 6, 9, 2),)}),
        ("cbam", {"factors": ((2, 1, 6, 9, 1), (2, 3, 6, 9, 1))}),
        ("coordinate", {"factors": ((2, 1, 6, 9, 16), (2, 3, 6, 9, 16))}),
        ("linear", {}),
    ],
)
def test_what_it_did_is_available_by_name_one_entry_per_call_and_group(variant, expected):
    config = small(variant)
    arguments = inputs(config, key_prompts=1)
    params = {"params": {"plugin": trained(config)["params"]}}
    _, seen = jax.eval_shape(
        lambda *arguments: TwoAttentions(config).apply(*arguments, mutable="intermediates"), params, *arguments
    )
    assert jax.tree.map(jnp.shape, seen["intermediates"]["plugin"]) == expected | {"alpha": 2 * ((2, 3, 2),)}


@pytest.mark.slow
def test_without_a_router_alpha_is_one_and_nothing():
    config = small("no router")
    _, seen = Plugin(config).apply(trained(config), *inputs(config), mutable="intermediates")
    np.testing.assert_array_equal(seen["intermediates"]["alpha"][0], np.tile([1.0, 0.0], (2, 3, 1)))


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
        jax.eval_shape(
            Plugin(SMALL).init, jax.random.key(0), jnp.zeros(keys), jnp.zeros((1, 1, 6, 9, 16)), jnp.zeros(tokens)
        )
