"""The systems of the paper's tables, as presets and changes to them."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from eval import paper
from stablesam_jax.config import PluginConfig
from stablesam_jax.names import RUN_MODEL, RUN_PLUGIN
from train.presets import HQ_SAM_PROMPTS, TrainConfig

LONG = 4  # budget of the row that the paper trains for 12 epochs instead of one
LOW_SHOT_VIEWS = 12  # one for every epoch of the paper


@dataclasses.dataclass(frozen=True)
class System:
    """A row of a table: a preset and changes to it."""

    preset: str
    changes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    budget: int = 1  # multiplies the number of steps
    base: str = ""  # the system whose trained model is the frozen base; "": the base of all
    run_of: str = ""  # the system whose run is used; "": an own one
    strength: float | None = None  # of the plugin when it is used; None: that of its training
    long: bool = False  # whether the paper trains it for 12 epochs instead of one


_GOOD: dict[str, Any] = {"prompts": HQ_SAM_PROMPTS, "occlusion": 0.0}  # without RTS
OURS = "ours"  # the plugin before the first and the final attention
SYSTEMS: dict[str, System] = {  # named like their presets; "-good" is without robust training
    OURS: System("stable-sam", {"plugin": PluginConfig()}),
    "pt-sam": System("pt-sam", long=True),
    "stable-pt-sam": System("stable-pt-sam"),
    "stable-sam": System("stable-sam"),
    "stable-sam-everywhere": System("stable-sam", {"plugin": PluginConfig(attentions=(0, 1, 2))}),
    "hq-sam": System("hq-sam", long=True),
    "dsp": System("dsp", _GOOD),
    "dsp-rts": System("dsp-rts"),
    "dt-sam-good": System("dt-sam", _GOOD, long=True),
    "pt-sam-good": System("pt-sam", _GOOD, long=True),
    "hq-sam-good": System("hq-sam", _GOOD, long=True),
    "stable-sam-good": System("stable-sam", _GOOD),
    "ours-good": System("stable-sam", {"plugin": PluginConfig(), **_GOOD}),
    "ours-weaker": System("stable-sam", {"plugin": PluginConfig()}, run_of=OURS, strength=0.7),
    "stable-hq-sam": System("stable-sam", base="hq-sam"),
    "finetune-decoder": System("finetune-decoder"),
    "spatial-cbam": System("spatial-cbam"),
    "linear": System("linear"),
    "dt-sam": System("dt-sam"),
    "stable-sam-long": System("stable-sam", budget=LONG, long=True),
    "pt-sam-long": System("pt-sam", budget=LONG, long=True),
    **{
        f"{name}-{pictures}": System(preset, {"limit": pictures, "views": LOW_SHOT_VIEWS, **changes}, long=True)
        for pictures in (220, 440)
        for name, preset, changes in (
            ("pt-sam", "pt-sam", {}),
            ("hq-sam", "hq-sam", {}),
            ("stable-sam", "stable-sam", {}),
            ("ours", "stable-sam", {"plugin": PluginConfig()}),
        )
    },
}


def trained_system(run: TrainConfig) -> str | None:
    """The name for `load_model` of what a run has trained; None if it has not ended."""
    plugin, model = run.output / RUN_PLUGIN, run.output / RUN_MODEL
    if plugin.exists():
        return f"{run.model}+{plugin}"
    return str(model) if model.exists() else None


_OURS = ("(ours: before the first and the final attention)", OURS)

# Title, kinds of prompts, rows: (name in the paper, or ours in brackets; system, "" the base; the paper's figures).
Row = tuple[str, str]
TABLES: dict[str, tuple[str, Sequence[str], Sequence[Row], paper.Rows]] = {
    "Table 2": (
        "rivals with good prompts, Stable-SAM with robust training",
        ("noisy-box", "1-point", "3-points"),
        (
            ("SAM", ""),
            ("DT-SAM", "dt-sam-good"),
            ("PT-SAM", "pt-sam-good"),
            ("HQ-SAM", "hq-sam-good"),
            ("Stable-SAM", "stable-sam"),
            _OURS,
        ),
        paper.TABLE_2,
    ),
    "Table 5": (
        "what each part adds",
        ("noisy-box", "1-point"),
        (("SAM", ""), ("+ DSP", "dsp"), ("+ DSP + RTS", "dsp-rts"), ("+ DSP + DRP + RTS", "stable-sam"), _OURS),
        paper.TABLE_5,
    ),
    "Table 6": (
        "without and with robust training",
        ("gt-box", "noisy-box", "1-point"),
        (
            ("SAM", ""),
            ("PT-SAM", "pt-sam-good"),
            ("HQ-SAM", "hq-sam-good"),
            ("Ours", "stable-sam-good"),
            ("PT-SAM + RTS", "pt-sam"),
            ("HQ-SAM + RTS", "hq-sam"),
            ("Ours + RTS", "stable-sam"),
            ("Ours + RTS, long", "stable-sam-long"),
            ("HQ-SAM + Ours + RTS", "stable-hq-sam"),
            ("(PT-SAM + RTS, long)", "pt-sam-long"),
            ("(DT-SAM + RTS)", "dt-sam"),
            ("(Ours + PT + RTS)", "stable-pt-sam"),
            ("(before the first and the final attention, good prompts)", "ours-good"),
            _OURS,
            ("(the same at a strength of 0.7)", "ours-weaker"),
            ("(before all three attentions + RTS)", "stable-sam-everywhere"),
        ),
        paper.TABLE_6,
    ),
    "Table 7": (
        "few pictures",
        ("noisy-box", "1-point"),
        (
            ("SAM", ""),
            *(
                (f"{name}, {pictures} pictures", f"{system}-{pictures}")
                for pictures in (220, 440)
                for name, system in (
                    ("PT-SAM", "pt-sam"),
                    ("HQ-SAM", "hq-sam"),
                    ("Ours", "stable-sam"),
                    ("(ours: two attentions)", "ours"),
                )
            ),
        ),
        paper.TABLE_7,
    ),
    "Table 11": (
        "variants",
        ("noisy-box", "1-point"),
        (
            ("SAM", ""),
            ("Stable-SAM, decoder finetuned", "finetune-decoder"),
            ("Stable-SAM, spatial attention", "spatial-cbam"),
            ("Stable-SAM", "stable-sam"),
            _OURS,
            ("(linear maps in the place of deformable sampling, at the same attentions)", "linear"),
        ),
        paper.TABLE_11,
    ),
}
