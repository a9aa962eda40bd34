"""Training is the same to the bit however often it is interrupted, and what ends it is one line."""

import contextlib
import dataclasses
import io
import json
import os
import re
import shutil
import signal

import numpy as np
import pytest

from stablesam_jax import params
from stablesam_jax.errors import InputError
from stablesam_jax.files import checkpoint
from stablesam_jax.files.plugin_file import load_plugin
from tests.reference import small
from tests.reference.runs import assert_same_plugin, contents, measurements, run_main, train
from train import looks, results
from train import main as train_main
from train.progress import Progress
from train.run import Run
from train.stopping import stop_signals

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


# what is chosen or averaged on the way


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


# faults on the way


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
