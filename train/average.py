"""`python -m train.average`: averages the parameters of several plugins, or of several models.

Runs from one start may be averaged instead of choosing the best; the mean costs no more to use than one of them ("model
soups", arXiv 2203.05482). The strength of a plugin and its first pass can be set too.

    python -m train.average --parts runs/0/plugin.safetensors runs/1/plugin.safetensors --output runs/plugin.safetensors
    python -m train.average --parts runs/3/model runs/4/model --shares 0.3 0.7 --store float16 --output runs/mean

Models may differ in the size of their input; the mean has that of the last part.
"""

import dataclasses
import pathlib
import sys
from collections.abc import Sequence
from typing import Any, Literal

import jax
import numpy as np
import tyro

from stablesam_jax.commands import called, command_line
from stablesam_jax.errors import InputError, exit_on_input_error
from stablesam_jax.files import checkpoint, plugin_file
from stablesam_jax.files.disk import new_path
from stablesam_jax.params import Params


@dataclasses.dataclass(frozen=True, kw_only=True)
class AverageConfig:
    """Averages plugins or models, or changes the strength and the first pass of a plugin."""

    parts: tuple[str, ...]
    """One or more plugin files of one base and configuration, or checkpoint folders of one model."""
    output: pathlib.Path
    """New file or folder."""
    shares: tuple[float, ...] = ()
    """Weight of each part; their sum may differ from 1. Default: equal weights."""
    strength: float | None = None
    """Strength of the resulting plugin, from 0 (SAM) to 1. Default: that of the parts."""
    first_pass: tuple[float, float, float, float] | None = None
    """Four limits, such as 0.8 0.45 0.2 0.4: the plugin acts only where SAM's own mask is poor (docs/train.md).
    Default: those of the parts."""
    store: Literal["float32", "float16"] | None = None
    """Dtype of a model's stored parameters. Default: float32."""


def average(config: AverageConfig) -> None:
    """Reads the parts and writes their mean, with the metadata of every part.

    Raises:
        InputError: the parts cannot be read or differ in kind or configuration, or the output cannot be written.
    """
    new_path(config.output)
    count = len(config.parts)
    if not count:
        raise InputError("--parts: name at least one plugin file or checkpoint folder.")
    shares = np.array(config.shares or [1.0] * count)
    if len(shares) != count or not (shares.min() >= 0 and 0 < shares.max() < np.inf):
        given = " ".join(f"{share:g}" for share in config.shares)
        raise InputError(f"--shares {given}: give one for each of the {count} parts, none below 0 and not all 0.")
    shares /= shares.max()  # first, because the sum of huge shares overflows
    shares /= shares.sum()
    for part in config.parts:
        if not pathlib.Path(part).exists():
            raise InputError(f"--parts {part}: there is no such file or folder.")
    plugins = [pathlib.Path(part).is_file() for part in config.parts]
    if len(set(plugins)) != 1:
        raise InputError(f"--parts {' '.join(config.parts)}: give plugin files alone, or checkpoint folders alone.")
    (_write_plugin if plugins[0] else _write_model)(config, shares)
    print(f"written: {config.output}, the mean of {count}", flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    with exit_on_input_error():
        config = tyro.cli(AverageConfig, args=command_line(arguments), prog=called("average"))
        average(config)
    return 0


def _write_plugin(config: AverageConfig, shares: np.ndarray) -> None:
    if config.store is not None:
        raise InputError("--store: is for models; these are plugin files, which are float32.")
    params, plugins, histories = zip(*map(plugin_file.load_plugin, config.parts), strict=True)
    changes = {"strength": config.strength, "first_pass": config.first_pass}
    changes = {name: value for name, value in changes.items() if value is not None}
    plugins = tuple(dataclasses.replace(plugin, **changes) for plugin in plugins)
    _must_agree(config.parts, plugins, "configuration")
    bases = [{name: history.get(name) for name in ("base", "base_sha256")} for history in histories]
    _must_agree(config.parts, bases, "base")
    metadata = bases[0] | _history(shares, histories)
    plugin_file.save_plugin(config.output, _mean(params, shares), config=plugins[0], metadata=metadata)


def _write_model(config: AverageConfig, shares: np.ndarray) -> None:
    if config.strength is not None or config.first_pass is not None:
        raise InputError("--strength and --first-pass: are for plugin files; these are models.")
    models, params, metadata = zip(*map(checkpoint.load_model, config.parts), strict=True)
    # Input sizes may differ. Where parameters depend on it, as a ViT's positions, the shapes below differ.
    models = tuple(dataclasses.replace(model, image_size=models[-1].image_size) for model in models)
    _must_agree(config.parts, models, "configuration")
    _must_agree(config.parts, [checkpoint.describe(one) for one in params], "size")
    source = _history(shares, [one["source"] for one in metadata])
    checkpoint.save_model(
        config.output, _mean(params, shares), config=models[0], source=source, dtype=np.dtype(config.store or "float32")
    )


def _must_agree(parts: Sequence[str], found: Sequence[Any], what: str) -> None:
    for part, one in zip(parts, found, strict=True):
        if one != found[0]:
            raise InputError(
                f"{part}: its {what} differs from that of {parts[0]}; only parts of one {what} make a mean."
            )


def _history(shares: np.ndarray, histories: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return {"mean_of": [{"share": float(share)} | one for share, one in zip(shares, histories, strict=True)]}


def _mean(params: Sequence[Params], shares: np.ndarray) -> Params:
    def mean(*leaves: np.ndarray) -> np.ndarray:
        return sum(share * leaf.astype(np.float64) for share, leaf in zip(shares, leaves, strict=True)).astype(
            np.float32
        )

    return jax.tree.map(mean, *params)


if __name__ == "__main__":
    sys.exit(main())
