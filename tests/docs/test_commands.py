"""Every command that the README and the pages show runs, on few pictures and steps, or its page says why not."""

import itertools
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys
import time

import pytest
import torch

from eval.parity import torch_sam
from stablesam_jax.config import MODELS
from tests.docs.test_pages import MODULES
from tests.reference import layouts, small

ROOT = pathlib.Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMAND = re.compile(r" {4,}(?:\$ )?(?:\w+=\S+ )*((?:stablesam\b|python -m (?!venv|pip|samexporter)).*)")

# What a page names and has not made.
OFFICIAL_FILES = {
    "sam_vit_b_01ec64.pth": "sam_vit_b",
    "mobile_sam.pt": "mobile_sam",
    "sam2.1_hiera_tiny.pt": "sam2_hiera_t",
}
PICTURES = [
    *("DIR", "my_pictures", "my_test_pictures", "test_pictures", "photos", "set_a", "set_b"),
    *("davis2016_val", "grabcut", "ecssd", "horses"),
]
OFFICIAL_SETS = [*layouts.INSTANCES, *(f"mess/{name}" for name in layouts.MESS)]
BEFORE = [
    "stablesam train own-pictures --data-dir my_pictures --seed 0 --output runs/0",
    "stablesam train own-pictures --data-dir my_pictures --seed 1 --output runs/1",
    "stablesam train own-pictures --plugin.resample linear --plugin.no-router --model runs/sam2_tiny "
    "--data-dir my_pictures --output runs/linear_sam2",
]
READ_AS = {"PRESET": "own-pictures", "...": ""}

# What makes a command short. An option that the page gives stays.
SHORT = {
    "train": "--steps 2 --limit 5 --held-out 1 --eval-prompts 1 --cache None --image-size 64 --batch-size 2",
    "embed": "--limit 2 --image-size 64 --batch-size 2",
    "preview": "--count 2 --limit 4 --image-size 64",
    "eval": "--limit 1 --image-size 64",
    "eval clicks": "--limit 1 --image-size 64 --clicks usual",
    "eval wobble": "--limit 1 --image-size 64 --count 2",
    "fold": "--limit 1 --prompts 1",
    "bench": "--models mobile_sam --image-size 256 --prompts 1 --repeats 1",
}


def shown(page):
    """The commands in blocks of a page, each in one line, but for those in a block that says why it does not run."""
    previous, marked = "", False
    lines = iter(page.read_text().splitlines())
    for line in lines:
        if not line.strip():
            continue
        marked = previous.strip().startswith("<!-- not run: ") or (marked and line.startswith("    "))
        if match := COMMAND.fullmatch(line):
            command = match[1]
            while command.endswith("\\"):
                command = command[:-1] + next(lines).strip()
            if not marked:
                yield re.split(r"\s+#", command)[0]
        previous = line


def words(command):
    """(name of the command, its arguments, shortened)."""
    program, *arguments = [READ_AS.get(word, word) for word in shlex.split(command)]
    if program == "python":
        _, module, *arguments = arguments
        arguments = [MODULES[module], *arguments]
    name, *arguments = filter(None, arguments) if arguments else [""]
    given = {word for word in arguments if word.startswith("--")}
    options = SHORT.get(" ".join([name, *arguments[:1]]), SHORT.get(name, ""))
    short = [option for option in re.split(" (?=--)", options) if option.partition(" ")[0] not in given]
    return name, arguments + " ".join(short).split()


def output_of(name, arguments):
    """What a command writes, or None."""
    options = ("--data-dir",) if name == "build" else ("--output", "--json")
    return next((value for option, value in itertools.pairwise(arguments) if option in options), None)


def missing(name, arguments, folder):
    """The files and folders of runs/ that a command reads and that are not there."""
    read = [word for word in arguments if word != output_of(name, arguments)]
    parts = [part for word in read for part in word.split("+") if part.startswith("runs/")]
    return [part for part in parts if not (folder / part).exists()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What the pages take as given: pictures, labels, an export of CVAT, official files with random values."""
    folder = tmp_path_factory.mktemp("user")
    for seed, name in enumerate(PICTURES, start=1):
        small.save_pairs(folder / name, 6, blocks=seed)
    for name in ("weights", "data"):
        (folder / name).mkdir()
    for name in OFFICIAL_SETS:
        layouts.write_official(name, folder / "DIR")
    layouts.write_export("cvat", folder / "cvat_export")
    (folder / "boxes.csv").write_text("file,x1,y1,x2,y2\nim/00.png,9,7,35,29\n")
    for file, name in OFFICIAL_FILES.items():
        model = torch_sam.build(MODELS[name])
        torch_sam.randomise(model, seed=0)
        state = model.state_dict()
        torch.save({"model": state} if name.startswith("sam2") else state, folder / file)
    return folder


@pytest.mark.slow
def test_every_command_of_the_pages_runs_or_says_why_not(folder):
    left = list(dict.fromkeys([*BEFORE, *(command for page in PAGES for command in shown(page))]))
    failed = []
    while ready := [command for command in left if not missing(*words(command), folder)]:
        for command in ready:
            left.remove(command)
            name, arguments = words(command)
            output, began = output_of(name, arguments), time.monotonic()
            if output and (folder / output).is_dir():
                shutil.rmtree(folder / output)
            elif output:
                (folder / output).unlink(missing_ok=True)
            done = subprocess.run(
                [sys.executable, "-m", "stablesam_jax", *([name] if name else []), *arguments],
                cwd=folder,
                env=os.environ | {"PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(folder / "cache")},
                capture_output=True,
                text=True,
                check=False,
            )
            print(f"{time.monotonic() - began:.0f} s {command}")  # shown if the test fails
            if done.returncode:
                failed.append(f"{command}\n{' '.join(arguments)}\n{done.stdout[-500:]}{done.stderr[-1500:]}")
    assert not failed, "\n\n".join(failed)
    assert not left  # nothing makes what these read
