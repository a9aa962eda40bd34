"""The folder of a training run: its configuration, its measurements, its checkpoints."""

import dataclasses
import json
import pathlib
import shutil
import sys
import time
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from stablesam_jax.checkpoint import load_tree, save_tree
from stablesam_jax.errors import InputError
from stablesam_jax.text_file import write_text
from train.presets import TrainConfig
from train.step import Measured, State

KEPT_CHECKPOINTS = 2
# Fields that may change between the parts of a run. They do not decide what it computes, but for the last bits of sums
# over another number of devices; the training pictures that `held_out` leaves are compared by name.
FREE_FIELDS = ("output", "cache", "cache_limit", "workers", "devices", "save_every", "held_out", "eval_prompts")


class Run:
    """A folder that a run is continued from."""

    def __init__(self, config: TrainConfig, facts: Mapping[str, Any]):
        """Opens the folder, or makes it.

        Args:
            config: of the run.
            facts: what else decides its result, as the SHA-256 of the base; what JSON can hold.

        Raises:
            InputError: it holds a run of another configuration, or something else, or cannot be made.
        """
        self.folder = pathlib.Path(config.output)
        self.checkpoints = self.folder / "checkpoints"
        # What decides the result, as JSON holds it. A cache rounds features to float16.
        self.settings = {key: value for key, value in _plain(config).items() if key not in FREE_FIELDS}
        self.settings |= {"cached": config.cache is not None, **facts}
        path = self.folder / "config.json"
        try:
            if path.exists():
                self._compare(path)
            elif self.folder.exists() and any(self.folder.iterdir()):
                raise InputError(f"{self.folder}: is not empty and holds no run; give another --output.")
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            write_text(path, json.dumps(self.settings, indent=2) + "\n")
        except OSError as error:
            raise InputError(f"{self.folder}: cannot be used ({error.strerror}); give another --output.") from None

    def _compare(self, path: pathlib.Path) -> None:
        """Refuses to continue another run; one without a checkpoint is not lost if it begins anew."""
        try:
            before = json.loads(path.read_text())
            if not isinstance(before, dict):
                raise ValueError
        except ValueError:
            raise InputError(f"{path}: damaged, not the settings of a run; give another --output.") from None
        # A setting that the older run lacks was added since, with a default that changes nothing.
        changed = [
            f"{key} {before[key]} -> {self.settings.get(key)}"
            for key in sorted(before)
            if before[key] != self.settings.get(key)
        ]
        if changed and self._steps():
            raise InputError(
                f"{self.folder}: holds a run of another configuration ({'; '.join(changed)}); "
                "give another --output, or the same options to continue it."
            )

    def restore(self, target: State) -> State | None:
        """The newest sound checkpoint, or None; one that is damaged is named and passed over.

        Measurements after it are dropped from metrics.jsonl: those steps are done again.
        """
        state = None
        for folder in reversed(self._steps()):
            try:
                state, _ = load_tree(folder, target)
                break
            except InputError as error:
                unusable = folder.with_suffix(".unusable")  # out of the way of the step that is done again
                shutil.rmtree(unusable, ignore_errors=True)
                folder.rename(unusable)
                print(f"passed over and renamed to {unusable.name}: {error}", file=sys.stderr)
        self._forget_after(0 if state is None else int(state.step))
        return state

    def save(self, state: State) -> None:
        """Writes a checkpoint and drops all but the newest `KEPT_CHECKPOINTS`.

        Raises:
            FloatingPointError: a trained parameter is not finite; nothing is written or dropped.
        """
        if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.trained)):
            raise FloatingPointError(f"a parameter is not finite after step {int(state.step)}")
        save_tree(self.checkpoints / f"{int(state.step):08d}", state, {"step": int(state.step)})
        for old in self._steps()[:-KEPT_CHECKPOINTS]:
            shutil.rmtree(old)

    def log(self, record: dict[str, Any]) -> None:
        """Adds a line to metrics.jsonl."""
        with open(self.folder / "metrics.jsonl", "a") as file:
            file.write(json.dumps(record) + "\n")

    def _steps(self) -> list[pathlib.Path]:
        return sorted(path for path in self.checkpoints.glob("*") if path.name.isdigit())

    def _forget_after(self, step: int) -> None:
        path = self.folder / "metrics.jsonl"
        if path.exists():
            lines = [line for line in path.read_text().splitlines() if line.endswith("}")]  # not one cut short
            write_text(path, "".join(f"{line}\n" for line in lines if json.loads(line)["step"] <= step))


class Progress:
    """A line every few seconds and before every checkpoint: loss, IoU, speed, time left."""

    def __init__(self, run: Run, *, start: int, steps: int, pictures_per_step: int, seconds: float = 10.0):
        """Begins to count at step `start` of `steps`."""
        self.run, self.steps, self.pictures_per_step, self.seconds = run, steps, pictures_per_step, seconds
        self.printed_step = start
        self.printed_at = time.monotonic()
        self.first: tuple[int, float] | None = None  # step and time of the first measurement, after compilation
        self.pending: list[Measured] = []  # of the steps since the last line

    def add(self, step: int, measured: Measured, *, now: bool) -> None:
        """Takes the measurements of a step, still on their way from the device.

        Args:
            step: its number, from 1.
            measured: a copy on every device.
            now: print the line, even if the last one was a moment ago.

        Raises:
            FloatingPointError: a loss since the last line is not finite.
        """
        self.pending.append(measured)
        if self.first is None:
            jax.block_until_ready(measured)
            self.first = step, time.monotonic()
        if not now and time.monotonic() - self.printed_at < self.seconds:
            return
        losses, ious = np.array([(value.loss[0], value.iou[0]) for value in jax.device_get(self.pending)]).T
        if not np.isfinite(losses).all():
            first = int(np.flatnonzero(~np.isfinite(losses))[0])
            raise FloatingPointError(f"the loss is {losses[first]} at step {self.printed_step + 1 + first}")
        loss, iou = float(losses.mean()), float(ious.mean())
        moment = time.monotonic()
        speed = self.pictures_per_step * (step - self.printed_step) / (moment - self.printed_at)
        first_step, first_time = self.first
        left = ""
        if step > first_step:
            left = f"  {clock((self.steps - step) * (moment - first_time) / (step - first_step))} left"
        print(
            f"step {step}/{self.steps}  loss {loss:.4f}  IoU {100 * iou:.1f}  {speed:.1f} pictures/s{left}", flush=True
        )
        self.run.log({"step": step, "loss": loss, "iou": iou, "pictures_per_second": speed})
        self.pending, self.printed_step, self.printed_at = [], step, moment


def _plain(config: TrainConfig) -> dict[str, Any]:
    return json.loads(json.dumps(dataclasses.asdict(config), default=str))


def clock(seconds: float) -> str:
    """Minutes and seconds, as 61:05."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}"
