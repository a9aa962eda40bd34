"""A plugin file gives back what was saved, in a sealed file."""

import numpy as np
import pytest

from stablesam_jax.config import MODELS, PluginConfig
from stablesam_jax.errors import InputError
from stablesam_jax.files import sealed_file
from stablesam_jax.files.plugin_file import check_base, load_plugin, save_plugin
from stablesam_jax.params import digest

PARAMS = {
    "dsp": {"offset": {"kernel": np.arange(6, dtype=np.float32).reshape(3, 2).T}},
    "drp": {"scale": np.float32(1)},
}
CONFIG = PluginConfig(attentions=(1, 2), router_width=8)


def test_what_is_saved_comes_back_to_the_bit(tmp_path):
    file = tmp_path / "plugin.safetensors"
    save_plugin(file, PARAMS, config=CONFIG, metadata={"base": "sam_nano", "steps": 3})
    params, config, metadata = load_plugin(file)
    np.testing.assert_array_equal(params["dsp"]["offset"]["kernel"], PARAMS["dsp"]["offset"]["kernel"])
    assert params["drp"]["scale"].shape == ()
    assert (config, metadata) == (CONFIG, {"base": "sam_nano", "steps": 3})


def test_a_sealed_file_of_another_kind_is_refused(tmp_path):
    sealed_file.write(tmp_path / "other.safetensors", {"a": np.ones(2)}, {"metadata": "{}"})
    with pytest.raises(InputError, match="no plugin of this package, its header has no 'config'"):
        load_plugin(tmp_path / "other.safetensors")


def test_a_configuration_of_another_version_is_refused(tmp_path):
    header = {"config": '{"attentions": [1], "depth": 3}', "metadata": "{}"}
    sealed_file.write(tmp_path / "later.safetensors", {"a": np.ones(2)}, header)
    with pytest.raises(InputError, match=r"does not fit this version \(.*depth"):
        load_plugin(tmp_path / "later.safetensors")


def test_each_of_200_flipped_bits_is_refused_by_name(tmp_path):
    file = tmp_path / "plugin.safetensors"
    rng = np.random.default_rng(0)
    params = {"dsp": {"kernel": rng.standard_normal((2, 200, 200)).astype(np.float32)}}  # 320 KB, as real ones
    save_plugin(file, params, config=CONFIG, metadata={"base": "sam_nano", "base_sha256": "0" * 64})
    sound = file.read_bytes()
    header = 600  # bytes in which every second bit flips; they are few, but say what the file is
    for index in range(200):
        damaged = bytearray(sound)
        position = rng.integers(header if index % 2 else len(sound))
        damaged[position] ^= 1 << rng.integers(8)
        file.write_bytes(damaged)
        with pytest.raises(InputError, match=rf"^{file}: "):
            load_plugin(file)
    file.write_bytes(sound)
    load_plugin(file)


def test_a_plugin_goes_on_the_base_it_was_trained_on_and_on_no_other():
    config = MODELS["sam_nano"]
    base = {"mask_decoder": {"iou_token": np.ones((1, 2), np.float32)}}
    metadata = {"base": "sam_nano", "base_sha256": digest(base)}
    check_base("p.safetensors", metadata, config, base)
    check_base("p.safetensors", {}, config, base)  # says nothing about its base
    other = {"mask_decoder": {"iou_token": np.ones((1, 2), np.float32) * np.float32(1 + 2**-23)}}
    with pytest.raises(InputError) as error:
        check_base("p.safetensors", metadata, config, other)
    assert str(error.value).startswith("p.safetensors: was trained on sam_nano with SHA-256 ")
    assert all(digest(tree)[:16] in str(error.value) for tree in (base, other))
