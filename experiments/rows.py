"""The systems of the paper's tables, as presets and changes to them."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from eval import paper
from stablesam_jax.config import PluginConfig
from train.presets import HQ_SAM_PROMPTS

LONG = 4  # budget of the row that the paper trains for 12 epochs instead of one
LOW_SHOT_VIEWS = 12  # one for every epoch of the paper


@dataclasses.dataclass(frozen=True)
class System:
    """A row of a table: a preset and changes to it."""

    preset: str
    changes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    budget: int = 1  # multiplies the number of steps


_GOOD: dict[str, Any] = {"prompts": HQ_SAM_PROMPTS, "occlusion": 0.0}  # without RTS
SYSTEMS: dict[str, System] = {  # named like their presets; "-good" is without robust training
    "stable-sam": System("stable-sam"),
    "pt-sam": System("pt-sam"),
    "stable-pt-sam": System("stable-pt-sam"),
    "stable-sam-figure": System("stable-sam", {"plugin": PluginConfig(attentions=(1,))}),
    "stable-sam-everywhere": System("stable-sam", {"plugin": PluginConfig(attentions=(0, 1, 2))}),
    "hq-sam": System("hq-sam"),
    "dsp": System("dsp", _GOOD),
    "dsp-rts": System("dsp-rts"),
    "dt-sam-good": System("dt-sam", _GOOD),
    "pt-sam-good": System("pt-sam", _GOOD),
    "hq-sam-good": System("hq-sam", _GOOD),
    "stable-sam-good": System("stable-sam", _GOOD),
    "stable-hq-sam": System("stable-hq-sam"),
    "finetune-decoder": System("finetune-decoder"),
    "spatial-cbam": System("spatial-cbam"),
    "dt-sam": System("dt-sam"),
    "stable-sam-long": System("stable-sam", budget=LONG),
    "pt-sam-long": System("pt-sam", budget=LONG),
    **{
        f"{name}-{pictures}": System(preset, {"limit": pictures, "views": LOW_SHOT_VIEWS})
        for pictures in (220, 440)
        for name, preset in (("pt-sam", "pt-sam"), ("hq-sam", "hq-sam"), ("stable-sam", "stable-sam"))
    },
}

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
        ),
        paper.TABLE_2,
    ),
    "Table 5": (
        "what each part adds",
        ("noisy-box", "1-point"),
        (("SAM", ""), ("+ DSP", "dsp"), ("+ DSP + RTS", "dsp-rts"), ("+ DSP + DRP + RTS", "stable-sam")),
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
            ("(Ours in layer 2, as figure 3 draws it, + RTS)", "stable-sam-figure"),
            ("(Ours in all three attentions + RTS)", "stable-sam-everywhere"),
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
                for name, system in (("PT-SAM", "pt-sam"), ("HQ-SAM", "hq-sam"), ("Ours", "stable-sam"))
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
        ),
        paper.TABLE_11,
    ),
}
