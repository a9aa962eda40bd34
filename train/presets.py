"""What can be trained, as a table: every recipe with its source, and what it costs."""

import dataclasses
import pathlib
from typing import Literal

from stablesam_jax.config import PluginConfig
from train.step import Objective

# Robust training (sec. 4.4, 9): the direct extension of HQ-SAM's uniform choice; the paper gives no weights.
ROBUST_PROMPTS = ("gt-box=1", "noisy-box=1", "points=1", "coarse-mask=1")
GOOD_PROMPTS = ("gt-box=1", "jittered-box=3", "points=4", "refine=1")

PLUGIN_ONLY = ("plugin/.*",)
# All four mask tokens lie in one array, so 140,832 parameters where the paper's PT-SAM has one token and 140,064.
MASK_TOKEN = ("mask_decoder/mask_tokens", "mask_decoder/output_hypernetworks_mlps_0/.*")
NECK_AND_DECODER = ("image_encoder/neck/.*", "prompt_encoder/.*", "mask_decoder/.*")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """A training run."""

    model: str = "sam_nano"
    """Base model: a shipped name, or a folder written by convert or by pre-training."""
    image_size: int | None = None
    """Side of the model's input in pixels, for sam_nano: smaller trains faster. Default: the model's own."""
    data_dir: tuple[pathlib.Path, ...] = ()
    """Folders with im/ and gt/; none: the scenes that travel with the package."""
    output: pathlib.Path = pathlib.Path("runs/stable-sam")
    """Folder of the run; a run that is there already is continued."""
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
    schedule: Literal["constant", "cosine"] = "constant"
    """The paper's one epoch is constant; cosine falls to 1 % after 2 % of warm-up."""
    seed: int = 0
    """Of augmentation, prompts, loss points and initial parameters."""
    prompts: tuple[str, ...] = ROBUST_PROMPTS
    """KIND=WEIGHT of the training prompts."""
    scale_range: tuple[float, float] = (0.1, 2.0)
    """Large-scale jitter: longest side as a share of the model's input."""
    objective: Objective = "stable"
    """Loss: the paper's on the single mask, or SAM's own for pre-training."""
    plugin: PluginConfig | None = dataclasses.field(default_factory=PluginConfig)
    """The plugin that is added to the base; None trains the base's own parts."""
    trainable: tuple[str, ...] = PLUGIN_ONLY
    """Patterns over parameter paths; all else stays as it is, to the bit."""
    store: Literal["float32", "float16"] = "float32"
    """Type of the numbers in model/; float16 halves the folder and rounds to 11 bits."""
    cache: pathlib.Path | None = None
    """Folder for the frozen encoder's features; they are then computed once per view."""
    views: int = 1
    """Augmented versions of each picture that are drawn from."""
    devices: int | None = None
    """Local devices to use; all by default."""
    save_every: int = 200
    """Steps between checkpoints."""
    held_out: int = 20
    """Pictures kept from training for the table before / after."""
    eval_prompts: int = 20
    """Prompts per object and kind in that table (sec. 3.2)."""


_CACHE = pathlib.Path(".cache/features")

PRESETS: dict[str, tuple[str, TrainConfig]] = {
    "quickstart": (
        "the plugin on sam_nano and the embedded scenes: minutes on two cores",
        TrainConfig(
            output=pathlib.Path("runs/quickstart"),
            steps=80,
            prompts_per_picture=2,
            scale_range=(0.6, 1.6),
            schedule="cosine",
            cache=_CACHE,
            held_out=12,
            eval_prompts=8,
        ),
    ),
    "stable-sam": ("the paper's recipe (sec. 9): one epoch, 32 prompts a step, Adam 1e-3", TrainConfig(views=8)),
    "pt-sam": (
        "the rival of Table 2: no plugin; the mask tokens and the first one's MLP, 140,832 parameters",
        TrainConfig(output=pathlib.Path("runs/pt-sam"), plugin=None, trainable=MASK_TOKEN, views=8),
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
            objective="pretrain",
            plugin=None,
            trainable=NECK_AND_DECODER,
            store="float16",
            cache=_CACHE,
            views=2,
        ),
    ),
}
