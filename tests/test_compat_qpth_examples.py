"""What qpth's own tests and examples exercise, written anew, on its face: docs/migration.md has the list."""

import clarabel
import numpy as np
import pytest
import scipy.sparse as sp
import torch
from torch import nn
from torch.autograd import gradcheck

from convexlayers.compat.qpth import QPFunction, QPSolvers, SpQPFunction, solve_with_duals
from convexlayers.errors import ArgumentError

EMPTY = torch.empty(0, dtype=torch.float64)
NAMES = ["Q", "p", "G", "h", "A", "b"]


def normal(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def problem(n=6, inequalities=3, equalities=1, scale=1.0):
    """Q, G, h, A, b without a batch, p with a batch of one; feasible."""
    L, G, A, z = normal(0, n, n), scale * normal(1, inequalities, n), scale * normal(2, equalities, n), normal(3, n)
    return (
        scale * L @ L.mT + 0.1 * torch.eye(n).double(),
        normal(4, 1, n),
        G,
        G @ z + normal(5, inequalities).abs(),
        A,
        A @ z,
    )


def independent(Q, p, G, h, A, b):
    """The solution by Clarabel itself."""
    settings = clarabel.DefaultSettings()
    settings.verbose = False
    settings.tol_gap_abs = settings.tol_gap_rel = settings.tol_feas = 1e-12
    rows = np.vstack([A, G])
    cones = [clarabel.ZeroConeT(len(b)), clarabel.NonnegativeConeT(len(h))]
    upper = sp.csc_matrix(np.triu(0.5 * (Q + Q.T)))
    data = upper, p.ravel(), sp.csc_matrix(rows), np.concatenate([b, h])
    return np.array(clarabel.DefaultSolver(*data, cones, settings).solve().x)


@pytest.mark.parametrize("solver", QPSolvers)
@pytest.mark.parametrize(
    ("wanted", "inequalities", "equalities", "scale"),
    [("p", 3, 2, 10.0), ("Q", 3, 1, 1.0), ("G", 3, 0, 1.0), ("h", 3, 0, 1.0), ("A", 1, 3, 10.0), ("b", 1, 3, 10.0)],
)
def test_gradients_are_differences_of_another_solver(wanted, inequalities, equalities, scale, solver):
    """Of half the squared distance to a point, in every entry of a block."""
    values = dict(zip(NAMES, problem(6, inequalities, equalities, scale), strict=True))
    goal = normal(6, 6)
    values[wanted].requires_grad_()
    given = [value if value.numel() else EMPTY for value in values.values()]
    zhat = QPFunction(solver=solver)(*given)
    (0.5 * (zhat - goal).square().sum()).backward()

    def loss(entry, step):
        numbers = {name: value.detach().numpy().copy() for name, value in values.items()}
        numbers[wanted].reshape(-1)[entry] += step
        return 0.5 * np.sum((independent(*numbers.values()) - goal.numpy()) ** 2)

    entries = range(values[wanted].numel())
    expected = [(loss(entry, 1e-5) - loss(entry, -1e-5)) / 2e-5 for entry in entries]
    np.testing.assert_allclose(values[wanted].grad.reshape(-1).numpy(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("absent", ["", "A", "G"])
def test_duals_and_slacks(absent):
    """The conditions of optimality, and derivatives of the multipliers, with one kind of constraint or both."""
    Q, p, G, h, A, b = problem()
    G, h = (EMPTY, EMPTY) if absent == "G" else (G, h)
    A, b = (EMPTY, EMPTY) if absent == "A" else (A, b)
    p = p.expand(3, -1) + normal(7, 3, 6)
    zhat, nu, lam, slack = solve_with_duals(Q, p, G, h, A, b)
    torch.testing.assert_close(zhat, QPFunction()(Q, p, G, h, A, b))
    gradient = zhat @ Q + p
    if absent == "G":
        assert lam.shape == slack.shape == (3, 0)
    else:
        gradient = gradient + lam @ G
        assert lam.min() >= 0
        assert slack.min() >= -1e-9
        assert (lam * slack).abs().max() < 1e-8
    if absent == "A":
        assert nu.shape == (3, 0)
    else:
        gradient = gradient + nu @ A
        torch.testing.assert_close(zhat @ A.mT, b.expand(3, -1), rtol=0, atol=1e-9)
    assert gradient.abs().max() < 1e-8
    assert gradcheck(lambda value: solve_with_duals(Q, value, G, h, A, b), p[:1].clone().requires_grad_(), atol=1e-6)


def test_one_problem_has_a_batch_of_one():
    values = [value.squeeze(0) if name == "p" else value for name, value in zip(NAMES, problem(), strict=True)]
    assert [part.shape for part in solve_with_duals(*values)] == [(1, 6), (1, 1), (1, 3), (1, 3)]


def test_sparse_values_forward_and_backward():
    """Diagonal matrices, with the gradients of all values, those that qpth's own test leaves out included."""
    batch, n, inequalities, equalities = 2, 5, 4, 3
    Qv, p, Gv, h = (
        torch.ones(batch, n).double(),
        normal(0, batch, n),
        normal(1, batch, inequalities),
        normal(2, batch, inequalities),
    )
    Av, b = Gv[:, :equalities].clone(), h[:, :equalities] - 0.5
    positions = [torch.arange(size).repeat(2, 1) for size in (n, inequalities, equalities)]
    shapes = [(n, n), (inequalities, n), (equalities, n)]
    values = [value.requires_grad_() for value in (Qv, p, Gv, h, Av, b)]
    solve = SpQPFunction(*(part for pair in zip(positions, shapes, strict=True) for part in pair))
    found = solve(*values)
    dense = [
        torch.zeros(batch, *shape).double().index_put((torch.arange(batch)[:, None], *where[:, None, :]), value)
        for where, shape, value in zip(positions, shapes, (Qv, Gv, Av), strict=True)
    ]
    expected = QPFunction()(dense[0], p, dense[1], h, dense[2], b)
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-9)
    grads, others = (torch.autograd.grad((x - 1).square().sum(), values) for x in (found, expected))
    for part, other in zip(grads, others, strict=True):
        torch.testing.assert_close(part, other, rtol=1e-6, atol=1e-8)


class Classifier(nn.Module):
    """OptNet's example: a QP between two linear layers, its matrices shared by the batch."""

    def __init__(self, size=5, rows=6, **options):
        super().__init__()
        self.first, self.last = nn.Linear(4, size).double(), nn.Linear(size, 2).double()
        self.L, self.G = nn.Parameter(normal(0, size, size).tril()), nn.Parameter(normal(1, rows, size))
        self.z0, self.s0 = nn.Parameter(torch.zeros(size).double()), nn.Parameter(torch.ones(rows).double())
        self.options = options

    def forward(self, x):
        Q = self.L @ self.L.mT + 0.1 * torch.eye(len(self.L)).double()
        h = self.G @ self.z0 + self.s0
        return self.last(QPFunction(verbose=False, **self.options)(Q, self.first(x), self.G, h, EMPTY, EMPTY))


def test_a_classifier_learns():
    torch.manual_seed(0)
    model = Classifier(shared_gradients="sum")
    x = normal(2, 30, 4)
    labels = (x[:, 0] > x[:, 1]).long()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    losses = []
    for _ in range(25):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]


def test_a_sudoku_layer():
    """OptNet's example of equalities: min 0.05 |z|^2 + p'z, Az = b, z >= 0, A learned; here 2 x 2 Latin squares."""
    n = 8
    cells = torch.arange(n).reshape(2, 2, 2)
    groups = [*cells.reshape(4, 2), *cells.permute(0, 2, 1).reshape(4, 2), *cells.permute(1, 2, 0).reshape(4, 2)]
    rows = torch.zeros(12, n).double()
    for row, group in zip(rows, groups, strict=True):
        row[group] = 1
    A = torch.linalg.qr(rows.mT)[0].mT[: int(torch.linalg.matrix_rank(rows))]
    A = torch.linalg.svd(rows)[2][: len(A)].requires_grad_()
    known = torch.zeros(2, n).double()
    known[0, 0], known[1, 1] = 1, 1
    b = (A @ torch.full((n,), 0.5).double()).detach()
    solve = QPFunction(shared_gradients="sum")
    zhat = solve(0.1 * torch.eye(n).double(), -known, -torch.eye(n).double(), torch.zeros(n).double(), A, b)
    torch.testing.assert_close(zhat.reshape(2, 2, 2, 2).sum(-1), torch.ones(2, 2, 2).double(), rtol=0, atol=1e-8)
    assert min(zhat[0, 0], zhat[1, 1]) > 0.99
    zhat[:, 3].sum().backward()
    assert A.grad.isfinite().all()


def test_gradients_of_shared_blocks():
    """A sum with a warning, a sum, or the mean."""
    Q, _, G, h, A, b = problem()
    p, Q = normal(8, 4, 6), Q.requires_grad_()
    grads = {}
    for choice in ("sum", "mean"):
        (grads[choice],) = torch.autograd.grad(QPFunction(shared_gradients=choice)(Q, p, G, h, A, b).square().sum(), Q)
    torch.testing.assert_close(grads["sum"], 4 * grads["mean"], rtol=1e-8, atol=1e-10)
    with pytest.warns(UserWarning, match="gradients of Q, which the 4 elements share") as caught:
        (silent,) = torch.autograd.grad(QPFunction()(Q, p, G, h, A, b).square().sum(), Q)
    assert caught[0].filename == __file__
    torch.testing.assert_close(silent, grads["sum"])
    with pytest.raises(ArgumentError, match="shared_gradients is 'max'"):
        QPFunction(shared_gradients="max")


def test_the_mean_is_what_qpth_returns():
    qpth = pytest.importorskip("qpth.qp")
    values = [value.requires_grad_() for value in problem()]
    p = normal(8, 4, 6).requires_grad_()
    values[1] = p
    found = QPFunction(shared_gradients="mean")(*values)
    expected = qpth.QPFunction(verbose=-1, maxIter=60, notImprovedLim=10)(*values)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)
    grads, others = (torch.autograd.grad(z.square().sum(), values) for z in (found, expected))
    for part, other in zip(grads, others, strict=True):
        torch.testing.assert_close(part, other, rtol=1e-4, atol=1e-5)


def test_float32_as_in_most_programs():
    values = [value.float() for value in problem()]
    zhat = QPFunction(verbose=-1)(*values)
    assert zhat.dtype == torch.float32
    torch.testing.assert_close(zhat.double(), QPFunction()(*problem()), rtol=1e-4, atol=1e-4)
