"""What is written for the hub is read again: by load_model, and by the classes of transformers."""

import dataclasses
import json
import subprocess
import sys
from importlib.util import find_spec

import numpy as np
import pytest
import torch
import yaml

from convert import sam_to_flax, to_hub
from convert.hub_card import card
from convert.transformers_names import official_names, transformers_names
from eval.parity import torch_sam, twins
from stablesam_jax.build import load_model
from stablesam_jax.config import MODELS
from stablesam_jax.errors import InputError
from stablesam_jax.files.checkpoint import save_model
from stablesam_jax.params import flatten
from tests.convert.test_transformers_names import HQ, SHARED, state
from tests.reference import official, small


def head(folder):
    """The YAML head of a card, and the text below."""
    _, first, text = (folder / "README.md").read_text().split("---\n", 2)
    return yaml.safe_load(first), text


@pytest.fixture
def results(tmp_path):
    kinds = {kind: {"miou": 0.8, "mbiou": 0.7, "msf": 0.9} for kind in ("gt-box", "noisy-box")}
    file = tmp_path / "results.json"
    file.write_text(json.dumps({"systems": {"stable_sam_nano_one_object": {"grabcut": kinds}}}))
    return file


def test_a_shipped_plugin_with_its_base_is_one_folder_with_a_card(tmp_path, results, capsys):
    system = "stable_sam_nano_one_object"
    output = tmp_path / "out"
    arguments = ["--system", system, "--output", str(output), "--license", "apache-2.0", "--results", str(results)]
    to_hub.main(arguments)
    assert f"upload     hf upload OWNER/NAME {output}" in capsys.readouterr().out
    first, text = head(output)
    assert first["license"] == "apache-2.0"
    assert first["library_name"] == "stablesam-jax"
    (entry,) = first["model-index"][0]["results"]
    assert {"type": "miou", "name": "mIoU, noisy-box", "value": 80.0} in entry["metrics"]
    assert "form deform, attentions 0, 2, strength 0.7" in text
    assert "data dir ecssd_a ecssd_b" in text
    assert "| grabcut | 80.0 / 70.0 / 90.0 |" in text
    (sam, params), (again, theirs) = load_model(system), load_model(output)
    assert again.config == sam.config
    for path, leaf in flatten(params).items():
        np.testing.assert_array_equal(flatten(theirs)[path], leaf)


def test_a_card_shows_those_of_its_metrics_that_an_evaluation_has(tmp_path):
    file = tmp_path / "results.json"
    kinds = {"oracle-box": {"miou": 0.8}, "noisy-box": {"miou": None, "other": 3.0}}
    file.write_text(json.dumps({"systems": {"own": {"mess/cwfid": kinds, "General": {"oracle-box": {"miou": 0.5}}}}}))
    text = card("own", small.CONFIG, small.nano()[1], {}, to_hub.read_results(file, "own"), None, "ours")
    assert "| mIoU in % | oracle-box | noisy-box |" in text
    assert "| mess/cwfid | 80.0 | - |" in text
    assert "| General | 50.0 | - |" in text
    values = [one["metrics"] for one in yaml.safe_load(text.split("---\n")[1])["model-index"][0]["results"]]
    assert [[metric["value"] for metric in of] for of in values] == [[80.0], [50.0]]


@pytest.mark.parametrize("of", [{"coco": {"gt-box, iou": {"ap": 0.5}}}, {}, {"a": {}}])
def test_results_without_any_metric_of_the_card_are_refused(tmp_path, of):
    (tmp_path / "results.json").write_text(json.dumps({"systems": {"own": of}}))
    with pytest.raises(InputError, match="has none of mIoU, mBIoU, mSF, which the card shows"):
        to_hub.read_results(tmp_path / "results.json", "own")


def refusal(capsys, *arguments):
    with pytest.raises(SystemExit) as stop:
        to_hub.main(arguments)
    assert stop.value.code == 2
    return capsys.readouterr().err


def test_what_has_no_such_layout_is_refused(tmp_path, results, capsys):
    output = ("--output", str(tmp_path / "out"))
    layout = ("--layout", "transformers")
    assert "no other encoder" in refusal(capsys, "--system", "sam_nano", *output, *layout)
    plugin = "stable_sam_nano_one_object"
    assert "Fold it first" in refusal(capsys, "--system", plugin, *output, *layout)
    asked = refusal(capsys, "--system", "sam_nano", *output, "--results", str(results))
    assert "is no results.json of an evaluation of sam_nano" in asked
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("hq", [False, True])
def test_names_go_there_and_back(hq):
    theirs = state(hq=hq)
    again = transformers_names(official_names(theirs))
    assert again.keys() == theirs.keys()
    assert all(again[name] is array or name.endswith(SHARED.partition(".")[2]) for name, array in theirs.items())


@pytest.mark.parametrize("hq", [pytest.param(False, marks=pytest.mark.slow), True], ids=["SamModel", "SamHQModel"])
def test_the_layout_of_transformers_is_converted_back_to_the_same_model(tmp_path, monkeypatch, hq):
    config = HQ if hq else official.VIT
    monkeypatch.setitem(MODELS, "small_vit", config)
    twin = torch_sam.build(config)
    torch_sam.randomise(twin, seed=0)
    params = twins.convert(twin.state_dict(), config)
    save_model(tmp_path / "ours", params, config=config, source={})
    to_hub.main(["--system", str(tmp_path / "ours"), "--output", str(tmp_path / "hf"), "--layout", "transformers"])
    assert head(tmp_path / "hf")[0]["library_name"] == "transformers"
    sam_to_flax.main(["--checkpoint", str(tmp_path / "hf"), "--output", str(tmp_path / "again")])
    for path, leaf in flatten(load_model(tmp_path / "again")[1]).items():
        np.testing.assert_array_equal(leaf, flatten(params)[path])


THEIRS = """
import sys, numpy as np, torch, transformers
kind, folder, inputs, output = sys.argv[1:]
model, loading = getattr(transformers, kind).from_pretrained(folder, output_loading_info=True)
assert not any(loading[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys")), loading
given = {name: torch.from_numpy(array) for name, array in np.load(inputs).items()}
with torch.no_grad():
    encoded = model.eval().vision_encoder(given["pixel_values"])
    early = getattr(encoded, "intermediate_embeddings", [torch.zeros(())])
    masks = model(**given, multimask_output=False).pred_masks[0, 0, 0]
    np.savez(output, features=encoded.last_hidden_state, early=early[0], masks=masks)
"""


@pytest.mark.slow
@pytest.mark.skipif(find_spec("transformers") is None, reason="needs the library transformers, which no extra brings")
@pytest.mark.parametrize("hq", [False, True], ids=["SamModel", "SamHQModel"])
def test_the_classes_of_transformers_load_it_and_compute_what_the_official_ones_do(tmp_path, hq):
    config = dataclasses.replace(HQ if hq else official.VIT, image_size=224)
    twin = torch_sam.build(config)
    torch_sam.randomise(twin, seed=0)
    save_model(tmp_path / "ours", twins.convert(twin.state_dict(), config), config=config, source={})
    to_hub.main(["--system", str(tmp_path / "ours"), "--output", str(tmp_path / "hf"), "--layout", "transformers"])
    pixels = np.random.default_rng(0).standard_normal((1, 3, 224, 224), np.float32)
    box = np.array([[[30.0, 40, 180, 200]]], np.float32)
    np.savez(tmp_path / "inputs.npz", pixel_values=pixels, input_boxes=box)
    # In a process of its own, since it asks for torchvision, which may be a stand-in here.
    kind = "SamHQModel" if hq else "SamModel"
    paths = [str(tmp_path / name) for name in ("hf", "inputs.npz", "theirs.npz")]
    subprocess.run([sys.executable, "-c", THEIRS, kind, *paths], check=True)
    theirs = np.load(tmp_path / "theirs.npz")

    def check(name, expected):
        np.testing.assert_allclose(theirs[name], expected.numpy(), rtol=0, atol=1e-4 * float(expected.std()))

    with torch.no_grad():
        encoded = twin.image_encoder(torch.from_numpy(pixels))
        if hq:  # its decoder in 5.24 leaves out what the transformer makes of the picture, so that its masks are others
            features, (early, *_) = encoded
            check("early", early)
        else:
            features = encoded
            sparse, dense = twin.prompt_encoder(None, torch.from_numpy(box[0]), None)
            pe = twin.prompt_encoder.get_dense_pe()
            check("masks", twin.mask_decoder(features, pe, sparse, dense, False)[0][0, 0])
        check("features", features)


def test_a_checkpoint_of_any_size_has_a_folder(tmp_path):
    sam, params = small.nano()
    save_model(tmp_path / "ours", params, config=sam.config, source={})
    to_hub.convert(to_hub.Options(system=str(tmp_path / "ours"), output=tmp_path / "hub"))
    assert "license" not in head(tmp_path / "hub")[0]
    assert load_model(tmp_path / "hub")[0].config == sam.config
