"""Dual variables: sign, shape and symmetric form are those of CVXPY's `dual_value`, and their gradients are right.

In every problem the objective is 1/2 |x - c|^2 (or the maximization of its negative) with c a parameter outside of the
feasible set, so that multipliers are unique and not zero. Where CVXPY's own dual values are of no use, the optimality
conditions are checked instead.
"""

import cvxpy as cp
import numpy as np
import pytest
import scipy.sparse as sp
import torch
from cvxpy_reference import Case, check_gradients, check_values, deprecated

import convexlayers as cl
from convexlayers.errors import UnsupportedProblemError

VECTOR = np.array([1.3, -0.7, 0.4, -1.6])
POSITIVE = np.array([1.3, 0.7, 0.4, 1.6])


def random(*shape, low=-1.5, high=1.5, seed=3):
    return np.random.default_rng(seed).uniform(low, high, shape)


def symmetric(order, seed=3):
    """Eigenvalues of both signs, none near zero."""
    basis = np.linalg.qr(random(order, order, seed=seed))[0]
    return basis @ np.diag(np.where(np.arange(order) % 2, 1.0, -0.7) * np.linspace(0.8, 1.6, order)) @ basis.T


def target(x, value, constraints, maximize=False):
    """The problem of projecting onto the constraints; c comes first among the parameters."""
    c = cp.Parameter(x.shape, name="c", symmetric=x.attributes["symmetric"])
    distance = 0.5 * cp.sum_squares(x - c)
    objective = cp.Maximize(-distance) if maximize else cp.Minimize(distance)
    return cp.Problem(objective, constraints), {c: value}


def scalar_equality():
    x, b = cp.Variable(4), cp.Parameter(name="b")
    problem, values = target(x, VECTOR, [cp.sum(x) == b])
    return Case(problem, {**values, b: 0.5})


def scalar_equality_turned_round():
    x, b = cp.Variable(4), cp.Parameter(name="b")
    problem, values = target(x, VECTOR, [b == cp.sum(x)], maximize=True)
    return Case(problem, {**values, b: 0.5})


def vector_equality():
    x, A, b = cp.Variable(4), cp.Parameter((2, 4), name="A"), cp.Parameter(2, name="b")
    problem, values = target(x, VECTOR, [A @ x == b])
    return Case(problem, {**values, A: random(2, 4), b: np.array([0.5, -0.3])})


def matrix_equality():
    x, B = cp.Variable((2, 3)), cp.Parameter((2, 2), name="B")
    problem, values = target(x, random(2, 3), [x @ random(3, 2, seed=4) == B])
    return Case(problem, {**values, B: random(2, 2, seed=5)})


def matrix_equality_maximize():
    x, B = cp.Variable((2, 3)), cp.Parameter((2, 2), name="B")
    problem, values = target(x, random(2, 3), [B == x @ random(3, 2, seed=4)], maximize=True)  # noqa: SIM300
    return Case(problem, {**values, B: random(2, 2, seed=5)})


def zero_cone():
    x, B = cp.Variable((2, 3)), cp.Parameter((2, 2), name="B")
    problem, values = target(x, random(2, 3), [cp.Zero(x @ random(3, 2, seed=4) - B)])
    return Case(problem, {**values, B: random(2, 2, seed=5)})


def scalar_inequality():
    x, b = cp.Variable(), cp.Parameter(name="b")
    problem, values = target(x, 2.0, [3 * x <= b])
    return Case(problem, {**values, b: 0.9})


def upper_inequality():
    x, b = cp.Variable(4), cp.Parameter(4, name="b")
    problem, values = target(x, VECTOR, [x <= b])
    return Case(problem, {**values, b: np.array([0.2, 0.1, 0.0, -2.0])})


def lower_inequality():
    x, b = cp.Variable(4), cp.Parameter(4, name="b")
    problem, values = target(x, VECTOR, [x >= b], maximize=True)
    return Case(problem, {**values, b: np.array([0.2, 0.1, 0.0, -1.0])})


def matrix_inequality():
    x, b = cp.Variable((2, 3)), cp.Parameter((2, 3), name="b")
    problem, values = target(x, random(2, 3), [x <= b, 2 * x >= b - 2])
    return Case(problem, {**values, b: random(2, 3, seed=6)})


def convex_inequality():
    x, b = cp.Variable(4), cp.Parameter(name="b")
    problem, values = target(x, VECTOR, [cp.norm(x) <= b, cp.square(x) <= 0.8, cp.sqrt(x + 2) >= 0.9])
    return Case(problem, {**values, b: 1.1})


def nonnegative_cone():
    x, b = cp.Variable((2, 3)), cp.Parameter((2, 3), name="b")
    problem, values = target(x, random(2, 3), [cp.NonNeg(x - b)])
    return Case(problem, {**values, b: random(2, 3, seed=6)})


def nonpositive_cone():
    x, b = cp.Variable((2, 3)), cp.Parameter((2, 3), name="b")
    problem, values = target(x, random(2, 3), [deprecated(cp.NonPos, x - b)], maximize=True)
    return Case(problem, {**values, b: random(2, 3, seed=6)})


def semidefinite(order):
    X = cp.Variable((order, order), symmetric=True)
    return Case(*target(X, symmetric(order), [X >> 0]))


def semidefinite_below(order):
    X, B = cp.Variable((order, order), symmetric=True), cp.Parameter((order, order), symmetric=True, name="B")
    problem, values = target(X, symmetric(order), [X << B], maximize=True)
    return Case(problem, {**values, B: 0.2 * symmetric(order, seed=4)})


def semidefinite_without_symmetry(order):
    X = cp.Variable((order, order))
    problem, values = target(X, symmetric(order) + 0.3 * random(order, order, seed=5), [X >> 0])
    return Case(problem, values)


def semidefinite_expression():
    x, A, B = cp.Variable(3), cp.Parameter((3, 3), symmetric=True, name="A"), cp.Parameter((3, 3), PSD=True, name="B")
    matrix = x[0] * A + x[1] * random_symmetric(7) + cp.diag(x) + B
    problem, values = target(x, np.array([-5.5, 2.0, -4.0]), [matrix >> 0])
    return Case(problem, {**values, A: symmetric(3), B: 2 * np.eye(3)})


def random_symmetric(seed):
    matrix = random(3, 3, seed=seed)
    return matrix + matrix.T


def semidefinite_blocks():
    X, Y = cp.Variable((3, 3), symmetric=True), cp.Variable((4, 4), symmetric=True)
    C, D = cp.Parameter((3, 3), symmetric=True, name="C"), cp.Parameter((4, 4), symmetric=True, name="D")
    objective = cp.sum_squares(X - C) + cp.sum_squares(Y - D)
    problem = cp.Problem(cp.Minimize(objective), [Y >> 0.1 * np.eye(4), X >> 0, cp.trace(X) == cp.trace(Y)])
    return Case(problem, {C: symmetric(3), D: symmetric(4)})


def exponential(shape, maximize=False):
    x, y, z = (cp.Variable(shape, name=name) for name in "xyz")
    c = [cp.Parameter(shape, name=f"c{name}") for name in "xyz"]
    distance = sum(0.5 * cp.sum_squares(variable - middle) for variable, middle in zip((x, y, z), c, strict=True))
    objective = cp.Maximize(-distance) if maximize else cp.Minimize(distance)
    size = (random(*shape, low=low, high=low + 0.7, seed=seed) for low, seed in ((0.5, 1), (0.4, 2), (-0.5, 3)))
    return Case(cp.Problem(objective, [cp.ExpCone(x, y, z)]), dict(zip(c, size, strict=True)))


def exponential_of_expressions():
    x, b = cp.Variable(4), cp.Parameter(2, name="b")
    problem, values = target(
        x, VECTOR, [cp.ExpCone(x[:2] + b, np.array([1.0, 0.6]), cp.sum(x) + cp.Constant([1, 2.5]))]
    )
    return Case(problem, {**values, b: np.array([0.3, 0.9])})


def power(shape, alpha, maximize=False):
    x, y, z = (cp.Variable(shape, name=name) for name in "xyz")
    c = [cp.Parameter(shape, name=f"c{name}") for name in "xyz"]
    distance = sum(0.5 * cp.sum_squares(variable - middle) for variable, middle in zip((x, y, z), c, strict=True))
    objective = cp.Maximize(-distance) if maximize else cp.Minimize(distance)
    size = (random(*shape, low=low, high=low + 0.7, seed=seed) for low, seed in ((0.5, 1), (0.4, 2), (1.5, 3)))
    return Case(cp.Problem(objective, [cp.PowCone3D(x, y, z, alpha)]), dict(zip(c, size, strict=True)))


def second_order_scalar():
    x, r = cp.Variable(4), cp.Parameter(name="r")
    problem, values = target(x, VECTOR, [cp.SOC(r, x)])
    return Case(problem, {**values, r: 1.2})


def second_order(axis, maximize=False):
    """Several cones, those of the first and last bound active."""
    shape = (2, 3) if axis == 0 else (3, 2)
    x, r = cp.Variable(shape), cp.Parameter(3, name="r")
    problem, values = target(x, random(*shape), [cp.SOC(r + 0.1 * cp.sum(x), x, axis=axis)], maximize)
    return Case(problem, {**values, r: np.array([0.6, 3.0, 0.4])})


CASES = {
    "scalar_equality": scalar_equality,
    "scalar_equality_turned_round": scalar_equality_turned_round,
    "vector_equality": vector_equality,
    "matrix_equality": matrix_equality,
    "matrix_equality_maximize": matrix_equality_maximize,
    "zero_cone": zero_cone,
    "scalar_inequality": scalar_inequality,
    "upper_inequality": upper_inequality,
    "lower_inequality": lower_inequality,
    "matrix_inequality": matrix_inequality,
    "convex_inequality": convex_inequality,
    "nonnegative_cone": nonnegative_cone,
    "nonpositive_cone": nonpositive_cone,
    **{f"semidefinite_{n}": lambda n=n: semidefinite(n) for n in (1, 2, 3, 4, 5)},
    **{f"semidefinite_below_{n}": lambda n=n: semidefinite_below(n) for n in (2, 3, 4, 5)},
    **{f"semidefinite_without_symmetry_{n}": lambda n=n: semidefinite_without_symmetry(n) for n in (2, 3, 4)},
    "semidefinite_expression": semidefinite_expression,
    "semidefinite_blocks": semidefinite_blocks,
    "exponential_scalar": lambda: exponential(()),
    "exponential_vector": lambda: exponential((3,)),
    "exponential_matrix": lambda: exponential((2, 3), maximize=True),
    "exponential_of_expressions": exponential_of_expressions,
    "power_scalar": lambda: power((), 0.3),
    "power_vector": lambda: power((3,), np.array([0.3, 0.5, 0.8])),
    "power_matrix": lambda: power((2, 2), np.array([[0.3, 0.5], [0.8, 0.6]]), maximize=True),
    "second_order_scalar": second_order_scalar,
    "second_order_columns": lambda: second_order(0),
    "second_order_rows": lambda: second_order(1),
    "second_order_rows_maximize": lambda: second_order(1, maximize=True),
}


@pytest.mark.parametrize("name", CASES)
def test_duals(name):
    case = CASES[name]()
    layer = check_values(case)
    largest = max(np.abs(dual.value).max() for c in case.problem.constraints for dual in c.dual_variables)
    assert largest > 1e-2, "nothing is active"
    check_gradients(case, layer)


# Constraints on x with a scalar b in them: every combination of shapes that CVXPY takes.
SHAPES = {
    "second_order_column": ((4, 1), lambda x, b: cp.SOC(b, x)),
    "second_order_vector_of_one": ((4,), lambda x, b: cp.SOC(cp.reshape(b, (1,), order="F"), x)),
    "second_order_one_row": ((1, 4), lambda x, b: cp.SOC(cp.reshape(b, (1,), order="F"), x, axis=1)),
    "second_order_of_scalars": ((), lambda x, b: cp.SOC(b, x)),
    "semidefinite_one_by_one": ((1, 1), lambda x, b: x >> 3 * b),
    "semidefinite_stack": ((2, 3, 3), lambda x, b: cp.PSD(x - b * np.stack([np.eye(3), np.ones((3, 3))]))),
    "inequality_with_scalar": ((2, 3), lambda x, b: x <= b),
    "inequality_with_row": ((2, 3), lambda x, b: x <= b * np.array([0.2, 0.4, 0.6])),
    "inequality_with_column": ((2, 3), lambda x, b: x >= b * np.array([[0.2], [0.4]])),
    "inequality_of_scalar_with_vector": ((), lambda x, b: x >= np.array([0.1, 0.2, 0.5]) + b),
    "inequality_of_three_dimensions": ((2, 2, 2), lambda x, b: x <= b),
    "equality_with_scalar": ((2, 3), lambda x, b: x[:, :2] == b),
    "equality_of_three_dimensions": ((2, 3, 2), lambda x, b: cp.sum(x, axis=1) == b),
    "zero_of_three_dimensions": ((2, 3, 2), lambda x, b: cp.Zero(cp.sum(x, axis=2) - b)),
    "nonnegative_of_three_dimensions": ((2, 3, 2), lambda x, b: cp.NonNeg(x - b)),
    "exponential_of_slices": ((2, 2, 3), lambda x, b: cp.ExpCone(x[:, :, 0], x[:, :, 1] + 2 + b, x[:, :, 2])),
    "exponential_of_three_dimensions": (
        (2, 2, 2, 3),
        lambda x, b: cp.ExpCone(x[:, :, :, 0], x[:, :, :, 1] + 2 + b, x[:, :, :, 2]),
    ),
    "power_of_slices": ((2, 2, 3), lambda x, b: cp.PowCone3D(x[:, :, 0] + 2, x[:, :, 1] + 2 + b, 3 * x[:, :, 2], 0.3)),
    "power_of_three_dimensions": (
        (2, 2, 2, 3),
        lambda x, b: cp.PowCone3D(x[:, :, :, 0] + 2, x[:, :, :, 1] + 2 + b, 3 * x[:, :, :, 2], 0.3),
    ),
    "sparse_constant": ((4,), lambda x, b: sp.csr_array(np.diag([1.0, 0, 2, 0]) + np.eye(4, k=1)) @ x <= b),
    "entries_by_list": ((4,), lambda x, b: x[[2, 0]] <= -b),
}


@pytest.mark.parametrize("name", SHAPES)
def test_shapes_of_duals(name):
    shape, constrain = SHAPES[name]
    x, b = cp.Variable(shape, name="x"), cp.Parameter(name="b")
    problem, values = target(x, random(*shape), [constrain(x, b)])
    case = Case(problem, {**values, b: 0.4})
    layer = check_values(case)
    assert max(np.abs(dual.value).max() for dual in problem.constraints[0].dual_variables) > 1e-2, "nothing is active"
    check_gradients(case, layer)


def test_dual_of_a_stack_of_semidefinite_cones():
    """The negative part of each matrix, whose positive part is the solution."""
    X, C = cp.Variable((2, 3, 3)), cp.Parameter((2, 3, 3), name="C")
    constraint = cp.PSD(X)
    problem = cp.Problem(cp.Minimize(0.5 * cp.sum_squares(X - C)), [constraint])
    value = np.stack([symmetric(3), symmetric(3, seed=5)])
    primal, dual = cl.ConvexLayer(problem, [C], [X, constraint.dual_variables[0]])(value)
    lowest, vectors = np.linalg.eigh(value)
    expected = (vectors * np.maximum(-lowest, 0)[:, None]) @ vectors.swapaxes(1, 2)
    np.testing.assert_allclose(dual.numpy(), expected, atol=1e-8)
    np.testing.assert_allclose(primal.numpy(), value + expected, atol=1e-8)


def lagrangian_of_projections():
    """Constraint, c, and the gradient of the constraint's part of the Lagrangian in x, as a function of the dual.

    Equalities and inequalities enter as +y'(lhs - rhs), cones as -y'x.
    """
    x = cp.Variable(3)
    c = np.array([0.9, 0.4, -0.6])
    b = np.array([0.2, 0.5, -0.3])
    return {
        "equality": (x, x == b, c, lambda y: y),
        "equality_turned_round": (x, cp.Constant(b) == x, c, lambda y: -y),
        "zero": (x, cp.Zero(x - b), c, lambda y: y),
        "upper": (x, x <= b, c, lambda y: y),
        "lower": (x, x >= b, c, lambda y: -y),
        "nonnegative": (x, cp.NonNeg(x - b), c, lambda y: -y),
        "nonpositive": (x, deprecated(cp.NonPos, x - b), c, lambda y: y),
        "second_order": (x, cp.SOC(x[0], x[1:]), np.array([0.3, 1.1, -0.5]), lambda t, u: -np.r_[t, u]),
        "exponential": (x, cp.ExpCone(*x), np.array([0.9, 0.4, -0.6]), lambda *y: -np.stack(y)),
        "power": (x, cp.PowCone3D(*x, 0.3), np.array([0.9, 0.4, -2.6]), lambda *y: -np.stack(y)),
    }


@pytest.mark.parametrize("name", lagrangian_of_projections())
@pytest.mark.parametrize("maximize", [False, True])
def test_signs_by_stationarity_of_the_lagrangian(name, maximize):
    """x - c + gradient of the constraint's part = 0, for maximization of -f as for minimization of f."""
    x, constraint, value, gradient = lagrangian_of_projections()[name]
    c = cp.Parameter(3, name="c")
    distance = 0.5 * cp.sum_squares(x - c)
    objective = cp.Maximize(-distance) if maximize else cp.Minimize(distance)
    layer = cl.ConvexLayer(cp.Problem(objective, [constraint]), [c], [x, *constraint.dual_variables])
    primal, *duals = (output.numpy() for output in layer(torch.tensor(value)))
    assert np.abs(primal - value).max() > 0.1
    np.testing.assert_allclose(primal - value + gradient(*duals), 0, atol=1e-9)


def test_duals_alone_and_in_any_order():
    x, b = cp.Variable(3), cp.Parameter(3, name="b")
    constraints = [cp.sum(x) == 1, x <= 0.6, cp.SOC(1.0, x)]
    problem = cp.Problem(cp.Minimize(cp.sum_squares(x - b)), constraints)
    wanted = [constraints[2].dual_variables[1], constraints[0].dual_variables[0], constraints[1].dual_variables[0]]
    value = torch.tensor([0.9, 0.4, -0.6], dtype=torch.float64)
    alone = cl.ConvexLayer(problem, [b], wanted)(value)
    everything = cl.ConvexLayer(problem, [b], [x, wanted[2], wanted[1], wanted[0]])(value)
    for one, other in zip(alone, everything[:0:-1], strict=True):
        assert torch.equal(one, other)
    assert [tuple(dual.shape) for dual in alone] == [(3,), (), (3,)]


def test_primal_of_a_many_dimensional_power_cone():
    x, c = cp.Variable(4, name="x"), cp.Parameter(4, name="c")
    constraint = cp.PowConeND(x[:3], x[3], np.array([0.2, 0.3, 0.5]))
    case = Case(
        cp.Problem(cp.Minimize(cp.sum_squares(x - c)), [constraint]), {c: np.array([0.5, 0.9, 0.7, 1.4])}, False
    )
    layer = check_values(case)
    check_gradients(case, layer)
    x_star = layer(np.array([0.5, 0.9, 0.7, 1.4]))[0].numpy()
    assert np.prod(x_star[:3] ** [0.2, 0.3, 0.5]) == pytest.approx(x_star[3], abs=1e-8)


def test_dual_of_a_many_dimensional_power_cone_is_refused():
    x, c = cp.Variable(3, name="x"), cp.Parameter(3, name="c")
    constraint = cp.PowConeND(x[:2], x[2], np.array([0.3, 0.7]))
    problem = cp.Problem(cp.Minimize(cp.sum_squares(x - c)), [constraint])
    with pytest.raises(UnsupportedProblemError, match="dual of PowND"):
        cl.ConvexLayer(problem, [c], [x, constraint.dual_variables[0]])
