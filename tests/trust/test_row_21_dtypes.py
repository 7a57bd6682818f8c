"""What comes in as float32 goes out as float32, gradients too; inside, everything is float64."""

import cvxpy as cp
import numpy as np
import pytest
import torch

import convexlayers as cl
from trust.families import FAMILIES, assert_same, layer_of, leaves, randn, weights_like

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
B = 4


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_dtype_in_is_dtype_out(solver, name, dtype):
    """And the result is that of the rounded inputs in float64, rounded once."""
    layer = layer_of(name, solver)
    values = [value.to(dtype) for value in FAMILIES[name].sample(B)]
    inputs, exact = leaves(values), leaves([value.double() for value in values])
    solution, right = layer.solve(*inputs), layer.solve(*exact)
    assert solution.solved.all()
    assert solution.objective.dtype == dtype
    assert solution.primal_residual.dtype == torch.float64
    assert solution.status.dtype == torch.int64
    weights = [w.to(dtype) for w in weights_like(solution.values)]
    for value, expected in zip(solution.values, right.values, strict=True):
        assert value.dtype == dtype
        assert torch.equal(value, expected.to(dtype))
    grads = torch.autograd.grad(solution.values, inputs, weights)
    expected_grads = torch.autograd.grad(right.values, exact, [w.double() for w in weights])
    for grad, expected in zip(grads, expected_grads, strict=True):
        assert grad.dtype == dtype
        assert torch.equal(grad, expected.to(dtype))


@pytest.mark.parametrize(
    ("dtypes", "expected"),
    [
        ((torch.float32, torch.float64), torch.float64),
        ((torch.float16, torch.float32), torch.float32),
        ((torch.bfloat16, torch.float32), torch.float32),
        ((torch.float16, torch.bfloat16), torch.float32),
        ((torch.int64, torch.float16), torch.float16),
        ((torch.bool, torch.float64), torch.float64),
        ((torch.int32, torch.int64), torch.float32),
    ],
)
def test_mixed_dtypes_promote_as_in_torch(solver, dtypes, expected):
    z = torch.tensor([[1, 0, 1, 0, 1], [0, 0, 0, 1, 1]]).to(dtypes[0])
    total = torch.tensor([1, 1]).to(dtypes[1])
    for values in ((z, total), (z, total.to(dtypes[1]).numpy()) if dtypes[1] != torch.bfloat16 else (z, total)):
        assert layer_of("simplex", solver)(*values)[0].dtype == expected
    inputs = [value.clone().requires_grad_(value.is_floating_point()) for value in (z, total)]
    (x,) = layer_of("simplex", solver)(*inputs)
    assert x.dtype == expected
    if x.requires_grad:
        x.square().sum().backward()
    for value, dtype in zip(inputs, dtypes, strict=True):
        assert value.grad is None or value.grad.dtype == dtype


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
def test_numbers_take_the_dtype_of_the_tensors(solver, dtype):
    z = torch.zeros(2, 5, dtype=dtype)
    for total in (1, 1.0, np.float64(1.0), np.float32(1.0), True):
        (x,) = layer_of("simplex", solver)(z, total)
        assert x.dtype == dtype


@pytest.mark.parametrize(("kind", "dtype"), [("f8", torch.float64), ("f4", torch.float32), ("f2", torch.float16)])
def test_arrays_have_the_dtype_that_they_have(solver, kind, dtype):
    layer = layer_of("simplex", solver)
    assert layer(np.zeros((2, 5), dtype=kind), 1.0)[0].dtype == dtype
    assert layer(np.zeros((2, 5), dtype=kind), np.ones((), dtype=kind))[0].dtype == dtype
    assert layer(np.zeros((2, 5), dtype=kind), torch.ones(2, dtype=torch.float64))[0].dtype == torch.float64


def test_numbers_alone_take_torchs_default(solver):
    x, p = cp.Variable(), cp.Parameter()
    layer = cl.ConvexLayer(cp.Problem(cp.Minimize(cp.square(x - p))), [p], [x], solver=solver)
    for value in (1, 0.5, [0.5, 1.5], np.array([1, 2])):
        assert layer(value)[0].dtype == torch.float32
    torch.set_default_dtype(torch.float64)
    try:
        assert layer(0.5)[0].dtype == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
def test_standalone_functions_too(solver, dtype):
    """Numbers, lists and integers among the arguments do not count."""
    P, q = torch.eye(2, dtype=dtype), torch.tensor([-1.0, 2.0], dtype=dtype, requires_grad=True)
    for options in ({"lb": 0.0}, {"ub": 1, "lb": [0.0, 0.1]}, {"G": [[1.0, 1.0]], "h": torch.tensor([1])}):
        solution = cl.solve_qp(P, q, solver=solver, **options)
        (grad,) = torch.autograd.grad(solution.x.sum(), q)
        assert solution.x.dtype == solution.z.dtype == solution.objective.dtype == grad.dtype == dtype


def test_float32_does_not_lose_what_float64_would_find(solver):
    """An ill-conditioned system, 1e6: float32 throughout would leave no digit; here the result is good to float32."""
    n = 4
    x, p = cp.Variable(n), cp.Parameter(n)
    Q = np.linalg.qr(np.random.default_rng(0).standard_normal((n, n)))[0]
    P = Q @ np.diag(np.logspace(-6, 0, n)) @ Q.T
    P = (P + P.T) / 2
    layer = cl.ConvexLayer(cp.Problem(cp.Minimize(0.5 * cp.quad_form(x, P) - p @ x)), [p], [x], solver=solver)
    p_value = randn(B, n, seed=1).float().requires_grad_()
    (value,) = layer(p_value)
    exact = torch.linalg.solve(torch.as_tensor(P), p_value.detach().double().T).T
    torch.testing.assert_close(value.detach(), exact.float(), rtol=1e-5, atol=1e-5 * float(exact.abs().max()))
    weight = torch.ones_like(value)
    (grad,) = torch.autograd.grad(value, p_value, weight)
    right = torch.linalg.solve(torch.as_tensor(P), weight.double().T).T
    torch.testing.assert_close(grad, right.float(), rtol=1e-5, atol=1e-5 * float(right.abs().max()))


def test_failed_elements_are_nan_in_every_dtype(solver):
    for dtype in DTYPES:
        z, total = torch.zeros(2, 5, dtype=dtype, requires_grad=True), torch.tensor([1.0, -1.0], dtype=dtype)
        (x,) = layer_of("simplex", solver)(z, total)
        assert x.isnan().all(-1).tolist() == [False, True]
        x.sum().backward()
        assert (z.grad[1] == 0).all()
        assert z.grad.dtype == dtype


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", ["dense_qp", "socp", "nearest_correlation"])
def test_device_in_is_device_out(solver, name):
    layer = layer_of(name, solver)
    values = FAMILIES[name].sample(B)
    inputs, cuda = leaves(values), leaves([value.cuda() for value in values])
    outputs, there = layer(*inputs), layer(*cuda)
    weights = weights_like(outputs)
    grads = torch.autograd.grad(outputs, inputs, weights)
    cuda_grads = torch.autograd.grad(there, cuda, [w.cuda() for w in weights])
    for value, expected in zip((*there, *cuda_grads), (*outputs, *grads), strict=True):
        assert value.device == cuda[0].device
        assert_same(value.cpu(), expected, 1e-9)
