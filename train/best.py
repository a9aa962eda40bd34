"""The parameters with the best score so far, kept beside the checkpoints of a run."""

import pathlib
import shutil
from typing import Any

from stablesam_jax.files.checkpoint import load_tree, save_tree
from stablesam_jax.params import Params


class Best:
    """Trained parameters of the step with the best score, in a folder of the run.

    A run that is continued repeats the steps after a checkpoint, to the same bits. So what was kept at such a step is
    forgotten, and what was the best until the oldest checkpoint is still there.
    """

    def __init__(self, folder: pathlib.Path):
        """Writes nothing.

        Args:
            folder: gets a checkpoint by the number of its step.
        """
        self.folder = folder
        self.step: int | None = None
        self.score = 0.0

    def resume(self, done: int) -> None:
        """Continues after step `done`: what was kept later is removed.

        Raises:
            InputError: the best until then is damaged.
        """
        for later in (path for path in self._steps() if int(path.name) > done):
            shutil.rmtree(later)
        if steps := self._steps():
            _, metadata = load_tree(steps[-1])
            self.step, self.score = metadata["step"], metadata["score"]

    def offer(self, step: int, score: float, trained: Params) -> None:
        """Keeps the parameters of a step if their score is above all earlier ones; of equal ones the first is kept.

        Raises:
            InputError: they cannot be written, as on a full disk.
        """
        if self.step is None or score > self.score:
            save_tree(self._of(step), trained, {"step": step, "score": score})
            self.step, self.score = step, score

    def prune(self, oldest: int) -> None:
        """Removes what a run that continues from a checkpoint of step `oldest`, or a later one, does not need."""
        for path in [path for path in self._steps() if int(path.name) <= oldest][:-1]:
            shutil.rmtree(path)

    def load(self, target: Params) -> Params:
        """The best parameters.

        Args:
            target: parameters of the same shapes.

        Raises:
            InputError: they are damaged.
        """
        assert self.step is not None
        tree: Any
        tree, _ = load_tree(self._of(self.step), target)
        return tree

    def _of(self, step: int) -> pathlib.Path:
        return self.folder / f"{step:08d}"

    def _steps(self) -> list[pathlib.Path]:
        return sorted(path for path in self.folder.glob("*") if path.name.isdigit())
