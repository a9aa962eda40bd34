"""Curves go to TensorBoard and, where a project is named, to Weights & Biases under the same names."""

import sys
import types

import pytest
from matplotlib.figure import Figure

from stablesam_jax.errors import InputError
from train.presets import TrainConfig
from train.run import Run
from train.setup import prepare


class FakeError(Exception):
    """As wandb.Error."""


@pytest.fixture
def fake(monkeypatch):
    """A module wandb that notes what it is given."""
    module = types.ModuleType("wandb")
    module.Error = FakeError
    module.Image = lambda pixels: ("picture", pixels.shape[2])
    module.begun, module.logged, module.finished = [], [], []

    def init(**options):
        module.begun.append(options)
        return types.SimpleNamespace(
            log=lambda values, step: module.logged.append((step, values)),
            finish=lambda: module.finished.append(True),
        )

    module.init = init
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


@pytest.fixture
def config(tmp_path):
    return TrainConfig(output=tmp_path / "run", wandb="masks")


def run_of(config):
    run = Run(config, {"base": "sam_nano"})
    run.join_wandb()
    return run


def test_weights_and_biases_gets_curves_pictures_and_settings(fake, config):
    run = run_of(config)
    run.board(3, {"train/loss": 0.5, "train/iou": 0.25})
    run.board(4, {"held_out/gt-box/miou": 0.75}, Figure())
    run.close()
    assert fake.logged == [
        (3, {"train/loss": 0.5, "train/iou": 0.25}),
        (4, {"held_out/gt-box/miou": 0.75, "held_out/wobble": ("picture", 3)}),
    ]
    assert fake.finished == [True]
    (begun,) = fake.begun
    assert (begun["project"], begun["name"], begun["dir"]) == ("masks", "run", str(config.output))
    assert begun["config"] == run.settings
    assert (run.folder / "tensorboard").is_dir()


def test_a_run_that_is_continued_is_the_same_one_there(fake, config):
    for _ in range(2):
        run_of(config).close()
    first, second = fake.begun
    assert first["id"] == second["id"]
    assert first["resume"] == "allow"


def test_nothing_is_sent_unless_a_project_is_named(fake, tmp_path):
    run = run_of(TrainConfig(output=tmp_path / "run"))
    run.board(1, {"train/loss": 0.5})
    run.close()
    assert not fake.begun


def test_what_hinders_the_run_there_is_one_line(fake, config):
    def init(**_):
        raise FakeError("No API key configured.\nUse wandb login.")

    fake.init = init
    with pytest.raises(InputError, match=r"^--wandb masks: No API key configured; WANDB_MODE=offline needs no"):
        run_of(config)


def test_the_missing_package_is_named_before_anything_is_read(monkeypatch, config):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(InputError, match=r"^--wandb: needs the package wandb, not installed here; pip install wandb"):
        prepare(config)
    assert not config.output.exists()
