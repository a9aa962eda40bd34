"""Both sides of a comparison are quick."""

import pytest
import torch

from tests.reference import small


@pytest.fixture(scope="module", autouse=True)
def quick():
    """One thread of PyTorch, which would spin, and programs without optimisation: both are faster at these sizes."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with small.quick_compilation():
        yield
    torch.set_num_threads(threads)
