"""Every step is on record, and what is not finite stops the run with its step."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from train.console import Console
from train.presets import TrainConfig
from train.progress import Progress, clock, peak_memory
from train.run import NotFiniteError, Run
from train.step import Measured


@pytest.fixture
def run(tmp_path):
    with_folder = Run(TrainConfig(output=tmp_path / "run"), {})
    yield with_folder
    with_folder.close()


def measured(loss, iou=0.5):
    return Measured(loss=jnp.float32(loss), iou=jnp.float32(iou))


def recorded(run):
    return [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]


def test_progress_says_means_since_the_last_look_and_records_every_step(run, capsys):
    progress = Progress(run, Console(), jax.device_get, start=0, steps=4, pictures_per_step=8)
    for step, (loss, iou) in enumerate([(1, 0), (3, 0.5), (5, 1), (7, 0.25)], 1):
        progress.add(step, measured(loss, iou), now=step in (2, 4))
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(line["event"], line["step"], line["loss"], line["iou"]) for line in lines] == [
        ("progress", 2, 2, 0.25),
        ("progress", 4, 6, 0.625),
    ]
    assert all(line["pictures_per_second"] > 0 and line["seconds_left"] >= 0 for line in lines)
    assert lines[0]["message"].startswith("step 2/4  loss 2.0000  IoU 25.0  ")
    assert recorded(run) == [
        {"step": 1, "loss": 1, "iou": 0},
        {"step": 2, "loss": 3, "iou": 0.5},
        {"step": 3, "loss": 5, "iou": 1},
        {"step": 4, "loss": 7, "iou": 0.25},
    ]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_loss_that_is_not_finite_stops_with_its_step(run, value):
    progress = Progress(run, Console(), jax.device_get, start=10, steps=20, pictures_per_step=8)
    progress.add(11, measured(1), now=True)
    progress.add(12, measured(1), now=False)
    progress.add(13, measured(value), now=False)
    with pytest.raises(NotFiniteError, match=f"the loss is {value} at step 13") as stop:
        progress.add(14, measured(value), now=True)
    assert stop.value.step == 13
    assert [record["step"] for record in recorded(run)] == [11, 12]


def test_memory_is_told_where_devices_do_not_tell_it():
    held = np.ones(2**26, np.uint8)
    assert peak_memory() > held.nbytes


def test_the_clock_has_minutes_and_seconds():
    assert clock(3665) == "61:05"
