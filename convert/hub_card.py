"""The card of a model on the Hugging Face hub: README.md, with a head in YAML that the hub reads."""

from collections.abc import Iterator, Mapping
from typing import Any

import yaml  # type: ignore[import-untyped]

from stablesam_jax.config import PluginConfig, SamConfig
from stablesam_jax.params import Params, count

PAPER = "arxiv.org/abs/2311.15776"
METRICS = {"miou": "mIoU", "mbiou": "mBIoU", "msf": "mSF"}
RECIPE = ("data_dir", "pictures", "steps", "batch_size", "prompts_per_picture", "learning_rate", "prompts", "seed")

# Data set -> kind of prompts -> metric -> fraction, or None where it is not defined; other metrics are passed over.
Results = Mapping[str, Mapping[str, Mapping[str, float | None]]]

USE = {
    "ours": """from stablesam_jax import Predictor, load_model

predictor = Predictor(*load_model("OWNER/{title}"))  # or the path of this folder
predictor.set_image("picture.jpg")
masks, scores, _ = predictor.predict(box=[75, 60, 420, 380], multimask_output=False)""",
    "transformers": """from transformers import {model}, SamImageProcessor

model = {model}.from_pretrained("OWNER/{title}")  # or the path of this folder
processor = SamImageProcessor.from_pretrained("OWNER/{title}")""",
}


def card(
    title: str,
    config: SamConfig,
    params: Params,
    source: Mapping[str, Any],
    results: Results,
    license_name: str | None,
    layout: str,
) -> str:
    """The text of README.md.

    Args:
        title: of the model.
        config, params: of the model.
        source: "plugin": metadata of the plugin's file, if there is one.
        results: of an evaluation; may be empty.
        license_name: as the hub spells it, or None.
        layout: a key of `USE`.
    """
    head: dict[str, Any] = {
        "library_name": "stablesam-jax" if layout == "ours" else "transformers",
        "pipeline_tag": "mask-generation",
        "tags": ["segment-anything", *(["stable-sam", "jax", "flax"] if layout == "ours" else [])],
    }
    if license_name is not None:
        head["license"] = license_name
    if results:
        head["model-index"] = [{"name": title, "results": list(_index(results))}]
    parts = [f"---\n{yaml.safe_dump(head, sort_keys=False, allow_unicode=True)}---\n", f"# {title}\n"]
    parts.append(_what(config, params))
    use = USE[layout].format(title=title, model="SamHQModel" if config.hq else "SamModel")
    parts.append(f"## Use\n\n```python\n{use}\n```\n")
    if "plugin" in source:
        parts.append(_training(source["plugin"]))
    if results:
        parts.append(_table(results))
    return "\n".join(parts)


def _what(config: SamConfig, params: Params) -> str:
    lines = [
        f"A segmenter that is prompted with boxes and points: {config.name}, {count(params):,} parameters, input of "
        f"{config.image_size} pixels.\n"
    ]
    if config.plugin is not None:
        lines.append(
            f"It has a plugin of {count(params['plugin']):,} parameters in the mask decoder for sloppy prompts (after "
            f"Stable Segment Anything, {PAPER}): {_plugin(config.plugin)}.\n"
        )
    return "\n".join(lines)


def _plugin(plugin: PluginConfig) -> str:
    words = [f"form {plugin.resample}", f"attentions {', '.join(map(str, plugin.attentions))}"]
    words.append(f"strength {plugin.strength:g}")
    if plugin.first_pass is not None:
        words.append("used where the mask without it is poor")
    return ", ".join(words)


def _training(metadata: Mapping[str, Any]) -> str:
    """What the plugin's file holds of its training; of a mean of several, of each different one."""
    lines = ["## Training of the plugin\n", f"Base: {metadata.get('base', 'not recorded')}.\n"]
    runs = list(_runs(metadata))
    for number, run in enumerate(runs, start=1):
        told = [f"{name.replace('_', ' ')} {_words(run[name])}" for name in RECIPE if run.get(name) not in (None, [])]
        if told:
            lines.append(f"{number}. {'; '.join(told)}" if len(runs) > 1 else "; ".join(told))
    return "\n".join(lines) + "\n"


def _runs(metadata: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The training runs behind a plugin, which may be a mean of means."""
    parts = metadata.get("mean_of")
    return [metadata] if not parts else [run for part in parts for run in _runs(part)]


def _words(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def _index(results: Results) -> Iterator[dict[str, Any]]:
    """Entries of the hub's model-index."""
    for data_set, kinds in results.items():
        metrics = [
            {"type": metric, "name": f"{METRICS[metric]}, {kind}", "value": round(100 * value, 2)}
            for kind, of in kinds.items()
            for metric in METRICS
            if (value := of.get(metric)) is not None
        ]
        task = {"type": "mask-generation", "name": "Segmentation from prompts"}
        yield {"task": task, "dataset": {"type": data_set, "name": data_set}, "metrics": metrics}


def _table(results: Results) -> str:
    kinds = list(dict.fromkeys(kind for of in results.values() for kind in of))
    measured = [metric for metric in METRICS if any(metric in of for each in results.values() for of in each.values())]
    titles = " / ".join(METRICS[metric] for metric in measured)
    lines = ["## Results\n", f"| {titles} in % | {' | '.join(kinds)} |", "|---" * (len(kinds) + 1) + "|"]
    for data_set, of in results.items():
        cells = [" / ".join(_figure(of.get(kind, {}).get(metric)) for metric in measured) for kind in kinds]
        lines.append(f"| {data_set} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"
