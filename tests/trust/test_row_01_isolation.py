"""One infeasible, unbounded, NaN or Inf element among many: the others are what they are without it."""

import pytest
import torch

import convexlayers as cl
from convexlayers import Status
from trust.families import FAMILIES, assert_same, layer_of, make_lp, randn, solve_and_differentiate, weights_like

B = 5
NUMBERS = {"nan": float("nan"), "inf": float("inf"), "-inf": -float("inf")}
BREAKS = [(name, status) for name, family in FAMILIES.items() for status in family.breaks]


def assert_others_untouched(layer, values, broken, statuses):
    """The elements in `broken` have `statuses`; all others are as in a batch without them."""
    kept = [i for i in range(B) if i not in broken]
    alone_values = [value[kept] for value in values]
    weights = weights_like([torch.empty(B, *info.shape, dtype=torch.float64) for info in layer.program.outputs])
    solution, grads = solve_and_differentiate(layer, values, weights)
    alone, alone_grads = solve_and_differentiate(layer, alone_values, [weight[kept] for weight in weights])
    assert solution.status[broken].tolist() == [int(status) for status in statuses]
    assert alone.solved.all()
    for name in ("status", "iterations", "objective", "primal_residual", "dual_residual", "gap"):
        assert_same(getattr(solution, name)[kept], getattr(alone, name))
    for value, expected in zip(solution.values, alone.values, strict=True):
        assert value[broken].isnan().all()
        assert_same(value[kept], expected)
    for grad, expected in zip(grads, alone_grads, strict=True):
        assert (grad[broken] == 0).all()
        assert_same(grad[kept], expected)


@pytest.mark.parametrize(("name", "status"), BREAKS)
@pytest.mark.parametrize("index", [0, 3])
def test_infeasible_or_unbounded_element(solver, name, status, index):
    family = FAMILIES[name]
    values = family.sample(B)
    family.breaks[status](values, index)
    assert_others_untouched(layer_of(name, solver), values, [index], [status])


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("number", NUMBERS)
def test_element_that_is_not_finite(solver, name, number):
    family = FAMILIES[name]
    for position in range(len(family.sample(1))):
        values = family.sample(B)
        # One entry of one parameter of the last element; both of a symmetric pair where there is one.
        value = values[position][-1]
        value[(0,) * value.ndim] = NUMBERS[number]
        assert_others_untouched(layer_of(name, solver), values, [B - 1], [Status.INVALID_DATA])


def test_all_kinds_at_once(solver):
    family = FAMILIES["lp"]
    values = family.sample(B)
    family.breaks[Status.PRIMAL_INFEASIBLE](values, 0)
    family.breaks[Status.DUAL_INFEASIBLE](values, 1)
    values[0][3, 2] = float("nan")
    values[1][4, 0, 0] = float("inf")
    expected = [Status.PRIMAL_INFEASIBLE, Status.DUAL_INFEASIBLE, Status.INVALID_DATA, Status.INVALID_DATA]
    assert_others_untouched(layer_of("lp", solver), values, [0, 1, 3, 4], expected)


def test_nan_in_a_symmetric_parameter_off_the_diagonal(solver):
    values = FAMILIES["nearest_correlation"].sample(B)
    values[0][2, 0, 1] = values[0][2, 1, 0] = float("nan")
    assert_others_untouched(layer_of("nearest_correlation", solver), values, [2], [Status.INVALID_DATA])


def test_no_element_solved(solver):
    values = FAMILIES["lp"].sample(B)
    values[2][:] = -1.0
    solution, grads = solve_and_differentiate(layer_of("lp", solver), values)
    assert (solution.status == int(Status.PRIMAL_INFEASIBLE)).all()
    assert all(value.isnan().all() for value in solution.values)
    assert all((grad == 0).all() for grad in grads)


@pytest.mark.parametrize("threads", [1, 3])
def test_whatever_the_number_of_threads(solver, threads):
    problem, parameters, variables = make_lp()
    layer = cl.ConvexLayer(problem, parameters, variables, solver=solver, on_failure="nan", threads=threads)
    values = FAMILIES["lp"].sample(B)
    FAMILIES["lp"].breaks[Status.DUAL_INFEASIBLE](values, 2)
    assert_others_untouched(layer, values, [2], [Status.DUAL_INFEASIBLE])
    assert_same(layer.solve(*values).variables, layer_of("lp", solver).solve(*values).variables)


def test_element_with_a_singular_derivative(solver):
    """Here the others are solved by other means than their neighbour, and must not notice."""
    q, A, b = FAMILIES["lp"].sample(B)
    # The third element: two columns and two costs are equal, so that its solution is not unique.
    q[2] = torch.tensor([-1.0, -1.0, 2.0, 3.0])
    A[2, :, 1] = A[2, :, 0]
    kept = [0, 1, 3, 4]
    weights = [randn(B, 4, seed=7)]
    layer = layer_of("lp", solver)
    with pytest.warns(cl.errors.DerivativeWarning, match="first index 2"):
        solution, grads = solve_and_differentiate(layer, [q, A, b], weights)
    assert solution.derivative_report.rank_deficient.tolist() == [i == 2 for i in range(B)]
    _, alone = solve_and_differentiate(layer, [v[kept] for v in (q, A, b)], [weights[0][kept]])
    for grad, expected in zip(grads, alone, strict=True):
        assert_same(grad[kept], expected)
