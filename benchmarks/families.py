"""The problems that the benchmarks run: name -> (make, batch).

make() -> (problem, parameters, variables, sample); sample(B) -> one float64 tensor with a leading batch dimension per
parameter, seeded.
"""

from collections.abc import Callable
from typing import Any

import cvxpy as cp
import numpy as np
import torch

Family = tuple[cp.Problem, list[Any], list[Any], Callable[[int], list[torch.Tensor]]]


def randn(*shape: int, seed: int) -> torch.Tensor:
    """Seeded standard normal numbers."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def dense_qp(n: int, m: int) -> Family:
    """min 1/2 x'Px + q'x, Gx <= b; P constant, q, G, b parameters."""
    x, q, b, G = cp.Variable(n), cp.Parameter(n), cp.Parameter(m), cp.Parameter((m, n))
    L = np.random.default_rng(0).standard_normal((n, n))
    problem = cp.Problem(cp.Minimize(0.5 * cp.quad_form(x, L @ L.T / n + np.eye(n)) + q @ x), [G @ x <= b])
    return (
        problem,
        [q, G, b],
        [x],
        lambda B: [randn(B, n, seed=1), randn(B, m, n, seed=2), randn(B, m, seed=3).abs() + 0.1],
    )


def mpc(T: int = 20, nx: int = 6, nu: int = 3) -> Family:
    """Linear dynamics, box on the input; initial state and diagonal stage weights are parameters."""
    rng = np.random.default_rng(0)
    A = np.eye(nx) + 0.1 * rng.standard_normal((nx, nx))
    Bm = 0.5 * rng.standard_normal((nx, nu))
    X, U, x0, w = cp.Variable((nx, T + 1)), cp.Variable((nu, T)), cp.Parameter(nx), cp.Parameter(nx, nonneg=True)
    weights = cp.reshape(w, (nx, 1), order="F") @ np.ones((1, T + 1))
    constraints = [X[:, 0] == x0, X[:, 1:] == A @ X[:, :-1] + Bm @ U, cp.abs(U) <= 0.5]
    objective = cp.Minimize(cp.sum_squares(cp.multiply(weights, X)) + 0.1 * cp.sum_squares(U))
    return (
        cp.Problem(objective, constraints),
        [x0, w],
        [X, U],
        lambda B: [
            randn(B, nx, seed=1),
            randn(B, nx, seed=2).abs() + 0.5,
        ],
    )


def socp(n: int = 20, m: int = 40) -> Family:
    """Regularized norm minimization in a ball."""
    x, A, b = cp.Variable(n), cp.Parameter((m, n)), cp.Parameter(m)
    problem = cp.Problem(cp.Minimize(cp.norm(A @ x - b, 2) + 0.1 * cp.norm(x, 2)), [cp.norm(x, 2) <= 1.0])
    return problem, [A, b], [x], lambda B: [randn(B, m, n, seed=1), randn(B, m, seed=2)]


def logistic_regression(n: int = 10, m: int = 30) -> Family:
    """Exponential cones: features and ridge weight are parameters."""
    w, X, ridge = cp.Variable(n), cp.Parameter((m, n)), cp.Parameter(nonneg=True)
    problem = cp.Problem(cp.Minimize(cp.sum(cp.logistic(X @ w)) / m + ridge * cp.sum_squares(w)))
    return problem, [X, ridge], [w], lambda B: [randn(B, m, n, seed=1), randn(B, seed=2).abs() + 0.1]


def nearest_correlation(n: int = 8) -> Family:
    """PSD cone: nearest correlation matrix."""
    X, C = cp.Variable((n, n), PSD=True), cp.Parameter((n, n))

    def sample(B: int) -> list[torch.Tensor]:
        M = randn(B, n, n, seed=1)
        return [(M + M.transpose(-1, -2)) / 2]

    return cp.Problem(cp.Minimize(cp.sum_squares(X - C)), [cp.diag(X) == 1]), [C], [X], sample


def transport(n: int = 15) -> Family:
    """Quadratically regularized optimal transport with uniform marginals."""
    T, C, a = cp.Variable((n, n), nonneg=True), cp.Parameter((n, n)), np.ones(n) / n
    objective = cp.Minimize(cp.sum(cp.multiply(C, T)) + 0.05 * cp.sum_squares(T))
    problem = cp.Problem(objective, [cp.sum(T, 1) == a, cp.sum(T, 0) == a])
    return problem, [C], [T], lambda B: [randn(B, n, n, seed=1).abs()]


def simplex(n: int) -> Family:
    """Projection onto the simplex."""
    x, z = cp.Variable(n), cp.Parameter(n)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(x - z)), [x >= 0, cp.sum(x) == 1])
    return problem, [z], [x], lambda B: [randn(B, n, seed=1)]


FAMILIES: dict[str, tuple[Callable[[], Family], int]] = {
    "qp10": (lambda: dense_qp(10, 20), 128),
    "qp50": (lambda: dense_qp(50, 50), 64),
    "qp100": (lambda: dense_qp(100, 100), 64),
    "mpc": (mpc, 64),
    "socp": (socp, 128),
    "logreg": (logistic_regression, 64),
    "sdp8": (nearest_correlation, 32),
    "ot15": (transport, 64),
    "simplex100": (lambda: simplex(100), 128),
    "simplex1000": (lambda: simplex(1000), 32),
}
