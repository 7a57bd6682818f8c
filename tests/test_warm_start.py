"""Warm starting: fewer iterations, the same solutions, and nothing that a bad point could do."""

import pytest
import torch

import convexlayers as cl
from convexlayers.cones import Cones
from convexlayers.engines import make_engine
from convexlayers.errors import ArgumentError
from convexlayers.testing import random_program

ENGINES = ["native", "torch", "clarabel", "scs", "diffcp"]
CONES = {
    "linear": Cones(zero=2, nonnegative=6),
    "second_order": Cones(nonnegative=2, second_order=(3, 4)),
    "psd": Cones(zero=1, psd=(3, 2)),
    "exponential": Cones(nonnegative=2, exponential=2),
    "power": Cones(zero=1, power=(0.3, 0.6)),
}


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def arguments(kind, batch=(5,), change=0.0):
    """The arguments of `solve_cone_program`, q moved by a share of its size."""
    problem = random_program(CONES[kind], batch=batch)
    q = problem.q * (1 + change * normal(*problem.q.shape, seed=7))
    return {"P": problem.P, "q": q, "A": problem.A, "b": problem.b, "cones": CONES[kind]}


def assert_same_solution(first, second, tolerance):
    for name in ("x", "s", "z"):
        assert torch.allclose(getattr(first, name), getattr(second, name), rtol=0, atol=tolerance), name


@pytest.mark.parametrize("kind", CONES)
@pytest.mark.parametrize("solver", ENGINES)
def test_same_solution(solver, kind):
    if solver == "diffcp" and kind == "power":
        pytest.skip("diffcp has no power cones")
    # Where cones are curved, an unrefined solution is only good to the square root of the gap.
    tolerance = {"native": 1e-9, "torch": 1e-8, "clarabel": 1e-8, "scs": 1e-5, "diffcp": 1e-3}[solver]
    previous = cl.solve_cone_program(**arguments(kind), solver=solver)
    for change in (0.0, 1e-3, 0.3):
        moved = arguments(kind, change=change)
        cold = cl.solve_cone_program(**moved, solver=solver)
        warm = cl.solve_cone_program(**moved, solver=solver, warm_start=previous)
        assert_same_solution(warm, cold, tolerance)


@pytest.mark.parametrize("kind", CONES)
def test_native_needs_a_step_or_two_nearby(kind):
    previous = cl.solve_cone_program(**arguments(kind), solver="native")
    again = cl.solve_cone_program(**arguments(kind), solver="native", warm_start=previous)
    assert (again.iterations <= 2).all()
    nearby = cl.solve_cone_program(**arguments(kind, change=1e-4), solver="native", warm_start=previous)
    assert (nearby.iterations <= 3).all()
    assert (previous.iterations > 3).all()


def test_scs_needs_fewer_iterations():
    previous = cl.solve_cone_program(**arguments("second_order"), solver="scs")
    moved = arguments("second_order", change=1e-4)
    cold = cl.solve_cone_program(**moved, solver="scs")
    warm = cl.solve_cone_program(**moved, solver="scs", warm_start=previous)
    assert warm.iterations.sum() < cold.iterations.sum()


@pytest.mark.parametrize("kind", CONES)
def test_a_point_that_does_not_help_changes_no_bit(kind):
    moved = arguments(kind)
    cold = cl.solve_cone_program(**moved, solver="native")
    far = random_program(CONES[kind], batch=(5,), seed=99)
    previous = cl.solve_cone_program(far.P, 1e3 * far.q, far.A, far.b, CONES[kind], solver="native", on_failure="nan")
    warm = cl.solve_cone_program(**moved, solver="native", warm_start=previous)
    cold_again = warm.iterations > cold.iterations
    assert cold_again.any()
    for name in ("x", "s", "z"):
        assert torch.equal(getattr(warm, name)[cold_again], getattr(cold, name)[cold_again])
    assert_same_solution(warm, cold, 1e-9)


@pytest.mark.parametrize("kind", CONES)
def test_independent_of_neighbours(kind):
    moved = arguments(kind, batch=(11,), change=1e-2)
    previous = cl.solve_cone_program(**arguments(kind, batch=(11,)), solver="native")
    together = cl.solve_cone_program(**moved, solver="native", warm_start=previous)
    for i in range(11):
        own = {name: value[i : i + 1] if isinstance(value, torch.Tensor) else value for name, value in moved.items()}
        one = {
            name: value[i : i + 1] if isinstance(value, torch.Tensor) else value
            for name, value in arguments(kind, batch=(11,)).items()
        }
        before = cl.solve_cone_program(**one, solver="native")
        alone = cl.solve_cone_program(**own, solver="native", warm_start=before)
        for name in ("x", "s", "z"):
            assert torch.equal(getattr(alone, name)[0], getattr(together, name)[i])


def test_failed_elements_begin_anew():
    G = torch.tensor([[1.0], [-1.0]], dtype=torch.float64)
    h = torch.tensor([[1.0, 0.0], [-1.0, 0.0]], dtype=torch.float64)
    P, q = torch.ones(1, 1, dtype=torch.float64), torch.ones(2, 1, dtype=torch.float64)
    previous = cl.solve_qp(P, q, G, h, on_failure="nan")
    assert previous.solved.tolist() == [True, False]
    again = cl.solve_qp(P, q, G, h, on_failure="nan", warm_start=previous)
    assert again.status.tolist() == previous.status.tolist()
    repaired = cl.solve_qp(P, q, G, h.abs(), warm_start=previous)
    assert torch.allclose(repaired.x, cl.solve_qp(P, q, G, h.abs()).x, rtol=0, atol=1e-12)


def test_element_that_became_infeasible():
    G = torch.tensor([[1.0], [-1.0]], dtype=torch.float64)
    P, q = torch.ones(1, 1, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    previous = cl.solve_qp(P, q, G, torch.tensor([1.0, 1.0], dtype=torch.float64))
    h = torch.tensor([[-1.0, 0.5], [1.0, 1.0]], dtype=torch.float64)
    cold = cl.solve_qp(P, q, G, h, on_failure="nan")
    warm = cl.solve_qp(P, q, G, h, on_failure="nan", warm_start=previous)
    assert warm.status.tolist() == cold.status.tolist()
    assert torch.allclose(warm.x, cold.x, rtol=0, atol=1e-12, equal_nan=True)


@pytest.mark.parametrize("solver", ["native", "scs"])
def test_gradients(solver):
    grads = []
    previous = cl.solve_cone_program(**arguments("second_order"), solver=solver)
    for start in (None, previous):
        moved = arguments("second_order", change=1e-3)
        moved["q"] = moved["q"].requires_grad_()
        cl.solve_cone_program(**moved, solver=solver, warm_start=start).x.sum().backward()
        grads.append(moved["q"].grad)
    assert torch.allclose(*grads, rtol=0, atol={"native": 1e-9, "scs": 1e-5}[solver])


def test_layer_and_iteration_limit():
    import cvxpy as cp

    x, t = cp.Variable(3), cp.Parameter(3, name="t")
    problem = cp.Problem(cp.Minimize(cp.sum_squares(x - t)), [cp.sum(x) == 1, x >= 0])
    layer = cl.ConvexLayer(problem, [t], [x])
    value = normal(4, 3)
    previous = layer.solve(value)
    warm = layer.solve(value + 1e-3, warm_start=previous)
    assert (warm.iterations < previous.iterations).all()
    assert torch.allclose(warm.values[0], layer(value + 1e-3)[0], rtol=0, atol=1e-12)
    # One element's solution for all of them.
    shared = layer.solve(value, warm_start=layer.solve(value[0]))
    assert torch.allclose(shared.values[0], previous.values[0], rtol=0, atol=1e-12)
    # Iterations at a point that did not help are not taken from the limit.
    limited = cl.ConvexLayer(problem, [t], [x], max_iterations=int(previous.iterations.max()))
    assert limited.solve(100 * value.flip(0), warm_start=previous).solved.all()


def test_messages():
    previous = cl.solve_cone_program(**arguments("psd"))
    with pytest.raises(ArgumentError, match="warm_start is a solution with"):
        cl.solve_cone_program(**arguments("linear"), warm_start=previous)
    with pytest.raises(ArgumentError, match=r"warm_start is the solution of a batch \(5,\), expected \(4,\)"):
        cl.solve_cone_program(**arguments("psd", batch=(4,)), warm_start=previous)


def test_plans_take_no_point_for_a_solution():
    """A start that is infinite, or of absurd size, is no worse than none."""
    problem = random_program(CONES["linear"], batch=(3,))
    plan = make_engine("native").setup(problem.program)
    cold = plan.solve(problem.theta)
    for number in (torch.inf, 1e300, -1e200):
        warm = plan.solve(problem.theta, tuple(torch.full_like(v, number) for v in (cold.x, cold.s, cold.z)))
        assert torch.equal(warm.x, cold.x)
        assert warm.all_solved
