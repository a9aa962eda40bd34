"""Training options, and presets: every recipe with its source."""

import dataclasses
import pathlib
from typing import Any, Literal

from stablesam_jax.config import Dtype, PluginConfig
from stablesam_jax.parallel import EngineName
from train.optimizer import Schedule
from train.step import Objective

# Robust training (sec. 4.4, 9): the direct extension of HQ-SAM's uniform choice; the paper gives no weights.
ROBUST_PROMPTS = ("gt-box=1", "noisy-box=1", "points=1", "coarse-mask=1")
# Synthetic occlusion belongs to it (sec. 4.4); the paper gives no share: half of the pictures stay as they are.
OCCLUSION = 0.5
# "Without RTS" in the paper's tables: what HQ-SAM trains with, good prompts only (train/train.py).
HQ_SAM_PROMPTS = ("gt-box=1", "10-points=1", "coarse-mask=1")
GOOD_PROMPTS = ("gt-box=1", "jittered-box=3", "points=4", "refine=1")

# Patterns of trained parameters. Any base can be chosen with them, with or without a plugin and HQ-SAM's parts.
PLUGIN_ONLY = ("plugin/.*",)
# The MLPs of the other three masks and the IoU head do not affect the single mask, so they are frozen.
MASK_DECODER = ("mask_decoder/.*",)
HQ_PARTS = ("mask_decoder/(hf_|compress_vit_feat_|embedding_encoder_|embedding_maskfeature_).*",)
# All four mask tokens are in one array: 140,832 parameters, where the paper's PT-SAM has one token and 140,064.
MASK_TOKEN = ("mask_decoder/mask_tokens", "mask_decoder/output_hypernetworks_mlps_0/.*")
NECK_AND_DECODER = ("image_encoder/neck/.*", "prompt_encoder/.*", "mask_decoder/.*")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """A training run."""

    model: str = "sam_nano"
    """Base model: a shipped name, or a folder written by convert or by training."""
    image_size: int | None = None
    """Side of the model's input in pixels; smaller trains faster. Meant for sam_nano. Default: the model's own."""
    data_dir: tuple[pathlib.Path, ...] = ()
    """Pictures to train on, one or more: folders with im/ and gt/, COCO folders, built data sets, or NAME:DIR such as
    hqseg-44k:/data/hq; see docs/data.md. Default: the included scenes."""
    skip_bad: bool = False
    """Leaves out pictures that cannot be used, such as those with an empty mask. All pictures are read before the first
    step, and pictures.json of the run lists those that are left out."""
    limit: int | None = None
    """Number of training pictures to use, the same choice for every seed (Table 7). Default: all."""
    output: pathlib.Path = pathlib.Path("runs/stable-sam")
    """Folder of the run; an existing run with the same options is continued."""
    fresh: bool = False
    """Removes an existing run, whatever its options, and starts over."""
    steps: int | None = None
    """Number of steps; overrides epochs."""
    epochs: float = 1.0
    """Passes over the pictures."""
    batch_size: int = 32
    """Pictures per step, on all devices together. The paper has 32 (sec. 9); one prompt for each is HQ-SAM's recipe."""
    prompts_per_picture: int = 1
    """Prompts per picture and step."""
    learning_rate: float = 1e-3
    """Learning rate of Adam, without weight decay (sec. 9)."""
    schedule: Schedule = "constant"
    """Of the learning rate. constant: for the paper's one epoch. cosine: warm-up for 2 % of the steps, then a cosine
    down to 1 %. step: HQ-SAM's, a tenth after 10 of 12 epochs."""
    clip_norm: float | None = None
    """Largest norm of the gradient; larger gradients are scaled down. The paper mentions no clipping."""
    accumulate: int = 1
    """Gradient accumulation: number of steps whose mean gradient makes one update."""
    ema: float | None = None
    """Decay of a moving average of the trained parameters, such as 0.999; the average is the result. The paper mentions
    none."""
    dtype: Dtype = "float32"
    """Compute dtype of layers; parameters, losses and the optimizer are always float32."""
    remat: bool = False
    """Gradient checkpointing: the backward pass computes the decoder's two layers again. Takes less memory on GPUs and
    TPUs, and more time."""
    seed: int = 0
    """Seed of augmentation, prompts, loss points and initial parameters."""
    prompts: tuple[str, ...] = ROBUST_PROMPTS
    """Kinds of training prompts with their relative frequencies, as KIND=WEIGHT. Kinds: gt-box, jittered-box (as in
    SAM's training), noisy-box, points (1, 3, 5 or 10), 10-points, coarse-mask, refine (a point and a coarse mask)."""
    scale_range: tuple[float, float] = (0.1, 2.0)
    """Large-scale jitter: range of the longer side of the picture, as a share of the model's input. Above 1 the picture
    is cropped."""
    occlusion: float = OCCLUSION
    """Synthetic occlusion: share of views in which an object of another picture is pasted in front of an object or
    behind it."""
    reduced_jpeg: bool = False
    """Decodes JPEG files at 1/2, 1/4 or 1/8 of their size where a view needs no more. This is faster, and pixels differ
    a little."""
    objective: Objective = "stable"
    """Loss. stable: the paper's, on the single mask (of HQ-SAM on its own token's mask), at sampled points.
    full-resolution: the same at every pixel. pretrain: SAM's own."""
    clicks: int = 0
    """For --objective pretrain: number of further rounds, each with a click where the previous mask is wrong."""
    hq: bool = False
    """Whether HQ-SAM's parts are added to a base without them, with random values."""
    plugin: PluginConfig | None = dataclasses.field(default_factory=PluginConfig)
    """Configuration of the plugin that is added to the base, or None."""
    trainable: tuple[str, ...] = PLUGIN_ONLY
    """Regular expressions for the paths of trained parameters; all others are frozen."""
    store: Literal["float32", "float16"] = "float32"
    """Dtype of the parameters in model/ of the run; float16 halves its size, and rounds the parameters."""
    cache: pathlib.Path | None = None
    """Folder for the frozen encoder's features in float16, which are computed once per view. None: no cache. The
    command embed fills it in advance."""
    cache_limit: float = 20.0
    """Largest size of the cache in GiB; the least recently used features are removed."""
    views: int = 1
    """Number of augmented versions of each picture; every epoch uses the next one, and starts over after the last."""
    workers: int | None = None
    """Number of further processes that prepare batches, each with 8 threads. 0: only threads of this process. Default:
    one for every 8 cores beyond the first 8."""
    devices: int | None = None
    """Number of devices to use on each host. Default: all."""
    wandb: str | None = None
    """Project of Weights & Biases that also gets the curves of TensorBoard; needs pip install wandb."""
    profile: int = 0
    """Number of steps, after the first two, that are traced to profile/ of the run, for Perfetto or TensorBoard."""
    engine: EngineName = "pmap"
    """How a step runs on several devices: jax.pmap, or jax.jit with jax.shard_map. Results are equal to the bit, and
    either continues a run of the other."""
    coordinator: str | None = None
    """HOST:PORT of the first of several hosts that train together, each started with this command and its own --host;
    or auto, on a cluster that JAX detects (Slurm, Open MPI, Kubernetes), without --hosts and --host."""
    hosts: int | None = None
    """Number of hosts."""
    host: int | None = None
    """Index of this host, from 0."""
    save_every: int = 200
    """Steps between checkpoints."""
    held_out: int = 20
    """Number of pictures that are held out of training for the report; at most a fifth of all."""
    eval_prompts: int = 20
    """Prompts per object and kind in the report (sec. 3.2)."""
    eval_every: int = 500
    """Steps between short evaluations on the held-out pictures, with 4 prompts of each kind. 0: none."""
    keep: Literal["last", "best"] = "last"
    """Which step is the result: the last one, or the one with the best mean mIoU over the kinds of prompts in the
    evaluations of --eval-every."""
    patience: int | None = None
    """With --keep best: ends the run after this many evaluations in a row without a better result."""


CACHE = pathlib.Path(".cache/features")
# Where figure 3 draws the plugin: in the decoder's second layer. Elsewhere `PluginConfig` has its own default.
_IN_PAPER: dict[str, Any] = {"attentions": (1,)}
_FEWER_PICTURES: dict[str, Any] = {"batch_size": 8, "prompts_per_picture": 4}  # of as many prompts, for small machines


def _system(name: str, **what_differs: Any) -> TrainConfig:
    """The recipe of `stable-sam` for another system: the same budget, prompts and loss, except for the arguments."""
    paper: dict[str, Any] = {"views": 8, "plugin": PluginConfig(**_IN_PAPER)}
    return TrainConfig(output=pathlib.Path("runs") / name, **paper | what_differs)


# The paper's long recipe (Tables 6 and 7), a new view in every epoch. It does not say whether the rate drops.
TWELVE_EPOCHS: dict[str, Any] = {"epochs": 12.0, "schedule": "step", "views": 12}


PRESETS: dict[str, tuple[str, TrainConfig]] = {
    "quickstart": (
        "the plugin on sam_nano and included scenes, in minutes on two cores",
        TrainConfig(
            output=pathlib.Path("runs/quickstart"),
            steps=120,
            batch_size=8,
            prompts_per_picture=2,
            learning_rate=3e-3,  # for so few steps
            scale_range=(0.6, 1.6),
            occlusion=0.0,
            schedule="cosine",
            cache=CACHE,
            held_out=20,
            eval_prompts=8,
        ),
    ),
    "own-pictures": (
        "the plugin on some hundreds of pictures: 300 steps of 8 pictures, Adam 3e-3",
        TrainConfig(
            output=pathlib.Path("runs/own-pictures"),
            **_FEWER_PICTURES,
            steps=300,
            learning_rate=3e-3,
            scale_range=(0.3, 1.0),  # never a crop: which object a prompt means depends on the whole picture
            occlusion=0.0,
            schedule="cosine",
            views=8,
        ),
    ),
    "stable-sam": (
        "the paper's recipe (sec. 9): layer 2, one epoch, 32 pictures with one prompt each per step, Adam 1e-3",
        _system("stable-sam"),
    ),
    "stable-sam-12ep": (
        "the same for 12 epochs (Tables 6, 7); a tenth of the learning rate after 10 of them, as in HQ-SAM",
        _system("stable-sam-12ep", **TWELVE_EPOCHS),
    ),
    "low-shot-220": (
        "220 pictures, 12 epochs (Table 7), 0.5 % of HQSeg-44K",
        _system("low-shot-220", limit=220, **TWELVE_EPOCHS),
    ),
    "low-shot-440": (
        "440 pictures, 12 epochs (Table 7)",
        _system("low-shot-440", limit=440, **TWELVE_EPOCHS),
    ),
    "stable-hq-sam": (
        "not in the paper: plugin and HQ-SAM's parts together (its HQ-SAM + Ours is stable-sam on a trained HQ-SAM)",
        _system("stable-hq-sam", hq=True, trainable=PLUGIN_ONLY + HQ_PARTS),
    ),
    "stable-pt-sam": (
        "not in the paper: the plugin and what pt-sam trains, 222,661 parameters",
        _system("stable-pt-sam", trainable=PLUGIN_ONLY + MASK_TOKEN),
    ),
    "finetune-decoder": (
        "an ablation (Table 11): the plugin and the whole mask decoder; gains less than the plugin alone",
        _system("finetune-decoder", trainable=PLUGIN_ONLY + MASK_DECODER),
    ),
    "spatial-cbam": (
        "a rival (Table 11): CBAM's spatial attention in place of deformable sampling, router kept",
        _system("spatial-cbam", plugin=PluginConfig(resample="cbam", **_IN_PAPER)),
    ),
    "spatial-coordinate": (
        "the same with coordinate attention; the paper does not say which attention it tried",
        _system("spatial-coordinate", plugin=PluginConfig(resample="coordinate", **_IN_PAPER)),
    ),
    "linear": (
        "not in the paper: linear maps in place of deformable sampling, which fold exactly into SAM's weights",
        _system("linear", plugin=PluginConfig(resample="linear", router=False)),
    ),
    "dsp": (
        "an ablation (Table 5): deformable sampling without the router, trained with HQ-SAM's good prompts",
        _system("dsp", plugin=PluginConfig(router=False, **_IN_PAPER), prompts=HQ_SAM_PROMPTS, occlusion=0.0),
    ),
    "dsp-rts": (
        "an ablation (Table 5): the same with robust training",
        _system("dsp-rts", plugin=PluginConfig(router=False, **_IN_PAPER)),
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
        "HQ-SAM as its authors train it: good prompts, 32 pictures with one prompt each, 12 epochs (Table 6)",
        _system(
            "hq-sam-recipe",
            hq=True,
            plugin=None,
            trainable=HQ_PARTS,
            prompts=HQ_SAM_PROMPTS,
            occlusion=0.0,
            **TWELVE_EPOCHS,
        ),
    ),
    "pretrain-nano": (
        "the base sam_nano itself: neck, prompt encoder and decoder over a frozen ImageNet encoder, good prompts only",
        TrainConfig(
            output=pathlib.Path("runs/pretrain-nano"),
            **_FEWER_PICTURES,
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
            cache=CACHE,
            views=2,
        ),
    ),
}
