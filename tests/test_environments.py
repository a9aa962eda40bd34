"""The commands run where a container or a cluster has no home, no user of that number, and an ASCII terminal."""

import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from tests.reference.pictures import ramp, save

ROOT = pathlib.Path(__file__).resolve().parents[1]
NAMES = [os.fsdecode(b"caf\xe9"), "日本", "a\nb", "c", "d"]
WITHOUT_A_USER = """
import pwd, runpy, sys

def unknown(number):
    raise KeyError(f"getpwuid(): uid not found: {number}")

pwd.getpwuid = unknown
del sys.argv[0]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""
COMMANDS = {
    "check": ["convert.check_data", "{set}", "--against", "{built}", "--json", "{out}/found.json"],
    "build": ["convert.build_dataset", "pairs", "--source", "{set}", "--data-dir", "{out}/built"],
    "evaluate": [
        *("eval.main", "hq", "--system", "sam_nano", "--image-size", "64", "--count", "1", "--prompts", "gt-box"),
        *("--data-dir", "{set}", "--output", "{out}/results"),
    ],
    "train": [
        *("train.main", "own-pictures", "--image-size", "64", "--batch-size", "2", "--prompts-per-picture", "1"),
        *("--steps", "1", "--held-out", "1", "--eval-prompts", "1", "--data-dir", "{set}", "--output", "{out}/run"),
    ],
}
SLOW = ("evaluate", "train")


@pytest.mark.parametrize(
    "command", [pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in COMMANDS]
)
def test_a_command_needs_no_home_no_user_and_no_letters_beyond_ascii(tmp_path, command):
    done = run(tmp_path, command, NAMES)
    assert "Traceback" not in done.stderr
    assert done.returncode in ((0, 1) if command == "check" else (0,)), done.stderr
    assert done.stdout.isascii()


@pytest.mark.slow
def test_results_are_the_same_where_jax_computes_in_float64(tmp_path):
    found = []
    for x64 in ("0", "1"):
        done = run(tmp_path / x64, "evaluate", NAMES[-2:], JAX_ENABLE_X64=x64)
        assert done.returncode == 0, done.stderr
        found.append((tmp_path / x64 / "results" / "per_image.csv").read_text())
        done = run(tmp_path / f"train{x64}", "train", NAMES[-3:], JAX_ENABLE_X64=x64)
        assert done.returncode == 0, done.stderr
    assert found[0] == found[1]


def run(folder, command, names, **environment):
    for number, name in enumerate(names):
        mask = np.zeros((80, 120), np.uint8)
        mask[10 + number : 50, 20:90] = 255
        save(folder / "set" / "im" / f"{name}.png", np.roll(ramp(80, 120), 9 * number, axis=1))
        save(folder / "set" / "gt" / f"{name}.png", mask)
    save(folder / "other" / "im" / "é.png", ramp(80, 120)[::-1])
    save(folder / "other" / "gt" / "é.png", mask)
    places = {"set": folder / "set", "built": folder / "other", "out": folder}
    arguments = [argument.format(**places) for argument in COMMANDS[command]]
    environment |= {"PATH": os.environ["PATH"], "JAX_PLATFORMS": "cpu", "LANG": "C", "PYTHONIOENCODING": "ascii"}
    return subprocess.run(
        [sys.executable, "-c", WITHOUT_A_USER, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True
    )
