"""Large sparse programs: linear growth, by counting; the kernels for one element; threads; sparse arguments."""

import clarabel
import numpy as np
import pytest
import torch
from scipy import sparse
from torch_threads import threads

import convexlayers as cl
from convexlayers.assembly import cone_program
from convexlayers.cones import Cones
from convexlayers.engines import make_engine
from convexlayers.sparse import split

# Operations from which a factorization is large, plan/panels.hpp.
LARGE = 20_000_000


def coordinates(matrix):
    """A sparse tensor of torch and its values, which take gradients."""
    entries = sparse.csr_matrix(matrix).tocoo()
    values = torch.tensor(entries.data).requires_grad_()
    indices = torch.tensor(np.stack([entries.row, entries.col]).astype(np.int64))
    return torch.sparse_coo_tensor(indices, values, size=entries.shape, is_coalesced=True), values


def random_qp(n, seed=0):
    """n variables and n inequalities, five entries in each; with n its factor becomes dense."""
    rng = np.random.default_rng(seed)

    def rows(entries):
        where = np.repeat(np.arange(n), entries), rng.integers(0, n, entries * n)
        return sparse.csr_matrix((rng.standard_normal(entries * n), where), (n, n))

    root, G = rows(2), rows(5)
    P = (root.T @ root + 0.1 * sparse.eye(n)).tocsc()
    return P, 3 * rng.standard_normal(n), G, G @ rng.standard_normal(n) + rng.random(n)


def simplex(n):
    rows = sparse.vstack([np.ones((1, n)), -sparse.eye(n)])
    return sparse.eye(n), rows, Cones(zero=1, nonnegative=n)


def chain(n, length=20):
    """Of dQP (Magoon et al., arXiv 2410.06324): closed chains of points with neighbours at most one apart."""
    first = sparse.eye(length) - sparse.eye(length, k=1) - sparse.eye(length, k=1 - length)
    second = 2 * sparse.eye(length) - sparse.eye(length, k=1) - sparse.eye(length, k=-1)
    step, bend = (sparse.kron(part, sparse.eye(n // length)) for part in (first, second))
    return 0.5 * sparse.eye(n) + bend.T @ bend, sparse.vstack([step, -step]), Cones(nonnegative=2 * n)


def portfolio(n, factors=10):
    """Risk x'Dx + y'y with exposures y = F'x."""
    F = np.random.default_rng(0).standard_normal((factors, n))
    budget = sparse.hstack([np.ones((1, n)), sparse.csr_matrix((1, factors))])
    exposures = sparse.hstack([sparse.csr_matrix(F), -sparse.eye(factors)])
    bounds = sparse.hstack([-sparse.eye(n), sparse.csr_matrix((n, factors))])
    return sparse.eye(n + factors), sparse.vstack([budget, exposures, bounds]), Cones(zero=1 + factors, nonnegative=n)


def ball(n):
    """One second-order cone: |x| <= 1."""
    return sparse.eye(n), sparse.vstack([sparse.csr_matrix((1, n)), -sparse.eye(n)]), Cones(second_order=(n + 1,))


def dense_rows(n):
    """A few equalities over all variables, and bounds."""
    rows = sparse.csr_matrix(np.random.default_rng(0).standard_normal((5, n)))
    return sparse.eye(n), sparse.vstack([rows, -sparse.eye(n), sparse.eye(n)]), Cones(zero=5, nonnegative=2 * n)


def describe(P, A, cones):
    n = P.shape[0]
    patterns = (split("P", P, (n, n))[0], split("A", A, (cones.rows, n))[0])
    return make_engine("native").setup(cone_program(n, True, cones, *patterns)).describe()


@pytest.mark.parametrize("make", [simplex, chain, portfolio, ball, dense_rows])
def test_fill_and_operations_are_linear(make):
    sizes = (2000, 4000, 8000)
    found = [describe(*make(n)) for n in sizes]
    for name in ("nnz_L", "flops", "groups"):
        first, second, third = (one[name] for one in found)
        # A constant part (dense rows among themselves) is allowed for, a growing one is not.
        assert third - second <= 2.1 * (second - first) + 20, name
        assert third <= 4.2 * first + 20, name


def test_plans_of_half_a_million_rows_are_made():
    found = describe(*simplex(200_000))
    assert found["nnz_L"] <= 4 * 200_000


def clarabel_point(P, q, G, h):
    settings = clarabel.DefaultSettings()
    settings.verbose = False
    settings.tol_gap_abs = settings.tol_gap_rel = settings.tol_feas = 1e-11
    cones = [clarabel.NonnegativeConeT(len(h))]
    return np.array(clarabel.DefaultSolver(sparse.triu(P, format="csc"), q, G.tocsc(), h, cones, settings).solve().x)


@pytest.mark.parametrize("n", [60, 300, 700])
def test_against_clarabel(n):
    """Small, with a kernel of vectors inside the element, and large."""
    P, q, G, h = random_qp(n)
    assert (describe(P, G, Cones(nonnegative=n))["flops"] > LARGE) == (n == 700)
    x = cl.solve_qp(P, q, G, h, solver="native").x.numpy()
    expected = clarabel_point(P, q, G, h)
    assert abs(x - expected).max() <= 1e-6 * abs(expected).max()


def solved(P, q, G, h, batch=()):
    (P_tensor, P_values), (G_tensor, G_values) = coordinates(P), coordinates(G)
    shift = torch.linspace(0.0, 1.0, batch[0] if batch else 1, dtype=torch.float64)
    q = torch.tensor(q) + (shift[:, None] if batch else 0.0) * torch.ones(len(q), dtype=torch.float64)
    q, h = q.requires_grad_(), torch.tensor(h).requires_grad_()
    solution = cl.solve_qp(P_tensor, q, G_tensor, h, solver="native")
    (solution.x * torch.cos(torch.arange(q.shape[-1], dtype=torch.float64))).sum().backward()
    return [solution.x.detach(), solution.z.detach(), q.grad, h.grad, P_values.grad, G_values.grad]


@pytest.mark.parametrize("n", [300, 700])
def test_threads_share_one_element_to_the_last_bit(n):
    problem = random_qp(n)
    found = []
    for count in (1, 2, 4):
        with threads(count):
            found.append(solved(*problem))
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


@pytest.mark.parametrize("n", [300, 700])
def test_elements_of_small_batches_to_the_last_bit(n):
    """Fewer elements than threads, as many, and more; each is what it is alone."""
    P, q, G, h = random_qp(n)
    alone = solved(P, q, G, h)
    for batch, count in ((2, 3), (3, 2), (3, 1)):
        with threads(count):
            together = solved(P, q, G, h, (batch,))
        assert all(torch.equal(together[k][0], alone[k]) for k in (0, 1, 2))


def test_a_large_dense_program():
    """Chains as long as they get, and gradients through them."""
    n = 320
    generator = torch.Generator().manual_seed(0)
    L = torch.randn(n, n, generator=generator, dtype=torch.float64)
    P, q = L @ L.T / n + torch.eye(n), torch.randn(n, generator=generator, dtype=torch.float64)
    G, h = torch.randn(n, n, generator=generator, dtype=torch.float64), torch.ones(n, dtype=torch.float64)
    expected = clarabel_point(sparse.csc_matrix(P.numpy()), q.numpy(), sparse.csc_matrix(G.numpy()), h.numpy())
    leaf = q.clone().requires_grad_()
    solution = cl.solve_qp(P, leaf, G, h, solver="native")
    assert abs(solution.x.detach().numpy() - expected).max() <= 1e-7
    solution.objective.backward()
    assert torch.allclose(leaf.grad, solution.x.detach(), rtol=0, atol=1e-10)


def test_chains_that_change_their_own_next_column():
    """Bidiagonal: every small group's only row below is the next group's own."""
    n = 500
    P = sparse.diags([np.full(n, 2.5), np.full(n - 1, -1.0), np.full(n - 1, -1.0)], [0, 1, -1])
    q = np.random.default_rng(0).standard_normal(n)
    x = cl.solve_qp(P, q, lb=-0.3, ub=0.3, solver="native").x.numpy()
    gradient = P @ x + q
    assert abs(np.clip(x - gradient, -0.3, 0.3) - x).max() <= 1e-9


# ------------------------------------------------------------------------------------------- sparse arguments


def test_gradients_of_sparse_matrices_are_those_of_dense_ones():
    P, q, G, h = random_qp(20)
    sparse_results = solved(P, q, G, h)
    P_dense, G_dense = (torch.tensor(M.toarray()).requires_grad_() for M in (P, G))
    solution = cl.solve_qp(P_dense, torch.tensor(q), G_dense, torch.tensor(h), solver="native")
    (solution.x * torch.cos(torch.arange(20, dtype=torch.float64))).sum().backward()
    assert torch.allclose(sparse_results[0], solution.x.detach(), atol=1e-9)
    for found, dense, matrix in ((sparse_results[4], P_dense.grad, P), (sparse_results[5], G_dense.grad, G)):
        entries = sparse.csr_matrix(matrix).tocoo()
        assert torch.allclose(found, dense[entries.row, entries.col], atol=1e-8)


@pytest.mark.parametrize("convert", [torch.Tensor.to_sparse_csr, torch.Tensor.to_sparse_csc, torch.Tensor.to_sparse])
def test_layouts(convert):
    G = convert(torch.tensor([[1.0, 0.0], [0.0, 2.0]], dtype=torch.float64))
    found = cl.solve_qp(sparse.eye(2), [-1.0, -1.0], G, [0.5, float("inf")])
    assert torch.allclose(found.x, torch.tensor([0.5, 1.0], dtype=found.x.dtype), atol=1e-6)
    assert torch.allclose(
        cl.solve_cone_program(sparse.eye(2), [-1.0, -1.0], G, [0.5, 4.0], Cones(nonnegative=2)).x, found.x
    )


def test_what_a_sparse_matrix_may_not_be():
    q = np.zeros(2)
    with pytest.raises(cl.errors.ArgumentError, match="P is not symmetric"):
        cl.solve_qp(sparse.csr_matrix([[1.0, 1.0], [0.0, 1.0]]), q)
    with pytest.raises(cl.errors.ArgumentError, match=r"entry \(1, 1\) is -1"):
        cl.solve_qp(sparse.diags([1.0, -1.0]), q)
    with pytest.raises(cl.errors.ArgumentError, match=r"\(3, 2\)"):
        cl.solve_qp(sparse.eye(2), q, sparse.eye(2), np.zeros(3))
