"""`python -m train.preview [PRESET] [--option value ...]`: draws the first training samples of a run on a sheet.

Options are those of `train.main`, plus those of the sheet. No run is created or changed.
"""

import dataclasses
import itertools
import pathlib
from collections.abc import Sequence
from typing import Annotated

import numpy as np
import tyro

from stablesam_jax.commands import called
from stablesam_jax.data.pipeline import Feeding, Views, batches
from stablesam_jax.errors import InputError, exit_on_input_error
from stablesam_jax.files.disk import check_writable
from stablesam_jax.prompts import Prompt, box_iou, gt_box
from stablesam_jax.visualize import Sample, samples_figure, save_figure
from train.options import parse
from train.pictures import choose
from train.presets import PRESETS, TrainConfig
from train.setup import check_numbers, describe_batches, describe_views, load_base

BOX_CORNERS, ON_OBJECT = (2, 3), 1  # labels of tokens


@dataclasses.dataclass(frozen=True, kw_only=True)
class PreviewConfig:
    """Draws the first training samples of a run."""

    run: Annotated[TrainConfig, tyro.conf.arg(name="")]
    sheet: pathlib.Path = pathlib.Path("runs/samples.png")
    """File to draw to; an existing one is replaced."""
    count: int = 40
    """Number of samples, with one prompt of each picture."""


def preview(config: PreviewConfig) -> None:
    """Draws the samples of a run's first steps and writes the sheet."""
    if config.count < 1:
        raise InputError(f"--count {config.count}: must be at least 1.")
    if config.sheet.suffix not in (".png", ".pdf", ".svg"):
        raise InputError(f"--sheet {config.sheet}: must be a .png, .pdf or .svg file.")
    check_writable(config.sheet, "--sheet")
    check_numbers(config.run)
    model = load_base(config.run).sam.config
    views = Views(choose(config.run).training, describe_views(config.run, model))
    stream = batches(views, describe_batches(config.run, model), Feeding())
    rows = (dict(zip(batch, row, strict=True)) for batch in stream for row in zip(*batch.values(), strict=True))
    shown = [sample_of(views, row) for row in itertools.islice(rows, config.count)]
    save_figure(samples_figure(shown), config.sheet)
    print(f"written: {config.sheet}", flush=True)


def sample_of(views: Views, row: dict[str, np.ndarray]) -> Sample:
    """The first prompt of a row of a batch, with its picture and target."""
    target = row["targets"][0]
    _, masks = views[int(row["view"])]
    prompt = read_tokens(row["coords"][0], row["labels"][0])
    if row["masks_valid"][0]:
        prompt = dataclasses.replace(prompt, mask=row["masks"][0])
    return Sample(
        picture=row["picture"],
        target=target,
        others=np.stack([mask for mask in masks if (mask != target).any()] or [np.zeros_like(target)]),
        prompt=prompt,
        caption=caption(prompt, target),
    )


def read_tokens(coords: np.ndarray, labels: np.ndarray) -> Prompt:
    """Converts padded tokens, (K, 2) and (K,), back to the prompt, without its mask."""
    on_object, corners = labels == ON_OBJECT, np.isin(labels, BOX_CORNERS)
    return Prompt(
        points=coords[on_object],
        labels=labels[on_object],
        box=coords[corners].reshape(4) if corners.any() else None,
    )


def caption(prompt: Prompt, target: np.ndarray) -> str:
    """Describes a prompt: its parts, with the IoU of box and mask."""
    parts = []
    if prompt.box is not None:
        parts.append(f"box, IoU {box_iou(prompt.box, gt_box(target)):.2f}")
    if len(prompt.points):
        parts.append(f"{len(prompt.points)} point{'s' if len(prompt.points) > 1 else ''}")
    if prompt.mask is not None:
        factor = len(target) // len(prompt.mask)
        guess = np.kron(prompt.mask > 0, np.ones((factor, factor), bool))
        parts.append(f"mask, IoU {(guess & target).sum() / (guess | target).sum():.2f}")
    return " and ".join(parts)


def main(arguments: Sequence[str] | None = None) -> None:
    """Parses the preset and the options, and draws."""
    presets = {name: (purpose, PreviewConfig(run=run)) for name, (purpose, run) in PRESETS.items()}
    with exit_on_input_error():
        preview(parse(called("preview"), presets, arguments))


if __name__ == "__main__":
    main()
