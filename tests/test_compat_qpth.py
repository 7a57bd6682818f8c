"""qpth's face: shapes, closed forms, derivatives, errors."""

import pytest
import torch
from torch.autograd import gradcheck

import convexlayers as cl
from convexlayers.compat.qpth import QPFunction, QPSolvers, SpQPFunction
from convexlayers.errors import ArgumentError, SolverError

EMPTY = torch.empty(0, dtype=torch.float64)


def normal(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def qp(batch=(), n=4, inequalities=3, equalities=1):
    """OptNet's generator: feasible, strictly convex."""
    L, G, A = normal(1, *batch, n, n), normal(2, *batch, inequalities, n), normal(3, *batch, equalities, n)
    Q = L @ L.mT + 0.1 * torch.eye(n, dtype=torch.float64)
    z, s = normal(4, *batch, n, 1), normal(5, *batch, inequalities).abs()
    return Q, normal(6, *batch, n), G, (G @ z).squeeze(-1) + s, A, (A @ z).squeeze(-1)


def test_the_projection_onto_the_simplex():
    t = torch.tensor([[0.9, 0.3, -1.0], [0.2, 0.2, 0.2]], dtype=torch.float64)
    eye, one = torch.eye(3, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    zhat = QPFunction(verbose=False)(eye, -t, -eye, EMPTY.new_zeros(3), one.expand(1, 3), one)
    expected = torch.tensor([[0.8, 0.2, 0.0], [1 / 3, 1 / 3, 1 / 3]], dtype=torch.float64)
    torch.testing.assert_close(zhat, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("solver", QPSolvers)
def test_both_solvers_solve_the_same(solver):
    values = qp((5,))
    zhat = QPFunction(solver=solver)(*values)
    torch.testing.assert_close(zhat, cl.solve_qp(*values).x, rtol=1e-6, atol=1e-7)


def test_results_have_a_batch_dimension_even_where_no_value_has():
    assert QPFunction()(*qp()).shape == (1, 4)
    Q, _, *others = qp()
    p = normal(7, 6, 4).requires_grad_()
    zhat = QPFunction()(Q, p, *others)
    assert zhat.shape == (6, 4)
    torch.testing.assert_close(zhat[2:3], QPFunction()(Q, p[2], *others), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("absent", ["G", "A", "both"])
def test_absent_blocks_are_empty_tensors(absent):
    Q, p, G, h, A, b = qp((2,))
    values = {"G": (EMPTY, EMPTY, A, b), "A": (G, h, EMPTY, EMPTY), "both": (EMPTY,) * 4}[absent]
    expected = {"G": {"A": A, "b": b}, "A": {"G": G, "h": h}, "both": {}}[absent]
    torch.testing.assert_close(QPFunction()(Q, p, *values), cl.solve_qp(Q, p, **expected).x)


def test_derivatives():
    values = [value.requires_grad_() for value in qp((2,))]

    def solve(Q, *others):
        return QPFunction()(0.5 * (Q + Q.mT), *others)

    assert gradcheck(solve, values, eps=1e-6, atol=1e-6)


def test_a_shared_block_gets_the_sum_of_the_gradients():
    Q, _, *others = qp()
    p, Q = normal(7, 6, 4), Q.requires_grad_()
    together = torch.autograd.grad(QPFunction(shared_gradients="sum")(Q, p, *others).sum(), Q)[0]
    alone = sum(torch.autograd.grad(QPFunction()(Q, row, *others).sum(), Q)[0] for row in p)
    torch.testing.assert_close(together, alone, rtol=1e-8, atol=1e-10)


def test_sparse_values_with_a_batch():
    Q, p, G, h, A, b = qp((3,))
    G = G * (torch.arange(12).reshape(3, 4) % 3 > 0)
    positions = [torch.ones(size).nonzero().T for size in ((4, 4), (1, 4))]
    Gi = (torch.arange(12).reshape(3, 4) % 3 > 0).nonzero().T
    solve = SpQPFunction(positions[0], (4, 4), Gi, (3, 4), positions[1], (1, 4))
    Gv = G[:, Gi[0], Gi[1]].requires_grad_()
    found = solve(Q.reshape(3, 16), p, Gv, h, A.reshape(3, 4), b)
    dense = G.clone().requires_grad_()
    expected = QPFunction()(Q, p, dense, h, A, b)
    torch.testing.assert_close(found, expected)
    grads = torch.autograd.grad(found[:, 0].sum(), Gv)[0], torch.autograd.grad(expected[:, 0].sum(), dense)[0]
    torch.testing.assert_close(grads[0], grads[1][:, Gi[0], Gi[1]])


def test_a_singular_matrix_is_refused_unless_the_check_is_off():
    Q, p, *others = qp((3,))
    Q[1] = torch.diag(torch.tensor([1.0, 1.0, 1.0, 0.0], dtype=torch.float64))
    with pytest.raises(RuntimeError, match=r"Q is not SPD \(batch index 1\)"):
        QPFunction()(Q, p, *others)
    box = torch.cat([torch.eye(4), -torch.eye(4)]).double()
    zhat = QPFunction(check_Q_spd=False)(Q, p, box, torch.ones(8, dtype=torch.float64), EMPTY, EMPTY)
    torch.testing.assert_close(zhat[1, 3], -p[1, 3].sign())


def test_no_feasible_point_is_an_error():
    one = torch.ones(1, 1, dtype=torch.float64)
    G, h = torch.cat([one, -one]), torch.tensor([0.0, -1.0], dtype=torch.float64)
    with pytest.raises(SolverError, match="PRIMAL_INFEASIBLE"):
        QPFunction()(one, one[0], G, h, EMPTY, EMPTY)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({2: normal(1, 3, 5)}, "G has shape"),
        ({0: normal(1, 1, 1, 4, 4)}, "Q has shape"),
        ({1: normal(1, 3, 4), 3: normal(1, 2, 3)}, "batch sizes differ: p 3, h 2"),
        ({3: EMPTY}, "G and h belong together"),
        ({1: EMPTY}, "p is empty"),
    ],
)
def test_errors_name_the_argument_as_qpth_does(change, message):
    values = [change.get(i, value) for i, value in enumerate(qp())]
    with pytest.raises(ArgumentError, match=message):
        QPFunction()(*values)


def test_a_solver_that_is_none():
    with pytest.raises(ArgumentError, match="expected a member of QPSolvers"):
        QPFunction(solver="pdipm")  # type: ignore[arg-type]
