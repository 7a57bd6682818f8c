"""The native engine: statuses and solutions of random programs, its own derivative, and inputs at the border."""

import copy
import multiprocessing
import os
import pickle
import random
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path

import cvxpy as cp
import pytest
import torch

import convexlayers as cl
from convexlayers import Status
from convexlayers.cones import Cones
from convexlayers.derivatives import Cotangents
from convexlayers.engines import make_engine, native, rescue
from convexlayers.engines.base import Plan
from convexlayers.engines.native import Native
from convexlayers.errors import ArgumentError
from convexlayers.testing import infeasible_program, join, random_program, unbounded_program
from convexlayers.testing.problems import KINDS

BATCH = 5
SEEDS = 160
CHUNK = 40
CHUNKS = pytest.mark.parametrize("seeds", [range(start, start + CHUNK) for start in range(0, SEEDS, CHUNK)], ids=str)
TOLERANCE = 1e-8  # the engine's own, by default
LARGEST_BATCH = 41  # blocks of eight lanes and a remainder
EVERY_KIND = join(*KINDS.values())


def randn(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def vector(*values):
    return torch.tensor(values, dtype=torch.float64)


def eye(n):
    return torch.eye(n, dtype=torch.float64)


def random_cones(rng):
    """Every subset of the six kinds."""
    return Cones(
        zero=rng.choice([0, 0, 1, 3]),
        nonnegative=rng.choice([0, 1, 4, 8]),
        second_order=tuple(rng.randint(1, 15) for _ in range(rng.choice([0, 0, 0, 1, 2]))),
        psd=tuple(rng.randint(1, 6) for _ in range(rng.choice([0, 0, 1, 2]))),
        exponential=rng.choice([0, 0, 1, 2]),
        power=tuple(round(rng.uniform(0.05, 0.95), 3) for _ in range(rng.choice([0, 0, 1, 2]))),
    )


def second_order_cones(rng):
    """Only zero, nonnegative and second-order cones."""
    zero, nonnegative = rng.choice([0, 0, 1, 3]), rng.choice([0, 1, 4, 8])
    return Cones(zero, nonnegative, tuple(rng.randint(1, 15) for _ in range(rng.choice([0, 0, 1, 2, 3]))))


@cache
def solved_programs(seed, make_cones=random_cones, batch=BATCH):
    """Programs with a known solution, by rank of P (None: definite): those for which that solution can be unique."""
    rng = random.Random(seed)
    cones, activity = make_cones(rng), rng.choice(["boundary", "inside", "outside", "mixed"])
    found = {}
    for rank in (None, 2, 0):
        try:
            found[rank] = random_program(cones, rank=rank, batch=(batch,), seed=seed, activity=activity)
        except ArgumentError:  # not for these cones and this rank; the callers count what is left
            continue
    return found


def solve(problem, **options):
    plan = Native(**options).setup(problem.program)
    return plan, plan.solve(problem.theta)


def rescued(solution):
    """How many elements went to a second method."""
    own = solution.engine_state.own
    return 0 if own is None else int((~own).sum())


@dataclass
class Counts:
    """What became of some programs.

    Attributes:
        elements: how many there were. rescued: of them, by a second method.
        coarse: those that Newton steps have not taken to rounding.
        wrong: (element, status, error of x, residual) of those that are not solved as promised.
    """

    elements: int = 0
    rescued: int = 0
    coarse: int = 0
    wrong: list = field(default_factory=list)

    def add(self, problem):
        _, solution = solve(problem)
        errors = (solution.x - problem.x).norm(dim=-1) / problem.x.norm(dim=-1).clamp(min=1)
        # The promise of SOLVED is ten times the tolerance (solution.py). These programs are regular and strictly
        # complementary: Newton steps take x further, to rounding times condition, far below 1e-8. Where they do not
        # arrive, x is off by the residual times a condition number below 1e3.
        residuals = solution.residuals.largest
        coarse = residuals > 1e-12
        good = solution.solved & (residuals <= 10 * TOLERANCE)
        good = good & (errors <= torch.where(coarse, 1e3 * residuals, 1e-8))
        self.elements += len(good)
        self.rescued += rescued(solution)
        self.coarse += int(coarse.sum())
        for i in (~good).nonzero().squeeze(-1).tolist():
            self.wrong.append((i, int(solution.status[i]), float(errors[i]), float(residuals[i])))


# ------------------------------------------------------------------------------------------- statuses, solutions


@CHUNKS
def test_programs_with_a_solution(seeds):
    counts = Counts()
    for seed in seeds:
        for problem in solved_programs(seed).values():
            counts.add(problem)
    assert counts.wrong == []
    assert counts.elements >= 400
    assert counts.rescued <= 0.02 * counts.elements
    assert counts.coarse <= 0.002 * counts.elements


# Regular, with condition numbers below 1e3; on each, on one instruction set or another, Newton steps have failed.
HARD = [(19, 0), (19, 2), (30, 2), (60, 2), (76, 0), (76, 2), (129, 0), (129, 2), (162, 0), (162, 2), (177, 2)]
HARD += [(245, 0), (252, 0), (252, 2), (290, 0)]


@pytest.mark.parametrize(("seed", "rank"), HARD)
def test_programs_on_which_newton_steps_have_failed(seed, rank):
    counts = Counts()
    counts.add(solved_programs(seed, second_order_cones)[rank])
    assert (counts.wrong, counts.coarse) == ([], 0)


@pytest.mark.parametrize("tolerance", [1e-4, 1e-6, 1e-8])
@pytest.mark.parametrize(("seed", "rank"), HARD)
def test_derivatives_where_newton_steps_have_failed(seed, rank, tolerance):
    """Finite however far the point is from the solution, and that of the dense reference up to this distance.

    The two take v = s - z in different units, which is the same for a complementary pair only: elsewhere v, and the
    derivative at it, differ by ten times the tolerance times a condition number, here below 1e3 / 10.
    """
    problem = solved_programs(seed, second_order_cones)[rank]
    plan, solution = solve(problem, tolerance=tolerance)
    g, wanted = cotangents_of(solution), [True] * len(problem.theta)
    found, exact = (taken(problem.theta, solution, g, wanted) for taken in (plan.adjoint, partial(Plan.adjoint, plan)))
    for got, expected in zip(found, exact, strict=True):
        assert got.isfinite().all()
        assert relative(got, expected, floor=1.0) <= 1e3 * tolerance


@CHUNKS
def test_infeasible_programs(seeds):
    elements = rescues = 0
    for seed in seeds:
        rng = random.Random(seed)
        cones = random_cones(rng)
        # The certificate z > 0 of a single row needs A = 0, of which rounding leaves dust that makes it feasible.
        if cones.rows < 2:
            continue
        problem = infeasible_program(cones, n=rng.choice([1, 2, 3, 5, 9]), batch=(BATCH,), seed=seed)
        _, solution = solve(problem)
        assert (solution.status == int(Status.PRIMAL_INFEASIBLE)).all(), (seed, solution.status.tolist())
        rescues, elements = rescues + rescued(solution), elements + BATCH
    assert elements >= 150
    assert rescues <= 0.02 * elements, f"{rescues} of {elements} went to Clarabel"


@CHUNKS
def test_unbounded_programs(seeds):
    elements = rescues = 0
    for seed in seeds:
        rng = random.Random(seed)
        cones, n = random_cones(rng), rng.choice([1, 2, 3, 5, 9])
        # An equality in one variable along which x is free has the coefficient 0: again dust, which fixes x.
        n = max(n, 2) if cones.zero else n
        problem = unbounded_program(cones, n=n, rank=rng.choice([0, n // 2]), batch=(BATCH,), seed=seed)
        _, solution = solve(problem)
        assert (solution.status == int(Status.DUAL_INFEASIBLE)).all(), (seed, solution.status.tolist())
        rescues, elements = rescues + rescued(solution), elements + BATCH
    assert elements >= 200
    assert rescues <= 0.02 * elements, f"{rescues} of {elements} went to Clarabel"


def mixed_batch():
    """Solvable, infeasible and unbounded elements of one structure in turn, and their statuses."""
    cones, n = Cones(zero=1, nonnegative=4, second_order=(3, 7), psd=(3,), exponential=1, power=(0.3,)), 12
    kinds = {
        Status.SOLVED: random_program(cones, n=n, batch=(14,), seed=1),
        Status.PRIMAL_INFEASIBLE: infeasible_program(cones, n=n, batch=(14,), seed=2),
        Status.DUAL_INFEASIBLE: unbounded_program(cones, n=n, batch=(14,), seed=3),
    }
    order = torch.arange(42).reshape(3, 14).T.reshape(-1)
    theta = [torch.cat(blocks)[order] for blocks in zip(*(kind.theta for kind in kinds.values()), strict=True)]
    statuses = torch.tensor([int(status) for status in kinds]).repeat(14)
    return kinds[Status.SOLVED].program, theta, statuses


def test_all_kinds_in_one_batch():
    program, theta, statuses = mixed_batch()
    solution = Native().setup(program).solve(theta)
    assert torch.equal(solution.status, statuses)


def test_looser_and_tighter_tolerances_are_kept():
    cones = Cones(zero=1, nonnegative=6, second_order=(5,), psd=(3,), exponential=2, power=(0.6,))
    problem = random_program(cones, batch=(20,), seed=4)
    for tolerance in (1e-4, 1e-6, 1e-10):
        _, solution = solve(problem, tolerance=tolerance)
        assert (solution.status == int(Status.SOLVED)).all()
        # Residuals below 1e-9 are not asked for, whatever the tolerance (solution.py).
        assert float(solution.residuals.largest.max()) <= 10 * max(tolerance, 1e-9)


# --------------------------------------------------------------------------------- elements that are not finite


def same_bits(a, b):
    return a.shape == b.shape and a.contiguous().numpy().tobytes() == b.contiguous().numpy().tobytes()


@cache
def finite_batch():
    cones = Cones(zero=1, nonnegative=3, second_order=(4,), psd=(2,), exponential=1, power=(0.7,))
    return random_program(cones, batch=(LARGEST_BATCH,), seed=5)


def broken_elements():
    """Masks: the first, the last, a whole block of lanes and more, all but one, every second."""
    index = torch.arange(LARGEST_BATCH)
    return {
        "first": index == 0,
        "last": index == LARGEST_BATCH - 1,
        "more than a block": (index >= 5) & (index < 24),
        "beginning": index < 19,
        "end": index > 20,
        "all but one": index != 17,
        "every second": index % 2 == 1,
    }


@pytest.mark.parametrize("where", broken_elements())
@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_elements_that_are_not_finite(where, number):
    problem, broken = finite_batch(), broken_elements()[where]
    theta = [block.clone() for block in problem.theta]
    # A different block of the data for each element in turn.
    for count, element in enumerate(broken.nonzero().squeeze(-1).tolist()):
        theta[count % len(theta)][element, -1] = number
    plan = Native().setup(problem.program)
    whole, alone = plan.solve(theta), plan.solve([block[~broken] for block in theta])
    assert (whole.status[broken] == int(Status.INVALID_DATA)).all()
    assert alone.all_solved
    for name in ("status", "iterations", "objective", "x", "s", "z"):
        assert same_bits(getattr(whole, name)[~broken], getattr(alone, name)), name


def test_only_elements_that_are_not_finite():
    problem = finite_batch()
    theta = [torch.full_like(block, float("nan")) for block in problem.theta]
    plan = Native().setup(problem.program)
    solution = plan.solve(theta)
    assert (solution.status == int(Status.INVALID_DATA)).all()
    grads = plan.adjoint(theta, solution, cotangents_of(solution), [True] * len(theta))
    assert all((grad == 0).all() for grad in grads)


def test_cotangents_of_broken_elements_do_not_matter():
    problem = finite_batch()
    theta = [block.clone() for block in problem.theta]
    theta[1][3:20] = float("nan")
    plan = Native().setup(problem.program)
    solution = plan.solve(theta)
    cotangents = cotangents_of(solution)
    clean = plan.adjoint(theta, solution, cotangents, [True] * len(theta))
    cotangents.x[3:20], cotangents.z[3:20] = float("nan"), float("inf")
    spoilt = plan.adjoint(theta, solution, cotangents, [True] * len(theta))
    assert all(same_bits(a, b) for a, b in zip(clean, spoilt, strict=True))
    assert all((grad[3:20] == 0).all() for grad in clean)


# ------------------------------------------------------------------------------------------- iteration limit


@pytest.mark.parametrize("limit", [1, 2, 3])
def test_the_limit_of_iterations_is_a_limit(limit):
    cones = Cones(zero=1, nonnegative=8, second_order=(5,), psd=(3,), exponential=1, power=(0.4,))
    problem = random_program(cones, rank=0, batch=(11,), seed=6)
    _, solution = solve(problem, max_iterations=limit)
    assert (solution.status == int(Status.MAX_ITERATIONS)).all()
    assert (solution.iterations == limit).all()
    assert rescued(solution) == 0


def test_a_limit_that_is_not_reached_changes_nothing():
    problem = finite_batch()
    (_, free), (_, limited) = solve(problem), solve(problem, max_iterations=60)
    assert int(free.iterations.max()) < 60
    assert same_bits(free.x, limited.x)
    assert torch.equal(free.iterations, limited.iterations)


# ------------------------------------------------------------------------------------------- derivative


def cotangents_of(solution, seed=11):
    parts = (solution.x, solution.s, solution.z, solution.objective)
    return Cotangents(*(randn(*part.shape, seed=seed + i) for i, part in enumerate(parts)))


def only(cotangents, name):
    return Cotangents(**{part: getattr(cotangents, part) if part == name else None for part in ("x", "s", "z")})


def relative(got, expected, floor=0.0):
    """The largest error of an element, relative to its norm, which counts as `floor` at least."""
    return float(((got - expected).norm(dim=-1) / expected.norm(dim=-1).clamp(min=floor)).max())


def tangent_tuple(tangents):
    return tangents.dx, tangents.ds, tangents.dz, tangents.objective.unsqueeze(-1)


def shared_program(seed, batch=BATCH):
    """One P and one A for several known solutions: program, theta with shared blocks."""
    cones = Cones(zero=1, nonnegative=4, second_order=(1, 3, 8), psd=(1, 3, 4), exponential=2, power=(0.2, 0.5))
    problem = random_program(cones, batch=(batch,), seed=seed)
    P, A = problem.P[0], problem.A[0]
    q, b = -problem.x @ P - problem.z @ A, problem.x @ A.T + problem.s
    return problem.program, [P.reshape(1, -1), q, A.reshape(1, -1), b]


def derivative_cases():
    """(program, theta) with blocks of their own, with shared ones, and without rows."""
    cases = {}
    for seed in range(30):
        for rank, problem in solved_programs(seed).items():
            cases[seed, rank] = (problem.program, problem.theta)
    for seed in range(4):
        cases["shared", seed] = shared_program(seed)
    free = random_program(Cones(), n=4, batch=(BATCH,))
    cases["free", 0] = (free.program, free.theta)
    return cases


CASES = derivative_cases()


@pytest.mark.parametrize("part", ["x", "s", "z", "all"])
def test_adjoint_is_that_of_the_dense_reference(part):
    """Both at the same solutions: `Exact` factors in another basis, with another method."""
    for name, (program, theta) in CASES.items():
        plan = Native().setup(program)
        solution = plan.solve(theta)
        cotangents = cotangents_of(solution)
        cotangents = cotangents if part == "all" else only(cotangents, part)
        wanted = [True] * len(theta)
        own = plan.adjoint(theta, solution, cotangents, wanted)
        exact = Plan.adjoint(plan, theta, solution, cotangents, wanted)
        # Where s cannot move, its gradient is a difference of terms of size one.
        assert relative(flat(own, solution), flat(exact, solution), floor=1.0) <= 1e-9, name


def flat(blocks, solution):
    """All blocks side by side, shared ones in a row of their own."""
    batch = len(solution.status)
    rows = [block.reshape(1, -1) if block.shape[0] != batch else block for block in blocks]
    sizes = {len(row) for row in rows}
    return torch.cat(rows, -1) if len(sizes) == 1 else torch.cat([row.reshape(1, -1) for row in rows], -1)


def test_tangent_is_that_of_the_dense_reference():
    for name, (program, theta) in CASES.items():
        plan = Native().setup(program)
        solution = plan.solve(theta)
        dtheta = [randn(*block.shape, seed=20 + i) for i, block in enumerate(theta)]
        own, exact = plan.tangent(theta, solution, dtheta), Plan.tangent(plan, theta, solution, dtheta)
        got, expected = (torch.cat(tangent_tuple(tangents), -1) for tangents in (own, exact))
        assert relative(got, expected) <= 1e-9, name


@pytest.mark.parametrize("block", range(4))
def test_tangent_along_one_block(block):
    program, theta = shared_program(7)
    plan = Native().setup(program)
    solution = plan.solve(theta)
    dtheta = [randn(*value.shape, seed=3) if i == block else None for i, value in enumerate(theta)]
    own, exact = plan.tangent(theta, solution, dtheta), Plan.tangent(plan, theta, solution, dtheta)
    for got, expected in zip(tangent_tuple(own), tangent_tuple(exact), strict=True):
        assert relative(got, expected, floor=1.0) <= 1e-9


def test_adjoint_and_tangent_are_adjoint():
    """<g, T d> = <T'g, d> for every case, relative to |g| |Td|."""
    for name, (program, theta) in CASES.items():
        plan = Native().setup(program)
        solution = plan.solve(theta)
        g = cotangents_of(solution)
        dtheta = [randn(*block.shape, seed=20 + i) for i, block in enumerate(theta)]
        forward = torch.cat(tangent_tuple(plan.tangent(theta, solution, dtheta)), -1)
        weights = torch.cat([g.x, g.s, g.z, g.objective.unsqueeze(-1)], -1)
        backward = plan.adjoint(theta, solution, g, [True] * len(theta))
        left = float((weights * forward).sum())
        right = sum(float((grad * d).sum()) for grad, d in zip(backward, dtheta, strict=True))
        assert abs(left - right) <= 1e-9 * float(weights.norm() * forward.norm()), name


@pytest.mark.parametrize("batch", [1, 7, 40])
def test_gradient_of_a_shared_parameter_is_the_sum(batch):
    program, theta = shared_program(8, batch)
    apart = [block.expand(batch, -1).contiguous() for block in theta]
    plan, wanted = Native().setup(program), [True] * len(theta)
    together_at, apart_at = plan.solve(theta), plan.solve(apart)
    assert same_bits(together_at.x, apart_at.x)
    g = cotangents_of(together_at)
    together, each = plan.adjoint(theta, together_at, g, wanted), plan.adjoint(apart, apart_at, g, wanted)
    for total, parts, block in zip(together, each, theta, strict=True):
        expected = parts.sum(0, keepdim=True) if block.shape[0] == 1 else parts
        # Two orders of summation: at most one rounding per summand, of the sum of sizes.
        bound = batch * torch.finfo(torch.float64).eps * parts.abs().sum(0)
        assert ((total - expected).abs() <= bound).all()


def test_only_wanted_gradients_are_computed():
    program, theta = shared_program(9)
    plan = Native().setup(program)
    solution = plan.solve(theta)
    g = cotangents_of(solution)
    every = plan.adjoint(theta, solution, g, [True] * 4)
    for i in range(4):
        found = plan.adjoint(theta, solution, g, [j == i for j in range(4)])
        assert [grad is None for grad in found] == [j != i for j in range(4)]
        assert same_bits(found[i], every[i])


def test_derivatives_of_programs_without_a_unique_solution_are_flagged():
    q = randn(12, 3, seed=1)
    q[4:9] = 1.0  # all vertices of the simplex are optimal
    leaf = q.clone().requires_grad_()
    solution = cl.solve_lp(leaf, A=torch.ones(1, 3), b=torch.ones(1), lb=0.0, solver="native")
    solution.objective.sum().backward()
    assert torch.equal(leaf.grad, solution.x.detach())
    solution = cl.solve_lp(leaf, A=torch.ones(1, 3), b=torch.ones(1), lb=0.0, solver="native")
    total = solution.x[:, 0].sum()
    with pytest.warns(cl.errors.DerivativeWarning, match="5 elements of 12"):
        total.backward()
    assert solution.derivative_report.rank_deficient.tolist() == [False] * 4 + [True] * 5 + [False] * 3


# ------------------------------------------------------------------------------------------- rescue


def mixed_with_all_rescued(monkeypatch):
    """The mixed batch, where all that native solves itself goes to the second method nevertheless."""
    program, theta, statuses = mixed_batch()
    monkeypatch.setattr(rescue, "RESCUABLE", (Status.SOLVED,) * len(rescue.RESCUABLE))
    plan = Native().setup(program)
    return plan, theta, statuses, plan.solve(theta)


def test_rescued_elements_are_solved_and_the_others_left_alone(monkeypatch):
    program, theta, _ = mixed_batch()
    own = Native().setup(program).solve(theta)
    _, _, statuses, solution = mixed_with_all_rescued(monkeypatch)
    solved = statuses == int(Status.SOLVED)
    assert torch.equal(solution.status, statuses)
    assert torch.equal(solution.engine_state.own, ~solved)
    # Both are refined to rounding; the condition numbers are below 1e3.
    assert torch.allclose(solution.x[solved], own.x[solved], rtol=0, atol=1e-10)
    assert torch.allclose(solution.objective[solved], own.objective[solved], rtol=1e-12, atol=1e-12)
    assert same_bits(solution.x[~solved], own.x[~solved])


@pytest.mark.parametrize("element", [0, 3, 39])
def test_a_rescued_element_does_not_depend_on_its_neighbours(monkeypatch, element):
    plan, theta, _, together = mixed_with_all_rescued(monkeypatch)
    # With an infeasible neighbour, so that there is a reason to look at the statuses at all.
    alone = plan.solve([block[[element, 1]] for block in theta])
    for name in ("x", "s", "z", "objective", "iterations"):
        assert same_bits(getattr(alone, name)[0], getattr(together, name)[element]), name


def test_derivatives_of_rescued_elements(monkeypatch):
    plan, theta, statuses, solution = mixed_with_all_rescued(monkeypatch)
    g, wanted = cotangents_of(solution), [True] * len(theta)
    found, exact = plan.adjoint(theta, solution, g, wanted), Plan.adjoint(plan, theta, solution, g, wanted)
    failed = statuses != int(Status.SOLVED)
    for got, expected in zip(found, exact, strict=True):
        assert torch.allclose(got, expected, rtol=1e-12, atol=1e-12)
        assert (got[failed] == 0).all()
        assert got[~failed].abs().max() > 0.1
    assert solution.report.residual[~failed].max() < 1e-10


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_derivatives_that_are_left_to_the_dense_reference(monkeypatch, share):
    """The border is drawn where so many of the residuals lie below it: the result is as without."""
    problem = finite_batch()
    plan, solution = solve(problem)
    theta, g, wanted = problem.theta, cotangents_of(solution), [True] * len(problem.theta)
    dtheta = [randn(*block.shape, seed=20 + i) for i, block in enumerate(theta)]
    own, along = plan.adjoint(theta, solution, g, wanted), tangent_tuple(plan.tangent(theta, solution, dtheta))
    residual = solution.report.residual
    monkeypatch.setattr(native, "LARGEST_RESIDUAL", float(residual.quantile(share)) if share else -1.0)
    for got, expected in zip(plan.adjoint(theta, solution, g, wanted), own, strict=True):
        assert relative(got, expected, floor=1.0) <= 1e-9
    for got, expected in zip(tangent_tuple(plan.tangent(theta, solution, dtheta)), along, strict=True):
        assert relative(got, expected, floor=1.0) <= 1e-9


# ------------------------------------------------------------------------------------------- layers


def make_layer(**options):
    x, t, radius = cp.Variable(4), cp.Parameter(4, name="t"), cp.Parameter(name="radius")
    constraints = [cp.norm(x) <= radius, cp.sum(x) == 1, x >= -0.5]
    problem = cp.Problem(cp.Minimize(cp.sum_squares(x - t)), constraints)
    return cl.ConvexLayer(problem, [t, radius], [x, constraints[1].dual_variables[0]], **options)


def outputs_and_gradients(layer):
    t, radius = randn(9, 4, seed=1).requires_grad_(), torch.tensor(1.2, dtype=torch.float64, requires_grad=True)
    outputs = layer(t, radius)
    grads = torch.autograd.grad([value.square().sum() for value in outputs], (t, radius))
    return [*(value.detach() for value in outputs), *grads]


@pytest.mark.parametrize("copied", [copy.deepcopy, copy.copy, lambda layer: pickle.loads(pickle.dumps(layer))])
def test_copies_of_a_layer_give_equal_bits(copied):
    layer = make_layer(solver="native")
    expected = outputs_and_gradients(layer)
    again = outputs_and_gradients(copied(layer))
    assert all(same_bits(a, b) for a, b in zip(expected, again, strict=True))


def test_a_file_brings_a_layer_back(tmp_path):
    layer = make_layer(solver="native")
    torch.save(layer, tmp_path / "layer.pt")
    loaded = torch.load(tmp_path / "layer.pt", weights_only=False)
    found = zip(outputs_and_gradients(layer), outputs_and_gradients(loaded), strict=True)
    assert all(same_bits(a, b) for a, b in found)


def test_float32_is_the_rounded_float64():
    """Numbers that float32 holds: the same solve, rounded once at the end."""
    t, weight = randn(9, 4, seed=1).float(), randn(9, 4, seed=2).float()
    radius, layer = torch.full((9,), 1.25), make_layer(solver="native")
    results = []
    for dtype in (torch.float32, torch.float64):
        leaves = [value.to(dtype).requires_grad_() for value in (t, radius)]
        x, _ = layer(*leaves)
        assert x.dtype == dtype
        results.append([x.detach(), *torch.autograd.grad(x, leaves, weight.to(dtype))])
    for single, double in zip(*results, strict=True):
        assert torch.equal(single, double.float())


def test_calls_do_not_add_threads():
    tasks = Path("/proc/self/task")
    if not tasks.exists():
        pytest.skip("threads are counted by a Linux facility")
    problem = random_program(EVERY_KIND, batch=(64,), seed=1)
    plan = Native(threads=3).setup(problem.program)
    counts = []
    for _ in range(2):
        for _ in range(150):
            plan.solve(problem.theta)
        counts.append(len(os.listdir(tasks)))
    assert counts[0] == counts[1]


@cache
def large_batch():
    """Enough work for several threads."""
    return random_program(EVERY_KIND, batch=(256,), seed=2)


def test_callers_on_several_threads_do_not_disturb_each_other():
    problem = large_batch()
    plan, expected = solve(problem, threads=3)

    def call(count):
        part = [block[: 256 - count] for block in problem.theta]
        solution = plan.solve(part)
        grads = plan.adjoint(part, solution, Cotangents(solution.x, None, None), [True] * len(part))
        return solution.x, grads

    whole = call(0)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(call, range(40)))
    for count, (x, grads) in enumerate(found):
        assert same_bits(x, expected.x[: 256 - count])
        assert all(same_bits(a, b[: 256 - count]) for a, b in zip(grads, whole[1], strict=True))


def solve_into(problem, results):
    results.put(solve(problem, threads=3)[1].x.tolist())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
@pytest.mark.filterwarnings("ignore:This process.*fork:DeprecationWarning")
def test_a_forked_child_solves_on_threads_of_its_own():
    """As the workers of a DataLoader do, after the parent has used its threads."""
    problem = large_batch()
    _, expected = solve(problem, threads=3)
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    child = context.Process(target=solve_into, args=(problem, results))
    child.start()
    try:
        found = results.get(timeout=60)
    finally:
        child.kill()
        child.join()
    assert found == expected.x.tolist()


# ------------------------------------------------------------------------------------------- choice


def test_auto_prefers_native_and_hands_its_settings_on():
    program = random_program(EVERY_KIND).program
    auto = make_engine("auto", tolerance=1e-6, max_iterations=17, threads=1)
    chosen = auto.choose(program)
    assert isinstance(chosen, Native)
    assert (chosen.tolerance, chosen.max_iterations, chosen.threads) == (1e-6, 17, 1)
    assert auto.explain(program).startswith("native: ")


def test_options_of_other_solvers_are_refused():
    program = random_program(Cones(nonnegative=2)).program
    with pytest.raises(ArgumentError, match=r"native engine has none, got 'verbose'"):
        Native(options={"verbose": True}).setup(program)


# ------------------------------------------------------------------------------------------- borders


def status_of(solution):
    return Status(int(solution.status))


def test_empty_batch():
    q = torch.zeros(0, 3, dtype=torch.float64, requires_grad=True)
    P = eye(3).requires_grad_()
    solution = cl.solve_qp(P, q, lb=0.0, solver="native")
    assert solution.x.shape == (0, 3)
    assert solution.status.shape == (0,)
    solution.x.sum().backward()
    assert q.grad.shape == (0, 3)
    assert (P.grad == 0).all()


def test_no_constraints():
    L, q = randn(3, 4, 4, seed=1), randn(3, 4, seed=2).requires_grad_()
    P = L @ L.mT + eye(4)
    solution = cl.solve_qp(P, q, solver="native")
    expected = -torch.linalg.solve(P, q)
    weight = randn(3, 4, seed=3)
    grad, expected_grad = (torch.autograd.grad(value, q, weight)[0] for value in (solution.x, expected))
    # Condition numbers below 1e2: rounding.
    torch.testing.assert_close(solution.x, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(grad, expected_grad, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("P", "status"), [(eye(2), Status.SOLVED), (None, Status.DUAL_INFEASIBLE)])
def test_no_constraints_and_a_slope(P, status):
    assert status_of(cl.solve_qp(P, vector(1.0, 2.0), solver="native", on_failure="nan")) is status


def test_equalities_only():
    """min 1/2 |x|^2 + q'x st 1'x = b."""
    q, b = vector(1.0, 2.0, 3.0).requires_grad_(), vector(1.0).requires_grad_()
    x = cl.solve_qp(eye(3), q, A=torch.ones(1, 3), b=b, solver="native").x
    expected = -q + (b + q.sum()) / 3
    assert torch.allclose(x, expected, rtol=0, atol=1e-14)
    weight = vector(1.0, -2.0, 0.5)
    got, wanted = (torch.autograd.grad(value, (q, b), weight) for value in (x, expected))
    assert all(torch.allclose(a, e, rtol=0, atol=1e-14) for a, e in zip(got, wanted, strict=True))


@pytest.mark.parametrize("P", [None, eye(3)], ids=["linear", "quadratic"])
@pytest.mark.parametrize("b", [(1.0, 2.0), (1.0, 1.001), (1e6, 1e6 + 1e3), (1e-6, 2e-6)])
def test_inconsistent_equalities(P, b):
    A = torch.ones(2, 3, dtype=torch.float64)
    q = torch.zeros(3, dtype=torch.float64)
    solution = cl.solve_qp(P, q, A=A, b=vector(*b), solver="native", on_failure="nan")
    assert status_of(solution) is Status.PRIMAL_INFEASIBLE


@pytest.mark.parametrize("side", ["A", "G"])
@pytest.mark.parametrize(("right", "status"), [(0.0, Status.SOLVED), (-1.0, Status.PRIMAL_INFEASIBLE)])
def test_a_row_of_zeros(side, right, status):
    row, vectors = torch.zeros(1, 2, dtype=torch.float64), {"A": "b", "G": "h"}
    q = vector(1.0, 1.0)
    blocks = {side: row, vectors[side]: vector(right)}
    solution = cl.solve_qp(eye(2), q, **blocks, solver="native", on_failure="nan")
    assert status_of(solution) is status
    if status is Status.SOLVED:
        assert torch.allclose(solution.x, -q, rtol=0, atol=1e-14)


def test_a_variable_that_appears_nowhere():
    """Its value is any, its gradient zero, and the report says that the solution is not unique."""
    P, q = torch.diag(vector(1.0, 0.0, 1.0)), vector(1.0, 0.0, -1.0).requires_grad_()
    solution = cl.solve_qp(P, q, G=vector(1.0, 0.0, 1.0).unsqueeze(0), h=vector(5.0), solver="native")
    assert torch.allclose(solution.x[[0, 2]], vector(-1.0, 1.0), rtol=0, atol=1e-14)
    assert bool(solution.x.isfinite().all())
    (grad,) = torch.autograd.grad(solution.x[0] + 2 * solution.x[2], q)
    assert torch.allclose(grad, vector(-1.0, 0.0, -2.0), rtol=0, atol=1e-14)
    assert solution.derivative_report.rank_deficient.all()


def test_a_variable_that_appears_in_the_cost_only():
    P, G = torch.diag(vector(1.0, 0.0, 1.0)), vector(1.0, 0.0, 1.0).unsqueeze(0)
    solution = cl.solve_qp(P, vector(1.0, 1.0, -1.0), G=G, h=vector(5.0), solver="native", on_failure="nan")
    assert status_of(solution) is Status.DUAL_INFEASIBLE


def test_linear_programs_with_and_without_a_minimum():
    q = torch.tensor([[1.0, 2.0], [-1.0, 2.0], [0.0, 1.0]], dtype=torch.float64)
    solution = cl.solve_lp(q, lb=0.0, solver="native", on_failure="nan")
    assert solution.status.tolist() == [int(Status.SOLVED), int(Status.DUAL_INFEASIBLE), int(Status.SOLVED)]
    assert torch.allclose(solution.objective[[0, 2]], vector(0.0, 0.0), rtol=0, atol=1e-8)


@pytest.mark.parametrize("dims", [(1,), (2,), (1, 1, 2), (1, 3, 1)])
def test_cones_of_dimensions_one_and_two(dims):
    """Projection onto them: onto a half-line, and onto |u| <= t, whose generators are orthogonal."""
    y = randn(20, sum(dims), seed=1)
    cones = Cones(second_order=dims)
    found = cl.solve_cone_program(
        eye(cones.rows), -y, -eye(cones.rows), torch.zeros(cones.rows), cones, solver="native"
    )
    assert torch.allclose(found.x, cones.project(y), rtol=0, atol=1e-10)
