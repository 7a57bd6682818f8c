"""Inputs on which the methods of the zoo have to work harder than on small random ones."""

import pytest
import torch

from convexlayers import zoo


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("scale", [1.0, 10.0, 100.0])
@pytest.mark.parametrize("n", [3, 6, 12])
def test_every_matrix_has_its_doubly_stochastic_one(n: int, scale: float, dtype: torch.dtype):
    """Far from the polytope, the pattern falls into parts: Newton's system is inconsistent, or its steps go round."""
    V = scale * torch.randn(1000, n, n, dtype=dtype, generator=torch.Generator().manual_seed(0))
    X = zoo.project_birkhoff(V)
    # What the method accepts.
    rounding = 1600 * n * float(V.abs().amax().clamp(min=1)) * torch.finfo(dtype).eps
    assert X.isfinite().all()
    assert (X.sum(-1) - 1).abs().max() < rounding
    assert (X.sum(-2) - 1).abs().max() < rounding


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_elements_of_a_batch_descend_alone(seed: int):
    """Those that take many steps are the same without those that take few."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(200, 64, dtype=torch.float64, generator=generator).tanh()
    together = zoo.robust_pool(x, 0.3, kind="welsch")
    alone = torch.stack([zoo.robust_pool(row, 0.3, kind="welsch") for row in x])
    torch.testing.assert_close(together, alone, rtol=1e-12, atol=1e-12)
