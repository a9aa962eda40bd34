"""What can be trained, as a table: every recipe with its source, and what it costs."""

import dataclasses
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeVar

import tyro

from stablesam_jax.config import Dtype, PluginConfig
from train.optimizer import Schedule
from train.step import Objective

# Robust training (sec. 4.4, 9): the direct extension of HQ-SAM's uniform choice; the paper gives no weights.
ROBUST_PROMPTS = ("gt-box=1", "noisy-box=1", "points=1", "coarse-mask=1")
# Synthetic occlusion belongs to it (sec. 4.4); the paper gives no share: half of the pictures stay as they are.
OCCLUSION = 0.5
# "Without RTS" in the paper's tables: what HQ-SAM trains with, good prompts only (train/train.py).
HQ_SAM_PROMPTS = ("gt-box=1", "10-points=1", "coarse-mask=1")
GOOD_PROMPTS = ("gt-box=1", "jittered-box=3", "points=4", "refine=1")

# What trains. The model is chosen apart from it: any base, with or without a plugin and HQ-SAM's parts.
PLUGIN_ONLY = ("plugin/.*",)
# Without effect on the single mask, hence as they were: the other three masks' MLPs and the IoU head.
MASK_DECODER = ("mask_decoder/.*",)
HQ_PARTS = ("mask_decoder/(hf_|compress_vit_feat_|embedding_encoder_|embedding_maskfeature_).*",)
# All four mask tokens lie in one array, so 140,832 parameters where the paper's PT-SAM has one token and 140,064.
MASK_TOKEN = ("mask_decoder/mask_tokens", "mask_decoder/output_hypernetworks_mlps_0/.*")
NECK_AND_DECODER = ("image_encoder/neck/.*", "prompt_encoder/.*", "mask_decoder/.*")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """A training run."""

    model: str = "sam_nano"
    """Base model: a shipped name, or a folder written by convert or by training."""
    image_size: int | None = None
    """Side of the model's input in pixels, for sam_nano: smaller trains faster. Default: the model's own."""
    data_dir: tuple[pathlib.Path, ...] = ()
    """Folders with im/ and gt/, COCO folders, built data sets, or NAME:DIR as hqseg-44k:/data/hq; none: the scenes that
    travel with the package."""
    limit: int | None = None
    """Only so many of the training pictures, the same choice for every seed (Table 7). Default: all."""
    output: pathlib.Path = pathlib.Path("runs/stable-sam")
    """Folder of the run; the same run that is there already is continued."""
    fresh: bool = False
    """Removes a run that is there, whatever it is, and starts over."""
    steps: int | None = None
    """Updates; overrides epochs."""
    epochs: float = 1.0
    """Passes over the pictures."""
    batch_size: int = 8
    """Pictures per step, over all devices."""
    prompts_per_picture: int = 4
    """Prompts per picture and step; 8 x 4 are the paper's 32 (sec. 9)."""
    learning_rate: float = 1e-3
    """Of Adam, without weight decay (sec. 9)."""
    schedule: Schedule = "constant"
    """The paper's one epoch is constant; cosine falls to 1 % after 2 % of warm-up; step, which is HQ-SAM's, to a tenth
    after 10 of 12 epochs."""
    clip_norm: float | None = None
    """Largest norm of a gradient; longer ones are shortened. The paper names no clipping."""
    accumulate: int = 1
    """Steps whose mean gradient makes one update, where memory is too small for a batch."""
    ema: float | None = None
    """Decay of a moving average of what trains, as 0.999, which is the result then. The paper names none."""
    dtype: Dtype = "float32"
    """What layers compute in; parameters, losses and the optimizer are float32 in any case."""
    seed: int = 0
    """Of augmentation, prompts, loss points and initial parameters."""
    prompts: tuple[str, ...] = ROBUST_PROMPTS
    """KIND=WEIGHT of the training prompts."""
    scale_range: tuple[float, float] = (0.1, 2.0)
    """Large-scale jitter: longest side as a share of the model's input."""
    occlusion: float = OCCLUSION
    """Share of the views in which a cut-out of another picture hides a part of an object, or is hidden by one."""
    objective: Objective = "stable"
    """Loss: the paper's on the single mask, of HQ-SAM on its token's mask alone, at sampled points or at every pixel
    (full-resolution); or SAM's own for pre-training."""
    clicks: int = 0
    """Of SAM's pre-training: rounds after the first, each with a click where the mask so far is wrong."""
    hq: bool = False
    """HQ-SAM's parts are added to a base that has none, with random numbers."""
    plugin: PluginConfig | None = dataclasses.field(default_factory=PluginConfig)
    """The plugin that is added to the base; None adds none."""
    trainable: tuple[str, ...] = PLUGIN_ONLY
    """Patterns over parameter paths; all else stays as it is, to the bit."""
    store: Literal["float32", "float16"] = "float32"
    """Type of the numbers in model/; float16 halves the folder and rounds to 11 bits."""
    cache: pathlib.Path | None = None
    """Folder for the frozen encoder's features in float16, computed once per view; the command embed fills it
    ahead."""
    cache_limit: float = 20.0
    """GiB that this folder may take; beyond them, what was not used for longest is removed."""
    views: int = 1
    """At most so many augmented versions of each picture, another in every epoch; after the last the first comes
    again."""
    workers: int = 0
    """Processes that prepare batches beside this one's threads, for machines with many cores."""
    devices: int | None = None
    """Devices of every host to use; all by default."""
    coordinator: str | None = None
    """HOST:PORT of the first of several hosts that train together, each started with this command and a --host of its
    own; or auto, on a cluster that JAX knows (Slurm, Open MPI, Kubernetes), where each finds out for itself."""
    hosts: int | None = None
    """How many they are."""
    host: int | None = None
    """Which of them this is, from 0."""
    save_every: int = 200
    """Steps between checkpoints."""
    held_out: int = 20
    """Pictures kept from training for the table before / after."""
    eval_prompts: int = 20
    """Prompts per object and kind in that table (sec. 3.2)."""
    eval_every: int = 500
    """Steps between short looks at these pictures on the way, 4 prompts of each kind; 0 for none."""


_CACHE = pathlib.Path(".cache/features")


def _system(name: str, **what_differs: Any) -> TrainConfig:
    """The recipe of `stable-sam` for another system: same budget, prompts and loss unless said."""
    return TrainConfig(output=pathlib.Path("runs") / name, **{"views": 8} | what_differs)


# The paper's long recipe (Tables 6 and 7), a new view in every epoch. It does not say whether the rate drops.
_TWELVE_EPOCHS: dict[str, Any] = {"epochs": 12.0, "schedule": "step", "views": 12}


PRESETS: dict[str, tuple[str, TrainConfig]] = {
    "quickstart": (
        "the plugin on sam_nano and the embedded scenes: minutes on two cores",
        TrainConfig(
            output=pathlib.Path("runs/quickstart"),
            steps=120,
            prompts_per_picture=2,
            learning_rate=3e-3,  # for so few steps
            scale_range=(0.6, 1.6),
            occlusion=0.0,
            schedule="cosine",
            cache=_CACHE,
            held_out=20,
            eval_prompts=8,
        ),
    ),
    "own-pictures": (
        "the plugin for some hundreds of pictures, as stable_sam_nano was trained (results/training.md)",
        TrainConfig(
            output=pathlib.Path("runs/own-pictures"),
            steps=300,
            learning_rate=3e-3,
            scale_range=(0.3, 1.0),  # whole pictures, never a crop: what a prompt means shows in the whole
            occlusion=0.0,
            schedule="cosine",
            views=8,
        ),
    ),
    "stable-sam": ("the paper's recipe (sec. 9): one epoch, 32 prompts a step, Adam 1e-3", TrainConfig(views=8)),
    "stable-sam-12ep": (
        "the same for 12 epochs (Tables 6, 7): learning rate to a tenth after 10 of them, as HQ-SAM's",
        _system("stable-sam-12ep", **_TWELVE_EPOCHS),
    ),
    "low-shot-220": (
        "220 pictures, 12 epochs (Table 7), 0.5 % of HQSeg-44K",
        _system("low-shot-220", limit=220, **_TWELVE_EPOCHS),
    ),
    "low-shot-440": (
        "440 pictures, 12 epochs (Table 7)",
        _system("low-shot-440", limit=440, **_TWELVE_EPOCHS),
    ),
    "stable-hq-sam": (
        "HQ-SAM + Ours (Table 6): plugin and HQ-SAM's parts; the plugin alone is stable-sam on an HQ-SAM",
        _system("stable-hq-sam", hq=True, trainable=PLUGIN_ONLY + HQ_PARTS),
    ),
    "stable-pt-sam": (
        "not in the paper: the plugin and what pt-sam trains, 222,661 parameters",
        _system("stable-pt-sam", trainable=PLUGIN_ONLY + MASK_TOKEN),
    ),
    "finetune-decoder": (
        "a warning (Table 11): the plugin and the whole mask decoder",
        _system("finetune-decoder", trainable=PLUGIN_ONLY + MASK_DECODER),
    ),
    "spatial-cbam": (
        "a rival (Table 11): CBAM's spatial attention in the place of deformable sampling, router kept",
        _system("spatial-cbam", plugin=PluginConfig(resample="cbam")),
    ),
    "spatial-coordinate": (
        "the same with coordinate attention; the paper does not say which attention it tried",
        _system("spatial-coordinate", plugin=PluginConfig(resample="coordinate")),
    ),
    "dsp": (
        "an ablation (Table 5): deformable sampling without the router, HQ-SAM's good prompts only",
        _system("dsp", plugin=PluginConfig(router=False), prompts=HQ_SAM_PROMPTS, occlusion=0.0),
    ),
    "dsp-rts": (
        "an ablation (Table 5): the same with robust prompts",
        _system("dsp-rts", plugin=PluginConfig(router=False)),
    ),
    "pt-sam": (
        "a rival (Table 2): no plugin; the mask tokens and the first one's MLP, 140,832 parameters",
        _system("pt-sam", plugin=None, trainable=MASK_TOKEN),
    ),
    "dt-sam": (
        "a rival (Table 2): no plugin; the whole mask decoder, 4,058,340 parameters",
        _system("dt-sam", plugin=None, trainable=MASK_DECODER),
    ),
    "hq-sam": (
        "a rival (Table 2): no plugin; HQ-SAM's token, its MLP and the fusion of early features",
        _system("hq-sam", hq=True, plugin=None, trainable=HQ_PARTS),
    ),
    "hq-sam-recipe": (
        "HQ-SAM as its authors train it: good prompts, 32 pictures with one prompt each, 12 epochs (Table 6, no RTS)",
        _system(
            "hq-sam-recipe",
            hq=True,
            plugin=None,
            trainable=HQ_PARTS,
            prompts=HQ_SAM_PROMPTS,
            occlusion=0.0,
            batch_size=32,
            prompts_per_picture=1,
            **_TWELVE_EPOCHS,
        ),
    ),
    "pretrain-nano": (
        "the base itself: neck, prompt encoder and decoder over a frozen ImageNet encoder, good prompts only",
        TrainConfig(
            output=pathlib.Path("runs/pretrain-nano"),
            epochs=12,
            learning_rate=5e-4,
            schedule="cosine",
            prompts=GOOD_PROMPTS,
            scale_range=(0.6, 1.6),
            occlusion=0.0,
            objective="pretrain",
            plugin=None,
            trainable=NECK_AND_DECODER,
            store="float16",
            cache=_CACHE,
            views=2,
        ),
    ),
}


Config = TypeVar("Config")


def parse(program: str, presets: Mapping[str, tuple[str, Config]], arguments: Sequence[str] | None = None) -> Config:
    """The configuration that the command line asks for: a preset, or the first, and options.

    Args:
        program: as it is called.
        presets: what each is for, and its configuration, by name.
        arguments: instead of the command line's.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given[:1] in (["-h"], ["--help"]):
        print("presets, each with its own defaults (PRESET --help); without one, the first:")
        print("\n".join(f"  {name:18} {purpose}" for name, (purpose, _) in presets.items()) + "\n")
    if not given or given[0].startswith("-"):
        given = [next(iter(presets)), *given]
    return tyro.extras.overridable_config_cli(dict(presets), args=given, prog=program)
