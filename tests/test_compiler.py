"""What the compiler accepts, refuses, keeps and leaves alone."""

import copy
import pickle
import re
import subprocess
import sys
import tracemalloc
import warnings

import cvxpy as cp
import numpy as np
import pytest
import torch
from cvxpy.constraints.constraint import Constraint
from cvxpy.reductions.dcp2cone.cone_matrix_stuffing import ConeMatrixStuffing
from cvxpy.transforms.partial_optimize import partial_optimize
from cvxpy_reference import Case, check_gradients, check_values, deprecated

import convexlayers as cl
from convexlayers.errors import ArgumentError, NotDCPError, NotDPPError, UnsupportedProblemError


def random(*shape, low=-1.5, high=1.5, seed=3):
    return np.random.default_rng(seed).uniform(low, high, shape)


def compile_all(problem, **options):
    """With all parameters and variables in CVXPY's order."""
    return cl.compile_problem(problem, problem.parameters(), problem.variables(), **options)


DEFINITE = np.array([[2.0, 0.5, 0.1], [0.5, 1.5, -0.3], [0.1, -0.3, 1.0]])


# The objective stays quadratic.


def quadratic_objectives():
    x, b = cp.Variable(3), cp.Parameter(3, name="b")
    c, P = cp.Parameter(nonneg=True, name="c"), cp.Parameter((3, 3), PSD=True, name="P")
    return {
        "sum_squares": cp.sum_squares(x),
        "sum_squares_of_affine": cp.sum_squares(DEFINITE @ x - b),
        "square": cp.sum(cp.square(x)),
        "power": cp.sum(cp.power(x, 2)),
        "quad_form": cp.quad_form(x, DEFINITE),
        "quad_form_of_affine": cp.quad_form(x - b, DEFINITE),
        "quad_form_of_parameter": cp.quad_form(x, P),
        "quad_over_lin": cp.quad_over_lin(x, 2.0),
        "variance": cp.var(x),
        "huber": cp.sum(cp.huber(x)),
        "weighted_by_parameter": c * cp.sum_squares(x),
        "beside_norm1": cp.sum_squares(x) + cp.norm1(x),
        "maximize": -cp.sum_squares(x),
    }


@pytest.mark.parametrize("name", quadratic_objectives())
def test_quadratic_objective_is_native(name):
    objective = quadratic_objectives()[name]
    sense = cp.Maximize if name == "maximize" else cp.Minimize
    structure = compile_all(cp.Problem(sense(objective))).structure
    assert structure.cones.second_order == ()
    assert len(structure.P_rows) > 0
    assert bool((structure.P_rows <= structure.P_cols).all())


def test_quadratic_constraint_is_a_second_order_cone():
    x, b = cp.Variable(3), cp.Parameter(3, name="b")
    problem = cp.Problem(cp.Minimize(b @ x), [cp.sum_squares(x) <= 1])
    structure = compile_all(problem).structure
    assert len(structure.cones.second_order) == 1
    assert len(structure.P_rows) == 0


def test_parameter_matrix_of_the_objective_is_P_itself():
    """No auxiliary variables: P / 2 of the user is P of the program, read from both triangles."""
    x, P, q = cp.Variable(3), cp.Parameter((3, 3), PSD=True, name="P"), cp.Parameter(3, name="q")
    program = compile_all(cp.Problem(cp.Minimize(0.5 * cp.quad_form(x, P) + q @ x + 7)))
    assert program.structure.n == 3
    assert program.structure.m == 0
    data = program.evaluate([torch.tensor(DEFINITE).reshape(1, 9), torch.tensor([[1.0, 2.0, 3.0]]).double()])
    torch.testing.assert_close(data.dense_P()[0], torch.tensor(DEFINITE))
    assert data.q.tolist() == [[1.0, 2.0, 3.0]]
    assert data.offset.tolist() == [7.0]


# Objectives and constraints of every shape.


def unusual_problems():
    x, b, p = cp.Variable(2, name="x"), cp.Parameter(2, name="b"), cp.Parameter(name="p")
    value = np.array([0.7, -1.2])
    square = cp.sum_squares(x - b)
    return {
        "offset": Case(cp.Problem(cp.Minimize(square + 5)), {b: value}),
        "offset_of_parameters": Case(cp.Problem(cp.Minimize(square + 3 * p - cp.sum(b) + 1)), {b: value, p: 2.0}),
        "maximize_with_offset": Case(cp.Problem(cp.Maximize(4 - square + p)), {p: 2.0, b: value}),
        "constant_objective": Case(cp.Problem(cp.Minimize(3.0), [x == b]), {b: value}, duals=False),
        "zero_objective": Case(cp.Problem(cp.Minimize(0), [x == b]), {b: value}, duals=False),
        "constant_maximize": Case(cp.Problem(cp.Maximize(cp.Constant(-2)), [x == 2 * b]), {b: value}, duals=False),
        "objective_of_parameters": Case(cp.Problem(cp.Minimize(p + cp.sum(b)), [x == b]), {b: value, p: 1.0}, False),
        "no_parameters": Case(cp.Problem(cp.Minimize(cp.sum_squares(x - value)), [cp.sum(x) == 1])),
        "no_constraints": Case(cp.Problem(cp.Minimize(square + cp.norm1(x))), {b: value}),
        "no_quadratic": Case(cp.Problem(cp.Maximize(x[0] + 2 * x[1]), [x <= b, x >= b - 1]), {b: value}),
        "constraint_without_variables": Case(
            cp.Problem(cp.Minimize(square), [cp.Constant(1) <= 2, b <= 5]), {b: value}, False
        ),
        "parameter_that_cancels": Case(cp.Problem(cp.Minimize(square + 0 * p)), {b: value, p: 3.0}),
        "parameter_in_a_nonlinear_function_alone": Case(
            cp.Problem(cp.Minimize(square + cp.exp(p)), [cp.sum(x) <= cp.sqrt(p) - 2]), {b: value, p: 0.8}
        ),
    }


@pytest.mark.parametrize("name", unusual_problems())
def test_unusual_problem(name):
    case = unusual_problems()[name]
    layer = check_values(case)
    if case.values:
        check_gradients(case, layer)


def test_variable_without_entries():
    x, nothing, b = cp.Variable(2), cp.Variable(0), cp.Parameter(2)
    constraint = nothing >= 0
    problem = cp.Problem(cp.Minimize(cp.sum_squares(x - b) + cp.sum(nothing)), [constraint])
    layer = cl.ConvexLayer(problem, [b], [x, nothing, constraint.dual_variables[0]])
    x_star, empty, empty_dual = layer(torch.ones(3, 2))
    assert torch.equal(x_star, torch.ones(3, 2))
    assert empty.shape == (3, 0)
    assert empty_dual.shape == (3, 0)


def test_variable_and_constraint_without_influence():
    """Neither disturbs the others, and what does not matter to the outputs is no reason for a warning."""
    x, y, c = cp.Variable(3), cp.Variable(2), cp.Parameter(3, name="c")
    problem = cp.Problem(cp.Minimize(cp.sum_squares(x - c) + 0 * cp.sum(y)), [x >= 0, True])
    c_t = torch.tensor([1.0, -2.0, 0.5], requires_grad=True)
    assert bool(cl.ConvexLayer(problem, [c], [y])(c_t)[0].isfinite().all())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (x_star,) = cl.ConvexLayer(problem, [c], [x])(c_t)
        (gradient,) = torch.autograd.grad(x_star.sum(), c_t)
    torch.testing.assert_close(x_star, torch.tensor([1.0, 0.0, 0.5]))
    torch.testing.assert_close(gradient, torch.tensor([1.0, 0.0, 1.0]))


# Cone constraints directly on variables.


def constraints_on_variables():
    """A variable, its constraints, and a point outside of them."""
    x = cp.Variable(3, name="x")
    outside = np.array([1.6, -1.2, 0.9])
    X = cp.Variable((3, 3), symmetric=True, name="X")
    M = cp.Variable((2, 2), name="M")
    matrix = np.array([[0.4, 1.3, -0.2], [1.3, -0.9, 0.5], [-0.2, 0.5, 0.8]])
    return {
        "lower": (x, [x >= 0], outside),
        "upper": (x, [x <= 0.5], outside),
        "turned_round": (x, [0.5 >= x], outside),  # noqa: SIM300
        "nonneg_attribute": (cp.Variable(3, nonneg=True), [], outside),
        "nonpos_attribute": (cp.Variable(3, nonpos=True), [], outside),
        "bounds_attribute": (cp.Variable(3, bounds=[-0.5, 1.1]), [], outside),
        "lower_bound_attribute": (cp.Variable(3, bounds=[-0.5, None]), [], outside),
        "bounds_and_constraint": ((y := cp.Variable(3, bounds=[-0.5, 1.1])), [y[0] == 0.3], outside),
        "equality": (x, [x == 0.5], outside),
        "zero": (x, [cp.Zero(x[:2])], outside),
        "nonneg_constraint": (x, [cp.NonNeg(x)], outside),
        "nonpos_constraint": (x, [deprecated(cp.NonPos, x)], outside),
        "norm": (x, [cp.norm(x) <= 1], outside),
        "norm1": (x, [cp.norm1(x) <= 1], outside),
        "norm_inf": (x, [cp.norm_inf(x) <= 1], outside),
        "second_order": (x, [cp.SOC(x[0], x[1:])], np.array([0.3, -1.2, 0.9])),
        "semidefinite": (X, [X >> 0], matrix),
        "negative_semidefinite": (X, [X << 0], matrix),
        "semidefinite_attribute": (cp.Variable((3, 3), PSD=True), [], matrix),
        "negative_semidefinite_attribute": (cp.Variable((3, 3), NSD=True), [], matrix),
        "semidefinite_without_symmetry": (M, [M >> 0], np.array([[0.4, 1.3], [0.5, -0.9]])),
        "symmetric_attribute": (cp.Variable((2, 2), symmetric=True), [], np.array([[0.4, 1.3], [0.5, -0.9]])),
        "exponential": (x, [cp.ExpCone(x[0], x[1], x[2])], np.array([0.5, 0.6, 0.4])),
        "power": (x, [cp.PowCone3D(x[0], x[1], x[2], 0.3)], np.array([0.5, 0.6, 1.4])),
        "indexed": (x, [x[1:] <= -0.5], outside),
        "several": (x, [x >= -1, cp.norm(x) <= 1.4, cp.sum(x) == 0.2, x[0] <= 1], outside),
    }


@pytest.mark.parametrize("name", constraints_on_variables())
@pytest.mark.parametrize("maximize", [False, True])
def test_constraint_on_a_variable_is_not_dropped(name, maximize):
    x, constraints, outside = constraints_on_variables()[name]
    c = cp.Parameter(x.shape, name="c")
    distance = 0.5 * cp.sum_squares(x - c)
    problem = cp.Problem(cp.Maximize(-distance) if maximize else cp.Minimize(distance), constraints)
    case = Case(problem, {c: outside}, duals=False)
    layer = check_values(case)
    assert np.abs(layer(outside)[0].numpy() - outside).max() > 0.1


# The user's objects.


def members(item):
    """Attributes of an object, without what CVXPY memoizes of its expression (whether it is DCP, its constants)."""
    return {
        key: value
        for key, value in sorted(vars(item).items())
        if not key.endswith("__cache__") and key != "_lazy_canonical_form"
    }


def state_of(problem):
    """Everything that a problem and its leaves hold."""
    leaves = [*problem.variables(), *problem.parameters()]
    duals = [dual for constraint in problem.constraints for dual in constraint.dual_variables]
    return {
        "problem": {key: repr(value) for key, value in members(problem).items()},
        "cache": {key: repr(value) for key, value in sorted(vars(problem._cache).items())},
        "objective": (id(problem.objective), [id(arg) for arg in problem.objective.args]),
        "constraints": [(id(c), c.id, type(c), [id(arg) for arg in c.args]) for c in problem.constraints],
        "values": [copy.deepcopy(leaf.value) for leaf in [*leaves, *duals]],
        "attributes": [repr(leaf.attributes) for leaf in leaves],
        "members": [{key: id(value) for key, value in members(leaf).items()} for leaf in [*leaves, *duals]],
    }


def assert_equal_states(before, after):
    assert before.keys() == after.keys()
    for key, value in before.items():
        if key == "values":
            for one, other in zip(value, after[key], strict=True):
                np.testing.assert_array_equal(one, other)
        else:
            assert value == after[key], key


def everything():
    """One of each: every kind of leaf and constraint."""
    x, X = cp.Variable(3, nonneg=True, name="x"), cp.Variable((2, 2), PSD=True, name="X")
    y = cp.Variable(2, bounds=[-1, 1], name="y")
    b, P = cp.Parameter(3, name="b"), cp.Parameter((3, 3), PSD=True, name="P")
    s, D = cp.Parameter(nonneg=True, name="s"), cp.Parameter((2, 2), symmetric=True, name="D")
    constraints = [cp.sum(x) == s, cp.norm(x) <= 2, X >> 0.1 * np.eye(2), cp.exp(y) <= 2, cp.trace(X) == cp.sum(y)]
    objective = cp.quad_form(x, P) + b @ x + cp.sum_squares(X - D) + cp.sum_squares(y)
    values = {s: 1.2, b: random(3), P: DEFINITE, D: np.array([[0.3, 0.7], [0.7, -0.2]])}
    return Case(cp.Problem(cp.Minimize(objective), constraints), values)


@pytest.mark.parametrize("solved_before", [False, True])
def test_problem_is_never_written(solved_before):
    case = everything()
    if solved_before:
        for parameter, value in case.values.items():
            parameter.value = value
        case.problem.solve(solver=cp.CLARABEL)
    before = state_of(case.problem)
    layer = case.layer()
    solution = layer.solve(*[1.1 * value.detach() for value in case.tensors()])
    assert bool(solution.solved)
    assert_equal_states(before, state_of(case.problem))


def test_problem_solves_as_before():
    case, untouched = everything(), everything()
    case.layer()(*case.tensors())
    for one in (case, untouched):
        for parameter, value in one.values.items():
            parameter.value = value
        one.problem.solve(solver=cp.CLARABEL)
    for one, other in zip(case.outputs, untouched.outputs, strict=True):
        np.testing.assert_array_equal(one.value, other.value)


def test_values_of_parameters_at_compile_time_do_not_matter():
    case = everything()
    without = case.layer().program
    for parameter, value in case.values.items():
        parameter.value = value
    program = case.layer().program
    theta = [value.detach().reshape(1, -1) for value in case.tensors()]
    assert torch.equal(program.evaluate(theta).data, without.evaluate(theta).data)


def test_several_layers_from_one_problem():
    """With other orders and outputs; each gives what it gives alone, and so does one compiled again."""
    case = everything()
    first = case.layer()
    reverse = cl.ConvexLayer(case.problem, list(case.values)[::-1], case.outputs[::-1])
    one = cl.ConvexLayer(case.problem, list(case.values), case.outputs[1:2])
    values = case.tensors()
    expected = first(*values)
    for found, wanted in zip(reverse(*values[::-1])[::-1], expected, strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-12, rtol=0)
    torch.testing.assert_close(one(*values)[0], expected[1], atol=1e-12, rtol=0)
    for found, wanted in zip(case.layer()(*values), expected, strict=True):
        assert torch.equal(found, wanted)


def test_order_of_parameters_is_irrelevant_to_values():
    case = everything()
    names = [parameter.name() for parameter in case.values]
    values = dict(zip(names, case.tensors(), strict=True))
    expected = case.layer()(**values)
    for shift in range(1, len(names)):
        order = [*list(case.values)[shift:], *list(case.values)[:shift]]
        layer = cl.ConvexLayer(case.problem, order, case.outputs)
        by_position = layer(*(values[parameter.name()] for parameter in order))
        by_name = layer(**values)
        by_object = layer({parameter: values[parameter.name()] for parameter in case.values})
        for found, same, again, wanted in zip(by_position, by_name, by_object, expected, strict=True):
            assert torch.equal(found, same)
            assert torch.equal(found, again)
            torch.testing.assert_close(found, wanted, atol=1e-12, rtol=0)


# The compiled program.

WITHOUT_CVXPY = """
import pickle, sys
sys.modules["cvxpy"] = None  # importing it is an ImportError
import torch
import convexlayers as cl

program, layer, values, expected, text = pickle.load(open(sys.argv[1], "rb"))
assert str(program) == text
for one in (cl.ConvexLayer.from_program(program), layer):
    inputs = [value.clone().requires_grad_() for value in values]
    outputs = one(*inputs)
    assert all(torch.equal(output, wanted) for output, wanted in zip(outputs, expected, strict=True))
    sum(output.sum() for output in outputs).backward()
    assert all(bool(value.grad.abs().max() > 0) for value in inputs)
assert sys.modules["cvxpy"] is None
print("it ran")
"""


def test_program_and_layer_unpickle_and_run_without_cvxpy(tmp_path):
    case = everything()
    layer = case.layer()
    values = [value.detach() for value in case.tensors()]
    expected = [output.detach() for output in layer(*values)]
    content = (layer.program, layer, values, expected, str(layer.program))
    path = tmp_path / "program.pickle"
    path.write_bytes(pickle.dumps(content))
    run = subprocess.run([sys.executable, "-c", WITHOUT_CVXPY, str(path)], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == "it ran"


def test_geometric_program_unpickles():
    x, c = cp.Variable(pos=True, name="x"), cp.Parameter(pos=True, name="c")
    program = cl.compile_problem(cp.Problem(cp.Minimize(c * x + 1 / x)), [c], [x], gp=True)
    layer = cl.ConvexLayer.from_program(pickle.loads(pickle.dumps(program)))
    assert layer(4.0)[0].item() == pytest.approx(0.5, abs=1e-6)


def test_compilation_is_deterministic():
    programs = [everything().layer().program for _ in range(2)]
    one, other = programs
    for name in ("P_rows", "P_cols", "A_rows", "A_cols"):
        np.testing.assert_array_equal(getattr(one.structure, name), getattr(other.structure, name))
    assert one.structure.cones == other.structure.cones
    assert torch.equal(one.map.constant, other.map.constant)
    for block, same in zip(one.map.blocks, other.map.blocks, strict=True):
        assert torch.equal(block.rows, same.rows)
        assert torch.equal(block.cols, same.cols)
        assert torch.equal(block.values, same.values)


def test_print():
    x, b, P = (
        cp.Variable(3, name="allocation"),
        cp.Parameter(3, name="prices"),
        cp.Parameter((3, 3), PSD=True, name="risk"),
    )
    problem = cp.Problem(cp.Maximize(b @ x - cp.quad_form(x, P)), [cp.sum(x) == 1, x >= 0, cp.SOC(2.0, x)])
    text = str(cl.compile_problem(problem, [b, P], [x, problem.constraints[0].dual_variables[0]]))
    title, *lines = text.splitlines()
    # Rows: one equality, three bounds, a second-order cone of dimension four.
    assert re.match(r"maximize .*prices @ allocation.*: 3 variables, 8 rows$", title)
    listed = {line.split()[0]: line.split(maxsplit=1)[1] for line in lines}
    assert listed["cones"] == "zero 1, nonnegative 3, second-order [4]"
    assert listed["nonzeros"].startswith("P 6 (upper triangle), A ")
    assert listed["parameters"] == "prices (3,), risk (3, 3)"
    assert listed["returns"].startswith("allocation (3,), dual of ")
    assert listed["returns"].endswith(" == 1.0 ()")
    assert re.match(r"in [\d.]+ ms$", listed["compiled"])


def test_long_objectives_are_shortened_in_print():
    x = cp.Variable(2)
    text = str(compile_all(cp.Problem(cp.Minimize(sum(cp.sum_squares(x - i) for i in range(50))))))
    assert len(text.splitlines()[0]) < 120


def test_map_is_as_large_as_the_parameter():
    """One entry of the map for each entry of Q, and no dense array of (variables + rows) times entries."""
    n = 300
    x, Q = cp.Variable(n), cp.Parameter((n, n), name="Q")
    problem = cp.Problem(cp.Minimize(cp.sum_squares(Q @ x) + cp.sum_squares(x)))
    tracemalloc.start()
    try:
        program = compile_all(problem)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert program.map.nnz == n * n
    assert len(program.structure.A_rows) <= n * n + n
    # Some arrays of 90 000 entries; one dense array of n entries for each of them would be 200 MB.
    assert peak < 100e6


def test_large_parameter():
    """So many entries that CVXPY uses another backend; minimize |Qx - 1|^2 + |x|^2 has a closed form."""
    n = 40
    x, Q = cp.Variable(n), cp.Parameter((n, n), name="Q")
    layer = cl.ConvexLayer(cp.Problem(cp.Minimize(cp.sum_squares(Q @ x - 1) + cp.sum_squares(x))), [Q], [x])
    value = torch.tensor(random(n, n), requires_grad=True)
    expected = torch.linalg.solve(value.T @ value + torch.eye(n).double(), value.sum(0))
    (x_star,) = layer(value)
    torch.testing.assert_close(x_star, expected, atol=1e-10, rtol=0)
    weights = torch.tensor(random(n, seed=4))
    (gradient,) = torch.autograd.grad(x_star @ weights, value)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected @ weights, value)[0], atol=1e-9, rtol=0)


# What is refused.


def test_unknown_content_of_a_cone_program_is_an_error(monkeypatch):
    original = ConeMatrixStuffing.apply

    def apply(self, problem):
        stuffed, inverse = original(self, problem)
        stuffed.quartic_terms = np.ones(3)
        return stuffed, inverse

    monkeypatch.setattr(ConeMatrixStuffing, "apply", apply)
    with pytest.raises(UnsupportedProblemError, match=r"quartic_terms.*not known"):
        compile_all(everything().problem)


@pytest.mark.parametrize("name", ["lower_bounds", "upper_bounds", "lb_tensor", "ub_tensor", "dir_cones"])
def test_content_that_would_be_ignored_is_an_error(monkeypatch, name):
    original = ConeMatrixStuffing.apply

    def apply(self, problem):
        stuffed, inverse = original(self, problem)
        setattr(stuffed, name, [1.0])
        return stuffed, inverse

    monkeypatch.setattr(ConeMatrixStuffing, "apply", apply)
    with pytest.raises(UnsupportedProblemError, match=name):
        compile_all(everything().problem)


class Strange(Constraint):
    """A constraint that no version of CVXPY knows."""

    def is_dcp(self, dpp: bool = False) -> bool:
        return True

    def is_dgp(self, dpp: bool = False) -> bool:
        return False

    @property
    def residual(self):
        return None

    def is_dqcp(self) -> bool:
        return True


def test_constraint_of_a_cone_program_that_is_not_known_is_an_error(monkeypatch):
    original = ConeMatrixStuffing.apply

    def apply(self, problem):
        stuffed, inverse = original(self, problem)
        stuffed.constraints.append(Strange([cp.Variable()]))
        return stuffed, inverse

    monkeypatch.setattr(ConeMatrixStuffing, "apply", apply)
    with pytest.raises(UnsupportedProblemError, match="Strange"):
        compile_all(everything().problem)


def test_constraint_that_is_not_known_is_an_error():
    """CVXPY's matrix stuffing would drop it."""
    x = cp.Variable(2)
    with pytest.raises(UnsupportedProblemError, match="Strange"):
        compile_all(cp.Problem(cp.Minimize(cp.sum_squares(x)), [Strange([x])]))


def unsupported_problems():
    x, z = cp.Variable(2, name="x"), cp.Variable(2, complex=True, name="z")
    p, q = cp.Parameter(2, complex=True, name="p"), cp.Parameter(2, boolean=True, name="q")
    b, i = cp.Variable(2, boolean=True, name="b"), cp.Variable(2, integer=True, name="i")
    some = cp.Variable(2, boolean=[(0,)], name="some")
    square = cp.sum_squares(x)
    return {
        "complex_variable": (square + cp.sum(cp.abs(z)), [], "z is complex"),
        "hermitian_variable": (
            square + cp.lambda_max(cp.Variable((2, 2), hermitian=True, name="H")),
            [],
            "H is complex",
        ),
        "complex_parameter": (cp.sum_squares(cp.real(x - p)), [], "p is complex"),
        "complex_constant": (square + cp.sum(cp.abs(1j * x)), [], "complex"),
        "boolean_variable": (square + cp.sum(b), [], "b is boolean or integer"),
        "integer_variable": (square + cp.sum(i), [], "i is boolean or integer"),
        "partly_boolean_variable": (square + cp.sum(some), [], "some is boolean or integer"),
        "boolean_parameter": (square + cp.sum(cp.multiply(q, x)), [], "q is boolean or integer"),
        "finite_set": (square, [cp.FiniteSet(x, [1.0, 2.0])], "FiniteSet"),
    }


@pytest.mark.parametrize("name", unsupported_problems())
def test_unsupported_problem(name):
    objective, constraints, message = unsupported_problems()[name]
    with pytest.raises(UnsupportedProblemError, match=message):
        compile_all(cp.Problem(cp.Minimize(objective), constraints))


def problems_with_hidden_parameters():
    """Objectives as functions of x and a parameter that `problem.parameters()` does not report, or does in vain."""
    y, t = cp.Variable(2), cp.Variable(nonneg=True)
    return {
        "support_function": lambda x, b: cp.suppfunc(y, [cp.norm(y) <= 1])(x - b),
        "perspective": lambda x, b: cp.perspective(cp.sum_squares(x - b), t) + cp.square(t - 1),
        "partial_optimize": lambda x, b: partial_optimize(
            cp.Problem(cp.Minimize(cp.sum_squares(x - y) + cp.norm1(y - b))), opt_vars=[y]
        ),
    }


@pytest.mark.parametrize("name", problems_with_hidden_parameters())
@pytest.mark.parametrize("value", [None, np.ones(2)], ids=["without_value", "with_value"])
def test_parameter_that_cvxpy_does_not_see_is_never_frozen(name, value):
    x, b = cp.Variable(2, name="x"), cp.Parameter(2, name="hidden", value=value)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(x) + problems_with_hidden_parameters()[name](x, b)))
    for parameters in (problem.parameters(), [b]):
        with pytest.raises((UnsupportedProblemError, NotDPPError, ArgumentError)):
            cl.compile_problem(problem, parameters, [x])


@pytest.mark.parametrize("cone", [cp.PowCone3D, cp.PowConeND])
def test_exponent_of_a_cone_is_never_frozen(cone):
    x, a = cp.Variable(3), cp.Parameter(name="a", pos=True, value=0.4)
    arguments = (x[0], x[1], x[2], a) if cone is cp.PowCone3D else (x[:2], x[2], cp.hstack([a, 1 - a]))
    problem = cp.Problem(cp.Maximize(x[2]), [cone(*arguments), x[0] + x[1] == 2])
    for parameters in ([], [a]):
        with pytest.raises((UnsupportedProblemError, NotDPPError, ArgumentError)):
            cl.compile_problem(problem, parameters, [x])


def problems_that_are_not_convex():
    x, p = cp.Variable(2, name="x"), cp.Parameter(name="p")
    return {
        "square_root_minimized": (cp.Minimize(cp.sum(cp.sqrt(x))), [], "look at .*Minimize what is convex"),
        "product_of_variables": (
            cp.Minimize(cp.sum_squares(x) + x[0] * x[1]),
            [],
            r"look at x\[0\] [*@] x\[1\] in .*neither",
        ),
        "inside_a_sum": (cp.Minimize(cp.sum_squares(x) + cp.exp(cp.log(x[0]))), [], r"look at exp\(log\(x\[0\]\)\)"),
        "convex_lower_bound": (cp.Minimize(cp.sum(x)), [cp.norm(x) >= 1], r"look at .*1.* <= .*\. The smaller"),
        "convex_equality": (
            cp.Minimize(cp.sum(x)),
            [cp.sum_squares(x) == 1],
            r"look at quad_over_lin\(x.* == 1\.0\. Both",
        ),
        "maximized_convex": (cp.Maximize(cp.sum_squares(x)), [], r"look at maximize quad_over_lin\(x.*or maximize"),
        "sign_of_parameter": (cp.Minimize(p * cp.norm(x)), [], r"look at p \* .*\(x, 2\).*nonneg=True"),
        "quad_form_without_sign": (
            cp.Minimize(cp.quad_form(x, cp.Parameter((2, 2), symmetric=True, name="S"))),
            [],
            r"look at QuadForm\(x, S\).*PSD=True",
        ),
        "cone_of_a_convex_function": (cp.Minimize(x[0]), [cp.SOC(cp.norm(x), x)], r"look at SOC.*must be affine"),
    }


@pytest.mark.parametrize("name", problems_that_are_not_convex())
def test_problem_that_is_not_convex(name):
    objective, constraints, message = problems_that_are_not_convex()[name]
    with pytest.raises(NotDCPError, match=message) as caught:
        compile_all(cp.Problem(objective, constraints))
    root = constraints[0] if constraints else objective
    assert str(caught.value).count(str(root)) == 1


def problems_that_are_not_dpp():
    """Objective, constraints, the offender, its parameters, and a word of the rewrite."""
    x = cp.Variable(3, name="x")
    a, b, c = cp.Parameter(name="a"), cp.Parameter(name="b"), cp.Parameter(nonneg=True, name="c")
    v, w, p = cp.Parameter(3, name="v"), cp.Parameter(3, name="w"), cp.Parameter(pos=True, name="p")
    A, B, S = cp.Parameter((3, 3), name="A"), cp.Parameter((3, 3), name="B"), cp.Parameter((3, 3), PSD=True, name="S")
    square = cp.sum_squares(x)
    new, extra = "one new parameter", "extra variable|introduce a variable"
    return {
        "product": (square + a * b * cp.sum(x), [], "a * b", new),
        "product_of_matrices": (square + cp.norm(A @ B @ x), [], "A @ B", new),
        "product_after_a_variable": (square + cp.sum(cp.multiply(v, cp.multiply(w, x))), [], "v * w * x", new),
        "inside_a_constraint": (square, [cp.sum(x) >= 0, cp.log_sum_exp(x + cp.multiply(v, w)) <= 1], "v * w", new),
        "squared": (square, [x[0] == a**2], "a, 2", new),
        "norm_of_parameter": (square, [cp.norm(x) <= cp.norm(v)], "(v, 2)", new),
        "exponential_of_parameter": (square + cp.exp(a) * x[0], [], "exp(a)", new),
        "maximum_of_parameter": (square + cp.max(v) * x[0], [], "max(v", new),
        "divided": (square + cp.sum(x) / a, [], "/ a", new),
        "denominator": (cp.quad_over_lin(x, c), [], "quad_over_lin(x, c", new),
        "matrix_of_matrix_frac": (cp.matrix_frac(x - v, A @ A.T), [], "A @ A.T", new),
        "within_a_factor": (square + 2 * (cp.sum_squares(x - v) + a * b * x[0]), [], "a * b", new),
        "quad_form_in_constraint": (square, [cp.quad_form(x, S) <= 1], "QuadForm(x, S)", "sum_squares(R @ x)"),
        "quad_form_in_exp": (cp.exp(cp.quad_form(x, S)), [], "QuadForm(x, S)", "sum_squares(R @ x)"),
        "quad_form_in_square": (cp.square(cp.quad_form(x, S)), [], "QuadForm(x, S)", "sum_squares(R @ x)"),
        "quad_form_in_maximum": (cp.maximum(cp.quad_form(x, S), 1), [], "QuadForm(x, S)", "sum_squares(R @ x)"),
        "quad_form_in_huber": (cp.quad_form(x, S) + cp.huber(cp.quad_form(x, S)), [], "QuadForm(x, S)", "R @ x"),
        "quad_form_of_parameters": (cp.quad_form(A @ x, S), [], "QuadForm(A @ x, S)", "R @ x"),
        "weight_of_shifted_norm": (square + c * cp.norm(x - v), [], "c * ", extra),
        "kron": (square + cp.sum(cp.kron(np.eye(2), cp.diag(x[:2] + v[:2]))), [], "kron(", extra),
        "exponent": (square + cp.sum(cp.power(x, p)), [], "p", "exponent"),
        "hidden_in_an_atom": (cp.sum(cp.huber(x, c * p)), [], "c", "variable|parameter"),
    }


@pytest.mark.parametrize("name", problems_that_are_not_dpp())
@pytest.mark.parametrize("has_values", [False, True])
def test_problem_that_is_not_dpp(name, has_values):
    objective, constraints, offender, rewrite = problems_that_are_not_dpp()[name]
    problem = cp.Problem(cp.Minimize(objective), constraints)
    for parameter in problem.parameters() if has_values else []:
        parameter.value = np.eye(3) if parameter.shape == (3, 3) else np.full(parameter.shape, 1.5)
    with pytest.raises(NotDPPError) as error:
        compile_all(problem)
    message = str(error.value)
    assert offender in message
    assert any(word in message for word in rewrite.split("|")), message


def test_smallest_offender_is_named():
    """Not the whole objective, nor parts of it that are fine."""
    x, a, b = cp.Variable(2, name="x"), cp.Parameter(name="a"), cp.Parameter(name="b")
    objective = cp.norm(x) + cp.exp(cp.norm1(x) + cp.pos(a * b * x[1])) + cp.sum_squares(x)
    with pytest.raises(NotDPPError, match=r"not DPP: a \* b in the objective"):
        compile_all(cp.Problem(cp.Minimize(objective)))


def test_rewrites_are_right():
    """What the messages advise compiles, and gives the same as CVXPY on the problem that was refused."""
    x, a, b, ab = cp.Variable(3), cp.Parameter(name="a"), cp.Parameter(name="b"), cp.Parameter(name="ab")
    S, R = cp.Parameter((3, 3), PSD=True), cp.Parameter((3, 3), name="R")
    refused = cp.Problem(cp.Minimize(cp.sum_squares(x) + a * b * cp.sum(x)), [cp.quad_form(x, S) <= 1])
    layer = cl.ConvexLayer(
        cp.Problem(cp.Minimize(cp.sum_squares(x) + ab * cp.sum(x)), [cp.sum_squares(R @ x) <= 1]), [ab, R], [x]
    )
    a.value, b.value, S.value = 1.5, 4.0, DEFINITE
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        refused.solve(solver=cp.CLARABEL, tol_gap_abs=1e-11, tol_gap_rel=1e-11)
    (x_star,) = layer(6.0, np.linalg.cholesky(DEFINITE).T)
    np.testing.assert_allclose(x_star.numpy(), x.value, atol=1e-5)


# Arguments.


def small():
    x, b, c = cp.Variable(2, name="x"), cp.Parameter(2, name="b"), cp.Parameter(name="c")
    return cp.Problem(cp.Minimize(cp.sum_squares(x - b)), [cp.sum(x) == c]), x, b, c


def test_missing_parameter():
    problem, x, b, _ = small()
    with pytest.raises(ArgumentError, match="parameters lacks c"):
        cl.compile_problem(problem, [b], [x])
    with pytest.raises(ArgumentError, match=r"parameters lacks (b, c|c, b)"):
        cl.compile_problem(problem, [], [x])


def test_unknown_parameter():
    problem, x, b, c = small()
    stranger = cp.Parameter(2, name="stranger")
    with pytest.raises(ArgumentError, match="parameters holds stranger"):
        cl.compile_problem(problem, [b, stranger, c], [x])


def test_parameter_given_twice():
    problem, x, b, c = small()
    with pytest.raises(ArgumentError, match="twice"):
        cl.compile_problem(problem, [b, c, b], [x])


def test_variable_of_another_problem():
    problem, _, b, c = small()
    other, y, *_ = small()
    with pytest.raises(ArgumentError, match="variables holds x"):
        cl.compile_problem(problem, [b, c], [y])
    with pytest.raises(ArgumentError, match="neither a variable of the problem nor a dual variable"):
        cl.compile_problem(problem, [b, c], [other.constraints[0].dual_variables[0]])


def test_no_variables():
    problem, _, b, c = small()
    with pytest.raises(ArgumentError, match="variables is empty"):
        cl.compile_problem(problem, [b, c], [])


def test_arguments_of_wrong_kinds():
    problem, x, b, c = small()
    with pytest.raises(ArgumentError, match=r"problem is a Minimize, expected a cvxpy\.Problem"):
        cl.compile_problem(problem.objective, [b, c], [x])
    with pytest.raises(ArgumentError, match=r"parameters holds a Variable, expected cvxpy\.Parameter"):
        cl.compile_problem(problem, [b, x], [x])
    with pytest.raises(ArgumentError, match=r"variables holds a Parameter, expected cvxpy\.Variable"):
        cl.compile_problem(problem, [b, c], [b])
    with pytest.raises(ArgumentError, match=r"variables holds a \w+, expected cvxpy\.Variable"):
        cl.compile_problem(problem, [b, c], [problem.constraints[0]])
    with pytest.raises(ArgumentError, match=r"variables holds a \w+, expected cvxpy\.Variable"):
        cl.compile_problem(problem, [b, c], [x[0]])


def test_variable_returned_twice():
    problem, x, b, c = small()
    one, other = cl.ConvexLayer(problem, [b, c], [x, x])(np.ones(2), 1.0)
    assert torch.equal(one, other)


def test_arrays_with_negative_strides():
    problem, x, b, c = small()
    layer = cl.ConvexLayer(problem, [b, c], [x])
    value = np.array([0.3, 0.9])
    assert torch.equal(layer(value[::-1], 1.0)[0], layer(value[::-1].copy(), 1.0)[0])


def problems_that_cvxpy_has_something_to_say_about():
    x, c, y = cp.Variable((2, 3, 4)), cp.Parameter((2, 3, 4)), cp.Variable(3)
    return {
        "three_dimensions": (cp.sum_squares(x - c), []),
        "atoms_without_default_backend": (cp.sum_squares(cp.stack([y, 2 * y]) - 1), []),
        "approximation": (-cp.geo_mean(y, [1, 2, 3]), [cp.sum(y) <= 1]),
        "deprecated": (
            cp.sum_squares(deprecated(cp.conv, [1.0, 0.5], y) - 1),
            [deprecated(cp.NonPos, y - 2)],
        ),
    }


@pytest.mark.parametrize("name", problems_that_cvxpy_has_something_to_say_about())
def test_compiling_says_nothing(name):
    """Users cannot do anything about it, or have been told when they wrote the problem."""
    objective, constraints = problems_that_cvxpy_has_something_to_say_about()[name]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert compile_all(cp.Problem(cp.Minimize(objective), constraints)).structure.n > 0
