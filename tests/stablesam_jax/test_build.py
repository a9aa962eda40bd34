"""A name, a folder or BASE+PLUGIN_FILE becomes a model with its parameters, or one clear line."""

import dataclasses

import jax
import numpy as np
import pytest

from stablesam_jax import build, names
from stablesam_jax.build import assemble, init, load_model, shapes, with_hq, with_plugin
from stablesam_jax.config import MODELS, PluginConfig, SamConfig, ViTConfig
from stablesam_jax.errors import InputError
from stablesam_jax.files.checkpoint import describe, save_model
from stablesam_jax.files.plugin_file import load_plugin, save_plugin
from stablesam_jax.params import count, digest, flatten
from tests.reference.tiers import slow

TINY = SamConfig(encoder=ViTConfig(width=16, depth=2, heads=2, global_blocks=(1,)), image_size=32)


def drawn(tree):
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), tree)


@pytest.fixture
def params():
    return drawn(shapes(assemble(TINY)))


@pytest.fixture
def folder(tmp_path, monkeypatch, params):
    monkeypatch.setitem(MODELS, "tiny", TINY)
    save_model(tmp_path / "checkpoint", params, config=TINY, source={"file": "tiny.pth"})
    return tmp_path / "checkpoint"


@pytest.fixture
def plugin_file(folder, params):
    _, stable = with_plugin(assemble(TINY), params, PluginConfig(), jax.random.key(0))
    path = folder.parent / "plugin.safetensors"
    save_plugin(path, stable["plugin"], config=PluginConfig(), metadata={"base": "sam_nano"})
    return path


def test_a_folder_gives_the_model_that_was_saved(folder, params):
    sam, loaded = load_model(folder)
    assert sam.config == TINY
    assert sam.plugin is None
    jax.tree.map(np.testing.assert_array_equal, loaded, params)


def test_a_shipped_name_is_found_in_the_package(folder, monkeypatch):
    monkeypatch.setattr(names, "PRETRAINED", folder.parent)
    folder.rename(folder.parent / "tiny")
    assert load_model("tiny")[0].config == TINY


def test_a_folder_may_be_called_as_a_known_model_that_is_not_shipped(folder, monkeypatch):
    monkeypatch.chdir(folder.parent)
    folder.rename("sam_vit_b")
    assert load_model("sam_vit_b")[0].config == TINY


def test_a_plugin_on_a_shipped_model_that_has_one_already_is_told_the_base(plugin_file):
    with pytest.raises(InputError, match=r"stable_sam_nano: has a plugin; name sam_nano as its base\."):
        load_model(f"stable_sam_nano+{plugin_file}")


def test_a_dtype_that_models_do_not_compute_in_is_refused(folder):
    with pytest.raises(InputError, match=r"dtype 'float16': is one of float32, bfloat16, as a string\."):
        load_model(folder, dtype="float16")


def test_a_shipped_plugin_has_the_name_of_the_model_that_it_makes(folder, plugin_file, monkeypatch):
    monkeypatch.setattr(names, "PRETRAINED", folder.parent)
    folder.rename(folder.parent / "sam_nano")
    plugin_file.rename(folder.parent / "stable_sam_nano.safetensors")
    sam, loaded = load_model("stable_sam_nano")
    assert sam.config == dataclasses.replace(TINY, plugin=PluginConfig())
    assert count(loaded["plugin"]) == 81_829


def test_base_plus_file_adds_the_plugin_and_moves_nothing_else(folder, plugin_file, params):
    sam, loaded = load_model(f"{folder}+{plugin_file}")
    assert sam.config == dataclasses.replace(TINY, plugin=PluginConfig())
    assert count(loaded) - count(params) == 81_829
    assert flatten(loaded).keys() - flatten(params).keys() == {
        path for path in flatten(loaded) if path.startswith("plugin/")
    }
    assert describe(loaded) == describe(shapes(sam))


def test_a_plugin_may_be_used_at_another_strength_and_a_model_without_one_not(folder, plugin_file, params):
    sam, half = load_model(f"{folder}+{plugin_file}", strength=0.5)
    assert sam.config.plugin.strength == 0.5
    assert flatten(half).keys() == flatten(load_model(f"{folder}+{plugin_file}")[1]).keys()
    with pytest.raises(InputError, match=r"strength is a share, from 0 to 1; got 1\.5"):
        load_model(f"{folder}+{plugin_file}", strength=1.5)
    with pytest.raises(InputError, match="has no plugin; name one"):
        load_model(folder, strength=0.5)


@pytest.mark.parametrize("system", ["nonsense", "sam_vit_h", "/etc/passwd"])
def test_what_is_not_there_is_answered_by_what_is(system, tmp_path, monkeypatch):
    (tmp_path / "sam_nano").mkdir()
    monkeypatch.setattr(names, "PRETRAINED", tmp_path)
    with pytest.raises(InputError, match=r"neither a shipped model \(sam_nano\) nor .*stablesam convert"):
        load_model(system)


def test_a_checkpoint_with_a_leaf_too_few_is_refused(folder, params):
    del params["mask_decoder"]["iou_token"]
    save_model(folder.parent / "short", params, config=TINY, source={})
    with pytest.raises(InputError, match="missing: mask_decoder/iou_token"):
        load_model(folder.parent / "short")


def test_a_plugin_whose_arrays_do_not_fit_its_configuration_is_refused(folder, plugin_file, params):
    _, stable = with_plugin(assemble(TINY), params, PluginConfig(), jax.random.key(0))
    wrong = plugin_file.with_name("wrong.safetensors")
    save_plugin(wrong, stable["plugin"], config=PluginConfig(router_width=7), metadata={})
    with pytest.raises(InputError, match=r"drp/hidden/kernel is float32 \(256, 32\) instead of float32 \(256, 7\)"):
        load_model(f"{folder}+{wrong}")
    with pytest.raises(InputError, match="no such plugin file"):
        load_model(f"{folder}+absent.safetensors")


def test_a_plugin_of_another_base_is_refused(folder, plugin_file, params):
    plugin, config, _ = load_plugin(plugin_file)
    strange, right = (plugin_file.with_name(f"{name}.safetensors") for name in ("strange", "right"))
    save_plugin(strange, plugin, config=config, metadata={"base": "tiny", "base_sha256": "0" * 64})
    save_plugin(right, plugin, config=config, metadata={"base": "tiny", "base_sha256": digest(params)})
    with pytest.raises(InputError, match=r"strange\.safetensors: was trained on tiny with SHA-256 0000"):
        load_model(f"{folder}+{strange}")
    assert load_model(f"{folder}+{right}", image_size=64)[0].config.image_size == 64  # checked before it is resized


def test_a_plugin_goes_on_its_own_base_alone(folder, params):
    _, stable = with_plugin(assemble(TINY), params, PluginConfig(), jax.random.key(0))
    file = folder.parent / "trained.safetensors"
    save_plugin(file, stable["plugin"], config=PluginConfig(), metadata={"base": "tiny", "base_sha256": digest(params)})
    load_model(f"{folder}+{file}")
    params["mask_decoder"]["iou_token"] = params["mask_decoder"]["iou_token"] + 1
    save_model(folder.parent / "other", params, config=TINY, source={})
    with pytest.raises(InputError, match=r"trained\.safetensors: was trained on tiny .* the base given is tiny with"):
        load_model(f"{folder.parent / 'other'}+{file}")


@pytest.mark.slow
def test_hq_parts_are_added_by_the_key_alone_and_move_nothing(params):
    (sam, first), (_, again), (_, other) = (with_hq(assemble(TINY), params, jax.random.key(seed)) for seed in (0, 0, 1))
    assert sam.config == dataclasses.replace(TINY, hq=True)
    assert describe(first) == describe(shapes(sam))
    jax.tree.map(np.testing.assert_array_equal, first, again)
    own, fresh, others = flatten(params), flatten(first), flatten(other)
    assert all(fresh[path] is own[path] for path in own)
    assert {path.split("/")[0] for path in fresh.keys() - own.keys()} == {"mask_decoder"}
    assert not np.array_equal(fresh["mask_decoder/hf_token"], others["mask_decoder/hf_token"])
    with pytest.raises(InputError, match="has HQ-SAM's parts already"):
        with_hq(sam, first, jax.random.key(0))


@pytest.mark.slow
def test_random_parameters_depend_on_the_key_alone():
    first, again = (init(TINY, jax.random.key(seed)) for seed in (0, 0))
    other = init(TINY, jax.random.key(1))
    assert describe(first) == describe(shapes(assemble(TINY)))
    jax.tree.map(np.testing.assert_array_equal, first, again)
    assert not np.array_equal(first["mask_decoder"]["iou_token"], other["mask_decoder"]["iou_token"])


@pytest.mark.parametrize(
    ("name", "strength", "first_pass"),
    [("stable_sam_nano", 0.85, (0.8, 0.45, 0.2, 0.4)), ("stable_sam_nano_one_object", 0.7, None)],
)
def test_the_shipped_plugins_were_trained_on_the_shipped_base(name, strength, first_pass):
    sam, params = load_model(name)
    trained = dataclasses.replace(sam.config.plugin, strength=1.0, first_pass=None)
    assert trained == MODELS["stable_sam_nano"].plugin
    assert sam.config.plugin == dataclasses.replace(trained, strength=strength, first_pass=first_pass)
    assert dataclasses.replace(sam.config, plugin=None) == MODELS["sam_nano"]
    assert np.abs(params["plugin"]["dsp"]["offset"]["kernel"]).max() > 0.01


@pytest.mark.parametrize("name", ["stable_hq_sam_nano", *slow("stable_hq_sam_vit_b", "stable_hq_sam_vit_tiny")])
def test_parameters_are_float32_where_jax_computes_in_float64_too(name):
    with jax.enable_x64(True):
        tree = build._shapes.__wrapped__(assemble(MODELS[name]))
    assert {leaf.dtype for leaf in jax.tree.leaves(tree)} == {np.dtype(np.float32)}
