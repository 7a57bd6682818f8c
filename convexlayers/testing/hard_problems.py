"""QPs that are hard for a reason, each from a fixed seed and with its outcome known by construction.

`hard_qps` makes problems in the style of the Maros-Meszaros collection (Maros, Meszaros, "A repository of convex
quadratic programming problems", 1999): two-sided rows of which some are free, infinite bounds, equalities as l = u,
redundant and dependent rows, fixed variables, bad scales, semidefinite and zero P, degenerate vertices, nearly parallel
rows, tiny and thin feasible sets, and some without a solution. `random_qp` makes the random QPs of dQP (Magoon et al.,
"Differentiation through black-box quadratic programming solvers", arXiv 2410.06324).

A problem with a solution starts from one: draw x, which of the finite sides are active there, and multipliers of their
sign; then the bounds follow from Ax, and q = -Px - A'y - w makes x optimal.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

INFINITE = float("inf")
# How many of each kind `hard_qps` makes: 20 kinds, 60 problems.
EACH = 3


@dataclass(frozen=True)
class HardQP:
    """minimize 1/2 x'Px + q'x subject to l <= Ax <= u, lb <= x <= ub, in float64.

    Attributes:
        name: the kind and the seed.
        P: (n, n), symmetric positive semidefinite. q: (n,). A: (m, n).
        l, u: (m,), lb, ub: (n,); entries may be infinite.
        outcome: "solved", "infeasible" or "unbounded".
        x: a solution, (n,); where there is none, what the construction left there.
        unique: whether it is known to be the only one.
    """

    name: str
    P: Tensor
    q: Tensor
    A: Tensor
    l: Tensor  # noqa: E741
    u: Tensor
    lb: Tensor
    ub: Tensor
    outcome: str
    x: Tensor
    unique: bool

    def arguments(self) -> dict[str, Tensor]:
        """What `solve_qp` takes: rows with l = u are equalities, all others stand in G twice, with infinite sides."""
        same = self.l == self.u
        A, l, u = self.A[~same], self.l[~same], self.u[~same]  # noqa: E741
        found = {"P": self.P, "q": self.q, "lb": self.lb, "ub": self.ub}
        if len(A):
            found |= {"G": torch.cat([A, -A]), "h": torch.cat([u, -l])}
        if bool(same.any()):
            found |= {"A": self.A[same], "b": self.l[same]}
        return found

    def multipliers(self, duals: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """Those of the rows, (m,), and of the bounds, (n,), from the `duals` of `solve_qp` for these arguments.

        Each is that of the upper side minus that of the lower one.
        """
        y, same = torch.zeros_like(self.l), self.l == self.u
        if "A" in duals:
            y[same] = duals["A"]
        if "G" in duals:
            upper, lower = duals["G"].chunk(2)
            y[~same] = upper - lower
        return y, duals["ub"] - duals["lb"]

    def objective(self, x: Tensor) -> float:
        """1/2 x'Px + q'x at (n,)."""
        return float(0.5 * x @ self.P @ x + self.q @ x)

    def residual(self, x: Tensor, y: Tensor, w: Tensor) -> float:
        """The largest violation of the optimality conditions, each relative to the size of its own terms, at least 1.

        Args:
            x: (n,).
            y, w: (m,) and (n,), as `multipliers` returns them.
        """
        Ax, Px, Aty = self.A @ x, self.P @ x, self.A.T @ y
        sides = torch.cat([self.l, self.u, self.lb, self.ub])
        values, duals = torch.cat([Ax, x]), torch.cat([y, w])
        lower, upper = torch.cat([self.l, self.lb]), torch.cat([self.u, self.ub])
        outside = torch.maximum(lower - values, values - upper)
        primal = float(outside.amax()) / _size(Ax, x, sides[sides.isfinite()])
        dual = _norm(Px + self.q + Aty + w) / _size(Px, self.q, Aty, w)
        # A multiplier of an infinite side is an error whatever it is multiplied with.
        wrong = _norm(torch.where(torch.where(duals > 0, upper, lower).isinf(), duals, 0.0)) / _size(duals)
        active = torch.where(duals > 0, upper, lower)
        terms = duals * torch.where(active.isinf(), 0.0, active)
        quadratic, linear = x @ Px, self.q @ x
        gap = float((quadratic + linear + terms.sum()).abs())
        gap /= max(1.0, float(quadratic.abs() + linear.abs() + terms.abs().sum()))
        return max(primal, dual, wrong, gap)


def _norm(v: Tensor) -> float:
    return float(v.abs().amax()) if v.numel() else 0.0


def _size(*terms: Tensor) -> float:
    return max(1.0, sum(_norm(term) for term in terms))


@dataclass
class _Draft:
    """A problem in the making, in numpy: a point, the sides that are active there, and multipliers of the right sign.

    Attributes:
        P: (n, n). A: (m, n). x: (n,).
        below, above: distance from Ax to l and u, (m,); zero is active, and infinity is no side.
        box_below, box_above: the same from x to lb and ub, (n,).
        y: (m,). w: (n,). Positive on upper sides, negative on lower ones.
    """

    P: np.ndarray
    A: np.ndarray
    x: np.ndarray
    below: np.ndarray
    above: np.ndarray
    box_below: np.ndarray
    box_above: np.ndarray
    y: np.ndarray
    w: np.ndarray

    def finish(self, name: str, unique: bool = True, size: float = 1.0) -> HardQP:
        """The problem, with its objective times `size`."""
        q = -self.P @ self.x - self.A.T @ self.y - self.w
        Ax, x = self.A @ self.x, self.x
        numbers = [
            size * self.P, size * q, self.A, Ax - self.below, Ax + self.above, x - self.box_below, x + self.box_above,
        ]  # fmt: skip
        P, q, A, l, u, lb, ub = (torch.from_numpy(np.ascontiguousarray(part)) for part in numbers)  # noqa: E741
        return HardQP(name, P, q, A, l, u, lb, ub, "solved", torch.from_numpy(self.x.copy()), unique)


def _sides(rng: np.random.Generator, count: int, active: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Distances to both sides and multipliers: the first `active` of them are at one side, by a random sign."""
    below, above = rng.uniform(0.5, 2.0, count), rng.uniform(0.5, 2.0, count)
    dual = np.zeros(count)
    up = rng.random(count) < 0.5
    dual[:active] = rng.uniform(0.5, 2.0, active) * np.where(up, 1.0, -1.0)[:active]
    below[:active][~up[:active]] = 0.0
    above[:active][up[:active]] = 0.0
    return below, above, dual


def _semidefinite(rng: np.random.Generator, n: int, rank: int) -> np.ndarray:
    """(n, n), symmetric, with `rank` eigenvalues between 1/2 and 2 and zeros."""
    V = np.linalg.qr(rng.standard_normal((n, n)))[0][:, :rank]
    P = (V * rng.uniform(0.5, 2.0, rank)) @ V.T
    return 0.5 * (P + P.T)


def _draft(rng: np.random.Generator, n: int = 12, m: int = 8, rank: int | None = None) -> _Draft:
    """A well-behaved problem: a third of the rows and a quarter of the bounds are active, strictly."""
    rows, bounds = _sides(rng, m, m // 3), _sides(rng, n, n // 4)
    P = _semidefinite(rng, n, n if rank is None else rank)
    return _Draft(P, rng.standard_normal((m, n)), rng.standard_normal(n), *rows[:2], *bounds[:2], rows[2], bounds[2])


def _free_rows(rng: np.random.Generator) -> HardQP:
    """A third of the rows without any side, the others with one."""
    d = _draft(rng, m=15)
    d.below[d.y >= 0], d.above[d.y < 0] = INFINITE, INFINITE
    d.above[-5:] = INFINITE
    return d.finish("free rows")


def _free_variables(rng: np.random.Generator) -> HardQP:
    """Bounds infinite on both sides, on one, or none, at random."""
    d = _draft(rng)
    d.box_below[(rng.random(12) < 0.6) & (d.w >= 0)] = INFINITE
    d.box_above[(rng.random(12) < 0.6) & (d.w <= 0)] = INFINITE
    return d.finish("free variables")


def _equal_sides(rng: np.random.Generator) -> HardQP:
    """Equalities as l = u, and fixed variables as lb = ub."""
    d = _draft(rng, m=10)
    d.below[:5], d.above[:5], d.y[:5] = 0.0, 0.0, rng.standard_normal(5)
    d.box_below[-4:], d.box_above[-4:], d.w[-4:] = 0.0, 0.0, rng.standard_normal(4)
    return d.finish("equal sides")


def _twice(rng: np.random.Generator, d: _Draft) -> _Draft:
    """Every row once more, with another factor and without a multiplier."""
    factors = rng.uniform(0.5, 2.0, len(d.A))
    A = np.concatenate([d.A, d.A * factors[:, None]])
    below, above = (np.concatenate([part, part * factors]) for part in (d.below, d.above))
    return replace(d, A=A, below=below, above=above, y=np.concatenate([d.y, 0.0 * d.y]))


def _duplicate_rows(rng: np.random.Generator) -> HardQP:
    """Equalities and inequalities twice."""
    d = _draft(rng, m=9)
    d.below[:2], d.above[:2] = 0.0, 0.0
    return _twice(rng, d).finish("duplicate rows")


def _dependent_rows(rng: np.random.Generator) -> HardQP:
    """Nine equalities of rank three."""
    d = _draft(rng, m=9)
    A = rng.standard_normal((9, 3)) @ rng.standard_normal((3, 12))
    return replace(d, A=A, below=np.zeros(9), above=np.zeros(9), y=rng.standard_normal(9)).finish("dependent rows")


def _with_row_scales(rng: np.random.Generator, d: _Draft) -> _Draft:
    """Rows of sizes from 1e-6 to 1e6."""
    scale = 10.0 ** rng.uniform(-6, 6, len(d.A))
    return replace(d, A=d.A * scale[:, None], below=d.below * scale, above=d.above * scale, y=d.y / scale)


def _row_scales(rng: np.random.Generator) -> HardQP:
    """The same problem as without, in other numbers."""
    return _with_row_scales(rng, _draft(rng)).finish("row scales")


def _with_column_scales(rng: np.random.Generator, d: _Draft) -> _Draft:
    """Variables in units from 1e-3 to 1e3, so that P ranges from 1e-6 to 1e6."""
    scale = 10.0 ** rng.uniform(-3, 3, len(d.x))
    return replace(
        d, P=d.P * np.outer(scale, scale), A=d.A * scale, x=d.x / scale, w=d.w * scale,
        box_below=d.box_below / scale, box_above=d.box_above / scale,
    )  # fmt: skip


def _column_scales(rng: np.random.Generator) -> HardQP:
    """The same problem as without, in other numbers."""
    return _with_column_scales(rng, _draft(rng)).finish("column scales")


def _objective_scales(rng: np.random.Generator) -> HardQP:
    """The objective times 1e-6 or 1e6."""
    return _draft(rng).finish("objective scales", size=float(10.0 ** (6 * rng.choice([-1, 1]))))


def _semidefinite_objective(rng: np.random.Generator) -> HardQP:
    """P of rank four; the constraints decide the rest."""
    return _draft(rng, m=15, rank=4).finish("semidefinite", unique=False)


def _linear(rng: np.random.Generator) -> HardQP:
    """P = 0, at a vertex with as many active sides as variables."""
    d = _draft(rng, m=16, rank=0)
    rows, bounds = _sides(rng, 16, 8), _sides(rng, 12, 4)
    return _Draft(d.P, d.A, d.x, *rows[:2], *bounds[:2], rows[2], bounds[2]).finish("linear")


def _degenerate(rng: np.random.Generator) -> HardQP:
    """A vertex with twice as many active sides as variables, a third of them with multipliers."""
    d = _draft(rng, m=24, rank=rng.choice([0, 6, 12]))
    below, above, _ = _sides(rng, 24, 24)
    y = np.where(np.arange(24) < 8, np.where(above == 0, 1.0, -1.0) * rng.uniform(0.5, 2.0, 24), 0.0)
    return replace(d, below=below, above=above, y=y).finish("degenerate", unique=False)


def _parallel(rng: np.random.Generator) -> HardQP:
    """Pairs of active rows that differ by 1e-6."""
    d = _draft(rng, m=8)
    rows = _sides(rng, 8, 4)
    near = d.A[:4] + 1e-6 * rng.standard_normal((4, 12))
    A, below, above = np.concatenate([d.A, near]), *(np.concatenate([part, part[:4]]) for part in rows[:2])
    found = replace(d, A=A, below=below, above=above, y=np.concatenate([rows[2], rows[2][:4]]))
    return found.finish("nearly parallel rows")


def _tiny(rng: np.random.Generator) -> HardQP:
    """A feasible set of width 1e-6."""
    d = _draft(rng)
    for part in (d.below, d.above, d.box_below, d.box_above):
        part *= 1e-6
    return d.finish("tiny feasible set")


def _empty_interior(rng: np.random.Generator) -> HardQP:
    """Equalities as two opposite inequalities each."""
    d = _draft(rng, m=5)
    d.below[:], d.above[:], d.y[:] = INFINITE, 0.0, np.abs(d.y)
    opposite = replace(
        d, A=np.concatenate([d.A, -d.A]), below=np.tile(d.below, 2), above=np.tile(d.above, 2),
        y=np.concatenate([d.y, rng.uniform(0.0, 1.0, 5)]),
    )  # fmt: skip
    return opposite.finish("empty interior")


def _many_solutions(rng: np.random.Generator) -> HardQP:
    """An unbounded set of solutions: no side limits the directions without curvature, and none has a slope."""
    d = _draft(rng, m=4, rank=5)
    free = np.full(12, INFINITE)
    return replace(d, box_below=free, box_above=free, w=np.zeros(12)).finish("many solutions", unique=False)


def _all_at_once(rng: np.random.Generator) -> HardQP:
    """Semidefinite P, equalities, fixed variables, free and repeated rows, and bad scales of everything."""
    d = _draft(rng, m=10, rank=6)
    d.below[:3], d.above[:3], d.below[-2:], d.above[-2:] = 0.0, 0.0, INFINITE, INFINITE
    d.box_below[-2:], d.box_above[-2:], d.w[-2:] = 0.0, 0.0, rng.standard_normal(2)
    d.box_below[3:6] = INFINITE
    d = _with_column_scales(rng, _with_row_scales(rng, _twice(rng, d)))
    return d.finish("all at once", unique=False, size=float(10.0 ** rng.uniform(-6, 6)))


def _infeasible(rng: np.random.Generator) -> HardQP:
    """Rows that contradict the box, an equality, or each other."""
    d = _draft(rng)
    kind = rng.integers(3)
    qp = d.finish("infeasible")
    A, l, u = qp.A.clone(), qp.l.clone(), qp.u.clone()  # noqa: E741
    if kind == 0:
        l[0] = float((A[0].abs() * torch.maximum(qp.lb.abs(), qp.ub.abs())).sum()) + 1.0
        u[0] = INFINITE
    elif kind == 1:
        A[1], l[0], u[0] = 2 * A[0], l[0], l[0]
        l[1] = u[1] = 2 * l[0] + 1.0
    else:
        A[2] = A[0] + A[1]
        l[:2], u[:2] = -INFINITE, 0.0
        l[2], u[2] = 0.5, INFINITE
    return replace(qp, A=A, l=l, u=u, outcome="infeasible", unique=False)


def _infeasible_scales(rng: np.random.Generator) -> HardQP:
    """The same in bad units."""
    return _in_bad_units(rng, _infeasible(rng))


def _unbounded(rng: np.random.Generator) -> HardQP:
    """A direction without curvature along which the rows leave room and the objective falls."""
    n, d = 12, _draft(rng, rank=6)
    direction = np.linalg.svd(d.P)[2][-1]
    away = d.A @ direction
    d.below[away < 0], d.above[away > 0] = INFINITE, INFINITE
    qp = replace(d, box_below=np.full(n, INFINITE), box_above=np.full(n, INFINITE), w=np.zeros(n)).finish("unbounded")
    step = torch.from_numpy(direction)
    q = qp.q - step * (qp.q @ step + 1.0)
    return replace(qp, q=q, outcome="unbounded", unique=False)


def _unbounded_scales(rng: np.random.Generator) -> HardQP:
    """The same in bad units; the direction has no curvature whatever they are."""
    return _in_bad_units(rng, _unbounded(rng))


def _in_bad_units(rng: np.random.Generator, qp: HardQP) -> HardQP:
    """Rows by 1e-6 to 1e6, variables by 1e-2 to 1e2, in powers of two, so that nothing is rounded."""
    row = torch.from_numpy(2.0 ** rng.integers(-20, 21, len(qp.A)))
    column = torch.from_numpy(2.0 ** rng.integers(-7, 8, len(qp.q)))
    return replace(
        qp, name=f"{qp.name}, bad units", P=qp.P * torch.outer(column, column), q=qp.q * column,
        A=qp.A * torch.outer(row, column), l=qp.l * row, u=qp.u * row, lb=qp.lb / column, ub=qp.ub / column,
        x=qp.x / column,
    )  # fmt: skip


KINDS: tuple[Callable[[np.random.Generator], HardQP], ...] = (
    _free_rows, _free_variables, _equal_sides, _duplicate_rows, _dependent_rows, _row_scales, _column_scales,
    _objective_scales, _semidefinite_objective, _linear, _degenerate, _parallel, _tiny, _empty_interior,
    _many_solutions, _all_at_once, _infeasible, _infeasible_scales, _unbounded, _unbounded_scales,
)  # fmt: skip


def hard_qps(each: int = EACH, seed: int = 0) -> list[HardQP]:
    """All kinds, `each` times, the same ones for the same seed; 12 variables and 8 to 24 rows."""
    made = []
    for k, kind in enumerate(KINDS):
        for i in range(each):
            qp = kind(np.random.default_rng([seed, k, i]))
            made.append(replace(qp, name=f"{qp.name} {i}"))
    return made


def random_qp(n: int, *, sparse: bool = False, seed: int = 0) -> HardQP:
    """A random QP as dQP's own generators make them, with n/4 equalities and n/4 inequalities.

    Dense: P = FF' + 1e-4 I, and F, q, A uniform in [0, 1]; x = 1 is feasible, with slacks of 1. Sparse: P a symmetric
    matrix with 20 % normal entries, shifted to eigenvalues above 0.01, and A with 15 % of them; every inequality is an
    equation at some point, and rows of A may be zero. The solution is unique, and `x` holds the feasible point only.

    Args:
        n: number of variables; the paper goes up to 450.
        sparse: which of the two.
        seed: the same numbers for the same seed.
    """
    rng = np.random.default_rng([seed, n, int(sparse)])
    P, q, A, point = _sparse_numbers(rng, n) if sparse else _dense_numbers(rng, n)
    rows, equalities = len(A), len(A) // 2
    u = A @ point
    l = np.where(np.arange(rows) < equalities, u, -INFINITE)  # noqa: E741
    u = u if sparse else np.where(np.arange(rows) < equalities, u, u + 1.0)
    bound = np.full(n, INFINITE)
    P, q, A, l, u, lb, ub, x = (torch.from_numpy(part) for part in (P, q, A, l, u, -bound, bound, point))  # noqa: E741
    return HardQP(f"random {'sparse' if sparse else 'dense'} {n}", P, q, A, l, u, lb, ub, "solved", x, True)


def _dense_numbers(rng: np.random.Generator, n: int) -> tuple[np.ndarray, ...]:
    """P, q, A and a feasible point."""
    F, q, A = rng.random((n, n)), rng.random(n), rng.random((2 * (n // 4), n))
    return F @ F.T + 1e-4 * np.eye(n), q, A, np.ones(n)


def _sparse_numbers(rng: np.random.Generator, n: int) -> tuple[np.ndarray, ...]:
    """P, q, A and a feasible point."""
    P = np.where(rng.random((n, n)) < 0.2, rng.standard_normal((n, n)), 0.0)
    P = 0.5 * (P + P.T)
    P += (np.abs(np.linalg.eigvalsh(P)).max() + 1e-2) * np.eye(n)
    rows = 2 * (n // 4)
    A = np.where(rng.random((rows, n)) < 0.15, rng.standard_normal((rows, n)), 0.0)
    return P, rng.standard_normal(n), A, rng.standard_normal(n)
