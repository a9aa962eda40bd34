"""What a training run is made of: model, pictures, cache, each from the run's options and checked."""

import dataclasses
import functools
import hashlib
import math

import jax

from stablesam_jax import build, params
from stablesam_jax.config import SamConfig
from stablesam_jax.data.collage import Collage
from stablesam_jax.data.pipeline import TRAINING_KINDS, BatchConfig, ViewConfig, Views
from stablesam_jax.data.readers import Pictures, Selection
from stablesam_jax.data.sources import open_data
from stablesam_jax.errors import InputError
from stablesam_jax.files.feature_cache import FeatureCache
from stablesam_jax.model.encoders import encoder_of
from stablesam_jax.model.sam import Sam
from stablesam_jax.version import __version__
from train.presets import TrainConfig
from train.step import encoder_halves

EMBEDDED_SCENES = 120  # composed for a run without data folders
MOST_CLICKS = 8  # SAM's own training has eight (SAM paper, appendix A)


@dataclasses.dataclass(frozen=True)
class Base:
    """What a run starts from."""

    sam: Sam  # at the input size that is asked for
    tree: params.Params
    sha256: str  # as it is stored, before its positions are resized: what a plugin is put on


@dataclasses.dataclass(frozen=True)
class Parts:
    """All that a run works on."""

    base: Base
    sam: Sam  # the system that trains
    trained: params.Params
    frozen: params.Params
    neck_trains: bool  # see `step.encoder_halves`
    training: Pictures
    held_out: Pictures
    views: Views  # of the training pictures
    batches: BatchConfig
    steps: int
    cache: FeatureCache | None

    @property
    def tree(self) -> params.Params:
        """All parameters, as they are at the start."""
        return params.merge(self.frozen, self.trained)


def prepare(config: TrainConfig) -> Parts:
    """Model, pictures and cache of a run; nothing is written but the cache's folder.

    Raises:
        InputError: an option, the model or the pictures cannot be used.
    """
    check_numbers(config)
    parse_kinds(config.prompts)
    base = load_base(config)
    sam, tree = add_parts(config, base)
    trained, frozen = params.split(tree, config.trainable)
    neck_trains = check_trainable(config, sam, trained, resting_parts(base.tree, frozen))
    training, held_out = pictures(config)
    if config.steps is None:
        steps, epochs = math.ceil(config.epochs * len(training) / config.batch_size), math.ceil(config.epochs)
    else:
        steps, epochs = config.steps, math.ceil(config.steps * config.batch_size / len(training))
    views = describe_views(config, sam.config)
    return Parts(
        base=base,
        sam=sam,
        trained=trained,
        frozen=frozen,
        neck_trains=neck_trains,
        training=training,
        held_out=held_out,
        views=Views(training, dataclasses.replace(views, views=min(views.views, epochs))),  # one for each epoch
        batches=describe_batches(config, sam.config),
        steps=steps,
        cache=open_cache(config, sam, frozen, neck_trains=neck_trains),
    )


def check_numbers(config: TrainConfig) -> None:
    """Raises an InputError that names every option out of range; numbers of the data are checked where they go."""
    rules = [
        ("--steps", config.steps, config.steps is None or config.steps >= 1, "at least 1"),
        ("--epochs", config.epochs, 0 < config.epochs < math.inf, "above 0"),
        ("--learning-rate", config.learning_rate, 0 < config.learning_rate < math.inf, "above 0"),
        ("--clip-norm", config.clip_norm, config.clip_norm is None or 0 < config.clip_norm < math.inf, "above 0"),
        ("--ema", config.ema, config.ema is None or 0 < config.ema < 1, "between 0 and 1"),
        ("--accumulate", config.accumulate, config.accumulate >= 1, "at least 1"),
        ("--save-every", config.save_every, config.save_every >= 1, "at least 1"),
        ("--workers", config.workers, config.workers >= 0, "at least 0"),
        ("--cache-limit", config.cache_limit, 0 < config.cache_limit < math.inf, "above 0"),
        ("--limit", config.limit, config.limit is None or config.limit >= 1, "at least 1"),
        ("--clicks", config.clicks, 0 <= config.clicks <= MOST_CLICKS, f"from 0 to {MOST_CLICKS}"),
        ("--eval-every", config.eval_every, config.eval_every >= 0, "at least 0"),
        ("--held-out", config.held_out, config.held_out >= 0, "at least 0"),
        ("--eval-prompts", config.eval_prompts, config.eval_prompts >= 1, "at least 1"),
    ]
    faults = [f"{option} {value}: must be {expected}" for option, value, holds, expected in rules if not holds]
    if config.clicks and config.objective != "pretrain":
        faults.append(f"--clicks {config.clicks}: are of --objective pretrain alone")
    if faults:
        raise InputError("; ".join(faults) + ".")


def check_trainable(config: TrainConfig, sam: Sam, trained: params.Params, resting: list[str]) -> bool:
    """Whether the encoder is cut before its neck, which trains then.

    Raises:
        InputError: something rests that has random numbers, or trains that the loss does not reach or a cache holds
            still.
    """
    if resting:
        raise InputError(
            f"--trainable: {resting[0]} has random numbers and would not train; "
            "train HQ-SAM's parts too, as presets hq-sam and stable-hq-sam do, or give --model an HQ-SAM."
        )
    if config.hq and config.objective == "pretrain":
        raise InputError("--objective pretrain is SAM's loss and does not reach HQ-SAM's parts; say --no-hq.")
    neck_trains = encoder_of(sam.config).in_two_steps and "neck" in trained.get("image_encoder", {})
    moving = trained.get("image_encoder", {}).keys() - ({"neck"} if neck_trains else set())
    if config.cache is not None and moving:
        raise InputError(
            f"--trainable: image_encoder/{min(moving)} would train, but --cache holds features of a frozen encoder; "
            "say --cache None."
        )
    return neck_trains


def describe_views(config: TrainConfig, model: SamConfig) -> ViewConfig:
    """How pictures enter the run."""
    return ViewConfig(
        size=model.image_size,
        scale_range=config.scale_range,
        views=config.views,
        occlusion=config.occlusion,
        seed=config.seed,
    )


def describe_batches(config: TrainConfig, model: SamConfig) -> BatchConfig:
    """What a step sees."""
    return BatchConfig(
        pictures=config.batch_size,
        prompts_per_picture=config.prompts_per_picture,
        kinds=parse_kinds(config.prompts),
        mask_size=model.mask_size,
        seed=config.seed,
    )


def parse_kinds(options: tuple[str, ...]) -> dict[str, float]:
    """KIND=WEIGHT options as a dictionary.

    Raises:
        InputError: not of that form, an unknown kind, a negative weight, or no positive one.
    """
    kinds = {}
    for option in options:
        kind, _, weight = option.partition("=")
        try:
            kinds[kind] = float(weight)
        except ValueError:
            raise InputError(f"--prompts {option}: write KIND=WEIGHT, as in noisy-box=1.") from None
        if kind not in TRAINING_KINDS:
            raise InputError(f"--prompts {option}: unknown kind; known are {', '.join(TRAINING_KINDS)}.")
        if not 0 <= kinds[kind] < math.inf:
            raise InputError(f"--prompts {option}: the weight must be a number from 0 up.")
    if not any(kinds.values()):
        raise InputError("--prompts: give at least one kind a weight above 0.")
    return kinds


def load_base(config: TrainConfig) -> Base:
    """The model that is named."""
    sam, tree = build.load_model(config.model, dtype=config.dtype)
    sha256 = params.digest(tree)
    if config.image_size is not None:
        sam, tree = build.with_image_size(sam, tree, config.image_size)
    return Base(sam, jax.device_get(tree), sha256)


def add_parts(config: TrainConfig, base: Base) -> tuple[Sam, params.Params]:
    """The system that trains: the base with HQ-SAM's parts where it has none, and with a plugin, where asked for."""
    sam, tree = base.sam, base.tree
    rng = jax.random.key(config.seed)
    if config.hq and not sam.config.hq:
        sam, tree = build.with_hq(sam, tree, jax.random.fold_in(rng, 1))
    if config.plugin is not None:
        sam, tree = build.with_plugin(sam, tree, config.plugin, rng)
    return sam, jax.device_get(tree)


def resting_parts(base: params.Params, frozen: params.Params) -> list[str]:
    """Paths of what was added to the base and does not train, but for a plugin, which may start as the identity."""
    added = params.flatten(frozen).keys() - params.flatten(base).keys()
    return sorted(path for path in added if not path.startswith("plugin/"))


def facts(base: Base, training: Pictures) -> dict[str, str]:
    """What a run depends on beside its options, so that it is not continued on another base or other pictures."""
    names = hashlib.sha256("\n".join(training.names).encode()).hexdigest()
    return {
        "base": base.sam.config.name,
        "base_sha256": base.sha256,
        "pictures": f"{len(training)}, names {names[:16]}",
    }


def pictures(config: TrainConfig) -> tuple[Pictures, Pictures]:
    """Training and held-out pictures; of folders, a fixed choice by name is held out."""
    if not config.data_dir:
        training, unseen = (Collage(split, EMBEDDED_SCENES, seed=config.seed) for split in ("train", "held_out"))
        scenes = range(min(config.limit or EMBEDDED_SCENES, EMBEDDED_SCENES))
        return Selection(training, scenes), Selection(unseen, range(min(config.held_out, EMBEDDED_SCENES)))
    source = open_data(config.data_dir)
    order = sorted(range(len(source)), key=lambda index: hashlib.sha256(source.names[index].encode()).digest())
    kept = min(config.held_out, len(source) // 5)
    chosen = order[kept:] if config.limit is None else order[kept : kept + config.limit]
    return Selection(source, sorted(chosen)), Selection(source, sorted(order[:kept]))


def open_cache(config: TrainConfig, sam: Sam, frozen: params.Params, *, neck_trains: bool) -> FeatureCache | None:
    """The cache of what the frozen encoder makes of pictures, where one is asked for."""
    if config.cache is None:
        return None
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
        size=sam.config.image_size,
        limit=int(config.cache_limit * 2**30),
    )


def describe_cache(cache: FeatureCache, views: int) -> str:
    """What a run does with its cache, in one line; `views` may be asked for."""
    size = f"up to {views * cache.entry_size / 2**30:.2g} GiB"
    if views > cache.capacity:
        size += ", more than --cache-limit allows, so that some are encoded again"
    return f"features of {views:,} views are encoded when first needed and kept in {cache.entries.folder}: {size}"
