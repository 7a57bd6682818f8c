"""Small problems of the kinds that users bring, batches of values for them, and ways to break one element."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache

import cvxpy as cp
import numpy as np
import torch

import convexlayers as cl
from convexlayers import Status
from trust.measured import record

# Two solves of the same element may differ by rounding in batched kernels, and by nothing else.
SAME = 1e-12


@dataclass(frozen=True)
class Family:
    """A parametrized problem.

    Attributes:
        make: () -> problem, parameters, variables.
        sample: B -> one float64 tensor (B, *shape) per parameter, every element solvable.
        breaks: status -> function of (values, index) that changes one element, in place, to one with that status.
        options: of ConvexLayer.
    """

    make: Callable
    sample: Callable
    breaks: dict = field(default_factory=dict)
    options: dict = field(default_factory=dict)


def randn(*shape, seed):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def setter(position, value):
    """A break that writes a value into all entries of one parameter."""

    def write(values, index):
        values[position][index] = value

    return write


def make_dense_qp(n=4, m=6):
    x, q, G, b = cp.Variable(n), cp.Parameter(n), cp.Parameter((m, n)), cp.Parameter(m)
    L = np.random.default_rng(0).standard_normal((n, n))
    objective = 0.5 * cp.quad_form(x, L @ L.T / n + np.eye(n)) + q @ x
    return cp.Problem(cp.Minimize(objective), [G @ x <= b]), [q, G, b], [x]


def contradict(values, index):
    """Two opposite half-spaces without a common point."""
    _, G, b = values
    G[index, 1] = -G[index, 0]
    b[index, :2] = -1.0


def make_mpc(T=4, nx=3, nu=2):
    rng = np.random.default_rng(0)
    A, B = np.eye(nx) + 0.1 * rng.standard_normal((nx, nx)), 0.5 * rng.standard_normal((nx, nu))
    X, U, x0, w = cp.Variable((nx, T + 1)), cp.Variable((nu, T)), cp.Parameter(nx), cp.Parameter(nx, nonneg=True)
    weights = cp.reshape(w, (nx, 1), order="F") @ np.ones((1, T + 1))
    objective = cp.sum_squares(cp.multiply(weights, X)) + 0.1 * cp.sum_squares(U)
    dynamics = [X[:, 0] == x0, X[:, 1:] == A @ X[:, :-1] + B @ U]
    return cp.Problem(cp.Minimize(objective), [*dynamics, cp.abs(U) <= 0.5, cp.abs(X[:, T]) <= 20]), [x0, w], [X, U]


def make_socp(n=4, m=6):
    x, A, b, radius = cp.Variable(n), cp.Parameter((m, n)), cp.Parameter(m), cp.Parameter()
    objective = cp.norm(A @ x - b, 2) + 0.1 * cp.norm(x, 2)
    return cp.Problem(cp.Minimize(objective), [cp.norm(x, 2) <= radius]), [A, b, radius], [x]


def make_unbounded_norm(n=3):
    x, c = cp.Variable(n), cp.Parameter(n)
    return cp.Problem(cp.Minimize(cp.norm(x, 2) + c @ x), [cp.sum(x) == 1]), [c], [x]


def make_logistic_regression(n=3, m=6):
    w, X, ridge = cp.Variable(n), cp.Parameter((m, n)), cp.Parameter(nonneg=True)
    objective = cp.sum(cp.logistic(X @ w)) / m + ridge * cp.sum_squares(w)
    return cp.Problem(cp.Minimize(objective)), [X, ridge], [w]


def make_nearest_correlation(n=3):
    X, C, d = cp.Variable((n, n), PSD=True), cp.Parameter((n, n), symmetric=True), cp.Parameter(n)
    return cp.Problem(cp.Minimize(cp.sum_squares(X - C)), [cp.diag(X) == d]), [C, d], [X]


def make_trace(n=3):
    X, C = cp.Variable((n, n), symmetric=True), cp.Parameter((n, n), symmetric=True)
    return cp.Problem(cp.Minimize(cp.trace(C @ X)), [X >> 0, X[0, 0] == 1]), [C], [X]


def make_transport(n=3):
    T, C, a, b = cp.Variable((n, n), nonneg=True), cp.Parameter((n, n)), cp.Parameter(n), cp.Parameter(n)
    objective = cp.sum(cp.multiply(C, T)) + 0.05 * cp.sum_squares(T)
    return cp.Problem(cp.Minimize(objective), [cp.sum(T, 1) == a, cp.sum(T, 0) == b]), [C, a, b], [T]


def make_simplex(n=5):
    x, z, total = cp.Variable(n), cp.Parameter(n), cp.Parameter()
    return cp.Problem(cp.Minimize(cp.sum_squares(x - z)), [x >= 0, cp.sum(x) == total]), [z, total], [x]


def make_lp(n=4, m=5):
    x, q, A, b = cp.Variable(n), cp.Parameter(n), cp.Parameter((m, n)), cp.Parameter(m)
    return cp.Problem(cp.Minimize(q @ x), [A @ x <= b, x >= 0]), [q, A, b], [x]


def remove_walls(values, index):
    q, A, _ = values
    q[index], A[index] = -1.0, -1.0


def make_exponential(n=2):
    x, c = cp.Variable(n), cp.Parameter(n)
    return cp.Problem(cp.Minimize(cp.sum(cp.exp(x)) + c @ x)), [c], [x]


def make_power():
    x, a = cp.Variable(3), cp.Parameter()
    return cp.Problem(cp.Maximize(x[2]), [cp.PowCone3D(x[0], x[1], x[2], 0.3), x[0] + x[1] == a]), [a], [x]


def make_geometric():
    x, y = cp.Variable(pos=True), cp.Variable(pos=True)
    c, u = cp.Parameter(pos=True, name="c"), cp.Parameter(pos=True, name="u")
    return cp.Problem(cp.Minimize(x * y + c / x + 1 / y), [x <= u, y <= u, x * y >= 0.1]), [c, u], [x, y]


def symmetric(B, n, seed):
    M = randn(B, n, n, seed=seed)
    return (M + M.mT) / 2


def shares(B, n, seed):
    """Positive sixteenths that sum to exactly one, in every dtype."""
    counts = 1 + ((16 - n) * torch.softmax(randn(B, n, seed=seed), -1)).floor()
    counts[:, 0] += 16 - counts.sum(-1)
    return counts / 16


INFEASIBLE, UNBOUNDED = Status.PRIMAL_INFEASIBLE, Status.DUAL_INFEASIBLE

FAMILIES = {
    "dense_qp": Family(
        make_dense_qp,
        lambda B: [randn(B, 4, seed=1), randn(B, 6, 4, seed=2), randn(B, 6, seed=3).abs() + 0.1],
        {INFEASIBLE: contradict},
    ),
    "mpc": Family(
        make_mpc,
        lambda B: [randn(B, 3, seed=1), randn(B, 3, seed=2).abs() + 0.5],
        {INFEASIBLE: setter(0, 1e3)},
    ),
    # This one and "wide_transport" are large enough for sparse factorizations; the latter has dependent equalities.
    "long_mpc": Family(
        lambda: make_mpc(T=10),
        lambda B: [randn(B, 3, seed=1), randn(B, 3, seed=2).abs() + 0.5],
        {INFEASIBLE: setter(0, 1e3)},
    ),
    "socp": Family(
        make_socp,
        lambda B: [randn(B, 6, 4, seed=1), randn(B, 6, seed=2), randn(B, seed=3).abs() + 0.3],
        {INFEASIBLE: setter(2, -1.0)},
    ),
    "norm": Family(
        make_unbounded_norm,
        lambda B: [0.5 * torch.nn.functional.normalize(randn(B, 3, seed=1), dim=-1)],
        {UNBOUNDED: setter(0, torch.tensor([3.0, -3.0, 0.0], dtype=torch.float64))},
    ),
    "logistic_regression": Family(
        make_logistic_regression, lambda B: [randn(B, 6, 3, seed=1), randn(B, seed=2).abs() + 0.1]
    ),
    "nearest_correlation": Family(
        make_nearest_correlation,
        lambda B: [symmetric(B, 3, seed=1), randn(B, 3, seed=2).abs() + 0.5],
        {INFEASIBLE: setter(1, -1.0)},
    ),
    "trace": Family(
        make_trace,
        lambda B: [symmetric(B, 3, seed=1) + 4 * torch.eye(3, dtype=torch.float64)],
        {UNBOUNDED: setter(0, -torch.eye(3, dtype=torch.float64))},
    ),
    "transport": Family(
        make_transport,
        lambda B: [randn(B, 3, 3, seed=1).abs(), shares(B, 3, seed=2), shares(B, 3, seed=3)],
        {INFEASIBLE: setter(1, 1.0)},
    ),
    "wide_transport": Family(
        lambda: make_transport(10),
        lambda B: [randn(B, 10, 10, seed=1).abs(), shares(B, 10, seed=2), shares(B, 10, seed=3)],
        {INFEASIBLE: setter(1, 1.0)},
    ),
    "simplex": Family(
        make_simplex,
        lambda B: [randn(B, 5, seed=1), randn(B, seed=2).abs() + 0.5],
        {INFEASIBLE: setter(1, -1.0)},
    ),
    "lp": Family(
        make_lp,
        lambda B: [randn(B, 4, seed=1), randn(B, 5, 4, seed=2).abs() + 0.1, randn(B, 5, seed=3).abs() + 0.5],
        {INFEASIBLE: setter(2, -1.0), UNBOUNDED: remove_walls},
    ),
    "exponential": Family(make_exponential, lambda B: [-randn(B, 2, seed=1).abs() - 0.1], {UNBOUNDED: setter(0, 1.0)}),
    "power": Family(make_power, lambda B: [randn(B, seed=1).abs() + 0.5], {INFEASIBLE: setter(0, -1.0)}),
    "geometric": Family(
        make_geometric,
        lambda B: [randn(B, seed=1).abs() + 0.5, randn(B, seed=2).abs() + 0.8],
        {INFEASIBLE: setter(1, 0.1)},
        {"gp": True},
    ),
}


@cache
def layer_of(name, solver, on_failure="nan"):
    """The layer of a family."""
    family = FAMILIES[name]
    problem, parameters, variables = family.make()
    return cl.ConvexLayer(problem, parameters, variables, solver=solver, on_failure=on_failure, **family.options)


def leaves(values):
    """Fresh copies that require gradients."""
    return [value.detach().clone().requires_grad_() for value in values]


def weights_like(values, seed=7):
    """A fixed cotangent for each value."""
    return [randn(*value.shape, seed=seed + i).to(value) for i, value in enumerate(values)]


def solve_and_differentiate(layer, values, weights=None):
    """Solution, and gradients of the weighted sum of what the layer returns."""
    inputs = leaves(values)
    solution = layer.solve(*inputs)
    weights = weights_like(solution.values) if weights is None else weights
    return solution, torch.autograd.grad(solution.values, inputs, weights)


def assert_same(actual, expected, tolerance=SAME):
    """Equal up to rounding; NaN equals NaN. What is measured goes into the table."""
    pairs = zip(actual, expected, strict=True) if isinstance(actual, (list, tuple)) else [(actual, expected)]
    for pair in pairs:
        found, wanted = (torch.as_tensor(value).detach().double() for value in pair)
        error = ((found - wanted).abs() / (1 + wanted.abs())).nan_to_num(0.0)
        record(error.amax() if error.numel() else 0.0, "difference")
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance, equal_nan=True)
