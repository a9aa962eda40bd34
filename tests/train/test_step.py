"""A step moves what trains and nothing else, and depends on seed and position alone."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from stablesam_jax import parallel, params
from stablesam_jax.config import PluginConfig
from stablesam_jax.data.pipeline import BatchConfig, ViewConfig, Views, make_sample
from stablesam_jax.data.readers import PairsFolder
from stablesam_jax.model.prompt_encoder import Prompts
from stablesam_jax.model.sam import ImageEmbedding
from stablesam_jax.model.sam2 import stable_or_best
from tests.reference import small
from tests.reference.tiers import slow
from train import step as step_module
from train.presets import MASK_DECODER, MASK_TOKEN, PLUGIN_ONLY, PRESETS
from train.step import State, encoder_halves, make_update, normalise, sample_keys

STEPS, PICTURES = 3, 4
KINDS = {"gt-box": 1.0, "noisy-box": 1.0, "points": 1.0, "coarse-mask": 1.0}
OPTIMIZER = optax.adam(1e-3)


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    """Three batches of four pictures with two prompts each; features, with early ones, stand for the pictures."""
    sam, tree = small.system(hq=True, plugin=None)
    freeze, _ = encoder_halves(sam, neck_trains=False)
    freeze = jax.jit(functools.partial(freeze, tree))
    views = Views(
        PairsFolder(small.save_pairs(tmp_path_factory.mktemp("data") / "pairs", PICTURES)),
        ViewConfig(size=small.SIZE, scale_range=(0.8, 1.2), views=1, seed=0),
    )
    config = BatchConfig(
        pictures=PICTURES, prompts_per_picture=2, kinds=KINDS, mask_size=small.CONFIG.mask_size, seed=0
    )
    batches = []
    for step in range(STEPS):
        made = [make_sample(views, config, index, PICTURES * step + index) for index in range(PICTURES)]
        batch = {key: np.stack([sample[key] for sample in made]) for key in made[0]}
        batches.append(batch | {"features": jax.device_get(freeze(batch.pop("picture")))})
    return batches


def compiled(devices, sam, tree, trainable):
    """A function of (batches, seed) -> trained parameters, measured, frozen parameters, after all batches."""
    trained, frozen = params.split(tree, trainable)
    engine = parallel.PmapEngine(jax.local_devices()[:devices])
    update = engine.run_on_all(make_update(sam, OPTIMIZER, "stable", neck_trains=False), sharded=(2,), donate=(0,))

    def run(batches, seed=0):
        state = State(step=jnp.zeros((), jnp.int32), trained=trained, optimizer=OPTIMIZER.init(trained))
        everywhere = engine.replicate(frozen)
        losses = []
        for batch in batches:
            everyone = engine.replicate((state, np.uint32(seed)))
            whole = sam.config.hq or sam.config.sam2
            features = batch["features"] if whole else ImageEmbedding(batch["features"].features)
            shards = engine.shard(batch | {"features": features})
            state, measured = update(everyone[0], everywhere, shards, everyone[1])
            state = engine.unreplicate(state)
            losses.append([np.asarray(copy.data).item() for copy in measured.loss.addressable_shards])
        assert int(state.step) == len(batches)
        assert all(values == [values[0]] * devices for values in losses)  # every device holds the mean
        return state.trained, np.array(losses, np.float32)[:, 0], engine.unreplicate(everywhere)

    return run


@pytest.fixture(scope="module")
def on_one():
    return compiled(1, *small.stable_nano(), PLUGIN_ONLY)


@pytest.fixture(scope="module")
def one(on_one, samples):
    return on_one(samples)


@pytest.fixture(scope="module")
def two(samples):
    return compiled(2, *small.stable_nano(), PLUGIN_ONLY)(samples)


def leaves(tree):
    return {path: np.asarray(leaf) for path, leaf in params.flatten(tree).items()}


def changed(tree, run):
    """Paths whose bits a run has changed."""
    before, after = leaves(tree), leaves(params.merge(run[2], run[0]))
    assert before.keys() == after.keys()
    assert np.isfinite(run[1]).all()
    return {path for path in before if before[path].tobytes() != after[path].tobytes()}


def test_three_steps_change_every_tensor_of_the_plugin_and_no_other_bit(one):
    _, tree = small.stable_nano()
    assert changed(tree, one) == {path for path in leaves(tree) if path.startswith("plugin/")}


# Presets by what they train; some differ in prompts and budget alone. Of the encoder they see the features alone.
SAME = {"quickstart", "stable-sam", "stable-sam-12ep", "low-shot-220", "low-shot-440", "hq-sam-recipe", "dsp-rts"}
SYSTEMS = {
    name: (PRESETS[name][1].hq, PRESETS[name][1].plugin, PRESETS[name][1].trainable)
    for name in PRESETS.keys() - SAME - {"pretrain-nano"}
}
# HQ-SAM as it is, and what makes SAM's own mask beside it, to see that the loss is on the HQ token's mask alone.
SYSTEMS["plugin on HQ-SAM"] = (True, PluginConfig(), (*PLUGIN_ONLY, "mask_decoder/output_hypernetworks_mlps_0/.*"))
# What the mask that the loss is on does not hang on: chosen with the whole decoder, it does not change.
UNREACHED = {
    "dt-sam": "mask_decoder/(output_hypernetworks_mlps_[123]|iou_prediction_head)/.*",
    "finetune-decoder": "mask_decoder/(output_hypernetworks_mlps_[123]|iou_prediction_head)/.*",
    "plugin on HQ-SAM": "mask_decoder/output_hypernetworks_mlps_0/.*",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(SYSTEMS))
def test_three_steps_change_what_a_system_trains_and_no_other_bit(name, samples):
    hq, plugin, trainable = SYSTEMS[name]
    sam, tree = small.system(hq=hq, plugin=plugin)
    chosen = leaves(params.split(tree, trainable)[0]).keys()
    unreached = {path for path in chosen if re.fullmatch(UNREACHED.get(name, ""), path)}
    assert bool(unreached) == (name in UNREACHED)
    halves = [jax.tree.map(lambda leaf: leaf[:2], batch) for batch in samples]
    with small.quick_compilation():
        run = compiled(1, sam, tree, trainable)(halves)
    assert changed(tree, run) == chosen - unreached


@pytest.mark.slow
def test_two_devices_and_one_agree(one, two):
    # Sums over 2 + 2 pictures and over 4 round differently, in the last bits of float32; later losses are of parameters
    # that differ.
    np.testing.assert_allclose(one[1][0], two[1][0], rtol=2e-6)
    np.testing.assert_allclose(one[1], two[1], rtol=1e-5)
    before, first, second = leaves(small.stable_nano()[1]), leaves(one[0]), leaves(two[0])
    for path in first:
        # Adam divides by the gradient's own size: where it is all rounding, a step of 1e-3 may go either way. So few
        # numbers may differ by more than a hundredth of a step, and none by more than its steps to and fro.
        difference = np.abs(first[path] - second[path])
        assert difference.max() <= 2 * STEPS * 1e-3
        assert np.mean(difference > 1e-5) < 0.01, path
        assert (first[path] != before[path]).any()


def test_the_same_seed_gives_the_same_bits_and_another_seed_others(one, on_one, samples):
    again, other = on_one(samples), on_one(samples, seed=1)
    assert again[1].tobytes() == one[1].tobytes()
    assert all(a.tobytes() == b.tobytes() for a, b in zip(*map(jax.tree.leaves, (again[0], one[0])), strict=True))
    assert (other[1] != one[1]).all()


@pytest.mark.slow
def test_features_of_a_cache_are_the_computed_ones_within_float16(one, on_one, samples):
    features = samples[0]["features"].features
    rounded = features.astype(np.float16).astype(np.float32)
    np.testing.assert_allclose(rounded, features, rtol=2**-11, atol=2**-24)
    _, losses, _ = on_one([samples[0] | {"features": ImageEmbedding(rounded)}])
    assert losses[0] == pytest.approx(one[1][0], rel=2e-3)
    assert losses[0] != one[1][0]


@pytest.mark.slow
def test_the_encoder_is_the_same_cut_before_its_neck_or_after():
    sam, tree = small.nano()
    pictures = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), np.uint8)

    @jax.jit
    def both(tree, x):
        halves = (encoder_halves(sam, neck_trains=neck_trains) for neck_trains in (False, True))
        return [embed(tree, freeze(tree, x)) for freeze, embed in halves]

    whole, cut = both(tree, pictures)
    assert whole.features.shape == (2, 4, 4, 256)
    np.testing.assert_allclose(cut.features, whole.features, atol=1e-5)


def test_pictures_are_normalised_by_the_models_mean_and_deviation():
    x = np.array([[[[127, 255, 0]]]], np.uint8)
    assert normalise(x, small.CONFIG).ravel().tolist() == [0, 1, -127 / 128]


def test_targets_are_averaged_over_squares():
    maps = jnp.arange(16.0).reshape(1, 4, 4)
    assert step_module.average_pool(maps, 2).tolist() == [[[2.5, 4.5], [10.5, 12.5]]]
    assert np.array_equal(step_module.average_pool(maps, 4), maps)


def test_random_keys_follow_the_samples_not_their_places_in_the_batch():
    def data(positions):
        return np.asarray(jax.random.key_data(sample_keys(np.uint32(5), np.array(positions, np.uint32), 3)))

    assert data([7, 8, 9]).shape == (3, 3, 2)
    assert np.array_equal(data([7, 8, 9])[[2, 0]], data([9, 7]))
    assert len(np.unique(data([7, 8, 9]).reshape(9, 2), axis=0)) == 9


# what else a step can do


def first_update(samples, objective="stable", *, averaged=False, **options):
    """State before and after one update on one device, and what it measured."""
    sam, tree = small.nano()
    trained, frozen = params.split(tree, MASK_TOKEN)
    engine = parallel.PmapEngine(jax.local_devices()[:1])
    update = engine.run_on_all(make_update(sam, OPTIMIZER, objective, neck_trains=False, **options), sharded=(2,))
    before = State(
        step=jnp.zeros((), jnp.int32),
        trained=trained,
        optimizer=OPTIMIZER.init(trained),
        averaged=trained if averaged else None,
    )
    batch = samples[0] | {"features": ImageEmbedding(samples[0]["features"].features)}
    everyone = engine.replicate((before, frozen, np.uint32(0)))
    with small.quick_compilation():
        state, measured = update(everyone[0], everyone[1], engine.shard(batch), everyone[2])
    return before, engine.unreplicate(state), engine.unreplicate(measured)


@pytest.mark.slow
def test_a_moving_average_follows_what_trains(samples):
    before, after, _ = first_update(samples, averaged=True, ema=0.999)
    for path, old in leaves(before.trained).items():
        new, averaged = leaves(after.trained)[path], leaves(after.averaged)[path]
        kept = (1 + 1) / (10 + 1)  # the first step of the ramp
        np.testing.assert_allclose(averaged, kept * old + (1 - kept) * new, rtol=1e-6, atol=1e-7)
    zero, one = {"a": jnp.zeros(())}, {"a": jnp.ones(())}
    ramp = [step_module.moving_average(zero, one, jnp.int32(step), decay=0.9)["a"] for step in (10, 10**6)]
    np.testing.assert_allclose(ramp, [1 - 11 / 20, 0.1], rtol=1e-6)


@pytest.mark.parametrize("objective", slow("full-resolution", "pretrain"))
def test_other_losses_train_the_same_parameters(samples, objective):
    before, after, measured = first_update(samples, objective)
    assert np.isfinite(measured.loss).all()
    moved = {path for path, leaf in leaves(after.trained).items() if (leaf != leaves(before.trained)[path]).any()}
    assert moved == set(leaves(before.trained))


@pytest.mark.slow
def test_a_click_is_a_second_round_on_the_errors_of_the_first(samples):
    plain = first_update(samples, "pretrain")
    clicked = first_update(samples, "pretrain", clicks=1)
    assert np.isfinite(clicked[2].loss).all()
    assert clicked[2].loss != plain[2].loss


# gradient checkpointing


def gradient_of_step(samples, *, remat):
    """The gradient of one step and its loss, and the size in bytes of what the backward pass needs of the forward one.

    The size is that of the residuals of `jax.vjp`: XLA's CPU compiler moves the repeated computation to the front, so
    that its temporary memory does not show them.
    """
    sam, tree = small.stable_nano()
    trained, frozen = params.split(tree, [*PLUGIN_ONLY, *MASK_DECODER])
    batch = samples[0] | {"features": ImageEmbedding(samples[0]["features"].features)}
    prompts = Prompts(*(batch[name] for name in ("coords", "labels", "valid")))

    def loss_of(trained):
        masks, sown = sam.apply(
            {"params": params.merge(frozen, trained)},
            batch["features"],
            prompts,
            at_once=True,
            remat=remat,
            method="decode",
            mutable=["intermediates"],
        )
        return jnp.square(masks.low_res_masks - 1).mean(), sown

    residuals = jax.eval_shape(lambda tree: jax.vjp(loss_of, tree, has_aux=True)[1], trained)
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(residuals))
    (loss, sown), gradient = jax.jit(jax.value_and_grad(loss_of, has_aux=True))(trained)
    return jax.device_get((gradient, loss, sown)), size


@pytest.mark.slow
def test_gradient_checkpointing_keeps_less_for_the_same_gradient(samples):
    with small.quick_compilation():
        (plain, plain_size), (again, size) = (gradient_of_step(samples, remat=remat) for remat in (False, True))
    assert size < 0.75 * plain_size
    assert jax.tree.structure(plain) == jax.tree.structure(again)  # what the plugin sows comes out of the layers, too
    for path, leaf in params.flatten(plain[0]).items():
        largest = np.abs(leaf).max()
        np.testing.assert_allclose(params.flatten(again[0])[path], leaf, rtol=0, atol=1e-5 * largest, err_msg=path)
    assert again[1] == pytest.approx(plain[1], rel=1e-6)


@pytest.mark.parametrize(("remat", "layers"), [(False, 0), (True, 2)])
def test_a_step_repeats_both_layers_on_demand(samples, remat, layers):
    sam, tree = small.nano()
    trained, frozen = params.split(tree, MASK_TOKEN)
    state = State(step=jnp.zeros((), jnp.int32), trained=trained, optimizer=OPTIMIZER.init(trained))
    batch = samples[0] | {"features": ImageEmbedding(samples[0]["features"].features)}
    engine = parallel.PmapEngine(jax.local_devices()[:1])
    update = engine.run_on_all(make_update(sam, OPTIMIZER, "stable", neck_trains=False, remat=remat), sharded=(2,))
    state, frozen, seed = engine.replicate((state, frozen, np.uint32(0)))
    program = str(jax.make_jaxpr(update)(state, frozen, engine.shard(batch), seed))
    assert program.count("policy=None") == layers  # in the backward pass; the forward pass has none


# what is frozen costs nothing


def flops(samples, trainable, *, cached):
    """Of the update's program on one device, with the features of a cache or with pictures.

    As it goes to the compiler, which takes a minute and leaves as much to 2 %: what is not in it cannot be in the
    compiled one.
    """
    sam, tree = small.stable_nano()
    trained, frozen = params.split(tree, trainable)
    state = State(step=jnp.zeros((), jnp.int32), trained=trained, optimizer=OPTIMIZER.init(trained))
    batch = samples[0] | {"features": ImageEmbedding(samples[0]["features"].features)}
    if not cached:
        del batch["features"]
        batch["picture"] = np.zeros((PICTURES, small.SIZE, small.SIZE, 3), np.uint8)
    engine = parallel.PmapEngine(jax.local_devices()[:1])
    update = engine.run_on_all(make_update(sam, OPTIMIZER, "stable", neck_trains=False), sharded=(2,))
    state, frozen, seed = engine.replicate((state, frozen, np.uint32(0)))
    lowered = update.lower(state, frozen, engine.shard(batch), seed)
    return lowered.cost_analysis()["flops"]


@pytest.mark.slow
def test_the_backward_pass_costs_nothing_for_what_is_frozen(samples):
    sam, tree = small.stable_nano()
    freeze, _ = encoder_halves(sam, neck_trains=False)
    pictures = np.zeros((PICTURES, small.SIZE, small.SIZE, 3), np.uint8)
    forward = jax.jit(freeze).lower(tree, pictures).cost_analysis()["flops"]

    plugin = flops(samples, PLUGIN_ONLY, cached=True)
    assert flops(samples, PLUGIN_ONLY, cached=False) - plugin == pytest.approx(forward, rel=0.02)
    assert flops(samples, (*PLUGIN_ONLY, "image_encoder/.*"), cached=False) - plugin > 2 * forward
    # Neither does the first layer of the decoder, or any matrix of the others.
    assert plugin < 0.8 * flops(samples, (*PLUGIN_ONLY, *MASK_DECODER), cached=True)


@pytest.mark.slow
def test_a_sam_2_trains_on_its_first_mask_even_where_prediction_would_replace_it(samples):
    sam, tree = small.stable_sam2()
    freeze, _ = encoder_halves(sam, neck_trains=False)
    pictures = np.random.default_rng(0).integers(0, 256, (PICTURES, small.SIZE, small.SIZE, 3), np.uint8)
    batch = samples[0] | {"features": jax.device_get(jax.jit(freeze)(tree, pictures))}
    predicted = sam.apply(
        {"params": tree},
        batch["features"],
        Prompts(*(batch[name] for name in ("coords", "labels", "valid"))),
        masks="all",
        method="decode",
    )
    single, _ = stable_or_best(predicted.low_res_masks, predicted.iou_predictions)
    assert not np.array_equal(single[:, :, 0], predicted.low_res_masks[:, :, 0])  # some are unstable

    trained, _, _ = compiled(1, sam, tree, ["mask_decoder/output_hypernetworks_mlps_.*", *PLUGIN_ONLY])([batch])
    before = params.flatten(tree)
    moved = {path for path, leaf in params.flatten(trained).items() if not np.array_equal(leaf, before[path])}
    assert "plugin" in {path.partition("/")[0] for path in moved}
    assert {path.split("/")[1] for path in moved if path.startswith("mask_decoder/")} == {"output_hypernetworks_mlps_0"}
