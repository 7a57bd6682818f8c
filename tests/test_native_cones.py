"""The native engine, cone by cone: solutions and derivatives of every pair, projections at the border of each cone."""

import itertools
from functools import cache, partial

import pytest
import torch

import convexlayers as cl
from convexlayers.cones import Cones, svec
from convexlayers.derivatives import Cotangents
from convexlayers.engines import Clarabel, Native
from convexlayers.engines.base import Plan
from convexlayers.testing import check_solution, complementary_pair, cone_cases, program_at, random_program
from convexlayers.testing.pairs import Sampler

CASES = cone_cases()
by_case = pytest.mark.parametrize("cones", CASES.values(), ids=CASES.keys())
by_rank = pytest.mark.parametrize("rank", [None, 0], ids=["quadratic", "linear"])

# Solved to ten times this (solution.py).
TOLERANCE = 1e-8


def randn(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def uniform(*shape, seed):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def worst(got, expected):
    """The largest error of a row, relative to its norm (at least 1)."""
    return float(((got - expected).norm(dim=-1) / expected.norm(dim=-1).clamp(min=1)).max())


# ------------------------------------------------------------------------------------------- every pair of cones


@by_case
@by_rank
def test_known_solutions(cones, rank):
    """Newton steps leave rounding times condition numbers below 1e3."""
    check_solution(Native(), random_program(cones, batch=(9,), rank=rank, seed=1), 1e-10)


@by_case
@by_rank
@pytest.mark.parametrize("part", ["x", "s", "z", "objective"])
def test_gradients_are_those_of_the_dense_reference(cones, rank, part):
    """In each of P, q, A, b, from each of the outputs."""
    problem = random_program(cones, batch=(9,), rank=rank, seed=1)
    plan = Native().setup(problem.program)
    solution = plan.solve(problem.theta)
    weight = randn(*getattr(solution, part).shape, seed=2)
    cotangents = Cotangents(**{name: weight if name == part else None for name in ("x", "s", "z", "objective")})
    for block in range(len(problem.theta)):
        wanted = [index == block for index in range(len(problem.theta))]
        own, exact = (
            taken(problem.theta, solution, cotangents, wanted)[block]
            for taken in (plan.adjoint, partial(Plan.adjoint, plan))
        )
        # Where s cannot move, its gradient is a difference of terms of size one.
        assert worst(own, exact) <= 1e-9, "PqAb"[block]
    assert float(solution.report.residual.max()) <= 1e-10


@pytest.mark.parametrize("order", range(2, 13))
@pytest.mark.parametrize("activity", ["boundary", "inside", "outside"])
def test_orders_of_semidefinite_cones(order, activity):
    cones = Cones(nonnegative=1, psd=(order,))
    # The solution moves in few directions of a large cone, or there would be 80 variables.
    sampler = Sampler.seeded((4,), order)
    s, z = complementary_pair(cones, sampler, activity)
    problem = program_at(cones, s, z, sampler)
    check_solution(Native(), problem, 1e-10)
    plan = Native().setup(problem.program)
    solution = plan.solve(problem.theta)
    cotangents = Cotangents(randn(*problem.x.shape, seed=1), randn(*s.shape, seed=2), randn(*z.shape, seed=3))
    found, exact = (
        taken(problem.theta, solution, cotangents, [True] * 4) for taken in (plan.adjoint, partial(Plan.adjoint, plan))
    )
    for block, own, expected in zip("PqAb", found, exact, strict=True):
        assert worst(own, expected) <= 1e-9, block


MIXED = {
    "linear": Cones(zero=2, nonnegative=6),
    "second order": Cones(nonnegative=2, second_order=(3, 5, 2)),
    "psd": Cones(zero=1, nonnegative=1, psd=(2, 3, 4, 5)),
    "exponential": Cones(zero=1, nonnegative=2, exponential=3),
    "power": Cones(nonnegative=2, power=(0.1, 0.5, 0.8)),
    "all": Cones(zero=2, nonnegative=3, second_order=(4, 3), psd=(3, 2), exponential=2, power=(0.3, 0.6)),
}


@by_rank
@pytest.mark.parametrize("title", MIXED)
@pytest.mark.parametrize("activity", ["boundary", "mixed"])
def test_agreement_with_clarabel(title, activity, rank):
    """Another implementation of the method, its solutions taken to rounding by Newton steps of ours."""
    problem = random_program(MIXED[title], batch=(4,), rank=rank, seed=5, activity=activity)
    own, other = (engine.setup(problem.program).solve(problem.theta) for engine in (Native(), Clarabel()))
    assert own.all_solved
    assert other.all_solved
    for name in ("x", "s", "z"):
        assert worst(getattr(own, name), getattr(other, name)) <= 1e-7, name
    assert torch.allclose(own.objective, other.objective, rtol=1e-7, atol=1e-7)


# ------------------------------------------------------------------------------------------- projections


def project(cones, v):
    """min 1/2 |x - v|^2 st x in K, for v that requires gradients."""
    n = v.shape[-1]
    eye = torch.eye(n, dtype=torch.float64)
    return cl.solve_cone_program(eye, -v, -eye, torch.zeros(n), cones, solver="native")


def check_projections(cones, v, tolerance):
    """Errors relative to |v|, the scale of the projection."""
    solution = project(cones, v)
    errors = (solution.x - cones.project(v)).norm(dim=-1) / v.norm(dim=-1)
    assert float(errors.max()) <= tolerance, v[int(errors.argmax())].tolist()
    return solution


# x + g with g'x = 0 up to a gap of ten times the tolerance, relative to |v|^2: the projection p of v has
# |x - p|^2 <= gap, by (v - p)'(x - p) <= 0. Newton steps get to rounding wherever the projection is differentiable.
AT_WORST = (10 * TOLERANCE) ** 0.5
ROUNDING = 1e-12

EXPONENTS = (0.01, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99)
THREE = {"exponential": Cones(exponential=1)} | {f"power {a}": Cones(power=(a,)) for a in EXPONENTS}
by_three = pytest.mark.parametrize("cones", THREE.values(), ids=THREE.keys())


@cache
def grid():
    """Axes, planes, faces, and points on either side of them, without the origin."""
    points = torch.tensor(list(itertools.product([-2.0, -1.0, -0.3, 0.0, 0.3, 1.0, 2.0], repeat=3)))
    return points[points.abs().sum(-1) > 0].double()


@by_three
def test_projections_on_a_grid(cones):
    check_projections(cones, grid(), AT_WORST)


def test_projections_onto_the_exponential_cone_on_a_grid():
    """Accurate also on its face and edges."""
    check_projections(THREE["exponential"], grid(), ROUNDING)


@by_three
@pytest.mark.parametrize("size", [1e-8, 1e-4, 1.0, 1e4, 1e8])
def test_projections_of_any_size(cones, size):
    check_projections(cones, size * randn(60, 3, seed=1), ROUNDING)


@by_three
def test_projections_of_entries_of_different_sizes(cones):
    sizes = 10 ** (8 * uniform(300, 3, seed=1) - 4)
    accuracy = ROUNDING if cones.exponential else AT_WORST
    check_projections(cones, sizes * randn(300, 3, seed=2), accuracy)


@pytest.mark.parametrize("ratio", [-1e4, -50.0, -1.0, 1.0, 50.0, 300.0, 1e4])
@pytest.mark.parametrize("y", [1e-3, 1.0, 1e2])
def test_projections_far_along_the_exponential_cone(ratio, y):
    heights = torch.tensor([-100.0, -1.0, 0.0, 1.0, 100.0], dtype=torch.float64)
    v = torch.stack([torch.full_like(heights, ratio * y), torch.full_like(heights, y), heights], -1)
    check_projections(THREE["exponential"], v, ROUNDING)


@by_three
@pytest.mark.parametrize("activity", ["inside", "outside", "boundary"])
def test_projections_of_known_pairs(cones, activity):
    """s - z projects to s: v inside K, inside -K*, and outside of both."""
    s, z = complementary_pair(cones, Sampler.seeded((40,), 3), activity)
    solution = check_projections(cones, s - z, ROUNDING)
    assert worst(solution.s, s) <= ROUNDING
    assert worst(solution.z, z) <= ROUNDING


EIGENVALUES = {
    "equal": lambda p: [1.0] * p,
    "negative and equal": lambda p: [-1.0] * p,
    "one positive": lambda p: [1.0] + [0.0] * (p - 1),
    "one negative": lambda p: [-1.0] + [0.0] * (p - 1),
    "a zero": lambda p: [1.0, -1.0] + [0.0] * (p - 2),
    "two equal": lambda p: [2.0, 2.0] + [-1.0] * (p - 2),
    "counted": lambda p: [float(k - 1) for k in range(p)],
    "one tiny": lambda p: [1e-6] + [-1.0] * (p - 1),
    "one huge": lambda p: [1e6] + [-1.0] * (p - 1),
}
# With a zero eigenvalue the projection has no derivative for Newton steps to use.
DEGENERATE = ("one positive", "one negative", "a zero", "counted")


@pytest.mark.parametrize("order", [2, 3, 5, 8])
@pytest.mark.parametrize("name", EIGENVALUES)
def test_projections_of_matrices(order, name):
    values = torch.tensor(EIGENVALUES[name](order), dtype=torch.float64)
    Q = torch.linalg.qr(randn(6, order, order, seed=order))[0]
    Q[0] = torch.eye(order, dtype=torch.float64)
    v = svec((Q * values) @ Q.mT)
    check_projections(Cones(psd=(order,)), v, AT_WORST if name in DEGENERATE else ROUNDING)


@pytest.mark.parametrize("cones", [Cones(nonnegative=6), Cones(second_order=(6,)), Cones(psd=(3,))], ids=str)
@pytest.mark.parametrize("tiny", [1e-20, 1e-17, 1e-15, 1e-8])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_projections_with_entries_that_rounding_left(cones, tiny, sign):
    """Zero but for rounding: whatever these say of typical sizes, a projection is neither infeasible nor unbounded."""
    v = torch.tensor([[1.0, tiny, 1.0, tiny, -3 * tiny, 1.0]], dtype=torch.float64)
    check_projections(cones, sign * v, AT_WORST)


SMOOTH = THREE | {f"psd {order}": Cones(psd=(order,)) for order in (2, 3, 5)}


@pytest.mark.parametrize("name", SMOOTH)
@pytest.mark.parametrize("activity", ["inside", "outside", "boundary"])
def test_derivatives_of_projections(name, activity):
    """That of the cone's own spectrum, M w."""
    cones = SMOOTH[name]
    s, z = complementary_pair(cones, Sampler.seeded((20,), 4), activity)
    v, w = (s - z).requires_grad_(), randn(*s.shape, seed=5)
    (grad,) = torch.autograd.grad(project(cones, v).x, v, w)
    spectrum = cones.spectrum((s - z).detach())
    expected = spectrum.basis.unrotate(spectrum.mu.unsqueeze(-1) * spectrum.basis.rotate(w.unsqueeze(-1))).squeeze(-1)
    assert worst(grad, expected) <= 1e-10


@by_three
@pytest.mark.filterwarnings("ignore::convexlayers.errors.DerivativeWarning")
def test_derivatives_at_the_border_are_finite_and_deterministic(cones):
    """On faces and edges, where there may be none, or several."""
    v, w = grid().clone().requires_grad_(), randn(*grid().shape, seed=6)
    first, second = (torch.autograd.grad(project(cones, v).x, v, w)[0] for _ in range(2))
    assert torch.equal(first, second)
    assert first.isfinite().all()
    # Eigenvalues of the derivative of a projection lie between 0 and 1.
    assert float((first.norm(dim=-1) / w.norm(dim=-1)).max()) <= 1 + 1e-6
