"""The right status for every way in which a problem has no solution."""

import cvxpy as cp
import numpy as np
import pytest
import torch

import convexlayers as cl
from convexlayers import Status
from trust.families import FAMILIES


def status_of(solver, objective, constraints, parameters=(), values=(), **options):
    """Names of the statuses."""
    problem = cp.Problem(objective, constraints)
    layer = cl.ConvexLayer(
        problem, list(parameters), problem.variables()[:1], solver=solver, on_failure="nan", **options
    )
    solution = layer.solve(*values)
    value = solution.values[0].reshape(*solution.status.shape, -1)
    assert torch.equal(value.isnan().all(-1), ~solution.solved)
    assert torch.equal(value.isnan().any(-1), ~solution.solved)
    return [Status(code).name for code in solution.status.reshape(-1).tolist()]


def objectives(x):
    """A linear and a quadratic one, and one with a second-order cone."""
    return {"linear": cp.sum(x), "quadratic": cp.sum_squares(x), "norm": cp.norm(x - 1, 2)}


@pytest.mark.parametrize("kind", ["linear", "quadratic", "norm"])
@pytest.mark.parametrize("bounded", [False, True])
def test_infeasible_by_equality(solver, kind, bounded):
    x = cp.Variable(3)
    constraints = [cp.sum(x) == 1, cp.sum(x) == 2, *([x >= 0] if bounded else [])]
    assert status_of(solver, cp.Minimize(objectives(x)[kind]), constraints) == ["PRIMAL_INFEASIBLE"]


@pytest.mark.parametrize("kind", ["linear", "quadratic", "norm"])
def test_infeasible_by_equality_with_parameters(solver, kind):
    x, a, b = cp.Variable(3), cp.Parameter(), cp.Parameter()
    constraints = [cp.sum(x) == a, 2 * cp.sum(x) == b, x >= 0]
    values = (torch.tensor([1.0, 1.0, 1.0]), torch.tensor([2.0, 3.0, -5.0]))
    found = status_of(solver, cp.Minimize(objectives(x)[kind]), constraints, [a, b], values)
    assert found[1:] == ["PRIMAL_INFEASIBLE", "PRIMAL_INFEASIBLE"]
    assert found[0] == "SOLVED"


@pytest.mark.parametrize("marginals", [1.0, 0.5, 0.2, 0.34, 3.0, 10.0])
def test_infeasible_by_dependent_equalities(solver, marginals):
    """Transport between marginals of different mass: the equalities are dependent, and contradict each other."""
    family = FAMILIES["transport"]
    problem, parameters, _ = family.make()
    values = family.sample(4)
    values[1][:] = marginals
    assert set(status_of(solver, problem.objective, problem.constraints, parameters, values)) == {"PRIMAL_INFEASIBLE"}


@pytest.mark.parametrize("kind", ["linear", "quadratic", "norm"])
@pytest.mark.parametrize("gap", [1e-3, 1.0, 1e3])
def test_infeasible_by_inequality(solver, kind, gap):
    x, low = cp.Variable(3), cp.Parameter()
    constraints = [x <= 1, x >= low]
    found = status_of(solver, cp.Minimize(objectives(x)[kind]), constraints, [low], (torch.tensor([0.0, 1.0 + gap]),))
    assert found[1] == "PRIMAL_INFEASIBLE"
    assert found[0] == "SOLVED"


def test_infeasible_cones(solver):
    x, X = cp.Variable(3), cp.Variable((2, 2), symmetric=True)
    assert status_of(solver, cp.Minimize(cp.sum(x)), [cp.norm(x, 2) <= 1, x[0] == 2]) == ["PRIMAL_INFEASIBLE"]
    assert status_of(solver, cp.Minimize(cp.trace(X)), [X >> 0, X[0, 0] == -1]) == ["PRIMAL_INFEASIBLE"]
    assert status_of(solver, cp.Minimize(x[0]), [cp.exp(x[1]) <= x[0], x[0] == -1]) == ["PRIMAL_INFEASIBLE"]
    power = cp.PowCone3D(x[0], x[1], x[2], 0.3)
    assert status_of(solver, cp.Minimize(x[0]), [power, x[0] == -1]) == ["PRIMAL_INFEASIBLE"]


def test_unbounded_linear_program(solver):
    x, q = cp.Variable(2), cp.Parameter(2)
    values = (torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, -1e-3]]),)
    found = status_of(solver, cp.Minimize(q @ x), [x >= 0, x[0] <= 5], [q], values)
    assert found == ["SOLVED", "DUAL_INFEASIBLE", "DUAL_INFEASIBLE"]


def test_unbounded_when_maximizing(solver):
    x = cp.Variable(2)
    assert status_of(solver, cp.Maximize(cp.sum(x)), [x[0] - x[1] == 1]) == ["DUAL_INFEASIBLE"]


def test_unbounded_without_constraints(solver):
    x = cp.Variable(2)
    assert status_of(solver, cp.Minimize(x[0] + 2 * x[1]), []) == ["DUAL_INFEASIBLE"]


def test_unbounded_along_the_null_space_of_a_quadratic(solver):
    x, P = cp.Variable(2), np.diag([1.0, 0.0])
    assert status_of(solver, cp.Minimize(cp.quad_form(x, P) - x[1]), [x[1] >= -1]) == ["DUAL_INFEASIBLE"]


def test_unbounded_cones(solver):
    x, X = cp.Variable(2), cp.Variable((2, 2), symmetric=True)
    assert status_of(solver, cp.Minimize(cp.norm(x, 2) - 2 * x[0]), []) == ["DUAL_INFEASIBLE"]
    assert status_of(solver, cp.Minimize(-cp.trace(X)), [X >> 0]) == ["DUAL_INFEASIBLE"]
    assert status_of(solver, cp.Minimize(cp.exp(x[0]) + x[0]), []) == ["DUAL_INFEASIBLE"]
    assert status_of(solver, cp.Maximize(cp.geo_mean(x)), []) == ["DUAL_INFEASIBLE"]


@pytest.mark.parametrize("name", FAMILIES)
def test_two_iterations_are_not_enough(solver, name):
    family = FAMILIES[name]
    problem, parameters, variables = family.make()
    layer = cl.ConvexLayer(
        problem, parameters, variables, solver=solver, on_failure="nan", max_iterations=2, **family.options
    )
    solution = layer.solve(*family.sample(4))
    assert (solution.status == int(Status.MAX_ITERATIONS)).all()
    assert (solution.iterations <= 2).all()


def test_out_of_iterations_on_top_of_the_solution_is_solved(solver):
    """The measured residuals decide, not the reason for stopping."""
    problem, parameters, variables = FAMILIES["dense_qp"].make()
    values = FAMILIES["dense_qp"].sample(1)
    options = {"solver": solver, "on_failure": "nan"}
    needed = int(cl.ConvexLayer(problem, parameters, variables, **options).solve(*values).iterations)
    for iterations in range(1, needed + 1):
        layer = cl.ConvexLayer(problem, parameters, variables, max_iterations=iterations, **options)
        solution = layer.solve(*values)
        accurate = solution.cone_solution.residuals.largest <= 1e-7
        assert solution.solved == accurate
        assert solution.values[0].isnan().all() == ~accurate


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_data_that_are_not_finite(solver, number):
    x, q = cp.Variable(2), cp.Parameter(2)
    values = (torch.tensor([[1.0, 1.0], [1.0, number]]),)
    assert status_of(solver, cp.Minimize(q @ x), [x >= 0], [q], values) == ["SOLVED", "INVALID_DATA"]


def test_codes_are_stable_and_have_sentences():
    assert {status.name: int(status) for status in Status} == {
        "SOLVED": 0,
        "INACCURATE": 1,
        "PRIMAL_INFEASIBLE": 2,
        "DUAL_INFEASIBLE": 3,
        "MAX_ITERATIONS": 4,
        "NUMERICAL_ERROR": 5,
        "INVALID_DATA": 6,
    }
    assert all(status.sentence.endswith(".") for status in Status)
