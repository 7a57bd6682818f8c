"""Every layer of the zoo beside its closed form, its CVXPY twin, finite differences and itself."""

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck
from zoo_table import ENTRIES

from convexlayers.errors import SolverError

# A closed form is computed in other operations of the same precision.
CLOSED = 1e-10
ROUNDING = 1e-12
# An iteration in float32 stops at a few units of its rounding, times condition numbers of up to about ten.
SINGLE = 2e-4


def named(condition=lambda entry: True):
    chosen = [entry for entry in ENTRIES if condition(entry)]
    return pytest.mark.parametrize("entry", chosen, ids=[entry.name for entry in chosen])


def values_and_gradients(layer, values):
    """The output, and the gradients of its product with fixed random numbers."""
    inputs = [value.detach().clone().requires_grad_() for value in values]
    output = layer(*inputs)
    weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    grads = torch.autograd.grad((output * weights.to(output)).sum(), inputs, allow_unused=True)
    return [output.detach(), *(torch.zeros_like(v) if g is None else g for g, v in zip(grads, inputs, strict=True))]


def assert_close(found, expected, tolerance):
    for f, e in zip(found, expected, strict=True):
        assert f.shape == e.shape
        assert (f - e).abs().max() <= tolerance * max(1.0, float(e.abs().max()))


@named(lambda entry: entry.closed is not None)
def test_closed_form(entry):
    values = entry.draw(20)
    assert_close(values_and_gradients(entry.layer, values), values_and_gradients(entry.closed, values), CLOSED)


@named(lambda entry: entry.twin is not None)
def test_cvxpy_twin(entry):
    values = entry.draw(8)
    assert_close(values_and_gradients(entry.layer, values), values_and_gradients(entry.twin(), values), entry.tolerance)


@named()
def test_derivatives(entry):
    values = [value.requires_grad_() for value in entry.draw(3, seed=2)]
    assert gradcheck(entry.layer, values, check_forward_ad=True, check_batched_grad=entry.legacy)
    assert gradgradcheck(entry.layer, values, check_fwd_over_rev=True)


@named()
def test_vmap(entry):
    values = entry.draw(4)
    assert_close([torch.vmap(entry.layer)(*values)], [entry.layer(*values)], ROUNDING)
    shared = [values[0], *(value[0] for value in values[1:])]
    mapped = torch.vmap(entry.layer, in_dims=(0, *(None for _ in values[1:])))(*shared)
    assert_close([mapped], [entry.layer(*shared)], ROUNDING)


@named()
def test_hessian_by_transforms(entry):
    """Forward over reverse and reverse over reverse mode agree."""
    first, *rest = (value[0] for value in entry.draw(1, seed=2))

    def loss(value):
        return entry.layer(value, *rest).square().sum()

    forward, reverse = torch.func.hessian(loss)(first), torch.func.jacrev(torch.func.jacrev(loss))(first)
    assert_close([forward], [reverse], 1e-8)


@named()
def test_batches(entry):
    """Any leading dimensions; an element is what it is alone, and its gradient does not reach its neighbours."""
    values = entry.draw(2, 3)
    together = entry.layer(*values)
    assert together.shape[:2] == (2, 3)
    alone = torch.stack([entry.layer(*(value[i, j] for value in values)) for i in range(2) for j in range(3)])
    assert_close([together.reshape(alone.shape)], [alone], ROUNDING)
    inputs = [value.requires_grad_() for value in values]
    grads = torch.autograd.grad(entry.layer(*inputs)[1, 2].square().sum(), inputs, allow_unused=True)
    for grad in grads:
        assert grad is None or grad.reshape(6, -1)[:5].abs().max() == 0


@named()
def test_a_bad_element_is_alone(entry):
    values = entry.draw(3)
    expected = entry.layer(*values)
    values[0][1] = float("nan")
    if entry.raises:
        with pytest.raises(SolverError, match="index 1"):
            entry.layer(*values)
        return
    found = entry.layer(*values)
    assert_close([found[[0, 2]]], [expected[[0, 2]]], ROUNDING)
    assert found[1].isnan().any()


@named()
def test_empty_batch(entry):
    values = [value.requires_grad_() for value in entry.draw(0)]
    output = entry.layer(*values)
    assert output.shape[0] == 0
    output.sum().backward()


@named()
def test_single_precision(entry):
    values = entry.draw(8, dtype=torch.float32)
    found = values_and_gradients(entry.layer, values)
    assert {tensor.dtype for tensor in found} == {torch.float32}
    expected = values_and_gradients(entry.layer, [value.double() for value in values])
    assert_close([tensor.double() for tensor in found], expected, SINGLE)


@named()
def test_shared_arguments_get_the_sum(entry):
    """An argument without the batch's dimensions."""
    first, *rest = entry.draw(3)
    shared = [value[0] for value in rest]
    expanded = [value.expand(3, *value.shape) for value in shared]
    found = values_and_gradients(entry.layer, [first, *shared])
    expected = values_and_gradients(entry.layer, [first, *expanded])
    summed = [e.sum(0) for e in expected[2:]]
    assert_close(found, [*expected[:2], *summed], 1e-10)
