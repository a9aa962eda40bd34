"""`python -m eval.report RUN... --output runs/report.html`: several evaluations on one self-contained page.

A run is an output folder of `eval.main`. Tables are made from results.json; figures are embedded.
"""

import base64
import dataclasses
import html
import json
import math
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any

import tyro

from eval.report.bootstrap import Interval
from eval.report.tables import NOISE, TITLES, cell, described, difference_cell, legend, show, table
from stablesam_jax.commands import called, command_line
from stablesam_jax.errors import InputError, exit_on_input_error
from stablesam_jax.files.disk import check_writable, write_text

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; color: #1b1b1b }
table { border-collapse: collapse; margin: 0.7rem 0; font-variant-numeric: tabular-nums }
th, td { border-bottom: 1px solid #ccc; padding: 0.25rem 0.8rem; text-align: right; white-space: nowrap }
th:first-child, td:first-child { text-align: left; white-space: normal; overflow-wrap: anywhere; min-width: 8rem }
caption { caption-side: bottom; text-align: left; color: #555; font-size: 0.85rem }
.wide { overflow-x: auto }
figure { margin: 1rem 0 } img { max-width: 100% } figcaption { color: #555; font-size: 0.85rem }
pre { background: #f4f4f4; padding: 0.7rem; overflow-x: auto; font-size: 0.8rem }
.noise { color: #767676 }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 0.1rem 1rem; font-size: 0.9rem }
dt { color: #555 } dd { margin: 0; overflow-wrap: anywhere }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 28rem), 1fr)); gap: 0 1rem }
"""
CAPTIONS = {
    "curves": "Accuracy and stability; prompts get worse from left to right.",
    "stability": "Pictures by mSF, the agreement of the masks of their prompts.",
    "alpha": "The router's share of resampled features, by kind of prompt.",
    "wobble": "Accuracy and stability; below, the mean error of the masks that a signal ranks highest.",
}
MASKS = "Green: the object. Blue: the masks of its prompts, deeper where more of them overlap."  # of best_K and worst_K
MOST_COLUMNS = 6  # kinds of prompts beside each other; with more, a kind is a row


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Writes one self-contained HTML page about several evaluations."""

    run: Annotated[tuple[pathlib.Path, ...], tyro.conf.Positional]
    """Output folders of evaluations, one or more."""
    output: pathlib.Path
    """HTML file; an existing one is replaced."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """One evaluation on disk."""

    name: str
    results: Mapping[str, Any]  # results.json
    figures: Sequence[pathlib.Path]
    words: str = ""  # what the protocol says of the results, Markdown


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
    words = folder / "wobble.md"
    return Run(
        name=folder.resolve().name,
        results=results,
        figures=sorted(folder.rglob("*.png")),
        words=words.read_text(encoding="utf-8") if words.is_file() else "",
    )


def page(runs: Sequence[Run]) -> str:
    """The page as HTML, with everything embedded."""
    body = "".join(part for run in runs for part in section(run))
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Evaluations</title><style>{STYLE}</style></head><body><h1>Evaluations</h1>{body}</body></html>\n"
    )


def section(run: Run) -> Iterator[str]:
    """The section of a run: what it is of, a table for each data set, differences, words, figures, metadata."""
    systems, meta = run.results["systems"], run.results["meta"]
    data_sets = list(next(iter(systems.values())))
    metrics = shown_metrics(run)
    yield f"<section><h2>{html.escape(run.name)}: {html.escape(meta['protocol'])}</h2>"
    about = [f"<dt>{html.escape(title)}</dt><dd>{html.escape(text)}</dd>" for title, text in described(meta).items()]
    yield f"<dl>{''.join(about)}</dl>"
    for data_set in data_sets:
        yield f"<h3>{html.escape(data_set)}</h3>"
        rows = {
            name: [cell(without_null(values), metrics) for values in sets[data_set].values()]
            for name, sets in systems.items()
        }
        yield html_table("system", list(systems[next(iter(systems))][data_set]), rows, f"{legend(metrics)}.")
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
            caption = "In points of a percent, with 95 % intervals over groups of pictures. ≈ and grey: may be noise."
            yield html_table(data_set, kinds, rows, caption)
    yield from paragraphs(run.words)
    sheets = [path for path in run.figures if re.fullmatch(r"(best|worst)_\d+", path.stem)]
    yield from (figure(path, CAPTIONS.get(path.stem, "")) for path in run.figures if path not in sheets)
    if sheets:
        # By number of the system, so that systems are below each other and best and worst beside each other.
        ordered = sorted(sheets, key=lambda path: (int(path.stem.rpartition("_")[2]), path.stem))
        yield f'<div class="pair">{"".join(figure(path, MASKS) for path in ordered)}</div>'
    made_by = html.escape(json.dumps(meta, indent=1))
    yield f"<details><summary>What made these results</summary><pre>{made_by}</pre></details></section>"


def figure(path: pathlib.Path, caption: str) -> str:
    """A figure, embedded; without a caption it has a title in the picture."""
    data = base64.b64encode(path.read_bytes()).decode()
    image = f'<img alt="{html.escape(path.stem)}" src="data:image/png;base64,{data}">'
    return f"<figure>{image}<figcaption>{html.escape(caption)}</figcaption></figure>"


def paragraphs(words: str) -> Iterator[str]:
    """Headings and paragraphs of Markdown as HTML; its title, tables and figures are left out."""
    for block in words.split("\n\n"):
        if block.startswith("\n## ") or block.startswith("## "):
            yield f"<h3>{html.escape(block.strip().removeprefix('## '))}</h3>"
        elif block.strip() and not block.lstrip().startswith(("#", "|", "!")):
            yield f"<p>{html.escape(block.strip().replace('`', ''))}</p>"


def shown_metrics(run: Run) -> list[str]:
    """The metrics of the run that tables show."""
    kinds = next(iter(next(iter(run.results["systems"].values())).values()))
    return [metric for metric in TITLES if metric in next(iter(kinds.values()))]


def without_null(values: Mapping[str, float | None]) -> dict[str, float]:
    """Values of JSON with nan for null."""
    return {name: math.nan if value is None else value for name, value in values.items()}


def html_table(corner: str, kinds: Sequence[str], rows: Mapping[str, Sequence[str]], caption: str) -> str:
    """A table as HTML; cells that begin with `NOISE` are grey.

    Args:
        corner: above the names of the rows.
        kinds: of prompts, a column each; a row each if there are more than `MOST_COLUMNS` and fewer rows.
        rows: name -> a cell for each kind.
        caption: below.
    """
    head, body = list(kinds), {name: list(cells) for name, cells in rows.items()}
    if len(kinds) > max(MOST_COLUMNS, len(rows)):
        corner = "prompts" if corner == "system" else corner
        head, body = list(rows), {kind: [cells[place] for cells in rows.values()] for place, kind in enumerate(kinds)}
    lines = [f"<tr>{''.join(f'<th>{html.escape(entry)}</th>' for entry in [corner, *head])}</tr>"]
    for name, cells in body.items():
        columns = [
            f'<td class="noise">{html.escape(entry)}</td>'
            if entry.startswith(NOISE)
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
