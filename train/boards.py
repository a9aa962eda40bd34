"""Where the curves of a run go: TensorBoard, and on demand Weights & Biases."""

import importlib
import pathlib
import uuid
from collections.abc import Mapping
from typing import Any, Protocol

from matplotlib.figure import Figure
from tensorboardX import SummaryWriter

from stablesam_jax.errors import InputError
from stablesam_jax.files.disk import write_text
from stablesam_jax.visualize import pixels

FIGURE = "held_out/wobble"


class Board(Protocol):
    """A place for curves and pictures."""

    def add(self, step: int, scalars: Mapping[str, float], figure: Figure | None) -> None:
        """Adds values by name and a picture."""

    def close(self) -> None:
        """Writes what is left."""


class TensorBoard:
    """Events in tensorboard/ of a run."""

    def __init__(self, folder: pathlib.Path, step: int):
        """Hides events from `step` on that a killed run wrote after its last checkpoint; those steps are repeated."""
        self.writer = SummaryWriter(str(folder / "tensorboard"), purge_step=step)

    def add(self, step: int, scalars: Mapping[str, float], figure: Figure | None) -> None:
        """See `Board`."""
        for name, value in scalars.items():
            self.writer.add_scalar(name, value, step)
        if figure is not None:
            self.writer.add_image(FIGURE, pixels(figure), step, dataformats="HWC")
        self.writer.flush()

    def close(self) -> None:
        """See `Board`."""
        self.writer.close()


class WeightsAndBiases:
    """A run of Weights & Biases, whose own variables such as WANDB_MODE hold."""

    def __init__(self, project: str, folder: pathlib.Path, settings: Mapping[str, Any]):
        """Begins the run, or continues it.

        Args:
            project: that the run belongs to.
            folder: of the training run; gives the name.
            settings: of the training run.

        Raises:
            InputError: the package is missing, or the run cannot begin, as without a login.
        """
        self.wandb = wandb_package()
        number = folder / "wandb" / "id"
        if not number.exists():
            number.parent.mkdir(exist_ok=True)
            write_text(number, uuid.uuid4().hex)
        try:
            # Steps that are repeated after a kill have equal values; Weights & Biases ignores them.
            self.run = self.wandb.init(
                project=project,
                name=folder.name,
                dir=str(folder),
                id=number.read_text(),
                resume="allow",
                config=dict(settings),
            )
        except self.wandb.Error as error:
            reason = str(error).split("\n")[0].rstrip(".")
            raise InputError(f"--wandb {project}: {reason}; WANDB_MODE=offline needs no login.") from None

    def add(self, step: int, scalars: Mapping[str, float], figure: Figure | None) -> None:
        """See `Board`."""
        picture = {} if figure is None else {FIGURE: self.wandb.Image(pixels(figure))}
        self.run.log({**scalars, **picture}, step=step)

    def close(self) -> None:
        """See `Board`."""
        self.run.finish()


def wandb_package() -> Any:
    """The package wandb.

    Raises:
        InputError: it is not installed.
    """
    try:
        return importlib.import_module("wandb")
    except ImportError:
        raise InputError("--wandb: needs the package wandb, not installed here; pip install wandb.") from None
