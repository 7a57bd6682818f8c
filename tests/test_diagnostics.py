"""What is said of a solution and its derivative: margins, flags of the report, and `layer.diagnose` in words."""

import math
import pickle
import subprocess
import sys

import cvxpy as cp
import pytest
import torch

import convexlayers as cl
from convexlayers.activity import WEAK, find_activity
from convexlayers.compiler import compile_problem
from convexlayers.cones import Cones
from convexlayers.engines.given import Given
from convexlayers.testing import cone_cases, random_program
from convexlayers.testing.pairs import Sampler

CASES = cone_cases()
DOUBLE = torch.float64
EYE = torch.eye(2, dtype=DOUBLE)
ONE = torch.ones(1, 2, dtype=DOUBLE)
both_engines = pytest.mark.parametrize("solver", ["native", "clarabel"])


# ------------------------------------------------------------------------------------------- margins


@pytest.mark.parametrize("cones", CASES.values(), ids=CASES.keys())
def test_projections_are_smooth_within_the_margin(cones):
    """Along any direction the projection's derivative does not jump before the margin, checked at a tenth of it.

    A kink is a jump; elsewhere the derivative changes by a step over the distance, here of the order of 1e-6.
    """
    v = Sampler.seeded((40,), 1).normal(cones.rows)
    margin = torch.cat([cones.margin(v), torch.full((40, 1), math.inf, dtype=DOUBLE)], dim=-1).amin(-1)
    if bool(margin.isinf().all()):
        return
    d = torch.nn.functional.normalize(Sampler.seeded((40,), 2).normal(cones.rows), dim=-1)
    eye = torch.eye(cones.rows, dtype=DOUBLE).expand(40, -1, -1)

    def derivative(at):
        spectrum = cones.spectrum(at)
        return spectrum.basis.unrotate(spectrum.mu.unsqueeze(-1) * spectrum.basis.rotate(eye))

    assert bool((margin > 0).all())
    near, far = (derivative(v + k * margin.unsqueeze(-1) * d) for k in (0.1, 0.1 + 1e-6))
    assert float((near - far).abs().amax()) <= 1e-4


@pytest.mark.parametrize(
    ("cones", "v", "expected"),
    [
        (Cones(nonnegative=2), [0.5, -0.25], 0.25),
        (Cones(second_order=(3,)), [1.0, 3.0, 4.0], 4 / math.sqrt(2)),
        (Cones(second_order=(3,)), [5.0, 3.0, 4.0], 0.0),
        (Cones(psd=(2,)), [2.0, 0.0, -0.5], 0.5),
        (Cones(exponential=1), [0.0, 1.0, 1.0], 0.0),
        (Cones(exponential=1), [-1.0, 0.0, 1.0], 0.0),
        (Cones(power=(0.5,)), [1.0, 1.0, 1.0], 0.0),
        (Cones(power=(0.5,)), [-1.0, -1.0, 2.0], 0.0),
        (Cones(zero=1), [3.0], math.inf),
    ],
)
def test_margins_of_known_points(cones, v, expected):
    assert float(cones.margin(torch.tensor([v], dtype=DOUBLE)).amin()) == pytest.approx(expected, abs=1e-15)


def test_margin_of_a_solution_is_relative_and_per_element():
    t = torch.tensor([[1.0, 0.5], [0.0, 0.5], [-1e-3, 2.0]], dtype=DOUBLE)
    for unit in (1.0, 2.0**20, 2.0**-20):
        solution = cl.solve_qp(EYE, -unit * t, lb=0.0, ub=10.0 * unit)
        assert solution.weakly_active.tolist() == [False, True, False]
        assert solution.margin[2] < solution.margin[0]
    margins = [cl.solve_qp(EYE, -unit * t, lb=0.0, ub=10.0 * unit).margin for unit in (1.0, 1024.0)]
    assert torch.allclose(*margins, rtol=1e-6, atol=1e-9)


def test_margin_of_failed_elements_and_of_none():
    h = torch.tensor([[1.0, -2.0], [1.0, 0.0]], dtype=DOUBLE)
    G = torch.tensor([[1.0], [-1.0]], dtype=DOUBLE)
    solution = cl.solve_qp(torch.eye(1, dtype=DOUBLE), torch.ones(2, 1, dtype=DOUBLE), G, h, on_failure="nan")
    assert solution.margin.isnan().tolist() == [True, False]
    assert solution.weakly_active.tolist() == [False, False]
    assert cl.solve_qp(EYE, torch.ones(2, dtype=DOUBLE)).margin.item() == math.inf
    empty = cl.solve_qp(EYE, torch.ones(0, 2, dtype=DOUBLE), lb=0.0)
    assert empty.margin.shape == (0,)
    leading = cl.solve_qp(EYE, torch.ones(3, 2, 2, dtype=DOUBLE), lb=0.0)
    assert leading.margin.shape == leading.weakly_active.shape == (3, 2)


@both_engines
def test_weak_activity_of_solved_programs(solver):
    """Kinks of the simplest problems of each kind, and the same a little off."""
    # The point at which the constraint begins to be active.
    ball = [(EYE, torch.zeros(2, dtype=DOUBLE), torch.zeros(2, dtype=DOUBLE), torch.tensor(1.0, dtype=DOUBLE))]
    for factor, weak in ((1.0, True), (0.9, False), (1.1, False)):
        q = -factor * torch.tensor([0.6, 0.8], dtype=DOUBLE)
        assert bool(cl.solve_socp(EYE, q, ball, solver=solver).weakly_active) == weak
        assert bool(cl.solve_qp(EYE, q, lb=-1.0, ub=0.6, solver=solver).weakly_active) == (weak and factor == 1.0)
    # The matrix nearest to diag(1, l) in the cone.
    for smallest, weak in ((0.0, True), (0.1, False), (-0.1, False)):
        q = -torch.tensor([1.0, 0.0, smallest], dtype=DOUBLE)
        eye = torch.eye(3, dtype=DOUBLE)
        solution = cl.solve_cone_program(eye, q, -eye, 0 * q, Cones(psd=(2,)), solver=solver)
        assert bool(solution.weakly_active) == weak


def test_random_programs_are_strictly_complementary():
    for cones in CASES.values():
        problem = random_program(cones, batch=(3,), seed=1)
        flat = [part.reshape(3, -1) for part in (problem.x, problem.s, problem.z)]
        solution = Given(*flat, tolerance=1e-9).setup(problem.program).solve(problem.theta)
        activity = find_activity(solution)
        assert bool((activity.smallest > 1e3 * WEAK).all())
        assert activity.margin.shape == activity.active.shape == (3, len(cones.heads))


# ------------------------------------------------------------------------------------------- the report


def report_of(arguments, solver, weights=(1.0, -0.5)):
    """Gradients of x in every tensor argument, and the solution."""
    values = {k: v.clone().requires_grad_() if isinstance(v, torch.Tensor) else v for k, v in arguments.items()}
    solution = cl.solve_qp(**values, solver=solver)
    wanted = [value for value in values.values() if isinstance(value, torch.Tensor)]
    return torch.autograd.grad((torch.tensor(weights, dtype=DOUBLE) * solution.x).sum(), wanted), solution


DEGENERATE = {
    "tie": {"P": None, "q": torch.ones(2, dtype=DOUBLE), "A": ONE, "b": ONE[0, :1], "lb": 0.0},
    "weakly active": {"P": EYE, "q": torch.tensor([0.0, -1.0], dtype=DOUBLE), "lb": 0.0},
    "duplicated equality": {"P": EYE, "q": torch.zeros(2, dtype=DOUBLE), "A": ONE.repeat(2, 1), "b": ONE[0]},
    "duplicated inequality": {"P": EYE, "q": -ONE[0], "G": ONE.repeat(2, 1), "h": ONE[0]},
    "equality that is an inequality too": {
        "P": EYE,
        "q": -ONE[0],
        "A": ONE,
        "b": ONE[0, :1],
        "G": ONE,
        "h": ONE[0, :1],
    },
    "more active rows than variables": {
        "P": EYE,
        "q": -3 * ONE[0],
        "G": torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]], dtype=DOUBLE),
        "h": torch.tensor([1.0, 1.0, 2.0], dtype=DOUBLE),
    },
    "empty interior": {
        "P": EYE,
        "q": -ONE[0],
        "G": torch.tensor([[1.0, 1.0], [-1.0, -1.0]], dtype=DOUBLE),
        "h": torch.tensor([1.0, -1.0], dtype=DOUBLE),
    },
}


@pytest.mark.filterwarnings("ignore::convexlayers.errors.DerivativeWarning")
@both_engines
@pytest.mark.parametrize("name", DEGENERATE)
def test_degenerate_programs_are_finite_deterministic_and_flagged(name, solver):
    grads, solution = report_of(DEGENERATE[name], solver)
    again, _ = report_of(DEGENERATE[name], solver)
    assert all(bool(grad.isfinite().all()) and float(grad.abs().max()) < 10 for grad in grads)
    assert all(torch.equal(*pair) for pair in zip(grads, again, strict=True))
    report = solution.derivative_report
    if name == "weakly active":
        assert solution.weakly_active.item()
        assert report.rank_deficient.tolist() == [False]
    else:
        assert report.rank_deficient.tolist() == [True]


@both_engines
def test_locally_constant_says_that_the_gradient_in_q_is_zero(solver):
    cost = torch.tensor([1.0, 2.0], dtype=DOUBLE)
    for P, arguments, constant in (
        (None, {"A": ONE, "b": ONE[0, :1], "lb": 0.0}, True),
        (1e-3 * EYE, {"A": ONE, "b": ONE[0, :1], "lb": 0.0}, True),
        (EYE, {"A": ONE, "b": ONE[0, :1]}, False),
        (1e6 * EYE, {}, False),
        (1e-6 * EYE, {}, False),
    ):
        for factor in (1e-12, 1.0, 1e12):
            q = cost.clone().requires_grad_()
            solution = cl.solve_qp(P, q, **arguments, solver=solver)
            (grad,) = torch.autograd.grad(factor * (solution.x[0] - 2 * solution.x[1]), q)
            assert solution.derivative_report.locally_constant.tolist() == [constant]
            assert (float(grad.abs().max()) <= 1e-9 * factor) == constant or float(P.abs().max()) > 1
    # A zero cotangent says nothing.
    q = cost.clone().requires_grad_()
    solution = cl.solve_lp(q, A=ONE, b=ONE[0, :1], lb=0.0, solver=solver)
    torch.autograd.grad(0 * solution.x[0], q)
    assert solution.derivative_report.locally_constant.tolist() == [False]


@both_engines
def test_locally_constant_is_per_element(solver):
    """min 1/2 x^2 - t x over [0, 1]: constant where a bound is active, also beside a failed element."""
    t = torch.tensor([[-1.0], [0.5], [math.nan], [2.0]], dtype=DOUBLE, requires_grad=True)
    solution = cl.solve_qp(torch.eye(1, dtype=DOUBLE), -t, lb=0.0, ub=1.0, solver=solver, on_failure="nan")
    torch.autograd.grad(solution.x.sum(), t)
    assert solution.derivative_report.locally_constant.tolist() == [True, False, False, True]


# ------------------------------------------------------------------------------------------- rows under their names


def test_rows_are_named_after_the_constraints():
    x, y = cp.Variable((2, 2), name="x"), cp.Variable(name="y", nonneg=True)
    S, t = cp.Variable((2, 2), PSD=True, name="S"), cp.Parameter((2, 2), name="t")
    cap = (x <= 0.9).set_label("cap")
    constraints = [cp.sum(x) == 1, cap, cp.norm1(x) + y <= 3, cp.SOC(y + 5, x[0]), cp.norm(x, "fro") <= 2]
    problem = cp.Problem(cp.Minimize(cp.norm1(x - t) + cp.exp(y) + cp.trace(S)), constraints)
    program = compile_problem(problem, [t], [x])
    by_label = {}
    for group in program.row_groups:
        by_label.setdefault(group.label, []).append(group)
    assert by_label["cap"][0].shape == (2, 2)
    assert by_label["y, declared nonneg"][0].shape == ()
    assert "S, declared PSD" in by_label
    assert "norm1(x) + y <= 3.0" in by_label
    assert "norm1(x) + y <= 3.0 (introduced by an atom)" in by_label
    assert "the objective (introduced by an atom)" in by_label
    assert not any("reformulation" in label for label in by_label)
    named = torch.cat([torch.as_tensor(group.rows) for group in program.row_groups])
    assert sorted(named.tolist()) == program.structure.cones.heads.tolist()
    # Entries in the user's order: x[i, j] <= 0.9 is row i, j.
    rows = by_label["cap"][0].rows.reshape(2, 2)
    A = program.evaluate([torch.zeros(1, 4, dtype=DOUBLE)]).dense_A()[0]
    columns = program.outputs[0].map.cols.reshape(2, 2)
    assert all(A[rows[i, j]].nonzero().reshape(-1).tolist() == [columns[i, j]] for i in range(2) for j in range(2))


def test_rows_of_a_geometric_program():
    x, y, k = cp.Variable(pos=True, name="x"), cp.Variable(pos=True, name="y"), cp.Parameter(pos=True, name="k")
    problem = cp.Problem(cp.Minimize(x + y), [x * y >= k, x <= 3])
    layer = cl.ConvexLayer(problem, [k], [x], gp=True)
    (element,) = layer.diagnose(4.0).elements
    assert "k <= x * y" in element.active
    assert "x <= 3.0" not in element.active


# ------------------------------------------------------------------------------------------- diagnose


@pytest.fixture(scope="module")
def linear_layer():
    x, c = cp.Variable(3, name="x"), cp.Parameter(3, name="c")
    problem = cp.Problem(cp.Minimize(c @ x), [cp.sum(x) == 1, x >= 0, (x <= 0.9).set_label("cap"), cp.norm(x) <= 10])
    return cl.ConvexLayer(problem, [c], [x])


def test_diagnosis_of_a_linear_program(linear_layer):
    values = torch.tensor([[1.0, 2.0, 3.0], [1.0, 1.0, 1.0], [math.nan, 1.0, 1.0]])
    diagnosis = linear_layer.diagnose(c=values)
    assert len(diagnosis) == 3
    vertex, tie, bad = diagnosis.elements
    assert (vertex.index, tie.index, bad.index) == ((0,), (1,), (2,))
    assert vertex.active == ("0.0 <= x at [2]", "cap at [0]")
    assert vertex.weakly_active == ()
    assert vertex.locally_constant
    assert not vertex.rank_deficient
    assert not tie.locally_constant
    assert not tie.unique_solution
    assert bad.status is cl.Status.INVALID_DATA
    text = str(diagnosis)
    assert "element 0: SOLVED" in text
    assert "active: cap at [0]" in text
    assert "at a vertex" in text
    assert "Smoothed or Perturbed give a direction" in text
    assert "solution is not unique" in text
    assert "element 2: INVALID_DATA. The data contain NaN" in text


def test_diagnosis_of_weak_activity_and_of_redundant_constraints():
    y, t = cp.Variable(2, name="y"), cp.Parameter(2, name="t")
    weak = cl.ConvexLayer(cp.Problem(cp.Minimize(cp.sum_squares(y - t)), [y >= 0, cp.norm(y) <= 1]), [t], [y])
    regular, corner, sphere = weak.diagnose(torch.tensor([[0.5, -1.0], [0.5, 0.0], [3.0, 4.0]])).elements
    assert regular.active == ("0.0 <= y at [1]",)
    assert "the derivative exists" in str(regular)
    assert corner.active == ()
    assert corner.weakly_active == ("0.0 <= y at [1]",)
    assert corner.margin <= WEAK
    assert "one-sided" in str(corner)
    assert any("<= 1.0" in text for text in sphere.active)
    assert sphere.unique_solution
    twice = cl.ConvexLayer(cp.Problem(cp.Minimize(cp.sum_squares(y - t)), [y >= 0, 2 * y >= 0]), [t], [y])
    element = twice.diagnose(torch.tensor([-1.0, 1.0]))[0]
    assert element.index == ()
    assert element.unique_solution
    assert not element.unique_multipliers
    assert "multipliers are not unique" in str(element)


def test_diagnosis_is_of_the_problem_whatever_the_strategy(linear_layer):
    program = linear_layer.program
    expected = linear_layer.diagnose(torch.tensor([1.0, 2.0, 3.0]))
    for strategy in (cl.Smoothed(0.1), cl.Perturbed()):
        engine = cl.engines.make_engine("native", derivative=strategy)
        layer = cl.ConvexLayer.from_program(program, solver=engine)
        assert layer.diagnose(torch.tensor([1.0, 2.0, 3.0])) == expected


def test_many_entries_are_cut_short():
    x, c = cp.Variable((4, 5), name="x"), cp.Parameter((4, 5), name="c")
    layer = cl.ConvexLayer(cp.Problem(cp.Minimize(cp.sum_squares(x - c)), [x >= 0]), [c], [x])
    (element,) = layer.diagnose(-torch.ones(4, 5)).elements
    assert element.active == ("0.0 <= x at [0, 0], [0, 1], [0, 2], [0, 3], [0, 4], [1, 0], ... (20 of 20 entries)",)


def test_diagnosis_works_without_cvxpy(linear_layer, tmp_path):
    path = tmp_path / "program.pickle"
    path.write_bytes(pickle.dumps(linear_layer.program))
    script = (
        "import pickle, sys, torch, convexlayers as cl\n"
        f"program = pickle.loads(open({str(path)!r}, 'rb').read())\n"
        "layer = cl.ConvexLayer.from_program(program)\n"
        "print(layer.diagnose(torch.tensor([1.0, 2.0, 3.0])))\n"
        "assert 'cvxpy' not in sys.modules\n"
    )
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "active: cap at [0]" in out.stdout


def test_programs_without_names_have_rows():
    """From the standalone functions, and from compiled programs of earlier versions."""
    from convexlayers.assembly import dense_cone_program

    program = dense_cone_program(2, True, Cones(zero=1, nonnegative=2))
    layer = cl.ConvexLayer.from_program(program)
    A = torch.tensor([[1.0, 1.0], [-1.0, 0.0], [0.0, -1.0]], dtype=DOUBLE)
    b = torch.tensor([1.0, 0.0, 0.0], dtype=DOUBLE)
    (element,) = layer.diagnose(EYE, torch.tensor([-5.0, 5.0], dtype=DOUBLE), A, b).elements
    assert element.active == ("row at 2",)
    assert element.locally_constant
