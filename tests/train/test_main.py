"""Training from options to results: what a run leaves, and what else it can train."""

import dataclasses
import json

import jax
import numpy as np
import pytest
import safetensors.numpy
from PIL import Image

from stablesam_jax import params
from stablesam_jax.build import load_model
from stablesam_jax.config import PluginConfig
from stablesam_jax.errors import InputError
from stablesam_jax.files import checkpoint
from stablesam_jax.files.plugin_file import load_plugin
from tests.reference import small
from tests.reference.runs import STEPS, assert_same_plugin, contents, measurements, train
from train import main as train_main
from train.presets import HQ_PARTS, NECK_AND_DECODER, PLUGIN_ONLY

POINT_OUTSIDE = "point_embeddings_0"


# a finished run


def test_a_run_leaves_a_plugin_a_table_a_figure_and_its_measurements(unbroken, config):
    folder, printed = unbroken
    files = {name for name in contents(folder) if not name.startswith("checkpoints/")}
    (board,) = {name for name in files if name.startswith("tensorboard/")}
    files.remove(board)
    kept = {"config.json", "pictures.json", "metrics.jsonl"}
    assert files == kept | {"plugin.safetensors", "report.md", "figures/wobble.png"}
    rows = (folder / "report.md").read_text().splitlines()
    assert rows[0] == "# 2 held-out pictures, 2 prompts of each kind"
    assert rows[2] == "|  | gt-box | noisy-box | 1-point | 3-points |"
    assert [row.split(" | ")[0] for row in rows[4:6]] == ["| before", "| after"]
    with Image.open(folder / "figures" / "wobble.png") as figure:
        assert min(figure.size) > 300
    records = measurements(folder)
    assert [record["step"] for record in records] == [1, 2, 3]
    assert "training 81,829 of 7,927,237 parameters on 8 pictures, 3 steps of 2 x 2 prompts, 2 device(s)" in printed
    assert f"features of 6 views are encoded when first needed and kept in {config.cache}: up to " in printed
    assert "features: 0 read, 6 encoded; 0.00 GiB in " in printed
    assert f"written: {folder / 'plugin.safetensors'}" in printed
    system = f"{config.model}+{folder / 'plugin.safetensors'}"
    assert rf"load_model(\"{system}\")" in printed
    assert f"stablesam eval hq --system {config.model} {system} --data-dir DIR --output" in printed


def test_the_plugin_can_be_used_and_the_base_has_not_moved(unbroken, base):
    folder, _ = unbroken
    _, loaded = load_model(f"{base}+{folder / 'plugin.safetensors'}")
    before, after = params.flatten(small.stable_nano()[1]), params.flatten(jax.device_get(loaded))
    assert before.keys() == after.keys()
    changed = {path for path in before if before[path].tobytes() != after[path].tobytes()}
    assert changed == {path for path in before if path.startswith("plugin/")}


def test_the_plugin_names_its_base_its_data_and_its_recipe_but_no_folders(unbroken, config):
    _, plugin_config, metadata = load_plugin(unbroken[0] / "plugin.safetensors")
    assert plugin_config == config.plugin
    assert metadata["base"] == "sam_nano"
    assert metadata["base_sha256"] == params.digest(small.nano()[1])
    assert metadata["data_dir"] == [config.data_dir[0].name]
    assert str(config.output.parent) not in json.dumps(metadata)
    assert (metadata["steps"], metadata["learning_rate"]) == (STEPS, 1e-3)


def test_other_options_pictures_or_another_base_do_not_continue_a_run(unbroken, config, tmp_path):
    before = contents(unbroken[0])
    with pytest.raises(InputError, match=r"another configuration \(seed 0 -> 1\)"):
        train(dataclasses.replace(config, seed=1))
    other = small.save_pairs(tmp_path / "pairs", 4)
    with pytest.raises(InputError, match=r"pictures 10, content \w+ -> 4, content \w+\)"):
        train(dataclasses.replace(config, data_dir=(other,)))
    assert contents(unbroken[0]) == before


def test_a_finished_run_that_is_started_again_keeps_its_files(unbroken, config):
    before = contents(unbroken[0])
    printed = train(config)
    assert contents(unbroken[0]) == before
    assert "kept: " in printed
    assert "| before |" in printed


def test_the_engine_that_is_asked_for_runs_the_steps(config, tmp_path, monkeypatch):
    class Asked(Exception):
        pass

    def run_on_all(*_, **__):
        raise Asked

    monkeypatch.setattr(train_main.parallel.JitEngine, "run_on_all", run_on_all)
    with pytest.raises(Asked):
        train(dataclasses.replace(config, output=tmp_path / "run", cache=None, engine="jit"))


# pre-training


@pytest.mark.slow
def test_pretraining_moves_neck_and_decoder_and_gives_a_base(config, base, tmp_path):
    pretraining = dataclasses.replace(
        config,
        output=tmp_path / "pretraining",
        steps=1,
        objective="pretrain",
        prompts=("jittered-box=1", "points=1", "refine=1"),
        plugin=None,
        trainable=NECK_AND_DECODER,
        store="float16",
        cache=None,
        devices=1,
        held_out=0,
    )
    assert "no picture was held out" in train(pretraining)
    sam, trained = load_model(pretraining.output / "model")
    assert sam.plugin is None
    before, after = params.flatten(small.nano()[1]), params.flatten(jax.device_get(trained))
    rounded = {path: leaf.astype(np.float16).astype(np.float32) for path, leaf in before.items()}
    unchanged = {path for path in before if np.array_equal(rounded[path], after[path])}
    # The positional encoding is a constant, of the three masks only the best one trains, and a token that no prompt has
    # does not: no point here is outside of its object.
    frozen = {path for path in before if path.startswith("image_encoder/backbone/")}
    frozen |= {f"prompt_encoder/{name}" for name in ("pe_layer/positional_encoding_gaussian_matrix", POINT_OUTSIDE)}
    assert frozen <= unchanged
    others = {path.rsplit("/", 2)[0] for path in unchanged - frozen if not path.startswith("prompt_encoder/")}
    assert others < {f"mask_decoder/output_hypernetworks_mlps_{index}" for index in (1, 2, 3)}
    _, metadata = checkpoint.load_tree(pretraining.output / "model")
    assert metadata["source"]["objective"] == "pretrain"
    assert metadata["source"]["base_sha256"] == params.digest(small.nano()[1])


# systems that train more than a plugin


@pytest.fixture(scope="module")
def stable_hq(config):
    """A run of the plugin and HQ-SAM's parts on a plain base, and what it would have been compared with."""
    compared = {}
    run = dataclasses.replace(
        config,
        output=config.output.with_name("stable-hq"),
        steps=1,
        hq=True,
        plugin=PluginConfig(attentions=(0, 2)),
        trainable=PLUGIN_ONLY + HQ_PARTS,
        devices=1,
    )
    with pytest.MonkeyPatch.context() as patch, small.quick_compilation():
        patch.setattr(
            train_main, "report", lambda _, __, compare, after, ___: compared.update(before=compare.before, after=after)
        )
        train(run)
    return run, compared


@pytest.mark.slow
def test_a_plugin_and_hq_parts_that_train_on_a_plain_base_give_one_model(stable_hq, config):
    folder = stable_hq[0].output
    assert not (folder / "plugin.safetensors").exists()
    sam, loaded = load_model(folder / "model")
    assert sam.config.name == "stable_hq_sam_nano"
    assert (sam.config.plugin, sam.config.image_size) == (stable_hq[0].plugin, small.SIZE)
    before, after = params.flatten(small.nano()[1]), params.flatten(jax.device_get(loaded))
    added = after.keys() - before.keys()
    assert {path.split("/")[0] for path in added} == {"plugin", "mask_decoder"}
    assert all(before[path].tobytes() == after[path].tobytes() for path in before)
    _, metadata = checkpoint.load_tree(folder / "model")
    assert metadata["source"]["base"] == "sam_nano"
    assert metadata["source"]["base_sha256"] == params.digest(small.nano()[1])
    assert str(config.output.parent) not in json.dumps(metadata)


@pytest.mark.slow
def test_it_is_compared_with_its_base_not_with_random_numbers(stable_hq):
    before, after = stable_hq[1]["before"], stable_hq[1]["after"]
    assert (before.config.hq, after.config.hq) == (False, True)
    assert params.digest(jax.device_get(before.params)) == params.digest(small.nano()[1])


@pytest.mark.slow
def test_the_cache_of_an_hq_run_holds_early_features_in_entries_of_their_own(stable_hq, unbroken, config):
    kinds = {frozenset(safetensors.numpy.load_file(path)) for path in config.cache.rglob("*.safetensors")}
    assert kinds == {frozenset({"features"}), frozenset({"features", "early"})}


def test_a_base_with_a_plugin_is_refused(unbroken, config, base, tmp_path):
    system = f"{base}+{unbroken[0] / 'plugin.safetensors'}"
    with pytest.raises(InputError, match="has a plugin already; give the base that the plugin was trained on"):
        train(dataclasses.replace(config, model=system, output=tmp_path / "run"))


# ways of training


@pytest.mark.slow
def test_looks_on_the_way_are_said_and_recorded_and_change_nothing(unbroken, config, tmp_path):
    printed = train(dataclasses.replace(config, output=tmp_path / "run", eval_every=2))
    events = [json.loads(line) for line in printed.splitlines()]
    (said,) = [event for event in events if event["event"] == "evaluation"]
    assert said["message"].startswith("step 2, 2 held-out pictures, mIoU: gt-box ")
    records = measurements(tmp_path / "run")
    assert [record["step"] for record in records] == [1, 2, 2, 3]
    assert records[2] == {"step": 2, "held_out": said["held_out"]}
    assert said["held_out"].keys() == {"gt-box", "noisy-box", "1-point", "3-points"}
    assert_same_plugin(tmp_path / "run", unbroken[0])


@pytest.mark.slow
def test_bfloat16_trains_and_the_result_is_a_float32_plugin(config, tmp_path):
    with small.quick_compilation():
        train(dataclasses.replace(config, output=tmp_path / "run", dtype="bfloat16", devices=1, cache=None, steps=2))
    assert all(np.isfinite(record["loss"]) for record in measurements(tmp_path / "run"))
    tensors, *_ = load_plugin(tmp_path / "run" / "plugin.safetensors")
    assert {leaf.dtype for leaf in jax.tree.leaves(tensors)} == {np.dtype(np.float32)}
