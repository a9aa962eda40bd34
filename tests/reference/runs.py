"""Small training runs, and what they leave."""

import contextlib
import io
import json
import sys

from stablesam_jax import params
from stablesam_jax.files.plugin_file import load_plugin
from train import main as train_main

STEPS = 3


def train(config):
    """What a run prints."""
    with contextlib.redirect_stdout(io.StringIO()) as output:
        train_main.train(config)
    return output.getvalue()


def assert_same_plugin(first, second):
    """To the bit; the file's header lists its fields in any order."""
    (tensors, *first), (others, *second) = (load_plugin(folder / "plugin.safetensors") for folder in (first, second))
    assert {path: leaf.tobytes() for path, leaf in params.flatten(tensors).items()} == {
        path: leaf.tobytes() for path, leaf in params.flatten(others).items()
    }
    assert first == second


def measurements(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def run_main(monkeypatch, config):
    """The program with this configuration, as if its options had been typed."""
    with monkeypatch.context() as patch:
        patch.setattr(sys, "argv", ["train.main"])
        patch.setattr(train_main, "parse_run", lambda *_: config)
        train_main.main()
