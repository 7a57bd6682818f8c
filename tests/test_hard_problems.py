"""Hard QPs through the public functions and the native engine: solved to 1e-6, or an honest status."""

import sys
from pathlib import Path

import cvxpy as cp
import pytest
import torch
from scipy.optimize import linprog

import convexlayers as cl
from convexlayers import Status
from convexlayers.engines import rescue
from convexlayers.testing import hard_qps, random_qp

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

from families import FAMILIES

INF = float("inf")
STATUS = {
    "solved": Status.SOLVED,
    "infeasible": Status.PRIMAL_INFEASIBLE,
    "unbounded": Status.DUAL_INFEASIBLE,
}


def vector(*values):
    return torch.tensor(values, dtype=torch.float64)


def solve(qp, solver="native", **options):
    return cl.solve_qp(**qp.arguments(), solver=solver, on_failure="nan", **options)


def status_of(solution):
    return Status(int(solution.status))


@pytest.mark.parametrize("solver", ["native", "torch"])
@pytest.mark.parametrize("qp", hard_qps(), ids=lambda qp: qp.name)
def test_hard_qps_are_solved_or_named(qp, solver):
    solution = solve(qp, solver)
    assert status_of(solution) == STATUS[qp.outcome]
    assert not bool(solution.rescued)
    if qp.outcome != "solved":
        return
    assert qp.residual(solution.x, *qp.multipliers(solution.duals)) <= 1e-6
    optimum = qp.objective(qp.x)
    assert abs(float(solution.objective) - optimum) <= 1e-6 * max(1.0, abs(optimum))
    if qp.unique:
        assert (solution.x - qp.x).abs().max() <= 1e-6 * max(1.0, float(qp.x.abs().max()))


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("n", [10, 20, 50, 100, 220])
def test_random_qps_agree_with_a_tight_solve_by_another_method(n, sparse):
    qp = random_qp(n, sparse=sparse)
    solution, other = solve(qp), solve(qp, "clarabel", tolerance=1e-11)
    assert status_of(solution) == status_of(other) == Status.SOLVED
    assert not bool(solution.rescued)
    assert qp.residual(solution.x, *qp.multipliers(solution.duals)) <= 1e-6
    assert abs(float(solution.objective - other.objective)) <= 1e-8 * abs(float(other.objective))
    # The dense ones have condition numbers above 1e6.
    assert (solution.x - other.x).abs().max() <= (1e-7 if sparse else 1e-4) * float(other.x.abs().max())


def test_nothing_that_claims_to_be_solved_is_not():
    """Many more of the same: every status is that of the construction, and hardly any needs a second method."""
    qps = hard_qps(25, seed=1)
    rescued = 0
    for qp in qps:
        solution = solve(qp)
        assert status_of(solution) == STATUS[qp.outcome], qp.name
        if qp.outcome == "solved":
            assert qp.residual(solution.x, *qp.multipliers(solution.duals)) <= 1e-6, qp.name
        rescued += int(solution.rescued)
    assert rescued <= 1


def test_nearly_linear_objectives_with_dense_equalities():
    """P = 1e-6 I: the pivots of the equalities cost more accuracy than there is of P, and most solves start anew."""
    generator = torch.Generator().manual_seed(0)
    v = torch.randn(16, 20, generator=generator, dtype=torch.float64)
    x, G, A = (
        torch.rand(16, *shape, generator=generator, dtype=torch.float64) for shape in ((100,), (20, 100), (20, 100))
    )
    q, h = -torch.einsum("bij,bi->bj", G, (-v).clamp(min=0)), torch.einsum("bij,bj->bi", G, x) + v.clamp(min=0)
    P, b = 1e-6 * torch.eye(100, dtype=torch.float64), torch.einsum("bij,bj->bi", A, x)
    solution = cl.solve_qp(P, q, G, h, A, b, solver="native")
    assert solution.cone_solution.residuals.largest.max() <= 1e-7
    # Without the second start it is every one of them.
    assert solution.rescued.sum() <= 4


# ------------------------------------------------------------------------------------------- large and infinite numbers


def box_qp(seed, quadratic):
    """A QP or LP over a box of width two, with general rows."""
    generator = torch.Generator().manual_seed(seed)
    F, q, G, x = (
        torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((6, 6), (6,), (8, 6), (6,))
    )
    P = F @ F.T / 6 + torch.eye(6, dtype=torch.float64) if quadratic else None
    return {"P": P, "q": q, "G": G, "h": G @ x + 0.3, "lb": x - 1, "ub": x + 1}


@pytest.mark.parametrize("quadratic", [False, True])
@pytest.mark.parametrize("size", [1e6, 1e9, 1e12, 1e20, 1e50, 1e300])
@pytest.mark.parametrize("where", ["h", "ub", "lb"])
def test_a_huge_bound_is_no_bound(where, size, quadratic):
    for seed in range(3):
        free, huge = box_qp(seed, quadratic), box_qp(seed, quadratic)
        sign = -1.0 if where == "lb" else 1.0
        free[where][0], huge[where][0] = sign * INF, sign * size
        expected, found = (cl.solve_qp(**given, solver="native") for given in (free, huge))
        assert (found.x - expected.x).abs().max() <= 1e-8
        assert not bool(found.rescued)


@pytest.mark.parametrize("solver", ["native", "torch", "clarabel", "scs"])
@pytest.mark.parametrize("ridge", [1e-6, 1e-7, 1e-8, 1e-9, 1e-10, 1e-12])
def test_a_small_ridge_is_no_unit(ridge, solver):
    """The minimum of the objective alone is at 1 / ridge; constraints of size one are not rounding beside it."""
    generator = torch.Generator().manual_seed(7)
    q = -torch.rand(20, 5, generator=generator, dtype=torch.float64) - 0.5
    G, ones = torch.rand(20, 3, 5, generator=generator, dtype=torch.float64), torch.ones(3, dtype=torch.float64)
    P = ridge * torch.eye(5, dtype=torch.float64)
    solution = cl.solve_qp(P, q, G, ones, lb=0.0, solver=solver)
    assert ((G @ solution.x.unsqueeze(-1)).squeeze(-1) - ones).max() <= 1e-7
    assert solution.x.min() >= -1e-7
    for i in range(20):
        vertex = linprog(q[i].numpy(), G[i].numpy(), ones.numpy())
        # The ridge at the vertex is what it may cost, and it is never less than nothing.
        cost = 0.5 * ridge * float((vertex.x**2).sum())
        assert -1e-7 <= float(solution.objective[i]) - vertex.fun <= cost + 1e-7


@pytest.mark.parametrize("solver", ["native", "torch", "clarabel"])
@pytest.mark.parametrize("small", [1e-17, 1e-12, 1e-9, 1e-8, 1e-6])
def test_small_entries_beside_the_diagonal_are_no_unit(small, solver):
    """Nearly uncorrelated assets: most entries of P are tiny, and say nothing of the size of x."""
    n, generator = 12, torch.Generator().manual_seed(8)
    off = torch.randn(n, n, generator=generator, dtype=torch.float64)
    P = torch.eye(n, dtype=torch.float64) + small * (off + off.T)
    q = torch.randn(10, n, generator=generator, dtype=torch.float64)
    solution = cl.solve_qp(P, q, lb=0.0, solver=solver)
    assert torch.allclose(solution.x, (-q).clamp(min=0), rtol=0, atol=1e-7 + 100 * small)


@pytest.mark.parametrize("solver", ["native", "torch", "clarabel"])
@pytest.mark.parametrize("size", [1e-30, 1e-20, 1e-12, 1e-10, 1e-9, 1e-7])
def test_what_rounding_leaves_of_a_zero_is_no_unit(size, solver):
    """Costs that are nothing beside those of the entropy do not make a solution of entropy alone look accurate."""
    y, q = cp.Variable(3), cp.Parameter(3)
    problem = cp.Problem(cp.Minimize(-cp.sum(cp.entr(y)) + q @ y), [cp.sum(y) == 1])
    layer = cl.ConvexLayer(problem, [q], [y], solver=solver)
    (found,) = layer(size * vector(1.0, 2.0, 3.0))
    assert torch.allclose(found, torch.softmax(-size * vector(1.0, 2.0, 3.0), -1), rtol=0, atol=1e-8)


@pytest.mark.parametrize("solver", ["native", "torch", "clarabel"])
@pytest.mark.parametrize("size", [1e8, 1e10, 1e14, 1e18, 1e50])
@pytest.mark.parametrize("where", ["h", "ub", "q"])
def test_one_large_entry_is_no_proof(where, size, solver):
    """A bounded, feasible problem is not called otherwise, whatever else becomes of it."""
    for seed in range(4):
        given = box_qp(seed, True)
        given[where][0] = size
        status = status_of(cl.solve_qp(**given, solver=solver, on_failure="nan"))
        assert status not in (Status.PRIMAL_INFEASIBLE, Status.DUAL_INFEASIBLE)


@pytest.mark.parametrize("solver", ["native", "torch", "clarabel"])
@pytest.mark.parametrize("size", [1e2, 1e6, 1e10])
def test_a_large_contradiction_is_one(size, solver):
    given = box_qp(0, True)
    row = vector(1.0, -2.0, 0.5, 1.0, 1.0, 3.0)
    solution = cl.solve_qp(**given, A=row.unsqueeze(0), b=vector(size), solver=solver, on_failure="nan")
    assert status_of(solution) == Status.PRIMAL_INFEASIBLE


def test_infinite_right_sides_of_cone_programs():
    """Rows of the nonnegative cone only; the others have no such meaning."""
    P, q = torch.eye(2, dtype=torch.float64), vector(-1.0, -2.0)
    A, b = torch.eye(2, dtype=torch.float64).requires_grad_(), vector(0.5, INF).requires_grad_()
    solution = cl.solve_cone_program(P, q, A, b, {"nonnegative": 2})
    assert torch.allclose(solution.x, vector(0.5, 2.0), rtol=0, atol=1e-8)
    grad_A, grad_b = torch.autograd.grad(solution.x.sum(), [A, b])
    assert torch.allclose(grad_b, vector(1.0, 0.0), rtol=0, atol=1e-8)
    assert (grad_A[1] == 0).all()
    for cones in ({"zero": 2}, {"second_order": [2]}):
        failed = cl.solve_cone_program(P, q, A, b, cones, on_failure="nan")
        assert status_of(failed) == Status.INVALID_DATA


def test_infinite_right_sides_differ_across_the_batch():
    P, q, A = torch.eye(1, dtype=torch.float64), vector(-1.0), torch.eye(1, dtype=torch.float64)
    b = vector(0.5, INF, 1e20, -1.0).unsqueeze(-1)
    x = cl.solve_cone_program(P, q, A, b, {"nonnegative": 1}).x
    assert torch.allclose(x.squeeze(-1), vector(0.5, 1.0, 1.0, -1.0), rtol=0, atol=1e-8)


# ------------------------------------------------------------------------------------------- rescue


def test_rescued_elements_are_told(monkeypatch):
    q = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    own = cl.solve_qp(torch.eye(4), q, lb=0.0, solver="native")
    assert own.rescued.shape == (2, 3)
    assert not own.rescued.any()
    assert "Rescued" not in own.describe()
    # One element that is infeasible, so that there is a reason to look; all solved ones go to the second method.
    lb = torch.zeros(2, 3, 4, dtype=torch.float64)
    lb[1, 1, 0] = 3.0
    monkeypatch.setattr(rescue, "RESCUABLE", (Status.SOLVED,) * len(rescue.RESCUABLE))
    found = cl.solve_qp(torch.eye(4), q, lb=lb, ub=2.0, solver="native", on_failure="nan")
    expected = torch.ones(2, 3, dtype=torch.bool)
    expected[1, 1] = False
    assert torch.equal(found.rescued, expected)
    assert "Rescued: 5 elements (index 0, 1, 2, 3, 5)." in found.describe()


def test_other_engines_rescue_nobody():
    assert cl.solve_qp(torch.eye(2), torch.ones(3, 2), solver="clarabel").rescued.tolist() == [False] * 3


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_hardly_any_element_of_the_benchmarks_is_rescued(name):
    """Below 0.1 %: none of 1000 elements."""
    problem, parameters, variables, sample = FAMILIES[name][0]()
    program = cl.compile_problem(problem, parameters, variables)
    with torch.no_grad():
        solution = cl.ConvexLayer.from_program(program, solver="native").solve(*sample(1000))
    assert solution.solved.all()
    assert not solution.rescued.any()
