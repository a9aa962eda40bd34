"""What holds for every test, set before JAX starts: no silent promotion, two simulated devices, quick compilation."""

import os
import pathlib

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["OMP_NUM_THREADS"] = "1"  # PyTorch's threads wait for each other by spinning; the cores have a worker each
os.environ["JAX_NUM_CPU_DEVICES"] = "2"
os.environ["JAX_NUMPY_DTYPE_PROMOTION"] = "strict"
os.environ["JAX_NUMPY_RANK_PROMOTION"] = "raise"
# Most of a test's time is compilation, and most of that LLVM's optimisation.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "true")
os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"  # no test leans on what another run has left

import zlib

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]


def pytest_addoption(parser: pytest.Parser) -> None:
    """--share I/N: only one of N shares of the tests, the same on every machine."""
    parser.addoption("--share", metavar="I/N", help="run the I-th of N shares of the tests, from 0")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Drops the other shares. Tests of a file stay together, since they share fixtures."""
    if config.option.share is None:
        return
    index, count = map(int, config.option.share.split("/"))
    mine = [item for item in items if zlib.crc32(item.path.name.encode()) % count == index]
    config.hook.pytest_deselected(items=[item for item in items if item not in mine])
    items[:] = mine


@pytest.fixture(scope="session")
def shared() -> pathlib.Path:
    """The folder of real pictures that lies beside the repository on the developers' machines."""
    folder = ROOT.parent / "shared"
    if not (folder / "data").is_dir():
        pytest.skip("needs the pictures of ../shared/data, which are not part of the repository")
    return folder
