"""Model, pictures and cache of a training run, from checked options."""

import dataclasses
import functools
import math

import jax

from stablesam_jax import build, parallel, params
from stablesam_jax.config import SamConfig
from stablesam_jax.data.pipeline import TRAINING_KINDS, BatchConfig, ViewConfig, Views
from stablesam_jax.data.readers import Pictures
from stablesam_jax.errors import InputError
from stablesam_jax.files.feature_cache import FeatureCache
from stablesam_jax.model.encoders import encoder_of
from stablesam_jax.model.sam import Sam
from stablesam_jax.version import __version__
from train.boards import wandb_package
from train.pictures import Chosen, Record, choose
from train.presets import TrainConfig
from train.step import encoder_halves

MOST_CLICKS = 8  # SAM's own training has eight (SAM paper, appendix A)


@dataclasses.dataclass(frozen=True)
class Base:
    """The base model of a run."""

    sam: Sam  # at the input size of the options
    tree: params.Params
    sha256: str  # of the stored parameters, before positions are resized; plugin files name it as their base


@dataclasses.dataclass(frozen=True)
class Parts:
    """Model and data of a run."""

    base: Base
    sam: Sam  # the system that trains
    trained: params.Params
    frozen: params.Params
    neck_trains: bool  # see `step.encoder_halves`
    chosen: Chosen
    views: Views  # of the training pictures
    batches: BatchConfig
    steps: int
    cache: FeatureCache | None

    @property
    def training(self) -> Pictures:
        """Pictures to train on."""
        return self.chosen.training

    @property
    def held_out(self) -> Pictures:
        """Pictures to evaluate on."""
        return self.chosen.held_out

    @property
    def tree(self) -> params.Params:
        """All parameters at the start."""
        return params.merge(self.frozen, self.trained)


def prepare(config: TrainConfig, before: Record | None = None) -> Parts:
    """Prepares model, pictures and cache of a run; writes nothing except the cache's folder.

    Args:
        config: of the run.
        before: the pictures of the run that is continued, see `pictures.choose`.

    Raises:
        InputError: an option, the model or the pictures cannot be used.
    """
    check_numbers(config)
    parse_kinds(config.prompts)
    if config.wandb is not None:
        wandb_package()
    base = load_base(config)
    sam, tree = add_parts(config, base)
    trained, frozen = params.split(tree, config.trainable)
    neck_trains = check_trainable(config, sam, trained, frozen_at_random(base.tree, frozen))
    chosen = choose(config, before)
    training = chosen.training
    if config.keep == "best" and not len(chosen.held_out):
        raise InputError(
            "--keep best: no picture is held out, since that is at most a fifth of all; give five or more."
        )
    if config.steps is None:
        steps, epochs = math.ceil(config.epochs * len(training) / config.batch_size), math.ceil(config.epochs)
    else:
        steps, epochs = config.steps, math.ceil(config.steps * config.batch_size / len(training))
    if config.accumulate > steps:
        raise InputError(
            f"--accumulate {config.accumulate}: the run has {steps} steps, which would make no update; take {steps} or "
            "fewer, or more steps."
        )
    views = describe_views(config, sam.config)
    return Parts(
        base=base,
        sam=sam,
        trained=trained,
        frozen=frozen,
        neck_trains=neck_trains,
        chosen=chosen,
        views=Views(training, dataclasses.replace(views, views=min(views.views, epochs))),  # one for each epoch
        batches=describe_batches(config, sam.config),
        steps=steps,
        cache=open_cache(config, sam, frozen, neck_trains=neck_trains),
    )


def check_numbers(config: TrainConfig) -> None:
    """Raises an InputError that names every option out of range; `ViewConfig` and `BatchConfig` check theirs."""
    rules = [
        ("--steps", config.steps, config.steps is None or config.steps >= 1, "at least 1"),
        ("--epochs", config.epochs, 0 < config.epochs < math.inf, "above 0"),
        ("--learning-rate", config.learning_rate, 0 < config.learning_rate < math.inf, "above 0"),
        ("--clip-norm", config.clip_norm, config.clip_norm is None or 0 < config.clip_norm < math.inf, "above 0"),
        ("--ema", config.ema, config.ema is None or 0 < config.ema < 1, "between 0 and 1"),
        ("--accumulate", config.accumulate, config.accumulate >= 1, "at least 1"),
        ("--save-every", config.save_every, config.save_every >= 1, "at least 1"),
        ("--workers", config.workers, config.workers is None or config.workers >= 0, "at least 0"),
        ("--profile", config.profile, config.profile >= 0, "at least 0"),
        ("--cache-limit", config.cache_limit, 0 < config.cache_limit < math.inf, "above 0"),
        ("--limit", config.limit, config.limit is None or config.limit >= 1, "at least 1"),
        ("--clicks", config.clicks, 0 <= config.clicks <= MOST_CLICKS, f"from 0 to {MOST_CLICKS}"),
        ("--eval-every", config.eval_every, config.eval_every >= 0, "at least 0"),
        ("--patience", config.patience, config.patience is None or config.patience >= 1, "at least 1"),
        ("--held-out", config.held_out, config.held_out >= 0, "at least 0"),
        ("--eval-prompts", config.eval_prompts, config.eval_prompts >= 1, "at least 1"),
    ]
    faults = [f"{option} {value}: must be {expected}" for option, value, holds, expected in rules if not holds]
    if config.clicks and config.objective != "pretrain":
        faults.append(f"--clicks {config.clicks}: are of --objective pretrain alone")
    if config.keep == "best" and not (config.eval_every and config.held_out):
        faults.append("--keep best: nothing to choose by; give --eval-every and --held-out above 0")
    if config.patience is not None and config.keep != "best":
        faults.append(f"--patience {config.patience}: is for --keep best alone")
    if faults:
        raise InputError("; ".join(faults) + ".")


def check_trainable(config: TrainConfig, sam: Sam, trained: params.Params, at_random: list[str]) -> bool:
    """Checks --trainable. Returns whether the encoder's neck trains, so that features end before it.

    Raises:
        InputError: random parameters are frozen, or trained ones do not affect the loss or are behind a cache.
    """
    if at_random:
        raise InputError(
            f"--trainable: {at_random[0]} has random values and would not train; "
            "train HQ-SAM's parts too, as presets hq-sam and stable-hq-sam do, or give --model an HQ-SAM."
        )
    if config.hq and config.objective == "pretrain":
        raise InputError("--objective pretrain is SAM's loss and does not reach HQ-SAM's parts; give --no-hq.")
    neck_trains = encoder_of(sam.config).in_two_steps and "neck" in trained.get("image_encoder", {})
    moving = trained.get("image_encoder", {}).keys() - ({"neck"} if neck_trains else set())
    if config.cache is not None and moving:
        raise InputError(
            f"--trainable: image_encoder/{min(moving)} would train, but --cache holds features of a frozen encoder; "
            "give --cache None."
        )
    return neck_trains


def describe_views(config: TrainConfig, model: SamConfig) -> ViewConfig:
    """How pictures are augmented in the run."""
    return ViewConfig(
        size=model.image_size,
        scale_range=config.scale_range,
        views=config.views,
        occlusion=config.occlusion,
        reduced_jpeg=config.reduced_jpeg,
        seed=config.seed,
    )


def describe_batches(config: TrainConfig, model: SamConfig) -> BatchConfig:
    """Contents of a batch."""
    return BatchConfig(
        pictures=config.batch_size,
        prompts_per_picture=config.prompts_per_picture,
        kinds=parse_kinds(config.prompts),
        mask_size=model.mask_size,
        seed=config.seed,
    )


def parse_kinds(options: tuple[str, ...]) -> dict[str, float]:
    """Parses KIND=WEIGHT options.

    Raises:
        InputError: another form, an unknown kind or one given twice, a negative weight, or no positive one.
    """
    kinds = {}
    for option in options:
        kind, _, weight = option.partition("=")
        if kind in kinds:
            raise InputError(f"--prompts {option}: {kind} has a weight already; give each kind once.")
        try:
            kinds[kind] = float(weight)
        except ValueError:
            raise InputError(f"--prompts {option}: write KIND=WEIGHT, as in noisy-box=1.") from None
        if kind not in TRAINING_KINDS:
            raise InputError(f"--prompts {option}: unknown kind; choose from {', '.join(TRAINING_KINDS)}.")
        if not 0 <= kinds[kind] < math.inf:
            raise InputError(f"--prompts {option}: the weight must be a number from 0 up.")
    if not any(kinds.values()):
        raise InputError("--prompts: give at least one kind a weight above 0.")
    return kinds


def load_base(config: TrainConfig) -> Base:
    """Loads the base model."""
    sam, tree = build.load_model(config.model, dtype=config.dtype)
    sha256 = params.digest(tree)
    if config.image_size is not None:
        sam, tree = build.with_image_size(sam, tree, config.image_size)
    return Base(sam, jax.device_get(tree), sha256)


def add_parts(config: TrainConfig, base: Base) -> tuple[Sam, params.Params]:
    """The trained system: the base, plus HQ-SAM's parts and a plugin if the options say so."""
    sam, tree = base.sam, base.tree
    rng = jax.random.key(config.seed)
    if config.hq and not sam.config.hq:
        sam, tree = build.with_hq(sam, tree, jax.random.fold_in(rng, 1))
    if config.plugin is not None:
        sam, tree = build.with_plugin(sam, tree, config.plugin, rng)
    return sam, jax.device_get(tree)


def frozen_at_random(base: params.Params, frozen: params.Params) -> list[str]:
    """Paths of added parameters that are frozen at random values. A plugin may be: it starts at the identity."""
    added = params.flatten(frozen).keys() - params.flatten(base).keys()
    return sorted(path for path in added if not path.startswith("plugin/"))


def facts(base: Base, chosen: Chosen) -> dict[str, str]:
    """Base and pictures of a run, which are compared, beside its options, when it is continued."""
    return {"base": base.sam.config.name, "base_sha256": base.sha256, "pictures": chosen.identity}


def open_cache(config: TrainConfig, sam: Sam, frozen: params.Params, *, neck_trains: bool) -> FeatureCache | None:
    """The cache of the frozen encoder's features, which all devices of this host encode; None without --cache."""
    if config.cache is None:
        return None
    devices = parallel.of_this_host(parallel.choose_devices(config.devices))
    freeze, _ = encoder_halves(sam, neck_trains=neck_trains)
    encoder = {"image_encoder": frozen["image_encoder"]}
    identity = {
        "version": __version__,
        "weights": params.digest(encoder),
        "config": dataclasses.asdict(dataclasses.replace(sam.config, plugin=None)),  # size, dtype, early features
        "cut before the neck": neck_trains,
    }
    return FeatureCache(
        config.cache,
        identity=identity,
        encode=functools.partial(jax.jit(freeze), jax.device_put(encoder)),
        encode_all=parallel.spread(freeze, encoder, devices),
        size=sam.config.image_size,
        limit=int(config.cache_limit * 2**30),
    )


def describe_cache(cache: FeatureCache, views: int) -> str:
    """One line about the cache of a run that reads up to `views` views."""
    size = f"up to {views * cache.entry_size / 2**30:.2g} GiB"
    if views > cache.capacity:
        size += f", more than --cache-limit allows, so that all but {cache.capacity:,} are encoded again"
    return f"features of {views:,} views are encoded when first needed and kept in {cache.entries.folder}: {size}"
