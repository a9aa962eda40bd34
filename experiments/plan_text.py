"""The plan of the paper's tables as Markdown."""

from collections.abc import Iterator, Sequence

from experiments import rates
from experiments.disk_plan import features_bytes, group_of
from experiments.full_size import TABLES, trained
from experiments.inputs import Needed
from experiments.plan import Plan
from experiments.rates import encoder_flops
from stablesam_jax.build import assemble, shapes
from stablesam_jax.config import MODELS
from stablesam_jax.data.datasets import GROUPS
from stablesam_jax.params import count

PLUGIN_BYTES = 2**20  # a run of the plugin: the file, two checkpoints, metrics
SIZES = (1, 8, 64)  # numbers of devices to plan for
RESULT_BYTES = 30 * 2**20  # of an evaluation, mostly run lengths of masks


def text(plan: Plan) -> str:
    """The plan."""
    config, rate = plan.config, plan.rate
    in_training, in_evaluation = plan.calls
    most = max((run.pictures for run in plan.runs), default=1)
    epochs = sum(run.epochs * run.pictures for run in plan.runs) / most
    lines = [
        f"# Plan: {', '.join(config.tables)}",
        "",
        f"{len(plan.runs)} training runs, {epochs:.4g} epochs of {most:,} pictures, {in_training:,} encoder calls; "
        f"{len(plan.evaluations)} evaluations, {in_evaluation:,} encoder calls.",
        "",
        f"{rate.devices} device(s), {rate.kind}, {rate.dtype}: {_number(rate.flops / 1e12)} TFLOP/s at the share that "
        f"an encoder reaches, {_number(rate.flops / encoder_flops('sam_vit_l'))} pictures/s with ViT-L.",
        "",
    ]
    if plan.missing:
        lines += ["## Missing", "", *(f"- {line}" for line in missing_lines(plan.missing)), ""]
    return "\n".join([*lines, *_training(plan), *_evaluation(plan), *_disk(plan), *_hours(plan)]) + "\n"


def missing_lines(missing: Sequence[Needed]) -> Iterator[str]:
    """A line for each thing that is missing; a group of sets of which nothing is there has one together."""
    groups: dict[str, list[Needed]] = {}
    for needed in missing:
        groups.setdefault(needed.what.partition("/")[0] if not needed.there else "", []).append(needed)
    for group, lacking in groups.items():
        sets = GROUPS.get(group, ())
        if sets and len({needed.what.partition(",")[0] for needed in lacking}) == len(sets):
            yield f"{group}: all {len(sets)} folders, as {lacking[0].path}"
        else:
            yield from (needed.line for needed in lacking)


def _training(plan: Plan) -> Iterator[str]:
    yield from (
        "## Training",
        "",
        "| run | tables | epochs | pictures | steps | encoder calls | hours |",
        "|---" * 7 + "|",
    )
    of_table = {name: trained([model for _, model in TABLES[name].rows]) for name in plan.config.tables}
    for run in plan.runs:
        of = ", ".join(name.removeprefix("Table ") for name, models in of_table.items() if run.model in models)
        yield (
            f"| {run.model.name} | {of} | {run.epochs} | {run.pictures:,} | {run.steps:,} | {run.calls:,} | "
            f"{_number(plan.rate.hours(run.flops))} |"
        )
    steps = sum(run.steps for run in plan.runs)
    yield f"| all | | | | {steps:,} | {plan.calls[0]:,} | {_number(plan.training_hours)} |"
    yield ""


def _evaluation(plan: Plan) -> Iterator[str]:
    yield from ("## Evaluation", "", "| protocol | models | pictures | prompts | hours |", "|---" * 5 + "|")
    for protocol in dict.fromkeys(one.protocol for one in plan.evaluations):
        of = [one for one in plan.evaluations if one.protocol == protocol]
        note = " (missing)" if of[0].missing else ""
        prompts, hours = sum(one.prompts for one in of), sum(plan.rate.hours(one.flops) for one in of)
        yield f"| {protocol}{note} | {len(of)} | {of[0].pictures:,} | {prompts:,.0f} | {_number(hours)} |"
    yield ""


def _disk(plan: Plan) -> Iterator[str]:
    scale = plan.config.scale
    sizes = {
        backbone: 4 * count(shapes(assemble(MODELS[scale.models[backbone]])))
        for backbone in {one.model.backbone for one in plan.evaluations}
    }
    whole = [run.model for run in plan.runs if plan.config.run_of(run.model).plugin is None]
    rows = {
        "converted weights": 0 if plan.config.miniature else sum(sizes.values()),
        "training data, built": plan.source_bytes,
        f"runs, {len(whole)} of them with a whole model": sum(sizes[model.backbone] for model in whole)
        + len(plan.runs) * PLUGIN_BYTES,
        "results of evaluations": len(plan.evaluations) * RESULT_BYTES,
    }
    yield from ("## Disk", "", "| what | GiB |", "|---" * 2 + "|")
    yield from (f"| {what} | {_number(size / 2**30)} |" for what, size in rows.items())
    for group, kept in plan.kept.items():
        what = f"features of {kept.views} view(s) of {group.name}, which save {kept.saved:,} encoder calls"
        yield f"| {what} | {_number(kept.limit)} |"
    yield ""
    yield f"Features may take {plan.room:.4g} GiB (--disk)."
    pictures = max((run.pictures for run in plan.runs), default=0)
    for group in dict.fromkeys(group_of(plan.config, run.model) for run in plan.runs):
        if group not in plan.kept:
            entry = features_bytes(scale.models[group.backbone], hq=group.hq, image_size=scale.image_size)
            yield (
                f"Encoded in the step, {group.name}: no view fits, at {_number(pictures * entry / 2**30)} GiB each, or "
                "each is seen once."
            )
    yield ""


def _hours(plan: Plan) -> Iterator[str]:
    """What the encoder, the cores and the disk allow, on the devices at hand and on others of their kind."""
    views = sum(run.epochs * run.pictures for run in plan.runs)
    evaluation = sum(plan.rate.hours(one.flops) for one in plan.evaluations)
    yield from (
        "## Hours",
        "",
        "| devices | training | evaluation | cores that keep them fed | MB/s read |",
        "|---" * 5 + "|",
    )
    for devices in sorted({plan.rate.devices, *SIZES}):
        share = plan.rate.devices / devices
        hours = max(plan.training_hours * share, 1e-9)
        yield (
            f"| {devices} | {_number(plan.training_hours * share)} | {_number(evaluation * share)} | "
            f"{_number(views * rates.FEEDING / 3600 / hours)} | {_number(views * rates.BYTES / 1e6 / 3600 / hours)} |"
        )
    yield ""
    yield (
        "An estimate. Hours: arithmetic over the rate of large matrix products, "
        f"{'given' if plan.config.tflops else 'measured now'}, times the share of it that an encoder reached elsewhere "
        "(docs/speed.md). Cores: 18 ms a view (results/full_size.md). Read: 0.35 MB a picture, assumed. A batch of "
        f"{plan.config.scale.batch_size} is split among at most as many devices; more make several tables at a time "
        "(--only). Scoring masks on the host, starting and compiling are not in it."
    )


def _number(value: float) -> str:
    """Three digits, and commas between thousands."""
    return f"{float(f'{value:.3g}'):,g}"
