"""What users call a model: a shipped name, a folder, or BASE+PLUGIN."""

import os
import pathlib
import re
from typing import Literal, NamedTuple

from stablesam_jax.commands import called
from stablesam_jax.config import MODELS
from stablesam_jax.errors import InputError
from stablesam_jax.files.checkpoint import MANIFEST
from stablesam_jax.files.hub_folder import download
from stablesam_jax.files.plugin_file import load_plugin

# A checkpoint folder for each shipped model, and a plugin file under the name of the model that has it.
PRETRAINED = pathlib.Path(__file__).parent / "pretrained"
# What a training run leaves in its folder.
RUN_PLUGIN, RUN_MODEL = "plugin.safetensors", "model"
ON_HUB = re.compile(r"(\w[\w.-]*)/\w[\w.-]*")  # OWNER/NAME, unless there is a folder OWNER
PYTORCH = (".pth", ".pt", ".bin", ".ckpt")


class Places(NamedTuple):
    """The files of a model."""

    base: pathlib.Path  # a checkpoint folder
    plugin: pathlib.Path | None


class _Part(NamedTuple):
    kind: Literal["model", "plugin"]
    path: pathlib.Path


def find(name: str) -> Places:
    """Finds the files of a model.

    Args:
        name: a shipped model, a checkpoint folder or one of `convert.to_hub`, OWNER/NAME on the Hugging Face hub, a
            plugin file, the folder of a training run, which holds one of both, or two of these joined by `+`, in any
            order. Of several `+` the last counts that has something on
            both sides. A plugin alone gets the base that it was trained on, if that is shipped. A shipped name takes
            precedence over a folder of the same name.

    Raises:
        InputError: nothing is found under that name, or not one base and at most one plugin.
    """
    whole = _part(name)
    if whole is None and "+" in name:
        return _joined(name)
    if whole is None:
        raise InputError(_unknown(name))
    return Places(whole.path, None) if whole.kind == "model" else Places(_base_of(name, whole.path), whole.path)


def _joined(name: str) -> Places:
    parts = name.split("+")
    pairs = [("+".join(parts[:place]), "+".join(parts[place:])) for place in range(len(parts) - 1, 0, -1)]
    first, second = next((pair for pair in pairs if all(map(_part, pair))), pairs[0])
    if not first.strip() or not second.strip():
        raise InputError(f"{name}: has nothing on one side of the plus; name a base and a plugin, as BASE+PLUGIN_FILE.")
    found = _part(first), _part(second)
    match found:
        case (_Part("model", base), _Part("plugin", plugin)) | (_Part("plugin", plugin), _Part("model", base)):
            return Places(base, plugin)
        case (_Part("plugin", first_plugin), _) if first.strip() in _shipped_plugins():
            raise InputError(f"{first}: has a plugin; name {_base_of(first, first_plugin).name} as its base.")
        case (_Part("model", base), None):
            return Places(base, pathlib.Path(second.strip()))  # reading it says what is wrong
        case (None, _):
            raise InputError(_unknown(first))
    raise InputError(f"{name}: names two {found[0].kind}s; name a base and a plugin, as BASE+PLUGIN_FILE.")


def _part(name: str) -> _Part | None:
    """A model or a plugin of one name; blanks around it count only where they are in the name of a file."""
    if name not in _shipped_models() and not os.path.exists(name):
        name = name.strip()
    if name in _shipped_models():
        return _Part("model", PRETRAINED / name)
    if name in _shipped_plugins():
        return _Part("plugin", _shipped_plugins()[name])
    path = pathlib.Path(name)
    if os.path.isdir(name):  # False for a name that no file can have, where pathlib raises
        if (path / MANIFEST).exists():
            return _Part("model", path)
        if (path / RUN_PLUGIN).is_file():
            return _Part("plugin", path / RUN_PLUGIN)
        return _Part("model", path / RUN_MODEL if (path / RUN_MODEL).is_dir() else path)
    if (on_hub := ON_HUB.fullmatch(name)) and not os.path.exists(on_hub[1]) and path.suffix != ".safetensors":
        return _Part("model", download(name))
    if path.suffix in PYTORCH and os.path.isfile(name):
        raise InputError(
            f"{name}: is a file of PyTorch, which is read by the converter alone. Convert it once: {called('convert')} "
            f"--checkpoint {name} --output DIR; give DIR."
        )
    return _Part("plugin", path) if os.path.isfile(name) and path.suffix == ".safetensors" else None


def _base_of(name: str, plugin: pathlib.Path) -> pathlib.Path:
    """The shipped base that a plugin was trained on."""
    base = load_plugin(plugin)[2].get("base")
    if base not in _shipped_models():
        raise InputError(f"{name}: is a plugin, trained on {base}; name that too, as BASE+{name}.")
    return PRETRAINED / base


def _unknown(name: str) -> str:
    known = [*_shipped_models(), *_shipped_plugins()]
    return (
        f"{name}: neither a shipped model ({', '.join(known) or 'none is'}) nor a checkpoint folder, the folder of a "
        f"training run, or BASE+PLUGIN_FILE. Convert an official file ({called('convert')} --checkpoint FILE.pth "
        "--output DIR); give DIR."
    )


def _shipped_models() -> list[str]:
    return [name for name in MODELS if (PRETRAINED / name).is_dir()]


def _shipped_plugins() -> dict[str, pathlib.Path]:
    return {file.stem: file for file in PRETRAINED.glob("*.safetensors")}
