"""Smoothed: the central path is found, in the user's units, and the derivative is that of what is returned."""

import math
import pickle

import cvxpy as cp
import pytest
import torch

import convexlayers as cl
from convexlayers.cones import Cones
from convexlayers.derivatives import Cotangents
from convexlayers.derivatives.central import central_point
from convexlayers.engines.given import Given
from convexlayers.errors import ArgumentError, DerivativeWarning
from convexlayers.testing import cone_cases, random_program
from convexlayers.testing.derivative_checks import _line
from convexlayers.testing.pairs import Sampler

CASES = cone_cases()
by_case = pytest.mark.parametrize("cones", CASES.values(), ids=CASES.keys())
DOUBLE = torch.float64
OUTPUTS = ("x", "s", "z", "objective")


def plan_of(problem, derivative):
    flat = [part.reshape(-1, part.shape[-1]) for part in (problem.x, problem.s, problem.z)]
    return Given(*flat, tolerance=1e-9, derivative=derivative).setup(problem.program)


def relative(got, expected):
    return float((got - expected).norm() / expected.norm().clamp(min=1e-300))


def weights(width, mu=1.0):
    return torch.full((width,), mu, dtype=DOUBLE)


# ------------------------------------------------------------------------------------------- the cones' proximal maps


@by_case
@pytest.mark.parametrize("weight", [1e-6, 1e-2, 10.0])
def test_proximal_maps(cones, weight):
    """s and z are inside, s - z = v, and M is the derivative of s, with eigenvalues in (0, 1)."""
    sampler = Sampler.seeded((5,), 3)
    v, d = sampler.normal(cones.rows), sampler.normal(cones.rows)
    w = weights(5, weight)
    s, z, spectrum = cones.smooth(v, w)
    assert torch.allclose(s - z, v, rtol=1e-13, atol=1e-13)
    assert torch.allclose(cones.project(s), s, rtol=1e-12, atol=1e-14)
    assert torch.allclose(cones.project_dual(z), z, rtol=1e-12, atol=1e-14)
    assert torch.allclose(spectrum.mu + spectrum.nu, torch.ones_like(v), rtol=0, atol=4e-16)
    inequality = slice(cones.zero, None)
    assert bool((spectrum.mu[:, inequality] > 0).all() & (spectrum.nu[:, inequality] > 0).all())
    # s bends on the scale of sqrt(weight): the stencil's error of the order step^4 is 1e-12 of it.
    h = 1e-3 * min(1.0, math.sqrt(weight))
    at = {k: cones.smooth(v + k * h * d, w)[0] for k in (-2, -1, 1, 2)}
    difference = (8 * (at[1] - at[-1]) - (at[2] - at[-2])) / (12 * h)
    along = spectrum.basis.unrotate(spectrum.mu.unsqueeze(-1) * spectrum.basis.rotate(d.unsqueeze(-1))).squeeze(-1)
    assert relative(along, difference) <= 1e-8 if cones.rows > cones.zero else bool((along == 0).all())


@by_case
def test_proximal_maps_tend_to_the_projection(cones):
    v = Sampler.seeded((20,), 4).normal(cones.rows)
    s, z, _ = cones.smooth(v, weights(20, 1e-14))
    # They differ by at most sqrt(w) times the root of the barrier's parameter.
    assert torch.allclose(s, cones.project(v), rtol=0, atol=1e-6)
    assert torch.allclose(z, cones.project_dual(-v), rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", [1e-300, 1e-150, 1.0, 1e150])
def test_proximal_maps_of_extreme_sizes_are_finite(size):
    cones = Cones(nonnegative=3, second_order=(1, 3), psd=(2,))
    v = size * Sampler.seeded((4,), 5).normal(cones.rows)
    for w in (1e-16, 1.0, 1e16):
        s, z, spectrum = cones.smooth(v, weights(4, w))
        assert all(bool(part.isfinite().all()) for part in (s, z, spectrum.mu, spectrum.nu))


# ------------------------------------------------------------------------------------------- closed forms


@pytest.mark.parametrize("solver", ["native", "clarabel", "scs", "diffcp"])
@pytest.mark.parametrize("mu", [1e-6, 1e-3, 10.0])
def test_one_variable(solver, mu):
    """min 1/2 x^2 - t x, x >= 0: x^2 - t x = mu."""
    t = torch.tensor([[-1.0], [0.0], [2.0]], dtype=DOUBLE, requires_grad=True)
    solution = cl.solve_qp(torch.eye(1, dtype=DOUBLE), -t, lb=0.0, solver=solver, derivative=cl.Smoothed(mu))
    root = torch.sqrt(t**2 + 4 * mu)
    x = torch.where(t > 0, (t + root) / 2, 2 * mu / (root - t))
    assert torch.allclose(solution.x, x, rtol=1e-9, atol=1e-13)
    assert torch.allclose(solution.duals["lb"], mu / x, rtol=1e-9, atol=1e-13)
    (grad,) = torch.autograd.grad(solution.x.sum(), t, retain_graph=True)
    assert torch.allclose(grad, x / root, rtol=1e-9, atol=1e-13)
    (grad,) = torch.autograd.grad(solution.objective.sum(), t)
    assert torch.allclose(grad, (x - t) * (x / root) - x, rtol=1e-9, atol=1e-13)


def simplex_center(cost, mu):
    """min c'x - mu sum log x, sum x = 1: x_i = mu / (c_i - y) for the y below min c that makes the sum 1."""
    low, high = cost.min() - len(cost) * mu, cost.min() - mu * 1e-12
    for _ in range(200):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if (mu / (cost - middle)).sum() < 1 else (low, middle)
    return mu / (cost - low)


@pytest.mark.parametrize("mu", [1e-4, 1e-1, 10.0])
def test_linear_program_over_the_simplex(mu):
    """From c_i - y = mu / x_i: dx = -diag(x^2) (dc - dy) / mu with dy the mean of dc in the weights x^2."""
    c = torch.tensor([0.3, -0.2, 1.0, -0.1], dtype=DOUBLE, requires_grad=True)
    one = torch.ones(1, 4, dtype=DOUBLE)
    x = cl.solve_lp(c, A=one, b=one[0, :1], lb=0.0, derivative=cl.Smoothed(mu)).x
    center = simplex_center(c.detach(), mu)
    assert torch.allclose(x, center, rtol=1e-8, atol=1e-12)
    jacobian = torch.stack([torch.autograd.grad(x[i], c, retain_graph=True)[0] for i in range(4)])
    square = center**2
    expected = (torch.outer(square, square) / square.sum() - torch.diag(square)) / mu
    assert torch.allclose(jacobian, expected, rtol=1e-7, atol=1e-10 / mu)


def test_exact_forward_returns_the_solution_and_the_derivative_of_the_central_path():
    c = torch.tensor([0.3, -0.2, 1.0, -0.1], dtype=DOUBLE, requires_grad=True)
    one = torch.ones(1, 4, dtype=DOUBLE)
    grads = []
    for forward in ("exact", "smoothed"):
        strategy = cl.Smoothed(0.1, forward=forward)
        solution = cl.solve_lp(c, A=one, b=one[0, :1], lb=0.0, derivative=strategy)
        grads.append(torch.autograd.grad(solution.x[0] + 2 * solution.x[2] + solution.objective, c)[0])
        if forward == "exact":
            assert torch.allclose(solution.x, torch.tensor([0.0, 1.0, 0.0, 0.0], dtype=DOUBLE), atol=1e-8)
    assert torch.allclose(*grads, rtol=1e-9, atol=1e-12)


# ------------------------------------------------------------------------------------------- derivatives


def difference_quotients(problem, theta, lines, mu, step):
    """Of x_mu, s_mu, z_mu and the objective there, along a line of each block, by the central path alone."""
    program, count = problem.program, len(problem.x)
    points = [(k, multiple * step * line.direction) for k, line in enumerate(lines) for multiple in line.stencil]
    moved = [torch.cat([t + d if k == i else t for k, d in points]) for i, t in enumerate(theta)]
    numbers, start = program.evaluate(moved), (problem.x, problem.s, problem.z)
    point = central_point(numbers, *(t.repeat(len(points), 1) for t in start), weights(count * len(points), mu))
    assert bool(point.reached.all())
    values = {"x": point.x, "s": point.s, "z": point.z, "objective": numbers.objective(point.x).unsqueeze(-1)}
    sizes = [count * len(line.stencil) for line in lines]
    pieces = {name: value.split(sizes) for name, value in values.items()}
    return [{name: line.quotient(pieces[name][k], step) for name in OUTPUTS} for k, line in enumerate(lines)]


@by_case
@pytest.mark.parametrize("mu", [1e-3, 1.0])
def test_derivative_against_differences_and_adjoint_identity(cones, mu):
    problem = random_program(cones, batch=(2,), seed=2)
    plan = plan_of(problem, cl.Smoothed(mu))
    theta = problem.theta
    solution = plan.answer(theta)
    assert bool(solution.solved.all())
    sampler = Sampler.seeded((2,), 0)
    w = {name: sampler.normal(*getattr(solution, name).shape[1:]) for name in OUTPUTS}
    gradient = plan.adjoint(theta, solution, Cotangents(*(w[name] for name in OUTPUTS)), [True] * len(theta))
    lines = [_line(problem, info.name, t, sampler) for info, t in zip(problem.program.parameters, theta, strict=True)]
    # x_mu bends on the scale of sqrt(mu), at 1e-3 about 0.03, and (1e-4 / 0.03)^4 = 1e-10.
    quotients = difference_quotients(problem, theta, lines, mu, 5e-4 if mu == 1.0 else 1e-4)
    for k, (line, expected) in enumerate(zip(lines, quotients, strict=True)):
        tangent = plan.tangent(theta, solution, [line.direction if i == k else None for i in range(len(theta))])
        found = {name: getattr(tangent, f"d{name}") for name in OUTPUTS[:3]}
        found["objective"] = tangent.objective.unsqueeze(-1)
        size = max(float(value.norm()) for value in expected.values())
        for name in OUTPUTS:
            assert float((found[name] - expected[name]).norm()) <= 1e-7 * size, (k, name)
        pushed = sum((found[name] * w[name].reshape(2, -1)).sum() for name in OUTPUTS)
        pulled = (gradient[k] * line.direction).sum()
        assert float(pushed) == pytest.approx(float(pulled), rel=1e-9, abs=1e-11 * size)


@pytest.mark.parametrize("mu", [1e-6, 1e-4, 1e-2, 1e-1, 1.0, 10.0])
def test_every_size_of_mu(mu):
    problem = random_program(CASES["all"], batch=(3,), seed=6)
    plan = plan_of(problem, cl.Smoothed(mu))
    solution = plan.answer(problem.theta)
    assert bool(solution.solved.all())
    # s'z = mu times the parameter of the barrier: 4 rows, 1 second-order cone, order 3, and 3 for each of two.
    complementarity = (solution.s * solution.z).sum(-1)
    assert torch.allclose(complementarity, weights(3, mu * (4 + 1 + 3 + 3 + 3)), rtol=1e-6)


@by_case
def test_the_limit_is_the_exact_derivative(cones):
    problem = random_program(cones, batch=(2,), seed=3)
    theta, results = problem.theta, []
    sampler = Sampler.seeded((2,), 1)
    cotangents = Cotangents(*(sampler.normal(*part.shape[1:]) for part in (problem.x, problem.s, problem.z)))
    for strategy in (cl.Exact(), cl.Smoothed(1e-6), cl.Smoothed(1e-8)):
        plan = plan_of(problem, strategy)
        results.append(plan.adjoint(theta, plan.answer(theta), cotangents, [True] * len(theta)))
    exact, far, near = (torch.cat(result, dim=-1) for result in results)
    # The path is smooth at a regular solution: the distance is proportional to mu.
    assert relative(near, exact) <= 1e-4
    assert relative(near, exact) <= 0.02 * relative(far, exact) + 1e-7


def test_weak_activity_gets_the_middle_of_the_one_sided_derivatives():
    t = torch.zeros(1, dtype=DOUBLE, requires_grad=True)
    x = cl.solve_qp(torch.eye(1, dtype=DOUBLE), -t, lb=0.0, derivative=cl.Smoothed(1e-8)).x
    (grad,) = torch.autograd.grad(x.sum(), t)
    assert grad.item() == pytest.approx(0.5, rel=1e-9)


# ------------------------------------------------------------------------------------------- units


@pytest.mark.parametrize("unit", [1e-6, 1e-2, 1e6])
def test_mu_is_in_units_of_the_objective(unit):
    """Objective and mu times a unit: the same point and the same derivative in what was not scaled."""
    problem = random_program(CASES["all"], seed=7)
    results = []
    for factor in (1.0, unit):
        b = problem.b.clone().requires_grad_()
        solution = cl.solve_cone_program(
            factor * problem.P, factor * problem.q, problem.A, b, problem.cones, solver="clarabel",
            derivative=cl.Smoothed(0.01 * factor), tolerance=1e-10,
        )  # fmt: skip
        results.append((solution.x.detach(), *torch.autograd.grad(solution.x.sum(), b)))
    for got, expected in zip(*reversed(results), strict=True):
        assert relative(got, expected) <= 1e-9


@pytest.mark.parametrize("unit", [1e-4, 1e4])
def test_mu_does_not_depend_on_the_units_of_rows_and_variables(unit):
    problem = random_program(CASES["all"], seed=8)
    results = []
    for x_unit, s_unit in ((1.0, 1.0), (unit, 1.0), (1.0, unit)):
        q = (problem.q / x_unit).requires_grad_()
        solution = cl.solve_cone_program(
            problem.P / x_unit**2, q, problem.A * (s_unit / x_unit), problem.b * s_unit, problem.cones,
            solver="clarabel", derivative=cl.Smoothed(0.01), tolerance=1e-10,
        )  # fmt: skip
        x = solution.x / x_unit
        results.append((x.detach(), torch.autograd.grad(x.sum(), q)[0] / x_unit))
    for got in results[1:]:
        assert all(relative(a, b) <= 1e-8 for a, b in zip(got, results[0], strict=True))


# ------------------------------------------------------------------------------------------- layers, failures


@pytest.mark.parametrize("solver", ["native", "clarabel"])
def test_a_vertex_gets_a_direction(solver):
    """Shortest path on a square with two ways: the exact gradient is zero, this one lowers the loss."""
    A = torch.tensor([[1.0, 1.0, 0, 0], [1.0, 0, -1.0, 0], [0, 1.0, 0, -1.0]], dtype=DOUBLE)
    b, cost = torch.tensor([1.0, 0, 0], dtype=DOUBLE), torch.tensor([1.0, 2.0, 1.0, 2.0], dtype=DOUBLE)
    for strategy, moves in ((cl.Exact(), False), (cl.Smoothed(0.3, forward="exact"), True)):
        c = cost.clone().requires_grad_()
        for _ in range(20):
            x = cl.solve_lp(c, A=A, b=b, lb=0.0, solver=solver, derivative=strategy).x
            (grad,) = torch.autograd.grad((x[1] - 1) ** 2, c)
            c = (c - 2.0 * grad).detach().requires_grad_()
        assert bool(x[1] > 0.99) == moves


def layer_gradient_and_difference(layer, values, step):
    """Of a weighted sum of the outputs in the first value, by the layer and by differences of fourth order."""
    leaf = values[0].clone().requires_grad_()
    outputs = layer(leaf, *values[1:])
    sampler = Sampler.seeded((), 5)
    w, d = [sampler.normal(*out.shape) for out in outputs], sampler.normal(*leaf.shape)

    def loss(moved):
        return sum((a * b).sum() for a, b in zip(w, layer(moved, *values[1:]), strict=True))

    (grad,) = torch.autograd.grad(loss(leaf), leaf)
    at = {k: float(loss((leaf + k * step * d).detach())) for k in (-2, -1, 1, 2)}
    return float((grad * d).sum()), (8 * (at[1] - at[-1]) - (at[2] - at[-2])) / (12 * step)


def test_layers_of_every_kind():
    """Duals, norms, entropies, matrices, geometric programs: what the layer returns has the derivative that it says."""
    x, t = cp.Variable(3, name="x"), cp.Parameter(3, name="t")
    S, C = cp.Variable((2, 2), PSD=True), cp.Parameter((2, 2), symmetric=True)
    a, b, k = cp.Variable(pos=True), cp.Variable(pos=True), cp.Parameter(2, pos=True)
    total = cp.sum(x) == 1
    entropy = cp.Problem(cp.Maximize(t @ x + cp.sum(cp.entr(x))), [total, cp.norm(x) <= 0.8])
    corner = cp.Problem(cp.Minimize(cp.norm1(x - t)), [total, x >= 0])
    matrix = cp.Problem(cp.Minimize(cp.sum_squares(S - C)), [cp.trace(S) == 1])
    geometric = cp.Problem(cp.Minimize(a + b), [a * b >= k[0], a <= k[1]])
    point = torch.tensor([0.3, -0.2, 0.9], dtype=DOUBLE)
    for problem, parameter, variables, value, gp in (
        (entropy, t, [x, total.dual_variables[0]], point, False),
        (corner, t, [x, total.dual_variables[0]], point, False),
        (matrix, C, [S], torch.tensor([[1.0, 0.4], [0.4, -0.5]], dtype=DOUBLE), False),
        (geometric, k, [a, b], torch.tensor([2.0, 1.0], dtype=DOUBLE), True),
    ):
        layer = cl.ConvexLayer(problem, [parameter], variables, derivative=cl.Smoothed(0.05), gp=gp, validate=False)
        got, expected = layer_gradient_and_difference(layer, [value], 1e-4)
        assert got == pytest.approx(expected, rel=1e-7)
        assert pickle.loads(pickle.dumps(layer)).engine.derivative == cl.Smoothed(0.05)


def test_single_precision_in_single_precision_out():
    q = torch.tensor([1.0, 2.0], requires_grad=True)
    solution = cl.solve_lp(q, A=torch.ones(1, 2), b=torch.ones(1), lb=0.0, derivative=cl.Smoothed(0.1))
    solution.x[1].backward()
    assert solution.x.dtype == q.grad.dtype == torch.float32
    assert q.grad[1] < 0


def test_constraints_without_interior_are_not_called_solved():
    """x <= 1 and x >= 1 have no central path; an element with one is left alone."""
    h = torch.tensor([[1.0, -1.0], [1.0, 0.0]], dtype=DOUBLE)
    G, q = torch.tensor([[1.0], [-1.0]], dtype=DOUBLE), torch.ones(2, 1, dtype=DOUBLE, requires_grad=True)
    for solver in ("native", "clarabel"):
        solution = cl.solve_lp(q, G, h, solver=solver, derivative=cl.Smoothed(), on_failure="nan")
        assert solution.status.tolist() == [int(cl.Status.INACCURATE), int(cl.Status.SOLVED)]
        assert bool(solution.x[0].isnan().all())
        assert torch.allclose(solution.x[1], cl.solve_lp(q[1], G, h[1], derivative=cl.Smoothed()).x, rtol=1e-12)
        (grad,) = torch.autograd.grad(solution.x.sum(), q)
        assert grad[0].item() == 0
        exact = cl.solve_lp(q, G, h, solver=solver, derivative=cl.Smoothed(forward="exact"))
        with pytest.warns(DerivativeWarning, match="no interior"):
            (grad,) = torch.autograd.grad(exact.x.sum(), q)
        assert bool(grad.isfinite().all())
        assert exact.derivative_report.residual[0] > 1e-6


def test_an_unbounded_set_of_solutions_has_no_central_path():
    q = torch.zeros(1, dtype=DOUBLE)
    solution = cl.solve_lp(q, lb=0.0, derivative=cl.Smoothed(), on_failure="nan")
    assert solution.status.item() == cl.Status.INACCURATE


def test_one_bad_element_leaves_the_others_alone():
    problem = random_program(CASES["all"], batch=(3,), seed=9)
    alone = plan_of(problem, cl.Smoothed()).answer(problem.theta)
    theta = [t.clone() for t in problem.theta]
    theta[1][1, 0] = float("nan")
    together = plan_of(problem, cl.Smoothed()).answer(theta)
    assert together.status.tolist() == [0, int(cl.Status.INVALID_DATA), 0]
    for name in ("x", "s", "z"):
        got, expected = getattr(together, name), getattr(alone, name)
        assert torch.allclose(got[[0, 2]], expected[[0, 2]], rtol=1e-12, atol=1e-13)


def test_arguments_are_checked():
    for wrong in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ArgumentError, match="mu is"):
            cl.Smoothed(wrong)
    with pytest.raises(ArgumentError, match="forward is"):
        cl.Smoothed(forward="both")
