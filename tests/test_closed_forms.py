"""Problems with closed-form solutions, at default settings: values and Jacobians to 1e-7, better where promised."""

import cvxpy as cp
import pytest
import torch
from torch.autograd.functional import jacobian

import convexlayers as cl
from convexlayers.cones import Cones, smat, svec
from convexlayers.cones.svec import triangle_size

TOLERANCE = 1e-7


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def eye(n):
    return torch.eye(n, dtype=torch.float64)


def ones(*shape):
    return torch.ones(*shape, dtype=torch.float64)


def zeros(*shape):
    return torch.zeros(*shape, dtype=torch.float64)


# ------------------------------------------------------------------------------------------- solutions, by the library


def simplex(y):
    return cl.solve_qp(eye(len(y)), -y, A=ones(1, len(y)), b=ones(1), lb=0.0).x


def l1_ball(y):
    """In the variables (x, t): |x| <= t, sum(t) <= 1."""
    n = len(y)
    P = torch.block_diag(eye(n), zeros(n, n))
    absolute = torch.cat([torch.cat([eye(n), -eye(n)], 1), torch.cat([-eye(n), -eye(n)], 1)])
    G = torch.cat([absolute, torch.cat([zeros(1, n), ones(1, n)], 1)])
    h = torch.cat([zeros(2 * n), ones(1)])
    return cl.solve_qp(P, torch.cat([-y, zeros(n)]), G, h).x[:n]


def l2_ball(y):
    n = len(y)
    return cl.solve_socp(eye(n), -y, [(eye(n), zeros(n), zeros(n), ones(()))]).x


def linf_ball(y):
    return cl.solve_qp(eye(len(y)), -y, lb=-1.0, ub=1.0).x


def psd_cone(y):
    """svec to svec; the norm of a matrix is that of its svec."""
    size = len(y)
    order = next(n for n in range(1, 20) if triangle_size(n) == size)
    return cl.solve_cone_program(eye(size), -y, -eye(size), zeros(size), Cones(psd=(order,))).x


def softmax(y):
    """max y'x - sum x log x st sum x = 1: (t, x, 1) in the exponential cone says t <= -x log x."""
    n = len(y)
    A, b = zeros(1 + 3 * n, 2 * n), zeros(1 + 3 * n)
    A[0, :n], b[0] = 1, 1
    for i in range(n):
        A[1 + 3 * i, n + i], A[2 + 3 * i, i], b[3 + 3 * i] = -1, -1, 1
    q = torch.cat([-y, -ones(n)])
    return cl.solve_cone_program(None, q, A, b, Cones(zero=1, exponential=n)).x[:n]


def second_order_cone(y):
    n = len(y)
    return cl.solve_cone_program(eye(n), -y, -eye(n), zeros(n), Cones(second_order=(n,))).x


# ------------------------------------------------------------------------------------------- solutions, in closed form


def simplex_form(y):
    """The largest k with y_(k) > (y_(1) + .. + y_(k) - 1) / k gives the threshold (Held, Wolfe, Crowder, 1974)."""
    ordered = y.sort(descending=True).values
    thresholds = (ordered.cumsum(0) - 1) / torch.arange(1, len(y) + 1, dtype=y.dtype)
    return (y - thresholds[(ordered > thresholds).sum() - 1]).clamp(min=0)


def l1_ball_form(y):
    return y if float(y.detach().abs().sum()) <= 1 else y.sign() * simplex_form(y.abs())


def l2_ball_form(y):
    return y / y.norm().clamp(min=1)


def linf_ball_form(y):
    return y.clamp(-1, 1)


def psd_cone_form(y):
    order = next(n for n in range(1, 20) if triangle_size(n) == len(y))
    values, U = torch.linalg.eigh(smat(y, order))
    return svec((U * values.clamp(min=0)) @ U.T)


def softmax_form(y):
    return y.softmax(0)


def second_order_cone_form(y):
    t, x = y[:1], y[1:]
    norm = x.norm()
    if float(norm.detach()) <= float(t.detach()):
        return y
    if float(norm.detach()) <= -float(t.detach()):
        return torch.zeros_like(y)
    return (t + norm) / 2 * torch.cat([torch.ones_like(t), x / norm])


FORMS = {
    "simplex": (simplex, simplex_form, 6),
    "l1 ball": (l1_ball, l1_ball_form, 5),
    "l2 ball": (l2_ball, l2_ball_form, 5),
    "linf ball": (linf_ball, linf_ball_form, 5),
    "PSD cone 3": (psd_cone, psd_cone_form, 6),
    "PSD cone 4": (psd_cone, psd_cone_form, 10),
    "second-order cone": (second_order_cone, second_order_cone_form, 4),
    "softmax": (softmax, softmax_form, 4),
}


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("name", FORMS)
def test_values_and_jacobians(name, seed):
    solve, form, size = FORMS[name]
    y = normal(size, seed=seed)
    assert torch.allclose(solve(y), form(y), rtol=0, atol=TOLERANCE)
    assert torch.allclose(jacobian(solve, y), jacobian(form, y), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("name", ["l1 ball", "l2 ball", "linf ball"])
def test_points_inside_a_ball_stay(name):
    solve, _, size = FORMS[name]
    y = 0.1 * normal(size).clamp(-1.5, 1.5)
    assert torch.allclose(solve(y), y, rtol=0, atol=TOLERANCE)
    assert torch.allclose(jacobian(solve, y), eye(size), rtol=0, atol=TOLERANCE)


def test_softmax_value():
    """The optimal value is log sum exp, and its gradient the solution."""
    y = normal(5, seed=1).requires_grad_()
    n = 5
    A, b = zeros(1 + 3 * n, 2 * n), zeros(1 + 3 * n)
    A[0, :n], b[0] = 1, 1
    for i in range(n):
        A[1 + 3 * i, n + i], A[2 + 3 * i, i], b[3 + 3 * i] = -1, -1, 1
    solution = cl.solve_cone_program(None, torch.cat([-y, -ones(n)]), A, b, Cones(zero=1, exponential=n))
    assert float(-solution.objective.detach()) == pytest.approx(float(y.detach().logsumexp(0)), abs=TOLERANCE)
    (grad,) = torch.autograd.grad(-solution.objective, y)
    assert torch.allclose(grad, y.softmax(0).detach(), rtol=0, atol=TOLERANCE)


# ------------------------------------------------------------------------------------------- power cone


def power_by_cones(a):
    """max z st (x, y, z) in the power cone, x + y = a."""
    A = torch.cat([torch.tensor([[1.0, 1.0, 0.0]], dtype=torch.float64), -eye(3)])
    b = torch.cat([a.reshape(1), zeros(3)])
    q = torch.tensor([0.0, 0.0, -1.0], dtype=torch.float64)
    return cl.solve_cone_program(None, q, A, b, Cones(zero=1, power=(0.3,))).x[2]


def power_by_layer(a):
    x, y, z, parameter = cp.Variable(), cp.Variable(), cp.Variable(), cp.Parameter()
    constraints = [cp.constraints.PowCone3D(x, y, z, 0.3), x + y == parameter]
    layer = cl.ConvexLayer(cp.Problem(cp.Maximize(z), constraints), [parameter], [z])
    return layer(a)[0]


@pytest.mark.parametrize("solve", [power_by_cones, power_by_layer], ids=["cones", "layer"])
def test_power_cone(solve):
    a = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    z = solve(a)
    slope = 0.3**0.3 * 0.7**0.7
    assert float(z.detach()) == pytest.approx(2 * slope, abs=TOLERANCE)
    assert float(z.detach()) == pytest.approx(1.0857630, abs=TOLERANCE)
    (grad,) = torch.autograd.grad(z, a)
    assert float(grad) == pytest.approx(slope, abs=TOLERANCE)
    assert float(grad) == pytest.approx(0.5428815, abs=TOLERANCE)


# ------------------------------------------------------------------------------------------- smallest eigenvalue


def eigenvalue_by_cones(C):
    n = len(C)
    size = triangle_size(n)
    A = torch.cat([svec(eye(n)).unsqueeze(0), -eye(size)])
    b = torch.cat([ones(1), zeros(size)])
    solution = cl.solve_cone_program(None, svec(C), A, b, Cones(zero=1, psd=(n,)))
    return smat(solution.x, n), solution.objective


def eigenvalue_by_layer(C):
    n = len(C)
    X, parameter = cp.Variable((n, n), PSD=True), cp.Parameter((n, n), symmetric=True)
    problem = cp.Problem(cp.Minimize(cp.trace(parameter @ X)), [cp.trace(X) == 1])
    solution = cl.ConvexLayer(problem, [parameter], [X]).solve(C)
    return solution.variables[0], solution.objective


def eigenvalue_form(C):
    values, U = torch.linalg.eigh(C)
    return torch.outer(U[:, 0], U[:, 0]), values[0]


@pytest.mark.parametrize("n", [3, 4])
@pytest.mark.parametrize("solve", [eigenvalue_by_cones, eigenvalue_by_layer], ids=["cones", "layer"])
def test_smallest_eigenvalue(solve, n):
    """min tr(CX) st tr X = 1, X >> 0: lambda_min and uu', with the derivatives of perturbation theory."""
    M, W = normal(n, n, seed=1), normal(n, n, seed=2)
    results = []
    for function in (solve, eigenvalue_form):
        leaf = (M + M.T).requires_grad_()
        C = 0.5 * (leaf + leaf.T)
        X, value = function(C)
        grads = [torch.autograd.grad(part, leaf, retain_graph=True)[0] for part in ((W * X).sum(), value)]
        results.append((X, value, *grads))
    for got, expected in zip(*results, strict=True):
        assert torch.allclose(got, expected, rtol=0, atol=TOLERANCE)
