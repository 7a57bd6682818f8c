"""A parameter shared by the batch gets the sum of its elements' gradients, however it is shared."""

import pytest
import torch

from trust.families import FAMILIES, assert_same, layer_of, leaves, randn, solve_and_differentiate, weights_like

B = 4
SHARED = [(name, i) for name, family in FAMILIES.items() for i in range(len(family.sample(1)))]


@pytest.mark.parametrize(("name", "position"), SHARED)
@pytest.mark.parametrize("keepdim", [False, True], ids=["without a batch dimension", "batch dimension of size one"])
def test_one_shared_parameter(solver, name, position, keepdim):
    layer, values = layer_of(name, solver), FAMILIES[name].sample(B)
    values[position] = values[position][:1] if keepdim else values[position][0]
    repeated = [v.expand(B, *info.shape) for v, info in zip(values, layer.program.parameters, strict=True)]
    expected, per_element = solve_and_differentiate(layer, repeated)
    solution, grads = solve_and_differentiate(layer, values)
    if len(values) == 1:
        # Nothing is left that says how large the batch is: a single problem, or a batch of one.
        assert solution.values[0].shape[: solution.status.ndim] == ((1,) if keepdim else ())
        return
    for value, right in zip(solution.values, expected.values, strict=True):
        assert_same(value, right)
    for i, (grad, right) in enumerate(zip(grads, per_element, strict=True)):
        if i == position:
            assert grad.shape == values[i].shape
            assert_same(grad, right.sum(0, keepdim=keepdim), 1e-11)
        else:
            assert_same(grad, right)


def test_closed_form_is_a_sum_and_no_average(solver):
    """Projection onto sum(x) = total without active signs: dx/dz = I - 11'/n for every element."""
    totals = torch.tensor([5.0, 6.0, 7.0, 8.0], dtype=torch.float64)
    z = (0.1 * randn(5, seed=1)).requires_grad_()
    (x,) = layer_of("simplex", solver)(z, totals)
    assert (x > 0.1).all()
    weight = randn(B, 5, seed=2)
    (grad,) = torch.autograd.grad(x, z, weight)
    assert_same(grad, (weight - weight.mean(-1, keepdim=True)).sum(0), 1e-9)


def test_two_batch_dimensions_against_each_other(solver):
    """(B1, 1) and (1, B2): every pair is solved, and each gradient is summed along the other's dimension."""
    B1, B2 = 3, 4
    z, totals = randn(B1, 1, 5, seed=1), randn(1, B2, seed=2).abs() + 0.5
    layer = layer_of("simplex", solver)
    solution, (grad_z, grad_total) = solve_and_differentiate(layer, [z, totals])
    wide = [z.expand(B1, B2, 5).reshape(-1, 5), totals.expand(B1, B2).reshape(-1)]
    weights = [w.reshape(-1, 5) for w in weights_like(solution.values)]
    flat, (flat_z, flat_total) = solve_and_differentiate(layer, wide, weights)
    assert solution.values[0].shape == (B1, B2, 5)
    assert solution.status.shape == (B1, B2)
    assert_same(solution.values[0].reshape(-1, 5), flat.values[0])
    assert_same(grad_z, flat_z.reshape(B1, B2, 5).sum(1, keepdim=True))
    assert_same(grad_total, flat_total.reshape(B1, B2).sum(0, keepdim=True))


@pytest.mark.parametrize(
    ("shapes", "batch"),
    [
        (((), (3,), (2, 3)), (2, 3)),
        (((1, 3), (2, 1), ()), (2, 3)),
        (((2, 1, 1), (3,), (1, 4, 1)), (2, 4, 3)),
        (((1,), (1, 1), ()), (1, 1)),
        (((0,), (), (1,)), (0,)),
        (((0, 1), (3,), (1, 1)), (0, 3)),
    ],
)
def test_three_parameters_of_different_batches(solver, shapes, batch):
    layer, one = layer_of("dense_qp", solver), FAMILIES["dense_qp"].sample(24)
    values = []
    for value, shape in zip(one, shapes, strict=True):
        count = torch.Size(shape).numel()
        values.append(value[:count].reshape(*shape, *value.shape[1:]))
    inputs = leaves(values)
    solution = layer.solve(*inputs)
    assert solution.values[0].shape == (*batch, 4)
    wide = [v.expand(*batch, *info.shape) for v, info in zip(inputs, layer.program.parameters, strict=True)]
    expected = layer.solve(*wide)
    assert_same(solution.values[0], expected.values[0])
    weights = weights_like(solution.values)
    grads = torch.autograd.grad(solution.values, inputs, weights)
    # Through torch's own expand, whose backward is a sum.
    for grad, right in zip(grads, torch.autograd.grad(expected.values, inputs, weights), strict=True):
        assert_same(grad, right, 1e-11)


def test_gradient_of_a_shared_objective(solver):
    inputs = [randn(5, seed=1).requires_grad_(), (randn(B, seed=2).abs() + 0.5).requires_grad_()]
    objective = layer_of("simplex", solver).solve(*inputs).objective
    (x,) = layer_of("simplex", solver)(*inputs)
    (grad,) = torch.autograd.grad(objective.sum(), inputs[0])
    assert_same(grad, 2 * (inputs[0] - x).sum(0).detach(), 1e-6)


def test_a_tensor_used_twice(solver):
    """The same tensor as two parameters gets both gradients."""
    layer = layer_of("transport", solver)
    C, a, _ = FAMILIES["transport"].sample(B)
    shares = a.clone().requires_grad_()
    (T,) = layer(C, shares, shares)
    weights = weights_like([T])
    (grad,) = torch.autograd.grad(T, shares, weights)
    _, (_, first, second) = solve_and_differentiate(layer, [C, a, a], weights)
    assert_same(grad, first + second)
