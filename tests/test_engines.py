"""Engines: the same solutions and derivatives from each, statuses, failed elements, options, threads, pickling."""

import dataclasses
import math
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

import convexlayers as cl
from convexlayers.cones import Cones
from convexlayers.derivatives import Cotangents
from convexlayers.engines import SCS, Clarabel, DiffCP, Native, Torch, make_engine
from convexlayers.engines.given import Given
from convexlayers.errors import ArgumentError, SolverError, UnsupportedProblemError
from convexlayers.solution import measure
from convexlayers.status import Status, describe
from convexlayers.testing import (
    check_derivative,
    check_engine,
    check_solution,
    check_statuses,
    infeasible_program,
    random_program,
    unbounded_program,
)

ENGINES = ("native", "torch", "clarabel", "scs", "diffcp")
by_engine = pytest.mark.parametrize("name", ENGINES)

# Mixed programs, without and with the power cone (diffcp has none).
MIXED = {
    "linear": Cones(zero=2, nonnegative=5),
    "second order": Cones(nonnegative=2, second_order=(3, 5, 2, 3)),
    "psd 2 to 5": Cones(zero=1, psd=(2, 3, 4, 5)),
    "psd repeated": Cones(psd=(3, 3, 4)),
    "exponential": Cones(zero=1, nonnegative=2, exponential=3),
    "all but power": Cones(zero=2, nonnegative=3, second_order=(4, 3), psd=(3, 2), exponential=2),
}
POWER = {
    "power": Cones(nonnegative=2, power=(0.3, 0.5, 0.8)),
    "all": Cones(zero=2, nonnegative=3, second_order=(4,), psd=(3,), exponential=1, power=(0.3, 0.6)),
}
# The solver's own accuracy, before Newton steps: first-order methods are given what they reach quickly.
TOLERANCES = {"native": 1e-8, "torch": 1e-8, "clarabel": 1e-8, "scs": 1e-7, "diffcp": 1e-7}


def engine_of(name, **options):
    return make_engine(name, **({"tolerance": TOLERANCES[name]} | options))


def cases():
    for name in ENGINES:
        for title, cones in (MIXED if name == "diffcp" else MIXED | POWER).items():
            yield pytest.param(name, cones, id=f"{name}-{title}")


# ------------------------------------------------------------------------------------------- solutions


@pytest.mark.parametrize(("name", "cones"), list(cases()))
def test_known_solutions(name, cones):
    # diffcp is a second opinion as it is: its solutions get no Newton steps.
    accuracy = 1e-4 if name == "diffcp" else 1e-7
    check_solution(engine_of(name), random_program(cones, batch=(3,), seed=1), accuracy)


@pytest.mark.parametrize(("name", "cones"), list(cases()))
def test_known_solutions_of_linear_objectives(name, cones):
    accuracy = 1e-3 if name == "diffcp" else 1e-7
    check_solution(engine_of(name), random_program(cones, rank=0, batch=(2,), seed=2), accuracy)


@pytest.mark.parametrize("activity", ["boundary", "mixed"])
def test_default_accuracy_over_many_programs(activity):
    """An interior point leaves inactive multipliers a little above zero; ill-conditioned programs magnify that."""
    for seed in range(100, 130):
        problem = random_program(Cones(nonnegative=4), batch=(4,), activity=activity, seed=seed)
        check_solution(Clarabel(), problem, 1e-7)


def test_conformance_of_the_default_engine():
    check_engine(make_engine())


def test_solution_satisfies_the_conditions_and_says_so():
    problem = random_program(MIXED["all but power"], batch=(3,), seed=3)
    solution = Clarabel().setup(problem.program).solve(problem.theta)
    assert float(solution.residuals.largest.max()) <= 1e-9
    assert torch.allclose(solution.objective, problem.program.evaluate(problem.theta).objective(problem.x))
    assert (solution.iterations > 0).all()
    far = measure(solution.program, solution.x + 1, solution.s, solution.z)
    assert (far.primal > 0.01).all()


# ------------------------------------------------------------------------------------------- derivative of diffcp


@pytest.mark.parametrize("title", MIXED)
def test_diffcp_agrees_with_exact(title):
    """diffcp's own derivative against ours, in each of P, q, A, b, from each of x, s, z."""
    problem = random_program(MIXED[title], batch=(2,), seed=4)
    plans = [engine.setup(problem.program) for engine in (DiffCP(tolerance=1e-9), Clarabel())]
    solutions = [plan.solve(problem.theta) for plan in plans]
    for output in ("x", "s", "z"):
        weight = torch.randn(getattr(problem, output).shape, generator=torch.Generator().manual_seed(1)).double()
        zero = {name: torch.zeros_like(getattr(problem, name)) for name in ("x", "s", "z")}
        cotangents = Cotangents(**(zero | {output: weight}))
        grads = [
            plan.adjoint(problem.theta, solution, cotangents, [True] * 4)
            for plan, solution in zip(plans, solutions, strict=True)
        ]
        for block, got, expected in zip("PqAb", *grads, strict=True):
            assert float((got - expected).norm()) <= 1e-5 * float(expected.norm()), (output, block)


def test_diffcp_agrees_with_itself():
    """Forward mode against reverse mode of its own maps."""
    problem = random_program(MIXED["all but power"], batch=(2,), seed=4)
    check_derivative(DiffCP(tolerance=1e-9), problem, identity_tolerance=1e-6, difference_tolerance=1e-4)


@pytest.mark.parametrize("title", ["linear", "second order"])
def test_scs_has_the_exact_derivative(title):
    check_derivative(SCS(tolerance=1e-8), random_program(MIXED[title], batch=(2,), seed=5))


def test_diffcp_refuses_power_cones():
    problem = random_program(POWER["power"])
    with pytest.raises(UnsupportedProblemError, match="power"):
        DiffCP().setup(problem.program)


# ------------------------------------------------------------------------------------------- statuses


def status_of(name, **arguments):
    options = {"max_iterations": arguments.pop("max_iterations")} if "max_iterations" in arguments else {}
    solution = cl.solve_qp(**arguments, solver=engine_of(name, **options), on_failure="nan")
    return solution, Status(int(solution.status))


@by_engine
def test_infeasible_by_equality(name):
    solution, status = status_of(name, P=torch.eye(2), q=torch.ones(2), A=torch.ones(2, 2), b=torch.tensor([1.0, 2.0]))
    assert status is Status.PRIMAL_INFEASIBLE
    assert solution.x.isnan().all()


@by_engine
def test_infeasible_by_inequality(name):
    solution, status = status_of(
        name, P=torch.eye(2), q=torch.ones(2), G=torch.tensor([[1.0, 1.0]]), h=torch.tensor([-1.0]), lb=0.0
    )
    assert status is Status.PRIMAL_INFEASIBLE
    assert solution.x.isnan().all()


@by_engine
def test_unbounded_linear_program(name):
    solution, status = status_of(name, P=None, q=torch.tensor([-1.0, 1.0]), lb=0.0)
    assert status is Status.DUAL_INFEASIBLE
    assert solution.objective.isnan()


@pytest.mark.parametrize("name", ["native", "torch", "clarabel", "scs"])
def test_iteration_limit(name):
    problem = random_program(MIXED["second order"], seed=6)
    plan = engine_of(name, max_iterations=2).setup(problem.program)
    solution = plan.solve(problem.theta)
    assert Status(int(solution.status)) is Status.MAX_ITERATIONS
    assert int(solution.iterations) == 2


@pytest.mark.filterwarnings("ignore:Solved/Inaccurate")
def test_iteration_limit_of_diffcp():
    """diffcp does not say why it stopped; what counts is that two iterations are not taken for a solution."""
    problem = random_program(MIXED["second order"], seed=6)
    solution = engine_of("diffcp", max_iterations=2).setup(problem.program).solve(problem.theta)
    assert Status(int(solution.status)) in (Status.MAX_ITERATIONS, Status.INACCURATE, Status.NUMERICAL_ERROR)


@by_engine
@pytest.mark.parametrize("title", ["linear", "second order", "psd repeated", "exponential"])
def test_certificates_of_every_cone(name, title):
    """Infeasible, unbounded, NaN and Inf elements beside a solvable one, which comes out as it does alone."""
    check_statuses(engine_of(name, threads=1), random_program(MIXED[title], seed=7))


@pytest.mark.parametrize("name", ["native", "torch", "clarabel", "scs"])
def test_certificates_of_the_power_cone(name):
    check_statuses(engine_of(name, threads=1), random_program(POWER["power"], seed=7))


@pytest.mark.parametrize("engine", [Native, Torch, Clarabel])
def test_certificates_of_a_quadratic_objective(engine):
    cones = MIXED["all but power"]
    plan = engine().setup(infeasible_program(cones, n=5).program)
    assert plan.solve(infeasible_program(cones, n=5, batch=(3,)).theta).status.tolist() == [2, 2, 2]
    assert plan.solve(unbounded_program(cones, n=5, rank=2, batch=(3,)).theta).status.tolist() == [3, 3, 3]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("block", range(4))
def test_invalid_data(block, value):
    problem = random_program(MIXED["linear"], batch=(3,), seed=8)
    theta = [part.clone() for part in problem.theta]
    theta[block][1, 0] = value
    solution = Clarabel().setup(problem.program).solve(theta)
    assert solution.status.tolist() == [0, int(Status.INVALID_DATA), 0]


# ------------------------------------------------------------------------------------------- one bad element among many


def spoil(values, kind):
    """P, q, A, b with element 2 made infeasible, unbounded, or not finite."""
    P, q, A, b = (value.clone() for value in values)
    if kind == "infeasible":
        A[2, 0], b[2, 0] = 0, -1
    elif kind == "unbounded":
        # Feasible, so that there is only one thing to say: b is inside the cones.
        P[2], q[2], A[2], b[2] = 0, 1, 0, torch.tensor([1.0, 1.0, 1.0, 2.0, 1.0, 1.0])
    elif kind == "nan":
        q[2, 0] = math.nan
    else:
        A[2, 0, 0] = math.inf
    return P, q, A, b


@pytest.mark.parametrize("kind", ["infeasible", "unbounded", "nan", "inf"])
@pytest.mark.parametrize("name", ENGINES)
def test_a_bad_element_leaves_the_others_alone(name, kind):
    cones = Cones(nonnegative=3, second_order=(3,))
    problem = random_program(cones, batch=(4,), seed=9)
    values = (problem.P, problem.q, problem.A, problem.b)
    engine = engine_of(name)

    def run(values):
        leaves = [value.clone().requires_grad_() for value in values]
        solution = cl.solve_cone_program(*leaves, cones, solver=engine, on_failure="nan", validate=False)
        weights = torch.arange(1.0, 1 + solution.x.shape[-1], dtype=torch.float64)
        # The upstream gradient of the bad element is NaN, Inf and a number.
        upstream = weights * torch.ones_like(solution.x)
        upstream[2] = torch.tensor([math.nan, math.inf, -math.inf, *[1.0] * (len(weights) - 3)])
        outputs = (solution.x, solution.s, solution.z, solution.objective)
        grads = torch.autograd.grad(
            outputs, leaves, [upstream, *(torch.full_like(v, 1.0) if v.ndim else v for v in outputs[1:])]
        )
        return solution, grads

    good, good_grads = run(values)
    bad, bad_grads = run(spoil(values, kind))
    expected = {"infeasible": Status.PRIMAL_INFEASIBLE, "unbounded": Status.DUAL_INFEASIBLE}
    assert int(bad.status[2]) == int(expected.get(kind, Status.INVALID_DATA))
    others = [0, 1, 3]
    for output in ("x", "s", "z", "objective"):
        value, reference = getattr(bad, output).detach(), getattr(good, output).detach()
        assert value[2].isnan().all()
        assert torch.allclose(value[others], reference[others], rtol=1e-12, atol=1e-12)
    for got, reference in zip(bad_grads, good_grads, strict=True):
        assert torch.equal(got[2], torch.zeros_like(got[2]))
        assert torch.allclose(got[others], reference[others], rtol=1e-12, atol=1e-12)


def test_all_elements_bad():
    q = torch.full((3, 2), math.nan, dtype=torch.float64, requires_grad=True)
    x = cl.solve_qp(torch.eye(2), q, on_failure="nan").x
    assert x.isnan().all()
    (grad,) = torch.autograd.grad(x.sum(), q)
    assert torch.equal(grad, torch.zeros_like(grad))


def test_a_shared_block_gets_nothing_from_bad_elements():
    P = torch.eye(2, dtype=torch.float64, requires_grad=True)
    q = torch.tensor([[1.0, 2.0], [math.nan, 0.0]], dtype=torch.float64)
    x = cl.solve_qp(P, q, on_failure="nan").x
    (grad,) = torch.autograd.grad(x, P, torch.tensor([[1.0, 0.0], [math.nan, 1.0]], dtype=torch.float64))
    # x = -P^-1 q: for element 0, grad = -1/2 (w x' + x w') with w = e1, x = (-1, -2).
    assert torch.allclose(grad, torch.tensor([[1.0, 1.0], [1.0, 0.0]], dtype=torch.float64), rtol=0, atol=1e-12)


def test_solver_error_says_what_happened():
    b = torch.tensor([[1.0, 1.0], [1.0, 2.0], [1.0, 1.0], [2.0, 1.0], [math.nan, 1.0]])
    with pytest.raises(SolverError) as caught:
        cl.solve_qp(torch.eye(2), torch.ones(2), A=torch.ones(2, 2), b=b)
    message = str(caught.value)
    for part in ("3 of 5 elements", "PRIMAL_INFEASIBLE: 2 elements (index 1, 3)", "INVALID_DATA: 1 element (index 4)"):
        assert part in message
    assert "slack" in message
    assert 'on_failure="nan"' in message
    assert caught.value.status.tolist() == [0, 2, 0, 2, 6]
    assert isinstance(caught.value, RuntimeError)


def test_statuses_in_words():
    text = describe(torch.tensor([0, 3, 3, 3, 3, 3, 3]))
    assert "SOLVED: 1 element" in text
    assert "DUAL_INFEASIBLE: 6 elements (index 1, 2, 3, 4, 5, ...)" in text
    assert all(code.sentence for code in Status)


# ------------------------------------------------------------------------------------------- threads, pickling


@by_engine
def test_threads_make_no_difference(name):
    problem = random_program(MIXED["all but power"], batch=(6,), seed=10)
    one, two = (engine_of(name, threads=threads).setup(problem.program).solve(problem.theta) for threads in (1, 2))
    for part in ("x", "s", "z", "objective", "status", "iterations"):
        assert torch.equal(getattr(one, part), getattr(two, part)), part


def test_one_plan_serves_several_threads():
    plan = Clarabel(threads=1).setup(random_program(MIXED["all but power"]).program)
    problems = [random_program(MIXED["all but power"], batch=(2,), seed=seed) for seed in range(6)]
    alone = [plan.solve(problem.theta).x for problem in problems]
    with ThreadPoolExecutor(3) as pool:
        together = list(pool.map(lambda problem: plan.solve(problem.theta).x, problems))
    assert all(torch.equal(one, other) for one, other in zip(alone, together, strict=True))


@by_engine
def test_plans_pickle(name):
    problem = random_program(MIXED["second order"], batch=(2,), seed=10)
    plan = engine_of(name).setup(problem.program)
    before = plan.solve(problem.theta)
    after = pickle.loads(pickle.dumps(plan)).solve(problem.theta)
    assert torch.equal(before.x, after.x)
    assert torch.equal(before.z, after.z)


@by_engine
def test_engines_compare_by_value(name):
    assert engine_of(name) == engine_of(name)
    assert engine_of(name) != engine_of(name, threads=3)
    assert pickle.loads(pickle.dumps(engine_of(name))) == engine_of(name)


@pytest.mark.parametrize("engine", [Native, Torch, Clarabel])
def test_elements_are_bitwise_the_same_alone(engine):
    problem = random_program(MIXED["all but power"], batch=(4,), seed=11)
    plan = engine(threads=1).setup(problem.program)
    together = plan.solve(problem.theta)
    for i in range(4):
        alone = plan.solve([part[i : i + 1] for part in problem.theta])
        for part in ("x", "s", "z"):
            assert torch.equal(getattr(alone, part)[0], getattr(together, part)[i]), part


# ------------------------------------------------------------------------------------------- choosing and configuring


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"tolerance": 0.0}, "tolerance"),
        ({"tolerance": 1.0}, "tolerance"),
        ({"tolerance": math.nan}, "tolerance"),
        ({"max_iterations": 0}, "max_iterations"),
        ({"threads": 0}, "threads"),
    ],
)
def test_wrong_options_are_named(options, named):
    with pytest.raises(ArgumentError, match=named):
        make_engine("clarabel", **options)


def test_unknown_engines_list_the_known_ones():
    with pytest.raises(ArgumentError, match="'auto', 'native', 'torch', 'clarabel', 'scs', 'diffcp'"):
        make_engine("mosek")
    with pytest.raises(ArgumentError, match="solver"):
        make_engine(3)


def test_engine_objects_are_taken_as_they_are():
    engine = Clarabel(tolerance=1e-6)
    assert make_engine(engine) is engine
    assert make_engine("Clarabel").name == "clarabel"


def test_options_reach_the_solver():
    problem = random_program(MIXED["second order"], seed=12)
    solution = Clarabel(options={"max_iter": 1}).setup(problem.program).solve(problem.theta)
    assert int(solution.iterations) == 1
    solution = SCS(options={"max_iters": 7}).setup(problem.program).solve(problem.theta)
    assert int(solution.iterations) == 7


@pytest.mark.parametrize("engine", [Clarabel, SCS])
def test_unknown_options_are_named(engine):
    problem = random_program(MIXED["linear"])
    with pytest.raises(ArgumentError, match="no_such_thing"):
        engine(options={"no_such_thing": 1}).setup(problem.program)


# ------------------------------------------------------------------------------------------- a solution from elsewhere


def test_given_solutions_have_the_same_gradients():
    problem = random_program(MIXED["all but power"], batch=(3,), seed=13)
    blocks = (problem.P, problem.q, problem.A, problem.b)
    results = []
    for solve in (
        lambda *values: cl.solve_cone_program(*values, problem.cones),
        lambda *values: cl.differentiable_solution(*values, problem.cones, x=problem.x, s=problem.s, z=problem.z),
    ):
        leaves = [block.clone().requires_grad_() for block in blocks]
        solution = solve(*leaves)
        total = solution.x.sum() + 2 * solution.s.sum() - solution.z.sum() + solution.objective.sum()
        results.append(torch.autograd.grad(total, leaves))
    for got, expected in zip(*results, strict=True):
        assert float((got - expected).norm()) <= 1e-9 * float(expected.norm())


def test_given_solutions_are_judged():
    problem = random_program(MIXED["all but power"], batch=(3,), seed=13)
    blocks = (problem.P, problem.q, problem.A, problem.b)
    wrong = problem.x.clone()
    wrong[1] += 1e-2
    with pytest.raises(SolverError, match=r"1 of 3 elements[\s\S]*index 1"):
        cl.differentiable_solution(*blocks, problem.cones, x=wrong, s=problem.s, z=problem.z)
    solution = cl.differentiable_solution(*blocks, problem.cones, x=wrong, s=problem.s, z=problem.z, on_failure="nan")
    assert solution.solved.tolist() == [True, False, True]
    assert solution.x[1].isnan().all()


def test_given_solutions_outside_the_cones_are_refused():
    """Ax + s = b and stationarity hold, but s is not in K: a negative slack with a zero multiplier."""
    x, s, z = torch.tensor([2.0]), torch.tensor([-1.0]), torch.tensor([0.0])
    with pytest.raises(SolverError):
        cl.differentiable_solution(
            torch.eye(1), torch.tensor([-2.0]), torch.eye(1), torch.ones(1), {"nonnegative": 1}, x=x, s=s, z=z
        )


def test_given_solutions_of_a_wrong_shape_are_named():
    problem = random_program(MIXED["linear"])
    blocks = (problem.P, problem.q, problem.A, problem.b)
    with pytest.raises(ArgumentError, match=r"z has shape \(3,\)"):
        cl.differentiable_solution(*blocks, problem.cones, x=problem.x, s=problem.s, z=torch.zeros(3))
    with pytest.raises(ArgumentError, match="x"):
        cl.differentiable_solution(*blocks, problem.cones, x=problem.x.expand(2, -1), s=problem.s, z=problem.z)


def test_given_is_a_plan_like_any_other():
    problem = random_program(MIXED["linear"], batch=(2,), seed=14)
    plan = Given(problem.x, problem.s, problem.z, tolerance=1e-9).setup(problem.program)
    assert plan.solve(problem.theta).solved.all()
    theta = [part.clone() for part in problem.theta]
    theta[1][0, 0] = math.nan
    assert plan.solve(theta).status.tolist() == [int(Status.INVALID_DATA), 0]


# ------------------------------------------------------------------------------------------- the checks themselves


@pytest.mark.parametrize("title", MIXED | POWER)
def test_generated_certificates_prove_what_they_should(title):
    cones = (MIXED | POWER)[title]
    problem = infeasible_program(cones, n=4, batch=(3,), seed=15)
    z = problem.certificate
    assert torch.allclose((problem.A.mT @ z.unsqueeze(-1)).squeeze(-1), torch.zeros(3, 4).double(), atol=1e-12)
    assert torch.allclose(cones.project_dual(z), z, rtol=0, atol=1e-13)
    assert torch.allclose((problem.b * z).sum(-1), -torch.ones(3).double())
    problem = unbounded_program(cones, n=4, rank=2, batch=(3,), seed=15)
    x = problem.certificate.unsqueeze(-1)
    assert torch.allclose(problem.P @ x, torch.zeros_like(x), atol=1e-12)
    ray = -(problem.A @ x).squeeze(-1)
    assert torch.allclose(cones.project(ray), ray, rtol=0, atol=1e-13)
    assert torch.allclose((problem.q * problem.certificate).sum(-1), -torch.ones(3).double())


@pytest.mark.parametrize("activity", ["boundary", "inside", "outside", "mixed"])
def test_generated_programs_are_optimal_and_repeat(activity):
    cones = POWER["all"]
    problem = random_program(cones, batch=(2, 3), activity=activity, seed=16)
    flat = [value.reshape(6, -1) for value in (problem.x, problem.s, problem.z)]
    assert float(measure(problem.program.evaluate(problem.theta), *flat).largest.max()) <= 1e-14
    assert torch.equal(random_program(cones, batch=(2, 3), activity=activity, seed=16).A, problem.A)
    assert not torch.equal(random_program(cones, batch=(2, 3), activity=activity, seed=17).A, problem.A)


def test_impossible_programs_are_refused():
    with pytest.raises(ArgumentError, match="3 <= n"):
        random_program(Cones(zero=3), n=2)
    with pytest.raises(ArgumentError, match="unique"):
        random_program(Cones(nonnegative=4), n=3, rank=0)
    with pytest.raises(ArgumentError, match="rank is 3"):
        unbounded_program(Cones(nonnegative=2), n=3, rank=3)
    with pytest.raises(ArgumentError, match="activity"):
        random_program(Cones(nonnegative=2), activity="lazy")


def test_the_checks_notice_wrong_solutions_and_statuses():
    problem = random_program(MIXED["linear"], seed=18)
    with pytest.raises(AssertionError, match="MAX_ITERATIONS"):
        check_solution(Clarabel(max_iterations=1), problem)
    shifted = dataclasses.replace(problem, x=problem.x + 1e-3)
    with pytest.raises(AssertionError, match="clarabel: x is off"):
        check_solution(Clarabel(), shifted)
    with pytest.raises(AssertionError, match="expected"):
        check_statuses(Clarabel(max_iterations=1), problem)
