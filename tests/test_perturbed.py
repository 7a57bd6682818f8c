"""Perturbed: LPGD's directions, their limit, their scale, and diffcp's for comparison."""

import math

import pytest
import torch

import convexlayers as cl
from convexlayers.derivatives import Cotangents, Perturbed
from convexlayers.engines.given import Given
from convexlayers.errors import ArgumentError, ConvexLayersError, DerivativeWarning
from convexlayers.scaling import find_scaling
from convexlayers.testing import cone_cases, random_program
from convexlayers.testing.pairs import Sampler

CASES = cone_cases()
DOUBLE = torch.float64
ONE = torch.ones(1, 3, dtype=DOUBLE)


def relative(got, expected):
    return float((got - expected).norm() / expected.norm().clamp(min=1e-300))


def adjoint(problem, strategy, factor=1.0, seed=1, parts=(1, 1, 1)):
    flat = [part.reshape(-1, part.shape[-1]) for part in (problem.x, problem.s, problem.z)]
    plan = Given(*flat, tolerance=1e-9, derivative=strategy).setup(problem.program)
    theta, sampler = problem.theta, Sampler.seeded((len(flat[0]),), seed)
    weights = [factor * on * sampler.normal(part.shape[-1]) for on, part in zip(parts, flat, strict=True)]
    solution = plan.answer(theta)
    grads = plan.adjoint(theta, solution, Cotangents(*weights, factor * sampler.normal()), [True] * len(theta))
    return torch.cat(grads, dim=-1), solution


def top_k(cost, strategy, solver="native", k=1.0):
    """The k entries of lowest cost."""
    return cl.solve_lp(cost, A=torch.ones(1, cost.shape[-1], dtype=DOUBLE), b=torch.full((1,), k, dtype=DOUBLE), lb=0.0,
                       ub=1.0, solver=solver, derivative=strategy)  # fmt: skip


# ------------------------------------------------------------------------------------------- the limit


@pytest.mark.parametrize("name", ["zero+nonnegative", "second_order", "psd", "exponential", "power", "all"])
def test_the_limit_is_the_exact_derivative(name):
    """The average's error is of the second order in tau, that of one side of the first; the solver's is 1e-12 / tau."""
    problem = random_program(CASES[name], batch=(2,), seed=3)
    exact, _ = adjoint(problem, cl.Exact())
    far, near = (relative(adjoint(problem, Perturbed(tau))[0], exact) for tau in (1e-2, 1e-4))
    assert near <= 1e-5
    assert near <= 1e-2 * far + 1e-7
    for side in ("lower", "upper"):
        assert relative(adjoint(problem, Perturbed(1e-5, side=side))[0], exact) <= 1e-3


def test_with_a_term_that_keeps_it_near_the_limit_is_another_one():
    """min 1/2 p x^2 - t x: x = t / p, and dx/dt = 1 / (p + rho'), rho' = rho |t| / |x| = rho p."""
    t = torch.tensor([3.0], dtype=DOUBLE, requires_grad=True)
    P = torch.full((1, 1), 2.0, dtype=DOUBLE)
    for rho in (0.0, 0.5, 2.0):
        x = cl.solve_qp(P, -t, derivative=Perturbed(1e-3, rho)).x
        (grad,) = torch.autograd.grad(x.sum(), t)
        assert grad.item() == pytest.approx(0.5 / (1 + rho), rel=1e-9)


@pytest.mark.parametrize("solver", ["native", "clarabel", "scs", "diffcp"])
def test_every_engine(solver):
    problem = random_program(CASES["zero+nonnegative"], seed=4)
    grads = []
    for strategy in (cl.Exact(), Perturbed(1e-3)):
        q = problem.q.clone().requires_grad_()
        solution = cl.solve_cone_program(
            problem.P, q, problem.A, problem.b, problem.cones, solver=solver, derivative=strategy
        )
        grads.append(torch.autograd.grad(solution.x.square().sum() + solution.z.sum(), q)[0])
    # A quadratic program is piecewise linear in q and b, so that differences are exact up to the solver's tolerance.
    assert relative(grads[1], grads[0]) <= 1e-5


def test_forward_mode():
    problem = random_program(CASES["all"], seed=5)
    flat = [part.reshape(-1, part.shape[-1]) for part in (problem.x, problem.s, problem.z)]
    tangents, sampler = [], Sampler.seeded((1,), 2)
    directions = [sampler.normal(t.shape[-1]) for t in problem.theta]
    n = problem.q.shape[-1]
    square = directions[0].reshape(1, n, n)
    directions[0] = (square + square.mT).reshape(1, -1)
    for strategy in (cl.Exact(), Perturbed(1e-4)):
        plan = Given(*flat, tolerance=1e-9, derivative=strategy).setup(problem.program)
        tangents.append(plan.tangent(problem.theta, plan.answer(problem.theta), directions))
    exact, found = tangents
    assert relative(found.objective, exact.objective) <= 1e-9
    assert all(relative(getattr(found, name), getattr(exact, name)) <= 1e-5 for name in ("dx", "ds", "dz"))


# ------------------------------------------------------------------------------------------- scale


@pytest.mark.parametrize("side", ["average", "lower", "upper"])
def test_homogeneous_in_the_cotangent(side):
    problem = random_program(CASES["nonnegative"], batch=(2,), seed=6)
    plain, _ = adjoint(problem, Perturbed(0.1, side=side))
    for exponent in (-300, -12, -8, 8, 12, 100):
        scaled, _ = adjoint(problem, Perturbed(0.1, side=side), 10.0**exponent)
        # The perturbed data differ in the last digit, and what the solver makes of that is divided by tau.
        assert relative(scaled * 10.0**-exponent, plain) <= 1e-7, exponent


@pytest.mark.parametrize("unit", [1e-6, 1e6])
def test_independent_of_the_units_of_the_objective(unit):
    cost = torch.tensor([1.0, 1.3, 3.0], dtype=DOUBLE)
    grads = []
    for factor in (1.0, unit):
        c = (factor * cost).requires_grad_()
        grads.append(factor * torch.autograd.grad(top_k(c, Perturbed(0.5)).x[1], c)[0])
    assert torch.allclose(*grads, rtol=1e-6)


def test_a_zero_cotangent_gives_zero():
    problem = random_program(CASES["nonnegative"], batch=(2,), seed=6)
    grad, solution = adjoint(problem, Perturbed(), 0.0)
    assert bool((grad == 0).all())
    assert solution.report.residual.tolist() == [0, 0]


@pytest.mark.parametrize("solver", ["native", "clarabel"])
def test_elements_do_not_depend_on_each_other(solver):
    """Cotangents of all sizes in one batch, zero among them, and a failed element."""
    generator = torch.Generator().manual_seed(1)
    cost = torch.rand(5, 4, generator=generator, dtype=DOUBLE) + 1
    cost[3, 0] = math.nan
    factor = torch.tensor([1e-12, 1.0, 0.0, 1.0, 1e12], dtype=DOUBLE)
    c = cost.clone().requires_grad_()
    options = {"A": torch.ones(1, 4, dtype=DOUBLE), "b": torch.ones(1, dtype=DOUBLE), "lb": 0.0, "solver": solver}
    x = cl.solve_lp(c, **options, derivative=Perturbed(0.5), on_failure="nan").x
    (grad,) = torch.autograd.grad((factor * x[:, 1]).sum(), c)
    assert bool((grad[2:4] == 0).all())
    for row in (0, 1, 4):
        alone = cost[row].clone().requires_grad_()
        x = cl.solve_lp(alone, **options, derivative=Perturbed(0.5)).x
        (expected,) = torch.autograd.grad(factor[row] * x[1], alone)
        assert expected.abs().max() > 0.1 * factor[row]
        assert relative(grad[row], expected) <= 1e-7


def test_the_optimal_value_goes_by_the_envelope_theorem():
    c = torch.tensor([1.0, 2.0, 3.0], dtype=DOUBLE, requires_grad=True)
    solution = top_k(c, Perturbed())
    (grad,) = torch.autograd.grad(solution.objective, c)
    assert torch.allclose(grad, solution.x.detach(), atol=1e-9)


# ------------------------------------------------------------------------------------------- vertices


@pytest.mark.parametrize("solver", ["native", "clarabel"])
def test_directions_at_a_vertex(solver):
    """Lowest of three: exact zero; with q moved by tau max|q| = 1.5 to another one, the difference of vertices."""
    c = torch.tensor([1.0, 2.0, 3.0], dtype=DOUBLE, requires_grad=True)
    solution = top_k(c, cl.Exact(), solver)
    assert torch.autograd.grad(-solution.x[1], c)[0].abs().max() <= 1e-12
    assert solution.derivative_report.locally_constant.tolist() == [True]
    # l = -x_1: q - t e_1 with t = 1.5 makes entry 1 the lowest, q + t e_1 leaves entry 0.
    solution = top_k(c, Perturbed(0.5), solver)
    (grad,) = torch.autograd.grad(-solution.x[1], c)
    assert torch.allclose(grad, torch.tensor([-1.0, 1.0, 0.0], dtype=DOUBLE) / 3.0, atol=1e-6)
    assert solution.derivative_report.locally_constant.tolist() == [False]
    lower, upper = (
        torch.autograd.grad(-top_k(c, Perturbed(0.5, side=side), solver).x[1], c)[0] for side in ("lower", "upper")
    )
    assert torch.allclose(lower, 2 * grad, atol=1e-6)
    assert torch.allclose(upper, torch.zeros_like(grad), atol=1e-6)
    # Not long enough to leave the vertex: said so.
    solution = top_k(c, Perturbed(0.1), solver)
    assert torch.autograd.grad(-solution.x[1], c)[0].abs().max() <= 1e-6
    assert solution.derivative_report.locally_constant.tolist() == [True]


@pytest.mark.parametrize("strategy", [Perturbed(0.3), Perturbed(0.3, 0.1), cl.Smoothed(0.3, forward="exact")])
def test_gradient_steps_learn_a_choice(strategy):
    """Costs of 8 elements, of which the loss wants others than the cheapest: it falls to zero."""
    generator = torch.Generator().manual_seed(0)
    cost = torch.rand(8, 5, generator=generator, dtype=DOUBLE) + 1
    target = torch.nn.functional.one_hot(torch.arange(8) % 5, 5).to(DOUBLE)
    losses = []
    for _ in range(40):
        c = cost.requires_grad_()
        loss = (top_k(c, strategy).x - target).square().sum(-1)
        losses.append(loss.detach())
        (grad,) = torch.autograd.grad(loss.sum(), c)
        cost = (c - 0.2 * grad).detach()
    assert float(losses[0].mean()) > 0.5
    assert float(losses[-1].mean()) <= 1e-6
    exact = top_k(cost.requires_grad_(), cl.Exact()).x
    assert torch.autograd.grad((exact - 1 - target).square().sum(), cost)[0].abs().max() <= 1e-9


# ------------------------------------------------------------------------------------------- diffcp


@pytest.mark.parametrize("side", ["average", "lower", "upper"])
def test_against_diffcp(side):
    diffcp = pytest.importorskip("diffcp")
    problem = random_program(CASES["nonnegative"], seed=11)
    P, q, A, b = (part for part in (problem.P, problem.q, problem.A, problem.b))
    weights = (torch.linspace(-1, 1, len(q), dtype=DOUBLE), torch.linspace(1, 2, len(b), dtype=DOUBLE))
    values = [q.clone().requires_grad_(), b.clone().requires_grad_()]
    solution = cl.solve_cone_program(P, values[0], A, values[1], problem.cones, derivative=Perturbed(0.3, side=side))
    ours = torch.autograd.grad((weights[0] * solution.x).sum() + (weights[1] * solution.z).sum(), values)
    # tau in diffcp's units.
    numbers = solution.cone_solution.program
    scaling = find_scaling(numbers)
    dual = torch.cat([q, P @ problem.x, A.T @ problem.z]).abs().max() * scaling.tau / scaling.omega
    primal = torch.cat([b, A @ problem.x, problem.s]).abs().max() / scaling.sigma
    unit = torch.maximum(
        (scaling.tau * weights[0]).abs().max() / dual, (scaling.omega / scaling.sigma * weights[1]).abs().max() / primal
    )
    tau = float(0.3 / unit * scaling.omega)
    import numpy as np
    import scipy.sparse as sp

    mode = {"average": "lpgd", "lower": "lpgd_right", "upper": "lpgd_left"}[side]
    *_, DT = diffcp.solve_and_derivative(
        sp.csc_matrix(A.numpy()), b.numpy(), q.numpy(), {"l": len(b)}, P=sp.csc_matrix(np.triu(P.numpy())), mode=mode,
        solve_method="Clarabel", derivative_kwargs={"tau": tau, "rho": 0.0}, tol_gap_abs=1e-12, tol_gap_rel=1e-12,
        tol_feas=1e-12,
    )  # fmt: skip
    _, grad_b, grad_q = DT(weights[0].numpy(), weights[1].numpy(), np.zeros(len(b)))
    assert relative(ours[0], torch.as_tensor(grad_q)) <= 1e-6
    assert relative(ours[1], torch.as_tensor(grad_b)) <= 1e-6


# ------------------------------------------------------------------------------------------- failures


def test_unbounded_sides_are_left_out_and_announced():
    """min x, x >= 0, and the loss moves q below 0 on one side: unbounded there, the solution is at 0 on the other."""
    q = torch.ones(1, dtype=DOUBLE, requires_grad=True)
    solution = cl.solve_lp(q, lb=0.0, derivative=Perturbed(2.0))
    (grad,) = torch.autograd.grad(solution.x.sum(), q)
    assert grad.item() == pytest.approx(0.0, abs=1e-6)
    assert solution.derivative_report.residual.tolist() == [0]
    solution = cl.solve_lp(q, lb=0.0, derivative=Perturbed(2.0, side="upper"))
    with pytest.warns(DerivativeWarning, match="lower tau"):
        (grad,) = torch.autograd.grad(solution.x.sum(), q)
    assert grad.item() == 0
    assert solution.derivative_report.residual.tolist() == [math.inf]


def test_a_distance_term_makes_unbounded_sides_bounded():
    q = torch.ones(1, dtype=DOUBLE, requires_grad=True)
    solution = cl.solve_lp(q, lb=0.0, derivative=Perturbed(2.0, rho=1.0, side="upper"))
    (grad,) = torch.autograd.grad(solution.x.sum(), q)
    # q - 2 + 1 (x - 0) = 0: x = 1, less 0, over -2.
    assert grad.item() == pytest.approx(-0.5, rel=1e-6)


def test_failed_elements_get_zero():
    h = torch.tensor([[1.0, -2.0], [1.0, 0.0]], dtype=DOUBLE)
    G, q = torch.tensor([[1.0], [-1.0]], dtype=DOUBLE), torch.ones(2, 1, dtype=DOUBLE, requires_grad=True)
    solution = cl.solve_qp(torch.eye(1, dtype=DOUBLE), q, G, h, derivative=Perturbed(), on_failure="nan")
    (grad,) = torch.autograd.grad(solution.x.sum(), q)
    assert grad[0].item() == 0
    assert bool(grad.isfinite().all())


def test_it_needs_an_engine():
    problem = random_program(CASES["nonnegative"], batch=(1,))
    program = problem.program.evaluate(problem.theta)
    cotangents = Cotangents(torch.ones_like(problem.x), None, None)
    with pytest.raises(ConvexLayersError, match="engine"):
        Perturbed().adjoint(program, problem.x, problem.s, problem.z, cotangents)


def test_arguments_are_checked():
    with pytest.raises(ArgumentError, match="tau is"):
        Perturbed(0.0)
    with pytest.raises(ArgumentError, match="rho is"):
        Perturbed(rho=-1.0)
    with pytest.raises(ArgumentError, match="side is"):
        Perturbed(side="both")
