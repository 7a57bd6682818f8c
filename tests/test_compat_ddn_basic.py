"""Nodes in the form of ddn.basic.node: numpy in and out, as its users write them."""

import numpy as np
import pytest

from convexlayers.compat.ddn.basic.composition import ComposedNode, ParallelNode, SelectNode
from convexlayers.compat.ddn.basic.node import (
    AbstractDeclarativeNode,
    AbstractNode,
    EqConstDeclarativeNode,
    IneqConstDeclarativeNode,
    LinEqConstDeclarativeNode,
    NonUniqueDeclarativeNode,
    grad,
    jacobian,
)
from convexlayers.errors import ArgumentError, DerivativeWarning


class Polynomial(AbstractDeclarativeNode):
    """Of three stationary points the lowest."""

    def __init__(self):
        super().__init__(1, 1)

    def objective(self, x, y):
        return (x[0] * y[0] ** 2.0 + 2 * x[0] ** 2.0 * y[0] - 12) * y[0] ** 2.0

    def solve(self, x):
        root = np.sqrt(9.0 * x[0] ** 4.0 + 96.0 * x[0])
        candidates = [0.0, (-3.0 * x[0] ** 2.0 - root) / (4.0 * x[0]), (-3.0 * x[0] ** 2.0 + root) / (4.0 * x[0])]
        return np.array([candidates[np.argmin([self.objective(x, [y]) for y in candidates])]]), None


class PseudoHuber(AbstractDeclarativeNode):
    """Robust mean, by Newton's method."""

    def __init__(self):
        super().__init__(5, 1)

    def objective(self, x, y):
        return np.sum(np.sqrt(1 + (y[0] - x) ** 2) - 1)

    def solve(self, x):
        y = np.median(x)
        for _ in range(50):
            root = np.sqrt(1 + (y - x) ** 2)
            y = y - np.sum((y - x) / root) / np.sum(root**-3)
        return np.array([y]), None


class UnitCircle(EqConstDeclarativeNode):
    """The multiplier in the context."""

    def __init__(self, as_dictionary=True):
        super().__init__(1, 2)
        self.as_dictionary = as_dictionary

    def objective(self, x, y):
        return y[0] + y[1] * x[0]

    def constraint(self, x, y):
        return np.dot(y, y) - 1.0

    def solve(self, x):
        nu = -0.5 * np.sqrt(1 + x[0] ** 2.0)
        y = -1.0 / np.sqrt(1.0 + x[0] ** 2.0) * np.array([1.0, x[0]])
        return y, {"nu": nu} if self.as_dictionary else nu


class ParametrizedCircle(EqConstDeclarativeNode):
    def __init__(self):
        super().__init__(2, 2)

    def objective(self, x, y):
        return y[0] + x[0] * y[1]

    def constraint(self, x, y):
        return np.dot(y, y) - x[1] ** 2.0

    def solve(self, x):
        return -np.fabs(x[1]) / np.sqrt(1.0 + x[0] ** 2.0) * np.array([1.0, x[0]]), None


class Sphere(EqConstDeclarativeNode):
    def __init__(self, n=2):
        super().__init__(n, n)

    def objective(self, x, y):
        return 0.5 * np.dot(y, y) - np.dot(y, x)

    def constraint(self, x, y):
        return np.dot(y, y) - 1.0

    def solve(self, x):
        return 1.0 / np.sqrt(np.dot(x, x)) * x, None


class Ball(IneqConstDeclarativeNode):
    def __init__(self, n=3):
        super().__init__(n, n)

    objective, constraint = Sphere.objective, Sphere.constraint

    def solve(self, x):
        return x / max(1.0, np.sqrt(np.dot(x, x))), None


class MinKL(LinEqConstDeclarativeNode):
    def __init__(self, n=4):
        super().__init__(n, n, np.ones((1, n)), np.ones(1))

    def objective(self, x, y):
        return -np.sum(x * np.log(y))

    def solve(self, x):
        return x / np.sum(x), None


class CosineDistance(NonUniqueDeclarativeNode):
    def __init__(self):
        super().__init__(2, 2)

    def objective(self, x, y):
        return -1.0 * np.dot(x, y) / np.sqrt(np.dot(y, y))

    def solve(self, x):
        return x.copy(), None


CASES = {
    "polynomial": (Polynomial, lambda rng: 0.25 + rng.random(1)),
    "pseudo-huber": (PseudoHuber, lambda rng: rng.standard_normal(5)),
    "circle": (UnitCircle, lambda rng: rng.standard_normal(1)),
    "circle, a number": (lambda: UnitCircle(False), lambda rng: rng.standard_normal(1)),
    "parametrized circle": (ParametrizedCircle, lambda rng: rng.standard_normal(2) + 0.5),
    "sphere": (Sphere, lambda rng: rng.standard_normal(2)),
    "inside the ball": (Ball, lambda rng: 0.2 * rng.random(3)),
    "outside the ball": (Ball, lambda rng: 1 + rng.random(3)),
    "min-kl": (MinKL, lambda rng: 0.1 + rng.random(4)),
}


@pytest.mark.parametrize("name", CASES)
def test_gradients_are_differences_of_solutions(name):
    make, inputs = CASES[name]
    node = make()
    for seed in range(10):
        x = inputs(np.random.default_rng(seed))
        steps = 1e-6 * np.eye(len(x))
        slopes = np.stack([(node.solve(x + step)[0] - node.solve(x - step)[0]) / 2e-6 for step in steps], 1)
        for found in (node.gradient(x), node.gradient(x, *node.solve(x))):
            assert isinstance(found, np.ndarray)
            np.testing.assert_allclose(found.reshape(slopes.shape), slopes, rtol=1e-6, atol=1e-7)


def test_names_that_come_with_the_star():
    """Nodes written for that package use these from its module."""
    names: dict = {}
    exec("from convexlayers.compat.ddn.basic.node import *", names)
    assert names["np"] is np
    assert {"AbstractNode", "grad", "jacobian", "NonUniqueDeclarativeNode"} <= set(names)
    exec("from convexlayers.compat.ddn.pytorch.node import *", names)
    assert {"torch", "grad", "warnings", "DeclarativeLayer", "LinEqConstDeclarativeNode"} <= set(names)


def test_shapes_are_those_of_that_package():
    assert Polynomial().gradient(np.array([0.5])).shape == (1, 1)
    assert UnitCircle().gradient(np.array([0.5])).shape == (2,)
    assert ParametrizedCircle().gradient(np.array([0.5, 1.0])).shape == (2, 2)
    assert MinKL().gradient(np.full(4, 0.3)).shape == (4, 4)


def test_the_derivative_of_minimum_norm():
    x = np.array([3.0, 4.0])
    with pytest.warns(DerivativeWarning, match="not unique"):
        found = CosineDistance().gradient(x)
    np.testing.assert_allclose(found, np.eye(2) - np.outer(x, x) / 25, atol=1e-12)


def test_derivatives_of_the_functions():
    """fY and the like, against closed forms; and the multiplier's rule fY = nu hY."""
    node, x = ParametrizedCircle(), np.array([0.5, 2.0])
    y, _ = node.solve(x)
    np.testing.assert_allclose(node.fY(x, y), [1.0, 0.5])
    np.testing.assert_allclose(node.fYY(x, y), np.zeros((2, 2)))
    np.testing.assert_allclose(node.fXY(x, y), [[0.0, 0.0], [1.0, 0.0]])
    np.testing.assert_allclose(node.hY(x, y), 2 * y)
    np.testing.assert_allclose(node.hX(x, y), [0.0, -4.0])
    np.testing.assert_allclose(node.hYY(x, y), 2 * np.eye(2))
    np.testing.assert_allclose(node.hXY(x, y), np.zeros((2, 2)))
    np.testing.assert_allclose(node.fY(x, y) / node.hY(x, y), np.full(2, 0.5 / y[0]))


def test_a_solution_that_is_none_is_announced():
    with pytest.warns(DerivativeWarning, match="not a solution"):
        Sphere().gradient(np.array([1.0, 2.0]), np.array([1.0, 0.1]))


def test_an_inexact_solver_keeps_the_constraint_active():
    x = np.array([1.0, 2.0, 2.0])
    y = (1 - 1e-8) * Ball().solve(x)[0]
    np.testing.assert_allclose(Ball().gradient(x, y), Ball().gradient(x), atol=1e-7)


def test_composition():
    """Side by side, a part of it, and another node behind; and all of it by differences."""
    chain = ComposedNode(ComposedNode(ParallelNode(Ball(3), Sphere(3)), SelectNode(6, 1, 4)), Sphere(4))
    x = np.array([0.5, 1.5, -1.0])
    y, ctx = chain.solve(x)
    assert y.shape == (4,)
    slopes = np.stack([(chain.solve(x + e)[0] - chain.solve(x - e)[0]) / 2e-6 for e in 1e-6 * np.eye(3)], 1)
    np.testing.assert_allclose(chain.gradient(x), slopes, atol=1e-8)
    np.testing.assert_allclose(chain.gradient(x, y, ctx), slopes, atol=1e-8)
    with pytest.raises(ArgumentError, match="nodeB"):
        ComposedNode(Sphere(2), Sphere(3))
    with pytest.raises(ArgumentError, match="nodeB"):
        ParallelNode(Sphere(2), Sphere(3))
    with pytest.raises(ArgumentError, match="startIndx"):
        SelectNode(3, 2, 1)


def test_functions_of_numpy():
    """The same function, differentiated, and by differences; lists of numbers and tests of signs included."""
    A = np.arange(6.0).reshape(2, 3) / 3

    def function(x):
        z = np.concatenate([np.dot(A, x), np.exp(-x), np.array([x[0] * x[1], np.sin(x[2]), 1.5])])
        w = np.where(z > 0.5, np.tanh(z), z**2) + np.maximum(z, 0.1) / (1 + np.abs(z))
        parts = np.outer(w[:2], w[2:4]).T @ np.stack([x[:2], x[1:]])
        scale = 2.0 if x[0] > 0 else 3.0
        return (
            scale * parts.sum() + np.linalg.norm(w) + np.mean(w.reshape(2, 4), axis=0).max() + np.log1p(len(w) * x[0])
        )

    x = np.array([0.7, -0.4, 1.1])
    slopes = [(function(x + e) - function(x - e)) / 2e-6 for e in 1e-6 * np.eye(3)]
    np.testing.assert_allclose(grad(function)(x), slopes, rtol=1e-8)
    second = jacobian(grad(function))(x)
    bends = [(grad(function)(x + e) - grad(function)(x - e)) / 2e-6 for e in 1e-6 * np.eye(3)]
    np.testing.assert_allclose(second, bends, rtol=1e-6, atol=1e-7)


def test_what_is_missing_is_named():
    with pytest.raises(ArgumentError, match=r"np\.fft"):
        grad(lambda x: np.fft.fft(x).sum())(np.ones(3))
    with pytest.raises(NotImplementedError, match="solve"):
        AbstractDeclarativeNode().gradient(np.ones(1))
    with pytest.raises(NotImplementedError, match="constraint"):
        EqConstDeclarativeNode(1, 1).constraint(np.ones(1), np.ones(1))
    with pytest.raises(NotImplementedError, match="gradient"):
        AbstractNode().gradient(np.ones(1))
    with pytest.raises(ArgumentError, match="positive"):
        AbstractNode(0, 1)
    with pytest.raises(ArgumentError, match="A has shape"):
        LinEqConstDeclarativeNode(2, 3, np.ones((1, 2)), np.ones(1))
