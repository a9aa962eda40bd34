"""What holds for every test, set before JAX starts: no silent promotion, two simulated devices, quick compilation."""

import os
import pathlib
import shutil
import tempfile

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["OMP_NUM_THREADS"] = "1"  # PyTorch's threads wait for each other by spinning; the cores have a worker each
os.environ["JAX_NUM_CPU_DEVICES"] = "2"
os.environ["JAX_NUMPY_DTYPE_PROMOTION"] = "strict"
os.environ["JAX_NUMPY_RANK_PROMOTION"] = "raise"
# Most of a test's time is compilation, and most of that LLVM's optimisation.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "true")
# Workers and the programs that tests start share what is compiled. The folder is this run's: none leans on what another
# run has left. With a largest size, JAX locks the folder for reading and writing.
IS_FIRST = "PYTEST_XDIST_WORKER" not in os.environ
if IS_FIRST:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="compiled-")
os.environ["JAX_COMPILATION_CACHE_MAX_SIZE"] = str(8 << 30)
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"

import gc
from collections.abc import Iterator

import jax
import pytest

STATM, LARGE = pathlib.Path("/proc/self/statm"), 3 << 30  # pages in memory are its second number; bytes
ROOT = pathlib.Path(__file__).resolve().parents[1]


def pytest_unconfigure() -> None:
    """Removes the compiled programs."""
    if IS_FIRST:
        shutil.rmtree(os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)


@pytest.fixture(scope="module", autouse=True)
def bounded_memory() -> Iterator[None]:
    """Drops the compiled programs of a worker that holds much: two of them would fill a machine of 16 GB."""
    yield
    if STATM.exists() and int(STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") > LARGE:
        jax.clear_caches()
        gc.collect()


@pytest.fixture(scope="session")
def shared() -> pathlib.Path:
    """The folder of real pictures that lies beside the repository on the developers' machines."""
    folder = ROOT.parent / "shared"
    if not (folder / "data").is_dir():
        pytest.skip("needs the pictures of ../shared/data, which are not part of the repository")
    return folder
