"""A folder of the hub is the model to the bit, plugin included; a changed one is refused, and none runs code."""

import json
import sys

import numpy as np
import pytest

from stablesam_jax.build import load_model
from stablesam_jax.errors import InputError
from stablesam_jax.files import hub_folder
from stablesam_jax.params import flatten
from tests.reference import small


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A folder of a model with a plugin."""
    sam, params = small.stable_nano()
    folder = tmp_path_factory.mktemp("hub") / "owner" / "model"
    hub_folder.save_model(folder, params, config=sam.config, source={"file": "x"}, card="---\na: 1\n---\n")
    return folder


@pytest.fixture
def folder(whole, tmp_path):
    """A copy that may be damaged."""
    (tmp_path / "model").mkdir()
    for file in whole.iterdir():
        (tmp_path / "model" / file.name).write_bytes(file.read_bytes())
    return tmp_path / "model"


def test_it_is_the_model_to_the_bit_with_its_plugin(whole):
    sam, params = small.stable_nano()
    assert sorted(file.name for file in whole.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    config, again, metadata = hub_folder.load_model(whole)
    assert config == sam.config
    assert metadata["source"] == {"file": "x"}
    for path, leaf in flatten(params).items():
        np.testing.assert_array_equal(flatten(again)[path], leaf)


def test_load_model_reads_it_by_its_path(whole):
    sam, params = load_model(whole, strength=0.5)
    assert sam.config.plugin.strength == 0.5
    assert flatten(params).keys() == flatten(small.stable_nano()[1]).keys()


def refusal(folder):
    with pytest.raises(InputError) as caught:
        hub_folder.load_model(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_flipped_bit_or_another_configuration_is_found(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model": "sam_vit_b"}))
    assert "config.json differs from the configuration in model.safetensors" in refusal(folder)
    (folder / "config.json").write_text(json.dumps(config))
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[-9] ^= 1
    (folder / "model.safetensors").write_bytes(content)
    assert "damaged, its SHA-256 differs" in refusal(folder)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("no json", "its config.json is no configuration of a model"),
        ("[]", "its config.json is no configuration of a model"),
        ('{"model_type": "sam"}', "is a model of the library transformers. Convert it once"),
        ('{"model_type": "llama"}', "is a model of type 'llama', not of this package"),
    ],
)
def test_a_folder_of_others_is_refused_by_what_to_do(folder, text, message):
    (folder / "config.json").write_text(text)
    assert message in refusal(folder)


def test_an_existing_folder_is_not_overwritten(folder):
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    with pytest.raises(InputError, match="exists already"):
        hub_folder.save_model(folder, {}, config=small.CONFIG, source={}, card="")
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before


def cached(cache, repository, folder):
    """The hub's cache of one downloaded repository, as huggingface_hub lays it out."""
    owner, name = repository.split("/")
    place = cache / f"models--{owner}--{name}"
    snapshot = place / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text("a" * 40)
    for file in folder.iterdir():
        (snapshot / file.name).write_bytes(file.read_bytes())


def test_a_name_of_the_hub_is_found_in_its_cache_without_a_network(whole, tmp_path, monkeypatch):
    constants = pytest.importorskip("huggingface_hub.constants", reason="needs the extra [hub]")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    cached(tmp_path, "owner/model", whole)
    sam, _ = load_model("owner/model")
    assert sam.config == small.stable_nano()[0].config
    with pytest.raises(InputError, match=r"^owner/absent: no such folder, and no such model in the cache"):
        load_model("owner/absent")


def test_without_huggingface_hub_the_message_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(InputError, match=r"^owner/model: no such folder; .* pip install 'stablesam-jax\[hub\]'\.$"):
        load_model("owner/model")


def test_a_file_of_pytorch_is_answered_by_the_converter(tmp_path):
    (tmp_path / "sam_vit_b.pth").write_bytes(b"PK")
    with pytest.raises(InputError, match=r"is a file of PyTorch.* convert --checkpoint"):
        load_model(tmp_path / "sam_vit_b.pth")
