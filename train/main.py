"""`python -m train.main [PRESET] [--option value ...]`: trains the plugin, or another part, of a segmenter."""

import contextlib
import functools
import itertools
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
from stablesam_jax.files.locks import owned
from train.comparison import Comparison, RememberingSegmenter
from train.console import Console
from train.feeding import ahead, feed
from train.looks import Looks
from train.optimizer import learning_rate, make_optimizer
from train.options import parse_run
from train.presets import PRESETS, TrainConfig
from train.profiling import profiled
from train.progress import Progress
from train.results import overview, report, save_result, tell_use
from train.run import PICTURES, NotFiniteError, Run, remembered_pictures
from train.setup import Parts, describe_cache, facts, prepare
from train.step import State, make_update
from train.stopping import stop_signals

STOP_EVERY = 16  # steps after which several hosts agree whether to stop


class RunError(Exception):
    """The run ended before its last step; it can be continued."""


def train(config: TrainConfig) -> bool:
    """Runs a training from options to results, with its folder locked against other processes.

    Returns:
        whether it has ended; False if a signal has stopped it before.
    """
    with owned(config.output) if jax.process_index() == 0 else contextlib.nullcontext():
        return carry_out(config)


def carry_out(config: TrainConfig) -> bool:
    """`train` in a locked folder."""
    # All options and pictures are checked before anything is written.
    devices = parallel.choose_devices(config.devices)
    parallel.check_divides(config.batch_size, len(devices))
    engine = parallel.ENGINES[config.engine](devices)
    first_host = jax.process_index() == 0
    parts = prepare(config, parallel.gather(remembered_pictures(config) if first_host else None)[0])
    console = Console(silent=not first_host)
    run = Run(config, facts(parts.base, parts.chosen), parts.chosen.record, first_host=first_host)
    parallel.check_same_on_hosts(run.digest, "options, base or pictures")
    announce(console, config, parts, devices)

    # "Before" has the untrained plugin, which is the identity or near it, to share compiled programs with "after".
    # Untrained HQ-SAM parts are random, so that "before" is the base without them.
    segmenter = segmenters(parts)
    plain = parts.sam.config.hq != parts.base.sam.config.hq
    before = Segmenter(parts.base.sam, parts.base.tree) if plain else segmenter(parts.tree)
    looks = Looks(
        config,
        run,
        console,
        before=before,
        segmenter=lambda trained: segmenter(params.merge(parts.frozen, trained)),
        pictures=parts.held_out,
        steps=parts.steps,
    )
    try:
        run.join_wandb()
        ended = run_steps(config, parts, run, console, engine, looks)
    finally:
        run.close()
    if ended is None:
        return False
    trained, chosen = looks.result(*ended)
    result = params.merge(parts.frozen, trained)
    alone = config.plugin is not None and trained.keys() == {"plugin"}
    comparison = Comparison(before, parts.held_out, Protocol(prompts=config.eval_prompts, seed=config.seed))
    try:
        system = save_result(run, console, parts.sam.config, result, plugin_alone=alone, chosen=chosen)
        report(run, console, comparison, segmenter(result), chosen)
    except (InputError, OSError) as error:  # a full disk, a held-out picture that cannot be read
        raise RunError(f"{error} All steps are done and kept; {same_command(config)} does what is left.") from None
    tell_use(run, console, system)
    return True


def same_command(config: TrainConfig) -> str:
    """The command that continues a run, in words; --fresh would remove it."""
    return "the same command without --fresh" if config.fresh else "the same command"


def announce(console: Console, config: TrainConfig, parts: Parts, devices: list[jax.Device]) -> None:
    """Reports trained parameters, pictures, steps and devices."""
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
    if skipped := parts.chosen.record.get("skipped"):
        message = f"left out, since they cannot be used: {len(skipped)} of the pictures; {PICTURES} names them"
        console.say("skipped", message, pictures=sorted(skipped))


def segmenters(parts: Parts) -> Callable[[params.Params], Segmenter]:
    """Parameters -> segmenter for evaluation; with a frozen encoder each held-out picture is encoded once."""
    if "image_encoder" in parts.trained:
        return functools.partial(Segmenter, parts.sam)
    return functools.partial(RememberingSegmenter, parts.sam, embeddings={})


def run_steps(
    config: TrainConfig,
    parts: Parts,
    run: Run,
    console: Console,
    engine: parallel.Engine,
    looks: Looks,
) -> tuple[params.Params, int] | None:
    """Runs the remaining steps and writes checkpoints.

    Args:
        config: of the run.
        parts: model and data of the run.
        run: folder of the run.
        console: for progress.
        engine: runs the steps on all devices of all hosts.
        looks: evaluations during training.

    Returns:
        The trained parameters and the number of steps, or None if a signal stopped the run before its end.

    Raises:
        RunError: the run ended before its last step.
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
    looks.resume(step, outcome(state))
    left = 0 if looks.over(step) else steps - step
    cache = parts.cache if left else None
    if cache is not None:
        console.say("cache", describe_cache(cache, min(len(parts.views), left * config.batch_size)))

    function = make_update(
        parts.sam,
        optimizer,
        config.objective,
        neck_trains=parts.neck_trains,
        clicks=config.clicks,
        ema=config.ema or 0.0,
        remat=config.remat,
    )
    update = engine.run_on_all(function, sharded=(2,), donate=(0,))
    state = engine.replicate(state)
    frozen = engine.replicate(parts.frozen)
    seed = engine.replicate(np.uint32(config.seed))
    share = {"host": jax.process_index(), "hosts": jax.process_count()}
    stream = batches(parts.views, parts.batches, Feeding.on_all_cores(config.workers, start_step=step, **share))
    stream = itertools.islice(stream, left)
    with (
        stop_signals() as stop,
        contextlib.closing(ahead(feed(stream, parts.views, cache, engine.shard))) as fed,
        Progress(
            run,
            console,
            engine.unreplicate,
            start=step,
            steps=steps,
            pictures_per_step=config.batch_size,
            learning_rate=rate_at(config, steps),
        ) as progress,
    ):
        try:
            for batch in profiled(fed, run.folder / "profile", config.profile, parallel.of_this_host(engine.devices)):
                state, measured = update(state, frozen, batch, seed)
                step += 1
                # All hosts stop after the same step. They ask each other seldom, since each waits for all.
                asking = jax.process_count() == 1 or step % STOP_EVERY == 0
                stopping = asking and parallel.on_any_host(stop.requested)
                saving = step % config.save_every == 0 or step == steps or stopping
                looking = looks.due(step)
                progress.add(step, measured, now=saving or looking)
                if saving:
                    run.save(engine.unreplicate(state))
                    looks.saved()
                    saved = step
                if stopping and step < steps:
                    message = f"stopped after step {step}; {same_command(config)} continues"
                    console.say("stopped", message, step=step)
                    return None
                if looking:
                    looks(step, outcome(engine.unreplicate(state)))
                    if step < steps and looks.over(step):
                        if not saving:
                            run.save(engine.unreplicate(state))
                        message = (
                            f"ended after step {step}: {config.patience} evaluations were not better than the best"
                        )
                        console.say("ended", message, step=step)
                        break
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
                    run.save(engine.unreplicate(state))
                    saved = step
            raise RunError(f"{error} The run is kept up to step {saved}; {same_command(config)} continues.") from None
    check_frozen(console, parts.frozen, engine.unreplicate(frozen))
    if cache is not None:
        held = f"{cache.entries.size / 2**30:.2f} GiB in {config.cache}"
        console.say("features", f"features: {cache.found:,} read, {cache.encoded:,} encoded; {held}")
    return outcome(engine.unreplicate(state)), step


def rate_at(config: TrainConfig, steps: int) -> Callable[[int], float]:
    """Steps done -> the learning rate of the next one."""
    schedule = learning_rate(config.schedule, config.learning_rate, max(steps // config.accumulate, 1))

    def rate(done: int) -> float:
        with jax.numpy_dtype_promotion("standard"):  # optax mixes int32 counts with floats
            return float(schedule(done // config.accumulate))

    return rate


def check_frozen(console: Console, before: params.Params, after: params.Params) -> None:
    """Checks that frozen parameters are unchanged to the bit, as the devices hold them at the end, and reports it."""
    digest = params.digest(before)
    if params.digest(after) != digest:
        raise RunError("a frozen parameter has changed, which no step does: suspect the machine's memory.")
    count = params.count(before)
    message = f"{count:,} frozen parameters are what they were, to the bit (SHA-256 {digest[:16]})"
    console.say("frozen", message, parameters=count, sha256=digest)


def outcome(state: State) -> params.Params:
    """The resulting parameters: the moving average, if there is one."""
    return state.trained if state.averaged is None else state.averaged


def name_pictures(run: Run, error: NotFiniteError, parts: Parts) -> pathlib.Path:
    """Writes the names of the pictures of a step that was not finite. They follow from the step alone."""
    path = run.folder / "not_finite.json"
    if run.first_host:
        indices = next(batches(parts.views, parts.batches, Feeding(start_step=error.step - 1)))["view"].tolist()
        count = parts.views.config.views
        seen = [{"picture": parts.training.names[index // count], "view": index % count} for index in indices]
        write_text(path, json.dumps({"step": error.step, "error": str(error), "pictures": seen}, indent=1) + "\n")
    return path


def main() -> None:
    """Parses the preset and the options, and trains."""
    with exit_on_input_error():
        config = parse_run(called("train"), PRESETS)
        try:
            if config.coordinator is None:
                parallel.split_cpu(config.batch_size)
            parallel.join_hosts(config.coordinator, config.hosts, config.host)
            keep_compiled_programs()
            if not train(config):
                sys.exit(130)
        except RunError as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(1)
        except KeyboardInterrupt:
            print(f"interrupted; {same_command(config)} continues from the newest checkpoint", file=sys.stderr)
            sys.exit(130)


if __name__ == "__main__":
    main()
