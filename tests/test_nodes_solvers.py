"""Solvers of nodes: elements on their own, failures as data, restarts, hard problems."""

import node_samples as samples
import pytest
import torch

import convexlayers as cl
from convexlayers.errors import ArgumentError, SolverError
from convexlayers.nodes import (
    LBFGS,
    SQP,
    AugmentedLagrangian,
    DeclarativeNode,
    LevenbergMarquardt,
    Newton,
    Outcome,
    Restarts,
    least_squares_node,
)
from convexlayers.status import Status


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def rosenbrock_residuals(x, y):
    return torch.stack([10 * (y[1] - y[0] ** 2), x[0] - y[0]])


def rosenbrock(x, y):
    return rosenbrock_residuals(x, y).square().sum() / 2


SOLVERS = {
    "newton": Newton(),
    "lbfgs": LBFGS(max_iterations=2000),
    "levenberg_marquardt": LevenbergMarquardt(rosenbrock_residuals),
}


@pytest.mark.parametrize("name", SOLVERS)
def test_a_curved_valley(name):
    """Rosenbrock's: y = (x, x^2)."""
    node = DeclarativeNode(rosenbrock, start=torch.tensor([-1.2, 1.0]), solver=SOLVERS[name])
    x = torch.linspace(0.2, 2.0, 10, dtype=torch.float64).unsqueeze(1).requires_grad_()
    solution = node.solve(x)
    torch.testing.assert_close(solution.y, torch.cat([x, x**2], 1), rtol=1e-8, atol=1e-8)
    (found,) = torch.autograd.grad(solution.y[:, 1].sum(), x)
    torch.testing.assert_close(found, 2 * x.detach(), rtol=1e-6, atol=1e-6)
    assert int(solution.iterations.max()) > int(solution.iterations.min())


CASES = {
    "newton": (samples.PseudoHuber(), Newton()),
    "lbfgs": (samples.PseudoHuber(), LBFGS()),
    "sqp": (samples.Ball(), SQP()),
    "equality": (samples.MinKL(), SQP()),
    "multipliers": (samples.Ball(), AugmentedLagrangian()),
    "multipliers, equality": (samples.MinKL(), AugmentedLagrangian()),
}
CONSTRAINED = pytest.mark.parametrize("solver", [SQP(), AugmentedLagrangian()], ids=["sqp", "multipliers"])


@pytest.mark.parametrize("name", CASES)
def test_an_element_is_the_same_to_the_last_bit_in_any_batch(name):
    """Solution, multipliers, gradient: alone, among others, elsewhere, and beside elements that fail."""
    sample, solver = CASES[name]
    node = DeclarativeNode(
        sample.objective, sample.equalities, sample.inequalities, start=sample.start, solver=solver,
        on_failure="nan", block=8,
    )  # fmt: skip
    xs = sample.inputs(seeded(0), batch=19)

    def everything(*given):
        given = [x.clone().requires_grad_() for x in given]
        solution = node.solve(*given)
        grads = torch.autograd.grad(solution.y.nan_to_num().pow(2).sum(), given)
        parts = [solution.y, solution.equality_multipliers, solution.inequality_multipliers, *grads]
        return [part.detach() for part in parts]

    together = everything(*xs)
    order = torch.randperm(19, generator=seeded(1))
    spoilt = [x.clone() for x in xs]
    spoilt[0][3] = float("nan")
    spoilt[0][10] *= 1e3
    others = torch.ones(19, dtype=torch.bool)
    others[[3, 10]] = False
    shuffled, beside = everything(*(x[order] for x in xs)), everything(*spoilt)
    for mine, moved, near in zip(together, shuffled, beside, strict=True):
        assert torch.equal(mine[order], moved)
        assert torch.equal(mine[others], near[others])
    for i in (0, 7, 18):
        for mine, alone in zip(together, everything(*(x[i : i + 1] for x in xs)), strict=True):
            assert torch.equal(mine[i : i + 1], alone)


def test_least_squares():
    """An exponential fitted to points: the derivative in the data against differences of solutions."""
    times = torch.linspace(0, 1, 8, dtype=torch.float64)
    node = least_squares_node(lambda d, y: y[0] * torch.exp(y[1] * times) - d, start=torch.tensor([1.0, 0.0]))
    data = (2 * torch.exp(-1.5 * times) + 0.05 * samples.normal(seeded(0), 3, 8)).requires_grad_()
    assert torch.autograd.gradcheck(node, (data,))
    assert bool((node.solve(data).stationarity < 1e-12).all())


def test_an_inexact_model_is_not_needed_for_the_exact_derivative():
    """Gauss-Newton ignores the curvature of the residuals; the derivative does not."""
    node = least_squares_node(lambda x, y: torch.stack([y[0] ** 2 - x[0], y[0] - 1]), start=torch.tensor([1.5]))
    x = torch.tensor([[9.0], [0.25]], dtype=torch.float64, requires_grad=True)
    y = node(x)
    (found,) = torch.autograd.grad(y.sum(), x)
    # 2 y (y^2 - x) + y - 1 = 0, so (6 y^2 - 2 x + 1) dy = 2 y dx.
    torch.testing.assert_close(found, (2 * y / (6 * y**2 - 2 * x + 1)).detach())


def test_restarts_find_the_best_minimum_and_say_which():
    """Three valleys; the deepest is elsewhere in each element."""

    def valleys(x, y):
        return -(x * torch.exp(-4 * (y[0] - torch.tensor([-2.0, 0.0, 2.0])) ** 2)).sum() + 1e-3 * y[0] ** 2

    depths = torch.tensor([[3.0, 1.0, 2.0], [1.0, 3.0, 2.0], [1.0, 2.0, 3.0]], dtype=torch.float64)
    start, more = torch.tensor([0.1]), Restarts(points=lambda x: torch.tensor([[-1.9], [1.9]]) + 0 * x[0])
    node = DeclarativeNode(valleys, start=start, restarts=more)
    solution = node.solve(depths)
    torch.testing.assert_close(solution.y[:, 0].round(), torch.tensor([-2.0, 0.0, 2.0], dtype=torch.float64))
    assert solution.start.tolist() == [1, 0, 2]
    random = DeclarativeNode(
        valleys, start=start, restarts=Restarts(7, scale=2.0, seed=5), solver=Newton(max_iterations=30)
    )
    first, second = random.solve(depths), random.solve(depths)
    torch.testing.assert_close(first.y, solution.y)
    assert torch.equal(first.y, second.y)
    assert torch.equal(first.start, second.start)


def test_a_saddle_is_left():
    """Newton's method goes down from next to a saddle; the best of several is a minimum."""
    node = DeclarativeNode(lambda x, y: y[0] ** 4 - x[0] * y[0] ** 2 + y[1] ** 2, start=torch.tensor([1e-3, 1.0]))
    x = torch.tensor([[1.0], [2.0]], dtype=torch.float64)
    solution = node.solve(x)
    torch.testing.assert_close(solution.y[:, 0].abs(), (x[:, 0] / 2).sqrt())
    assert not bool(solution.negative_curvature.any())


@pytest.mark.parametrize("policy", ["raise", "nan"])
def test_failures(policy):
    """An unbounded element, one with NaN, and good ones."""
    node = DeclarativeNode(lambda x, y: x[0] * y[0] ** 2 + y[0], start=torch.tensor([0.4]), on_failure=policy)
    x = torch.tensor([[1.0], [-1.0], [float("nan")], [2.0]], dtype=torch.float64, requires_grad=True)
    if policy == "raise":
        with pytest.raises(SolverError, match="2 of 4 elements") as caught:
            node(x)
        assert caught.value.status.tolist()[2] == int(Status.INVALID_DATA)
        return
    solution = node.solve(x)
    assert solution.solved.tolist() == [True, False, False, True]
    assert solution.y.isnan().squeeze(1).tolist() == [False, True, True, False]
    (found,) = torch.autograd.grad(solution.y.nansum(), x, create_graph=True)
    torch.testing.assert_close(found[:, 0].detach(), torch.tensor([0.5, 0.0, 0.0, 0.125], dtype=torch.float64))
    (second,) = torch.autograd.grad(found.sum(), x)
    torch.testing.assert_close(second[:, 0], torch.tensor([-1.0, 0.0, 0.0, -0.125], dtype=torch.float64))
    assert "INVALID_DATA" in solution.describe()
    with pytest.raises(SolverError):
        solution.raise_for_status()


@CONSTRAINED
def test_contradictory_constraints_are_infeasible(solver):
    node = DeclarativeNode(
        lambda x, y: (y - x).square().sum(), lambda x, y: y[0] - 1, lambda x, y: y[0] + x[0], start=torch.zeros(2),
        on_failure="nan", solver=solver,
    )  # fmt: skip
    x = torch.tensor([[1.0, 0.0], [-3.0, 1.0]], dtype=torch.float64)
    solution = node.solve(x)
    assert solution.solved.tolist() == [False, True]
    assert int(solution.status[0]) == int(Status.PRIMAL_INFEASIBLE)
    torch.testing.assert_close(solution.y[1], torch.tensor([1.0, 1.0], dtype=torch.float64))


@CONSTRAINED
def test_a_nonconvex_feasible_set(solver):
    """The nearest point outside a ball, above a parabola."""

    def outside(x, y):
        return torch.stack([1 - y @ y, y[0] ** 2 / 4 - y[1]])

    node = DeclarativeNode(
        lambda x, y: 0.5 * (y - x).square().sum(), None, outside, start=torch.tensor([0.5, 2.0]), solver=solver
    )
    x = torch.tensor([[0.3, 0.6], [0.4, 2.0], [3.0, 0.5]], dtype=torch.float64, requires_grad=True)
    solution = node.solve(x)
    assert solution.active.tolist() == [[True, False], [False, False], [False, True]]
    torch.testing.assert_close(solution.y[0], (x[0] / x[0].norm()))
    assert torch.autograd.gradcheck(node, (x,))


@CONSTRAINED
def test_nearly_feasible_equalities_do_not_stop_the_method(solver):
    """Kullback-Leibler projections from the uniform distribution, feasible up to rounding from the first step on."""
    sample = samples.MinKL()
    (x,) = sample.inputs(seeded(7), batch=200)
    node = DeclarativeNode(sample.objective, sample.equalities, start=sample.start, solver=solver)
    torch.testing.assert_close(node(x), sample.solve(x), rtol=1e-10, atol=1e-10)


@CONSTRAINED
def test_scales_do_not_matter(solver):
    """Objective times 1e6 or 1e-6, constraint times 1e4 or 1e-4: the same solution and gradient."""
    (x,) = samples.Ball().inputs(seeded(0), batch=4)
    x.requires_grad_()
    (expected,) = torch.autograd.grad(samples.Ball().solve(x).pow(2)[:, 0].sum(), x)
    for f, g in ((1e6, 1e4), (1e-6, 1e-4), (1e6, 1e-4), (1e-6, 1e4)):
        node = DeclarativeNode(
            lambda x, y, f=f: f * 0.5 * (y - x).square().sum(), None, lambda x, y, g=g: g * (y @ y - 1),
            start=torch.zeros(4), solver=solver,
        )  # fmt: skip
        y = node(x)
        torch.testing.assert_close(y, samples.Ball().solve(x), rtol=1e-8, atol=1e-8)
        (found,) = torch.autograd.grad(y.pow(2)[:, 0].sum(), x)
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)


def test_a_solver_of_ones_own():
    """An object with the contract of `NodeSolver`."""

    class Descent:
        tolerance, constrained = 1e-6, False

        def solve(self, problem, start):
            y = start
            for _ in range(300):
                y = y - 0.3 * problem.gradient(y)
            iterations = torch.full((len(y),), 300)
            return Outcome(y, torch.zeros_like(iterations), iterations)

    node = DeclarativeNode(lambda x, y: 0.5 * (y - x).square().sum(), start=torch.zeros(2), solver=Descent())
    x = samples.normal(seeded(0), 3, 2)
    torch.testing.assert_close(node(x), x)
    with pytest.raises(ArgumentError, match="SQP"):
        DeclarativeNode(lambda x, y: y @ y, lambda x, y: y.sum(), start=torch.zeros(2), solver=Descent())
    with pytest.raises(ArgumentError, match="SQP"):
        DeclarativeNode(lambda x, y: y @ y, lambda x, y: y.sum(), start=torch.zeros(2), solver=LBFGS())


def test_wrong_starts():
    with pytest.raises(ArgumentError, match="points"):
        DeclarativeNode(
            lambda x, y: (y - x).square().sum(),
            start=torch.zeros(2),
            restarts=Restarts(points=lambda x: torch.zeros(3)),
        )(torch.zeros(1, 2))
    with pytest.raises(ArgumentError, match="count"):
        Restarts(-1)


@CONSTRAINED
@pytest.mark.parametrize("seed", [0, 2, 3])
def test_random_quadratic_programs(seed, solver):
    """The same solution, gradients and multipliers as `solve_qp`."""
    generator = seeded(seed)
    n, p, q, batch = 5, seed % 2, 4, 6
    L, G, A, x0 = (samples.normal(generator, *shape) for shape in ((n, n), (q, n), (p, n), (n,)))
    P, b, h = L @ L.T + 0.1 * torch.eye(n), A @ x0, G @ x0 + samples.uniform(generator, q)
    linear, right, v = (samples.normal(generator, batch, n), h.expand(batch, q), samples.normal(generator, batch, n))
    c, h = linear.clone().requires_grad_(), right.clone().requires_grad_()
    expected = cl.solve_qp(P, c, G, h, A if p else None, b if p else None, tolerance=1e-10)
    node = DeclarativeNode(
        lambda c, h, y: 0.5 * y @ P @ y + c @ y, (lambda c, h, y: A @ y - b) if p else None, lambda c, h, y: G @ y - h,
        start=torch.zeros(n), solver=solver,
    )  # fmt: skip
    found = node.solve(c, h)
    torch.testing.assert_close(found.y, expected.x, rtol=1e-8, atol=1e-9)
    torch.testing.assert_close(found.inequality_multipliers, expected.duals["G"], rtol=1e-7, atol=1e-8)
    mine, theirs = (torch.autograd.grad(y, (c, h), v) for y in (found.y, expected.x))
    torch.testing.assert_close(mine, theirs, rtol=1e-7, atol=1e-8)


@CONSTRAINED
@pytest.mark.parametrize("seed", [2, 5])
def test_random_nonconvex_problems(seed, solver):
    """Curved constraints of both kinds, an objective with many minima: all solved, derivatives as differences say."""
    generator = seeded(seed)
    n, batch = 3, 16
    W, u, w = (samples.normal(generator, *shape) for shape in ((n, n), (3, n), (n,)))
    node = DeclarativeNode(
        lambda x, y: torch.cos(W @ y).sum() + 0.1 * (y**4).sum() + x @ y,
        (lambda x, y: torch.sin(w @ y) + 0.3 * y[0] ** 2 - 0.2 * x[0]) if seed % 2 else None,
        lambda x, y: torch.cat([(y @ y - 2).reshape(1), (u @ y).square() - 1.5]),
        start=torch.full((n,), 0.1), solver=solver,
    )  # fmt: skip
    x, d, v = (samples.normal(generator, batch, n) for _ in range(3))
    x.requires_grad_()
    solution = node.solve(x)
    assert not bool(solution.negative_curvature.any())
    assert 0.1 < float(solution.active.double().mean()) < 0.9
    (found,) = torch.autograd.grad(solution.y, x, v)
    ahead, behind = node(x.detach() + 1e-5 * d), node(x.detach() - 1e-5 * d)
    torch.testing.assert_close((found * d).sum(1), ((ahead - behind) * v).sum(1) / 2e-5, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("inner", [Newton(), LBFGS(tolerance=1e-3)], ids=["newton", "lbfgs"])
@pytest.mark.parametrize(
    "sample", [s for s in samples.UNIQUE if s.equalities or s.inequalities], ids=lambda s: type(s).__name__
)
def test_multipliers_find_the_closed_form(sample, inner):
    """Ten seeds of every constrained sample, with both inner solvers; derivatives of the solution are the samples'."""
    solver = AugmentedLagrangian(inner=inner)
    xs = [torch.cat(parts) for parts in zip(*(sample.inputs(seeded(seed)) for seed in range(10)), strict=True)]
    node = DeclarativeNode(sample.objective, sample.equalities, sample.inequalities, start=sample.start, solver=solver)
    solution = node.solve(*xs)
    torch.testing.assert_close(solution.y, sample.solve(*xs), rtol=1e-9, atol=1e-9)
    assert not bool(solution.negative_curvature.any())


@CONSTRAINED
def test_many_curved_constraints(solver):
    """Twenty points in their discs, near given ones and near their neighbours; the Hessian is a band."""
    node = DeclarativeNode(
        lambda x, y: 0.5 * (y - x).square().sum() + (1 + (y[1:] - y[:-1]).square().sum(1)).log().sum(),
        None, lambda x, y: y.square().sum(1) - 1, start=torch.zeros(20, 2), solver=solver, block=2,
    )  # fmt: skip
    x, d, v = (2 * samples.normal(seeded(seed), 2, 20, 2) for seed in range(3))
    x.requires_grad_()
    solution = node.solve(x)
    assert 0.3 < float(solution.active.double().mean()) < 1
    assert not bool(solution.negative_curvature.any())
    (found,) = torch.autograd.grad(solution.y, x, v)
    ahead, behind = node(x.detach() + 1e-5 * d), node(x.detach() - 1e-5 * d)
    torch.testing.assert_close((found * d).sum(), ((ahead - behind) * v).sum() / 2e-5, rtol=1e-6, atol=1e-6)


def test_multipliers_with_many_constraints():
    """The projection onto a polytope of 60 halfspaces in 40 dimensions, as `solve_qp` has it."""
    G, h = samples.normal(seeded(0), 60, 40), 0.3 + samples.uniform(seeded(1), 60)
    node = DeclarativeNode(
        lambda x, y: 0.5 * (y - x).square().sum(), None, lambda x, y: G @ y - h, start=torch.zeros(40), block=3,
        solver=AugmentedLagrangian(),
    )  # fmt: skip
    x = samples.normal(seeded(2), 3, 40).requires_grad_()
    expected = cl.solve_qp(torch.eye(40, dtype=torch.float64), -x, G, h, tolerance=1e-10)
    found = node.solve(x)
    torch.testing.assert_close(found.y, expected.x, rtol=1e-8, atol=1e-9)
    assert bool((found.active.sum(1) > 5).all())
    v = samples.normal(seeded(3), 3, 40)
    mine, theirs = (torch.autograd.grad(y, x, v)[0] for y in (found.y, expected.x))
    torch.testing.assert_close(mine, theirs, rtol=1e-7, atol=1e-8)
