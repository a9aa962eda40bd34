"""Options of `experiments.paper`, and what differs in miniature."""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import jax

from eval.prompt_kinds import PROMPTS_PER_OBJECT
from experiments.full_size import BACKBONES, SYSTEMS_AT_FULL_SIZE, TABLES, Model
from stablesam_jax.commands import check_choice
from stablesam_jax.config import Dtype
from stablesam_jax.errors import InputError
from stablesam_jax.files.checkpoint import MANIFEST
from stablesam_jax.names import RUN_MODEL
from stablesam_jax.parallel import EngineName
from train.presets import PRESETS, TWELVE_EPOCHS, TrainConfig


@dataclasses.dataclass(frozen=True)
class Scale:
    """What the paper's size and the miniature do not have in common."""

    models: Mapping[str, str]  # backbone -> model
    batch_size: int  # pictures of a step
    long: Mapping[str, Any]  # options of a run of 12 epochs
    low_shot: Mapping[int, int]  # pictures of Table 7 -> those that are used
    prompts: int  # of each random kind and object
    image_size: int | None = None


FULL = Scale(
    models={name: row.model for name, row in BACKBONES.items()},
    batch_size=PRESETS["stable-sam"][1].batch_size,
    long=TWELVE_EPOCHS,
    low_shot={220: 220, 440: 440},
    prompts=PROMPTS_PER_OBJECT,
)
MINIATURE = Scale(
    models=dict.fromkeys(BACKBONES, "sam_nano"),
    batch_size=8,
    long={**TWELVE_EPOCHS, "epochs": 2.0, "views": 2},
    low_shot={220: 8, 440: 16},
    prompts=2,
    image_size=128,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PaperConfig:
    """All tables of the paper from its weights and data: converts, checks, builds, trains, evaluates, fills tables."""

    weights: pathlib.Path | None = None
    """Folder with sam_vit_l_0b3195.pth, and for Table 10 sam_vit_h_4b8939.pth and sam_vit_b_01ec64.pth."""
    data: pathlib.Path | None = None
    """Folder with the data sets in their official layouts (docs/paper.md)."""
    output: pathlib.Path = pathlib.Path("runs/paper")
    """Folder for all results. The same command continues where it was stopped."""
    only: tuple[str, ...] = ()
    """Tables to make, such as "Table 2". Default: all."""
    dry_run: bool = False
    """Only prints the plan and what is missing."""
    miniature: bool = False
    """Runs the same code in minutes, with sam_nano at 128 px on small generated sets in the official layouts. Its
    values only show that all steps run."""
    seed: int = 0
    """Seed of all runs and evaluations."""
    tflops: float | None = None
    """With --dry-run, for a plan of another machine: what one of its devices reaches in large matmuls, in TFLOP/s.
    Default: measured on the devices of this one."""
    dtype: Dtype | None = None
    """Compute dtype of training and evaluation. Default: bfloat16 on accelerators, float32 on CPUs."""
    devices: int | None = None
    """Number of devices to use on each host. Default: all."""
    engine: EngineName = "pmap"
    """How a step runs on several devices, see the command train."""
    workers: int | None = None
    """Number of processes that prepare batches, see the command train."""
    disk: float | None = None
    """GiB that cached features may take. Default: half of the free space in --output. 0: no cache."""
    coordinator: str | None = None
    """HOST:PORT of the first of several hosts that work together, see the command train; they share --output."""
    hosts: int | None = None
    """Number of hosts."""
    host: int | None = None
    """Index of this host, from 0."""

    @property
    def tables(self) -> tuple[str, ...]:
        """Names of the tables to fill."""
        return self.only or tuple(TABLES)

    @property
    def scale(self) -> Scale:
        """Sizes of runs and evaluations."""
        return MINIATURE if self.miniature else FULL

    @property
    def data_folder(self) -> pathlib.Path:
        """Where the data sets are."""
        return self.output / "data" if self.data is None else self.data

    @property
    def compute(self) -> Dtype:
        """The dtype of all models."""
        return self.dtype or ("float32" if jax.default_backend() == "cpu" and self.tflops is None else "bfloat16")

    def check(self) -> None:
        """Raises an InputError that names an option that cannot be used."""
        for name in self.only:
            check_choice(name, TABLES, "table")
        if self.disk is not None and self.disk < 0:
            raise InputError(f"--disk {self.disk:g}: must be at least 0.")
        if self.tflops is not None and not (self.dry_run and self.tflops > 0):
            raise InputError(f"--tflops {self.tflops:g}: above 0, and for a --dry-run alone.")
        if not self.miniature:
            for option in ("weights", "data"):
                folder = getattr(self, option)
                if folder is None:
                    raise InputError(f"--{option}: name the folder, or give --miniature to try everything without it.")
                if not folder.is_dir() and not self.dry_run:  # whose plan lists what is missing
                    raise InputError(f"--{option} {folder}: no such folder.")
        elif self.weights is not None or self.data is not None:
            raise InputError("--miniature makes its own data and takes sam_nano; leave out --weights and --data.")

    def base_of(self, backbone: str) -> str:
        """The checkpoint folder or the shipped name of a backbone."""
        name = self.scale.models[backbone]
        if self.weights is None:
            return name
        own = self.weights / name
        return str(own if (own / MANIFEST).exists() else self.output / "models" / name)

    def run_of(self, model: Model) -> TrainConfig:
        """The training run of a model, without its cache."""
        system = SYSTEMS_AT_FULL_SIZE[model.system]
        base = self.base_of(model.backbone)
        if system.base:
            base = str(self.output / "runs" / Model(system.base, model.backbone).name / RUN_MODEL)
        changes: dict[str, Any] = {
            "model": base,
            "image_size": self.scale.image_size,
            "data_dir": (self.output / "built" / "hqseg_44k",),
            "skip_bad": True,  # some masks of FSS-1000 are empty
            "output": self.output / "runs" / model.name,
            "batch_size": self.scale.batch_size,
            "dtype": self.compute,
            "seed": self.seed,
            "devices": self.devices,
            "engine": self.engine,
            "held_out": 0,  # the paper trains on all pictures, and the tables are its evaluation
            "eval_every": 0,
            "reduced_jpeg": True,
            **system.changes,
            **(self.scale.long if system.long else {}),
        }
        if "limit" in changes:
            changes["limit"] = self.scale.low_shot[changes["limit"]]
        if self.workers is not None:
            changes["workers"] = self.workers
        return dataclasses.replace(PRESETS[system.preset][1], **changes)
