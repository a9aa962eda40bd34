"""The plan of the paper's tables: runs, evaluations, encoder calls, disk, and what is missing."""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import jax

from experiments import rates
from experiments.disk_plan import Group, Kept, group_of, passes, plan_disk, room_for_features
from experiments.full_size import BACKBONES, DETECTORS, TRAINING, Model, evaluations, kinds_of, trained
from experiments.inputs import (
    SETS_OF_PROTOCOL,
    Needed,
    boxes_of,
    is_there,
    missing,
    pictures_of,
    training_files,
    weights_of,
)
from experiments.miniature import TRAINING_PICTURES
from experiments.options import PaperConfig
from experiments.rates import PROMPT, STEP, Rate, encoder_flops

# Prompts of a picture in the protocols without a fixed number: 7.3 objects a picture of COCO, boxes of a detector at
# most, objects of SGinW and regions of MESS as assumed.
OBJECTS = {"coco": 7.3, "sginw": 4.0, "mess": 20.0, **{f"coco-{detector}": 100.0 for detector in DETECTORS}}


@dataclasses.dataclass(frozen=True)
class RunPlan:
    """A training run."""

    model: Model
    epochs: int
    pictures: int
    steps: int
    calls: int  # of the encoder, without those that the cache saves
    flops: float


@dataclasses.dataclass(frozen=True)
class EvaluationPlan:
    """A model under one protocol."""

    model: Model
    protocol: str
    pictures: int
    prompts: float
    flops: float
    missing: bool  # its data or boxes


@dataclasses.dataclass(frozen=True)
class Plan:
    """Everything that is done, in order, and what it takes."""

    config: PaperConfig
    runs: Sequence[RunPlan]
    evaluations: Sequence[EvaluationPlan]
    kept: Mapping[Group, Kept]
    room: float  # GiB for cached features
    missing: Sequence[Needed]
    rate: Rate
    source_bytes: int  # training data

    @property
    def training_hours(self) -> float:
        """On the devices at hand."""
        return sum(self.rate.hours(run.flops) for run in self.runs)

    @property
    def calls(self) -> tuple[int, int]:
        """Encoder calls of training and of evaluation."""
        return sum(run.calls for run in self.runs), sum(one.pictures for one in self.evaluations if one.pictures)


def make_plan(config: PaperConfig) -> Plan:
    """Makes the plan; reads folders, not pictures, and writes nothing."""
    data = config.data_folder
    wanted = evaluations(config.tables)
    to_train = trained(list(wanted))
    pictures = pictures_of(data, TRAINING) if not config.miniature else TRAINING_PICTURES
    room = room_for_features(config)
    kept = plan_disk(config, to_train, pictures, room)
    devices = config.devices or jax.local_device_count()
    if config.tflops is None:
        rate = rates.measure(devices, config.compute)
    else:
        rate = rates.assumed(devices, config.compute, config.tflops)
    left: dict[Group, int] = {group: one.saved for group, one in kept.items()}
    runs: list[RunPlan] = []
    for model in to_train:
        used, epochs = passes(config, model, pictures)
        group, calls = group_of(config, model), used * epochs
        # The first run of a group fills the cache, later ones read from it.
        saved = min(left.get(group, 0), calls) if any(group == group_of(config, run.model) for run in runs) else 0
        left[group] = left.get(group, 0) - saved
        flops = (calls - saved) * encoder_flops(config.scale.models[model.backbone]) + calls * STEP
        steps = math.ceil(config.run_of(model).epochs * used / config.scale.batch_size)
        runs.append(RunPlan(model, epochs, used, steps, calls - saved, flops))
    wants = [_evaluation(config, model, protocol) for model, protocols in wanted.items() for protocol in protocols]
    sets = [TRAINING] * bool(to_train) + [name for one in wants for name in SETS_OF_PROTOCOL.get(one.protocol, ())]
    lacking: list[Needed] = []
    if not config.miniature:
        assert config.weights is not None
        backbones = [name for name in BACKBONES if any(model.backbone == name for model in wanted)]
        lacking = [one for one in (weights_of(config.weights, name) for name in backbones) if not one.there]
        lacking += missing(data, sets)
        detectors = [one for one in DETECTORS if any(want.protocol == f"coco-{one}" for want in wants)]
        lacking += [one for one in (boxes_of(data, detector) for detector in detectors) if not one.there]
    source = 0 if config.miniature else training_files(data)
    return Plan(config, runs, wants, kept, room, lacking, rate, source)


def _evaluation(config: PaperConfig, model: Model, protocol: str) -> EvaluationPlan:
    data = config.data_folder
    sets = SETS_OF_PROTOCOL.get(protocol, ())
    pictures = 0 if config.miniature else sum(pictures_of(data, name) for name in sets)
    lacks = not config.miniature and not all(is_there(data, name) for name in sets)
    detector = protocol.removeprefix("coco-")
    if detector in DETECTORS:
        lacks = lacks or (not config.miniature and not boxes_of(data, detector).there)
        prompts = OBJECTS[protocol] * pictures
    else:
        kinds = kinds_of(model, protocol) if protocol != "model" else ()
        of_each = [1 if kind == "gt-box" else config.scale.prompts for kind in kinds] if protocol == "hq" else []
        prompts = pictures * (sum(of_each) if protocol == "hq" else OBJECTS.get(protocol, 0.0) * len(kinds))
    flops = pictures * encoder_flops(config.scale.models[model.backbone]) + prompts * PROMPT
    return EvaluationPlan(model, protocol, pictures, prompts, flops, lacks)
