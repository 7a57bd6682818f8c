"""What all tests share."""

import pytest
import torch

# Problems here are small: threads of BLAS would only get in each other's way.
torch.set_num_threads(1)


@pytest.fixture
def generator():
    """A seeded random number generator."""
    return torch.Generator().manual_seed(0)
