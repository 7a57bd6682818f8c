"""Problems without a feasible point can be replaced by the closest feasible ones, differentiable and flagged."""

import cvxpy as cp
import pytest
import torch

import convexlayers as cl
from convexlayers import Status
from convexlayers.errors import SolverError

LOW = torch.tensor([0.0, 3.0, -1.0, 2.0, 0.5], dtype=torch.float64)
INFEASIBLE = torch.tensor([False, True, False, True, False])


def make_layer(solver, cone, **options):
    """Minimize |x - 0.4|^2 subject to x >= low and x <= 1, or |x| <= 1."""
    x, low = cp.Variable(1), cp.Parameter(1, name="low")
    upper = cp.norm(x, 2) <= 1 if cone else x <= 1
    problem = cp.Problem(cp.Minimize(cp.sum_squares(x - 0.4)), [x >= low, upper])
    return cl.ConvexLayer(problem, [low], [x], solver=solver, **options)


@pytest.mark.parametrize("cone", [False, True])
def test_infeasible_elements_are_replaced_and_flagged(solver, cone):
    low = LOW.clone().unsqueeze(-1).requires_grad_()
    solution = make_layer(solver, cone, relax="closest_feasible").solve(low)
    assert (solution.status == int(Status.SOLVED)).all()
    assert torch.equal(solution.relaxed, INFEASIBLE)
    assert torch.equal(solution.violation > 0, INFEASIBLE)
    assert "Relaxed: 2 elements (index 1, 3)" in solution.describe()
    # Halfway between the two bounds; a cone may shift both of its rows, which halves the square of what it costs.
    share = 2 / 3 if cone else 1 / 2
    between = 1 + share * (LOW - 1)
    expected = torch.where(INFEASIBLE, between, torch.maximum(LOW, torch.tensor(0.4).double()))
    assert torch.allclose(solution.values[0][:, 0].detach(), expected, rtol=0, atol=1e-8)
    solution.values[0].sum().backward()
    slopes = torch.tensor([0.0, share, 0.0, share, 1.0], dtype=torch.float64)
    assert torch.allclose(low.grad[:, 0], slopes, rtol=0, atol=1e-7)


@pytest.mark.parametrize("cone", [False, True])
def test_feasible_elements_do_not_notice(solver, cone):
    results = []
    for options in ({}, {"relax": "closest_feasible"}):
        low = LOW.clone().unsqueeze(-1).requires_grad_()
        solution = make_layer(solver, cone, on_failure="nan", **options).solve(low)
        solution.values[0][~INFEASIBLE].sum().backward()
        parts = (solution.values[0], solution.objective, solution.gap, solution.iterations, low.grad)
        results.append([part.detach()[~INFEASIBLE] for part in parts])
    assert all(torch.equal(plain, relaxed) for plain, relaxed in zip(*results, strict=True))


@pytest.mark.parametrize("cone", [False, True])
def test_relaxed_elements_do_not_notice_each_other(solver, cone):
    layer = make_layer(solver, cone, relax="closest_feasible")
    together = layer.solve(LOW.unsqueeze(-1)).values[0]
    alone = torch.cat([layer.solve(low.reshape(1, 1)).values[0] for low in LOW])
    assert torch.equal(together, alone)


def test_only_who_asks_gets_it(solver):
    with pytest.raises(SolverError, match="2 of 5 elements not solved"):
        make_layer(solver, False)(LOW.unsqueeze(-1))
