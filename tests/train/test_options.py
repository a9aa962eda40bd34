"""What a run wrote as its config.json are the options of another one."""

import dataclasses
import json

import pytest

from stablesam_jax.config import PluginConfig
from stablesam_jax.errors import InputError
from train import options
from train.presets import PRESETS, TrainConfig
from train.run import FREE_FIELDS, Run


@pytest.mark.parametrize("preset", ["stable-sam-12ep", "hq-sam", "quickstart"])
def test_a_configuration_comes_back_from_the_folder_of_its_run(tmp_path, preset):
    config = dataclasses.replace(
        PRESETS[preset][1], output=tmp_path / "run", data_dir=(tmp_path / "a", tmp_path / "b"), seed=3, skip_bad=True
    )
    Run(config, {"base": "sam_nano"}).close()
    found = options.read_config(tmp_path / "run" / "config.json")
    defaults = TrainConfig(cache=config.cache)
    for field in dataclasses.fields(config):
        own = field.name not in FREE_FIELDS or field.name == "skip_bad"
        wanted = getattr(config if own else defaults, field.name)
        assert getattr(found, field.name) == wanted, field.name
    again = Run(dataclasses.replace(found, output=tmp_path / "again"), {"base": "sam_nano"})
    assert again.settings == Run(config, {"base": "sam_nano"}).settings


@pytest.mark.parametrize("joined", [False, True])
def test_options_behind_the_file_change_it(tmp_path, monkeypatch, joined):
    config = TrainConfig(output=tmp_path / "run", plugin=PluginConfig(attentions=(1,)), epochs=12.0)
    Run(config, {}).close()
    file = str(tmp_path / "run" / "config.json")
    given = [f"--config={file}"] if joined else ["--config", file]
    monkeypatch.setattr("sys.argv", ["train", *given, "--seed", "5", "--output", str(tmp_path / "b")])
    found = options.parse_run("train", PRESETS)
    assert (found.seed, found.epochs, found.plugin.attentions, found.output) == (5, 12.0, (1,), tmp_path / "b")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "cannot be read"),
        ("{", "is not the config.json"),
        (json.dumps([1]), "is not the config.json"),
        (json.dumps({"data_dir": [], "plugin": None, "steps": "x"}), "is not the config.json"),
    ],
)
def test_a_file_that_is_none_is_refused(tmp_path, content, words):
    path = tmp_path / "config.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(InputError, match=words):
        options.read_config(path)
