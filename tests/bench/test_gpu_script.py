"""The script for a GPU runs on a CPU in a reduced form, goes on where it was, and its page has every stage."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from bench import gpu_table

ROOT = pathlib.Path(__file__).resolve().parents[2]


def run(folder, *stages, **environment):
    environment = os.environ | {"REDUCED": "1", "PYTHON": sys.executable, "PYTHONPATH": str(ROOT)} | environment
    return subprocess.run(
        ["bench/gpu.sh", str(folder), *stages], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )


@pytest.mark.slow
def test_a_stage_is_measured_once_and_stands_on_the_page(tmp_path):
    done = run(tmp_path, "encoder", STAGE_SECONDS="3000")
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "table.md").read_text()
    assert "## encoder" in page
    assert "mobile_sam" in page
    before = (tmp_path / "encoder.json").read_bytes()
    assert "encoder: kept" in run(tmp_path, "encoder").stdout
    assert (tmp_path / "encoder.json").read_bytes() == before


@pytest.mark.slow
def test_a_stage_that_takes_too_long_is_named_and_the_others_go_on(tmp_path):
    done = run(tmp_path, "encoder", "table", STAGE_SECONDS="1")
    assert done.returncode == 1
    assert "not done: encoder" in done.stdout
    assert (tmp_path / "table.md").exists()


def test_a_wrong_stage_is_refused(tmp_path):
    done = run(tmp_path, "encoders")
    assert done.returncode == 2
    assert "encoders: no stage" in done.stdout


def test_the_page_says_whether_parity_holds(tmp_path):
    for ok, words in ((True, "within its bound"), (False, "a bound is exceeded")):
        (tmp_path / "parity.json").write_text(json.dumps({"ok": ok}))
        assert words in gpu_table.page(tmp_path)
