"""`python -m train.main [PRESET] [--option value ...]`: trains the plugin, or another part, of a segmenter."""

import contextlib
import functools
import json
import pathlib
import sys
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from eval.loop import Protocol, Segmenter
from stablesam_jax import parallel, params
from stablesam_jax.commands import called
from stablesam_jax.data.pipeline import Feeding, batches
from stablesam_jax.errors import InputError, exit_on_input_error
from stablesam_jax.files.compilation_cache import keep_compiled_programs
from stablesam_jax.files.disk import write_text
from train.comparison import Comparison, RememberingSegmenter
from train.console import Console
from train.optimizer import make_optimizer
from train.presets import PRESETS, TrainConfig, parse
from train.progress import Progress
from train.results import overview, report, save_result, tell_use
from train.run import NotFiniteError, Run
from train.setup import Parts, describe_cache, facts, prepare
from train.step import State, make_update
from train.stopping import stop_signals

SHORT_LOOK_PROMPTS = 4  # of each kind, in an evaluation on the way


class RunError(Exception):
    """The run ended on its way, and can be continued."""


def train(config: TrainConfig) -> None:
    """One training run, from its options to its results."""
    # What is asked for is checked before anything is written.
    devices = parallel.choose_devices(config.devices)
    parallel.check_divides(config.batch_size, len(devices))
    parts = prepare(config)
    first_host = jax.process_index() == 0
    console = Console(silent=not first_host)
    run = Run(config, facts(parts.base, parts.training), first_host=first_host)
    parallel.check_same_on_hosts(run.digest, "options, base or pictures")
    announce(console, config, parts, devices)

    # A fresh plugin is the identity, or near it, and shares its compiled programs; fresh HQ parts are noise.
    segmenter = segmenters(parts)
    plain = parts.sam.config.hq != parts.base.sam.config.hq
    before = Segmenter(parts.base.sam, parts.base.tree) if plain else segmenter(parts.tree)
    short_look = Comparison(before, parts.held_out, Protocol(prompts=SHORT_LOOK_PROMPTS, seed=config.seed))

    def look(step: int, trained: params.Params) -> None:
        look_at(run, console, step, short_look, segmenter(params.merge(parts.frozen, trained)))

    try:
        trained = run_steps(config, parts, run, console, devices, look)
    finally:
        run.close()
    if trained is None:
        return
    result = params.merge(parts.frozen, trained)
    alone = config.plugin is not None and trained.keys() == {"plugin"}
    comparison = Comparison(before, parts.held_out, Protocol(prompts=config.eval_prompts, seed=config.seed))
    try:
        system = save_result(run, console, parts.sam.config, result, plugin_alone=alone)
        report(run, console, comparison, segmenter(result))
    except (InputError, OSError) as error:  # a full disk, a held-out picture that cannot be read
        raise RunError(f"{error} All steps are done and kept; {same_command(config)} does what is left.") from None
    tell_use(run, console, system)


def same_command(config: TrainConfig) -> str:
    """What continues a run: --fresh would remove it."""
    return "the same command without --fresh" if config.fresh else "the same command"


def announce(console: Console, config: TrainConfig, parts: Parts, devices: list[jax.Device]) -> None:
    """What trains, on what, and where."""
    table, counts = overview(parts.trained, parts.frozen)
    console.show("parameters", table, **counts)
    trained, every = params.count(parts.trained), params.count(parts.tree)
    console.say(
        "started",
        f"{config.model}: training {trained:,} of {every:,} parameters on {len(parts.training)} pictures, "
        f"{parts.steps} steps of {config.batch_size} x {config.prompts_per_picture} prompts, {len(devices)} device(s)",
        trained=trained,
        parameters=every,
        pictures=len(parts.training),
        held_out=len(parts.held_out),
        steps=parts.steps,
        devices=[device.device_kind for device in devices],
        hosts=jax.process_count(),
    )


def segmenters(parts: Parts) -> Callable[[params.Params], Segmenter]:
    """Parameters of the system -> what evaluates them; held-out pictures are encoded once where the encoder rests."""
    if "image_encoder" in parts.trained:
        return functools.partial(Segmenter, parts.sam)
    return functools.partial(RememberingSegmenter, parts.sam, known={})


def run_steps(
    config: TrainConfig,
    parts: Parts,
    run: Run,
    console: Console,
    devices: list[jax.Device],
    look: Callable[[int, params.Params], None],
) -> params.Params | None:
    """The steps that are left, with their checkpoints.

    Args:
        config: of the run.
        parts: what it works on.
        run: its folder.
        console: is told how far it is.
        devices: of all hosts.
        look: evaluates what step has trained so far.

    Returns:
        The parameters that have trained, or None where the run was asked to stop before its end.

    Raises:
        RunError: it ended on its way.
    """
    steps = parts.steps
    optimizer = make_optimizer(
        config.schedule, config.learning_rate, steps, clip_norm=config.clip_norm, accumulate=config.accumulate
    )
    state = State(
        step=jnp.zeros((), jnp.int32),
        trained=parts.trained,
        optimizer=optimizer.init(parts.trained),
        averaged=None if config.ema is None else parts.trained,
    )
    state = parallel.from_first_host(run.restore(state) or state)
    step = saved = int(state.step)
    if step:
        console.say("continuing", f"continuing after step {step}", step=step)
    cache = parts.cache if step < steps else None
    if cache is not None:
        console.say("cache", describe_cache(cache, min(len(parts.views), (steps - step) * config.batch_size)))

    function = make_update(
        parts.sam,
        optimizer,
        config.objective,
        neck_trains=parts.neck_trains,
        clicks=config.clicks,
        ema=config.ema or 0.0,
    )
    update = parallel.run_on_all(function, devices, donate=(0,))
    state = parallel.replicate(state, devices)
    frozen = parallel.replicate(parts.frozen, devices)
    seed = parallel.replicate(np.uint32(config.seed), devices)
    share = {"host": jax.process_index(), "hosts": jax.process_count()}
    stream = batches(parts.views, parts.batches, Feeding(start_step=step, workers=config.workers, **share))
    with (
        stop_signals() as stop,
        Progress(run, console, start=step, steps=steps, pictures_per_step=config.batch_size) as progress,
    ):
        try:
            while step < steps:
                batch = next(stream)
                del batch["view"]
                if cache is not None:
                    batch["features"] = cache(batch.pop("picture"))
                state, measured = update(state, frozen, parallel.shard(batch, devices), seed)
                step += 1
                stopping = parallel.on_any_host(stop.asked)
                saving = step % config.save_every == 0 or step == steps or stopping
                looking = config.eval_every and step % config.eval_every == 0 and step < steps and len(parts.held_out)
                progress.add(step, measured, now=saving or bool(looking))
                if saving:
                    run.save(parallel.unreplicate(state))
                    saved = step
                if stopping and step < steps:
                    message = f"stopped after step {step}; {same_command(config)} continues"
                    console.say("stopped", message, step=step)
                    return None
                if looking:
                    look(step, outcome(parallel.unreplicate(state)))
        except NotFiniteError as error:
            path = name_pictures(run, error, parts)
            raise RunError(
                f"{error}; the checkpoints before it are kept, and {path} names the pictures of that step. "
                "Try a lower --learning-rate in another --output."
            ) from None
        except (InputError, OSError) as error:  # a picture that cannot be read, a full disk
            if step > saved:
                with contextlib.suppress(InputError, OSError, NotFiniteError):
                    progress.look()
                    run.save(parallel.unreplicate(state))
                    saved = step
            raise RunError(f"{error} The run is kept up to step {saved}; {same_command(config)} continues.") from None
    check_frozen(console, parts.frozen, parallel.unreplicate(frozen))
    if cache is not None:
        held = f"{cache.entries.size / 2**30:.2f} GiB in {config.cache}"
        console.say("features", f"features: {cache.found:,} read, {cache.encoded:,} encoded; {held}")
    return outcome(parallel.unreplicate(state))


def check_frozen(console: Console, before: params.Params, after: params.Params) -> None:
    """Says that what rests has not moved, from the bits that the devices hold at the end."""
    digest = params.digest(before)
    if params.digest(after) != digest:
        raise RunError("a frozen parameter has changed, which no step does: suspect the machine's memory.")
    count = params.count(before)
    message = f"{count:,} frozen parameters are what they were, to the bit (SHA-256 {digest[:16]})"
    console.say("frozen", message, parameters=count, sha256=digest)


def outcome(state: State) -> params.Params:
    """The parameters that count: the moving average, where there is one."""
    return state.trained if state.averaged is None else state.averaged


def look_at(run: Run, console: Console, step: int, comparison: Comparison, now: Segmenter) -> None:
    """A short evaluation on the way: a line, a record, curves and a picture."""
    rows, figure = comparison(now)
    summary = rows["after"]
    changes = [
        f"{kind} {100 * values['miou']:.1f} ({100 * (values['miou'] - rows['before'][kind]['miou']):+.1f})"
        for kind, values in summary.items()
    ]
    message = f"step {step}, {len(comparison.pictures)} held-out pictures, mIoU: {', '.join(changes)}"
    console.say("evaluation", message, step=step, held_out=summary)
    run.log({"step": step, "held_out": summary})
    curves = {f"held_out/{kind}/{name}": value for kind, row in summary.items() for name, value in row.items()}
    run.board(step, curves, figure)


def name_pictures(run: Run, error: NotFiniteError, parts: Parts) -> pathlib.Path:
    """Writes which pictures a step saw whose numbers went wrong; batches are a function of the step."""
    path = run.folder / "not_finite.json"
    if run.first_host:
        indices = next(batches(parts.views, parts.batches, Feeding(start_step=error.step - 1)))["view"].tolist()
        count = parts.views.config.views
        seen = [{"picture": parts.training.names[index // count], "view": index % count} for index in indices]
        write_text(path, json.dumps({"step": error.step, "error": str(error), "pictures": seen}, indent=1) + "\n")
    return path


def main() -> None:
    """Reads the preset and the options, and trains."""
    config = parse(called("train"), PRESETS)
    with exit_on_input_error():
        try:
            if config.coordinator is None:
                parallel.split_cpu(config.batch_size)
            else:
                parallel.join_hosts(config.coordinator, config.hosts, config.host)
            keep_compiled_programs()
            train(config)
        except RunError as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(1)
        except KeyboardInterrupt:
            print(f"interrupted; {same_command(config)} continues from the newest checkpoint", file=sys.stderr)
            sys.exit(130)


if __name__ == "__main__":
    main()
