"""The folder of a training run: its configuration, its measurements, its checkpoints."""

import contextlib
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

from stablesam_jax.errors import InputError
from stablesam_jax.files.checkpoint import load_tree, save_tree
from stablesam_jax.files.disk import write_text
from stablesam_jax.names import RUN_MODEL, RUN_PLUGIN
from train.boards import Board, TensorBoard, WeightsAndBiases
from train.pictures import Record, read_record
from train.presets import TrainConfig
from train.step import State

KEPT_CHECKPOINTS = 2
PICTURES = "pictures.json"
# Fields that may change when a run is continued. The result does not depend on them, except for the last bits of sums
# over another number of devices.
FREE_FIELDS = (
    "skip_bad", "output", "fresh", "cache", "cache_limit", "workers", "profile", "devices", "engine", "remat",
    "coordinator", "hosts", "host", "save_every", "eval_prompts", "eval_every", "wandb",
)  # fmt: skip


# Base and data are compared by their content, see `setup.facts`, in whatever way their paths are spelled.
PATH_FIELDS = ("model", "data_dir")


def remembered_pictures(config: TrainConfig) -> Record | None:
    """The pictures of the run that is continued, or None for a first start.

    Raises:
        InputError: its list of them is damaged.
    """
    folder = pathlib.Path(config.output)
    if config.fresh or not any(path.name.isdigit() for path in (folder / "checkpoints").glob("*")):
        return None
    return read_record(folder / PICTURES)


class NotFiniteError(FloatingPointError):
    """A loss or a parameter is not finite."""

    def __init__(self, message: str, step: int):
        """Keeps the step, whose pictures are reported."""
        super().__init__(message)
        self.step = step


class Run:
    """The folder of a run. Of several hosts only the first reads and writes it."""

    def __init__(
        self, config: TrainConfig, facts: Mapping[str, Any], pictures: Record | None = None, *, first_host: bool = True
    ):
        """Opens or creates the folder.

        Args:
            config: of the run.
            facts: what else the result depends on, such as the SHA-256 of the base; values that JSON can hold.
            pictures: see `Chosen.record`; written to pictures.json.
            first_host: whether this process reads and writes the folder.

        Raises:
            InputError: it holds a run of another configuration or other files, or cannot be created.
        """
        self.folder = pathlib.Path(config.output)
        self.checkpoints = self.folder / "checkpoints"
        # All that the result depends on, as JSON reads it back. "cached": a cache rounds features to float16.
        free = set(FREE_FIELDS) - ({"eval_every"} if config.keep == "best" else set())
        self.settings = {key: value for key, value in _plain(config).items() if key not in free}
        self.settings |= {"cached": config.cache is not None, **facts}
        self.first_host = first_host
        self._boards: list[Board] = []
        self._project = config.wandb
        if not first_host:
            return
        path = self.folder / "config.json"
        try:
            if config.fresh and path.exists():
                real = self.folder.resolve()  # a link stays one
                if pathlib.Path.cwd().is_relative_to(real):
                    raise InputError(f"--fresh would remove {real}, the working folder; start the command elsewhere.")
                old = real.with_name(f".{real.name}.{uuid.uuid4().hex}.old")
                real.rename(old)  # atomic: a kill during the removal must not leave half a run under its name
                shutil.rmtree(old)
            if path.exists():
                self._compare(path)
            elif self.folder.exists() and not _is_bare(self.folder):
                raise InputError(f"{self.folder}: is not empty and holds no run; give another --output.")
            self.folder.resolve().mkdir(parents=True, exist_ok=True)
            write_text(path, json.dumps(self.settings | {"skip_bad": config.skip_bad}, indent=2) + "\n")
            self.checkpoints.resolve().mkdir(exist_ok=True)
            if pictures:
                write_text(self.folder / PICTURES, json.dumps(pictures, indent=1) + "\n")
        except OSError as error:
            raise InputError(f"{self.folder}: cannot be used ({error.strerror}); give another --output.") from None

    def _compare(self, path: pathlib.Path) -> None:
        """Refuses to continue a run of another configuration; one without checkpoint and result is started over."""
        try:
            before = json.loads(path.read_text())
            if not isinstance(before, dict):
                raise ValueError
        except ValueError:
            raise InputError(f"{path}: damaged, not the settings of a run; give another --output.") from None
        if "names" in before.get("pictures", "") and "content" in self.settings.get("pictures", ""):
            del before["pictures"]  # a run of version 0.1.0, which compared names
        changed = list(changes(_without_paths(before), _without_paths(self.settings)))
        kept = [name for name in (RUN_PLUGIN, RUN_MODEL) if (self.folder / name).exists()]  # never overwritten
        if changed and (self._steps() or kept):
            raise InputError(
                f"{self.folder}: holds a run of another configuration ({'; '.join(changed)}); "
                "give another --output, the same options to continue it, or --fresh to start over."
            )

    @property
    def digest(self) -> bytes:
        """SHA-256 of all that the result depends on."""
        return hashlib.sha256(json.dumps(_without_paths(self.settings), sort_keys=True).encode()).digest()

    def restore(self, target: State) -> State | None:
        """The newest intact checkpoint, or None. Damaged ones are reported and skipped.

        Measurements after it are removed from metrics.jsonl, because those steps are repeated.
        """
        state = None
        if not self.first_host:
            return None
        for folder in reversed(self._steps()):
            try:
                state, _ = load_tree(folder, target)
                break
            except InputError as error:
                unusable = folder.with_suffix(".unusable")  # the repeated step writes a checkpoint of the old name
                shutil.rmtree(unusable, ignore_errors=True)
                folder.rename(unusable)
                print(f"passed over and renamed to {unusable.name}: {error}", file=sys.stderr)
        self._forget_after(0 if state is None else int(state.step))
        return state

    def save(self, state: State) -> None:
        """Writes a checkpoint and removes all but the newest `KEPT_CHECKPOINTS`.

        Raises:
            NotFiniteError: a trained parameter is not finite; nothing is written or removed.
            InputError: the disk is full; earlier checkpoints are unchanged.
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

    def evaluated(self, step: int) -> bool:
        """Whether metrics.jsonl has an evaluation after a step."""
        return self.first_host and any(record["step"] == step and "held_out" in record for record in self._logged())

    def oldest_checkpoint(self) -> int:
        """The step of the oldest checkpoint; 0 without any."""
        return min((int(path.name) for path in self._steps()), default=0)

    def join_wandb(self) -> None:
        """Sends what follows on `board` to Weights & Biases, too, if the options name a project.

        Raises:
            InputError: the package is missing, or the run there cannot begin.
        """
        if self.first_host and self._project is not None:
            self._boards.append(WeightsAndBiases(self._project, self.folder, self.settings))

    def board(self, step: int, scalars: Mapping[str, float], figure: Figure | None = None) -> None:
        """Adds curves by name and a picture to TensorBoard, and to Weights & Biases after `join_wandb`."""
        if not self.first_host:
            return
        if not any(isinstance(board, TensorBoard) for board in self._boards):
            self._boards.append(TensorBoard(self.folder, step))
        for board in self._boards:
            board.add(step, scalars, figure)

    def close(self) -> None:
        """Closes what curves are written to."""
        for board in self._boards:
            board.close()
        self._boards = []

    def _steps(self) -> list[pathlib.Path]:
        return sorted(path for path in self.checkpoints.glob("*") if path.name.isdigit())

    def _logged(self) -> list[dict[str, Any]]:
        """The records of metrics.jsonl, without one that a kill or a full disk has torn."""
        records = []
        with contextlib.suppress(FileNotFoundError):
            for line in (self.folder / "metrics.jsonl").read_text().splitlines():
                with contextlib.suppress(ValueError):
                    records.append(json.loads(line))
        return records

    def _forget_after(self, step: int) -> None:
        if records := self._logged():
            kept = [f"{json.dumps(record)}\n" for record in records if record["step"] <= step]
            write_text(self.folder / "metrics.jsonl", "".join(kept))


def _without_paths(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in settings.items() if key not in (*PATH_FIELDS, "skip_bad")}


def _is_bare(folder: pathlib.Path) -> bool:
    """Whether a folder holds at most what a start leaves that a full disk or a kill ended."""
    left = [path for path in folder.iterdir() if not (path.name.startswith(".config.json.") and path.suffix == ".tmp")]
    return all(path.name == "checkpoints" and path.is_dir() and not any(path.iterdir()) for path in left)


def _plain(config: TrainConfig) -> dict[str, Any]:
    return json.loads(json.dumps(dataclasses.asdict(config), default=str))


_DEFAULTS = _plain(TrainConfig())


def changes(
    before: Mapping[str, Any], now: Mapping[str, Any], defaults: Mapping[str, Any] = _DEFAULTS, within: str = ""
) -> Iterator[str]:
    """Differences between the settings of two runs, in the form that JSON reads back.

    A setting that the older run lacks has its default, which changes nothing.
    """
    for key in sorted(before.keys() | now.keys()):
        new = now.get(key)
        old = before.get(key, defaults.get(key, new))
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            yield from changes(old, new, defaults.get(key) or {}, f"{within}{key}.")
        elif old != new:
            yield f"{within}{key} {old} -> {new}"
