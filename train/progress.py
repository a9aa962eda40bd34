"""Progress of a run: a live line or JSON lines, metrics.jsonl, TensorBoard."""

import resource
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import jax
import numpy as np
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as LiveLine

from train.console import Console
from train.run import NotFiniteError, Run
from train.step import Measured

LIVE_SECONDS, LINE_SECONDS = 2.0, 10.0  # between two reports, in a terminal and elsewhere


class Progress:
    """Reports loss, IoU, speed, time left and memory every few seconds and before every checkpoint; logs every step."""

    def __init__(
        self,
        run: Run,
        console: Console,
        fetch: Callable[[Any], Any],
        *,
        start: int,
        steps: int,
        pictures_per_step: int,
        learning_rate: Callable[[int], float] | None = None,
    ):
        """Starts at step `start` of `steps`.

        Args:
            run, console: get the reports.
            fetch: copies what a step returned to numpy.
            start, steps: of the run.
            pictures_per_step: over all devices.
            learning_rate: number of steps before a step -> its learning rate.
        """
        self.learning_rate = learning_rate
        self.run, self.console, self.fetch = run, console, fetch
        self.steps, self.pictures_per_step = steps, pictures_per_step
        self.seconds = LIVE_SECONDS if console.terminal else LINE_SECONDS
        self.looked_step = start
        self.looked_at = time.monotonic()
        self.first: tuple[int, float] | None = None  # step and time of the first measurement, after compilation
        self.pending: list[Measured] = []  # of the steps since the last report; fetching each would block dispatch
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
        """Adds the measurements of a step, which the device may still be computing.

        Args:
            step: number of the step, from 1.
            measured: as the engine returned it.
            now: report now, even if the last report was a moment ago.

        Raises:
            NotFiniteError: a loss since the last report is not finite; those before it are logged.
        """
        self.pending.append(measured)
        if self.first is None:
            jax.block_until_ready(measured)  # compilation must not count as time of a step
            self.first = step, time.monotonic()
        if now or time.monotonic() - self.looked_at >= self.seconds:
            self.look()

    def look(self) -> None:
        """Logs the measurements since the last report, and reports their means.

        Raises:
            NotFiniteError: as `add`.
        """
        if not self.pending:
            return
        fetched = self.fetch(self.pending)
        pairs = [(float(value.loss), float(value.iou)) for value in fetched]
        losses, ious = np.array(pairs).T
        finite = int(np.argmin(np.append(np.isfinite(losses), False)))  # number of steps before the first non-finite
        more = self._more(fetched)
        for index, (loss, iou) in enumerate(pairs[:finite], self.looked_step + 1):
            of_step = {name: values[index - self.looked_step - 1] for name, values in more.items()}
            self.run.log({"step": index, "loss": loss, "iou": iou, **of_step})
        if finite < len(pairs):
            bad = self.looked_step + 1 + finite
            raise NotFiniteError(f"the loss is {losses[finite]} at step {bad}", bad)
        curves = {f"train/{name}": float(np.mean(values)) for name, values in more.items()}
        self._say(self.looked_step + len(pairs), curves, loss=float(losses.mean()), iou=float(ious.mean()))

    def _more(self, fetched: Sequence[Measured]) -> dict[str, list[float]]:
        """What else is measured in each of these steps, by name."""
        more = {
            name: [float(getattr(value, name)) for value in fetched]
            for name in ("gradient_norm", "alpha", "offset")
            if fetched and getattr(fetched[0], name) is not None
        }
        if self.learning_rate is not None:
            more["learning_rate"] = [self.learning_rate(self.looked_step + number) for number in range(len(fetched))]
        return more

    def _say(self, step: int, curves: Mapping[str, float], *, loss: float, iou: float) -> None:
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
        self.run.board(step, {"train/loss": loss, "train/iou": iou, "train/pictures_per_second": speed, **curves})
        self.pending, self.looked_step, self.looked_at = [], step, moment


def peak_memory() -> int:
    """Peak memory in bytes: of the first device, or of the process where devices have no statistics, as on a CPU."""
    statistics = jax.local_devices()[0].memory_stats() or {}
    return statistics.get("peak_bytes_in_use") or 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def clock(seconds: float) -> str:
    """Formats minutes and seconds, as 61:05."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}"
