"""`python -m eval.report RUN... --output runs/report.html`: several evaluations on one self-contained page.

A run is an output folder of `eval.main`. Tables are made from results.json; figures are embedded.
"""

import base64
import dataclasses
import html
import json
import math
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any

import tyro

from eval.report.bootstrap import Interval
from eval.report.tables import TITLES, cell, difference_cell, legend, show, table
from stablesam_jax.commands import called, command_line
from stablesam_jax.errors import InputError, exit_on_input_error
from stablesam_jax.files.disk import check_writable, write_text

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; color: #1b1b1b }
table { border-collapse: collapse; margin: 0.7rem 0; font-variant-numeric: tabular-nums }
th, td { border-bottom: 1px solid #ccc; padding: 0.25rem 0.8rem; text-align: right; white-space: nowrap }
th:first-child, td:first-child { text-align: left; white-space: normal; overflow-wrap: anywhere }
caption { caption-side: bottom; text-align: left; color: #555; font-size: 0.85rem }
.wide { overflow-x: auto }
figure { margin: 1rem 0 } img { max-width: 100% } figcaption { color: #555; font-size: 0.85rem }
pre { background: #f4f4f4; padding: 0.7rem; overflow-x: auto; font-size: 0.8rem }
.noise { color: #888 }
"""
CAPTIONS = {
    "curves": "Accuracy and stability; prompts get worse from left to right.",
    "stability": "Pictures by mSF, the agreement of the masks of their prompts.",
    "alpha": "The router's share of resampled features, by kind of prompt.",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """One self-contained HTML page from several evaluations."""

    run: Annotated[tuple[pathlib.Path, ...], tyro.conf.Positional]
    """Output folders of evaluations, one or more."""
    output: pathlib.Path
    """The page, a file; replaced if it is there."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """One evaluation on disk."""

    name: str
    results: Mapping[str, Any]  # results.json
    figures: Sequence[pathlib.Path]


def read_run(folder: pathlib.Path) -> Run:
    """Reads a run.

    Raises:
        InputError: the folder holds no results, or they are damaged.
    """
    path = folder / "results.json"
    try:
        results = json.loads(path.read_text())
        metrics = [
            metrics for sets in results["systems"].values() for kinds in sets.values() for metrics in kinds.values()
        ]
        if not metrics or not all(isinstance(entry, dict) for entry in metrics):
            raise ValueError("no figures")
        for rows in results.get("differences", {}).values():
            if not rows.keys() <= results["systems"].keys():
                raise ValueError("differences of an earlier version")
        results["meta"]["protocol"]
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read ({error.strerror}); give the output folder of an evaluation that has ended."
        ) from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: is no results.json of an evaluation ({error!r}); evaluate again.") from None
    return Run(name=folder.resolve().name, results=results, figures=sorted(folder.rglob("*.png")))


def page(runs: Sequence[Run]) -> str:
    """The page as HTML, with everything embedded."""
    body = "".join(part for run in runs for part in section(run))
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Evaluations</title><style>{STYLE}</style></head><body><h1>Evaluations</h1>{body}</body></html>\n"
    )


def section(run: Run) -> Iterator[str]:
    """The section of a run: a table for each data set, differences between systems, figures, metadata."""
    systems, meta = run.results["systems"], run.results["meta"]
    data_sets = list(next(iter(systems.values())))
    metrics = shown_metrics(run)
    yield f"<section><h2>{html.escape(run.name)}: {html.escape(meta['protocol'])}</h2>"
    for data_set in data_sets:
        yield f"<h3>{html.escape(data_set)}</h3>"
        rows = {
            name: [cell(without_null(values), metrics) for values in sets[data_set].values()]
            for name, sets in systems.items()
        }
        yield html_table(["system", *systems[next(iter(systems))][data_set]], rows, f"{legend(metrics)}.")
    for first, differences in run.results.get("differences", {}).items():
        yield f"<h3>Differences from {html.escape(first)}</h3>"
        for data_set in data_sets:
            rows = {
                f"{name}, {TITLES[metric]}": [
                    difference_cell(Interval(**without_null(values[metric])), metric)
                    for values in sets[data_set].values()
                ]
                for name, sets in differences.items()
                for metric in metrics
            }
            kinds = list(next(iter(differences.values()))[data_set])
            yield html_table(
                [data_set, *kinds],
                rows,
                "In points of a percent, with 95 % intervals over groups of pictures. ≈: may be noise.",
            )
    for path in run.figures:
        data = base64.b64encode(path.read_bytes()).decode()
        name = html.escape(path.stem)
        caption = CAPTIONS.get(path.stem, "")  # other figures have a title in the picture
        image = f'<img alt="{name}" src="data:image/png;base64,{data}">'
        yield f"<figure>{image}<figcaption>{caption}</figcaption></figure>"
    made_by = html.escape(json.dumps(meta, indent=1))
    yield f"<details><summary>What made these figures</summary><pre>{made_by}</pre></details></section>"


def shown_metrics(run: Run) -> list[str]:
    """The metrics of the run that tables show."""
    kinds = next(iter(next(iter(run.results["systems"].values())).values()))
    return [metric for metric in TITLES if metric in next(iter(kinds.values()))]


def without_null(values: Mapping[str, float | None]) -> dict[str, float]:
    """Values of JSON with nan for null."""
    return {name: math.nan if value is None else value for name, value in values.items()}


def html_table(head: Sequence[str], rows: Mapping[str, Sequence[str]], caption: str) -> str:
    """A table as HTML; cells that begin with `NOISE` are grey."""
    lines = [f"<tr>{''.join(f'<th>{html.escape(entry)}</th>' for entry in head)}</tr>"]
    for name, cells in rows.items():
        columns = [
            f'<td class="noise">{html.escape(entry)}</td>'
            if entry.startswith("≈")
            else f"<td>{html.escape(entry)}</td>"
            for entry in cells
        ]
        lines.append(f"<tr><td>{html.escape(name)}</td>{''.join(columns)}</tr>")
    return f'<div class="wide"><table><caption>{html.escape(caption)}</caption>{"".join(lines)}</table></div>'


def main(arguments: Sequence[str] | None = None) -> None:
    """Reads the runs, writes the page, and prints the last table of each run."""
    with exit_on_input_error():
        options = tyro.cli(Options, args=command_line(arguments), prog=called("report"))
        if not options.run:
            raise InputError("Give at least one output folder of an evaluation.")
        check_writable(options.output, "--output")
        runs = [read_run(folder) for folder in options.run]
        write_text(options.output, page(runs))
    for run in runs:
        systems = run.results["systems"]
        last = list(next(iter(systems.values())))[-1]
        rows = {
            name: {kind: without_null(values) for kind, values in sets[last].items()} for name, sets in systems.items()
        }
        show([table(rows, title=f"{run.name}, {last}", first="system", metrics=shown_metrics(run))])
    print(f"written: {options.output}")


if __name__ == "__main__":
    main()
