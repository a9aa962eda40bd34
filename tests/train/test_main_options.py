"""Options of training: bad ones are one line, pictures are chosen by name, presets have defaults."""

import dataclasses
import pathlib
import subprocess
import sys

import pytest

from stablesam_jax.errors import InputError
from tests.reference import small
from tests.reference.runs import train
from train import main as train_main
from train import pictures, setup
from train.presets import HQ_PARTS, MASK_TOKEN, PRESETS, TrainConfig

# bad input


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"batch_size": 3}, "--batch-size 3 cannot be divided among 2 devices; take 2"),
        ({"batch_size": 0}, "--batch-size 0 cannot be divided among 2 devices"),
        ({"devices": 5}, r"--devices 5: JAX has 2 device\(s\)"),
        ({"prompts": ("scribble=1",)}, "--prompts scribble=1: unknown kind; choose from gt-box, jittered-box"),
        ({"prompts": ("gt-box",)}, "--prompts gt-box: write KIND=WEIGHT"),
        ({"prompts": ("gt-box=-1",)}, "--prompts gt-box=-1: the weight must be a number from 0 up"),
        ({"prompts": ("gt-box=nan",)}, "--prompts gt-box=nan: the weight"),
        ({"prompts": ("gt-box=0",)}, "--prompts: give at least one kind a weight above 0"),
        ({"prompts": ()}, "--prompts: give at least one kind"),
        ({"prompts": ("gt-box=1", "gt-box=3")}, "--prompts gt-box=3: gt-box has a weight already; give each kind once"),
        ({"accumulate": 4}, "--accumulate 4: the run has 3 steps, which would make no update; take 3 or fewer"),
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


# pictures


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


def parsed(monkeypatch, *arguments):
    """The configuration that a command line asks for."""
    seen = []
    monkeypatch.setattr(train_main, "train", lambda config: seen.append(config) or True)
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


def test_a_run_that_a_signal_has_stopped_ends_with_the_status_of_ctrl_c(monkeypatch):
    monkeypatch.setattr(train_main, "train", lambda config: False)
    monkeypatch.setattr(sys, "argv", ["train.main"])
    with pytest.raises(SystemExit) as end:
        train_main.main()
    assert end.value.code == 130


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


def test_an_option_that_is_not_known_is_answered_by_the_help_of_its_preset(monkeypatch, capsys):
    with pytest.raises(SystemExit) as end:
        parsed(monkeypatch, "own-pictures", "--data-dirs", "here")
    assert end.value.code == 2
    error = capsys.readouterr().err
    assert error.count("--help") == 1
    assert " own-pictures --help" in error
    assert "--data-dir " in error
