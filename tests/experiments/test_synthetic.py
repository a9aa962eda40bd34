"""A synthetic HQSeg-44K, in its seven folders and proportions, goes through check, build and training; memory stays.

SYNTHETIC=44320 makes it as large as the real one; its pictures are small.
"""

import json
import os
import pathlib
import subprocess
import sys

import cv2
import numpy as np
import pytest

from stablesam_jax.data.datasets import JOINED, ONE_OBJECT, official_count
from tests.reference import small

ROOT = pathlib.Path(__file__).resolve().parents[2]
COUNT = int(os.environ.get("SYNTHETIC", "440"))
STEPS = int(os.environ.get("SYNTHETIC_STEPS", "60"))


def write(root, count):
    """Coarse coloured blocks with an ellipse, no two alike; JPEG and PNG under the names of the release."""
    rng = np.random.default_rng(0)
    for part in JOINED["hqseg-44k"]:
        row = ONE_OBJECT[part]
        for folder in (row.pictures, row.masks):
            (root / folder).mkdir(parents=True, exist_ok=True)
        for number in range(max(1, round(count * row.count / official_count("hqseg-44k")))):
            width, height = (int(side) for side in rng.integers(64, 128, 2))
            blocks = rng.integers(0, 256, (8, 9, 3), np.uint8)
            picture = cv2.resize(blocks, (width, height), interpolation=cv2.INTER_CUBIC)
            mask = np.zeros((height, width), np.uint8)
            axes = tuple(int(side) for side in rng.integers(8, 28, 2))
            centre = (width // 2, height // 2)
            for canvas, colour in ((picture, tuple(map(int, rng.integers(0, 256, 3)))), (mask, 255)):
                cv2.ellipse(canvas, centre, axes, 0, 0, 360, colour, -1)
            cv2.imwrite(str(root / row.pictures / f"{number:05d}.jpg"), picture)
            cv2.imwrite(str(root / row.masks / f"{number:05d}.png"), mask)


def run(*arguments, good=(0,)):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_NUM_CPU_DEVICES": "1"}
    command = [sys.executable, "-m", "stablesam_jax", *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode in good, done.stderr[-2000:]
    return done.stdout


@pytest.mark.slow
def test_it_is_checked_built_and_trained_on_with_memory_that_stays(tmp_path):
    write(tmp_path / "data", COUNT)
    checked = run("check", f"hqseg-44k:{tmp_path / 'data'}", "--json", tmp_path / "found.json", good=(0, 1))
    pictures = sum(json.loads((tmp_path / "found.json").read_text())["folders"].values())
    assert abs(pictures - COUNT) <= len(JOINED["hqseg-44k"])
    built = run("build", "hqseg-44k", "--source", tmp_path / "data", "--data-dir", tmp_path / "built")
    assert f"{pictures:,} pictures of 44,320 in the release; refused: 0" in built, checked
    printed = run(
        *("train", "stable-sam", "--model", small.save_nano(tmp_path / "base"), "--image-size", small.SIZE),
        *("--data-dir", tmp_path / "built" / "hqseg_44k", "--output", tmp_path / "run", "--steps", STEPS),
        *("--held-out", 0, "--eval-every", 0, "--skip-bad", "--save-every", max(STEPS // 4, 1)),
    )
    lines = [json.loads(line) for line in printed.splitlines() if line.startswith("{")]
    memory = {line["step"]: line["memory_bytes"] for line in lines if line["event"] == "progress"}
    print(f"{pictures} pictures, peak memory by step, MiB: { ({step: of // 2**20 for step, of in memory.items()}) }")
    first, *_, last = memory.values()
    assert last - first < 64 * 2**20
