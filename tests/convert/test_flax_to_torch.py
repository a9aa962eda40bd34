"""What is converted back is the official file again, which the official classes load, or one line says why not."""

import dataclasses
import resource

import jax
import numpy as np
import pytest
import torch

from convert import flax_to_torch, sam_to_flax
from convert.rules import VIDEO_MODULES, to_flax
from convert.torch_file import read_state
from eval.parity import torch_sam
from stablesam_jax.build import load_model
from stablesam_jax.config import MODELS, PluginConfig
from stablesam_jax.errors import InputError
from stablesam_jax.files.checkpoint import save_model
from stablesam_jax.files.plugin_file import load_plugin, save_plugin
from stablesam_jax.params import unflatten
from stablesam_torch import plugin as torch_plugin
from stablesam_torch import plugin_config
from stablesam_torch.nano import NanoSam
from tests.reference import official, small
from tests.reference.tiers import slow


@pytest.fixture
def known(monkeypatch):
    for name, config in official.SMALL.items():
        monkeypatch.setitem(MODELS, name, config)


@pytest.fixture
def folder(tmp_path, known):
    """A checkpoint of a small ViT."""
    torch.save(official.state_dict(official.VIT), tmp_path / "official.pth")
    sam_to_flax.convert(tmp_path / "official.pth", tmp_path / "folder")
    (tmp_path / "official.pth").unlink()
    return tmp_path / "folder"


def run(checkpoint, output):
    flax_to_torch.main(["--checkpoint", str(checkpoint), "--output", str(output)])


def refusal(capsys, checkpoint, output):
    """The one line that the command prints."""
    before = sorted(output.parent.rglob("*"))
    with pytest.raises(SystemExit) as stop:
        run(checkpoint, output)
    assert stop.value.code == 2
    assert sorted(output.parent.rglob("*")) == before
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    assert message.count("\n") == 1
    return message


@pytest.mark.parametrize("model", ["hq_small_vit", "small_tiny_vit", *slow("hq_sam_vit_tiny")])
def test_the_round_trip_is_equal_to_the_bit_and_the_official_classes_load_it(known, tmp_path, capsys, model):
    state = official.state_dict(MODELS[model])
    torch.save(state, tmp_path / "official.pth")
    sam_to_flax.convert(tmp_path / "official.pth", tmp_path / "folder")
    run(tmp_path / "folder", tmp_path / "again.pth")
    printed = capsys.readouterr().out
    assert f"model      {model}\n" in printed
    assert f"tensors    {len(state)}\n" in printed

    again = torch.load(tmp_path / "again.pth", weights_only=True)
    assert again.keys() == state.keys()
    for name, tensor in state.items():
        assert again[name].dtype == tensor.dtype
        assert again[name].is_contiguous()
        assert torch.equal(again[name], tensor)
    torch_sam.build(MODELS[model]).load_state_dict(again, strict=True)


@pytest.fixture
def sam2_file(tmp_path, known):
    """A small SAM 2 as official files are, with weights for videos, and the folder of its image model."""
    torch.save({"model": official.state_dict(official.SAM2)}, tmp_path / "official.pt")
    sam_to_flax.convert(tmp_path / "official.pt", tmp_path / "folder")
    return tmp_path / "official.pt"


def test_a_sam_2_is_the_official_file_again_with_its_weights_for_videos(sam2_file, tmp_path):
    flax_to_torch.convert(str(tmp_path / "folder"), tmp_path / "again.pt", sam2_file)
    again = torch.load(tmp_path / "again.pt", weights_only=True)["model"]
    state = official.state_dict(official.SAM2)
    assert again.keys() == state.keys()
    assert all(torch.equal(again[name], tensor) for name, tensor in state.items())
    torch_sam.build(official.SAM2).load_state_dict(again, strict=True)


def test_without_them_it_holds_what_pictures_need_and_the_report_says_so(sam2_file, tmp_path, capsys):
    run(tmp_path / "folder", tmp_path / "again.pt")
    assert "remark     without weights for videos: see --video-weights" in capsys.readouterr().out
    again = torch.load(tmp_path / "again.pt", weights_only=True)["model"]
    faults = torch_sam.build(official.SAM2).load_state_dict(again, strict=False)
    assert not faults.unexpected_keys
    assert {name.partition(".")[0] for name in faults.missing_keys} == set(VIDEO_MODULES)


def test_weights_for_videos_of_another_model_are_refused(sam2_file, folder_of_a_vit, tmp_path):
    other = dataclasses.replace(official.SAM2.encoder, width=16)
    torch.save({"model": official.state_dict(dataclasses.replace(official.SAM2, encoder=other))}, tmp_path / "other.pt")
    for file in ("other.pt", "vit.pth"):
        with pytest.raises(InputError, match=f"{file}: is not of this SAM 2"):
            flax_to_torch.convert(str(tmp_path / "folder"), tmp_path / "again.pt", tmp_path / file)
    with pytest.raises(InputError, match="is no SAM 2; leave the option out"):
        flax_to_torch.convert(str(folder_of_a_vit), tmp_path / "again.pt", sam2_file)
    assert not (tmp_path / "again.pt").exists()


@pytest.fixture
def folder_of_a_vit(tmp_path, known):
    torch.save(official.state_dict(official.VIT), tmp_path / "vit.pth")
    sam_to_flax.convert(tmp_path / "vit.pth", tmp_path / "vit")
    return tmp_path / "vit"


def test_safetensors_hold_the_same(folder, tmp_path):
    run(folder, tmp_path / "again.safetensors")
    state, _ = read_state(tmp_path / "again.safetensors")
    for name, tensor in official.state_dict(official.VIT).items():
        np.testing.assert_array_equal(state[name], tensor.numpy())


def test_the_shipped_sam_nano_is_loaded_by_the_class_of_stablesam_torch(tmp_path, capsys):
    run("sam_nano", tmp_path / "sam_nano.pth")
    assert "model      sam_nano\n" in capsys.readouterr().out
    sam = NanoSam()
    sam.load_state_dict(torch.load(tmp_path / "sam_nano.pth", weights_only=True), strict=True)
    _, params = load_model("sam_nano")
    jax.tree.map(np.testing.assert_array_equal, to_flax(_arrays(sam), params), jax.device_get(params))


def _arrays(sam):
    return {name: tensor.numpy() for name, tensor in sam.state_dict().items()}


@pytest.mark.slow
def test_a_model_without_a_class_and_one_with_a_plugin_are_answered_by_what_to_do(known, tmp_path, capsys):
    output = tmp_path / "out.pth"
    hq, params = small.system(hq=True, plugin=None)
    save_model(tmp_path / "hq", params, config=hq.config, source={})
    assert "hq_sam_nano has an encoder that neither the official packages" in refusal(capsys, tmp_path / "hq", output)
    sam, params = small.stable_nano()
    save_model(tmp_path / "stable", params, config=sam.config, source={})
    assert "has a plugin, which no official package supports. Convert its base" in refusal(
        capsys, tmp_path / "stable", output
    )


@pytest.fixture
def plugin_file(tmp_path):
    """A plugin with numbers of its own in every leaf."""
    _, params = small.stable_nano()
    rng = np.random.default_rng(0)
    plugin = jax.tree.map(lambda leaf: leaf + rng.standard_normal(leaf.shape, np.float32), params["plugin"])
    save_plugin(tmp_path / "plugin.safetensors", plugin, config=PluginConfig(), metadata={"base": "sam_vit_b"})
    return tmp_path / "plugin.safetensors"


@pytest.mark.slow
def test_a_plugin_makes_an_official_model_stable_and_its_numbers_are_equal_to_the_bit(plugin_file, tmp_path, capsys):
    run(plugin_file, tmp_path / "plugin.pth")
    printed = capsys.readouterr().out
    assert "plugin     for sam_vit_b\n" in printed
    assert "parameters 81,829\n" in printed
    sam = torch_sam.build(dataclasses.replace(official.VIT, embedding_width=256))
    torch_plugin.stabilise(sam, torch_plugin.load_plugin_state(tmp_path / "plugin.pth"))

    state = sam.plugin.state_dict()
    params, config, metadata = load_plugin(plugin_file)
    extra = plugin_config.unpacked(state.pop("_extra_state"))
    assert PluginConfig.from_json(extra["config"]) == config
    assert extra["metadata"] == metadata
    again = unflatten({name.replace(".", "/"): leaf.numpy() for name, leaf in state.items()})
    jax.tree.map(np.testing.assert_array_equal, again, params)


def test_a_plugin_beside_its_base_or_as_safetensors_is_answered_by_what_to_do(plugin_file, tmp_path, capsys):
    assert "Convert its base and the plugin file separately" in refusal(
        capsys, f"sam_nano+{plugin_file}", tmp_path / "out.pth"
    )
    assert "is a plugin, and PyTorch alone cannot read .safetensors. Give a .pth file" in refusal(
        capsys, plugin_file, tmp_path / "out.safetensors"
    )
    (tmp_path / "text").write_text("no plugin")
    assert "not a safetensors file" in refusal(capsys, tmp_path / "text", tmp_path / "out.pth")


def test_nothing_is_overwritten_and_only_known_suffixes_are_written(folder, tmp_path, capsys):
    (tmp_path / "there.pth").write_text("mine")
    assert "exists already" in refusal(capsys, folder, tmp_path / "there.pth")
    assert (tmp_path / "there.pth").read_text() == "mine"
    assert "Give a name that ends in .pth, .pt, .safetensors" in refusal(capsys, folder, tmp_path / "out.npz")
    assert "nor a checkpoint folder" in refusal(capsys, tmp_path / "absent", tmp_path / "out.pth")


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_a_full_disk_is_one_line(folder, tmp_path, capsys, suffix):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        message = refusal(capsys, folder, tmp_path / f"out.{suffix}")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert f"out.{suffix}: cannot be written (File too large)" in message


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_a_folder_that_takes_no_files_is_one_line(folder, capsys, suffix):
    with pytest.raises(SystemExit) as stop:
        run(folder, f"/proc/out.{suffix}")
    assert stop.value.code == 2
    assert f"/proc/out.{suffix}: cannot be written (" in capsys.readouterr().err
