"""Any leading dimensions; tensors, arrays and numbers; by position, by name, or in a dict."""

import cvxpy as cp
import numpy as np
import pytest
import torch

import convexlayers as cl
from trust.families import FAMILIES, assert_same, layer_of, leaves, randn, solve_and_differentiate, weights_like

# Families with parameters of different ranks, with outputs that are vectors, matrices and several.
NAMES = ["dense_qp", "mpc", "socp", "logistic_regression", "nearest_correlation", "transport", "simplex", "geometric"]
SHAPES = [(), (1,), (4,), (2, 3), (1, 1), (3, 1), (2, 1, 2), (0,), (2, 0)]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", SHAPES)
def test_leading_dimensions(solver, name, shape):
    layer, count = layer_of(name, solver), torch.Size(shape).numel()
    flat = FAMILIES[name].sample(max(count, 1))
    values = [value[:count].reshape((*shape, *value.shape[1:])) for value in flat]
    solution, grads = solve_and_differentiate(layer, values)
    for value, info in zip(solution.values, layer.program.outputs, strict=True):
        assert value.shape == (*shape, *info.shape)
    for grad, value in zip(grads, values, strict=True):
        assert grad.shape == value.shape
    assert solution.status.shape == shape
    if count == 0:
        return
    weights = [w.reshape(count, *w.shape[len(shape) :]) for w in weights_like(solution.values)]
    expected, expected_grads = solve_and_differentiate(layer, flat, weights)
    for value, right in zip(solution.values, expected.values, strict=True):
        assert_same(value.reshape(right.shape), right)
    for grad, right in zip(grads, expected_grads, strict=True):
        assert_same(grad.reshape(right.shape), right)


@pytest.mark.parametrize("shape", [(), (4,)])
def test_a_scalar_parameter_and_a_scalar_variable(solver, shape):
    x, p = cp.Variable(), cp.Parameter()
    layer = cl.ConvexLayer(cp.Problem(cp.Minimize(cp.square(x - p)), [x >= 0]), [p], [x], solver=solver)
    p_value = randn(*shape, seed=1).abs().requires_grad_()
    (value,) = layer(p_value)
    assert value.shape == shape
    assert_same(value, p_value, 1e-6)
    value.sum().backward()
    assert_same(p_value.grad, torch.ones(shape, dtype=torch.float64), 1e-6)


def test_matrices_are_read_row_by_row(solver):
    """CVXPY flattens column by column, torch row by row: a matrix must come back as itself."""
    X, C = cp.Variable((2, 3)), cp.Parameter((2, 3))
    layer = cl.ConvexLayer(cp.Problem(cp.Minimize(cp.sum_squares(X - C))), [C], [X], solver=solver)
    C_value = torch.arange(24.0, dtype=torch.float64).reshape(4, 2, 3)
    assert_same(layer(C_value)[0], C_value, 1e-6)


def test_memory_layout_does_not_matter(solver):
    layer = layer_of("dense_qp", solver)
    q, G, b = FAMILIES["dense_qp"].sample(4)
    expected = layer(q, G, b)
    strided = [torch.empty(4, 8, dtype=torch.float64)[:, ::2], G.mT.contiguous().mT, b.T.contiguous().T]
    strided[0].copy_(q)
    assert not any(value.is_contiguous() for value in strided)
    assert_same(layer(*strided), expected)
    assert_same(layer(q.flip(0).flip(0), G[[0, 1, 2, 3]], b.clone()), expected)


def test_signs_that_torch_has_put_off(solver):
    """The imaginary part of a conjugate is the same memory, to be read with the other sign; a cotangent too."""
    layer, (q, G, b) = layer_of("dense_qp", solver), FAMILIES["dense_qp"].sample(4)
    lazy = torch.complex(q, -q).conj().imag
    assert lazy.is_neg()
    assert_same(layer(lazy, G, b), layer(q, G, b), 0.0)
    for negate in (torch.neg, torch._neg_view):
        inputs = leaves([q, G, b])
        (x,) = layer(*inputs)
        grads = torch.autograd.grad(x, inputs, negate(torch.ones_like(x)))
        assert grads[0].max() > 0.1
        assert_same(grads[0], -torch.autograd.grad(layer(*inputs)[0].sum(), inputs)[0], 0.0)


def test_masked_arrays_are_refused_where_something_is_masked(solver):
    layer, (q, G, b) = layer_of("dense_qp", solver), FAMILIES["dense_qp"].sample(4)
    whole = np.ma.masked_array(q.numpy(), mask=False)
    assert_same(layer(whole, G, b), layer(q, G, b), 0.0)
    whole[1, 2] = np.ma.masked
    with pytest.raises(cl.errors.ArgumentError, match="is an array with masked entries"):
        layer(whole, G, b)


def test_inputs_are_not_written(solver):
    for name in NAMES:
        values = FAMILIES[name].sample(3)
        copies = [value.clone() for value in values]
        solve_and_differentiate(layer_of(name, solver), values)
        layer_of(name, solver)(*values)
        assert all(torch.equal(value, copy) for value, copy in zip(values, copies, strict=True))


def test_arrays_are_accepted(solver):
    layer = layer_of("dense_qp", solver)
    values = FAMILIES["dense_qp"].sample(4)
    expected = layer(*values)
    assert_same(layer(*(value.numpy() for value in values)), expected, 0.0)
    assert_same(layer(values[0], values[1].numpy(), values[2]), expected, 0.0)
    assert_same(layer(*(value.tolist() for value in values)), [v.float() for v in expected], 0.0)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kind", ["reversed", "read-only", "broadcast", "big-endian", "fortran"])
def test_unusual_arrays_are_arrays_too(solver, kind):
    layer = layer_of("simplex", solver)
    z = randn(4, 5, seed=1)
    array = z.numpy()
    if kind == "reversed":
        array = np.ascontiguousarray(array[::-1])[::-1]
    elif kind == "read-only":
        array = array.copy()
        array.setflags(write=False)
    elif kind == "broadcast":
        z = z[0].expand(4, 5)
        array = np.broadcast_to(array[0], (4, 5))
    elif kind == "big-endian":
        array = array.astype(">f8")
    else:
        array = np.asfortranarray(array)
    assert_same(layer(array, 1.0), layer(z, 1.0), 0.0)


@pytest.mark.parametrize("kind", [float, np.float64, np.array, lambda value: torch.tensor(value, dtype=torch.float64)])
def test_numbers_keep_all_their_digits(solver, kind):
    """0.1 is 0.1 in float64, next to a float64 tensor, whatever torch's default dtype."""
    number = kind(0.1)
    layer, z = layer_of("simplex", solver), randn(4, 5, seed=1)
    right = layer(z, torch.full((4,), 0.1, dtype=torch.float64))
    assert_same(layer(z, number), right)
    assert layer(z, number)[0].dtype == torch.float64


@pytest.mark.parametrize("kind", ["tensor", "array", "list"])
def test_integers_keep_all_their_digits(solver, kind):
    """2^24 + 1 is not a float32."""
    x, p = cp.Variable(2), cp.Parameter(2)
    layer = cl.ConvexLayer(cp.Problem(cp.Minimize(cp.sum(x)), [x == p]), [p], [x], solver=solver)
    number = 2**24 + 1
    values = {"tensor": torch.tensor([number, 3]), "array": np.array([number, 3]), "list": [number, 3]}
    numbers = layer.solve(values[kind]).cone_solution.program.b
    assert numbers.abs().max() == number


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64, torch.uint8, torch.bool])
def test_integer_tensors_are_accepted(solver, dtype):
    layer = layer_of("simplex", solver)
    z = torch.tensor([[0, 1, 0, 1, 1], [1, 1, 1, 0, 0]], dtype=dtype)
    (x,) = layer(z, 1)
    assert x.dtype == torch.get_default_dtype()
    assert_same(x, layer(z.double(), 1)[0].float(), 0.0)
    assert layer(z, torch.ones(2, dtype=torch.float64))[0].dtype == torch.float64


def make_named(solver):
    x = cp.Variable(3)
    A, b, s = cp.Parameter((2, 3), name="A"), cp.Parameter(2, name="b"), cp.Parameter(name="s")
    objective = cp.sum_squares(A @ x - b) + cp.sum_squares(x) + s * cp.sum(x)
    layer = cl.ConvexLayer(cp.Problem(cp.Minimize(objective)), [A, b, s], [x], solver=solver)
    return layer, (A, b, s), (randn(4, 2, 3, seed=1), randn(4, 2, seed=2), randn(4, seed=3))


def test_by_position_by_name_and_by_dict(solver):
    layer, (A, b, s), (A_t, b_t, s_t) = make_named(solver)
    expected = layer(A_t, b_t, s_t)
    ways = [
        layer(A=A_t, b=b_t, s=s_t),
        layer(s=s_t, A=A_t, b=b_t),
        layer(A_t, b_t, s=s_t),
        layer(A_t, s=s_t, b=b_t),
        layer({A: A_t, b: b_t, s: s_t}),
        layer({s: s_t, A: A_t, b: b_t}),
        layer({"A": A_t, "b": b_t, "s": s_t}),
        layer({A: A_t, "b": b_t, s: s_t}),
        layer({A: A_t, b: b_t}, s=s_t),
        layer({"A": A_t}, b=b_t, s=s_t),
    ]
    for way in ways:
        assert_same(way, expected, 0.0)
    assert_same(layer.solve({A: A_t, b: b_t, s: s_t}).values, expected, 0.0)


def test_a_dict_by_name_survives_a_copy_of_the_problem(solver):
    """Parameters are known by their identity or their name; a stranger of the same name is not taken for one."""
    layer, _, (A_t, b_t, s_t) = make_named(solver)
    stranger = cp.Parameter((2, 3), name="A")
    with pytest.raises(cl.errors.MissingArgumentError, match="Unknown parameter A"):
        layer({stranger: A_t, "b": b_t, "s": s_t})


def test_gradients_by_every_way(solver):
    layer, (A, b, s), values = make_named(solver)
    _, expected = solve_and_differentiate(layer, values)
    for call in (
        lambda A_t, b_t, s_t: layer(A=A_t, b=b_t, s=s_t),
        lambda A_t, b_t, s_t: layer({A: A_t, b: b_t, s: s_t}),
    ):
        inputs = [value.clone().requires_grad_() for value in values]
        outputs = call(*inputs)
        grads = torch.autograd.grad(outputs, inputs, weights_like(outputs))
        for grad, right in zip(grads, expected, strict=True):
            assert_same(grad, right)


def test_only_some_parameters_require_gradients(solver):
    layer, values = layer_of("dense_qp", solver), FAMILIES["dense_qp"].sample(4)
    _, expected = solve_and_differentiate(layer, values)
    for i in range(3):
        inputs = [value.clone().requires_grad_(position == i) for position, value in enumerate(values)]
        outputs = layer(*inputs)
        (grad,) = torch.autograd.grad(outputs, inputs[i], weights_like(outputs))
        assert_same(grad, expected[i])
    assert not layer(*values)[0].requires_grad


def test_no_parameters_at_all(solver):
    x = cp.Variable(3)
    layer = cl.ConvexLayer(cp.Problem(cp.Minimize(cp.sum_squares(x - 1)), [x <= 0.5]), [], [x], solver=solver)
    for outputs in (layer(), layer({})):
        assert outputs[0].shape == (3,)
        assert not outputs[0].requires_grad
        assert_same(outputs[0], torch.full((3,), 0.5), 1e-5)


def test_a_parameter_that_does_not_matter(solver):
    """0 * p: accepted, its batch counts, and its gradient is zero."""
    x, t, p = cp.Variable(3), cp.Parameter(3), cp.Parameter(3)
    layer = cl.ConvexLayer(cp.Problem(cp.Minimize(cp.sum_squares(x - t) + 0 * cp.sum(p))), [t, p], [x], solver=solver)
    solution, (_, grad) = solve_and_differentiate(layer, [randn(3, seed=1), randn(2, 4, 3, seed=2)])
    assert solution.values[0].shape == (2, 4, 3)
    assert_same(grad, torch.zeros(2, 4, 3, dtype=torch.float64), 0.0)


def test_a_large_batch_is_the_sum_of_its_parts(solver):
    layer, values = layer_of("simplex", solver), FAMILIES["simplex"].sample(257)
    whole, grads = solve_and_differentiate(layer, values, [torch.ones(257, 5, dtype=torch.float64) * torch.arange(5)])
    for start in range(0, 257, 100):
        piece = [value[start : start + 100] for value in values]
        weight = torch.ones(len(piece[0]), 5, dtype=torch.float64) * torch.arange(5)
        part, part_grads = solve_and_differentiate(layer, piece, [weight])
        assert_same(whole.values[0][start : start + 100], part.values[0])
        for grad, right in zip(grads, part_grads, strict=True):
            assert_same(grad[start : start + 100], right)
