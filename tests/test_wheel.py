"""The wheel holds the library, the tools where only `stablesam` finds them, and what both read; it works anywhere."""

import os
import pathlib
import subprocess
import sys
import tarfile
import zipfile
from email.parser import HeaderParser

import pytest

from stablesam_jax.commands import COMMANDS
from stablesam_jax.version import __version__
from tests.reference import small

pytestmark = pytest.mark.slow  # builds both archives and starts programs

ROOT = pathlib.Path(__file__).resolve().parents[1]
TOOLS = ("bench", "convert", "eval", "experiments", "predict", "serve", "train")
MOST_BYTES = 20 << 20  # 14 MB of them are sam_nano


@pytest.fixture(scope="module")
def archives(tmp_path_factory):
    """The built wheel and source archive."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (wheel,), (source,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    return wheel, source


@pytest.fixture(scope="module")
def unpacked(archives, tmp_path_factory):
    """The wheel as pip would lay it down."""
    folder = tmp_path_factory.mktemp("site")
    with zipfile.ZipFile(archives[0]) as wheel:
        wheel.extractall(folder)
    return folder


def files(*folders):
    """Every file below folders of the repository that Python does not make by itself."""
    paths = [path for folder in folders for path in (ROOT / folder).rglob("*") if path.is_file()]
    return {path.relative_to(ROOT).as_posix() for path in paths if "__pycache__" not in path.parts}


def test_it_holds_every_file_of_the_library_and_of_the_tools(unpacked):
    found = {path.relative_to(unpacked).as_posix() for path in unpacked.rglob("*") if path.is_file()}
    metadata = {path for path in found if path.startswith(f"stablesam_jax-{__version__}.dist-info/")}
    tools = {f"stablesam_jax/_tools/{path}" for path in files(*TOOLS)}
    assert found - metadata == files("stablesam_jax", "stablesam_torch") | tools


def test_what_it_says_of_itself(unpacked):
    folder = unpacked / f"stablesam_jax-{__version__}.dist-info"
    said = HeaderParser().parsestr((folder / "METADATA").read_text())
    assert said["Version"] == __version__
    extras = {extra for command in COMMANDS.values() for extra in command.extra.split(",")}
    assert set(said.get_all("Provides-Extra")) == {"dev", "docs", "hub", "notebooks", *extras}
    assert "jax>=0.10.2" in said.get_all("Requires-Dist")
    assert (folder / "entry_points.txt").read_text() == "[console_scripts]\nstablesam = stablesam_jax.__main__:main\n"
    assert f"\nversion: {__version__}\n" in (ROOT / "CITATION.cff").read_text()


def test_the_source_archive_has_the_tests_and_no_megabytes_of_values(archives):
    wheel, source = archives
    assert max(wheel.stat().st_size, source.stat().st_size) < MOST_BYTES
    with tarfile.open(source) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"pyproject.toml", "constraints.txt", "Makefile", "tests/conftest.py", "results/plugin.md"} <= names
    assert files("stablesam_jax", "stablesam_torch", *TOOLS) <= names


def python(unpacked, work, *arguments):
    """Runs Python with the wheel in another folder, where modules lie that bear the names of the tools."""
    for tool in TOOLS:
        (work / f"{tool}.py").write_text("raise SystemExit('a module of the user, which no tool of ours is')\n")
    environment = os.environ | {"PYTHONPATH": str(unpacked), "JAX_ENABLE_COMPILATION_CACHE": "false"}
    return subprocess.run([sys.executable, *arguments], cwd=work, env=environment, capture_output=True, text=True)


def stablesam(unpacked, work, *arguments):
    """Runs the wheel's program."""
    return python(unpacked, work, "-m", "stablesam_jax", *arguments)


ALL_HELP = """
import contextlib, sys
from stablesam_jax.__main__ import COMMANDS, main
for name in COMMANDS:
    sys.argv = ["stablesam", name, "--help"]
    with contextlib.suppress(SystemExit):
        main()
import train
print(train.__file__)
"""


def test_every_command_shows_its_options_in_any_folder(unpacked, tmp_path):
    done = python(unpacked, tmp_path, "-c", ALL_HELP)
    assert done.returncode == 0, done.stderr
    usages = [line.split()[2] for line in done.stdout.splitlines() if line.startswith("usage: stablesam ")]
    assert usages == list(COMMANDS)
    assert done.stdout.endswith(f"\n{unpacked / 'stablesam_jax' / '_tools' / 'train' / '__init__.py'}\n")


def test_it_trains_with_workers_and_evaluates_in_any_folder(unpacked, tmp_path):
    small.save_pairs(tmp_path / "pictures", 4, blocks=1)
    small.save_pairs(tmp_path / "others", 2, blocks=2)
    options = ["--data-dir", "pictures", "--image-size", "64", "--output", "runs/mine"]
    steps = ["--steps", "2", "--batch-size", "2", "--workers", "1", "--held-out", "1", "--eval-prompts", "2"]
    trained = stablesam(unpacked, tmp_path, "train", "own-pictures", *options, *steps)
    assert trained.returncode == 0, trained.stderr
    assert "stablesam eval hq --system sam_nano sam_nano+runs/mine/plugin.safetensors" in trained.stdout

    system = ["--system", "sam_nano+runs/mine/plugin.safetensors", "--image-size", "64", "--count", "2"]
    evaluated = stablesam(unpacked, tmp_path, "eval", "hq", *system, "--data-dir", "others", "--output", "runs/scores")
    assert evaluated.returncode == 0, evaluated.stderr
    assert '"stablesam eval hq"' in (tmp_path / "runs" / "scores" / "results.json").read_text()
    refused = stablesam(unpacked, tmp_path, "eval", "hq", *system, "--data-dir", "pictures", "--output", "runs/more")
    assert refused.returncode == 2
    assert "of 4 test pictures are among the training pictures" in refused.stderr
