"""The derivative: every cone and pair of cones, P, q, A and b apart, x, s and z apart; and where it is not defined."""

import pytest
import torch
from torch.autograd import forward_ad

import convexlayers as cl
from convexlayers.cones import Cones
from convexlayers.derivatives import Cotangents, Exact, kkt
from convexlayers.engines import Clarabel, Native
from convexlayers.engines.given import Given
from convexlayers.errors import DerivativeWarning
from convexlayers.testing import Sampler, check_derivative, cone_cases, join, program_at, random_program
from convexlayers.testing.problems import KINDS

CASES = cone_cases()
by_case = pytest.mark.parametrize("cones", CASES.values(), ids=CASES.keys())


def given(problem):
    """The known solution as an engine: the derivative without a solver's error in it."""
    x, s, z = (value.reshape(-1, value.shape[-1]) for value in (problem.x, problem.s, problem.z))
    return Given(x, s, z, tolerance=1e-12)


def leaves(problem):
    """P, q, A, b that require gradients."""
    return [value.clone().requires_grad_() for value in (problem.P, problem.q, problem.A, problem.b)]


def solve(problem, values, **options):
    return cl.solve_cone_program(*values, problem.cones, **options)


def gradients(problem, weights=(1.0, 1.0, 1.0), factor=1.0, **options):
    """Gradients of a random linear function of x, s and z in P, q, A, b, and the solution."""
    values = leaves(problem)
    solution = solve(problem, values, **options)
    generator = torch.Generator().manual_seed(7)
    total = 0.0
    for weight, value in zip(weights, (solution.x, solution.s, solution.z), strict=True):
        w = torch.randn(value.shape, generator=generator, dtype=value.dtype)
        total = total + (weight * factor * w * value).sum()
    return torch.autograd.grad(total, values), solution


def relative(got, expected):
    return float((got - expected).norm() / expected.norm())


# ------------------------------------------------------------------------------------------- it is right


@by_case
@pytest.mark.parametrize("rank", [None, 0], ids=["quadratic", "linear"])
def test_derivative_at_the_known_solution(cones, rank):
    problem = random_program(cones, batch=(2,), rank=rank, seed=1)
    check_derivative(given(problem), problem, difference_tolerance=1e-7)


@pytest.mark.parametrize("activity", ["mixed", "inside", "outside"])
@pytest.mark.parametrize("cones", [CASES["all"], CASES["psd3+psd4"]], ids=["all", "psd3+psd4"])
def test_derivative_wherever_the_solution_lies(cones, activity):
    problem = random_program(cones, batch=(2,), activity=activity, seed=2)
    check_derivative(given(problem), problem, difference_tolerance=1e-7)


def test_derivative_on_the_face_of_the_exponential_cone():
    """s = (x, 0, z) with x < 0 < z, where the cone is flat, and z = (0, y, 0)."""
    sampler = Sampler.seeded((3,), 5)
    s, z = (torch.zeros(3, 3, dtype=torch.float64) for _ in range(2))
    s[:, 0], s[:, 2], z[:, 1] = -sampler.positive(), sampler.positive(), sampler.positive()
    problem = program_at(Cones(exponential=1), s, z, sampler)
    check_derivative(given(problem), problem, difference_tolerance=1e-7)


@by_case
@pytest.mark.parametrize("engine", [Native, Clarabel])
def test_derivative_of_what_an_engine_returns(cones, engine):
    problem = random_program(cones, batch=(2,), seed=3)
    check_derivative(engine(), problem)


def test_the_check_notices_wrong_derivatives():
    """Each part of the cotangent is spoilt in turn."""

    class Spoilt(Exact):
        block = "P"

        def adjoint(self, program, x, s, z, cotangents, context):
            grad, report = super().adjoint(program, x, s, z, cotangents, context)
            where = program.structure.slices[self.block]
            grad[:, where] = grad[:, where] * 1.0001
            return grad, report

    problem = random_program(CASES["nonnegative+psd"], batch=(2,))
    for block in ("P", "q", "A", "b"):
        strategy = Spoilt()
        object.__setattr__(strategy, "block", block)
        engine = Given(problem.x, problem.s, problem.z, tolerance=1e-12, derivative=strategy)
        with pytest.raises(AssertionError, match=f"dx/d{block}"):
            check_derivative(engine, problem)


# ------------------------------------------------------------------------------------------- objective


@by_case
def test_derivative_of_the_objective(cones):
    """Envelope theorem: 1/2 xx', x, zx' and -z."""
    problem = random_program(cones, batch=(2,), seed=1)
    values = leaves(problem)
    solution = cl.differentiable_solution(*values, cones, x=problem.x, s=problem.s, z=problem.z)
    grads = torch.autograd.grad(solution.objective.sum(), values)
    x, z = problem.x, problem.z
    outer = 0.5 * x.unsqueeze(-1) * x.unsqueeze(-2)
    for got, expected in zip(grads, (outer, x, z.unsqueeze(-1) * x.unsqueeze(-2), -z), strict=True):
        assert torch.allclose(got, expected, rtol=1e-12, atol=1e-13)


def test_derivative_of_the_objective_where_the_solution_is_not_unique():
    q = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    solution = cl.solve_lp(q, lb=-1.0, ub=1.0, b=torch.ones(1), A=torch.ones(1, 2))
    (grad,) = torch.autograd.grad(solution.objective, q)
    assert torch.allclose(grad, solution.x.detach())


# ------------------------------------------------------------------------------------------- linearity


@pytest.mark.parametrize("name", ["all", "nonnegative"])
def test_gradients_are_linear_in_the_upstream_gradient(name):
    problem = random_program(CASES[name], batch=(2,), seed=4)
    plain, _ = gradients(problem)
    for exponent in (-300, -100, -12, -8, -4, 4, 8, 12, 100):
        scaled, _ = gradients(problem, factor=10.0**exponent)
        for got, expected in zip(scaled, plain, strict=True):
            assert relative(got * 10.0**-exponent, expected) <= 1e-9, exponent


def test_gradients_are_additive_in_the_upstream_gradient():
    problem = random_program(CASES["all"], batch=(2,), seed=4)
    separate = [gradients(problem, weights)[0] for weights in ((1, 0, 0), (0, 1e-9, 0), (0, 0, 1e6))]
    together, _ = gradients(problem, (1, 1e-9, 1e6))
    for got, *parts in zip(together, *separate, strict=True):
        assert relative(got, sum(parts)) <= 1e-12


def test_shared_blocks_get_the_sum_over_the_batch():
    """One P and one A for three known solutions."""
    problem = random_program(CASES["all"], batch=(3,), seed=5)
    P, A = problem.P[0], problem.A[0]
    q, b = -problem.x @ P - problem.z @ A, problem.x @ A.T + problem.s
    w = torch.randn(q.shape, generator=torch.Generator().manual_seed(1), dtype=q.dtype)
    results = []
    for values in ((P, A), (P.expand(3, *P.shape), A.expand(3, *A.shape))):
        leaves = [value.clone().requires_grad_() for value in values]
        x = solve(problem, (leaves[0], q, leaves[1], b)).x
        assert torch.allclose(x, problem.x, rtol=0, atol=1e-9)
        results.append(torch.autograd.grad((w * x).sum(), leaves))
    for together, apart in zip(*results, strict=True):
        assert relative(together, apart.sum(0)) <= 1e-12


def test_gradient_in_P_is_symmetric():
    grads, _ = gradients(random_program(CASES["all"], batch=(2,)))
    assert torch.equal(grads[0], grads[0].mT)


# ------------------------------------------------------------------------------------------- modes, chunks


def test_forward_mode_agrees_with_reverse_mode():
    problem = random_program(CASES["all"], batch=(2,), seed=6)
    values = [value.detach() for value in leaves(problem)]
    generator = torch.Generator().manual_seed(2)
    tangents = [torch.randn(value.shape, generator=generator, dtype=value.dtype) for value in values]
    tangents[0] = tangents[0] + tangents[0].mT
    with forward_ad.dual_level():
        duals = [forward_ad.make_dual(value, tangent) for value, tangent in zip(values, tangents, strict=True)]
        solution = solve(problem, duals)
        along = [forward_ad.unpack_dual(value).tangent for value in (solution.x, solution.s, solution.z)]
        objective = forward_ad.unpack_dual(solution.objective).tangent
    values = leaves(problem)
    solution = solve(problem, values)
    outputs = (solution.x, solution.s, solution.z, solution.objective)
    for output, tangent in zip(outputs, (*along, objective), strict=True):
        w = torch.randn(output.shape, generator=generator, dtype=output.dtype)
        grads = torch.autograd.grad((w * output).sum(), values, retain_graph=True)
        pulled = sum((grad * d).sum() for grad, d in zip(grads, tangents, strict=True))
        assert float((w * tangent).sum()) == pytest.approx(float(pulled), rel=1e-9)


def test_chunks_of_the_batch_make_no_difference(monkeypatch):
    problem = random_program(CASES["all"], batch=(5,), seed=7)
    whole, _ = gradients(problem)
    monkeypatch.setattr(kkt, "CHUNK_BYTES", 2 * 8 * (problem.q.shape[-1] + problem.cones.rows) ** 2)
    pieces, solution = gradients(problem)
    for got, expected in zip(pieces, whole, strict=True):
        assert relative(got, expected) <= 1e-13
    assert solution.derivative_report.residual.shape == (5,)
    theta = problem.theta
    plan = given(problem).setup(problem.program)
    tangents = plan.tangent(theta, plan.solve(theta), theta)
    monkeypatch.undo()
    assert torch.allclose(plan.tangent(theta, plan.solve(theta), theta).dx, tangents.dx, rtol=1e-12, atol=1e-13)


def test_backward_twice_through_one_graph():
    problem = random_program(CASES["all"], seed=8)
    values = leaves(problem)
    x = solve(problem, values).x
    first = torch.autograd.grad(x.sum(), values, retain_graph=True)
    second = torch.autograd.grad(x.sum(), values)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_only_what_is_asked_for():
    problem = random_program(CASES["all"], seed=8)
    q = problem.q.clone().requires_grad_()
    (alone,) = torch.autograd.grad(solve(problem, (problem.P, q, problem.A, problem.b)).x.sum(), q)
    values = leaves(problem)
    together = torch.autograd.grad(solve(problem, values).x.sum(), values)
    assert torch.equal(alone, together[1])


def test_backward_with_create_graph():
    q = torch.tensor([-1.0, 2.0], dtype=torch.float64, requires_grad=True)
    x = cl.solve_qp(torch.eye(2, dtype=torch.float64), q).x
    (grad,) = torch.autograd.grad((x * torch.tensor([2.0, 3.0], dtype=torch.float64)).sum(), q, create_graph=True)
    assert grad.tolist() == pytest.approx([-2.0, -3.0])


# ------------------------------------------------------------------------------------------- degenerate


def degenerate_cases():
    """Arguments of solve_qp whose derivative's system is singular, by name."""
    one, eye = torch.ones(1, 2), torch.eye(2)
    return {
        "duplicated equality": {"P": eye, "q": torch.zeros(2), "A": one.repeat(2, 1), "b": torch.ones(2)},
        "duplicated active inequality": {"P": eye, "q": -torch.ones(2), "G": one.repeat(2, 1), "h": torch.ones(2)},
        "more active rows than variables": {
            "P": eye,
            "q": -3 * torch.ones(2),
            "G": torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]),
            "h": torch.tensor([1.0, 1.0, 2.0]),
        },
        "solution of an LP not unique": {"P": None, "q": torch.ones(2), "A": one, "b": torch.ones(1), "lb": 0.0},
        "equality that is an inequality too": {
            "P": eye,
            "q": torch.zeros(2),
            "A": one,
            "b": torch.ones(1),
            "G": one,
            "h": torch.ones(1),
        },
    }


DEGENERATE = degenerate_cases()


def degenerate_gradients(arguments):
    """Gradients of x in every tensor argument, and the solution."""
    values = {
        name: value.double().clone().requires_grad_() if isinstance(value, torch.Tensor) else value
        for name, value in arguments.items()
    }
    solution = cl.solve_qp(**values)
    wanted = {name: value for name, value in values.items() if isinstance(value, torch.Tensor)}
    weights = torch.tensor([1.0, -0.5], dtype=torch.float64)
    grads = torch.autograd.grad((weights * solution.x).sum(), list(wanted.values()))
    return dict(zip(wanted, grads, strict=True)), solution


@pytest.mark.filterwarnings("ignore::convexlayers.errors.DerivativeWarning")
@pytest.mark.parametrize("name", DEGENERATE)
def test_degenerate_programs_are_finite_deterministic_and_flagged(name):
    grads, solution = degenerate_gradients(DEGENERATE[name])
    again, _ = degenerate_gradients(DEGENERATE[name])
    assert all(grad.isfinite().all() for grad in grads.values())
    assert all(torch.equal(grads[key], again[key]) for key in grads)
    assert solution.derivative_report.rank_deficient.tolist() == [True]
    assert all(float(grad.abs().max()) < 10 for grad in grads.values())


def test_duplicated_equality_leaves_the_derivative_of_x_alone():
    """x = (b1 + b2) / 4 (1, 1) where b1 = b2: each copy gets half, which is the minimum norm."""
    arguments = DEGENERATE["duplicated equality"]
    grads, _ = degenerate_gradients(arguments)
    single, _ = degenerate_gradients({**arguments, "A": arguments["A"][:1], "b": arguments["b"][:1]})
    assert torch.allclose(grads["q"], single["q"], rtol=0, atol=1e-9)
    assert torch.allclose(grads["b"], single["b"].expand(2) / 2, rtol=0, atol=1e-9)
    assert torch.allclose(grads["A"].sum(0), single["A"].sum(0), rtol=0, atol=1e-9)


def test_duplicated_inequality_leaves_the_derivative_of_x_alone():
    arguments = DEGENERATE["duplicated active inequality"]
    grads, _ = degenerate_gradients(arguments)
    single, _ = degenerate_gradients({**arguments, "G": arguments["G"][:1], "h": arguments["h"][:1]})
    assert torch.allclose(grads["q"], single["q"], rtol=0, atol=1e-7)
    assert torch.allclose(grads["h"], single["h"].expand(2) / 2, rtol=0, atol=1e-7)


@pytest.mark.parametrize("cones", KINDS.values(), ids=KINDS.keys())
def test_duplicated_cones_leave_the_derivative_of_x_alone(cones):
    """Every row twice, with half of the multipliers each: x moves as before, and the copies share the rest evenly."""
    problem = random_program(cones, batch=(2,), seed=12)
    plain = leaves(problem)
    single = cl.differentiable_solution(*plain, cones, x=problem.x, s=problem.s, z=problem.z)
    expected = torch.autograd.grad(single.x.sum(), plain)
    copies = leaves(problem)
    A, b = torch.cat([copies[2]] * 2, dim=-2), torch.cat([copies[3]] * 2, dim=-1)
    s, z = (torch.cat([value] * 2, dim=-1) for value in (problem.s, 0.5 * problem.z))
    double = cl.differentiable_solution(copies[0], copies[1], A, b, join(cones, cones), x=problem.x, s=s, z=z)
    grads = torch.autograd.grad(double.x.sum(), (*copies, b))
    for got, want in zip(grads, expected, strict=False):
        assert relative(got, want) <= 1e-9
    first, second = grads[4].chunk(2, dim=-1)
    assert torch.allclose(first, second, rtol=0, atol=1e-9)
    assert double.derivative_report.rank_deficient.tolist() == [True, True]


def test_minimum_norm_of_undetermined_directions():
    """P = diag(1, 0), nothing fixes x2: the derivative in q is that of x1 alone."""
    q = torch.tensor([-1.0, 0.0], dtype=torch.float64, requires_grad=True)
    solution = cl.solve_qp(torch.diag(torch.tensor([1.0, 0.0], dtype=torch.float64)), q)
    (grad,) = torch.autograd.grad(solution.x[0], q)
    assert grad.tolist() == pytest.approx([-1.0, 0.0], abs=1e-12)
    assert solution.derivative_report.rank_deficient.tolist() == [True]


def test_inconsistent_derivative_warns_and_reports_its_residual():
    """The same P: d x2 / d q does not exist."""
    q = torch.tensor([-1.0, 0.0], dtype=torch.float64, requires_grad=True)
    solution = cl.solve_qp(torch.diag(torch.tensor([1.0, 0.0], dtype=torch.float64)), q)
    with pytest.warns(DerivativeWarning, match="index 0"):
        (grad,) = torch.autograd.grad(solution.x.sum(), q)
    assert grad.tolist() == pytest.approx([-1.0, 0.0], abs=1e-12)
    assert float(solution.derivative_report.residual) == pytest.approx(1.0)


def test_weakly_active_constraints_are_finite_and_deterministic():
    """min (x - t)^2 / 2 st x >= 0 at t = 0: one of the one-sided derivatives, 0 or 1."""
    results = []
    for _ in range(2):
        q = torch.zeros(1, dtype=torch.float64, requires_grad=True)
        x = cl.solve_qp(torch.eye(1, dtype=torch.float64), q, lb=0.0).x
        results.append(torch.autograd.grad(x.sum(), q)[0])
    assert torch.equal(*results)
    assert results[0].isfinite().all()


def test_lp_vertex_has_zero_derivative_in_q():
    q = torch.tensor([1.0, 2.0], dtype=torch.float64, requires_grad=True)
    solution = cl.solve_lp(q, A=torch.ones(1, 2), b=torch.ones(1), lb=0.0)
    (grad,) = torch.autograd.grad(solution.x[0], q)
    # Zero up to the rounding of one linear solve with numbers of size one.
    assert float(grad.abs().max()) <= 1e-15
    assert solution.derivative_report.rank_deficient.tolist() == [False]


def test_regular_programs_are_not_flagged():
    for cones in CASES.values():
        _, solution = gradients(random_program(cones, batch=(2,), seed=9))
        assert solution.derivative_report.rank_deficient.tolist() == [False, False]
        assert float(solution.derivative_report.residual.max()) <= 1e-10


def test_one_singular_element_leaves_its_neighbours_alone():
    P = torch.stack([torch.eye(2), torch.diag(torch.tensor([1.0, 0.0])), 2 * torch.eye(2)]).double()
    q = torch.tensor([[-1.0, 1.0], [-1.0, 0.0], [2.0, 3.0]], dtype=torch.float64, requires_grad=True)
    solution = cl.solve_qp(P, q)
    with pytest.warns(DerivativeWarning, match="1 element of 3"):
        (grad,) = torch.autograd.grad(solution.x.sum(), q)
    expected = torch.tensor([[-1.0, -1.0], [-1.0, 0.0], [-0.5, -0.5]], dtype=torch.float64)
    assert torch.allclose(grad, expected, rtol=0, atol=1e-12)
    assert solution.derivative_report.rank_deficient.tolist() == [False, True, False]


# ------------------------------------------------------------------------------------------- scaling


def rescaled(problem, kind, f):
    """The program with its data scaled so that the solution becomes a known multiple; the multiples of x, s, z."""
    P, q, A, b = leaves(problem)
    values, factors = {
        "objective": ((f * P, f * q, A, b), (1, 1, f)),
        "solution": ((P, f * q, A, f * b), (f, f, f)),
        "variables": ((f * f * P, f * q, f * A, b), (1 / f, 1, 1)),
        "rows": ((P, q, f * A, f * b), (1, f, 1 / f)),
    }[kind]
    return (P, q, A, b), values, factors


@pytest.mark.parametrize("f", [1e-10, 1e-6, 1e6, 1e10])
@pytest.mark.parametrize("kind", ["objective", "solution", "variables", "rows"])
@pytest.mark.parametrize("rank", [None, 0], ids=["quadratic", "linear"])
def test_scale_of_the_data_does_not_matter(rank, kind, f):
    """x, s and z follow exactly, and so do gradients of x in the unscaled data."""
    for name in ("nonnegative", "zero+nonnegative", "all"):
        problem = random_program(CASES[name], rank=rank, batch=(2,), seed=10)
        original, values, (fx, fs, fz) = rescaled(problem, kind, f)
        solution = solve(problem, values)
        for got, factor, expected in (
            (solution.x, fx, problem.x),
            (solution.s, fs, problem.s),
            (solution.z, fz, problem.z),
        ):
            assert relative(got.detach() / factor, expected) <= 1e-7
        grads = torch.autograd.grad((solution.x / fx).sum(), original)
        plain = leaves(problem)
        given = cl.differentiable_solution(*plain, problem.cones, x=problem.x, s=problem.s, z=problem.z)
        for got, expected in zip(grads, torch.autograd.grad(given.x.sum(), plain), strict=True):
            # Relative to the whole: for a linear objective some parts are zero.
            assert float((got - expected).norm()) <= 1e-6 * max(1.0, float(expected.norm()))


def check_rescaled_rows(problem, scales):
    """x and its gradients do not depend on what the rows are multiplied by."""
    P, q, A, b = leaves(problem)
    x = solve(problem, (P, q, A, b)).x
    scaled = solve(problem, (P, q, scales[:, None] * A, scales * b)).x
    assert torch.allclose(x, scaled, rtol=0, atol=1e-7)
    expected = torch.autograd.grad(x.sum(), (P, q, A, b))
    for got, want in zip(torch.autograd.grad(scaled.sum(), (P, q, A, b)), expected, strict=True):
        assert relative(got, want) <= 1e-6


def test_scaling_the_rows_leaves_x_alone():
    problem = random_program(Cones(zero=2, nonnegative=4), seed=10)
    scales = torch.logspace(0, 4, 6, dtype=torch.float64)
    check_rescaled_rows(problem, scales)


def test_scaling_each_cone_leaves_x_alone():
    """Factors from 1 to 1e4, the same for all rows of a cone."""
    problem = random_program(CASES["all"], seed=10)
    factors = torch.logspace(0, 4, 9, dtype=torch.float64)
    # Zero and nonnegative rows one by one, then the second-order, PSD, exponential and power cone.
    sizes = torch.tensor([1] * 6 + [4, 6, 3, 3])
    scales = torch.cat([factors, torch.tensor([30.0], dtype=torch.float64)]).repeat_interleave(sizes)
    check_rescaled_rows(problem, scales)


def test_strategies_take_any_solution():
    """Exact needs only (x, s, z), whoever found them."""
    problem = random_program(CASES["all"], batch=(2,), seed=11)
    numbers = problem.program.evaluate(problem.theta)
    zero = Cotangents(torch.zeros_like(problem.x), torch.zeros_like(problem.s), torch.zeros_like(problem.z))
    grad, report = Exact().adjoint(numbers, problem.x, problem.s, problem.z, zero)
    assert torch.equal(grad, torch.zeros_like(grad))
    assert report.residual.tolist() == [0.0, 0.0]
