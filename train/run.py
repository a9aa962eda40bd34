"""The folder of a training run: its configuration, its measurements, its checkpoints."""

import dataclasses
import hashlib
import json
import pathlib
import shutil
import sys
import uuid
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from matplotlib.figure import Figure
from tensorboardX import SummaryWriter

from stablesam_jax.errors import InputError
from stablesam_jax.files.checkpoint import load_tree, save_tree
from stablesam_jax.files.disk import write_text
from stablesam_jax.visualize import pixels
from train.presets import TrainConfig
from train.step import State

KEPT_CHECKPOINTS = 2
# Fields that may change between the parts of a run. They do not decide what it computes, but for the last bits of sums
# over another number of devices; the training pictures that `held_out` leaves are compared by name.
FREE_FIELDS = (
    "output", "fresh", "cache", "cache_limit", "workers", "devices", "coordinator", "hosts", "host", "save_every",
    "held_out", "eval_prompts", "eval_every",
)  # fmt: skip


class NotFiniteError(FloatingPointError):
    """A loss or a parameter is no finite number."""

    def __init__(self, message: str, step: int):
        """Of a step, whose batch is to be looked at."""
        super().__init__(message)
        self.step = step


class Run:
    """A folder that a run is continued from. Of several hosts the first one has it; the others read and write none."""

    def __init__(self, config: TrainConfig, facts: Mapping[str, Any], *, first_host: bool = True):
        """Opens the folder, or makes it.

        Args:
            config: of the run.
            facts: what else decides its result, as the SHA-256 of the base; what JSON can hold.
            first_host: whether this process keeps the folder.

        Raises:
            InputError: it holds a run of another configuration, or something else, or cannot be made.
        """
        self.folder = pathlib.Path(config.output)
        self.checkpoints = self.folder / "checkpoints"
        # What decides the result, as JSON holds it. A cache rounds features to float16.
        self.settings = {key: value for key, value in _plain(config).items() if key not in FREE_FIELDS}
        self.settings |= {"cached": config.cache is not None, **facts}
        self.first_host = first_host
        self._board: SummaryWriter | None = None
        if not first_host:
            return
        path = self.folder / "config.json"
        try:
            if config.fresh and path.exists():
                old = self.folder.with_name(f".{self.folder.name}.{uuid.uuid4().hex}.old")
                self.folder.rename(old)  # at once, so that no half of it is ever taken for a run
                shutil.rmtree(old)
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
        changed = list(changes(before, self.settings))
        if changed and self._steps():
            raise InputError(
                f"{self.folder}: holds a run of another configuration ({'; '.join(changed)}); "
                "give another --output, the same options to continue it, or --fresh to start over."
            )

    @property
    def digest(self) -> bytes:
        """Of all that decides the result."""
        return hashlib.sha256(json.dumps(self.settings, sort_keys=True).encode()).digest()

    def restore(self, target: State) -> State | None:
        """The newest sound checkpoint, or None; one that is damaged is named and passed over.

        Measurements after it are dropped from metrics.jsonl: those steps are done again.
        """
        state = None
        if not self.first_host:
            return None
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
            NotFiniteError: a trained parameter is not finite; nothing is written or dropped.
            InputError: the disk is full; the checkpoints before are as they were.
        """
        if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.trained)):
            raise NotFiniteError(f"a parameter is not finite after step {int(state.step)}", int(state.step))
        if not self.first_host:
            return
        save_tree(self.checkpoints / f"{int(state.step):08d}", state, {"step": int(state.step)})
        for old in self._steps()[:-KEPT_CHECKPOINTS]:
            shutil.rmtree(old)

    def log(self, record: dict[str, Any]) -> None:
        """Adds a line to metrics.jsonl."""
        if not self.first_host:
            return
        with open(self.folder / "metrics.jsonl", "a") as file:
            file.write(json.dumps(record) + "\n")

    def board(self, step: int, scalars: Mapping[str, float], figure: Figure | None = None) -> None:
        """Adds what TensorBoard shows at a step: curves by name, and a picture."""
        if not self.first_host:
            return
        if self._board is None:
            # What a killed run has written from this step on, it has not done.
            self._board = SummaryWriter(str(self.folder / "tensorboard"), purge_step=step)
        for name, value in scalars.items():
            self._board.add_scalar(name, value, step)
        if figure is not None:
            self._board.add_image("held_out/wobble", pixels(figure), step, dataformats="HWC")
        self._board.flush()

    def close(self) -> None:
        """Ends what is open."""
        if self._board is not None:
            self._board.close()
            self._board = None

    def _steps(self) -> list[pathlib.Path]:
        return sorted(path for path in self.checkpoints.glob("*") if path.name.isdigit())

    def _forget_after(self, step: int) -> None:
        path = self.folder / "metrics.jsonl"
        if path.exists():
            lines = [line for line in path.read_text().splitlines() if line.endswith("}")]  # not one cut short
            write_text(path, "".join(f"{line}\n" for line in lines if json.loads(line)["step"] <= step))


def _plain(config: TrainConfig) -> dict[str, Any]:
    return json.loads(json.dumps(dataclasses.asdict(config), default=str))


_DEFAULTS = _plain(TrainConfig())


def changes(
    before: Mapping[str, Any], now: Mapping[str, Any], defaults: Mapping[str, Any] = _DEFAULTS, within: str = ""
) -> Iterator[str]:
    """What differs between the settings of two runs, as JSON holds them.

    A setting that the older run lacks was added since, with a default under which all is as it was.
    """
    for key in sorted(before.keys() | now.keys()):
        new = now.get(key)
        old = before.get(key, defaults.get(key, new))
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            yield from changes(old, new, defaults.get(key) or {}, f"{within}{key}.")
        elif old != new:
            yield f"{within}{key} {old} -> {new}"
