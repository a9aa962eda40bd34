"""The paper's tables filled with results, beside its own figures."""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from eval import paper
from eval.loop import METRICS
from eval.report.tables import MEAN
from experiments.full_size import FROM_MODEL, HQ_SETS, TABLES, Model, protocol_of
from stablesam_jax.data.datasets import MESS

DETECTION = ("ap", "ap50")
DOMAINS = (*dict.fromkeys(row.domain for row in MESS.values()), MEAN)
WIDE = 8  # columns; a table of more is turned
SCORE = "iou"  # how a mask is scored in the columns of average precision: box score times predicted IoU
NOTES = (
    "In each cell: here (in the paper). noisy-box and other kinds alone: mIoU / mBIoU / mSF, mean of the four HQ sets; "
    "coco and sginw: AP / AP50; mess KIND: mIoU of the domains General, Earth Monitoring, Medical Sciences, "
    "Engineering, Agriculture & Biology, and of all sets; mess/SET: mIoU with noisy boxes. All in percent. ?: not "
    "measured.",
    "parameters and learnable: millions, and MiB in float32; the paper prints MiB for whole models and for HQ-SAM's "
    "parts, 2^20 parameters elsewhere. fps: a picture of the input's size and a box to a mask, one after the other. "
    "memory: GiB of parameters, arrays and temporaries of encoder and decoder, by XLA's own count, one picture.",
)


def results_of(output: pathlib.Path, model: Model, protocol: str) -> pathlib.Path:
    """The folder of an evaluation."""
    return output / "results" / model.name / protocol


def read(output: pathlib.Path, model: Model, protocol: str) -> Mapping[str, Any] | None:
    """The results of an evaluation by data set or mean, or those of the model alone; None if it is not done."""
    path = results_of(output, model, protocol) / "results.json"
    if not path.exists():
        return None
    found = json.loads(path.read_text())
    return found if protocol == "model" else next(iter(found["systems"].values()))


def values(column: str, found: Mapping[str, Any]) -> list[float | None]:
    """The values of a column in the results of its protocol, in percent unless of the model."""
    protocol, kind = protocol_of(column), column.rpartition(" ")[2]
    if protocol == "model":
        return [found[column]]
    if protocol == "hq":
        one = found.get(MEAN) if len(HQ_SETS) > 1 else next(iter(found.values()))
        of = (one or {}).get(kind, {})
        names: Sequence[str] = METRICS[:2] if kind == "gt-box" else METRICS
        return [_percent(of.get(name)) for name in names]
    if protocol == "mess":
        if column.startswith("mess/"):
            name = MEAN if column == "mess/mean" else column
            return [_percent(found.get(name, {}).get("noisy-box", {}).get("miou"))]
        return [_percent(found.get(domain, {}).get(kind, {}).get("miou")) for domain in DOMAINS]
    (one,) = [found[MEAN]] if MEAN in found else found.values()
    kind = "detector-box" if protocol.startswith("coco-") else kind
    return [_percent(one.get(f"{kind}, {SCORE}", {}).get(name)) for name in DETECTION]


def cell(column: str, here: Sequence[float | None] | None, theirs: paper.Figures | None) -> str:
    """Our values, and the paper's in brackets."""
    own = "?" if here is None else " / ".join(map(_shown, here))
    if column in ("parameters", "learnable") and here is not None and here[0] is not None:
        own = f"{here[0] / 1e6:.2f} M, {4 * here[0] / 2**20:.4g} MiB"
    elif column in FROM_MODEL and here is not None and here[0] is not None:
        own = f"{here[0]:.3g}"
    return own if theirs is None else f"{own} ({' / '.join(map(str, theirs))})"


def table(output: pathlib.Path, number: str) -> str:
    """A table as Markdown, with what is done."""
    of = TABLES[number]
    rows = []
    for label, model in of.rows:
        found = {protocol: read(output, model, protocol) for protocol in {*map(protocol_of, of.columns)}}
        rows.append([label])
        for column in of.columns:
            results = found[protocol_of(column)]
            here = None if results is None else values(column, results)
            rows[-1].append(cell(column, here, of.figures[label].get(column)))
    header = ["", *of.columns]
    if len(of.columns) > WIDE:
        header, *rows = [list(column) for column in zip(header, *rows, strict=True)]
    lines = ["| " + " | ".join(header) + " |", "|---" * len(header) + "|"]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return f"## {number}: {of.title}\n\n" + "\n".join(lines) + "\n"


def markdown(output: pathlib.Path, tables: Sequence[str], about: str, command: str) -> str:
    """All tables.

    Args:
        output: folder of the command.
        tables: their names.
        about: the models and their size.
        command: that fills them.
    """
    head = ["# The paper's tables\n", f"{about}\n", *(f"{note}\n" for note in NOTES), f"Command: `{command}`\n"]
    return "\n".join([*head, *(table(output, number) for number in tables)])


def _percent(value: float | None) -> float | None:
    return None if value is None else 100 * value


def _shown(value: float | None) -> str:
    return "?" if value is None else f"{value:.1f}"
