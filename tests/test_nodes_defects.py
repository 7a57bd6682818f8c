"""What was found wrong in the declarative networks that went before, each as a test."""

import math

import node_samples as samples
import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from convexlayers.nodes import LBFGS, SQP, AugmentedLagrangian, DeclarativeNode, Newton, Restarts

# How the solution is found: by a solve of one's own, or by a solver of ours.
FOUND_BY = pytest.mark.parametrize("solver", [None, SQP(), AugmentedLagrangian()], ids=["own", "sqp", "multipliers"])
SPHERE, BALL = samples.Sphere(), samples.Ball()


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def projection(equalities=None, inequalities=None, **options):
    return DeclarativeNode(lambda x, y: 0.5 * (y - x).square().sum(), equalities, inequalities, **options)


def test_a_linear_equality_is_respected_by_the_gradient():
    """y stays on A y = d, so A dy = 0: the derivative of a projection is I - A'(A A')^-1 A."""
    A = samples.normal(seeded(0), 2, 5)
    d = samples.normal(seeded(1), 2)
    P = torch.eye(5) - A.T @ torch.linalg.solve(A @ A.T, A)
    offset = A.T @ torch.linalg.solve(A @ A.T, d)
    node = projection(lambda x, y: A @ y - d, solver=lambda x: x @ P.T.to(x) + offset, tolerance=1e-10)
    x = samples.normal(seeded(2), 3, 5).requires_grad_()
    for i in range(5):
        (row,) = torch.autograd.grad(node(x)[:, i].sum(), x)
        torch.testing.assert_close(row, P[i].double().expand(3, 5))
    assert gradcheck(node, (x,))


@pytest.mark.parametrize("error", [1e-13, 1e-11, 1e-9, 1e-7])
@pytest.mark.parametrize("side", [-1.0, 1.0])
def test_an_active_inequality_is_kept_when_the_solver_is_not_exact(error, side):
    """The tolerance of the active set is that of the solver, not 1e-12."""
    (x,) = SPHERE.inputs(seeded(0), batch=4)
    x = (1.5 * x / x.norm(dim=1, keepdim=True)).requires_grad_()
    node = projection(
        None, BALL.inequalities, solver=lambda x: (1 + side * error) * BALL.solve(x), tolerance=max(error, 1e-12)
    )
    solution = node.solve(x)
    assert bool(solution.active.all())
    assert not bool(solution.weakly_active.any())
    v = samples.normal(seeded(1), 4, 4)
    (found,) = torch.autograd.grad(solution.y, x, v)
    (expected,) = torch.autograd.grad(BALL.solve(x), x, v)
    torch.testing.assert_close(found, expected, rtol=0, atol=20 * max(error, 1e-12))


@pytest.mark.parametrize("off", [0.0, 1e-15, -1e-15, 1e-12])
def test_an_inequality_that_only_touches_is_flagged(off):
    """At |x| = 1 the projection onto the ball has one-sided derivatives."""
    (x,) = SPHERE.inputs(seeded(0), batch=2)
    x = ((1 + off) * x / x.norm(dim=1, keepdim=True)).requires_grad_()
    solution = projection(None, BALL.inequalities, solver=BALL.solve).solve(x)
    assert bool(solution.weakly_active.all())
    (found,) = torch.autograd.grad(solution.y.sum(), x)
    torch.testing.assert_close(found, torch.ones_like(x))


@FOUND_BY
def test_duplicate_constraints(solver):
    """The sphere, twice and scaled."""

    def twice(x, y):
        return torch.stack([y @ y - 1, 3 * (1 - y @ y)])

    options = {"start": SPHERE.start, "solver": solver} if solver else {"solver": SPHERE.solve}
    (x,) = SPHERE.inputs(seeded(0))
    x.requires_grad_()
    solution = projection(twice, **options).solve(x)
    assert bool(solution.rank_deficient.all())
    v = samples.normal(seeded(1), 3, 4)
    (found,) = torch.autograd.grad(solution.y, x, v)
    (expected,) = torch.autograd.grad(SPHERE.solve(x), x, v)
    torch.testing.assert_close(found, expected)
    assert float(solution.derivative_report.residual.max()) < 1e-10


def test_duplicate_inequalities():
    def twice(x, y):
        return torch.stack([y @ y - 1, 0.5 * (y @ y - 1)])

    (x,) = BALL.inputs(seeded(0), batch=4)
    x.requires_grad_()
    solution = projection(None, twice, start=torch.zeros(4)).solve(x)
    v = samples.normal(seeded(1), 4, 4)
    (found,) = torch.autograd.grad(solution.y, x, v)
    (expected,) = torch.autograd.grad(BALL.solve(x), x, v)
    torch.testing.assert_close(found, expected)


@FOUND_BY
def test_overdetermined_active_sets(solver):
    """Three constraints meet at a corner of the plane; the projection there is constant."""

    def corner(x, y):
        return torch.stack([y[0], y[1], y[0] + y[1]])

    options = {"start": torch.full((2,), -1.0), "solver": solver} if solver else {"solver": lambda x: x.clamp(max=0)}
    x = torch.tensor([[1.0, 2.0], [0.5, 0.25]], dtype=torch.float64, requires_grad=True)
    solution = projection(None, corner, **options).solve(x)
    torch.testing.assert_close(solution.y, torch.zeros(2, 2, dtype=torch.float64), rtol=0, atol=1e-9)
    (found,) = torch.autograd.grad(solution.y.sum(), x)
    torch.testing.assert_close(found, torch.zeros_like(x), rtol=0, atol=1e-9)
    assert bool(torch.isfinite(solution.inequality_multipliers).all())


@FOUND_BY
def test_linear_programs(solver):
    """minimize c'y on the simplex {y >= 0, b'y = 1}: a vertex, which moves with b and not with c."""
    c = torch.tensor([[3.0, 1.0, 2.0], [-1.0, 0.5, 2.0]], dtype=torch.float64, requires_grad=True)
    b = torch.tensor([[1.0, 2.0, 1.0], [4.0, 1.0, 1.0]], dtype=torch.float64, requires_grad=True)

    def vertex(c, b):
        best = (c / b).argmin(1, keepdim=True)
        return torch.zeros_like(c).scatter(1, best, 1 / b.gather(1, best))

    options = {"start": torch.full((3,), 0.3), "solver": solver} if solver else {"solver": vertex}
    node = DeclarativeNode(lambda c, b, y: c @ y, lambda c, b, y: b @ y - 1, lambda c, b, y: -y, **options)
    y = node(c, b)
    torch.testing.assert_close(y, vertex(c, b), rtol=0, atol=1e-9)
    grad_c, grad_b = torch.autograd.grad(y.sum(), (c, b))
    torch.testing.assert_close(grad_c, torch.zeros_like(c), rtol=0, atol=1e-9)
    expected = torch.tensor([[0.0, -0.25, 0.0], [-1 / 16, 0.0, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(grad_b, expected, rtol=1e-8, atol=1e-9)


def welsch(x, y):
    return (1 - torch.exp(-0.5 * (y[0] - x).square() / 0.25)).sum()


@pytest.mark.parametrize("solver", [Newton(), LBFGS()], ids=["newton", "lbfgs"])
def test_robust_pooling_does_not_couple_elements(solver):
    """Each element has its own curvature, its own step lengths and its own end; and the better of its own starts."""
    x = samples.normal(seeded(0), 9, 8)
    x[:, :3] += 4
    x[4] *= 50
    node = DeclarativeNode(
        welsch, start=lambda x: x.mean().reshape(1), solver=solver,
        restarts=Restarts(points=lambda x: x.unsqueeze(1)),
    )  # fmt: skip
    together = node.solve(x)
    for i in range(9):
        alone = node.solve(x[i : i + 1])
        assert torch.equal(alone.y[0], together.y[i])
        assert int(alone.start) == int(together.start[i])
    # No point of a fine grid is better.
    grid = torch.linspace(-6, 8, 2001, dtype=torch.float64)
    values = (1 - torch.exp(-0.5 * (grid.reshape(1, -1, 1) - x.unsqueeze(1)).square() / 0.25)).sum(2)
    usual = torch.arange(9) != 4
    assert bool((together.objective <= values.amin(1) + 1e-12)[usual].all())


def test_second_derivatives_are_right():
    """Of the projection onto the sphere: not those of a linearization at the solution."""
    (x,) = SPHERE.inputs(seeded(0), batch=2)
    x.requires_grad_()
    node = projection(SPHERE.equalities, solver=SPHERE.solve, tolerance=1e-10)
    v = samples.normal(seeded(1), 2, 4)

    def twice(function):
        (first,) = torch.autograd.grad((function(x) * v).sum(), x, create_graph=True)
        return torch.autograd.grad(first.pow(3).sum(), x)[0]

    torch.testing.assert_close(twice(node), twice(SPHERE.solve))
    assert gradgradcheck(node, (x,))


@pytest.mark.filterwarnings("ignore:The derivative of:convexlayers.errors.DerivativeWarning")
def test_the_centre_of_the_sphere():
    """Every point of the sphere is nearest to its centre. No NaN: zero, flagged, with the residual that says so."""
    x = torch.zeros(2, 3, dtype=torch.float64)
    x[1] = torch.tensor([3.0, 0.0, 4.0])
    x.requires_grad_()

    def solve(x):
        length = x.norm(dim=1, keepdim=True)
        return torch.where(length > 0, x / length, torch.full_like(x, 1 / math.sqrt(3)))

    for options in ({"solver": solve}, {"start": torch.tensor([1.0, 0.5, 0.2])}):
        solution = projection(SPHERE.equalities, **options).solve(x)
        assert bool(solution.y.isfinite().all())
        (found,) = torch.autograd.grad(solution.y[:, 0].sum(), x)
        torch.testing.assert_close(found[0], torch.zeros_like(found[0]), rtol=0, atol=1e-7)
        torch.testing.assert_close(found[1], torch.tensor([0.128, 0.0, -0.096], dtype=torch.float64))
        assert solution.rank_deficient.tolist() == [True, False]
        assert solution.derivative_report.residual[0] > 0.1
        assert solution.derivative_report.residual[1] < 1e-12


def test_a_shrunken_circle():
    """Radius zero: the constraint's gradient vanishes at the only point. Finite, and flagged."""
    sample = samples.ConstantOnCircle()
    x = torch.tensor([[0.0], [2.0]], dtype=torch.float64, requires_grad=True)
    node = DeclarativeNode(sample.objective, sample.equalities, solver=sample.solve, on_failure="nan")
    (found,) = torch.autograd.grad(node(x)[1].sum(), x)
    torch.testing.assert_close(found, torch.tensor([[0.0], [-math.sqrt(2)]], dtype=torch.float64))
