"""Layers of the zoo whose arguments the batch shares, or that have parameters of their own; singular systems."""

import cvxpy as cp
import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

import convexlayers as cl
from convexlayers import zoo
from convexlayers.errors import ArgumentError

F64 = torch.float64


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def control_twin(nx, nu, steps, bounded):
    A, B, LQ, LR = (cp.Parameter(shape) for shape in ((nx, nx), (nx, nu), (nx, nx), (nu, nu)))
    x0, bound = cp.Parameter(nx), cp.Parameter(nu, nonneg=True)
    x, u = cp.Variable((steps + 1, nx)), cp.Variable((steps, nu))
    cost = sum(cp.sum_squares(LQ @ x[t + 1]) + cp.sum_squares(LR @ u[t]) for t in range(steps)) / 2
    constraints = [x[0] == x0, *(x[t + 1] == A @ x[t] + B @ u[t] for t in range(steps))]
    constraints += [u[t] <= bound for t in range(steps)] + [u[t] >= -bound for t in range(steps)] if bounded else []
    parameters = [A, B, LQ, LR, x0, *([bound] if bounded else [])]
    return cl.ConvexLayer(cp.Problem(cp.Minimize(cost), constraints), parameters, [x, u])


@pytest.mark.parametrize("bounded", [True, False])
def test_control_is_its_twin(bounded):
    nx, nu, steps = 3, 2, 5
    A = 0.6 * normal(nx, nx, seed=1)
    B, LQ, LR, x0 = normal(nx, nu, seed=2), normal(nx, nx, seed=3), normal(nu, nu, seed=4), normal(4, nx, seed=5)
    bound = torch.tensor([0.1, 0.2], dtype=F64)
    inputs = [A, B, LQ, LR, x0, *([bound] if bounded else [])]

    def ours(A, B, LQ, LR, x0, bound=None):
        limits = {} if bound is None else {"lower": -bound, "upper": bound}
        plan = zoo.mpc(A, B, LQ.T @ LQ, LR.T @ LR, x0, steps, **limits)
        return plan.states, plan.controls

    def twin(*values):
        states, controls = control_twin(nx, nu, steps, bounded)(*values)
        return states[..., 1:, :], controls

    results = []
    for call in (ours, twin):
        values = [value.clone().requires_grad_() for value in inputs]
        outputs = call(*values)
        loss = sum((output * normal(*output.shape, seed=7)).sum() for output in outputs)
        results.append([*(output.detach() for output in outputs), *torch.autograd.grad(loss, values)])
    for found, expected in zip(*results, strict=True):
        assert (found - expected).abs().max() <= 1e-6 * max(1.0, float(expected.abs().max()))
    if bounded:
        assert (results[0][1].abs() > 0.9999 * bound).any()


def test_the_regulator_is_riccati():
    A, B, Q, R = 0.8 * normal(3, 3, seed=1), normal(3, 1, seed=2), torch.eye(3, dtype=F64), torch.eye(1, dtype=F64)
    x0, V = normal(4, 3, seed=3), torch.eye(3, dtype=F64)
    for _ in range(5):
        K = torch.linalg.solve(R + B.T @ V @ B, B.T @ V @ A)
        V = Q + A.T @ V @ (A - B @ K)
    first = zoo.lqr(A, B, Q, R, x0, 6).controls[:, 0]
    torch.testing.assert_close(first, -(x0 @ torch.linalg.solve(R + B.T @ V @ B, B.T @ V @ A).T), rtol=1e-8, atol=1e-8)


def test_optnet_layer_is_feasible_and_learns():
    torch.manual_seed(0)
    layer = zoo.QPLayer(4, inequalities=5, equalities=2).double()
    x = layer(normal(8, 4))
    h = layer.G @ layer.x0 + layer.log_s0.exp()
    assert (x @ layer.G.T - h).max() <= 1e-7
    torch.testing.assert_close(x @ layer.A.T, (layer.A @ layer.x0).expand(8, 2))
    x.square().sum().backward()
    assert all(parameter.grad is not None for parameter in layer.parameters())
    assert "inequalities=5" in repr(layer)
    with pytest.raises(ArgumentError, match="expected at least 1, 0, 0"):
        zoo.QPLayer(0)


def test_control_with_linear_and_terminal_costs():
    """Beside the stacked problem: x = S x0 + M u, solved as least squares in u."""
    nx, nu, steps = 3, 2, 4
    A, B = 0.6 * normal(nx, nx, seed=1), normal(nx, nu, seed=2)
    Q, R, last = (
        W @ W.T + torch.eye(len(W), dtype=F64) for W in (normal(nx, nx), normal(nu, nu), normal(nx, nx, seed=9))
    )
    x0, q, r = normal(5, nx, seed=3), normal(5, steps, nx, seed=4), normal(steps, nu, seed=5)
    plan = zoo.mpc(A, B, Q, R, x0, steps, q=q, r=r, terminal=last)
    S = torch.cat([torch.linalg.matrix_power(A, t + 1) for t in range(steps)])
    M = torch.zeros(steps * nx, steps * nu, dtype=F64)
    for t in range(steps):
        for k in range(t + 1):
            M[t * nx : (t + 1) * nx, k * nu : (k + 1) * nu] = torch.linalg.matrix_power(A, t - k) @ B
    cost = torch.block_diag(*[Q] * (steps - 1), last)
    H = M.T @ cost @ M + torch.block_diag(*[R] * steps)
    u = -torch.linalg.solve(H, ((x0 @ S.T) @ cost + q.flatten(1)) @ M.clone() + r.flatten(), left=False)
    torch.testing.assert_close(plan.controls.flatten(1), u, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(plan.states.flatten(1), x0 @ S.T + u @ M.T, rtol=1e-8, atol=1e-8)
    with pytest.raises(ArgumentError, match="q has shape"):
        zoo.mpc(A, B, Q, R, x0, steps, q=q[:, 1:])


def test_second_derivatives_and_maps_of_control():
    A, B, x0 = 0.6 * normal(2, 2, seed=1), normal(2, 1, seed=2), normal(3, 2, seed=5)
    Q, R = torch.eye(2, dtype=F64), 0.5 * torch.eye(1, dtype=F64)

    def controls(A, B, x0):
        return zoo.mpc(A, B, Q, R, x0, 3, lower=-0.08, upper=0.08).controls

    values = [value.clone().requires_grad_() for value in (A, B, x0)]
    assert gradcheck(controls, values, check_forward_ad=True)
    assert gradgradcheck(controls, values)
    assert (controls(A, B, x0).abs() > 0.0799).any()
    mapped = torch.vmap(lambda x: controls(A, B, x))(x0)
    torch.testing.assert_close(mapped, controls(A, B, x0), rtol=0, atol=1e-12)


def test_second_derivatives_and_maps_of_the_optnet_layer():
    torch.manual_seed(0)
    layer = zoo.QPLayer(3, inequalities=4, equalities=1).double()
    p = normal(2, 3).requires_grad_()
    assert gradcheck(layer, (p,), check_forward_ad=True)
    assert gradgradcheck(layer, (p,))
    torch.testing.assert_close(torch.vmap(layer)(p), layer(p), rtol=0, atol=1e-12)


def test_singular_systems():
    zero, one = torch.zeros(3, 2, dtype=F64), torch.ones(3, 3, dtype=F64)
    diagonal = one.clone()
    diagonal[1, 1] = 0
    x = zoo.tridiagonal_solve(zero, diagonal, zero, one)
    assert x[1].isnan().all()
    torch.testing.assert_close(x[[0, 2]], one[[0, 2]])


def test_least_squares_of_minimum_norm():
    A = torch.cat([normal(2, 6, 2), torch.zeros(2, 6, 1, dtype=F64)], -1)
    A[..., 2] = A[..., 0]
    b = normal(2, 6, seed=1).requires_grad_()
    x = zoo.least_squares(A, b)
    torch.testing.assert_close(x, (torch.linalg.pinv(A) @ b.unsqueeze(-1)).squeeze(-1))
    (grad,) = torch.autograd.grad(x.sum(), b)
    torch.testing.assert_close(grad, torch.linalg.pinv(A).sum(-2))


def test_equal_eigenvalues_inside_and_outside():
    """The derivative of V V' through the eigenvectors is that of the projector."""
    Q = torch.linalg.qr(normal(5, 5)).Q
    A = (Q * torch.tensor([2.0, 2.0, -1.0, -1.0, -1.0], dtype=F64)) @ Q.T
    weights = normal(5, 5, seed=1)
    results = []
    for layer in (lambda A: zoo.top_eigen(A, 2)[1] @ zoo.top_eigen(A, 2)[1].mT, lambda A: zoo.top_projector(A, 2)):
        value = A.clone().requires_grad_()
        results.append(torch.autograd.grad((layer(value) * weights).sum(), value)[0])
    torch.testing.assert_close(*results, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: zoo.tridiagonal_solve(torch.ones(3), torch.ones(3), torch.ones(2), torch.ones(3)), "lower has shape"),
        (lambda: zoo.block_tridiagonal_solve(*(torch.ones(1, 1, 1),) * 3, torch.ones(1, 1)), "T >= 2"),
        (lambda: zoo.least_squares(torch.ones(4, 2), torch.ones(3)), r"b has shape \(3,\), expected \(\*batch, 4\)"),
        (lambda: zoo.least_squares(torch.ones(4, 2), torch.ones(4), ridge=-1.0), "ridge is -1.0"),
        (
            lambda: zoo.least_squares(torch.ones(4, 0), torch.ones(4)),
            r"A has shape \(4, 0\), expected \(\*batch, m, n\)",
        ),
        (lambda: zoo.top_eigen(torch.eye(3), 0), "k is 0"),
        (lambda: zoo.svm_head(torch.ones(4, 2), torch.ones(3, 2), torch.ones(1, 2)), "labels has shape"),
        (lambda: zoo.mpc(torch.ones(2, 2, 2), *[torch.ones(2, 2)] * 3, torch.ones(2), 3), "the batch shares it"),
        (lambda: zoo.mpc(*[torch.ones(2, 2)] * 4, torch.ones(2), 0), "steps is 0"),
        (lambda: zoo.maxcut_sdp(torch.ones(2, 3)), "C has shape"),
        (lambda: zoo.rank_pool(torch.ones(4, 2), C=0.0), "C is 0.0"),
    ],
)
def test_wrong_arguments(call, message):
    with pytest.raises(ArgumentError, match=message):
        call()
