"""The folder of a run is continued, never mixed up, and never left with a state that cannot be used."""

import dataclasses
import json
import pathlib

import numpy as np
import pytest
from matplotlib.figure import Figure
from tensorboardX.proto import event_pb2

from stablesam_jax.config import PluginConfig
from stablesam_jax.errors import InputError
from train.presets import TrainConfig
from train.run import KEPT_CHECKPOINTS, NotFiniteError, Run
from train.step import State

FACTS = {"base_sha256": "abc", "pictures": "5, names 0123"}


def state(step, value=0.0):
    return State(
        step=np.int32(step),
        trained={"plugin": {"scale": np.full(3, value, np.float32)}},
        optimizer=(np.full(3, -value, np.float32),),
    )


@pytest.fixture
def config(tmp_path):
    return TrainConfig(output=tmp_path / "run")


@pytest.fixture
def run(config):
    """A run with two checkpoints."""
    run = Run(config, FACTS)
    for step in (1, 2):
        run.save(state(step, value=step))
    return run


def steps(run):
    return [path.name for path in sorted(run.checkpoints.iterdir())]


def spoil(folder):
    victim = max(
        (path for path in (folder / "tree").rglob("*") if path.is_file()), key=lambda path: path.stat().st_size
    )
    data = bytearray(victim.read_bytes())
    data[len(data) // 2] ^= 1
    victim.write_bytes(data)


# which run


def test_the_same_options_continue_a_run(run, config):
    restored = Run(config, FACTS).restore(state(0))
    assert int(restored.step) == 2
    assert restored.trained["plugin"]["scale"].tolist() == [2, 2, 2]
    assert restored.optimizer[0].tolist() == [-2, -2, -2]


@pytest.mark.parametrize(
    "change",
    [
        {"devices": 1},
        {"engine": "jit"},
        {"remat": True},
        {"save_every": 7},
        {"skip_bad": True},
        {"data_dir": (pathlib.Path("elsewhere"),)},
        {"model": "./sam_nano"},
        {"eval_prompts": 2},
        {"output": "elsewhere"},
    ],
)
def test_what_does_not_decide_the_result_may_change(run, config, change, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Run(dataclasses.replace(config, **change), FACTS)


@pytest.mark.parametrize(
    ("changes", "facts", "words"),
    [
        ({"learning_rate": 0.5}, {}, "learning_rate 0.001 -> 0.5"),
        ({"seed": 3, "steps": 9}, {}, "seed 0 -> 3; steps None -> 9"),
        ({"held_out": 3}, {}, "held_out 20 -> 3"),
        ({"cache": pathlib.Path("somewhere")}, {}, "cached False -> True"),
        ({"plugin": None}, {}, "plugin {.*} -> None"),
        ({"plugin": PluginConfig(groups=4)}, {}, "plugin.groups 1 -> 4"),
        ({}, {"base_sha256": "xyz"}, "base_sha256 abc -> xyz"),
        ({}, {"pictures": "6, names 4567"}, "pictures 5, names 0123 -> 6, names 4567"),
    ],
)
def test_a_run_of_another_configuration_is_refused_with_the_difference(run, config, changes, facts, words):
    before = (run.folder / "config.json").read_bytes()
    with pytest.raises(InputError, match=f"another configuration \\({words}\\); give another --output"):
        Run(dataclasses.replace(config, **changes), FACTS | facts)
    assert (run.folder / "config.json").read_bytes() == before


def test_a_run_that_has_no_checkpoint_yet_may_begin_anew(config):
    Run(config, FACTS)
    Run(dataclasses.replace(config, seed=1), FACTS)
    assert json.loads((config.output / "config.json").read_text())["seed"] == 1


@pytest.mark.parametrize("result", ["plugin.safetensors", "model"])
def test_but_not_over_the_result_of_another_configuration_whose_checkpoints_were_removed(config, result):
    Run(config, FACTS)
    (config.output / result).mkdir()
    with pytest.raises(InputError, match=r"another configuration \(seed 0 -> 1\)"):
        Run(dataclasses.replace(config, seed=1), FACTS)
    Run(config, FACTS)


def test_a_setting_that_an_older_run_did_not_know_does_not_stop_it(run, config):
    path = run.folder / "config.json"
    settings = json.loads(path.read_text())
    del settings["schedule"], settings["base_sha256"], settings["plugin"]["strength"]
    path.write_text(json.dumps(settings))
    assert int(Run(config, FACTS).restore(state(0)).step) == 2


def test_a_setting_that_an_older_run_did_not_know_and_that_changes_something_does(run, config):
    path = run.folder / "config.json"
    settings = json.loads(path.read_text())
    del settings["ema"], settings["plugin"]["strength"]
    path.write_text(json.dumps(settings))
    now = dataclasses.replace(config, ema=0.9, plugin=PluginConfig(strength=0.5))
    with pytest.raises(InputError, match=r"\(ema None -> 0\.9; plugin\.strength 1\.0 -> 0\.5\)"):
        Run(now, FACTS)


def test_what_a_start_on_a_full_disk_leaves_does_not_stop_the_next(config):
    (config.output / "checkpoints").mkdir(parents=True)
    (config.output / ".config.json.0123.tmp").write_text("{")
    Run(config, FACTS)
    assert (config.output / "config.json").exists()


def test_a_folder_of_something_else_is_left_alone(config):
    config.output.mkdir()
    Run(config, FACTS)  # an empty one is taken
    foreign = config.output.with_name("foreign")
    foreign.mkdir()
    (foreign / "thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match=r"foreign: is not empty and holds no run; give another --output\.$"):
        Run(dataclasses.replace(config, output=foreign), FACTS)
    assert [path.name for path in foreign.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("inside", [".", "below"])
def test_a_file_in_the_place_of_the_folder_is_one_line(config, inside):
    config.output.write_text("")
    with pytest.raises(InputError, match=r"cannot be used \(Not a directory\); give another --output\.$"):
        Run(dataclasses.replace(config, output=config.output / inside), FACTS)
    assert config.output.read_text() == ""


@pytest.mark.parametrize("text", ["{", "[]", ""])
def test_damaged_settings_are_one_line(run, config, text):
    (run.folder / "config.json").write_text(text)
    with pytest.raises(InputError, match=r"config\.json: damaged, not the settings of a run"):
        Run(config, FACTS)


# checkpoints


def test_the_newest_checkpoints_are_kept(run):
    run.save(state(3))
    assert KEPT_CHECKPOINTS == 2
    assert steps(run) == ["00000002", "00000003"]


def test_a_damaged_checkpoint_is_passed_over_with_a_line_and_its_step_can_be_saved_again(run, config, capsys):
    spoil(run.checkpoints / "00000002")
    assert int(run.restore(state(0)).step) == 1
    line = capsys.readouterr().err
    assert line.startswith("passed over and renamed to 00000002.unusable: ")
    assert "00000002: damaged, tree/" in line
    assert line.count("\n") == 1
    run.save(state(2, value=2))
    assert int(Run(config, FACTS).restore(state(0)).step) == 2
    assert capsys.readouterr().err == ""


def test_where_no_checkpoint_is_sound_the_run_begins_anew(run, capsys):
    for name in ("00000001", "00000002"):
        spoil(run.checkpoints / name)
    assert run.restore(state(0)) is None
    assert capsys.readouterr().err.count("passed over") == 2


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_state_that_is_not_finite_is_neither_saved_nor_does_it_drop_another(run, value):
    with pytest.raises(NotFiniteError, match="a parameter is not finite after step 3"):
        run.save(state(3, value=value))
    assert steps(run) == ["00000001", "00000002"]


@pytest.mark.parametrize("torn", ['{"step": 4, "lo', '{"step": 4, "held_out": {"gt-box": {"miou": 0.5}'])
def test_measurements_after_the_checkpoint_are_forgotten_for_their_steps_are_done_again(run, torn):
    for step in (1, 2, 3):
        run.log({"step": step, "loss": 0.5})
    with open(run.folder / "metrics.jsonl", "a") as file:
        file.write(torn)  # the program was killed here, or the disk was full
    run.restore(state(0))
    run.log({"step": 3, "loss": 0.25})
    records = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    assert [(record["step"], record["loss"]) for record in records] == [(1, 0.5), (2, 0.5), (3, 0.25)]


def test_fresh_removes_whatever_run_is_there_and_nothing_else(run, config):
    run.log({"step": 1, "loss": 0.5})
    neighbour = run.folder.with_name("neighbour")
    neighbour.mkdir()
    again = Run(dataclasses.replace(config, seed=7, fresh=True), FACTS)
    assert again.restore(state(0)) is None
    assert sorted(path.name for path in run.folder.iterdir()) == ["checkpoints", "config.json"]
    assert sorted(path.name for path in run.folder.parent.iterdir()) == ["neighbour", "run"]
    (neighbour / "thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match="is not empty and holds no run"):
        Run(dataclasses.replace(config, output=neighbour, fresh=True), FACTS)
    assert (neighbour / "thesis.tex").exists()


def test_fresh_keeps_a_link_to_the_folder_of_the_run(run, config, tmp_path):
    link = tmp_path / "link"
    link.symlink_to(run.folder)
    again = Run(dataclasses.replace(config, output=link, fresh=True), FACTS)
    assert again.restore(state(0)) is None
    assert link.is_symlink()
    assert sorted(path.name for path in run.folder.iterdir()) == ["checkpoints", "config.json"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "run"]


def test_fresh_does_not_remove_the_working_folder(run, config, monkeypatch):
    monkeypatch.chdir(run.checkpoints)
    with pytest.raises(InputError, match=r"--fresh would remove .*, the working folder; start the command"):
        Run(dataclasses.replace(config, output=pathlib.Path(".."), fresh=True), FACTS)
    assert steps(run) == ["00000001", "00000002"]


def test_another_host_than_the_first_touches_no_file(config):
    other = Run(config, FACTS, first_host=False)
    other.log({"step": 1})
    other.board(1, {"loss": 0.5})
    other.save(state(1))
    other.close()
    assert other.restore(state(0)) is None
    assert not config.output.exists()
    assert other.digest == Run(config, FACTS).digest != Run(config, {}, first_host=False).digest


def test_tensorboard_gets_curves_and_pictures(run):
    figure = Figure()
    figure.subplots().plot([0, 1])
    run.board(3, {"train/loss": 0.5})
    run.board(4, {"train/loss": 0.25}, figure)
    run.close()
    (file,) = (run.folder / "tensorboard").iterdir()
    events = [event_pb2.Event.FromString(record) for record in records(file.read_bytes())]
    values = [(event.step, value.tag, value.simple_value) for event in events for value in event.summary.value]
    assert values[:2] == [(3, "train/loss", 0.5), (4, "train/loss", 0.25)]
    assert values[2][:2] == (4, "held_out/wobble")


def records(data):
    """Payloads of a TFRecord file: length, its checksum, payload, its checksum."""
    while data:
        size = int.from_bytes(data[:8], "little")
        yield data[12 : 12 + size]
        data = data[16 + size :]
