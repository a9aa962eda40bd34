"""A plugin file is whole or absent, and a changed byte is seen."""

import os

import numpy as np
import pytest
import safetensors.numpy

from stablesam_jax.config import PluginConfig
from stablesam_jax.errors import InputError
from stablesam_jax.plugin_file import load_plugin, save_plugin

PARAMS = {
    "dsp": {"offset": {"kernel": np.arange(6, dtype=np.float32).reshape(3, 2).T}},
    "drp": {"scale": np.float32(1)},
}
CONFIG = PluginConfig(attentions=(1, 2), router_width=8)


@pytest.fixture
def file(tmp_path):
    save_plugin(tmp_path / "plugin.safetensors", PARAMS, config=CONFIG, metadata={"base": "sam_nano", "steps": 3})
    return tmp_path / "plugin.safetensors"


def test_what_is_saved_comes_back_to_the_bit(file):
    params, config, metadata = load_plugin(file)
    np.testing.assert_array_equal(params["dsp"]["offset"]["kernel"], PARAMS["dsp"]["offset"]["kernel"])
    assert params["drp"]["scale"].shape == ()
    assert (config, metadata) == (CONFIG, {"base": "sam_nano", "steps": 3})
    assert [path.name for path in file.parent.iterdir()] == [file.name]


def test_no_byte_can_change_unseen(file):
    sound = file.read_bytes()
    for position in range(len(sound)):
        for bit in (1, 128):
            damaged = bytearray(sound)
            damaged[position] ^= bit
            file.write_bytes(damaged)
            with pytest.raises(InputError):
                load_plugin(file)


@pytest.mark.parametrize("kept", [0, 7, 100, -1])
def test_a_file_cut_short_is_refused(file, kept):
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(InputError, match="cut short"):
        load_plugin(file)


def test_an_existing_file_is_left_alone(file):
    with pytest.raises(InputError, match="exists already"):
        save_plugin(file, PARAMS, config=CONFIG, metadata={})
    assert load_plugin(file)[2]["steps"] == 3


def test_a_save_that_dies_before_the_rename_leaves_nothing(tmp_path, monkeypatch):
    def die(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", die)
    with pytest.raises(KeyboardInterrupt):
        save_plugin(tmp_path / "plugin.safetensors", PARAMS, config=CONFIG, metadata={})
    assert list(tmp_path.iterdir()) == []


def test_other_files_are_told_apart(tmp_path):
    with pytest.raises(InputError, match="no such plugin file"):
        load_plugin(tmp_path / "absent.safetensors")
    with pytest.raises(InputError, match="cannot be written"):
        save_plugin(tmp_path / "absent" / "plugin.safetensors", PARAMS, config=CONFIG, metadata={})
    safetensors.numpy.save_file({"a": np.ones(2)}, tmp_path / "other.safetensors")
    with pytest.raises(InputError, match="not a plugin of this package, its header has no 'config'"):
        load_plugin(tmp_path / "other.safetensors")
