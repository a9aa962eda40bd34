"""What commands write by default, or by the examples of the documentation, git does not see."""

import itertools
import pathlib
import re

import pytest

from stablesam_jax.commands import COMMANDS

ROOT = pathlib.Path(__file__).resolve().parents[1]
TOOLS = sorted({command.module.partition(".")[0] for command in COMMANDS.values()})
IGNORED = tuple((ROOT / ".gitignore").read_text().split())
DOCUMENTS = sorted(
    path
    for pattern in (
        "*.md",
        "docs/*.md",
        "results/*.md",
        "notebooks/*.ipynb",
        "stablesam_jax/**/*.md",
        "stablesam_jax/**/*.py",
    )
    for path in ROOT.glob(pattern)
)
SOURCES = sorted(itertools.chain.from_iterable((ROOT / tool).rglob("*.py") for tool in TOOLS))
COMMAND = re.compile(r"python -m (?:convert|train|eval|bench|experiments)\b.*|\bstablesam [a-z].*|\bmake .*")
WRITTEN = re.compile(
    r"--(?:output|sheet|json|cache)[ =]([^\s\"'`,;)\]]+)"
    r"|(?:convert\.build_dataset|stablesam build) [^\n]*--data-dir ([^\s\"'`,;)\]]+)"
)


def written(path):
    """What the commands that a text shows write to."""
    lines = path.read_text().replace("\\\n", " ")
    return [next(filter(None, found)) for line in COMMAND.findall(lines) for found in WRITTEN.findall(line)]


def is_left_open(path):
    """A placeholder, as DIR, ..., {output} or $SEED, or None, which turns the option off."""
    return re.fullmatch(r"[A-Z_]+|\.\.\.|\{.*|\$.*|None", path)


@pytest.mark.parametrize("path", [*DOCUMENTS, *SOURCES], ids=lambda path: path.relative_to(ROOT).as_posix())
def test_examples_write_where_git_does_not_look(path):
    assert [place for place in written(path) if not place.startswith(IGNORED) and not is_left_open(place)] == []


def test_the_examples_are_found():
    assert {"runs/results", "runs/mine", "runs/built", "runs/bench.json"} <= {
        place for path in DOCUMENTS for place in written(path)
    }


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_defaults_lie_where_git_does_not_look(path):
    constants = re.findall(r"Path\(\"([^\"/][^\"]*)\"\)", path.read_text())
    assert [place for place in constants if not f"{place}/".startswith(IGNORED)] == []


def test_the_defaults_are_found():
    constants = [place for path in SOURCES for place in re.findall(r"Path\(\"([^\"/][^\"]*)\"\)", path.read_text())]
    assert {"runs/samples.png", "runs/tables", "runs/quickstart", ".cache/features"} <= set(constants)
