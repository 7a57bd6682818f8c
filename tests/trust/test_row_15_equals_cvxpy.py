"""Results are those of a fresh problem.solve() at a tight tolerance, variables, duals and optimal value.

One problem per way in which a problem can be written, each with a unique solution; not a list of atoms.
"""

import cvxpy as cp
import numpy as np
import pytest
import torch

import convexlayers as cl
from trust.cvxpy_solve import solve_by_cvxpy
from trust.engines import ENGINES, has_cones

rng = np.random.default_rng(0)
A, C, t_value = rng.standard_normal((6, 3)), rng.standard_normal((3, 3)), np.array([0.8, -0.6, 0.3])
M_value = C @ C.T / 3


def scalar():
    x, t = cp.Variable(), cp.Parameter(name="t")
    return cp.Minimize(cp.square(x - t) + 3), [x <= 0.5], {t: 0.8}


def scalar_maximize():
    x, t = cp.Variable(), cp.Parameter(name="t", nonneg=True)
    return cp.Maximize(2 - t * cp.abs(x - 1) - cp.square(x)), [], {t: 0.8}


def vector_unconstrained():
    x, b = cp.Variable(3), cp.Parameter(6, name="b")
    return cp.Minimize(cp.sum_squares(A @ x - b) - 5), [], {b: A @ t_value + 0.1}


def vector_with_both_bounds():
    x, t = cp.Variable(3, bounds=[-0.4, 0.5]), cp.Parameter(3, name="t")
    return cp.Minimize(cp.sum_squares(x - t)), [cp.sum(x) == 0.3], {t: t_value}


def linear():
    x, c, h = cp.Variable(3), cp.Parameter(3, name="c"), cp.Parameter(6, name="h")
    return cp.Maximize(c @ x + 1), [A @ x <= h, x <= 2, x >= -2], {c: t_value, h: np.ones(6)}


def matrix():
    X, B = cp.Variable((2, 3)), cp.Parameter((2, 3), name="B")
    row_sums = cp.sum(X, axis=1) == np.array([0.5, -0.5])
    return cp.Minimize(cp.sum_squares(X - B) + cp.norm1(X)), [row_sums], {B: A[:2]}


def matrix_maximize():
    X, B = cp.Variable((3, 3), symmetric=True), cp.Parameter((3, 3), symmetric=True, name="B")
    return (
        cp.Maximize(cp.trace(B @ X) - 0.5 * cp.sum_squares(X)),
        [X >> 0, cp.trace(X) <= 1],
        {B: 0.3 * (C + C.T) + 0.5 * np.eye(3)},
    )


def constant_objective():
    """One feasible point."""
    x, b = cp.Variable(2), cp.Parameter(2, name="b")
    return cp.Minimize(7), [x == b], {b: t_value[:2]}


def no_parameters():
    x = cp.Variable(3)
    return cp.Minimize(cp.sum_squares(x - t_value) + cp.norm(x)), [x >= 0], {}


def offsets_with_parameters():
    """A parameter that moves the optimal value and nothing else, beside one that scales it."""
    x, t, offset, scale = cp.Variable(3), cp.Parameter(3), cp.Parameter(), cp.Parameter(pos=True)
    objective = scale * cp.sum_squares(x - 1) + t @ x + offset
    return cp.Minimize(objective), [cp.norm(x, "inf") <= 1.2], {t: t_value, offset: -4.0, scale: 0.7}


def parameter_matrix_in_the_quadratic():
    x, P, q = cp.Variable(3), cp.Parameter((3, 3), PSD=True, name="P"), cp.Parameter(3, name="q")
    return cp.Minimize(cp.quad_form(x, P) + q @ x), [cp.sum(x) == 1], {P: M_value + np.eye(3), q: t_value}


def second_order():
    x, t, r = cp.Variable(3), cp.Parameter(3, name="t"), cp.Parameter(nonneg=True, name="r")
    return cp.Minimize(cp.norm(A @ x - A @ t - 1) + x[0]), [cp.norm(x - t) <= r], {t: t_value, r: 0.4}


def exponential():
    x, t = cp.Variable(3), cp.Parameter(3, name="t")
    return cp.Minimize(cp.log_sum_exp(A @ x) + cp.sum_squares(x - t)), [cp.sum(cp.exp(x)) <= 4], {t: t_value}


def entropy_maximize():
    x, t = cp.Variable(3), cp.Parameter(3, name="t")
    return cp.Maximize(cp.sum(cp.entr(x)) + t @ x), [cp.sum(x) == 1, x[0] <= 0.4], {t: t_value}


def power():
    x, t = cp.Variable(3), cp.Parameter(3, name="t")
    return (
        cp.Minimize(cp.sum(cp.power(cp.abs(x - t), 2.7)) + cp.sum(x)),
        [cp.PowCone3D(x[0], 1, x[1], 0.4)],
        {t: t_value},
    )


def eigenvalue():
    X, B = cp.Variable((3, 3), symmetric=True), cp.Parameter((3, 3), symmetric=True, name="B")
    return cp.Minimize(cp.lambda_max(X) + cp.sum_squares(X - B)), [cp.diag(X) == 1], {B: C + C.T}


def several_variables():
    x, y, Z, t = cp.Variable(2), cp.Variable(), cp.Variable((2, 2), PSD=True), cp.Parameter(2, name="t")
    objective = cp.sum_squares(x - t) + cp.square(y) + cp.sum_squares(Z - np.array([[1.0, 2.0], [2.0, 0.5]]))
    return cp.Minimize(objective), [x[0] + y == 1, cp.trace(Z) == 1.2, x >= -0.2 * y], {t: t_value[:2]}


def geometric():
    x, y = cp.Variable(pos=True, name="x"), cp.Variable(pos=True, name="y")
    c = cp.Parameter(pos=True, name="c")
    return cp.Minimize(x * y + c / x + 1 / y), [x <= 1.3, x * y >= 0.4], {c: 0.8}


PROBLEMS = {
    make.__name__: make
    for make in (
        [scalar, scalar_maximize, vector_unconstrained, vector_with_both_bounds, linear, matrix, matrix_maximize]
        + [constant_objective, no_parameters, offsets_with_parameters, parameter_matrix_in_the_quadratic]
        + [second_order, exponential, entropy_maximize, power, eigenvalue, several_variables, geometric]
    )
}


def cases():
    for solver in ENGINES:
        for name in PROBLEMS:
            if has_cones(solver, {"power"} if name == "power" else set()):
                yield pytest.param(solver, name, id=f"{solver}-{name}")


@pytest.mark.parametrize(("solver", "name"), list(cases()))
def test_equals_a_fresh_solve(solver, name, figure):
    """CVXPY's solver stops at a gap g = 1e-12, of second order in the error on a curved cone: variables are good to
    sqrt(2 g / curvature), 1e-5 for curvatures down to 0.02, and the optimal value, to g itself.
    """
    gp = name == "geometric"
    objective, constraints, values = PROBLEMS[name]()
    problem = cp.Problem(objective, constraints)
    # The duals of a geometric program belong to its logarithms, and cvxpy does not return them.
    duals = [] if gp else [dual for constraint in constraints for dual in constraint.dual_variables]
    outputs = [*problem.variables(), *duals]
    layer = cl.ConvexLayer(problem, list(values), outputs, solver=solver, gp=gp)
    solution = layer.solve(*[torch.as_tensor(value, dtype=torch.float64) for value in values.values()])
    fresh, parameters, variables = rebuilt(name)
    expected = solve_by_cvxpy(fresh, parameters, variables, gp)
    # Without parameters results are of torch's default dtype.
    accuracy = max(ENGINES[solver].accuracy, torch.finfo(solution.objective.dtype).eps)
    for output, found, wanted in zip(outputs, solution.values, expected, strict=True):
        assert found.shape == output.shape
        assert figure(relative(found.numpy(), wanted), "variable or dual") <= max(1e-5, accuracy), output.name()
    # The optimal value as the user wrote it, sign and offset and all.
    assert figure(relative(float(solution.objective), fresh.value), "optimal value") <= accuracy


def rebuilt(name):
    """The same problem from new objects, that no layer has seen."""
    objective, constraints, values = PROBLEMS[name]()
    problem = cp.Problem(objective, constraints)
    duals = [] if name == "geometric" else [dual for constraint in constraints for dual in constraint.dual_variables]
    return problem, values, [*problem.variables(), *duals]


def relative(found, wanted):
    return float(np.abs(found - wanted).max() / max(1.0, np.abs(wanted).max()))


def test_solving_afterwards_gives_the_same(solver):
    """The layer leaves the problem as it was: CVXPY solves it as if there were no layer."""
    objective, constraints, values = second_order()
    problem = cp.Problem(objective, constraints)
    layer = cl.ConvexLayer(problem, list(values), problem.variables(), solver=solver)
    layer(*[torch.as_tensor(value, dtype=torch.float64) for value in values.values()])
    assert all(parameter.value is None for parameter in values)
    (found,) = solve_by_cvxpy(problem, values, problem.variables())
    fresh, parameters, variables = rebuilt("second_order")
    assert np.array_equal(found, solve_by_cvxpy(fresh, parameters, variables)[0])
