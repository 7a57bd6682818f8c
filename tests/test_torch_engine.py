"""The torch engine: its parts, agreement with native, statuses, precision, chunks, derivatives."""

import math
import pickle
from dataclasses import replace

import pytest
import torch

import convexlayers as cl
from convexlayers.cones import Cones
from convexlayers.cones.base import Spectrum
from convexlayers.derivatives import Cotangents
from convexlayers.engines import Native, Torch, make_engine, rescue, select
from convexlayers.engines.base import select_solved
from convexlayers.engines.dense import method
from convexlayers.engines.dense.condensed import Condensed
from convexlayers.engines.dense.derivative import Differentiated
from convexlayers.engines.dense.interior import READY
from convexlayers.engines.dense.product import Product
from convexlayers.engines.dense.units import Scaled, Scales
from convexlayers.engines.torch_dense import TorchState, bytes_per_element
from convexlayers.errors import ArgumentError
from convexlayers.status import Status
from convexlayers.testing import (
    Sampler,
    check_derivative,
    check_solution,
    check_statuses,
    complementary_pair,
    cone_cases,
    infeasible_program,
    random_program,
    unbounded_program,
)

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
CASES = cone_cases()
ALL = CASES["all"]
by_device = pytest.mark.parametrize("device", DEVICES)
by_cones = pytest.mark.parametrize("name", CASES)


def on(device, values):
    return [value.to(device) for value in values]


def relative(found, expected):
    size = expected.norm(dim=-1).clamp(min=1)
    return float(((found.cpu() - expected).norm(dim=-1) / size).max())


# ------------------------------------------------------------------------------------------- its parts


def interior_pair(cones, seed, batch=(4,)):
    """s inside K and z inside K*, in general position to each other."""
    s, _ = complementary_pair(cones, Sampler.seeded(batch, seed), "inside")
    _, z = complementary_pair(cones, Sampler.seeded(batch, seed + 1), "outside")
    return s, z


def matrix_of(spectrum):
    """H = M (I - M)^-1 as a matrix."""
    eye = torch.eye(spectrum.mu.shape[-1], dtype=torch.float64).expand(len(spectrum.mu), -1, -1)
    h = (spectrum.mu / spectrum.nu).unsqueeze(-1)
    return spectrum.basis.unrotate(h * spectrum.basis.rotate(eye))


@pytest.mark.parametrize("name", [name for name in CASES if "zero" not in name and name != "all"])
def test_scaling_maps_multipliers_to_slacks(name):
    s, z = interior_pair(CASES[name], seed=0)
    H = matrix_of(Product(CASES[name]).at(s, z).spectrum(s))
    assert float((H - H.mT).abs().max()) <= 1e-12 * float(H.abs().max())
    assert bool((torch.linalg.eigvalsh(H) > 0).all())
    assert relative((H @ z.unsqueeze(-1)).squeeze(-1), s) <= 1e-12


@pytest.mark.parametrize("name", [name for name in CASES if name != "zero"])
def test_steps_end_at_the_boundary(name):
    """Just before the step of the exit rate both points are inside, just after it one is not."""
    cones = CASES[name]
    s, z = interior_pair(cones, seed=2)
    s[:, : cones.zero] = 0
    ds, dz = (3 * Sampler.seeded((4,), seed).normal(cones.rows) for seed in (4, 5))
    ds[:, : cones.zero] = 0
    rate = Product(cones).at(s, z).exit_rate(ds, dz, torch.zeros(4, dtype=torch.float64))
    # A step of length one that stays inside needs no search in the cones that search.
    for share, inside in ((0.99, True), (1.2, False)):
        step = share / rate.clamp(min=1).unsqueeze(-1)
        points = (s + step * ds, z + step * dz)
        off = torch.maximum(
            (points[0] - cones.project(points[0])).abs().amax(-1),
            (points[1] - cones.project_dual(points[1])).abs().amax(-1),
        )
        for distance, limited in zip(off.tolist(), (rate > 1).tolist(), strict=True):
            assert (distance < 1e-9) == inside or not (limited or inside)


def test_centers_are_mapped_to_themselves():
    """H z = s where both are the center, and H = 0 on equalities."""
    center = Product(ALL).center(torch.zeros(1, ALL.rows, dtype=torch.float64))
    H = matrix_of(Product(ALL).at(center, center).spectrum(center))
    linear = ALL.zero
    assert torch.allclose(H[0, linear:, linear:] @ center[0, linear:], center[0, linear:], atol=1e-12)
    assert torch.equal(H[0, :linear], torch.zeros_like(H[0, :linear]))


def test_condensed_system_against_a_dense_solve():
    """With mu = 0 (an equality), nu = 0 (an inactive row) and everything between."""
    sampler = Sampler.seeded((3,), 0)
    n, m = 6, 4
    root, A = sampler.normal(n, n), sampler.normal(m, n)
    P = root @ root.mT
    mu = torch.tensor([0.0, 1.0, 0.5, 1e-6], dtype=torch.float64).expand(3, -1)
    spectrum = Spectrum(mu, 1 - mu, CASES["nonnegative"].spectrum(torch.ones(3, m).double()).basis)
    r1, r2 = sampler.normal(n, 2), sampler.normal(m, 2)
    numbers = Scaled(Cones(nonnegative=m), P, P[..., 0], A, A[..., 0], Scales.ones(P, n, m))
    system = Condensed.factor(numbers, spectrum)
    found = system.solve(r1, system.from_rows(r2), 4)
    dx, w, residual = found.dx, found.w, found.residual
    rows = (1 - mu).sqrt().unsqueeze(-1) * A
    K = torch.cat([torch.cat([P, rows.mT], -1), torch.cat([rows, torch.diag_embed(-mu)], -1)], -2)
    expected = torch.linalg.solve(K, torch.cat([r1, (1 - mu).sqrt().unsqueeze(-1) * r2], dim=-2))
    assert float(residual.max()) <= 1e-14
    assert torch.allclose(torch.cat([dx, w], dim=-2), expected, rtol=1e-9, atol=1e-9)


# ------------------------------------------------------------------------------------------- solutions


@by_device
@by_cones
def test_agreement_with_native(name, device):
    """Programs of every structure, more than 500 in all."""
    for seed, activity in ((21, "boundary"), (22, "mixed")):
        problem = random_program(CASES[name], batch=(11,), seed=seed, activity=activity, draws=4)
        native = Native().setup(problem.program).solve(problem.theta)
        found = Torch().setup(problem.program).solve(on(device, problem.theta))
        assert found.x.device.type == device
        assert found.status.tolist() == native.status.tolist() == [0] * 11
        assert found.rescued is None
        for part in ("x", "s", "z"):
            assert relative(getattr(found, part), getattr(native, part)) <= 1e-7, part
        assert torch.allclose(found.objective.cpu(), native.objective, rtol=1e-7, atol=1e-7)
        assert float(found.residuals.largest.max()) <= 1e-9


@by_cones
def test_linear_objectives(name):
    check_solution(Torch(), random_program(CASES[name], rank=0, batch=(4,), seed=23, draws=4), 1e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@by_cones
def test_precision_of_the_iterations_does_not_show(name, dtype):
    check_solution(Torch(dtype=dtype), random_program(CASES[name], batch=(4,), seed=24, draws=4), 1e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_statuses_in_either_precision(dtype):
    check_statuses(Torch(dtype=dtype), random_program(ALL, seed=25))


@by_device
@by_cones
def test_certificates(name, device):
    cones = CASES[name]
    for make, code in ((infeasible_program, Status.PRIMAL_INFEASIBLE), (unbounded_program, Status.DUAL_INFEASIBLE)):
        problem = make(cones, n=4, batch=(3,), seed=26)
        solution = Torch().setup(problem.program).solve(on(device, problem.theta))
        assert solution.status.tolist() == [int(code)] * 3
        assert solution.x.isnan().all()


def test_everything_at_once_beside_each_other():
    check_statuses(Torch(), random_program(ALL, seed=27))


def test_iteration_limit_is_a_limit():
    problem = random_program(ALL, batch=(3,), seed=28)
    solution = Torch(max_iterations=2).setup(problem.program).solve(problem.theta)
    assert solution.status.tolist() == [int(Status.MAX_ITERATIONS)] * 3
    assert solution.iterations.tolist() == [2] * 3
    assert solution.rescued is None


def test_tolerance_saves_iterations():
    problem = random_program(Cones(second_order=(5, 5), psd=(4,)), batch=(8,), seed=29)
    loose, tight = (Torch(tolerance=t).setup(problem.program).solve(problem.theta) for t in (1e-3, 1e-10))
    assert bool(loose.solved.all() and tight.solved.all())
    assert int(loose.iterations.sum()) <= int(tight.iterations.sum())
    assert float(tight.residuals.largest.max()) <= 1e-10


def test_no_rows_and_equalities_alone():
    sampler = Sampler.seeded((3,), 30)
    root, q = sampler.normal(4, 4), sampler.normal(4)
    P = root @ root.mT + torch.eye(4, dtype=torch.float64)
    x = cl.solve_qp(P, q, solver="torch").x
    assert torch.allclose(x, torch.linalg.solve(P, -q), rtol=0, atol=1e-12)
    A, b = sampler.normal(2, 4), sampler.normal(2)
    solution = cl.solve_qp(P, q, A=A, b=b, solver="torch")
    assert torch.allclose((A @ solution.x.unsqueeze(-1)).squeeze(-1), b, rtol=0, atol=1e-12)
    assert cl.solve_qp(P[:0], q[:0], solver="torch").x.shape == (0, 4)


# ----------------------------------------------------------------------------------- active sets of quadratic programs


def quadratic_programs(n, m, batch=32, seed=40):
    """Dense, strictly convex, with inequalities."""
    sampler = Sampler.seeded((batch,), seed)
    root, q, G = sampler.normal(n, n), sampler.normal(n), sampler.normal(m, n)
    return root @ root.mT / n + 0.05 * torch.eye(n, dtype=torch.float64), 3 * q, G, sampler.positive(m)


def watch(monkeypatch, name):
    """Calls of a step of the method, with what they returned."""
    calls, original = [], getattr(method, name)

    def watched(*args):
        calls.append((args, original(*args)))
        return calls[-1][1]

    monkeypatch.setattr(method, name, watched)
    return calls


def test_active_sets_that_settle_need_no_iteration(monkeypatch):
    """A handful of factorizations, and the solution is exact."""
    P, q, G, h = quadratic_programs(30, 30, batch=8, seed=41)
    iterations = watch(monkeypatch, "iterate")
    solution = cl.solve_qp(P, q, G, h, solver="torch")
    assert bool(solution.solved.all())
    assert iterations == []
    assert int(solution.iterations.max()) <= 8
    assert float(solution.primal_residual.max()) <= 1e-12
    assert float(solution.dual_residual.max()) <= 1e-12
    active = solution.z > solution.s
    assert bool(active.any(-1).all())
    assert not bool(active.all(-1).any())
    assert relative(solution.x, cl.solve_qp(P, q, G, h, solver="native").x) <= 1e-9


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_active_sets_that_do_not_settle_are_left_to_iterations(monkeypatch, dtype):
    """Beside others that do, and every element is the same alone."""
    numbers = quadratic_programs(10, 11, seed=43)
    calls = watch(monkeypatch, "settle")
    solution = cl.solve_qp(*numbers, solver=Torch(dtype=dtype))
    settled = calls[0][1].code == READY
    assert bool(settled.any())
    assert not bool(settled.all())
    assert bool(solution.solved.all())
    assert float(solution.primal_residual.max()) <= 1e-8
    assert float(solution.dual_residual.max()) <= 1e-8
    assert relative(solution.x, cl.solve_qp(*numbers, solver="native").x) <= 1e-8
    for i in (int(settled.nonzero()[0]), int((~settled).nonzero()[0])):
        alone = cl.solve_qp(*(part[i : i + 1] for part in numbers), solver=Torch(dtype=dtype))
        assert torch.equal(alone.x[0], solution.x[i])


def test_active_sets_with_equalities_degenerate_rows_and_no_quadratic_term(monkeypatch):
    """Repeated rows, a row that holds with equality and a zero multiplier, P = 0 in one element."""
    P = torch.eye(5, dtype=torch.float64).repeat(3, 1, 1)
    P[2] = 0
    q = torch.zeros(3, 5, dtype=torch.float64)
    # The first one has x0 = 1 without a bound.
    q[0, 0], q[1, 0], q[1, 1] = -1.0, -3.0, 0.5
    q[2] = torch.tensor([-1.0, -2, 1, 0, 0])
    G, h = torch.eye(5, dtype=torch.float64)[[0, 0, 1, 3]], torch.ones(4, dtype=torch.float64)
    A, b = torch.tensor([[0.0, 1, 1, 0, 0]], dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    calls = watch(monkeypatch, "settle")
    solution = cl.solve_qp(P, q, G, h, A, b, solver="torch")
    assert (calls[0][1].code == READY).tolist() == [True, True, False]
    assert bool(solution.solved.all())
    expected = torch.tensor([[1.0, 0, 0, 0, 0], [1, -0.25, 0.25, 0, 0]], dtype=torch.float64)
    assert torch.allclose(solution.x[:2], expected, rtol=0, atol=1e-9)
    assert torch.allclose(solution.x[2, :3], torch.tensor([1.0, 1, -1], dtype=torch.float64), rtol=0, atol=1e-7)


def test_active_sets_are_not_tried_with_many_rows_or_curved_cones(monkeypatch):
    calls = watch(monkeypatch, "settle")
    assert bool(cl.solve_qp(*quadratic_programs(6, 12), solver="torch").solved.all())
    problem = random_program(Cones(second_order=(4,)), seed=44)
    assert bool(Torch().setup(problem.program).solve(problem.theta).all_solved)
    assert calls == []


def test_active_sets_settle_at_degenerate_solutions(monkeypatch):
    """Every row holds with equality, every other one with a zero multiplier: rounding does not keep them going."""
    sampler, n = Sampler.seeded((8,), 3), 20
    root, x, G, z = sampler.normal(n, n), sampler.normal(n), sampler.normal(n, n), sampler.positive(n)
    P, z[:, ::2] = root @ root.mT / n + 0.05 * torch.eye(n, dtype=torch.float64), 0
    h, q = (G @ x.unsqueeze(-1)).squeeze(-1), -(P @ x.unsqueeze(-1) + G.mT @ z.unsqueeze(-1)).squeeze(-1)
    calls = watch(monkeypatch, "settle")
    solution = cl.solve_qp(P, q, G, h, solver="torch")
    assert int((calls[0][1].code == READY).sum()) >= 7
    assert relative(solution.x, x) <= 1e-11


def test_one_row_and_no_minimum(monkeypatch):
    """P = 0 is not tried, though no more than one row can change; what is found far from anything is not believed."""
    P = torch.tensor([[[0.0, 0.0], [0.0, 0.0]], [[1.0, 0.0], [0.0, 0.0]]], dtype=torch.float64)
    q = torch.tensor([-1.0, 1.0], dtype=torch.float64)
    G, h = torch.tensor([[1.0, 0.0]], dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    calls = watch(monkeypatch, "settle")
    solution = cl.solve_qp(P, q, G, h, solver="torch", on_failure="nan")
    assert int(calls[0][1].code[0]) != READY
    assert solution.status.tolist() == [int(Status.DUAL_INFEASIBLE)] * 2


def test_active_sets_keep_the_iteration_limit():
    numbers = quadratic_programs(30, 30, batch=8, seed=41)
    solution = cl.solve_qp(*numbers, solver=Torch(max_iterations=8), on_failure="nan")
    assert int(solution.iterations.max()) <= 8
    assert set(solution.status.tolist()) == {int(Status.SOLVED), int(Status.MAX_ITERATIONS)}


def test_chunks_are_bitwise_the_whole():
    problem = random_program(ALL, batch=(9,), seed=31)
    whole = Torch().setup(problem.program)
    size = bytes_per_element(problem.program.structure)
    chunked = Torch(chunk_bytes=4 * size).setup(problem.program)
    assert chunked.chunk_size(torch.device("cpu")) == 4
    assert Torch(chunk_bytes=1).setup(problem.program).chunk_size(torch.device("cpu")) == 1
    one, other = (plan.solve(problem.theta) for plan in (whole, chunked))
    weights = [Sampler.seeded((9,), 32).normal(value.shape[-1]) for value in (one.x, one.s, one.z)]
    for part in ("x", "s", "z", "objective", "status", "iterations"):
        assert torch.equal(getattr(one, part), getattr(other, part)), part
    grads = [
        plan.adjoint(problem.theta, solution, Cotangents(*weights), [True] * 4)
        for plan, solution in ((whole, one), (chunked, other))
    ]
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


@pytest.mark.parametrize("size", [3, 30, 120])
def test_elements_are_bitwise_the_same_alone(size):
    """Small and larger programs: BLAS goes other ways for other sizes."""
    sampler = Sampler.seeded((5,), 33)
    root, q, G = sampler.normal(size, size), sampler.normal(size), sampler.normal(size + 7, size)
    P, h = root @ root.mT / size + torch.eye(size).double(), sampler.positive(size + 7)
    together = cl.solve_qp(P, q, G, h, solver="torch")
    for i in (0, 4):
        alone = cl.solve_qp(P[i : i + 1], q[i : i + 1], G[i : i + 1], h[i : i + 1], solver="torch")
        assert torch.equal(alone.x[0], together.x[i])


def test_stalled_elements_go_to_clarabel(monkeypatch):
    problem = random_program(ALL, batch=(3,), seed=34)
    theta = [value.clone() for value in problem.theta]
    theta[1][1, 0] = math.nan
    monkeypatch.setattr(rescue, "RESCUABLE", (Status.SOLVED,) * len(rescue.RESCUABLE))
    plan = Torch().setup(problem.program)
    solution = plan.solve(theta)
    assert solution.rescued.tolist() == [True, False, True]
    assert solution.status.tolist() == [0, int(Status.INVALID_DATA), 0]
    assert relative(solution.x[::2], problem.x[::2]) <= 1e-7
    ones = Cotangents(torch.ones_like(solution.x), None, None)
    gradient = plan.adjoint(theta, solution, ones, [True] * 4)[1]
    assert bool((gradient[::2] != 0).any())
    assert torch.equal(gradient[1], torch.zeros_like(gradient[1]))


# ------------------------------------------------------------------------------------------- derivatives


@by_cones
def test_derivatives(name):
    check_derivative(Torch(), random_program(CASES[name], batch=(3,), seed=35, draws=8))


@by_device
def test_gradients_agree_with_native(device):
    problem = random_program(ALL, batch=(5,), seed=36)
    values = (problem.P, problem.q, problem.A, problem.b)
    grads = []
    for solver, where in (("native", "cpu"), ("torch", device)):
        leaves = [value.to(where).requires_grad_() for value in values]
        solution = cl.solve_cone_program(*leaves, problem.cones, solver=solver)
        total = solution.x.square().sum() + solution.s.sum() - 2 * solution.z.sum() + solution.objective.sum()
        grads.append(torch.autograd.grad(total, leaves))
    for got, expected in zip(grads[1], grads[0], strict=True):
        assert got.device.type == device
        assert float((got.cpu() - expected).norm()) <= 1e-8 * float(expected.norm())


def test_forward_mode_and_gradcheck():
    sampler = Sampler.seeded((2,), 37)
    q, G = sampler.normal(3).requires_grad_(), sampler.normal(4, 3).requires_grad_()
    h = sampler.positive(4).requires_grad_()

    def solve(q, G, h):
        return cl.solve_qp(torch.eye(3, dtype=torch.float64), q, G, h, solver="torch").x

    assert torch.autograd.gradcheck(solve, (q, G, h), eps=1e-6, atol=1e-6, check_forward_ad=True)


def test_the_last_factorization_serves_the_derivative(monkeypatch):
    """Bitwise what a new one does, and only where the active sets are those of the solution."""
    P, q, G, h = quadratic_programs(30, 30, batch=8, seed=41)
    numbers = [part.requires_grad_() for part in (P, q, G, h)]
    weights = Sampler.seeded((8,), 42).normal(30)
    factored, original = [], Condensed.factor.__func__

    def factor(cls, *args):
        factored.append(args)
        return original(cls, *args)

    def gradients():
        x = cl.solve_qp(*numbers, solver="torch").x
        monkeypatch.setattr(Condensed, "factor", classmethod(factor))
        grads = torch.autograd.grad((x * weights).sum(), numbers)
        monkeypatch.undo()
        return grads

    reused = gradients()
    assert factored == []
    begin = method._begin
    monkeypatch.setattr(method, "_begin", lambda *args: (begin(*args)[0], None))
    anew = gradients()
    assert len(factored) == 1
    assert all(torch.equal(a, b) for a, b in zip(reused, anew, strict=True))


def test_a_factorization_of_another_active_set_is_not_used():
    problem = random_program(Cones(nonnegative=5), seed=43)
    plan = Torch().setup(problem.program)
    solution = plan.solve(problem.theta)
    elements = select_solved(solution, torch.arange(solution.program.batch))
    at = next(iter(plan._differentiated(elements)))[1]
    mu = at.system.spectrum.mu.clone()
    mu[0, 0] = 1 - mu[0, 0]
    other = replace(at.system, spectrum=replace(at.system.spectrum, mu=mu))
    point = at.x, at.s, at.z
    assert Differentiated.at(at.program, point, at.numbers, at.system).system is at.system
    anew = Differentiated.at(at.program, point, at.numbers, other).system
    assert torch.equal(anew.cholesky, at.system.cholesky)
    assert torch.equal(anew.spectrum.mu, at.system.spectrum.mu)


def test_singular_systems_are_left_to_exact():
    """Twice the same equality: multipliers are not unique, the derivative of x is."""
    A = torch.tensor([[1.0, 1.0, 1.0], [1.0, 1.0, 1.0]], dtype=torch.float64)
    q = torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64, requires_grad=True)
    solution = cl.solve_qp(torch.eye(3), q, A=A, b=torch.ones(2), solver="torch")
    weight = torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64)
    (grad,) = torch.autograd.grad(solution.x, q, weight)
    # x = (1 - sum(-q)) / 3 - q: the projection of -weight onto sum = 0.
    assert torch.allclose(grad, -(weight - 1 / 3), rtol=0, atol=1e-10)
    assert bool(solution.derivative_report.rank_deficient)


@pytest.mark.parametrize("derivative", [cl.Smoothed(mu=1e-2), cl.Perturbed(tau=1e-2)], ids=["smoothed", "perturbed"])
def test_other_strategies(derivative):
    grads = []
    for solver in ("native", "torch"):
        cost = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64, requires_grad=True)
        one = torch.ones(1, 3, dtype=torch.float64)
        x = cl.solve_lp(cost, A=one, b=one[0, :1], lb=0.0, derivative=derivative, solver=solver).x
        grads.append(torch.autograd.grad(x[0], cost)[0])
    assert torch.allclose(*grads, rtol=1e-6, atol=1e-9)


# ------------------------------------------------------------------------------------------- choosing and configuring


def test_wrong_settings_are_named():
    for settings, named in (({"chunk_bytes": 0}, "chunk_bytes"), ({"dtype": torch.float16}, "dtype")):
        with pytest.raises(ArgumentError, match=named):
            Torch(**settings)
    with pytest.raises(ArgumentError, match="no_such_thing"):
        Torch(options={"no_such_thing": 1}).setup(random_program(ALL).program)


@by_device
def test_auto_leaves_data_where_they_are(device, monkeypatch):
    """On the CPU the test stands in for a device: what is elsewhere goes to torch, forward and backward."""
    problem = random_program(ALL, batch=(2,), seed=38)
    plan = pickle.loads(pickle.dumps(make_engine("auto").setup(problem.program)))
    theta = on(device, problem.theta)
    assert not isinstance(plan.solve(problem.theta).engine_state, TorchState)
    if device == "cpu":
        monkeypatch.setattr(select, "is_elsewhere", lambda theta: True)
    solution = plan.solve(theta)
    assert isinstance(solution.engine_state, TorchState)
    assert solution.x.device.type == device
    ones = Cotangents(*(torch.ones_like(part) for part in (solution.x, solution.s, solution.z)))
    grads = plan.adjoint(theta, solution, ones, [True] * 4)
    tangents = plan.tangent(theta, solution, [torch.ones_like(value) for value in theta])
    pulled = sum(float(grad.sum()) for grad in grads)
    pushed = sum(float(part.sum()) for part in (tangents.dx, tangents.ds, tangents.dz))
    assert math.isclose(pulled, pushed, rel_tol=1e-8)
    assert plan.resolving_engine == make_engine("auto")
