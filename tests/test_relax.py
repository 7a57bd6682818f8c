"""The closest feasible problem: closed forms, both stages against other ways to find them, derivatives, and the rest
of the batch."""

import copy

import cvxpy as cp
import pytest
import torch

import convexlayers as cl
from convexlayers import Status
from convexlayers.errors import ArgumentError, SolverError, UnsupportedProblemError

RELAX = {"relax": "closest_feasible"}


@pytest.fixture(params=["native", "clarabel"])
def solver(request):
    """The name of an engine."""
    return request.param


def random_program(kind, seed):
    """A function of its data, and data for which it has no feasible point."""
    torch.manual_seed(seed)
    n = 4
    G, h, q = torch.randn(9, n).double(), torch.randn(9).double() - 1, torch.randn(n).double()
    P, A, b = (0.5 * torch.eye(n) + 0.1).double(), torch.randn(1, n).double(), torch.randn(1).double()
    if kind == "qp":
        return (lambda *data, **options: cl.solve_qp(*data, validate=False, **options)), [P, q, G, h, A, b]
    if kind == "lp":
        return (lambda *data, **options: cl.solve_lp(*data, lb=-20.0, ub=20.0, **options)), [q, G, h]
    cones = [torch.randn(2, n), torch.randn(2) + 1, 0.3 * torch.randn(n), torch.tensor(-1.0)]
    cones += [torch.randn(2, n), torch.randn(2), 0.3 * torch.randn(n), torch.tensor(0.5)]

    def solve(P, q, G, h, *cones, **options):
        return cl.solve_socp(P, q, [cones[:4], cones[4:]], G, h, validate=False, **options)

    return solve, [P, q, G[:5], h[:5], *(part.double() for part in cones)]


SEEDS = {"qp": (0, 3, 4), "lp": (3, 4, 7), "socp": (0, 3, 8)}
INFEASIBLE = [(kind, seed) for kind, seeds in SEEDS.items() for seed in seeds]


def finite_differences(f, data, step=1e-5):
    """Gradients of a scalar function."""
    grads = []
    for k, block in enumerate(data):
        grad = torch.zeros(block.numel(), dtype=torch.float64)
        for i in range(block.numel()):
            values = []
            for sign in (1, -1):
                moved = [part.clone() for part in data]
                moved[k].view(-1)[i] += sign * step
                values.append(float(f(*moved)))
            grad[i] = (values[0] - values[1]) / (2 * step)
        grads.append(grad.reshape(block.shape))
    return grads


def test_contradictory_bounds(solver):
    low = torch.tensor([[3.0], [0.0], [2.0]], dtype=torch.float64, requires_grad=True)
    high = torch.ones(3, 1, dtype=torch.float64, requires_grad=True)
    q = torch.tensor([-0.5], dtype=torch.float64)
    solution = cl.solve_qp(torch.eye(1).double(), q, lb=low, ub=high, solver=solver, **RELAX)
    assert torch.allclose(solution.x[:, 0], torch.tensor([2.0, 0.5, 1.5]).double(), rtol=0, atol=1e-10)
    assert solution.relaxed.tolist() == [True, False, True]
    expected = torch.tensor([2**0.5, 0.0, 0.5**0.5], dtype=torch.float64)
    assert torch.allclose(solution.violation, expected, rtol=0, atol=1e-9)
    assert "Relaxed: 2 elements (index 0, 2)" in solution.describe()
    solution.x.sum().backward()
    for grad in (low.grad, high.grad):
        assert torch.allclose(grad[:, 0], torch.tensor([0.5, 0.0, 0.5]).double(), rtol=0, atol=1e-10)


def test_contradictory_equalities_are_least_squares(solver):
    torch.manual_seed(0)
    A, b = torch.randn(6, 3).double().requires_grad_(), torch.randn(6).double().requires_grad_()
    weight, q = torch.randn(3).double(), torch.randn(3).double()
    x = cl.solve_qp(torch.eye(3).double(), q, A=A, b=b, solver=solver, **RELAX).x
    reference = torch.linalg.lstsq(A, b).solution
    assert torch.allclose(x, reference, rtol=0, atol=1e-10)
    found = torch.autograd.grad(x @ weight, [A, b])
    for grad, expected in zip(found, torch.autograd.grad(reference @ weight, [A, b]), strict=True):
        assert torch.allclose(grad, expected, rtol=0, atol=1e-9)


def test_the_objective_decides_where_the_violation_does_not(solver):
    """x_0 = 0 and x_0 = 2 leave x_1 + x_2 = 1 and the projection onto it."""
    A = torch.tensor([[1.0, 0, 0], [1.0, 0, 0], [0, 1.0, 1.0]]).double()
    b, q = torch.tensor([0.0, 2.0, 1.0]).double(), torch.tensor([0.0, -3.0, -1.0]).double().requires_grad_()
    solution = cl.solve_qp(torch.eye(3).double(), q, A=A, b=b, solver=solver, **RELAX)
    assert torch.allclose(solution.x, torch.tensor([1.0, 1.5, -0.5]).double(), rtol=0, atol=1e-10)
    solution.x[1].backward()
    assert torch.allclose(q.grad, torch.tensor([0.0, -0.5, 0.5]).double(), rtol=0, atol=1e-10)


def test_a_ball_and_a_halfspace_that_do_not_meet(solver):
    """|x| <= 1 shifted by r in the cone and x_0 >= c shifted by rho; by symmetry x = (t, 0)."""
    c = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
    ball = (torch.eye(2), torch.zeros(2), torch.zeros(2), torch.tensor(1.0))
    G, h = torch.tensor([[-1.0, 0.0]]), -c.reshape(1)
    solution = cl.solve_socp(torch.eye(2), torch.zeros(2), [ball], G, h, solver=solver, **RELAX)
    # The distance of (1, t, 0) from the cone is (t - 1) / sqrt(2): minimize (t - 1)^2 / 2 + (c - t)^2.
    assert torch.allclose(solution.x, torch.tensor([7 / 3, 0.0], dtype=torch.float64), rtol=0, atol=1e-8)
    solution.x[0].backward()
    assert abs(float(c.grad) - 2 / 3) < 1e-8


@pytest.mark.parametrize(("kind", "seed"), INFEASIBLE)
def test_first_stage_against_the_problem_with_slacks(solver, kind, seed):
    """|r| is the smallest of all, found by a program with slacks that knows nothing of stages."""
    solve, data = random_program(kind, seed)
    solution = solve(*data, solver=solver, **RELAX)
    assert bool(solution.relaxed)
    program = solution.cone_solution.program
    A, b, cones = program.dense_A()[0], program.b[0], program.structure.cones
    n, m = A.shape[1], len(b)
    P = torch.diag(torch.cat([torch.zeros(n), torch.ones(m)])).double()
    wide = torch.cat([A, -torch.eye(m).double()], dim=1)
    least = cl.solve_cone_program(P, torch.zeros(n + m).double(), wide, b, cones, solver=solver)
    assert abs(float(least.x[n:].norm() - solution.violation)) < 1e-7
    assert abs(float((A @ solution.x + solution.s - b).norm() - solution.violation)) < 1e-10


@pytest.mark.parametrize(("kind", "seed"), INFEASIBLE)
def test_both_stages_against_the_limit_of_a_penalty(kind, seed):
    """f + |r|^2 / (2 eps) has its minimum within O(eps); Richardson's extrapolation leaves O(eps^2)."""
    solve, data = random_program(kind, seed)
    solution = solve(*data, **RELAX)
    program = solution.cone_solution.program
    A, b, cones = program.dense_A()[0], program.b[0], program.structure.cones
    n, m = A.shape[1], len(b)
    wide = torch.cat([A, -torch.eye(m).double()], dim=1)
    points = []
    for eps in (1e-4, 5e-5):
        P = torch.block_diag(program.dense_P()[0], torch.eye(m).double() / eps)
        q = torch.cat([program.q[0], torch.zeros(m).double()])
        points.append(cl.solve_cone_program(P, q, wide, b, cones).x[:n])
    assert torch.allclose(2 * points[1] - points[0], solution.x, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("kind", "seed"), INFEASIBLE)
def test_derivative_against_finite_differences(solver, kind, seed):
    solve, data = random_program(kind, seed)
    weight = torch.randn(4).double()

    def loss(*data):
        solution = solve(*data, solver=solver, **RELAX)
        return solution.x @ weight + 0.3 * solution.objective

    leaves = [part.clone().requires_grad_() for part in data]
    found = torch.autograd.grad(loss(*leaves), leaves)
    for k, (grad, expected) in enumerate(zip(found, finite_differences(loss, data), strict=True)):
        if kind != "lp" and k == 0:  # P
            expected = (expected + expected.T) / 2
        assert torch.allclose(grad, expected, rtol=1e-6, atol=1e-6)


def test_forward_mode(solver):
    solve, data = random_program("socp", 3)
    tangents = [torch.randn_like(part) for part in data]
    with torch.autograd.forward_ad.dual_level():
        duals = [torch.autograd.forward_ad.make_dual(*pair) for pair in zip(data, tangents, strict=True)]
        dx = torch.autograd.forward_ad.unpack_dual(solve(*duals, solver=solver, **RELAX).x).tangent
    leaves, weight = [part.clone().requires_grad_() for part in data], torch.randn(4).double()
    grads = torch.autograd.grad(solve(*leaves, solver=solver, **RELAX).x @ weight, leaves)
    expected = sum(float((grad * tangent).sum()) for grad, tangent in zip(grads, tangents, strict=True))
    assert float(dx @ weight) == pytest.approx(expected, rel=1e-8)


def test_multipliers_are_those_of_the_shifted_problem(solver):
    for kind, seed in INFEASIBLE:
        solve, data = random_program(kind, seed)
        solution = solve(*data, solver=solver, **RELAX)
        program = solution.cone_solution.program
        x, z = solution.x.unsqueeze(0), solution.z.unsqueeze(0)
        assert (program.P_times(x) + program.q + program.At_times(z)).abs().max() < 1e-7
        assert (solution.z * solution.s).sum().abs() < 1e-7


def make_layer(**options):
    x, low, high = cp.Variable(2), cp.Parameter(2, name="low"), cp.Parameter(name="high")
    problem = cp.Problem(cp.Minimize(cp.sum_squares(x) + cp.norm1(x)), [x >= low, cp.sum(x) <= high])
    return cl.ConvexLayer(problem, [low, high], [x, problem.constraints[1].dual_variables[0]], **options)


def test_a_layer_with_batch_dimensions_and_shared_values(solver):
    low = torch.tensor([[[1.0, 1.0], [0.0, 1.0]], [[0.5, 0.0], [3.0, 3.0]]], requires_grad=True)
    high = torch.tensor(1.5, requires_grad=True)
    solution = make_layer(solver=solver, **RELAX).solve(low, high)
    x, _ = solution.values
    assert x.dtype == torch.float32
    assert x.shape == (2, 2, 2)
    assert solution.relaxed.tolist() == [[True, False], [False, True]]
    # x_0 = x_1 = low - t, 2 (low - t) = 1.5 + t: the shifts are all t.
    for i, j in ((0, 0), (1, 1)):
        t = (2 * float(low[i, j, 0].detach()) - 1.5) / 3
        assert torch.allclose(x[i, j], low[i, j] - t, rtol=0, atol=1e-6)
        assert float(solution.violation[i, j]) == pytest.approx(t * 3**0.5, rel=1e-5)
    x.sum().backward()
    assert float(high.grad) == pytest.approx(4 / 3, rel=1e-5)
    assert torch.allclose(low.grad[0, 0], torch.full((2,), 1 / 3), rtol=0, atol=1e-5)


def test_the_problem_without_a_way_out_has_its_status(solver):
    """Unbounded over the closest feasible points, and 0'x = 1, where no x changes anything."""
    A, b = torch.tensor([[1.0, 0.0], [1.0, 0.0]]).double(), torch.tensor([0.0, 2.0]).double()
    q = torch.tensor([[0.0, 1.0], [1.0, 0.0]]).double().requires_grad_()
    P = torch.diag_embed(torch.tensor([[0.0, 0.0], [0.0, 1.0]]).double())
    solution = cl.solve_qp(P, q, A=A, b=b, on_failure="nan", solver=solver, **RELAX)
    assert solution.status.tolist() == [int(Status.DUAL_INFEASIBLE), int(Status.SOLVED)]
    assert solution.relaxed.tolist() == [False, True]
    assert solution.x[0].isnan().all()
    (solution.x.sum() + solution.objective.sum()).backward()
    assert torch.equal(q.grad[0], torch.zeros(2).double())
    with pytest.raises(SolverError, match="Unbounded"):
        cl.solve_lp(q, A=A, b=b, solver=solver, **RELAX)


def test_rows_that_no_point_changes(solver):
    P, q = torch.eye(2).double(), torch.tensor([-1.0, -2.0]).double()
    solution = cl.solve_qp(P, q, A=torch.zeros(1, 2).double(), b=torch.ones(1).double(), solver=solver, **RELAX)
    assert torch.allclose(solution.x, -q, rtol=0, atol=1e-9)
    assert float(solution.violation) == pytest.approx(1.0)


def test_errors():
    with pytest.raises(ArgumentError, match="relax is 'nearest', expected None or 'closest_feasible'"):
        cl.solve_lp(torch.ones(2), lb=0.0, relax="nearest")
    X = cp.Variable((2, 2), symmetric=True)
    problem = cp.Problem(cp.Minimize(cp.trace(X)), [X >> 0])
    with pytest.raises(UnsupportedProblemError, match=r"this program has psd \[2\]"):
        cl.ConvexLayer(problem, [], [X], **RELAX)


def test_layers_from_programs_and_copies():
    low, high = torch.tensor([[3.0, 3.0]]), torch.tensor([1.0])
    layer = make_layer(**RELAX)
    again = cl.ConvexLayer.from_program(layer.program, relax="closest_feasible")
    for other in (again, copy.deepcopy(layer)):
        assert torch.equal(other(low, high)[0], layer(low, high)[0])


def test_gaps_of_every_size(solver):
    gap = torch.tensor([1e-7, 1e-5, 1e-3, 1.0, 1e3, 1e6], dtype=torch.float64, requires_grad=True)
    eye, zero, high = torch.eye(1).double(), torch.zeros(1).double(), torch.ones(1).double()
    solution = cl.solve_qp(eye, zero, lb=(1 + gap).unsqueeze(-1), ub=high, solver=solver, **RELAX)
    assert solution.relaxed.all()
    solution.x.sum().backward()
    assert torch.allclose(solution.x[:, 0], 1 + gap / 2, rtol=1e-12, atol=0)
    assert torch.allclose(gap.grad, torch.full_like(gap, 0.5), rtol=0, atol=1e-9)


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_many_random_programs(solver, scale):
    torch.manual_seed(0)
    P, q, G, A = torch.eye(10), torch.randn(16, 10), torch.randn(16, 30, 10), 10 * torch.randn(16, 5, 10)
    h, b = scale * (torch.randn(16, 30) - 1), scale * torch.randn(16, 5)
    data = [part.double() for part in (P, q, G, h, A, b)]
    solution = cl.solve_qp(*data, solver=solver, **RELAX)
    assert solution.relaxed.all()
    assert float(torch.stack([solution.primal_residual, solution.dual_residual, solution.gap]).max()) < 1e-7
