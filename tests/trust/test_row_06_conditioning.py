"""Gradients are right at large condition numbers: x = H^-1 p against its closed form."""

import cvxpy as cp
import pytest
import torch

import convexlayers as cl
from trust.families import leaves, randn
from trust.measured import record

n = 30


def relative(got, expected):
    return record((got - expected).norm() / expected.norm(), "relative error")


def eye(size):
    return torch.eye(size, dtype=torch.float64)


def factors():
    """U, the singular values 1e-2 .. 1e2, spread evenly in logarithm, and V': R'R has condition 1e8."""
    U, V = torch.linalg.qr(randn(n, n, seed=1))[0], torch.linalg.qr(randn(n, n, seed=2))[0]
    return U, torch.logspace(-2, 2, n, dtype=torch.float64), V.T


def by_qp(solver, ridge):
    def solve(R, p):
        return cl.solve_qp(R.mT @ R + ridge * eye(n), -p, solver=solver).x

    return solve


def by_layer(solver, ridge):
    """R stays as it is written: |Rx|^2 becomes |y|^2 with y = Rx, and R'R is formed nowhere."""
    x, R, p = cp.Variable(n), cp.Parameter((n, n), name="R"), cp.Parameter(n, name="p")
    objective = 0.5 * cp.sum_squares(R @ x) + 0.5 * ridge * cp.sum_squares(x) - p @ x
    layer = cl.ConvexLayer(cp.Problem(cp.Minimize(objective)), [R, p], [x], solver=solver)
    return lambda R, p: layer(R, p)[0]


WAYS = {"qp": by_qp, "layer": by_layer}


def solve_and_differentiate(solve, R, p, w):
    R, p = leaves([R, p])
    x = solve(R, p)
    return (x.detach(), *torch.autograd.grad((w * x).sum(), (R, p)))


def closed_form(factors, ridge, p, w):
    """x and u = H^-1 w by the singular values, without forming R'R; gradients u in p and -R (ux' + xu') in R."""
    U, sigma, Vt = factors
    inverse = 1 / (sigma**2 + ridge)
    x, u = (Vt.T @ (inverse * (Vt @ value)) for value in (p, w))
    R = (U * sigma) @ Vt
    return x, -R @ (torch.outer(u, x) + torch.outer(x, u)), u


@pytest.mark.parametrize("way", WAYS)
def test_regularized_least_squares(solver, way):
    """1/2 |Rx|^2 + 1/2 |x|^2 - p'x."""
    parts, p, w = factors(), randn(n, seed=3), randn(n, seed=4)
    R = (parts[0] * parts[1]) @ parts[2]
    found = solve_and_differentiate(WAYS[way](solver, 1.0), R, p, w)
    for got, expected in zip(found, closed_form(parts, 1.0, p, w), strict=True):
        assert relative(got, expected) < 1e-8


@pytest.mark.parametrize("way", WAYS)
def test_a_batch_of_them(solver, way):
    """One R for all; its gradient is the sum."""
    parts, p, w = factors(), randn(5, n, seed=3), randn(5, n, seed=4)
    R = (parts[0] * parts[1]) @ parts[2]
    x, grad_R, grad_p = solve_and_differentiate(WAYS[way](solver, 1.0), R, p, w)
    forms = [closed_form(parts, 1.0, *pair) for pair in zip(p, w, strict=True)]
    expected = [torch.stack([form[k] for form in forms]) for k in range(3)]
    assert relative(x, expected[0]) < 1e-8
    assert relative(grad_R, expected[1].sum(0)) < 1e-8
    assert relative(grad_p, expected[2]) < 1e-8


@pytest.mark.parametrize("way", WAYS)
def test_condition_1e8_without_regularization(solver, way):
    """H = R'R. Rounding of R in the data, 1e-16 of its norm 1e2, moves its smallest singular value 1e-2 by 1e-12 of
    itself and x, which is that value's inverse squared, by 2e-12: 1e-8 is within reach where R'R is not formed. Formed,
    n roundings of 1e-16 times |R'R| = 1e4 against the smallest eigenvalue 1e-4 leave 3e-7 at worst, so 1e-7 typically.
    """
    parts, p, w = factors(), randn(n, seed=3), randn(n, seed=4)
    R = (parts[0] * parts[1]) @ parts[2]
    found = solve_and_differentiate(WAYS[way](solver, 0.0), R, p, w)
    for got, expected in zip(found, closed_form(parts, 0.0, p, w), strict=True):
        assert relative(got, expected) < (1e-7 if way == "qp" else 1e-8)


def test_least_squares_with_equalities(solver):
    """min 1/2 |Rx - t|^2 st Ax = b against the KKT system, rows scaled from 1 to 100."""
    R, t = torch.logspace(0, 2, 30, dtype=torch.float64)[:, None] * randn(30, 20, seed=1), randn(30, seed=2)
    A, b, w = randn(5, 20, seed=3), randn(5, seed=4), randn(20, seed=5)

    def form(R, t, A, b):
        zero = torch.zeros(5, 5, dtype=torch.float64)
        K = torch.cat([torch.cat([R.T @ R, A.T], 1), torch.cat([A, zero], 1)])
        return torch.linalg.solve(K, torch.cat([R.T @ t, b]))[:20]

    def solve(R, t, A, b):
        return cl.solve_qp(R.T @ R, -R.T @ t, A=A, b=b, solver=solver).x

    values = leaves([R, t, A, b])
    expected = torch.autograd.grad((w * form(*values)).sum(), values)
    for got, want in zip(torch.autograd.grad((w * solve(*values)).sum(), values), expected, strict=True):
        assert relative(got, want) < 1e-8


@pytest.mark.parametrize("smallest", [1e-4, 1e-8])
def test_active_set_of_an_ill_conditioned_qp(solver, smallest):
    """Separable, with curvatures 1 .. `smallest`: x_i = clip(p_i / h_i), so that the closed form has no error."""
    h = torch.logspace(0, float(torch.tensor(smallest).log10()), n, dtype=torch.float64)
    target = 2 * randn(n, seed=6)
    p = (h * target).requires_grad_()
    x = cl.solve_qp(torch.diag(h), -p, lb=-1.0, ub=1.0, solver=solver).x
    weight = randn(n, seed=7)
    (grad,) = torch.autograd.grad((weight * x).sum(), p)
    inside = target.abs() < 1
    assert inside.any()
    assert not inside.all()
    assert relative(x.detach(), target.clamp(-1, 1)) < 1e-8
    assert relative(grad, torch.where(inside, weight / h, 0.0)) < 1e-8
