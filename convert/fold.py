"""Folds a plugin into the weights of its base: a plain SAM, which every program that loads one can use.

python -m convert.fold --system sam_vit_b+plugin.safetensors --output runs/stable_sam_vit_b.pth
python -m convert.fold --system stable_sam_nano_one_object --output runs/folded
"""

import dataclasses
import pathlib
import time
from collections.abc import Sequence
from typing import Any

import jax
import tyro

from convert import folding
from convert.flax_to_torch import SUFFIXES, check_twin, model_state, of_videos, write_state
from convert.fold_report import Table, compare, markdown, mean_alpha
from convert.torch_file import sha256
from stablesam_jax.build import load_model
from stablesam_jax.commands import called, command_line
from stablesam_jax.data.collage import Collage
from stablesam_jax.data.readers import LabelledPicture
from stablesam_jax.data.sources import open_sources
from stablesam_jax.errors import InputError, exit_on_input_error
from stablesam_jax.files.checkpoint import save_model
from stablesam_jax.files.disk import new_path, write_text
from stablesam_jax.params import Params, digest
from stablesam_jax.predict.predictor import Predictor

REPORT = ".md"  # added to the name of the output

Item = tuple[str, str]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Folds a plugin into the weights of its base, and compares the two.

    Folding is exact for a plugin of the linear form. Of deformable sampling only the linear part is folded: offsets are
    dropped, and the router's alpha becomes its mean over a sample of prompts. The report shows what is lost.
    """

    system: str
    """BASE+PLUGIN_FILE, the folder of a training run, or a shipped plugin."""
    output: pathlib.Path
    """New file (.pth, .pt or .safetensors) with the official names, of sam_nano for stablesam_torch; or new checkpoint
    folder of this package. The report is written to OUTPUT.md."""
    video_weights: pathlib.Path | None = None
    """For a file of a SAM 2: the official file that was converted. The output gets its weights for videos; without them
    sam2 loads the output only with strict=False."""
    strength: float | None = None
    """Strength of the plugin, 0 to 1. Default: its own."""
    data_dir: tuple[pathlib.Path, ...] = ()
    """Pictures with masks for the mean alpha and for the comparison, in any form that training takes. Default: scenes
    composed from included photographs."""
    limit: int = 20
    """Number of pictures of each data folder, from the first."""
    prompts: int = 6
    """Number of noisy boxes, and of clicks, for each object."""
    seed: int = 0
    """Seed of the prompts."""


def convert(options: Options, tell: bool = False) -> tuple[list[Item], Table]:
    """Folds one system and writes the model and its report.

    Args:
        options: of the command.
        tell: whether progress is printed.

    Returns:
        items of the report, and the comparison.

    Raises:
        InputError: the system cannot be loaded or folded, there is no twin for a file, the data cannot be used, or the
            output exists or cannot be written. No partial output remains.
    """
    began = time.monotonic()
    if options.limit < 1 or options.prompts < 1 or options.seed < 0:
        raise InputError("--limit and --prompts must be at least 1, --seed at least 0.")
    output, report = options.output, options.output.with_name(options.output.name + REPORT)
    new_path(output)
    new_path(report)
    sam, params = load_model(options.system, strength=options.strength)
    plugin = sam.config.plugin
    folding.check_foldable(options.system, plugin)
    assert plugin is not None
    as_file = output.suffix in SUFFIXES
    of_video: dict[str, Any] = {}
    remarks: list[Item] = []
    if as_file:
        check_twin(options.system, dataclasses.replace(sam.config, plugin=None))
        state = model_state(jax.device_get(_base(params)))
        of_video, remarks = of_videos(options.system, state, options.video_weights)
    elif options.video_weights is not None:
        raise InputError(f"--video-weights: {output} is a folder, which holds none; leave the option out.")
    pictures, data = _pictures(options)

    unfolded = Predictor(sam, params)
    alphas = mean_alpha(unfolded, pictures, options.prompts, options.seed)
    plain, folded = folding.fold(sam, params, alphas)
    predictors = {"unfolded": unfolded, "folded": Predictor(plain, folded), "base": unfolded.without_plugin()}
    table = compare(predictors, pictures, options.prompts, options.seed, print if tell else lambda line: None)

    exact = folding.is_exact(plugin)
    items = [
        ("system", options.system),
        ("model", plain.config.name),
        ("plugin", f"{plugin.resample}, strength {plugin.strength:g}, attentions {_joined(plugin.attentions)}"),
        ("fold", "exact" if exact else "near: without offsets, with the mean alpha of all prompts"),
        *((f"alpha at {place}", f"{one:.4f} and {other:.4f}") for place, (one, other) in alphas.items() if not exact),
        ("data", data),
        ("prompts", f"{options.prompts} of each random kind and object, seed {options.seed}"),
    ]
    if as_file:
        write_state(model_state(jax.device_get(folded)) | of_video, output)
        items += remarks
        items.append(("output", f"{output}, SHA-256 {sha256(output)}"))
    else:
        source = {"folded": options.system, "base_sha256": digest(jax.device_get(_base(params))), "report": dict(items)}
        save_model(output, jax.device_get(folded), config=plain.config, source=source)
        items.append(("output", str(output)))
    write_text(report, _text(items, table))
    return [*items, ("report", str(report)), ("seconds", f"{time.monotonic() - began:.0f}")], table


def _pictures(options: Options) -> tuple[list[LabelledPicture], str]:
    """The sample, and a description of it."""
    if not options.data_dir:
        scenes = Collage("held_out", options.limit, options.seed)
        return list(scenes), f"{len(scenes)} scenes composed from the package's photographs"
    found, counts = [], []
    for name, source in open_sources(options.data_dir).items():
        chosen = [source[index] for index in range(min(options.limit, len(source)))]
        counts.append(f"{name} {len(chosen)}")
        found += chosen
    return found, f"the first pictures of {', '.join(counts)}"


def _base(params: Params) -> Params:
    return {part: leaves for part, leaves in params.items() if part != "plugin"}


def _joined(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))


def _text(items: Sequence[Item], table: Table) -> str:
    lines = "\n".join(f"- {item}: {value}" for item, value in items)
    return f"# Folded against unfolded\n\n{lines}\n\n{markdown(table)}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command; bad input exits with status 2."""
    with exit_on_input_error():
        options = tyro.cli(Options, args=command_line(arguments), prog=called("fold"))
        items, table = convert(options, tell=True)
        width = max(len(item) for item, _ in items)
        for item, value in items:
            print(f"{item:<{width}} {value}")
        print(f"\n{markdown(table)}", end="")


if __name__ == "__main__":
    main()
