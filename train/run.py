"""The folder of a training run: its configuration, its measurements, its checkpoints."""

import dataclasses
import json
import os
import pathlib
import shutil
import sys
import time
from typing import Any

import jax

from stablesam_jax.checkpoint import load_tree, save_tree
from stablesam_jax.errors import InputError
from train.presets import TrainConfig
from train.step import State

KEPT_CHECKPOINTS = 2
# Fields that may change between the parts of a run without changing what it computes.
FREE_FIELDS = ("output", "cache", "devices", "save_every", "held_out", "eval_prompts")


class Run:
    """A folder that a run is continued from."""

    def __init__(self, config: TrainConfig):
        """Opens the folder, or makes it.

        Raises:
            InputError: it holds a run of another configuration, or something else.
        """
        self.folder = pathlib.Path(config.output)
        settings = {key: value for key, value in _plain(config).items() if key not in FREE_FIELDS}
        self.settings = settings  # what decides the result, as JSON holds it
        path = self.folder / "config.json"
        if path.exists():
            before = json.loads(path.read_text())
            changed = [
                f"{key} {before.get(key)} -> {settings.get(key)}"
                for key in sorted(before.keys() | settings.keys())
                if before.get(key) != settings.get(key)
            ]
            if changed:
                raise InputError(
                    f"{self.folder}: holds a run of another configuration ({'; '.join(changed)}); "
                    "give another --output, or the same options to continue it."
                )
        elif self.folder.exists() and any(self.folder.iterdir()):
            raise InputError(f"{self.folder}: is not empty and holds no run; give another --output.")
        self.checkpoints = self.folder / "checkpoints"
        self.checkpoints.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(settings, indent=2) + "\n")

    def restore(self, target: State) -> State | None:
        """The newest sound checkpoint, or None; one that is damaged is named and passed over."""
        for folder in reversed(self._steps()):
            try:
                state, _ = load_tree(folder, target)
                return state
            except InputError as error:
                print(f"passed over: {error}", file=sys.stderr)
        return None

    def save(self, state: State) -> None:
        """Writes a checkpoint and drops all but the newest `KEPT_CHECKPOINTS`."""
        folder = self.checkpoints / f"{int(state.step):08d}"
        if folder.exists():
            return
        save_tree(folder, state, {"step": int(state.step)})
        for old in self._steps()[:-KEPT_CHECKPOINTS]:
            shutil.rmtree(old)

    def log(self, record: dict[str, Any]) -> None:
        """Adds a line to metrics.jsonl."""
        with open(self.folder / "metrics.jsonl", "a") as file:
            file.write(json.dumps(record) + "\n")

    def _steps(self) -> list[pathlib.Path]:
        return sorted(path for path in self.checkpoints.iterdir() if path.name.isdigit())


class Progress:
    """A line on standard output at most every few seconds: loss, IoU, speed, time left."""

    def __init__(self, run: Run, *, start: int, steps: int, pictures_per_step: int, seconds: float = 10.0):
        """Begins to count at step `start` of `steps`."""
        self.run, self.steps, self.pictures_per_step, self.seconds = run, steps, pictures_per_step, seconds
        self.printed_step = start
        self.printed_at = time.monotonic()
        self.first: tuple[int, float] | None = None  # step and time of the first measurement, after compilation
        self.pending: list[Any] = []

    def add(self, step: int, measured: Any) -> None:
        """Takes the measurements of a step, still on their way from the device.

        Raises:
            FloatingPointError: a loss since the last line is not finite.
        """
        self.pending.append(measured)
        if self.first is None:
            jax.block_until_ready(measured)
            self.first = step, time.monotonic()
        if time.monotonic() - self.printed_at < self.seconds and step < self.steps:
            return
        values = jax.device_get(self.pending)
        loss = sum(float(value.loss[0]) for value in values) / len(values)
        iou = sum(float(value.iou[0]) for value in values) / len(values)
        if not abs(loss) < float("inf"):
            raise FloatingPointError(f"the loss is {loss} between steps {self.printed_step + 1} and {step}")
        now = time.monotonic()
        speed = self.pictures_per_step * (step - self.printed_step) / (now - self.printed_at)
        first_step, first_time = self.first
        left = ""
        if step > first_step:
            left = f"  {_clock((self.steps - step) * (now - first_time) / (step - first_step))} left"
        print(
            f"step {step}/{self.steps}  loss {loss:.4f}  IoU {100 * iou:.1f}  {speed:.1f} pictures/s{left}", flush=True
        )
        self.run.log({"step": step, "loss": loss, "iou": iou, "pictures_per_second": speed})
        self.pending, self.printed_step, self.printed_at = [], step, now


def write_text(path: pathlib.Path, text: str) -> None:
    """Replaces a text file as a whole."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text)
    os.replace(temporary, path)


def _plain(config: TrainConfig) -> dict[str, Any]:
    return json.loads(json.dumps(dataclasses.asdict(config), default=str))


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}"
