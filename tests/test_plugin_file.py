"""A plugin file gives back what was saved, in a sealed file."""

import numpy as np
import pytest

from stablesam_jax import sealed_file
from stablesam_jax.config import PluginConfig
from stablesam_jax.errors import InputError
from stablesam_jax.plugin_file import load_plugin, save_plugin

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
