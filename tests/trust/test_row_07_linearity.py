"""The gradient is additive and linear in the upstream gradient, at every magnitude."""

import pytest
import torch

from trust.families import FAMILIES, assert_same, layer_of, leaves, randn, solve_and_differentiate, weights_like

B = 4
FACTORS = [1e-300, 1e-100, 1e-12, 1e-9, 1e-8, 1e-4, 1e4, 1e8, 1e12, 1e100, 1e300]
# With dependent equalities, what the multipliers have along the null space is rounding divided by a regularization.
TOLERANCES = {"transport": 1e-10, "wide_transport": 1e-10}


def largest(values):
    return max(float(value.abs().max()) for value in values)


@pytest.mark.parametrize("name", FAMILIES)
def test_factor_comes_out(solver, name):
    inputs = leaves(FAMILIES[name].sample(B))
    outputs = layer_of(name, solver)(*inputs)
    weights = weights_like(outputs)
    unit = torch.autograd.grad(outputs, inputs, weights, retain_graph=True)
    tolerance = TOLERANCES.get(name, 1e-11)
    # A gradient of zero would be linear too.
    assert largest(unit) > 1e-3
    for factor in FACTORS:
        scaled = torch.autograd.grad(outputs, inputs, [factor * weight for weight in weights], retain_graph=True)
        for grad, expected in zip(scaled, unit, strict=True):
            assert_same(grad / factor, expected, tolerance * max(1.0, largest(unit)))


@pytest.mark.parametrize("name", FAMILIES)
def test_zero_gives_exactly_zero(solver, name):
    inputs = leaves(FAMILIES[name].sample(B))
    outputs = layer_of(name, solver)(*inputs)
    grads = torch.autograd.grad(outputs, inputs, [torch.zeros_like(value) for value in outputs])
    assert all((grad == 0).all() for grad in grads)


@pytest.mark.parametrize("name", FAMILIES)
def test_sums_add_up(solver, name):
    inputs = leaves(FAMILIES[name].sample(B))
    outputs = layer_of(name, solver)(*inputs)
    first, second = weights_like(outputs, seed=11), weights_like(outputs, seed=29)
    parts = [torch.autograd.grad(outputs, inputs, weights, retain_graph=True) for weights in (first, second)]
    combined = [2 * a - 3 * b for a, b in zip(first, second, strict=True)]
    whole = torch.autograd.grad(outputs, inputs, combined)
    for grad, a, b in zip(whole, *parts, strict=True):
        assert_same(grad, 2 * a - 3 * b, 1e-10 * max(1.0, largest(parts[0]), largest(parts[1])))


def test_magnitudes_differ_within_one_batch(solver):
    """Each element has its own magnitude: none is rounded away by another's."""
    layer, values = layer_of("dense_qp", solver), FAMILIES["dense_qp"].sample(B)
    weight = randn(B, 4, seed=3)
    factors = torch.tensor([1e-12, 1.0, 1e12, 1e-200], dtype=torch.float64)[:, None]
    _, unit = solve_and_differentiate(layer, values, [weight])
    _, scaled = solve_and_differentiate(layer, values, [factors * weight])
    for grad, expected in zip(scaled, unit, strict=True):
        shape = (B,) + (1,) * (grad.ndim - 1)
        assert_same(grad / factors.reshape(shape), expected, 1e-11)


def test_objective_and_solution_add_up(solver):
    inputs = leaves(FAMILIES["dense_qp"].sample(B))
    solution = layer_of("dense_qp", solver).solve(*inputs)
    outputs = [solution.objective, *solution.values]
    weights = weights_like(outputs)
    whole = torch.autograd.grad(outputs, inputs, weights, retain_graph=True)
    parts = [torch.autograd.grad(o, inputs, w, retain_graph=True) for o, w in zip(outputs, weights, strict=True)]
    for grad, a, b in zip(whole, *parts, strict=True):
        assert_same(grad, a + b, 1e-11)
