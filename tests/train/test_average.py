"""Several plugins, or models, become one, number by number."""

import dataclasses

import jax
import numpy as np
import pytest

from stablesam_jax.build import load_model
from stablesam_jax.config import MODELS, PluginConfig
from stablesam_jax.files.checkpoint import save_model
from stablesam_jax.files.plugin_file import load_plugin, save_plugin
from stablesam_jax.params import digest, flatten
from tests.reference import small
from train import average


@pytest.fixture
def base(tmp_path):
    return small.save_nano(tmp_path / "base")


def noisy(params, seed):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: leaf + rng.normal(size=leaf.shape).astype(np.float32), params)


@pytest.fixture
def plugins(tmp_path):
    """Files of two plugins of the small nano."""
    metadata = {"base": "sam_nano", "base_sha256": digest(small.nano()[1])}
    files = []
    for seed in range(2):
        files.append(tmp_path / f"{seed}.safetensors")
        params = noisy(small.stable_nano()[1]["plugin"], seed)
        save_plugin(files[-1], params, config=PluginConfig(), metadata=metadata | {"seed": seed})
    return files


def run(parts, output, *options):
    return average.main(["--parts", *map(str, parts), "--output", str(output), *options])


def refusal(capsys, parts, output, *options):
    """The one line that the command answers with."""
    with pytest.raises(SystemExit) as stop:
        run(parts, output, *options)
    assert stop.value.code == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    assert message.count("\n") == 1
    return message


@pytest.mark.parametrize(
    ("options", "shares"),
    [((), (0.5, 0.5)), (("--shares", "1", "3"), (0.25, 0.75)), (("--shares", "1e308", "1e308"), (0.5, 0.5))],
)
def test_plugins_become_their_mean(plugins, tmp_path, options, shares):
    run(plugins, tmp_path / "mean.safetensors", *options)
    mean, config, metadata = load_plugin(tmp_path / "mean.safetensors")
    assert config == PluginConfig()
    assert [one["share"] for one in metadata["mean_of"]] == list(shares)
    assert [one["seed"] for one in metadata["mean_of"]] == [0, 1]
    first, second = (flatten(load_plugin(file)[0]) for file in plugins)
    for path, leaf in flatten(mean).items():
        assert leaf.dtype == np.float32
        np.testing.assert_allclose(leaf, shares[0] * first[path] + shares[1] * second[path], atol=1e-6)


def test_the_mean_has_the_strength_asked_for_and_knows_its_base(base, plugins, tmp_path, capsys):
    run(plugins, tmp_path / "mean.safetensors", "--strength", "0.5")
    assert "mean.safetensors, the mean of 2" in capsys.readouterr().out
    sam, params = load_model(f"{base}+{tmp_path / 'mean.safetensors'}")
    assert sam.config.plugin == PluginConfig(strength=0.5)
    assert digest({name: part for name, part in params.items() if name != "plugin"}) == digest(small.nano()[1])


def test_parts_of_different_strength_have_the_one_asked_for(plugins, tmp_path):
    run(plugins[:1], tmp_path / "weak.safetensors", "--strength", "0.2")
    run([plugins[1], tmp_path / "weak.safetensors"], tmp_path / "mean.safetensors", "--strength", "0.5")
    assert load_plugin(tmp_path / "mean.safetensors")[1].strength == 0.5


def test_the_mean_can_have_limits_of_a_first_pass(plugins, tmp_path):
    run(plugins, tmp_path / "mean.safetensors", "--first-pass", "0.8", "0.45", "0.2", "0.4")
    assert load_plugin(tmp_path / "mean.safetensors")[1] == PluginConfig(first_pass=(0.8, 0.45, 0.2, 0.4))


@pytest.mark.slow
def test_models_become_their_mean_in_the_type_asked_for(base, tmp_path):
    other = noisy(small.nano()[1], 0)
    larger = dataclasses.replace(MODELS["sam_nano"], image_size=640)
    save_model(tmp_path / "other", other, config=larger, source={"stage": 2})
    run([base, tmp_path / "other"], tmp_path / "mean", "--shares", "0.3", "0.7", "--store", "float16")
    sam, params = load_model(tmp_path / "mean")
    assert sam.config.image_size == 640
    mean = flatten(params)
    for path, leaf in flatten(small.nano()[1]).items():
        np.testing.assert_allclose(mean[path], 0.3 * leaf + 0.7 * flatten(other)[path], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        (("--shares", "1"), "--shares 1: give one for each of the 2 parts"),
        (("--shares", "2", "-1"), "none below 0"),
        (("--shares", "nan", "1"), "give one for each"),
        (("--strength", "2"), "strength is a share, from 0 to 1; got 2.0"),
        (("--store", "float16"), "--store: is for models; these are plugin files"),
    ],
)
def test_what_cannot_be_is_refused_with_the_reason(plugins, tmp_path, capsys, options, fault):
    assert fault in refusal(capsys, plugins, tmp_path / "mean.safetensors", *options)
    assert not (tmp_path / "mean.safetensors").exists()


def test_only_what_belongs_together_is_averaged(base, plugins, tmp_path, capsys):
    params, config, metadata = load_plugin(plugins[0])
    other = tmp_path / "other.safetensors"
    for changed, history, fault in (
        (dataclasses.replace(config, max_offset_cells=2.0), metadata, "its configuration differs from that of"),
        (config, metadata | {"base_sha256": "0"}, "its base differs from that of"),
    ):
        save_plugin(other, params, config=changed, metadata=history)
        assert f"{other}: {fault} {plugins[0]}" in refusal(capsys, [plugins[0], other], tmp_path / "mean.safetensors")
        other.unlink()
    assert "--parts nowhere: there is no such file or folder" in refusal(capsys, ["nowhere"], tmp_path / "mean")
    assert "plugin files alone" in refusal(capsys, [plugins[0], base], tmp_path / "mean.safetensors")
    assert "these are models" in refusal(capsys, [base], tmp_path / "mean", "--strength", "0.5")
    assert "exists already" in refusal(capsys, plugins, plugins[0])
