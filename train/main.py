"""`python -m train.main [PRESET] [--option value ...]`: trains the plugin, or another part, of a segmenter."""

import dataclasses
import functools
import hashlib
import math
import signal
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from eval.loop import Protocol, Segmenter
from eval.report import show, table
from stablesam_jax import build, checkpoint, parallel, params, plugin_file
from stablesam_jax.compilation_cache import keep_compiled_programs
from stablesam_jax.config import LiteConfig, SamConfig
from stablesam_jax.data.collage import Collage
from stablesam_jax.data.pipeline import TRAINING_KINDS, BatchConfig, Feeding, ViewConfig, Views, batches
from stablesam_jax.data.readers import Pictures, Selection
from stablesam_jax.data.sources import open_data, source_name
from stablesam_jax.errors import InputError, exit_on_input_error
from stablesam_jax.feature_cache import FeatureCache
from stablesam_jax.model.sam import Sam
from train.comparison import compare, summaries, write_figure, write_report
from train.optimizer import make_optimizer
from train.presets import PRESETS, TrainConfig
from train.run import Progress, Run
from train.step import State, encoder_halves, make_update

EMBEDDED_SCENES = 120  # composed for a run without data folders


def train(config: TrainConfig) -> None:
    """One training run, from its options to its results."""
    # What is asked for is checked before anything is written.
    check_numbers(config)
    devices = parallel.choose_devices(config.devices)
    parallel.check_divides(config.batch_size, len(devices))
    parse_kinds(config.prompts)
    base = load_base(config)
    sam, tree = add_parts(config, base)
    trained, frozen = params.split(tree, config.trainable)
    neck_trains = check_trainable(config, sam, trained, resting_parts(base.tree, frozen))
    training, held_out = pictures(config)
    views = Views(training, describe_views(config, sam.config))
    steps = config.steps or math.ceil(config.epochs * len(training) / config.batch_size)
    batch_config = describe_batches(config, sam.config)
    cache = open_cache(config, sam, frozen, neck_trains=neck_trains)
    run = Run(config, facts(base, training))
    print(
        f"{config.model}: training {params.count(trained):,} of {params.count(tree):,} parameters on "
        f"{len(training)} pictures, {steps} steps of {config.batch_size} x {config.prompts_per_picture} prompts, "
        f"{len(devices)} device(s)",
        flush=True,
    )

    optimizer = make_optimizer(
        config.schedule, config.learning_rate, steps, clip_norm=config.clip_norm, accumulate=config.accumulate
    )
    state = State(step=jnp.zeros((), jnp.int32), trained=trained, optimizer=optimizer.init(trained))
    state = run.restore(state) or state
    start = int(state.step)
    if start:
        print(f"continuing after step {start}", flush=True)
    if cache is not None and start < steps:
        print(describe_cache(cache, min(len(views), (steps - start) * config.batch_size)), flush=True)

    update = parallel.run_on_all(
        make_update(sam, optimizer, config.objective, neck_trains=neck_trains), devices, donate=(0,)
    )
    state = parallel.replicate(state, devices)
    everywhere = parallel.replicate(frozen, devices)
    seed = parallel.replicate(np.uint32(config.seed), devices)
    progress = Progress(run, start=start, steps=steps, pictures_per_step=config.batch_size)
    stream = batches(views, batch_config, Feeding(start_step=start, workers=config.workers))
    with stop_signals() as stop:
        for step, batch in zip(range(start + 1, steps + 1), stream, strict=False):
            del batch["view"]
            if cache is not None:
                batch["features"] = cache(batch.pop("picture"))
            state, measured = update(state, everywhere, parallel.shard(batch, len(devices)), seed)
            saving = step % config.save_every == 0 or step == steps or stop.asked
            progress.add(step, measured, now=saving)
            if saving:
                run.save(parallel.unreplicate(state))
            if saving and stop.asked:
                print(f"stopped after step {step}; the same command continues", flush=True)
                return

    if cache is not None and start < steps:
        held = f"{cache.entries.size / 2**30:.2f} GiB in {config.cache}"
        print(f"features: {cache.found:,} read, {cache.encoded:,} encoded; {held}", flush=True)
    trained = parallel.unreplicate(state.trained)
    result = params.merge(frozen, trained)
    save_result(run, sam.config, result, plugin_alone=config.plugin is not None and trained.keys() == {"plugin"})
    # A fresh plugin is the identity, or near it, and shares its compiled programs; fresh HQ parts are noise.
    before = Segmenter(base.sam, base.tree) if sam.config.hq != base.sam.config.hq else Segmenter(sam, tree)
    report(config, run, {"before": before, "after": Segmenter(sam, result)}, held_out)


def check_numbers(config: TrainConfig) -> None:
    """Raises an InputError that names every option out of range; numbers of the data are checked where they go."""
    rules = [
        ("--steps", config.steps, config.steps is None or config.steps >= 1, "at least 1"),
        ("--epochs", config.epochs, 0 < config.epochs < math.inf, "above 0"),
        ("--learning-rate", config.learning_rate, 0 < config.learning_rate < math.inf, "above 0"),
        ("--clip-norm", config.clip_norm, config.clip_norm is None or 0 < config.clip_norm < math.inf, "above 0"),
        ("--accumulate", config.accumulate, config.accumulate >= 1, "at least 1"),
        ("--save-every", config.save_every, config.save_every >= 1, "at least 1"),
        ("--workers", config.workers, config.workers >= 0, "at least 0"),
        ("--cache-limit", config.cache_limit, 0 < config.cache_limit < math.inf, "above 0"),
        ("--held-out", config.held_out, config.held_out >= 0, "at least 0"),
        ("--eval-prompts", config.eval_prompts, config.eval_prompts >= 1, "at least 1"),
    ]
    faults = [f"{option} {value}: must be {expected}" for option, value, holds, expected in rules if not holds]
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
    neck_trains = isinstance(sam.config.encoder, LiteConfig) and "neck" in trained.get("image_encoder", {})
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


@dataclasses.dataclass(frozen=True)
class Base:
    """What a run starts from."""

    sam: Sam  # at the input size that is asked for
    tree: params.Params
    sha256: str  # as it is stored, before its positions are resized: what a plugin is put on


def load_base(config: TrainConfig) -> Base:
    """The model that is named."""
    sam, tree = build.load_model(config.model)
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
        return training, Selection(unseen, range(min(config.held_out, EMBEDDED_SCENES)))
    source = open_data(config.data_dir)
    order = sorted(range(len(source)), key=lambda index: hashlib.sha256(source.names[index].encode()).digest())
    kept = min(config.held_out, len(source) // 5)
    return Selection(source, sorted(order[kept:])), Selection(source, sorted(order[:kept]))


def open_cache(config: TrainConfig, sam: Sam, frozen: params.Params, *, neck_trains: bool) -> FeatureCache | None:
    """The cache of what the frozen encoder makes of pictures, where one is asked for."""
    if config.cache is None:
        return None
    freeze, _ = encoder_halves(sam, neck_trains=neck_trains)
    encoder = {"image_encoder": frozen["image_encoder"]}
    identity = {
        "version": checkpoint.version(),
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


@dataclasses.dataclass
class StopRequest:
    """Whether someone has asked the run to end."""

    asked: bool = False


class stop_signals:
    """While open, SIGTERM and Ctrl-C ask for a stop after the running step; a second Ctrl-C ends the program."""

    def __enter__(self) -> StopRequest:
        request = StopRequest()

        def handle(number: int, frame: types.FrameType | None) -> None:
            if request.asked and number == signal.SIGINT:
                raise KeyboardInterrupt
            request.asked = True

        self.before = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
        return request

    def __exit__(self, *error: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)


def save_result(run: Run, model: SamConfig, result: params.Params, *, plugin_alone: bool) -> None:
    """Writes what `build.load_model` reads; what is there already is kept.

    Args:
        run: gets the file or folder.
        model: configuration of what has trained.
        result: its parameters.
        plugin_alone: the plugin is all that was added to the base and has trained: one file, `BASE+FILE` is the model.
            Otherwise the whole model is written, base included.
    """
    path = run.folder / ("plugin.safetensors" if plugin_alone else "model")
    if path.exists():
        print(f"kept: {path}", flush=True)
        return
    # A file that is passed on names the data and the base, not where they lay.
    recipe = run.settings | {"data_dir": list(map(source_name, run.settings["data_dir"]))}
    del recipe["model"]
    if plugin_alone:
        assert model.plugin is not None
        plugin_file.save_plugin(path, result["plugin"], config=model.plugin, metadata=recipe)
    else:
        checkpoint.save_model(path, result, config=model, source=recipe, dtype=np.dtype(run.settings["store"]))
    print(f"written: {path}", flush=True)


def report(config: TrainConfig, run: Run, systems: dict[str, Segmenter], held_out: Pictures) -> None:
    """The table before / after on held-out pictures, printed and written, and a figure of what changed."""
    path, figure = run.folder / "report.md", run.folder / "figures" / "wobble.png"
    if path.exists():
        print(f"kept: {path} (remove it to compare anew)\n\n{path.read_text()}", flush=True)
        return
    if not len(held_out):
        print("no picture was held out (--held-out, at most a fifth of all): no table before / after")
        return
    print(f"comparing before and after on {len(held_out)} held-out pictures", flush=True)
    protocol = Protocol(prompts=config.eval_prompts, seed=config.seed)
    scores = compare(systems, held_out, protocol)
    rows = summaries(scores)
    title = f"{len(held_out)} held-out pictures, {config.eval_prompts} prompts of each kind"
    show([table(rows, title=title, first="")])
    write_figure(figure, systems, scores, held_out, protocol)
    write_report(path, rows, title)  # last: where it is, all is done
    print(f"written: {path}, {figure}", flush=True)


def parse(program: str) -> TrainConfig:
    """The configuration that the command line asks for: a preset, or the first, and options."""
    arguments = sys.argv[1:]
    if arguments[:1] in (["-h"], ["--help"]):
        print("presets, each with its own defaults (PRESET --help); without one, the first:")
        print("\n".join(f"  {name:18} {purpose}" for name, (purpose, _) in PRESETS.items()) + "\n")
    if not arguments or arguments[0].startswith("-"):
        arguments = ["quickstart", *arguments]
    return tyro.extras.overridable_config_cli(PRESETS, args=arguments, prog=program)


def main() -> None:
    """Reads the preset and the options, and trains."""
    config = parse("python -m train.main")
    with exit_on_input_error():
        try:
            parallel.split_cpu(config.batch_size)
            keep_compiled_programs()
            train(config)
        except FloatingPointError as error:
            advice = "the checkpoints before it are kept. Try a lower --learning-rate in another --output."
            print(f"error: {error}; {advice}", file=sys.stderr)
            sys.exit(1)


if __name__ == "__main__":
    main()
