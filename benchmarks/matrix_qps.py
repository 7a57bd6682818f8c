"""QPs given by matrices: minimize 1/2 x'Px + q'x subject to Gx <= h, Ax = b.

Some of the six vary, the others are constant. What varies is a parameter: it has a batch dimension and gets a gradient.
The recipes are the literature's, with seeds.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import cvxpy as cp
import numpy as np
import scipy.sparse as sp
import torch
from families import Family, randn
from torch import Tensor

from convexlayers.testing import random_qp

KEYS = ("P", "q", "G", "h", "A", "b")


@dataclass(frozen=True)
class MatrixQP:
    """One workload.

    Attributes:
        varying: names of the parameters, in the order of KEYS.
        draw: batch -> their values, each with a batch dimension.
        constants: the others, without; G and h, or A and b, may be missing.
        n, m, p: numbers of variables, inequalities, equalities.
    """

    varying: tuple[str, ...]
    draw: Callable[[int], list[Tensor]]
    n: int
    m: int
    p: int = 0
    constants: dict[str, Tensor] = field(default_factory=dict)

    def complete(self, values: Sequence[Tensor]) -> list[Tensor | None]:
        """All six, in order, the constants without a batch dimension."""
        given = self.constants | dict(zip(self.varying, values, strict=True))
        return [given.get(key) for key in KEYS]

    def expanded(self, values: Sequence[Tensor]) -> list[Tensor]:
        """All six with a batch dimension; empty A and b where there are none."""
        batch, dtype = values[0].shape[0], values[0].dtype
        out = self.complete(values)
        shapes = [(self.n, self.n), (self.n,), (self.m, self.n), (self.m,), (self.p, self.n), (self.p,)]
        filled = [torch.zeros(*s, dtype=dtype) if v is None else v for v, s in zip(out, shapes, strict=True)]
        return [v if key in self.varying else v.expand(batch, *v.shape) for key, v in zip(KEYS, filled, strict=True)]

    def family(self) -> Family:
        """The same in CVXPY, with sparse constants. A varying P enters by its root S as |S x|^2, P = S'S."""
        x, parts = cp.Variable(self.n), {}
        for key in KEYS:
            rows = {"P": self.n, "q": self.n, "G": self.m, "h": self.m, "A": self.p, "b": self.p}[key]
            shape = (rows, self.n) if key in "PGA" else (rows,)
            parts[key] = cp.Parameter(shape, name=key) if key in self.varying else _constant(self.constants.get(key))
        P = parts["P"]
        quadratic = cp.sum_squares(P @ x) if "P" in self.varying else cp.quad_form(x, cp.psd_wrap(P))
        constraints = [parts["G"] @ x <= parts["h"]] if self.m else []
        constraints += [parts["A"] @ x == parts["b"]] if self.p else []
        problem = cp.Problem(cp.Minimize(0.5 * quadratic + parts["q"] @ x), constraints)
        return problem, [parts[key] for key in self.varying], [x], self.draw


def _constant(value: Tensor | None) -> object:
    """For CVXPY, sparse where at most a tenth of a matrix is not zero."""
    if value is None:
        return None
    array = value.numpy()
    return sp.csc_array(array) if array.ndim == 2 and np.count_nonzero(array) <= 0.1 * array.size else array


def _uniform(*shape: int, seed: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _times(M: Tensor, x: Tensor) -> Tensor:
    return (M @ x.unsqueeze(-1)).squeeze(-1)


def optnet(n: int, p: int | None = None) -> MatrixQP:
    """OptNet's experiments (arXiv 1703.00443, Fig. 2): P = LL' + 1e-3 I, G normal, h = G x0 + s0, L and s0 uniform.

    As in the profiling scripts of OptNet and of cvxpylayers (arXiv 1910.12430, Fig. 3, dense).
    """
    m = n if p is None else p

    def draw(batch: int) -> list[Tensor]:
        L, q, G = _uniform(batch, n, n, seed=1), randn(batch, n, seed=2), randn(batch, m, n, seed=3)
        h = _times(G, randn(batch, n, seed=4)) + _uniform(batch, m, seed=5)
        return [L @ L.mT + 1e-3 * torch.eye(n, dtype=torch.float64), q, G, h]

    return MatrixQP(("P", "q", "G", "h"), draw, n, m)


def cvxpylayers_sparse(n: int, slack: float = 0.0) -> MatrixQP:
    """cvxpylayers' sparse QP (arXiv 1910.12430, Fig. 3): P = I, A and G of 1 % uniform entries plus I, b = Ax, h = Gx.

    A is square, so that x is the one feasible point and all inequalities are active in it: there is no derivative. With
    a slack, h = G x + slack (0.1 + u) with uniform u, and there is one.
    """
    rng = np.random.default_rng(0)
    A, G = (sp.random(n, n, density=0.01, random_state=rng).toarray() + np.eye(n) for _ in range(2))
    A, G = torch.from_numpy(A), torch.from_numpy(G)

    def draw(batch: int) -> list[Tensor]:
        x = randn(batch, n, seed=1)
        return [randn(batch, n, seed=2), x @ G.T + slack * (0.1 + _uniform(batch, n, seed=3)), x @ A.T]

    return MatrixQP(("q", "h", "b"), draw, n, n, n, {"P": torch.eye(n, dtype=torch.float64), "G": G, "A": A})


def dqp_dense(n: int) -> MatrixQP:
    """dQP's random dense QPs (arXiv 2410.06324), see `random_qp`; every element has its own matrices."""

    def draw(batch: int) -> list[Tensor]:
        drawn = [random_qp(n, seed=seed).arguments() for seed in range(batch)]
        # Its inequalities have an upper side only.
        half = drawn[0]["h"].shape[0] // 2
        drawn = [given | {"G": given["G"][:half], "h": given["h"][:half]} for given in drawn]
        return [torch.stack([given[key] for given in drawn]) for key in KEYS]

    return MatrixQP(KEYS, draw, n, n // 4, n // 4)


def dqp_sparse(n: int) -> MatrixQP:
    """dQP's random sparse QPs: one P, A, G, and for every element its q and the point that h and b belong to."""
    given = random_qp(n, sparse=True).arguments()
    half = given["h"].shape[0] // 2
    constants = {"P": given["P"], "G": given["G"][:half], "A": given["A"]}

    def draw(batch: int) -> list[Tensor]:
        x = randn(batch, n, seed=1)
        return [randn(batch, n, seed=2), x @ constants["G"].T, x @ constants["A"].T]

    return MatrixQP(("q", "h", "b"), draw, n, half, len(given["A"]), constants)


def bpqp(n: int, p: int) -> MatrixQP:
    """BPQP's QPs (arXiv 2411.19285, Table 1): everything uniform in [0, 1], P = FF' + 1e-3 I, h = G x0.

    There are p inequalities and p equalities.
    """

    def draw(batch: int) -> list[Tensor]:
        F, q = _uniform(batch, n, n, seed=1), _uniform(batch, n, seed=2)
        G, A, b = _uniform(batch, p, n, seed=3), _uniform(batch, p, n, seed=4), _uniform(batch, p, seed=5)
        P = F.mT @ F + 1e-3 * torch.eye(n, dtype=torch.float64)
        return [P, q, G, _times(G, _uniform(batch, n, seed=6)), A, b]

    return MatrixQP(KEYS, draw, n, p, p)


def bpqp_linear(n: int, p: int) -> MatrixQP:
    """BPQP's LPs: P = 1e-6 I, q = -G'y, h = G x0 + s, (s, y) complementary, b = A x0; x0, G, A uniform, s - y normal.

    There are fewer rows than variables, so that without P the solution would not be unique.
    """

    def draw(batch: int) -> list[Tensor]:
        v, x0 = randn(batch, p, seed=1), _uniform(batch, n, seed=2)
        G, A = _uniform(batch, p, n, seed=3), _uniform(batch, p, n, seed=4)
        return [-_times(G.mT, (-v).clamp(min=0)), G, _times(G, x0) + v.clamp(min=0), A, _times(A, x0)]

    constants = {"P": 1e-6 * torch.eye(n, dtype=torch.float64)}
    return MatrixQP(("q", "G", "h", "A", "b"), draw, n, p, p, constants)


def bpqp_ball(n: int) -> Family:
    """BPQP's SOCPs: min q'x, |x| <= c, q uniform and c the norm of a uniform vector."""
    x, q, c = cp.Variable(n), cp.Parameter(n), cp.Parameter(nonneg=True)
    problem = cp.Problem(cp.Minimize(q @ x), [cp.norm(x, 2) <= c])
    return problem, [q, c], [x], lambda B: [_uniform(B, n, seed=1), _uniform(B, n, seed=2).norm(dim=-1)]


def dc3(n: int) -> MatrixQP:
    """DC3's convex QP (arXiv 2104.12225), also Pi-net's: only b varies, in [-1, 1].

    P diagonal and q, uniform; A and G normal, n/2 rows each; h = |G A^+| 1, so that A^+ b is feasible for every b.
    """
    half = n // 2
    A, G = randn(half, n, seed=1), randn(half, n, seed=2)
    constants = {
        "P": torch.diag(_uniform(n, seed=3)), "q": _uniform(n, seed=4), "A": A, "G": G,
        "h": (G @ torch.linalg.pinv(A)).abs().sum(-1),
    }  # fmt: skip
    return MatrixQP(("b",), lambda B: [2 * _uniform(B, half, seed=5) - 1], n, half, half, constants)


def mpc(T: int = 20, nx: int = 6, nu: int = 3) -> MatrixQP:
    """The dynamics and weights of the family `mpc`, stacked, with box constraints on inputs; x0 is random.

    Variables X_1, U_0, X_2, U_1, ...; X_t+1 - A X_t - B U_t = 0, and A X_0 for t = 0, is what varies.
    """
    rng = np.random.default_rng(0)
    A, B = np.eye(nx) + 0.1 * rng.standard_normal((nx, nx)), 0.5 * rng.standard_normal((nx, nu))
    width = nx + nu
    dynamics = np.zeros((nx * T, width * T))
    for t in range(T):
        dynamics[t * nx : (t + 1) * nx, t * width : t * width + width] = np.hstack([np.eye(nx), -B])
    for before, t in pairwise(range(T)):
        dynamics[t * nx : (t + 1) * nx, before * width : before * width + nx] = -A
    inputs = np.kron(np.eye(T), np.hstack([np.zeros((nu, nx)), np.eye(nu)]))
    weights = np.tile(np.concatenate([np.full(nx, 2.0), np.full(nu, 0.2)]), T)
    numbers = {"P": np.diag(weights), "q": np.zeros(width * T), "G": np.vstack([inputs, -inputs]), "A": dynamics}
    constants = {key: torch.from_numpy(value) for key, value in numbers.items()}
    constants["h"] = torch.full((2 * nu * T,), 0.5, dtype=torch.float64)

    def draw(batch: int) -> list[Tensor]:
        first = randn(batch, nx, seed=1) @ torch.from_numpy(A).T
        return [torch.cat([first, first.new_zeros(batch, nx * (T - 1))], dim=-1)]

    return MatrixQP(("b",), draw, width * T, 2 * nu * T, nx * T, constants)
