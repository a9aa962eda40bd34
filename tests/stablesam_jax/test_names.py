"""A name is understood where its meaning is clear, else refused in a line that says how a model is named."""

import re
import shutil

import pytest

from stablesam_jax import names
from stablesam_jax.errors import InputError
from stablesam_jax.names import PRETRAINED, Places, find

BASE, PLUGIN = PRETRAINED / "sam_nano", PRETRAINED / "stable_sam_nano.safetensors"


@pytest.fixture
def work(tmp_path, monkeypatch):
    """The current folder: a base, a plugin, and folders of runs that left a plugin and a model."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(BASE, "base")
    shutil.copy(PLUGIN, "plugin.safetensors")
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    shutil.copy(PLUGIN, "runs/mine/plugin.safetensors")
    shutil.copytree(BASE, "runs/whole/model")
    return tmp_path


def relative(places):
    """Paths as text, those of the package by their name."""
    return tuple(path and str(path).removeprefix(f"{PRETRAINED}/") for path in places)


@pytest.mark.parametrize(
    ("name", "base", "plugin"),
    [
        ("sam_nano", "sam_nano", None),
        (" sam_nano ", "sam_nano", None),
        ("stable_sam_nano", "sam_nano", "stable_sam_nano.safetensors"),
        ("stable_sam_nano_one_object", "sam_nano", "stable_sam_nano_one_object.safetensors"),
        ("base", "base", None),
        ("runs/whole", "runs/whole/model", None),
        ("runs/whole/model", "runs/whole/model", None),
        ("base+plugin.safetensors", "base", "plugin.safetensors"),
        ("base + plugin.safetensors", "base", "plugin.safetensors"),
        ("plugin.safetensors+base", "base", "plugin.safetensors"),
        ("sam_nano+runs/mine", "sam_nano", "runs/mine/plugin.safetensors"),
        ("sam_nano+runs/mine/", "sam_nano", "runs/mine/plugin.safetensors"),
        ("runs/mine+runs/whole", "runs/whole/model", "runs/mine/plugin.safetensors"),
        ("sam_nano+stable_sam_nano", "sam_nano", "stable_sam_nano.safetensors"),
        ("runs/mine", "sam_nano", "runs/mine/plugin.safetensors"),
        ("plugin.safetensors", "sam_nano", "plugin.safetensors"),
        ("base+absent.safetensors", "base", "absent.safetensors"),
    ],
)
def test_what_is_meant_is_found(work, name, base, plugin):
    assert relative(find(name)) == (base, plugin)


def test_names_may_hold_plus_signs_and_blanks(work):
    shutil.move("base", "a+b c ")
    shutil.move("plugin.safetensors", " x+y.safetensors")
    assert relative(find("a+b c + x+y.safetensors")) == ("a+b c ", " x+y.safetensors")
    assert relative(find("a+b c ")) == ("a+b c ", None)


def test_a_plugin_of_a_base_that_is_not_shipped_must_be_named_with_it(work, monkeypatch):
    monkeypatch.setattr(names, "load_plugin", lambda path: ({}, None, {"base": "sam_vit_b"}))
    for name in ("plugin.safetensors", "runs/mine"):
        with pytest.raises(InputError, match=f"{name}: is a plugin, trained on sam_vit_b; name .* as BASE\\+{name}"):
            find(name)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("", ": neither a shipped model"),
        (
            "absent",
            "absent: neither a shipped model (sam_nano, stable_sam_nano, stable_sam_nano_one_object) nor",
        ),
        ("absent+plugin.safetensors", "absent: neither"),
        ("x" * 5000, "x" * 5000 + ": neither"),
        ("a\0b", "a\\x00b: neither"),
        ("base+", "base+: has nothing on one side of the plus; name a base and a plugin, as BASE+PLUGIN_FILE."),
        (" +runs/mine", " +runs/mine: has nothing on one side of the plus"),
        ("base+sam_nano", "base+sam_nano: names two models; name a base and a plugin, as BASE+PLUGIN_FILE."),
        ("plugin.safetensors+runs/mine", "plugin.safetensors+runs/mine: names two plugins;"),
        ("stable_sam_nano+plugin.safetensors", "stable_sam_nano: has a plugin; name sam_nano as its base."),
    ],
)
def test_what_is_not_clear_is_refused(work, name, message):
    with pytest.raises(InputError, match=f"^{re.escape(message)}"):
        find(name)


def test_a_shipped_name_is_not_shadowed_by_a_folder(work):
    shutil.move("base", "sam_nano")
    assert find("sam_nano") == Places(BASE, None)
