"""Results of a run: the plugin or the model, and the table before / after."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import rich.box
from rich.table import Table

from eval.loop import Segmenter
from eval.report.tables import markdown, table
from stablesam_jax import params
from stablesam_jax.commands import called
from stablesam_jax.config import SamConfig
from stablesam_jax.data.sources import source_name
from stablesam_jax.files import checkpoint, plugin_file
from stablesam_jax.files.disk import write_text
from stablesam_jax.names import RUN_MODEL, RUN_PLUGIN
from stablesam_jax.visualize import save_figure
from train.comparison import Comparison
from train.console import Console
from train.run import Run


def overview(trained: params.Params, frozen: params.Params) -> tuple[Table, dict[str, dict[str, int]]]:
    """Counts trained and frozen parameters by module: a table, and its values."""
    counts: dict[str, dict[str, int]] = {}
    for kind, tree in (("trains", trained), ("frozen", frozen)):
        for path, leaf in params.flatten(tree).items():
            module = path.split("/")[0]
            row = counts.setdefault(module, {"trains": 0, "frozen": 0})
            row[kind] += int(np.size(leaf))
    result = Table(box=rich.box.SIMPLE_HEAD, title="parameters")
    for column in ("module", "trains", "frozen"):
        result.add_column(column, justify="left" if column == "module" else "right")
    for module, row in sorted(counts.items()):
        result.add_row(module, *[f"{count:,}" if count else "" for count in row.values()])
    result.add_section()
    result.add_row("all", *[f"{sum(row[kind] for row in counts.values()):,}" for kind in ("trains", "frozen")])
    return result, counts


def save_result(
    run: Run,
    console: Console,
    model: SamConfig,
    result: params.Params,
    *,
    plugin_alone: bool,
    chosen: Mapping[str, Any],
) -> str:
    """Writes the trained plugin or model for `build.load_model`. An existing file or folder is kept.

    Args:
        run: gets the file or folder.
        console: gets a line.
        model: configuration of the trained model.
        result: its parameters.
        plugin_alone: whether only the plugin was added to the base and trained. Then one file is written, and
            `BASE+FILE` is the model; otherwise the whole model is written, base included.
        chosen: which step it is, see `Looks.result`; goes into the file.

    Returns:
        The system's name for `build.load_model`.
    """
    path = run.folder / (RUN_PLUGIN if plugin_alone else RUN_MODEL)
    if path.exists():
        console.say("kept", f"kept: {path}", path=str(path))
    elif run.first_host:
        # The file may be passed on, so it has the names of data and base, not their paths.
        recipe = run.settings | {"data_dir": list(map(source_name, run.settings["data_dir"]))}
        recipe |= chosen
        del recipe["model"]
        if plugin_alone:
            assert model.plugin is not None
            plugin_file.save_plugin(path, result["plugin"], config=model.plugin, metadata=recipe)
        else:
            whole = dataclasses.replace(model, dtype="float32")  # the default, whatever the dtype of training
            checkpoint.save_model(path, result, config=whole, source=recipe, dtype=np.dtype(run.settings["store"]))
        console.say("written", f"written: {path}", path=str(path))
    return f"{run.settings['model']}+{path}" if plugin_alone else str(path)


def report(
    run: Run,
    console: Console,
    comparison: Comparison,
    after: Segmenter,
    chosen: Mapping[str, Any],
) -> None:
    """Prints and writes the table before / after and a figure. An existing report is kept."""
    path, figure_path = run.folder / "report.md", run.folder / "figures" / "wobble.png"
    if path.exists():
        text = f"kept: {path} (remove it to compare again)\n\n{path.read_text(encoding='utf-8')}"
        console.say("kept", text, path=str(path))
        return
    count, protocol = len(comparison.pictures), comparison.protocol
    if not count:
        console.say(
            "no-report",
            "no picture was held out (--held-out, at most a fifth of all): no table before / after",
        )
        return
    console.say("comparing", f"comparing before and after on {count} held-out pictures", pictures=count)
    rows, figure = comparison(after)
    if not run.first_host:
        return
    title = f"{count} held-out pictures, {protocol.prompts} prompts of each kind"
    console.show("report", table(rows, title=title, first=""), title=title, systems=rows)
    save_figure(figure, figure_path)
    text = f"# {title}\n\n{markdown(rows, first='')}\n{_about(run, chosen)}"
    write_text(path, text)  # last: if it exists, the figure does too
    console.say("written", f"written: {path}, {figure_path}", path=str(path), figure=str(figure_path))


def _about(run: Run, chosen: Mapping[str, Any]) -> str:
    """What the report is of: columns, figure, data and run."""
    settings = run.settings
    names = ", ".join(map(source_name, settings["data_dir"])) or "the embedded scenes"
    size = settings["image_size"]
    return (
        "mIoU / mBIoU / mSF in percent: overlap with the true mask, the same along the boundary, and how far the masks "
        "of several prompts for one object agree. gt-box is the exact box, noisy-box a sloppy one, 1-point a click.\n\n"
        f"- Base model: {settings['model']}, input {'of its own size' if size is None else f'{size} pixels'}\n"
        f"- Data: {names}; the pictures of the table were not trained on\n"
        f"- Prompts in training: {' '.join(settings['prompts'])}\n"
        f"- Seed: {settings['seed']}\n"
        f"{_which_step(chosen)}\n"
        "![masks before and after, of the objects that were least stable before](figures/wobble.png)\n"
    )


def _which_step(chosen: Mapping[str, Any]) -> str:
    """The line of the report about a result that is not the last step; "" for the last."""
    if not chosen:
        return ""
    return (
        f"- Step: {chosen['best_step']} of {chosen['last_step']}, with the best mean of mIoU over the prompt kinds in "
        f"the evaluations on the way ({100 * chosen['best_score']:.1f} %). It was chosen on the pictures of the table, "
        "whose row after is therefore a little too good\n"
    )


def tell_use(run: Run, console: Console, system: str) -> None:
    """Prints how to use and evaluate the result, at the base model's own input size.

    A plugin that was trained at a smaller size is used at the base's, where masks are better.
    """
    load = f'load_model("{system}")'
    evaluate = f"{called('eval')} hq --system {run.settings['model']} {system} --data-dir DIR --output runs/results"
    console.say("use", f"use it in Python:   {load}\ncompare on more:    {evaluate}", load=load, evaluate=evaluate)
