"""Carries out a plan, step by step: convert, check, build, train, evaluate, fill the tables.

A step whose result is there is not done again, so the same command continues where it was stopped. What single steps
refuse is reported at the end; the others go on.
"""

import contextlib
import dataclasses
import functools
import json
import os
import pathlib
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax

from eval.protocols.hq import HqConfig, hq
from eval.protocols.instances import InstancesConfig, coco, sginw
from eval.protocols.semantic import MessConfig, mess
from experiments import filled, miniature, model_facts
from experiments.disk_plan import FEATURES, group_of
from experiments.full_size import TRAINING, Model, evaluations, kinds_of, trained
from experiments.inputs import SETS_OF_PROTOCOL, boxes_of, is_there, weights_of
from experiments.options import PaperConfig
from experiments.plan import Plan
from experiments.rows import trained_system
from stablesam_jax import parallel
from stablesam_jax.commands import called
from stablesam_jax.errors import InputError
from stablesam_jax.files.disk import write_text
from train.main import RunError, train
from train.presets import TrainConfig

CHECKED = "data_check.json"
OPTIONS = "options.json"
SMALLEST_CACHE = 1.0  # GiB
ROOT = pathlib.Path(__file__).resolve().parents[1]


class Stopped(Exception):
    """A signal stopped a run; the same command continues."""


def carry_out(plan: Plan, about: str, command: str) -> dict[str, str]:
    """Does all that can be done with what is there.

    Args:
        plan: of the tables.
        about: a line about models and size, for the tables.
        command: that is running.

    Returns:
        name of a step -> why it was left out.

    Raises:
        Stopped: by a signal, in a training run.
    """
    config = plan.config
    wanted = evaluations(config.tables)
    left_out: dict[str, str] = {}

    def attempt(name: str, step: Callable[[], None]) -> None:
        try:
            step()
        except (InputError, RunError) as error:
            left_out[name] = str(error)
            print(f"left out: {name}: {error}", file=sys.stderr, flush=True)

    if jax.process_index() == 0:
        for name, step in preparations(config, wanted):
            attempt(name, step)
    parallel.on_any_host(False)  # a barrier: the other hosts wait for the data
    for model, protocols in wanted.items():
        for one in trained([model]):
            attempt(f"training {one.name}", functools.partial(train_model, config, plan, one))
        for protocol in protocols:
            attempt(f"{model.name}, {protocol}", functools.partial(evaluate, config, model, protocol))
            if jax.process_index() == 0:
                text = filled.markdown(config.output, config.tables, about, command)
                write_text(config.output / "tables.md", text)
    return left_out


def preparations(
    config: PaperConfig, wanted: Mapping[Model, Sequence[str]]
) -> Iterator[tuple[str, Callable[[], None]]]:
    """The steps before training that are not done yet, each with its name: data, weights, check, build."""
    data = config.data_folder
    arguments: tuple[str, ...]
    if config.miniature:
        yield "making the data", functools.partial(miniature.make, data, config.seed)
    for backbone in dict.fromkeys(model.backbone for model in wanted):
        target = pathlib.Path(config.base_of(backbone))
        if config.weights is not None and not target.exists() and weights_of(config.weights, backbone).there:
            given = weights_of(config.weights, backbone).path
            arguments = ("--checkpoint", str(given), "--output", str(target), "--model", target.name)
            yield f"converting {target.name}", functools.partial(tool, "convert", *arguments)
    if not trained(list(wanted)) or not is_there(data, TRAINING):
        return
    if not (config.output / CHECKED).exists():
        tests = dict.fromkeys(name for sets in SETS_OF_PROTOCOL.values() for name in sets)
        against = [f"{name}:{data}" for name in tests if name not in ("sginw", "mess") and is_there(data, name)]
        more = ("--against", *against) if against else ()
        arguments = (f"{TRAINING}:{data}", *more, "--json", str(config.output / CHECKED))
        yield "checking the data", functools.partial(tool, "check", *arguments, good=(0, 1))
    built = config.output / "built"
    if not (built / "hqseg_44k").exists():
        arguments = (TRAINING, "--source", str(data), "--data-dir", str(built))
        yield "building the data", functools.partial(tool, "build", *arguments)


def keep_options(config: PaperConfig, first_host: bool) -> None:
    """Notes the options that all results depend on.

    Raises:
        InputError: the results in the folder are of others.
    """
    path = config.output / OPTIONS
    options = {"seed": config.seed, "dtype": config.compute, "miniature": config.miniature}
    before = options
    with contextlib.suppress(OSError, ValueError):  # of an earlier version, which did not note them, or damaged
        before = json.loads(path.read_text())
    if before != options:
        raise InputError(f"{path}: its results are of {before}, not of {options}; give another --output.")
    if first_host:
        write_text(path, json.dumps(options) + "\n")


def tool(name: str, *arguments: str, good: Sequence[int] = (0,)) -> None:
    """Runs another command in a process of its own, on the CPU.

    Raises:
        InputError: it ends with another status than a good one; it has printed why.
    """
    print(f"{called('paper')}: {name} {' '.join(arguments)}", flush=True)
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    done = subprocess.run([sys.executable, "-m", "stablesam_jax", name, *arguments], env=environment, check=False)
    if done.returncode not in good:
        raise InputError(f"the command {name} ended with status {done.returncode}; see its message above.")


def train_model(config: PaperConfig, plan: Plan, model: Model) -> None:
    """Trains a model unless it is trained."""
    run = config.run_of(model)
    if trained_system(run) is not None:
        return
    if not (config.output / "built" / "hqseg_44k").exists():
        raise InputError(f"{TRAINING} is not there.")
    train(dataclasses.replace(run, **cache_of(plan, model, run)))
    parallel.on_any_host(False)  # a barrier: the first host has written the result then
    if trained_system(run) is None:
        raise Stopped


def cache_of(plan: Plan, model: Model, run: TrainConfig) -> dict[str, Any]:
    """The options of a run's cache, or none. A run that was begun with a cache, or without, goes on so."""
    group = group_of(plan.config, model)
    kept = plan.kept.get(group)
    worth = kept is not None and (run.limit is None or kept.views >= run.epochs)
    settings = run.output / "config.json"
    if settings.exists():
        worth = bool(json.loads(settings.read_text()).get("cached"))
    if not worth:
        return {}
    limit = SMALLEST_CACHE if kept is None else max(kept.limit, SMALLEST_CACHE)
    return {"cache": plan.config.output / FEATURES / group.name, "cache_limit": limit}


def evaluate(config: PaperConfig, model: Model, protocol: str) -> None:
    """Evaluates a model under a protocol unless it is done."""
    folder = filled.results_of(config.output, model, protocol)
    if (folder / "results.json").exists():
        return
    system = trained_system(config.run_of(model)) if model.system else config.base_of(model.backbone)
    if system is None:
        raise InputError("its system is not trained.")
    if protocol == "model":
        if jax.process_index() == 0:
            model_facts.measure(config, model, system, folder)
        return
    data = config.data_folder
    options: dict[str, Any] = {
        "system": (system,),
        "data_dir": tuple(pathlib.Path(f"{name}:{data}") for name in SETS_OF_PROTOCOL[protocol]),
        "output": folder,
        "image_size": config.scale.image_size,
        "seed": config.seed,
        "dtype": None if config.compute == "float32" else config.compute,
        "devices": config.devices,
    }
    kinds = kinds_of(model, protocol)
    if protocol == "hq":
        hq(HqConfig(**options, prompts=kinds, count=config.scale.prompts, figures=False))
    elif protocol == "mess":
        mess(MessConfig(**options, prompts=kinds))
    elif protocol == "sginw":
        sginw(InstancesConfig(**options, prompts=kinds))
    elif protocol == "coco":
        coco(InstancesConfig(**options, prompts=kinds))
    else:
        boxes = boxes_of(data, protocol.removeprefix("coco-"))
        if not boxes.there:
            raise InputError(boxes.line + ".")
        coco(InstancesConfig(**options, detections=(boxes.path,)))


def about(config: PaperConfig) -> str:
    """A line about models and size."""
    models = ", ".join(dict.fromkeys(config.scale.models[model.backbone] for model in evaluations(config.tables)))
    size = "" if config.scale.image_size is None else f" at {config.scale.image_size} px"
    return (
        f"{models}{size}, {config.compute}, seed {config.seed}, {config.scale.prompts} prompts of each random kind and "
        f"object, {jax.devices()[0].device_kind}."
        + (" A miniature: these figures show that all steps run, and nothing else." if config.miniature else "")
    )
