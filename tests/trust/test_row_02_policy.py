"""What happens to elements that are not solved: an error that says so, or NaN with zero gradient. Never a number."""

import re

import cvxpy as cp
import pytest
import torch

import convexlayers as cl
from convexlayers import Status
from trust.families import (
    FAMILIES,
    assert_same,
    layer_of,
    leaves,
    make_lp,
    make_simplex,
    randn,
    solve_and_differentiate,
    weights_like,
)

B = 6
BREAKS = [(name, status) for name, family in FAMILIES.items() for status in family.breaks]
UPSTREAM = [float("nan"), float("inf"), -float("inf"), 1e300]


@pytest.mark.parametrize(("name", "status"), BREAKS)
def test_raise_names_count_index_status_and_remedy(solver, name, status):
    family = FAMILIES[name]
    values = family.sample(B)
    for index in (1, 4):
        family.breaks[status](values, index)
    layer = layer_of(name, solver, "raise")
    with pytest.raises(cl.SolverError) as caught:
        layer(*values)
    message = str(caught.value)
    assert "2 of 6 elements" in message
    assert re.search(rf"{status.name}: 2 elements \(index 1, 4\)", message)
    assert status.sentence in message
    assert "SOLVED:" not in message
    expected = torch.zeros(B, dtype=torch.int64)
    expected[[1, 4]] = int(status)
    assert_same(caught.value.status, expected)


def test_raise_is_the_default_and_a_runtime_error(solver):
    problem, parameters, variables = make_simplex()
    layer = cl.ConvexLayer(problem, parameters, variables, solver=solver)
    assert layer.on_failure == "raise"
    with pytest.raises(RuntimeError, match="PRIMAL_INFEASIBLE: 1 element "):
        layer(torch.zeros(5), -1.0)


def test_raise_names_only_the_first_indices_and_keeps_the_batch_shape(solver):
    layer = layer_of("simplex", solver, "raise")
    with pytest.raises(cl.SolverError, match=re.escape("index 0, 1, 2, 3, 4, ...")) as caught:
        layer(torch.zeros(5), -torch.ones(4, 3))
    assert caught.value.status.shape == (4, 3)


def test_raise_for_data_that_is_not_finite(solver):
    layer = layer_of("simplex", solver, "raise")
    with pytest.raises(cl.SolverError, match=r"1 of 3 elements not solved\.\nINVALID_DATA: 1 element \(index 2\)"):
        layer(torch.zeros(5), torch.tensor([1.0, 2.0, float("nan")]))


def test_nan_policy_can_still_raise_later(solver):
    solution = layer_of("simplex", solver).solve(torch.zeros(5), torch.tensor([1.0, -1.0]))
    assert solution.solved.tolist() == [True, False]
    assert "SOLVED: 1 element (index 0)" in solution.describe()
    with pytest.raises(cl.SolverError, match="PRIMAL_INFEASIBLE"):
        solution.raise_for_status()


@pytest.mark.parametrize(("name", "status"), BREAKS)
@pytest.mark.parametrize("upstream", UPSTREAM)
def test_failed_elements_have_zero_gradient_whatever_comes_from_above(solver, name, status, upstream):
    family, layer = FAMILIES[name], layer_of(name, solver)
    values = family.sample(B)
    family.breaks[status](values, 2)
    solution, clean = solve_and_differentiate(layer, values)
    weights = weights_like(solution.values)
    for weight in weights:
        weight[2] = upstream
    solution, grads = solve_and_differentiate(layer, values, weights)
    for value, grad, expected in zip(values, grads, clean, strict=True):
        assert value.shape == grad.shape
        assert (grad[2] == 0).all()
        assert_same(grad, expected)
    assert solution.objective[2].isnan()


@pytest.mark.parametrize("upstream", UPSTREAM)
def test_objective_of_a_failed_element_is_nan_with_zero_gradient(solver, upstream):
    inputs = leaves(FAMILIES["simplex"].sample(B))
    with torch.no_grad():
        inputs[1][2] = -1.0
    solution = layer_of("simplex", solver).solve(*inputs)
    assert solution.objective.isnan().tolist() == [i == 2 for i in range(B)]
    weight = torch.ones(B, dtype=torch.float64)
    weight[2] = upstream
    for grad in torch.autograd.grad(solution.objective, inputs, weight):
        assert (grad[2] == 0).all()
        assert grad.isfinite().all()
        assert (grad[[0, 1, 3, 4, 5]] != 0).any()


@pytest.mark.parametrize("upstream", UPSTREAM)
def test_a_parameter_of_the_whole_batch_gets_the_sum_over_the_solved_elements(solver, upstream):
    layer = layer_of("simplex", solver)
    z, totals = randn(5, seed=1), torch.tensor([1.0, 2.0, -1.0, 3.0], dtype=torch.float64)
    kept = [0, 1, 3]
    weight = randn(4, 5, seed=2)
    expected = solve_and_differentiate(layer, [z, totals[kept]], [weight[kept]])[1]
    weight[2] = upstream
    grad_z, grad_totals = solve_and_differentiate(layer, [z, totals], [weight])[1]
    assert_same(grad_z, expected[0])
    assert_same(grad_totals[kept], expected[1])
    assert grad_totals[2] == 0


LOSSES = {
    "log": lambda x: x.exp().log().sum(),
    "log of negatives": lambda x: (x - 100).log().sum(),
    "sum": lambda x: x.sum(),
    "mean of squares": lambda x: x.square().mean(),
    "root": lambda x: x.square().sum(-1).sqrt().sum(),
    "division": lambda x: (1 / (x - x)).sum(),
    "softmax": lambda x: x.softmax(-1)[..., 0].sum(),
    "sum along the batch": lambda x: x.sum(0).exp().sum(),
}


@pytest.mark.parametrize("loss", LOSSES)
def test_operations_after_the_layer_cannot_bring_nan_back(solver, loss):
    inputs = leaves(FAMILIES["simplex"].sample(B))
    with torch.no_grad():
        inputs[1][0] = -1.0
        inputs[0][3, 1] = float("nan")
    (x,) = layer_of("simplex", solver)(*inputs)
    assert x.isnan().all(-1).tolist() == [i in (0, 3) for i in range(B)]
    LOSSES[loss](x).backward()
    for value in inputs:
        assert (value.grad[[0, 3]] == 0).all()


def test_a_loss_over_solved_elements_only(solver):
    inputs = leaves(FAMILIES["simplex"].sample(B))
    with torch.no_grad():
        inputs[1][2] = -1.0
    solution = layer_of("simplex", solver).solve(*inputs)
    (x,) = solution.values
    loss = torch.where(solution.solved[:, None], x, 0.0).square().sum()
    assert loss.isfinite()
    loss.backward()
    assert (inputs[0].grad[2] == 0).all()
    assert all(value.grad.isfinite().all() for value in inputs)


@pytest.mark.parametrize("upstream", [float("nan"), float("inf")])
def test_nan_from_above_stays_where_it_is_in_solved_elements(solver, upstream):
    """It is the caller's own, so it is neither hidden as a zero nor spread to other elements."""
    layer = layer_of("dense_qp", solver)
    values = FAMILIES["dense_qp"].sample(B)
    solution, clean = solve_and_differentiate(layer, values)
    weights = weights_like(solution.values)
    weights[0][2, 1] = upstream
    _, grads = solve_and_differentiate(layer, values, weights)
    kept = [0, 1, 3, 4, 5]
    for grad, expected in zip(grads, clean, strict=True):
        assert not grad[2].isfinite().all()
        assert_same(grad[kept], expected[kept])


@pytest.mark.parametrize("name", ["dense_qp", "socp", "nearest_correlation", "logistic_regression", "lp"])
@pytest.mark.parametrize("iterations", [1, 2])
def test_an_unconverged_iterate_is_never_a_solution(solver, name, iterations):
    family = FAMILIES[name]
    values = family.sample(B)
    problem, parameters, variables = family.make()
    options = {"solver": solver, "max_iterations": iterations}
    with pytest.raises(cl.SolverError, match="MAX_ITERATIONS: 6 elements"):
        cl.ConvexLayer(problem, parameters, variables, **options)(*values)
    layer = cl.ConvexLayer(problem, parameters, variables, on_failure="nan", **options)
    solution, grads = solve_and_differentiate(layer, values)
    assert (solution.status == int(Status.MAX_ITERATIONS)).all()
    assert all(value.isnan().all() for value in (*solution.values, solution.objective))
    assert all((grad == 0).all() for grad in grads)


def test_duals_of_failed_elements_are_nan_and_no_certificates(solver):
    problem, parameters, variables = make_lp()
    duals = [constraint.dual_variables[0] for constraint in problem.constraints]
    layer = cl.ConvexLayer(problem, parameters, [*variables, *duals], solver=solver, on_failure="nan")
    values = FAMILIES["lp"].sample(B)
    FAMILIES["lp"].breaks[Status.PRIMAL_INFEASIBLE](values, 1)
    FAMILIES["lp"].breaks[Status.DUAL_INFEASIBLE](values, 5)
    for value in layer(*values):
        assert value.isnan().flatten(1).all(1).tolist() == [i in (1, 5) for i in range(B)]


def test_geometric_program_at_values_without_a_logarithm(solver):
    problem, parameters, variables = FAMILIES["geometric"].make()
    layer = cl.ConvexLayer(problem, parameters, variables, solver=solver, gp=True, on_failure="nan", validate=False)
    c = torch.tensor([1.0, 0.0, -1.0, 2.0], dtype=torch.float64, requires_grad=True)
    solution = layer.solve(c, 5.0)
    assert solution.status.tolist() == [0, int(Status.INVALID_DATA), int(Status.INVALID_DATA), 0]
    solution.values[0].log().sum().backward()
    assert c.grad[1:3].tolist() == [0, 0]
    assert (c.grad[[0, 3]] > 0).all()


def test_infeasible_without_any_parameter(solver):
    x = cp.Variable(2)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(x)), [cp.sum(x) == 1, x <= 0])
    with pytest.raises(cl.SolverError, match="1 of 1 element not solved"):
        cl.ConvexLayer(problem, [], [x], solver=solver)()
    (value,) = cl.ConvexLayer(problem, [], [x], solver=solver, on_failure="nan")()
    assert value.shape == (2,)
    assert value.isnan().all()
