"""Parameters with a sparsity pattern: dense values, sparse matrices, and entries alone, with any batch dimensions."""

import io
import tracemalloc

import cvxpy as cp
import numpy as np
import pytest
import scipy.sparse as sp
import torch

import convexlayers as cl
from convexlayers.errors import ArgumentError, SecondDerivativeError

ENGINES = ["native", "clarabel"]
# By column, then row, is CVXPY's order; it is given in another one.
ROWS, COLS = [2, 0, 0, 1, 2], [1, 3, 0, 1, 0]
SHAPE, COUNT, B = (3, 4), 5, 4


def randn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def make_problem(**attributes):
    """The projection of t onto {x : K x <= 1}, with K sparse."""
    x, t = cp.Variable(SHAPE[1]), cp.Parameter(SHAPE[1], name="t")
    K = cp.Parameter(SHAPE, sparsity=(ROWS, COLS), name="K", **attributes)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(x - t)), [K @ x <= 1])
    return problem, t, K, x


def make_layer(solver="native", attributes=None, **options):
    problem, t, K, x = make_problem(**(attributes or {}))
    duals = problem.constraints[0].dual_variables
    return cl.ConvexLayer(problem, [t, K], [x, *duals], solver=solver, **options), K


def dense(entries, K):
    """(..., COUNT) to (..., *SHAPE)."""
    rows, cols = (torch.as_tensor(part) for part in K.sparse_idx)
    out = entries.new_zeros(*entries.shape[:-1], *SHAPE)
    out[..., rows, cols] = entries
    return out


def sparse(entries, K):
    return torch.sparse_coo_tensor(torch.as_tensor(np.array(K.sparse_idx)), entries, SHAPE)


FORMS = {
    "entries": lambda entries, K: entries,
    "entries in an array": lambda entries, K: entries.numpy(),
    "coo": sparse,
    "csr": lambda entries, K: sparse(entries, K).to_sparse_csr(),
    "csc": lambda entries, K: sparse(entries, K).to_sparse_csc(),
    "scipy coo_array": lambda entries, K: sp.coo_array((entries.numpy(), K.sparse_idx), shape=SHAPE),
    "scipy csr_array": lambda entries, K: sp.csr_array((entries.numpy(), K.sparse_idx), shape=SHAPE),
    "scipy csc_matrix": lambda entries, K: sp.csc_matrix((entries.numpy(), K.sparse_idx), shape=SHAPE),
}


@pytest.mark.parametrize("solver", ENGINES)
@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_value_is_the_same_value(solver, form):
    layer, K = make_layer(solver)
    t, entries = randn(B, SHAPE[1], seed=1), randn(COUNT, seed=2)
    expected = layer(t, dense(entries, K))
    found = layer(t, FORMS[form](entries, K))
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert (expected[1] > 1e-3).any()
    assert torch.equal(layer(K=FORMS[form](entries, K), t=t)[0], expected[0])
    assert torch.equal(layer({K: FORMS[form](entries, K), "t": t})[0], expected[0])


def test_the_order_of_entries_is_cvxpys():
    layer, K = make_layer()
    problem, t, K, x = make_problem()
    assert np.ravel_multi_index(K.sparse_idx, SHAPE).tolist() == layer.program.parameters[1].sparsity.tolist()
    entries, t.value = randn(COUNT, seed=2), randn(SHAPE[1], seed=1).numpy()
    K.value_sparse = sp.coo_array((entries.numpy(), K.sparse_idx), shape=SHAPE)
    problem.solve(solver=cp.CLARABEL, tol_gap_abs=1e-12, tol_gap_rel=1e-12, tol_feas=1e-12)
    torch.testing.assert_close(layer(t.value, entries)[0], torch.as_tensor(x.value), rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("solver", ENGINES)
@pytest.mark.parametrize("shape", [(), (1,), (B,), (2, 3), (0,), (2, 1)])
def test_entries_have_batch_dimensions(solver, shape):
    layer, K = make_layer(solver)
    entries, t = randn(*shape, COUNT, seed=2).requires_grad_(), randn(SHAPE[1], seed=1)
    again = entries.detach().clone().requires_grad_()
    (x, z), (right, right_z) = layer(t, entries), layer(t, dense(again, K))
    assert x.shape == (*shape, SHAPE[1])
    assert torch.equal(x, right)
    weight = randn(*x.shape, seed=3)
    (grad,) = torch.autograd.grad([x, z], entries, [weight, torch.ones_like(z)])
    (expected,) = torch.autograd.grad([right, right_z], again, [weight, torch.ones_like(z)])
    assert grad.shape == entries.shape
    torch.testing.assert_close(grad, expected, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("solver", ENGINES)
def test_shared_entries_get_the_sum_and_a_dense_value_its_entries(solver):
    layer, K = make_layer(solver)
    t, entries = randn(B, SHAPE[1], seed=1), randn(COUNT, seed=2).requires_grad_()
    matrix = dense(entries.detach(), K).requires_grad_()
    (grad,) = torch.autograd.grad(layer(t, entries)[0].sum(), entries)
    (full,) = torch.autograd.grad(layer(t, matrix)[0].sum(), matrix)
    parts = [torch.autograd.grad(layer(row, entries)[0].sum(), entries)[0] for row in t]
    torch.testing.assert_close(grad, sum(parts), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(full, dense(grad, K), rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("solver", ENGINES)
def test_gradient_by_differences(solver):
    layer, _ = make_layer(solver, tolerance=1e-11)
    t, entries = randn(2, SHAPE[1], seed=1), randn(2, COUNT, seed=2).requires_grad_()
    assert torch.autograd.gradcheck(lambda e: layer(t, e)[0], entries, eps=1e-6, atol=1e-6)


@pytest.mark.parametrize("layout", [torch.sparse_coo, torch.sparse_csr])
def test_the_gradient_of_a_sparse_tensor(layout):
    """It reaches the stored entries, of the tensor itself and of what it is made from."""
    layer, K = make_layer()
    t, entries = randn(B, SHAPE[1], seed=1), randn(COUNT, seed=2).requires_grad_()
    (expected,) = torch.autograd.grad(layer(t, entries)[0].sum(), entries)
    leaf = sparse(entries.detach(), K).coalesce().to_sparse(layout=layout).requires_grad_()
    layer(t, leaf)[0].sum().backward()
    torch.testing.assert_close(leaf.grad.to_dense(), dense(expected, K), rtol=1e-13, atol=1e-13)
    if layout is torch.sparse_coo:
        made = sparse(entries, K)
        (grad,) = torch.autograd.grad(layer(t, made)[0].sum(), entries)
        torch.testing.assert_close(grad, expected, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtypes(dtype):
    layer, K = make_layer()
    t, entries = randn(SHAPE[1], seed=1).to(dtype), randn(COUNT, seed=2).to(dtype)
    for form in FORMS.values():
        assert layer(t, form(entries, K))[0].dtype == dtype
    assert layer(1.0 * t.float(), sparse(entries.double(), K))[0].dtype == torch.float64


def test_entries_that_are_not_stored_are_zero_and_duplicates_add_up():
    layer, K = make_layer()
    t, entries = randn(SHAPE[1], seed=1), randn(COUNT, seed=2)
    entries[2] = 0.0
    kept = torch.tensor([0, 1, 3, 4])
    indices = torch.as_tensor(np.array(K.sparse_idx))
    missing = torch.sparse_coo_tensor(indices[:, kept], entries[kept], SHAPE)
    twice = torch.sparse_coo_tensor(torch.cat([indices, indices], 1), torch.cat([entries / 2, entries / 2]), SHAPE)
    empty = torch.sparse_coo_tensor(torch.zeros(2, 0, dtype=torch.int64), torch.zeros(0, dtype=torch.float64), SHAPE)
    expected = layer(t, entries)[0]
    assert torch.equal(layer(t, missing)[0], expected)
    assert torch.equal(layer(t, twice)[0], expected)
    assert torch.equal(layer(t, empty)[0], layer(t, torch.zeros(COUNT, dtype=torch.float64))[0])


def test_wrong_values_are_refused_by_name():
    layer, K = make_layer()
    t = randn(SHAPE[1], seed=1)
    for form in (torch.eye(3, 4).to_sparse(), sp.eye_array(3, 4)):
        with pytest.raises(ArgumentError, match=r"K must be zero outside its sparsity pattern.*at \(2, 2\)"):
            layer(t, form)
    with pytest.raises(ArgumentError, match=r"K must be zero outside its sparsity pattern"):
        layer(t, torch.ones(SHAPE))
    with pytest.raises(ArgumentError, match=r"K has shape \(2, 4\), expected \(3, 4\)"):
        layer(t, torch.ones(2, 4).to_sparse())
    with pytest.raises(ArgumentError, match=r"K has shape \(7,\), expected \(\*batch, 3, 4\) or \(\*batch, 5\)"):
        layer(t, torch.ones(7))
    with pytest.raises(ArgumentError, match="K is complex"):
        layer(t, sparse(torch.ones(COUNT), K) * 1j)
    with pytest.raises(ArgumentError, match=r"^t is a sparse tensor, expected a dense one: only a parameter that was"):
        layer(torch.ones(4).to_sparse(), torch.ones(COUNT))
    with pytest.raises(ArgumentError, match=r"^t is a sparse matrix"):
        layer(sp.coo_array(np.ones((1, 4))), torch.ones(COUNT))


def test_attributes_are_checked_on_entries():
    layer, K = make_layer(attributes={"nonneg": True})
    t, entries = randn(B, SHAPE[1], seed=1), randn(B, COUNT, seed=2).abs()
    assert torch.equal(layer(t, entries)[0], layer(t, dense(entries, K))[0])
    entries[2, 1] = -0.5
    with pytest.raises(ArgumentError, match=r"K must be nonneg, but its value \(batch index 2\)"):
        layer(t, entries)
    unchecked, _ = make_layer(attributes={"nonneg": True}, validate=False)
    assert unchecked(t, entries)[0].isfinite().all()


def test_bounds_are_checked_on_entries():
    upper = sp.coo_array((np.arange(1.0, 1.0 + COUNT), (ROWS, COLS)), shape=SHAPE)
    layer, K = make_layer(attributes={"bounds": [-1.0, upper]})
    t, limits = randn(SHAPE[1], seed=1), torch.as_tensor(upper.toarray()[K.sparse_idx])
    assert layer(t, limits)[0].isfinite().all()
    for position in range(COUNT):
        entries = limits.clone()
        entries[position] += 0.1
        with pytest.raises(ArgumentError, match="K must be within its bounds"):
            layer(t, entries)
    assert torch.equal(layer(t, limits)[0], layer(t, sparse(limits, K))[0])


def test_numbers_that_are_not_finite_are_the_status_of_their_element():
    layer, _ = make_layer(on_failure="nan")
    entries = randn(B, COUNT, seed=2)
    entries[1, 0] = float("nan")
    solution = layer.solve(randn(SHAPE[1], seed=1), entries)
    assert solution.solved.tolist() == [True, False, True, True]


def test_what_can_be_read_both_ways_is_dense():
    """A pattern with as many entries as there are columns."""
    x, K = cp.Variable(3), cp.Parameter((3, 3), sparsity=([0, 1, 2], [0, 1, 2]))
    layer = cl.ConvexLayer(cp.Problem(cp.Minimize(cp.sum_squares(x - 1)), [K @ x <= 1]), [K], [x])
    value = torch.diag(torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64))
    expected = torch.tensor([1.0, 0.5, 0.25], dtype=torch.float64)
    torch.testing.assert_close(layer(value)[0], expected)
    torch.testing.assert_close(layer(value.diagonal().expand(2, 3))[0], expected.expand(2, 3))
    with pytest.raises(ArgumentError, match="must be zero outside its sparsity pattern"):
        layer(torch.ones(3, 3))


def test_a_sparse_vector():
    x, c = cp.Variable(4), cp.Parameter(4, sparsity=([3, 1],), name="c")
    layer = cl.ConvexLayer(cp.Problem(cp.Minimize(cp.sum_squares(x - c))), [c], [x])
    full, expected = torch.tensor([0.0, 2.0, 0.0, 5.0]), [0.0, 2.0, 0.0, 5.0]
    torch.testing.assert_close(layer(full)[0].tolist(), expected)
    torch.testing.assert_close(layer(full[list(c.sparse_idx[0])])[0].tolist(), expected)
    with pytest.raises(ArgumentError, match="c is sparse, which only a matrix can be"):
        layer(full.to_sparse())


def test_files_and_checkpoints():
    layer, K = make_layer()
    file = io.BytesIO()
    layer.save(file)
    file.seek(0)
    loaded = cl.ConvexLayer.load(file)
    t, entries = randn(B, SHAPE[1], seed=1), randn(COUNT, seed=2)
    for value in (entries, dense(entries, K), sparse(entries, K)):
        assert torch.equal(loaded(t, value)[0], layer(t, entries)[0])
    loaded.load_state_dict(layer.state_dict())


def test_diagnosis_and_relaxation():
    layer, K = make_layer(relax="closest_feasible")
    t, entries = randn(SHAPE[1], seed=1), randn(COUNT, seed=2)
    assert str(layer.diagnose(t, entries)) == str(layer.diagnose(t, dense(entries, K)))
    x, S = cp.Variable(2), cp.Parameter((3, 2), sparsity=([0, 1], [0, 0]))
    relaxed = cl.ConvexLayer(
        cp.Problem(cp.Minimize(cp.sum_squares(x)), [S @ x == np.array([1.0, 3.0, 0.0])]), [S], [x],
        relax="closest_feasible",
    )  # fmt: skip
    value = torch.ones(2, dtype=torch.float64, requires_grad=True)
    solution = relaxed.solve(value)
    assert bool(solution.relaxed)
    torch.testing.assert_close(solution.values[0].detach(), torch.tensor([2.0, 0.0], dtype=torch.float64))
    # x = (a + 3 b) / (a^2 + b^2) at a = b = 1: dx/da = (1 - 4) / 2 ... = 1/2 - 2 = -3/2, dx/db = 3/2 - 2 = -1/2.
    (grad,) = torch.autograd.grad(solution.values[0][0], value)
    torch.testing.assert_close(grad, torch.tensor([-1.5, -0.5], dtype=torch.float64), rtol=1e-6, atol=1e-6)


# Nothing is spread out: matrices of 20,000 rows and columns would take 3.2 GB.

n = 20_000


def banded(seed=0):
    rng = np.random.default_rng(seed)
    bands = [rng.standard_normal(n - abs(k)) + (10.0 if k == 0 else 0.0) for k in (-2, -1, 0, 1, 2)]
    return sp.diags_array(bands, offsets=[-2, -1, 0, 1, 2]).tocoo()


def peak_of(work):
    """Peak of traced memory in bytes: numpy's and Python's, not torch's."""
    tracemalloc.start()
    try:
        return work(), tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("where", ["constraint", "objective"])
def test_a_large_constant_matrix_stays_sparse(where):
    A, x, b = banded(), cp.Variable(n), cp.Parameter(n)
    if where == "constraint":
        problem = cp.Problem(cp.Minimize(cp.sum_squares(x - b)), [A @ x <= 1])
    else:
        problem = cp.Problem(cp.Minimize(cp.sum_squares(A @ x - b)), [x >= -1])
    layer, peak = peak_of(lambda: cl.ConvexLayer(problem, [b], [x]))
    assert peak < 200e6
    value = randn(n, seed=1).requires_grad_()
    _, peak = peak_of(lambda: layer(value)[0].sum().backward())
    assert peak < 100e6
    assert value.grad.isfinite().all()


def test_a_large_sparse_parameter_stays_sparse():
    pattern, x, b = banded(), cp.Variable(n), cp.Parameter(n)
    K = cp.Parameter((n, n), sparsity=(pattern.row, pattern.col))
    problem = cp.Problem(cp.Minimize(cp.sum_squares(x - b)), [K @ x <= 1])
    layer, peak = peak_of(lambda: cl.ConvexLayer(problem, [b, K], [x]))
    assert peak < 300e6
    assert layer.program.map.nnz == n + pattern.nnz
    entries = torch.as_tensor(pattern.tocsr()[K.sparse_idx]).requires_grad_()
    value = randn(n, seed=1)
    _, peak = peak_of(lambda: layer(value, entries)[0].sum().backward())
    assert peak < 100e6
    assert entries.grad.shape == (pattern.nnz,)
    constant = cp.Problem(cp.Minimize(cp.sum_squares(x - b)), [pattern @ x <= 1])
    (expected,) = cl.ConvexLayer(constant, [b], [x])(value)
    torch.testing.assert_close(layer(value, pattern)[0], expected, rtol=1e-9, atol=1e-9)


def test_second_derivatives_through_sparse_tensors_are_an_error():
    """torch returns zeros for them; dense ones are right, and so are those of the other arguments of a detached one."""
    values, q = torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64), torch.ones(3, dtype=torch.float64).requires_grad_()
    index = torch.tensor([[0, 0, 1], [0, 1, 2]])

    def x(values):
        A = torch.sparse_coo_tensor(index, values, (2, 3), check_invariants=False)
        return cl.solve_qp(torch.eye(3, dtype=torch.float64), q**2, A=A, b=torch.ones(2, dtype=torch.float64)).x

    values.requires_grad_()
    torch.autograd.grad(x(values).square().sum(), values)
    with pytest.raises(SecondDerivativeError, match="A is a sparse tensor"):
        torch.autograd.grad(x(values).square().sum(), values, create_graph=True)
    (grad,) = torch.autograd.grad(x(values.detach()).square().sum(), q, create_graph=True)
    (second,) = torch.autograd.grad(grad.sum(), q)
    assert second.abs().max() > 0
