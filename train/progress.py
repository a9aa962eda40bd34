"""Measurements of the steps: a live line or JSON lines, metrics.jsonl, TensorBoard."""

import resource
import time
from typing import Self

import jax
import numpy as np
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as LiveLine

from train.console import Console
from train.run import NotFiniteError, Run
from train.step import Measured

LIVE_SECONDS, LINE_SECONDS = 2.0, 10.0  # between two looks at the device, in a terminal and elsewhere


class Progress:
    """Loss, IoU, speed, time left and memory every few seconds and before every checkpoint; every step is on record."""

    def __init__(self, run: Run, console: Console, *, start: int, steps: int, pictures_per_step: int):
        """Begins to count at step `start` of `steps`."""
        self.run, self.console, self.steps, self.pictures_per_step = run, console, steps, pictures_per_step
        self.seconds = LIVE_SECONDS if console.terminal else LINE_SECONDS
        self.looked_step = start
        self.looked_at = time.monotonic()
        self.first: tuple[int, float] | None = None  # step and time of the first measurement, after compilation
        self.pending: list[Measured] = []  # of the steps since the last look
        self.live = None
        if console.terminal and not console.silent:
            self.live = LiveLine(
                TextColumn("step {task.completed}/{task.total}"),
                BarColumn(bar_width=20),
                TextColumn("{task.fields[text]}"),
                console=console.terminal,
            )
            self.task = self.live.add_task("", total=steps, completed=start, text="compiling")

    def __enter__(self) -> Self:
        if self.live is not None:
            self.live.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self.live is not None:
            self.live.stop()

    def add(self, step: int, measured: Measured, *, now: bool) -> None:
        """Takes the measurements of a step, still on their way from the device.

        Args:
            step: its number, from 1.
            measured: a copy on every device.
            now: look at it, even if the last look was a moment ago.

        Raises:
            NotFiniteError: a loss since the last look is not finite; those before it are on record.
        """
        self.pending.append(measured)
        if self.first is None:
            jax.block_until_ready(measured)
            self.first = step, time.monotonic()
        if now or time.monotonic() - self.looked_at >= self.seconds:
            self.look()

    def look(self) -> None:
        """Puts on record what was measured since the last look, and shows it.

        Raises:
            NotFiniteError: as `add`.
        """
        if not self.pending:
            return
        pairs = [(float(value.loss[0]), float(value.iou[0])) for value in jax.device_get(self.pending)]
        losses, ious = np.array(pairs).T
        finite = int(np.argmin(np.append(np.isfinite(losses), False)))  # steps before the first that is not
        for index, (loss, iou) in enumerate(pairs[:finite], self.looked_step + 1):
            self.run.log({"step": index, "loss": loss, "iou": iou})
        if finite < len(pairs):
            bad = self.looked_step + 1 + finite
            raise NotFiniteError(f"the loss is {losses[finite]} at step {bad}", bad)
        self._say(self.looked_step + len(pairs), loss=float(losses.mean()), iou=float(ious.mean()))

    def _say(self, step: int, *, loss: float, iou: float) -> None:
        moment = time.monotonic()
        speed = self.pictures_per_step * (step - self.looked_step) / (moment - self.looked_at)
        assert self.first is not None
        first_step, first_time = self.first
        left = (self.steps - step) * (moment - first_time) / (step - first_step) if step > first_step else None
        memory = peak_memory()
        text = f"loss {loss:.4f}  IoU {100 * iou:.1f}  {speed:.1f} pictures/s  {memory / 2**30:.1f} GiB"
        if left is not None:
            text += f"  {clock(left)} left"
        if self.live is not None:
            self.live.update(self.task, completed=step, text=text)
        else:
            values = {"step": step, "loss": loss, "iou": iou, "pictures_per_second": speed, "memory_bytes": memory}
            message = f"step {step}/{self.steps}  {text}"
            self.console.say("progress", message, **values, seconds_left=left)
        self.run.board(step, {"train/loss": loss, "train/iou": iou, "train/pictures_per_second": speed})
        self.pending, self.looked_step, self.looked_at = [], step, moment


def peak_memory() -> int:
    """Bytes that were in use at most: of the first device, or of the process where devices do not tell, as on CPUs."""
    statistics = jax.local_devices()[0].memory_stats() or {}
    return statistics.get("peak_bytes_in_use") or 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def clock(seconds: float) -> str:
    """Minutes and seconds, as 61:05."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}"
