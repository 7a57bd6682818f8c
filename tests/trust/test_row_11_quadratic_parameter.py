"""A parameter matrix in the quadratic: symmetric gradients, and an error for values that are no such matrix."""

import cvxpy as cp
import numpy as np
import pytest
import torch

import convexlayers as cl
from trust.families import assert_same, randn, weights_like

n, B = 3, 4


def make_layer(solver, constraint=True, **options):
    """min 1/2 x'Px + q'x, with or without sum(x) = 1."""
    x, P, q = cp.Variable(n), cp.Parameter((n, n), PSD=True, name="P"), cp.Parameter(n, name="q")
    problem = cp.Problem(cp.Minimize(0.5 * cp.quad_form(x, P) + q @ x), [cp.sum(x) == 1] if constraint else [])
    return cl.ConvexLayer(problem, [P, q], [x], solver=solver, **options)


def positive(*batch, seed):
    R = randn(*batch, n, n, seed=seed)
    return R.mT @ R + 0.5 * torch.eye(n, dtype=torch.float64)


def closed_form(P, q, constraint):
    P = P.expand(*q.shape, n)
    x = -torch.linalg.solve(P, q)
    if not constraint:
        return x
    y = torch.linalg.solve(P, torch.ones_like(q))
    return x + y * ((1 - x.sum(-1)) / y.sum(-1))[..., None]


@pytest.mark.parametrize("constraint", [False, True])
def test_solution_and_gradient_have_a_closed_form(solver, constraint):
    P, q = positive(B, seed=1).requires_grad_(), randn(B, n, seed=2).requires_grad_()
    (x,) = make_layer(solver, constraint)(P, q)
    expected = closed_form(P, q, constraint)
    assert_same(x, expected, 1e-8)
    weights = weights_like([x])
    grad_P, grad_q = torch.autograd.grad(x, [P, q], weights)
    right_P, right_q = torch.autograd.grad(expected, [P, q], weights)
    assert_same(grad_q, right_q, 1e-7)
    # Along symmetric directions, which are all that there are, only the symmetric part of a gradient counts.
    assert_same(grad_P, (right_P + right_P.mT) / 2, 1e-7)
    assert_same(grad_P, grad_P.mT, 0.0)


def test_objective_gradient(solver):
    P, q = positive(B, seed=1).requires_grad_(), randn(B, n, seed=2).requires_grad_()
    solution = make_layer(solver).solve(P, q)
    (x,) = solution.values
    (grad_P,) = torch.autograd.grad(solution.objective.sum(), P)
    assert_same(grad_P, 0.5 * (x.unsqueeze(-1) * x.unsqueeze(-2)).detach(), 1e-7)


def test_through_a_factor(solver):
    """P = R'R made in torch: the gradient of R is right, so all of P's was."""
    R, q = randn(B, n, n, seed=3).requires_grad_(), randn(B, n, seed=2)
    eye = 0.1 * torch.eye(n, dtype=torch.float64)
    (x,) = make_layer(solver)(R.mT @ R + eye, q)
    expected = closed_form(R.mT @ R + eye, q, True)
    weights = weights_like([x])
    (grad,), (right,) = (torch.autograd.grad(value, R, weights) for value in (x, expected))
    assert_same(grad, right, 1e-6)


def test_shared_by_the_batch(solver):
    P, q = positive(seed=1).requires_grad_(), randn(B, n, seed=2)
    (x,) = make_layer(solver)(P, q)
    weights = weights_like([x])
    (grad,) = torch.autograd.grad(x, P, weights)
    (right,) = torch.autograd.grad(closed_form(P, q, True), P, weights)
    assert grad.shape == (n, n)
    assert_same(grad, (right + right.T) / 2, 1e-7)


def test_singular_but_semidefinite_is_accepted(solver):
    R = randn(B, 1, n, seed=4)
    solution = make_layer(solver, on_failure="nan").solve(R.mT @ R, torch.zeros(B, n))
    assert_same(solution.objective, torch.zeros(B, dtype=torch.float64), 1e-6)


@pytest.mark.parametrize("batch", [(), (B,), (2, 2)])
@pytest.mark.parametrize(
    ("flaw", "off"),
    [("asymmetric", 1e-3), ("indefinite", -1e-3), ("asymmetric", 10.0), ("indefinite", -10.0)],
)
def test_wrong_values_are_an_error_that_names_the_parameter(solver, batch, flaw, off):
    P = positive(*batch, seed=1)
    bad = P.reshape(-1, n, n)[-1]
    if flaw == "asymmetric":
        bad[0, 1] += off
    else:
        values, vectors = torch.linalg.eigh(bad)
        values[0] = off
        bad.copy_(vectors @ torch.diag(values) @ vectors.mT)
        bad.copy_((bad + bad.mT) / 2)
    with pytest.raises(ValueError, match=r"^P must be PSD") as caught:
        make_layer(solver)(P, torch.zeros(n))
    message = str(caught.value)
    assert "validate=False" in message
    number = torch.Size(batch).numel()
    assert (f"batch index {number - 1}" in message) == (number > 1)
    assert f"{abs(off):.3g}" in message


def test_the_check_can_be_switched_off(solver):
    """Then the symmetric part is what counts."""
    P, q = positive(B, seed=1), randn(B, n, seed=2)
    skew = randn(B, n, n, seed=5)
    layer = make_layer(solver, validate=False)
    (x,) = layer(P + skew - skew.mT, q)
    assert_same(x, closed_form(P, q, True), 1e-8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_rounding_in_the_users_dtype_is_no_error(solver, dtype):
    R = randn(B, n, n, seed=6).to(dtype)
    P = torch.linalg.inv(torch.linalg.inv((R.mT @ R).float() + 0.1 * torch.eye(n))).to(dtype)
    (x,) = make_layer(solver)(P, torch.zeros(n, dtype=dtype))
    assert x.dtype == dtype


def test_rounding_counts_in_the_parameters_own_dtype(solver):
    """A float32 matrix stays acceptable when another parameter is float64."""
    P = positive(B, seed=1).float()
    P[:, 0, 1] *= 1 + 1e-6
    assert not torch.equal(P, P.mT)
    (x,) = make_layer(solver)(P, randn(B, n, seed=2))
    assert x.dtype == torch.float64


def test_negative_semidefinite_when_maximizing(solver):
    x, N, q = cp.Variable(n), cp.Parameter((n, n), NSD=True, name="N"), cp.Parameter(n)
    layer = cl.ConvexLayer(cp.Problem(cp.Maximize(0.5 * cp.quad_form(x, N) + q @ x)), [N, q], [x], solver=solver)
    N_value, q_value = (-positive(B, seed=1)).requires_grad_(), randn(B, n, seed=2)
    (value,) = layer(N_value, q_value)
    expected = -torch.linalg.solve(N_value, q_value)
    assert_same(value, expected, 1e-8)
    weights = weights_like([value])
    (grad,), (right,) = (torch.autograd.grad(v, N_value, weights) for v in (value, expected))
    assert_same(grad, (right + right.mT) / 2, 1e-7)
    with pytest.raises(ValueError, match=r"^N must be NSD"):
        layer(-N_value.detach(), q_value)


def test_scaled_and_added_to_a_constant(solver):
    """min x'Px + x'Cx + q'x: the parameter enters with a factor, next to numbers."""
    x, P, q = cp.Variable(n), cp.Parameter((n, n), PSD=True), cp.Parameter(n)
    C = np.diag([1.0, 2.0, 3.0])
    objective = 3 * cp.quad_form(x, P) + cp.quad_form(x, C) + q @ x
    layer = cl.ConvexLayer(cp.Problem(cp.Minimize(objective)), [P, q], [x], solver=solver)
    P_value, q_value = positive(B, seed=1).requires_grad_(), randn(B, n, seed=2)
    (value,) = layer(P_value, q_value)
    expected = -torch.linalg.solve(6 * P_value + 2 * torch.as_tensor(C), q_value)
    assert_same(value, expected, 1e-8)
    weights = weights_like([value])
    (grad,), (right,) = (torch.autograd.grad(v, P_value, weights) for v in (value, expected))
    assert_same(grad, (right + right.mT) / 2, 1e-7)
