"""Attributes of parameters are accepted and checked, their order does not matter, and what cannot work says so."""

import itertools
import re

import cvxpy as cp
import numpy as np
import pytest
import torch

import convexlayers as cl
from convexlayers.errors import ArgumentError, ConvexLayersError, UnsupportedProblemError
from trust.families import FAMILIES, assert_same, leaves, randn, weights_like

ONE = torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64)
EYE = torch.eye(3, dtype=torch.float64)
SKEW = torch.tensor([[0.0, 1.0, 0.0], [-1.0, 0.0, 0.0], [0.0, 0.0, 0.0]], dtype=torch.float64)
UPPER = np.nonzero(np.triu(np.ones((3, 3))))

# attributes, a value that has them, a value that has not, what the message says
CASES = {
    "nonneg": ({"nonneg": True}, ONE, ONE - 0.6, "must be nonneg"),
    "zero is nonneg": ({"nonneg": True}, 0 * ONE, -1e-3 * ONE, "must be nonneg"),
    "nonpos": ({"nonpos": True}, -ONE, 0.6 - ONE, "must be nonpos"),
    "pos": ({"pos": True}, ONE, ONE - 0.5, "must be pos"),
    "neg": ({"neg": True}, -ONE, 0.5 - ONE, "must be neg"),
    "bounds": ({"bounds": [0.0, 2.0]}, ONE, 2 * ONE, "must be within its bounds"),
    "lower bound": ({"bounds": [0.5, None]}, ONE, ONE - 0.1, "must be within its bounds"),
    "bounds without zero": ({"bounds": [np.array([1.0, 1.0, 0.1]), 5.0]}, ONE, 0 * ONE, "must be within its bounds"),
    "symmetric": ({"symmetric": True}, EYE + 1, EYE + SKEW, "must be symmetric"),
    "PSD": ({"PSD": True}, EYE + 1, EYE - 1, "must be PSD"),
    "PSD and not symmetric": ({"PSD": True}, EYE, EYE + SKEW, "must be PSD"),
    "NSD": ({"NSD": True}, -EYE - 1, 1 - EYE, "must be NSD"),
    "diag": ({"diag": True}, 3 * EYE, EYE + 0.1, "must be diag"),
    "sparsity": ({"sparsity": UPPER}, (EYE + 1).triu(), EYE + 1, "must be zero outside its sparsity pattern"),
}


def make_layer(solver, attributes, shape, **options):
    """min |x - p|^2, so that x = p."""
    x, p = cp.Variable(shape), cp.Parameter(shape, name="price", **attributes)
    return cl.ConvexLayer(cp.Problem(cp.Minimize(cp.sum_squares(x - p))), [p], [x], solver=solver, **options)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("batched", [False, True])
def test_attributes_are_accepted_and_checked(solver, case, batched):
    attributes, good, bad, words = CASES[case]
    layer = make_layer(solver, attributes, tuple(good.shape))
    value = good.expand(3, *good.shape) if batched else good
    assert_same(layer(value)[0], value, 1e-7)
    wrong = torch.stack([good, good, bad]) if batched else bad
    with pytest.raises(ValueError, match=re.escape(f"price {words}")) as caught:
        layer(wrong)
    assert ("batch index 2" in str(caught.value)) == batched
    assert "validate=False" in str(caught.value)
    assert isinstance(caught.value, ConvexLayersError)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_elements_that_are_not_finite_are_no_error_but_a_status(solver, case, number):
    attributes, good, bad, words = CASES[case]
    layer = make_layer(solver, attributes, tuple(good.shape), on_failure="nan")
    broken = good.clone()
    broken[(0,) * good.ndim] = number
    solution = layer.solve(torch.stack([broken, good, good]))
    assert solution.solved.tolist() == [False, True, True]
    assert solution.status[0] == int(cl.Status.INVALID_DATA)
    assert not layer.solve(broken).solved
    # It does not hide the error in another element, nor lend it its index.
    with pytest.raises(ArgumentError, match=re.escape(f"price {words}")) as caught:
        layer(torch.stack([broken, bad, good]))
    assert "batch index 1" in str(caught.value)


@pytest.mark.parametrize("case", CASES)
def test_gradient_of_a_parameter_with_attributes(solver, case):
    """x = p: the gradient is the cotangent itself, projected on the directions that the attributes leave."""
    attributes, good, _, _ = CASES[case]
    layer = make_layer(solver, attributes, tuple(good.shape))
    value = good.expand(3, *good.shape).clone().requires_grad_()
    (x,) = layer(value)
    weight = weights_like([x])[0]
    (grad,) = torch.autograd.grad(x, value, weight)
    expected = weight
    if attributes.keys() & {"symmetric", "PSD", "NSD"}:
        expected = (weight + weight.mT) / 2
    elif "diag" in attributes:
        expected = weight * EYE
    elif "sparsity" in attributes:
        expected = weight.triu()
    assert_same(grad, expected, 1e-7)


@pytest.mark.parametrize("case", CASES)
def test_checks_can_be_switched_off(solver, case):
    attributes, good, bad, _ = CASES[case]
    layer = make_layer(solver, attributes, tuple(good.shape), validate=False)
    assert layer(bad)[0].isfinite().all()


@pytest.mark.parametrize("name", ["dense_qp", "transport"])
def test_order_of_the_parameters_does_not_matter(solver, name):
    family = FAMILIES[name]
    problem, parameters, variables = family.make()
    values = family.sample(4)
    results = []
    for order in itertools.permutations(range(len(parameters))):
        layer = cl.ConvexLayer(problem, [parameters[i] for i in order], variables, solver=solver)
        inputs = leaves([values[i] for i in order])
        outputs = layer(*inputs)
        grads = torch.autograd.grad(outputs, inputs, weights_like(outputs))
        results.append((outputs, [grads[order.index(i)] for i in range(len(order))]))
    outputs, grads = results[0]
    for other, other_grads in results[1:]:
        assert_same(other, outputs)
        for grad, expected in zip(other_grads, grads, strict=True):
            assert_same(grad, expected, 1e-7)


def test_order_of_parameters_with_equal_shapes(solver):
    """Nothing but the position tells them apart."""
    x, a, b, c = cp.Variable(2), cp.Parameter(2), cp.Parameter(2), cp.Parameter(2)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(x - a - 10 * b - 100 * c)))
    values = dict(zip([a, b, c], randn(3, 2, seed=1), strict=True))
    for order in itertools.permutations(values):
        (value,) = cl.ConvexLayer(problem, list(order), [x], solver=solver)(*(values[p] for p in order))
        assert_same(value, values[a] + 10 * values[b] + 100 * values[c], 1e-6)


def test_geometric_program_with_a_parameter_in_the_exponent(solver):
    """min x st x^p >= c has the solution c^(1/p), with derivatives in both."""
    x, c, p = cp.Variable(pos=True), cp.Parameter(pos=True, name="c"), cp.Parameter(name="p")
    layer = cl.ConvexLayer(cp.Problem(cp.Minimize(x), [x**p >= c]), [c, p], [x], solver=solver, gp=True)
    c_value = torch.tensor([2.0, 3.0, 0.5, 7.0], dtype=torch.float64, requires_grad=True)
    p_value = torch.tensor([1.0, 2.0, 0.7, 3.0], dtype=torch.float64, requires_grad=True)
    (value,) = layer(c_value, p_value)
    expected = c_value ** (1 / p_value)
    assert_same(value, expected, 1e-6)
    weights = weights_like([value])
    grads, rights = (torch.autograd.grad(v, [c_value, p_value], weights) for v in (value, expected))
    for grad, right in zip(grads, rights, strict=True):
        assert_same(grad, right, 1e-5)


def test_geometric_program_with_a_coefficient_used_as_exponent_too(solver):
    """min a x + 1 / x^a: the parameter and its logarithm are both data; x = 1 for every a."""
    x, a = cp.Variable(pos=True), cp.Parameter(pos=True, name="a")
    layer = cl.ConvexLayer(cp.Problem(cp.Minimize(a * x + 1 / x**a)), [a], [x], solver=solver, gp=True)
    a_value = torch.tensor([0.5, 1.0, 2.0, 3.0], dtype=torch.float64, requires_grad=True)
    solution = layer.solve(a_value)
    assert_same(solution.values[0], torch.ones(4, dtype=torch.float64), 1e-6)
    assert_same(solution.objective, a_value + 1, 1e-6)
    (grad_objective,) = torch.autograd.grad(solution.objective.sum(), a_value, retain_graph=True)
    assert_same(grad_objective, torch.ones(4, dtype=torch.float64), 1e-5)
    (grad,) = torch.autograd.grad(solution.values[0].sum(), a_value)
    assert_same(grad, torch.zeros(4, dtype=torch.float64), 1e-5)


@pytest.mark.parametrize("leaf", ["variable", "parameter"])
@pytest.mark.parametrize("attribute", ["complex", "hermitian", "imag", "boolean", "integer"])
def test_complex_and_integer_are_a_clear_error(solver, leaf, attribute):
    attributes = {"variable": {}, "parameter": {}} | {leaf: {attribute: True}}
    x = cp.Variable((2, 2), name="variable", **attributes["variable"])
    p = cp.Parameter((2, 2), name="parameter", **attributes["parameter"])
    problem = cp.Problem(cp.Minimize(cp.sum_squares(cp.abs(x - p))))
    with pytest.raises(UnsupportedProblemError, match=rf"^{leaf} is (complex|boolean or integer)"):
        cl.ConvexLayer(problem, [p], [x], solver=solver)


def test_complex_values_are_a_clear_error(solver):
    layer = make_layer(solver, {}, (3,))
    for value in (torch.zeros(3, dtype=torch.complex128), np.zeros(3, dtype=complex), 1j):
        with pytest.raises(ArgumentError, match=r"^price is complex, expected real numbers\."):
            layer(value)


def test_values_without_numbers_are_a_clear_error(solver):
    layer = make_layer(solver, {}, (3,))
    with pytest.raises(ArgumentError, match=r"^price is on the meta device, which keeps no numbers"):
        layer(torch.zeros(3, device="meta"))


def test_an_infinite_bound_is_a_bound(solver):
    layer = make_layer(solver, {"bounds": [-np.inf, 1.0]}, (3,))
    assert_same(layer(-100 * ONE)[0], -100 * ONE, 1e-5)
    with pytest.raises(ArgumentError, match="price must be within its bounds"):
        layer(ONE)
