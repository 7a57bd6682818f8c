"""Status, iterations, residuals, gap and objective of every element, measured and not believed."""

import cvxpy as cp
import numpy as np
import pytest
import torch

import convexlayers as cl
from convexlayers import Status
from trust.families import FAMILIES, assert_same, layer_of, make_simplex, randn

PER_ELEMENT = ("objective", "status", "iterations", "primal_residual", "dual_residual", "gap", "solved")
B = 4


@pytest.mark.parametrize("name", FAMILIES)
def test_every_field_has_one_entry_per_element(solver, name):
    solution = layer_of(name, solver).solve(*FAMILIES[name].sample(B))
    for field in PER_ELEMENT:
        assert getattr(solution, field).shape == (B,)
    assert solution.status.dtype == solution.iterations.dtype == torch.int64
    assert solution.solved.all()
    assert (solution.iterations > 0).all()
    for field in ("primal_residual", "dual_residual", "gap"):
        value = getattr(solution, field)
        assert value.dtype == torch.float64
        assert ((value >= 0) & (value <= 1e-7)).all()


@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (0,), (1, 1)])
def test_in_the_shape_of_the_batch(solver, shape):
    solution = layer_of("simplex", solver).solve(randn(*shape, 5, seed=1), 1.0)
    for field in PER_ELEMENT:
        assert getattr(solution, field).shape == shape


def test_residuals_are_those_of_the_returned_point(solver):
    """At a loose tolerance they are far from zero, and can be told from the numbers alone."""
    problem, parameters, variables = make_simplex()
    dual = problem.constraints[1].dual_variables[0]
    layer = cl.ConvexLayer(problem, parameters, [*variables, dual], solver=solver, tolerance=1e-3)
    solution = layer.solve(*FAMILIES["simplex"].sample(B))
    flat = solution.cone_solution
    P, A = flat.program.dense_P().numpy(), flat.program.dense_A().numpy()
    q, b, x, s, z = (v.numpy() for v in (flat.program.q, flat.program.b, flat.x, flat.s, flat.z))
    for i in range(B):
        Ax, Px, Atz = A[i] @ x[i], P[i] @ x[i], A[i].T @ z[i]
        zero = flat.program.structure.cones.zero
        outside = max(np.abs(s[i][:zero]).max(), np.maximum(-s[i][zero:], 0).max())
        size = max(1, np.abs(Ax).max() + np.abs(b[i]).max() + np.abs(s[i]).max())
        primal = max(np.abs(Ax + s[i] - b[i]).max(), outside) / size
        np.testing.assert_allclose(solution.primal_residual[i], primal, rtol=1e-6, atol=1e-15)
        size = max(1, np.abs(Px).max() + np.abs(q[i]).max() + np.abs(Atz).max())
        dual_residual = max(np.abs(Px + Atz + q[i]).max(), np.maximum(-z[i][zero:], 0).max()) / size
        np.testing.assert_allclose(solution.dual_residual[i], dual_residual, rtol=1e-6, atol=1e-15)
        terms = np.array([x[i] @ Px, q[i] @ x[i], b[i] @ z[i]])
        gap = abs(terms.sum()) / max(1, np.abs(terms).sum())
        np.testing.assert_allclose(solution.gap[i], gap, rtol=1e-6, atol=1e-15)


def test_a_tighter_tolerance_gives_smaller_residuals(solver):
    problem, parameters, variables = FAMILIES["dense_qp"].make()
    values = FAMILIES["dense_qp"].sample(B)
    largest = {}
    for tolerance in (1e-3, 1e-10):
        layer = cl.ConvexLayer(problem, parameters, variables, solver=solver, tolerance=tolerance)
        largest[tolerance] = layer.solve(*values).cone_solution.residuals.largest.max()
    assert largest[1e-10] <= 1e-9
    # Where polishing takes both to rounding there is nothing smaller.
    assert largest[1e-10] < max(largest[1e-3], 1e-15)
    assert largest[1e-3] <= 1e-2


@pytest.mark.parametrize("sign", [1, -1])
def test_objective_is_the_users_with_its_sign_and_constant(solver, sign):
    """min |x - t|^2 + c'd + 3 st sum(x) = 1 has the value (1 - sum t)^2 / n + c'd + 3."""
    n = 3
    x, t, c = cp.Variable(n), cp.Parameter(n), cp.Parameter(n)
    d = np.arange(1.0, n + 1)
    expression = cp.sum_squares(x - t) + c @ d + 3
    objective = cp.Minimize(expression) if sign == 1 else cp.Maximize(-expression)
    layer = cl.ConvexLayer(cp.Problem(objective, [cp.sum(x) == 1]), [t, c], [x], solver=solver)
    t_value, c_value = (randn(B, n, seed=i).requires_grad_() for i in (1, 2))
    solution = layer.solve(t_value, c_value)
    d_value = torch.as_tensor(d)
    expected = sign * ((1 - t_value.sum(-1)).square() / n + c_value @ d_value + 3)
    assert_same(solution.objective, expected, 1e-7)
    weight = randn(B, seed=3)
    grads = torch.autograd.grad(solution.objective, [t_value, c_value], weight)
    for grad, right in zip(grads, torch.autograd.grad(expected, [t_value, c_value], weight), strict=True):
        assert_same(grad, right, 1e-7)


def test_objective_of_a_geometric_program(solver):
    """min x + c / x has the value 2 sqrt(c), where c is a parameter of degree one."""
    x, c = cp.Variable(pos=True), cp.Parameter(pos=True)
    layer = cl.ConvexLayer(cp.Problem(cp.Minimize(x + c / x)), [c], [x], solver=solver, gp=True)
    c_value = torch.tensor([0.5, 1.0, 4.0, 9.0], dtype=torch.float64, requires_grad=True)
    solution = layer.solve(c_value)
    assert_same(solution.objective, 2 * c_value.sqrt(), 1e-6)
    (grad,) = torch.autograd.grad(solution.objective.sum(), c_value)
    assert_same(grad, c_value.detach().rsqrt(), 1e-6)


def test_failed_elements_are_reported_and_the_others_too(solver):
    values = FAMILIES["lp"].sample(B)
    FAMILIES["lp"].breaks[Status.PRIMAL_INFEASIBLE](values, 0)
    FAMILIES["lp"].breaks[Status.DUAL_INFEASIBLE](values, 2)
    values[0][3] = float("nan")
    solution = layer_of("lp", solver).solve(*values)
    assert [Status(code).name for code in solution.status.tolist()] == [
        "PRIMAL_INFEASIBLE", "SOLVED", "DUAL_INFEASIBLE", "INVALID_DATA",
    ]  # fmt: skip
    assert solution.solved.tolist() == [False, True, False, False]
    for code in solution.status.tolist():
        assert Status(code).sentence in solution.describe()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_everything_is_on_the_inputs_device(solver):
    z = randn(B, 5, seed=1).cuda().requires_grad_()
    solution = layer_of("simplex", solver).solve(z, 1.0)
    for field in PER_ELEMENT:
        assert getattr(solution, field).device == z.device
    assert solution.values[0].device == z.device
    (grad,) = torch.autograd.grad(solution.values[0].square().sum(), z)
    assert grad.device == z.device
