"""The paper's eleven tables at its own size: rows, columns, and which evaluation has a column.

Columns are named as in `eval.paper`: "noisy-box" is a kind of prompt on the four HQ sets; "coco n-box-50", "sginw
n-box-50" and "mess noisy-box" are of the other protocols; "mess/suim" is a single set of MESS; "fps", "memory",
"parameters" and "learnable" are of the model alone.
"""

import dataclasses
from collections.abc import Mapping, Sequence

from eval import paper
from experiments import rows
from experiments.rows import SYSTEMS, System
from stablesam_jax.data.datasets import MESS, PAXRAY_TASKS

LARGE, HUGE, BASE = "large", "huge", "base"


@dataclasses.dataclass(frozen=True)
class Backbone:
    """A SAM that the paper starts from."""

    model: str  # in MODELS
    weights: str  # official file


BACKBONES = {
    LARGE: Backbone("sam_vit_l", "sam_vit_l_0b3195.pth"),
    HUGE: Backbone("sam_vit_h", "sam_vit_h_4b8939.pth"),
    BASE: Backbone("sam_vit_b", "sam_vit_b_01ec64.pth"),
}

TRAINING = "hqseg-44k"
HQ_SETS = ("dis5k-vd", "coift", "hrsod", "thinobject5k-te")
DETECTORS = ("focalnet-l-dino", "r50-h-d-detr")  # Table 4: files detections/NAME.json of their boxes on COCO
FROM_MODEL = ("parameters", "learnable", "fps", "memory")
MESS_SETS = (
    *dict.fromkeys("mess/paxray-4" if name.removeprefix("mess/paxray-") in PAXRAY_TASKS else name for name in MESS),
    "mess/mean",
)

SYSTEMS_AT_FULL_SIZE: Mapping[str, System] = {
    **SYSTEMS,
    "stable-sam-good-long": dataclasses.replace(SYSTEMS["stable-sam-good"], long=True),  # Table 6 alone has it
}


@dataclasses.dataclass(frozen=True)
class Model:
    """What a row evaluates: a system on a backbone."""

    system: str  # of SYSTEMS_AT_FULL_SIZE; "": the backbone itself
    backbone: str = LARGE

    @property
    def name(self) -> str:
        """Of its folders."""
        return f"{self.system or 'sam'}-{self.backbone}"

    @property
    def base(self) -> "Model":
        """The model that it is trained from, and that is frozen."""
        system = SYSTEMS_AT_FULL_SIZE[self.system].base if self.system else ""
        return Model(system, self.backbone)


Row = tuple[str, Model]  # the paper's name; what it is


@dataclasses.dataclass(frozen=True)
class Table:
    """A table of the paper."""

    title: str
    columns: Sequence[str]  # groups
    rows: Sequence[Row]
    figures: paper.Rows


def _as_in_small(number: str, *more_columns: str, after: Mapping[str, Row] | None = None) -> Table:
    """A table of `experiments.rows` without our own rows (in brackets), with more columns, and rows behind others."""
    title, kinds, small, figures = rows.TABLES[number]
    own: list[Row] = []
    for label, system in small:
        if not label.startswith("("):
            own.append((label, Model(system)))
            own += [] if after is None or label not in after else [after[label]]
    return Table(title, (*kinds, *more_columns), own, figures)


_RIVALS: Sequence[Row] = (
    ("SAM", Model("")),
    ("DT-SAM", Model("dt-sam-good")),
    ("PT-SAM", Model("pt-sam-good")),
    ("HQ-SAM", Model("hq-sam-good")),
    ("Stable-SAM", Model("stable-sam")),
)
_THREE: Sequence[Row] = (_RIVALS[0], _RIVALS[3], _RIVALS[4])
_NOISY = ("n-box-50", "n-box-60")

TABLES: Mapping[str, Table] = {
    "Table 1": Table("SAM with every kind of prompt", tuple(paper.TABLE_1["SAM"]), _RIVALS[:1], paper.TABLE_1),
    "Table 2": _as_in_small("Table 2"),
    "Table 3": Table(
        "COCO and SGinW with noisy boxes",
        (*(f"{protocol} {kind}" for protocol in ("coco", "sginw") for kind in _NOISY), "learnable", "fps"),
        _RIVALS,
        paper.TABLE_3,
    ),
    "Table 4": Table(
        "COCO with boxes of detectors",
        (*(f"coco {detector}" for detector in DETECTORS), "coco n-box-50"),
        (_RIVALS[0], _RIVALS[2], _RIVALS[3], ("Ours", Model("stable-sam"))),
        paper.TABLE_4,
    ),
    "Table 5": _as_in_small("Table 5"),
    "Table 6": _as_in_small("Table 6", after={"Ours": ("Ours, long", Model("stable-sam-good-long"))}),
    "Table 7": _as_in_small("Table 7"),
    "Table 8": Table("MESS by domain", tuple(paper.TABLE_8["SAM"]), _THREE, paper.TABLE_8),
    "Table 9": Table("MESS by set, noisy boxes", MESS_SETS, _THREE, paper.TABLE_9),
    "Table 10": Table(
        "backbones",
        ("coco n-box-50", "noisy-box", "1-point", *FROM_MODEL),
        tuple(
            (f"{label}-{backbone.capitalize()}", Model(model.system, backbone))
            for backbone in (HUGE, LARGE, BASE)
            for label, model in _THREE
        ),
        paper.TABLE_10,
    ),
    "Table 11": _as_in_small("Table 11", "coco n-box-50"),
}


def protocol_of(column: str) -> str:
    """The evaluation that has a column: hq, coco, coco-DETECTOR, sginw, mess or model."""
    name, _, kind = column.partition(" ")
    if column in FROM_MODEL:
        return "model"
    if kind in DETECTORS:
        return f"{name}-{kind}"
    return "mess" if name.startswith("mess") else name if kind else "hq"


def kinds_of(model: Model, protocol: str) -> tuple[str, ...]:
    """The kinds of prompts that all tables ask for, in the order in which they first appear."""
    columns = dict.fromkeys(
        column
        for table in TABLES.values()
        if any(model == one for _, one in table.rows)
        for column in table.columns
        if protocol_of(column) == protocol
    )
    if protocol == "mess":  # Tables 8 and 9 have the same kinds
        return tuple(column.partition(" ")[2] for column in paper.TABLE_8["SAM"])
    return tuple(column.rpartition(" ")[2] for column in columns)


def evaluations(tables: Sequence[str]) -> dict[Model, list[str]]:
    """What is evaluated for these tables: model -> protocols."""
    found: dict[Model, list[str]] = {}
    for name in tables:
        protocols = dict.fromkeys(map(protocol_of, TABLES[name].columns))
        for _, model in TABLES[name].rows:
            found.setdefault(model, []).extend(one for one in protocols if one not in found[model])
    return found


def trained(models: Sequence[Model]) -> list[Model]:
    """What is trained for these models, bases first, each once."""
    order: dict[Model, None] = {}
    for model in models:
        if model.system:
            order |= dict.fromkeys(one for one in (model.base, model) if one.system)
    return list(order)
