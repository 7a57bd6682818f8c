"""Unit vectors in place of a semidefinite program: against the program itself."""

import cvxpy as cp
import pytest
import torch

import convexlayers as cl
from convexlayers.errors import ArgumentError
from convexlayers.nodes.low_rank_sdp import LowRankMaxSAT, unit_vectors_node


def normal(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_same_as_the_semidefinite_program():
    """Values, products with the vector of "true", and gradients of both in the clauses; rotations are flagged."""
    n, k = 4, 5
    X, C = cp.Variable((n + 1, n + 1), symmetric=True), cp.Parameter((n + 1, n + 1), symmetric=True)
    layer = cl.ConvexLayer(cp.Problem(cp.Minimize(cp.sum(cp.multiply(C, X))), [X >> 0, cp.diag(X) == 1]), [C], [X])
    node = unit_vectors_node(n, k)
    truth = torch.eye(1, k, dtype=torch.float64)
    S = normal(0, 3, 6, n + 1).requires_grad_()
    full = S.mT @ S
    exact = layer.solve(full)
    found = node.solve(full[:, 1:, 1:], full[:, 1:, :1] @ truth)
    diagonal = torch.diagonal(full, dim1=1, dim2=2)
    torch.testing.assert_close(2 * found.objective + diagonal[:, 0], exact.objective, rtol=1e-7, atol=1e-7)
    products = found.y[..., 0]
    torch.testing.assert_close(products, exact.values[0][:, 0, 1:], rtol=0, atol=1e-5)
    assert bool(found.rank_deficient.any())
    assert not bool(found.negative_curvature.any())
    v = normal(1, 3, n)
    (mine,) = torch.autograd.grad((v * products).sum(), S, retain_graph=True)
    (theirs,) = torch.autograd.grad((v * exact.values[0][:, 0, 1:]).sum(), S)
    torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-4)
    assert float(found.derivative_report.residual.max()) < 1e-6


def test_gradient_of_the_layer():
    layer = LowRankMaxSAT(3, 1, clauses=4, auxiliary=2).double()
    z = torch.tensor([[0.1, 0.9, 0.4], [0.7, 0.2, 0.8]], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(layer, (z,), atol=1e-5)
    (found,) = torch.autograd.grad(layer(z).sum(), layer.S)
    direction = normal(3, *layer.S.shape)
    with torch.no_grad():
        sides = []
        for sign in (1, -1):
            layer.S += sign * 1e-5 * direction
            sides.append(layer(z).sum())
            layer.S -= sign * 1e-5 * direction
    torch.testing.assert_close((found * direction).sum(), (sides[0] - sides[1]) / 2e-5, rtol=1e-5, atol=1e-6)


def test_a_clause_is_learned():
    """Two bits and their exclusive or, from its four rows."""
    layer = LowRankMaxSAT(2, 1, clauses=8, auxiliary=4, seed=1, block=4)
    z = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
    target = torch.tensor([[0.0], [1.0], [1.0], [0.0]])
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.1)
    for _ in range(20):
        optimizer.zero_grad()
        loss = (layer(z) - target).square().mean()
        loss.backward()
        optimizer.step()
    assert torch.equal((layer(z) > 0.5).float(), target)


def test_wrong_arguments():
    with pytest.raises(ArgumentError, match="outputs"):
        LowRankMaxSAT(2, 0, clauses=1)
    with pytest.raises(ArgumentError, match="shape"):
        LowRankMaxSAT(2, 1, clauses=1)(torch.zeros(3))
