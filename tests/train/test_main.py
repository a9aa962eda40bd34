"""Training from options to results: the same to the bit however often it is interrupted, and one line for bad input."""

import contextlib
import dataclasses
import io
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys

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
from train import looks, options, pictures, results, setup
from train import main as train_main
from train.presets import HQ_PARTS, MASK_TOKEN, NECK_AND_DECODER, PLUGIN_ONLY, PRESETS, TrainConfig
from train.progress import Progress
from train.run import Run
from train.stopping import stop_signals

STEPS = 3
POINT_OUTSIDE = "point_embeddings_0"


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return small.save_nano(tmp_path_factory.mktemp("models") / "base")


@pytest.fixture(scope="module")
def config(tmp_path_factory, base):
    folder = tmp_path_factory.mktemp("work")
    return TrainConfig(
        model=str(base),
        image_size=small.SIZE,
        data_dir=(small.save_pairs(folder / "pairs", 10),),
        output=folder / "unbroken",
        steps=STEPS,
        batch_size=2,
        prompts_per_picture=2,
        scale_range=(0.8, 1.2),
        cache=folder / "cache",
        held_out=2,
        eval_prompts=2,
    )


def train(config):
    """What a run prints."""
    with contextlib.redirect_stdout(io.StringIO()) as output:
        train_main.train(config)
    return output.getvalue()


@pytest.fixture(scope="module")
def unbroken(config):
    """The folder of a finished run, and what it printed."""
    printed = train(config)
    return config.output, printed


def assert_same_plugin(first, second):
    """To the bit; the file's header lists its fields in any order."""
    (tensors, *first), (others, *second) = (load_plugin(folder / "plugin.safetensors") for folder in (first, second))
    assert {path: leaf.tobytes() for path, leaf in params.flatten(tensors).items()} == {
        path: leaf.tobytes() for path, leaf in params.flatten(others).items()
    }
    assert first == second


def measurements(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


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
    assert rf"load_model(\"{system}\", image_size={small.SIZE})" in printed
    assert (
        f"stablesam eval hq --system {config.model} {system} --image-size {small.SIZE} --data-dir DIR --output"
        in printed
    )


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


def test_a_finished_run_that_is_started_again_keeps_its_files(unbroken, config):
    before = contents(unbroken[0])
    printed = train(config)
    assert contents(unbroken[0]) == before
    assert "kept: " in printed
    assert "| before |" in printed


# interruptions


@pytest.mark.slow
def test_a_run_that_is_stopped_and_continued_equals_the_unbroken_one_to_the_bit(unbroken, config, monkeypatch):
    output, cache = (config.output.with_name(name) for name in ("interrupted", "another_cache"))
    interrupted = dataclasses.replace(config, output=output, cache=cache, save_every=1)
    add = Progress.add

    def add_and_stop(self, step, measured, *, now):
        add(self, step, measured, now=now)
        if step == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    handler = signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patch:
        patch.setattr(Progress, "add", add_and_stop)
        assert "stopped after step 2; the same command continues" in train(interrupted)
    assert signal.getsignal(signal.SIGTERM) is handler
    assert not (interrupted.output / "plugin.safetensors").exists()
    assert len(list(cache.rglob("*.safetensors"))) >= 4  # of two steps, and what was made ahead of the next one
    shutil.rmtree(cache)  # what is encoded again has the same bits
    assert "continuing after step 2" in train(interrupted)
    for name in ("report.md", "figures/wobble.png"):
        assert (interrupted.output / name).read_bytes() == (unbroken[0] / name).read_bytes()
    assert_same_plugin(interrupted.output, unbroken[0])
    records = measurements(interrupted.output)
    assert records == measurements(unbroken[0])

    # A bit of the newest checkpoint flips, the result is lost: the step is done again, to the same bits.
    damaged = interrupted.output
    (damaged / "plugin.safetensors").unlink()
    newest = damaged / "checkpoints" / "00000003"
    (newest / "metadata.json").write_text((newest / "metadata.json").read_text().replace('"step": 3', '"step": 4'))
    with contextlib.redirect_stderr(io.StringIO()) as errors:
        assert "continuing after step 2" in train(interrupted)
    assert errors.getvalue().startswith("passed over and renamed to 00000003.unusable: ")
    assert_same_plugin(damaged, unbroken[0])


def test_the_engine_that_is_asked_for_runs_the_steps(config, tmp_path, monkeypatch):
    class Asked(Exception):
        pass

    def run_on_all(*_, **__):
        raise Asked

    monkeypatch.setattr(train_main.parallel.JitEngine, "run_on_all", run_on_all)
    with pytest.raises(Asked):
        train(dataclasses.replace(config, output=tmp_path / "run", cache=None, engine="jit"))


def test_a_second_interrupt_ends_the_program():
    with stop_signals() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.requested
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.slow
def test_a_loss_that_is_not_finite_ends_with_one_line_and_keeps_the_checkpoints(config, monkeypatch, capsys):
    batches = train_main.batches

    def spoilt(views, config, feeding, **options):
        for step, batch in enumerate(batches(views, config, feeding, **options), feeding.start_step + 1):
            yield batch | ({"coords": np.full_like(batch["coords"], np.nan)} if step == 2 else {})

    monkeypatch.setattr(train_main, "batches", spoilt)
    diverging = dataclasses.replace(config, output=config.output.with_name("diverging"), save_every=1)
    with pytest.raises(SystemExit) as end:
        run_main(monkeypatch, diverging)
    assert end.value.code == 1
    folder = config.output.with_name("diverging")
    assert capsys.readouterr().err == (
        f"error: the loss is nan at step 2; the checkpoints before it are kept, and {folder / 'not_finite.json'} names "
        "the pictures of that step. Try a lower --learning-rate in another --output.\n"
    )
    named = json.loads((folder / "not_finite.json").read_text())
    assert (named["step"], len(named["pictures"])) == (2, config.batch_size)
    assert all(entry["picture"].startswith("pairs/") for entry in named["pictures"])
    assert [path.name for path in (diverging.output / "checkpoints").iterdir()] == ["00000001"]
    assert not (diverging.output / "plugin.safetensors").exists()


def test_other_options_pictures_or_another_base_do_not_continue_a_run(unbroken, config, tmp_path):
    before = contents(unbroken[0])
    with pytest.raises(InputError, match=r"another configuration \(seed 0 -> 1\)"):
        train(dataclasses.replace(config, seed=1))
    other = small.save_pairs(tmp_path / "pairs", 4)
    with pytest.raises(InputError, match=r"pictures 10, content \w+ -> 4, content \w+\)"):
        train(dataclasses.replace(config, data_dir=(other,)))
    assert contents(unbroken[0]) == before


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


# bad input


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"batch_size": 3}, "--batch-size 3 cannot be divided among 2 devices; take 2"),
        ({"batch_size": 0}, "--batch-size 0 cannot be divided among 2 devices"),
        ({"devices": 5}, r"--devices 5: JAX has 2 device\(s\)"),
        ({"prompts": ("scribble=1",)}, "--prompts scribble=1: unknown kind; known are gt-box, jittered-box, noisy-box"),
        ({"prompts": ("gt-box",)}, "--prompts gt-box: write KIND=WEIGHT"),
        ({"prompts": ("gt-box=-1",)}, "--prompts gt-box=-1: the weight must be a number from 0 up"),
        ({"prompts": ("gt-box=nan",)}, "--prompts gt-box=nan: the weight"),
        ({"prompts": ("gt-box=0",)}, "--prompts: give at least one kind a weight above 0"),
        ({"prompts": ()}, "--prompts: give at least one kind"),
        ({"trainable": ("plugins/.*",)}, r"'plugins/\.\*': matches no parameter; paths begin with image_encoder"),
        (
            {"hq": True, "plugin": None, "trainable": MASK_TOKEN},
            "compress_vit_feat_0/bias has random values and would not",
        ),
        ({"hq": True, "plugin": None, "trainable": HQ_PARTS, "objective": "pretrain"}, "does not reach HQ-SAM's parts"),
        (
            {"plugin": None, "trainable": ("image_encoder/.*",)},
            "image_encoder/backbone would train, but --cache holds features of a frozen encoder",
        ),
        ({"model": "sam_vit_xxl"}, "sam_vit_xxl: neither a shipped model .* nor a checkpoint folder"),
        ({"image_size": 50}, "image size 50: must be a positive multiple of 32"),
        ({"image_size": 0}, "image size 0: must be a positive multiple of 32"),
        ({"steps": 0, "save_every": 0}, r"--steps 0: must be at least 1; --save-every 0: must be at least 1\."),
        ({"cache_limit": 0.0}, "--cache-limit 0.0: must be above 0"),
        ({"cache_limit": 1e-6}, "cache: 9.99e-07 GiB hold too few entries; allow"),
        ({"ema": 1.0}, r"--ema 1\.0: must be between 0 and 1"),
        ({"limit": 0}, "--limit 0: must be at least 1"),
        ({"clicks": 1}, "--clicks 1: are of --objective pretrain alone"),
        ({"clicks": 9, "objective": "pretrain"}, "--clicks 9: must be from 0 to 8"),
        ({"eval_every": -1}, "--eval-every -1: must be at least 0"),
        ({"keep": "best", "held_out": 0}, "--keep best: nothing to choose by; give --eval-every and --held-out above"),
        ({"keep": "best", "eval_every": 0}, "--keep best: nothing to choose by; give --eval-every and --held-out"),
        ({"keep": "best", "patience": 0}, "--patience 0: must be at least 1"),
        ({"patience": 3}, "--patience 3: is for --keep best alone"),
        ({"learning_rate": float("nan")}, "--learning-rate nan: must be above 0"),
        ({"scale_range": (2.0, 1.0)}, "scale range 2.0 to 1.0"),
        ({"views": 0}, "views 0: must be at least 1"),
        ({"seed": -1}, "seed -1: must be at least 0"),
        ({"prompts_per_picture": 0}, "prompts per picture 0: must be at least 1"),
        ({"data_dir": (pathlib.Path("nowhere"),)}, "nowhere: no such folder"),
    ],
)
def test_bad_options_are_one_line_and_nothing_is_written(config, change, words, tmp_path, monkeypatch):
    if not change.keys() & {"model", "image_size"}:  # nothing is read or compiled twenty times
        plain, stable, hq = small.nano(), small.stable_nano(), small.system(hq=True, plugin=None)
        monkeypatch.setattr(setup.build, "load_model", lambda *_, **__: plain)
        monkeypatch.setattr(setup.build, "with_plugin", lambda *_: stable)
        monkeypatch.setattr(setup.build, "with_hq", lambda *_: hq)
    output = tmp_path / "run"
    with pytest.raises(InputError, match=words) as error:
        train(dataclasses.replace(config, output=output, **change))
    assert "\n" not in str(error.value)
    assert not output.exists()


def test_a_base_with_a_plugin_is_refused(unbroken, config, base, tmp_path):
    system = f"{base}+{unbroken[0] / 'plugin.safetensors'}"
    with pytest.raises(InputError, match="has a plugin already; give the base that the plugin was trained on"):
        train(dataclasses.replace(config, model=system, output=tmp_path / "run"))


@pytest.mark.slow
@pytest.mark.parametrize("cached", [True, False])
def test_a_picture_that_breaks_on_the_way_is_named_and_the_run_goes_on_when_it_is_mended(
    config, cached, tmp_path, monkeypatch, capsys
):
    pairs = small.save_pairs(tmp_path / "pairs", 4)
    victim = pairs / "im" / "02.png"
    whole = victim.read_bytes()
    cache = tmp_path / "cache" if cached else None
    broken = dataclasses.replace(
        config, data_dir=(pairs,), output=tmp_path / "run", cache=cache, steps=8, held_out=0, devices=1
    )
    make = train_main.batches

    def spoil_later(views, batch_config, feeding, **options):
        for step, batch in enumerate(make(views, batch_config, feeding, **options), feeding.start_step + 1):
            if step == 3:  # batches are made some steps ahead
                victim.write_bytes(whole[:300])
            yield batch

    with monkeypatch.context() as patch, small.quick_compilation():
        patch.setattr(train_main, "batches", spoil_later)
        with pytest.raises(SystemExit) as end:
            run_main(monkeypatch, dataclasses.replace(broken, steps=200))
    assert end.value.code == 1
    error = capsys.readouterr().err
    assert error.startswith(f"error: {victim}: cannot be read (")
    (kept,) = re.findall(r"The run is kept up to step (\d+); the same command continues\.\n", error)
    assert error.count("\n") == 1
    assert int(kept) >= 2
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == [f"{int(kept):08d}"]
    assert [record["step"] for record in measurements(tmp_path / "run")] == list(range(1, int(kept) + 1))


@pytest.mark.slow
def test_a_full_disk_at_a_checkpoint_ends_with_one_line_and_keeps_the_one_before(config, tmp_path, monkeypatch, capsys):
    output = tmp_path / "run"
    usage = checkpoint.shutil.disk_usage
    full = dataclasses.replace(config, output=output, save_every=1, devices=1)

    def disk_usage(path):
        free = 0 if (output / "checkpoints" / "00000001").exists() else usage(path).free
        return usage(path)._replace(free=free)

    with monkeypatch.context() as patch, small.quick_compilation():
        patch.setattr(checkpoint.shutil, "disk_usage", disk_usage)
        with pytest.raises(SystemExit) as end:
            run_main(monkeypatch, full)
        assert end.value.code == 1
        assert re.fullmatch(
            r"error: .*00000002: cannot be written \(No space left on device\)\. Make room, .* "
            r"The run is kept up to step 1; the same command continues\.\n",
            capsys.readouterr().err,
        )
        assert [path.name for path in (output / "checkpoints").iterdir()] == ["00000001"]
        patch.setattr(checkpoint.shutil, "disk_usage", usage)
        assert "continuing after step 1" in train(full)
    assert (output / "plugin.safetensors").exists()


@pytest.mark.slow
def test_a_disk_that_is_full_at_the_end_ends_with_one_line_and_the_same_command_does_the_rest(
    unbroken, config, tmp_path, monkeypatch, capsys
):
    output = tmp_path / "run"
    shutil.copytree(unbroken[0], output)
    (output / "report.md").unlink()

    def full(_, path):
        raise InputError(f"{path}: cannot be written (No space left on device).")

    with monkeypatch.context() as patch:
        patch.setattr(results, "save_figure", full)
        with pytest.raises(SystemExit) as end:
            run_main(patch, dataclasses.replace(config, output=output))
    assert end.value.code == 1
    assert capsys.readouterr().err == (
        f"error: {output / 'figures' / 'wobble.png'}: cannot be written (No space left on device). "
        "All steps are done and kept; the same command does what is left.\n"
    )
    assert "written: " in train(dataclasses.replace(config, output=output))
    assert (output / "report.md").exists()


@pytest.mark.slow
def test_a_run_that_was_begun_anew_is_continued_without_saying_so_again(config):
    assert train_main.same_command(config) == "the same command"
    fresh = dataclasses.replace(config, fresh=True)
    assert train_main.same_command(fresh) == "the same command without --fresh"


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
def test_the_best_step_is_the_result_and_the_same_after_a_kill(config, tmp_path, monkeypatch):
    choosing = dataclasses.replace(
        config, keep="best", eval_every=1, steps=4, save_every=2, learning_rate=0.05, devices=1
    )
    unbroken, killed = (dataclasses.replace(choosing, output=tmp_path / name) for name in ("unbroken", "killed"))

    class Killed(Exception):
        pass

    log = Run.log

    def log_until_the_kill(self, record):
        if record["step"] == 3 and "held_out" in record:  # its parameters may be kept, its record is not written
            raise Killed
        log(self, record)

    with small.quick_compilation():
        printed = train(unbroken)
        with monkeypatch.context() as patch:
            patch.setattr(Run, "log", log_until_the_kill)
            with pytest.raises(Killed):
                train(killed)
        assert "continuing after step 2" in train(killed)
    evaluated = [record for record in measurements(unbroken.output) if "held_out" in record]
    assert [record["step"] for record in evaluated] == [1, 2, 3, 4]
    scores = [np.mean([row["miou"] for row in record["held_out"].values()]) for record in evaluated]
    best = 1 + int(np.argmax(scores))
    assert f"the result is step {best} of 4, best in mean mIoU of the held-out pictures: " in printed
    assert f"- Step: {best} of 4, with the best mean of mIoU" in (unbroken.output / "report.md").read_text()
    stored, metadata = checkpoint.load_tree(unbroken.output / "best" / f"{best:08d}")
    plugin, _, about = load_plugin(unbroken.output / "plugin.safetensors")
    assert (metadata["step"], about["best_step"], about["last_step"]) == (best, best, 4)
    kept = params.flatten(stored["plugin"])
    assert all(kept[path].tobytes() == leaf.tobytes() for path, leaf in params.flatten(plugin).items())
    assert_same_plugin(unbroken.output, killed.output)
    assert measurements(unbroken.output) == measurements(killed.output)
    assert (unbroken.output / "report.md").read_text() == (killed.output / "report.md").read_text()


@pytest.mark.slow
def test_a_run_without_patience_ends_early_and_has_ended_when_it_is_started_again(config, tmp_path, monkeypatch):
    monkeypatch.setattr(looks, "score_of", lambda _: 0.5)  # no evaluation is better than the first
    impatient = dataclasses.replace(
        config, output=tmp_path / "run", keep="best", patience=1, eval_every=1, steps=9, devices=1
    )
    with small.quick_compilation():
        printed = train(impatient)
        assert "ended after step 2: 1 evaluations were not better than the best" in printed
        assert "the result is step 1 of 2, " in printed
        before = contents(tmp_path / "run")
        assert "kept: " in train(impatient)
    assert contents(tmp_path / "run") == before
    assert [record["step"] for record in measurements(tmp_path / "run")] == [1, 1, 2, 2]


@pytest.mark.slow
def test_the_moving_average_is_the_result_and_is_continued(config, tmp_path, monkeypatch):
    averaging = dataclasses.replace(config, ema=0.99, devices=1, save_every=1)
    with small.quick_compilation():
        train(dataclasses.replace(averaging, output=tmp_path / "once"))
        plain = checkpoint.load_tree(tmp_path / "once" / "checkpoints" / "00000003")[0]
        (tmp_path / "twice").mkdir()
        shutil.copytree(tmp_path / "once" / "checkpoints" / "00000002", tmp_path / "twice" / "checkpoints" / "00000002")
        shutil.copy(tmp_path / "once" / "config.json", tmp_path / "twice" / "config.json")
        assert "continuing after step 2" in train(dataclasses.replace(averaging, output=tmp_path / "twice"))
    plugin = params.flatten(load_plugin(tmp_path / "once" / "plugin.safetensors")[0])
    averaged = params.flatten(plain["averaged"]["plugin"])
    last = params.flatten(plain["trained"]["plugin"])
    assert all(plugin[path].tobytes() == averaged[path].tobytes() for path in plugin)
    assert any((averaged[path] != last[path]).any() for path in plugin)
    assert_same_plugin(tmp_path / "once", tmp_path / "twice")


@pytest.mark.slow
def test_bfloat16_trains_and_the_result_is_a_float32_plugin(config, tmp_path):
    with small.quick_compilation():
        train(dataclasses.replace(config, output=tmp_path / "run", dtype="bfloat16", devices=1, cache=None, steps=2))
    assert all(np.isfinite(record["loss"]) for record in measurements(tmp_path / "run"))
    tensors, *_ = load_plugin(tmp_path / "run" / "plugin.safetensors")
    assert {leaf.dtype for leaf in jax.tree.leaves(tensors)} == {np.dtype(np.float32)}


def test_a_limit_takes_fewer_pictures_and_the_same_for_every_seed(config):
    few = dataclasses.replace(config, limit=3)
    training, held_out = pictures.split(few)
    every, same = pictures.split(config)
    assert len(training) == 3
    assert set(training.names) < set(every.names)
    assert held_out.names == same.names
    assert pictures.split(dataclasses.replace(few, seed=9))[0].names == training.names
    assert len(pictures.split(dataclasses.replace(few, data_dir=()))[0]) == 3


def test_pictures_are_held_out_by_name_and_never_more_than_a_fifth(config):
    def names(**change):
        training, held_out = pictures.split(dataclasses.replace(config, **change))
        assert not set(training.names) & set(held_out.names)
        return training.names, held_out.names

    training, held_out = names()
    assert (len(training), len(held_out)) == (8, 2)
    assert names(seed=5) == (training, held_out)
    assert len(names(held_out=100)[1]) == 2
    assert len(names(held_out=0)[0]) == 10
    assert [len(part) for part in names(data_dir=(), held_out=3)] == [pictures.EMBEDDED_SCENES, 3]
    assert len(names(data_dir=(), held_out=0)[1]) == 0


def test_the_name_of_a_picture_does_not_depend_on_how_its_folder_is_spelled(config, monkeypatch):
    monkeypatch.chdir(config.data_dir[0])
    here = pictures.split(dataclasses.replace(config, data_dir=(pathlib.Path("."),)))
    assert here[0].names == pictures.split(config)[0].names


# the command line


def run_main(monkeypatch, config):
    """The program with this configuration, as if its options had been typed."""
    with monkeypatch.context() as patch:
        patch.setattr(sys, "argv", ["train.main"])
        patch.setattr(options.tyro.extras, "overridable_config_cli", lambda *_, **__: config)
        train_main.main()


def parsed(monkeypatch, *arguments):
    """The configuration that a command line asks for."""
    seen = []
    monkeypatch.setattr(train_main, "train", seen.append)
    monkeypatch.setattr(sys, "argv", ["train.main", *arguments])
    train_main.main()
    return seen[0]


def test_without_a_preset_it_is_quickstart(monkeypatch):
    quickstart = PRESETS["quickstart"][1]
    assert parsed(monkeypatch) == quickstart
    assert parsed(monkeypatch, "--seed", "3") == dataclasses.replace(quickstart, seed=3)
    stable = PRESETS["stable-sam"][1]
    changed = parsed(monkeypatch, "stable-sam", "--data-dir", "a", "b", "--prompts", "points=2", "--cache", "None")
    data = (pathlib.Path("a"), pathlib.Path("b"))
    assert changed == dataclasses.replace(stable, data_dir=data, prompts=("points=2",), cache=None)


def test_help_mentions_every_preset_and_every_option(monkeypatch, capsys):
    with pytest.raises(SystemExit) as end:
        parsed(monkeypatch, "--help")
    assert end.value.code in (0, None)
    text = capsys.readouterr().out
    for preset in PRESETS:
        assert f"  {preset} " in text
    for field in dataclasses.fields(TrainConfig):
        assert f"--{field.name.replace('_', '-')}" in text


def test_bad_input_ends_the_program_with_one_line_and_status_2(tmp_path):
    command = [sys.executable, "-m", "train.main", "--model", "nonsense", "--output", str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: nonsense: neither a shipped model")
    assert done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_an_unknown_option_ends_with_status_2(monkeypatch, capsys):
    with pytest.raises(SystemExit) as end:
        parsed(monkeypatch, "--nonsense", "3")
    assert end.value.code == 2
    assert "--nonsense" in capsys.readouterr().err
