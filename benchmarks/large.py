"""Large sparse programs, one or a few at a time: against Clarabel called directly and against dQP.

Usage: python benchmarks/large.py [--problems NAME ...] [--sizes N ...] [--batch B ...] [--threads N] [--repeats N]

    qp          sparse QP, n = m, five entries per row of G: its factor is dense in large part
    simplex     projection onto the simplex: one dense row
    chain       dQP's chain (Magoon et al., arXiv 2410.06324): closed chains of 100 points
    portfolio   50 factors: dense rows, as many as factors
    ball        projection onto a unit ball: one second-order cone

The parameter is q; the loss is the sum of squares of x. Clarabel has no derivative, so its backward columns are empty.
dQP (package libdqp) takes part if it is installed, with the solvers of qpsolvers that are, and is left out otherwise.
Errors are against the optimality conditions of the active set, solved by a sparse LU factorization (`reference`).
"""

import argparse
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp
import scipy.sparse.linalg
import torch
from contenders import Contender, Values
from harness import FIELDS, Row, limit_threads, race
from report import RESULTS, environment, show, write
from torch import Tensor

import convexlayers as cl
from convexlayers.assembly import cone_program
from convexlayers.cones import Cones
from convexlayers.solution import measure
from convexlayers.sparse import split

CHAIN_LENGTH, FACTORS = 100, 50
ACTIVE_SETS = 20
# Seconds per contender and problem.
BUDGET = 5.0
DQP_SOLVERS = ("piqp", "clarabel", "osqp")
COLUMNS = ["problem", "n", "batch", "contender", *FIELDS, "forward_ratio", "total_ratio", "backward_share"]


@dataclass(frozen=True)
class Large:
    """minimize 1/2 x'Px + q'x subject to Ax + s = b, s in K; q by `sample`.

    Attributes:
        P, A: sparse.
        b: right-hand side.
        cones: of the rows.
        size: typical size of q.
    """

    P: sp.csc_matrix
    A: sp.csc_matrix
    b: np.ndarray
    cones: Cones
    size: float = 1.0

    def sample(self, batch: int) -> list[Tensor]:
        """q, (B, n)."""
        q = np.random.default_rng(7).standard_normal((batch, self.P.shape[0]))
        return [torch.from_numpy(self.size * q)]


def qp(n: int) -> Large:
    rng = np.random.default_rng(0)

    def rows(entries: int) -> sp.csr_matrix:
        where = np.repeat(np.arange(n), entries), rng.integers(0, n, entries * n)
        return sp.csr_matrix((rng.standard_normal(entries * n), where), (n, n))

    root, G = rows(2), rows(5)
    P = root.T @ root + 0.1 * sp.eye(n)
    h = G @ rng.standard_normal(n) + rng.random(n)
    return Large(sp.csc_matrix(P), sp.csc_matrix(G), h, Cones(nonnegative=n), 3.0)


def simplex(n: int) -> Large:
    A = sp.vstack([np.ones((1, n)), -sp.eye(n)], format="csc")
    return Large(sp.eye(n, format="csc"), A, np.eye(1, n + 1).ravel(), Cones(zero=1, nonnegative=n))


def chain(n: int) -> Large:
    m = CHAIN_LENGTH
    first = sp.eye(m) - sp.eye(m, k=1) - sp.eye(m, k=1 - m)
    second = 2 * sp.eye(m) - sp.eye(m, k=1) - sp.eye(m, k=-1)
    step, bend = (sp.kron(part, sp.eye(n // m)) for part in (first, second))
    P = sp.csc_matrix(0.5 * sp.eye(n) + bend.T @ bend)
    return Large(P, sp.vstack([step, -step], format="csc"), np.ones(2 * n), Cones(nonnegative=2 * n), 10.0)


def portfolio(n: int) -> Large:
    k = FACTORS
    F = np.random.default_rng(0).standard_normal((k, n))
    budget = sp.hstack([np.ones((1, n)), sp.csr_matrix((1, k))])
    exposures = sp.hstack([sp.csr_matrix(F), -sp.eye(k)])
    bounds = sp.hstack([-sp.eye(n), sp.csr_matrix((n, k))])
    b = np.eye(1, 1 + k + n).ravel()
    A = sp.vstack([budget, exposures, bounds], format="csc")
    return Large(sp.eye(n + k, format="csc"), A, b, Cones(zero=1 + k, nonnegative=n))


def ball(n: int) -> Large:
    """Around (1, ..., 1): s = (1, x - 1)."""
    A = sp.vstack([sp.csr_matrix((1, n)), -sp.eye(n)], format="csc")
    b = np.concatenate([np.ones(1), -np.ones(n)])
    return Large(sp.eye(n, format="csc"), A, b, Cones(second_order=(n + 1,)))


PROBLEMS: dict[str, tuple[Callable[[int], Large], list[int]]] = {
    "qp": (qp, [500, 1000, 2000]),
    "simplex": (simplex, [1000, 10_000, 100_000]),
    "chain": (chain, [1000, 10_000, 100_000]),
    "portfolio": (portfolio, [1000, 10_000]),
    "ball": (ball, [1000, 10_000, 100_000]),
}


def coordinates(matrix: sp.csc_matrix) -> Tensor:
    """A sparse tensor, sorted."""
    entries = sp.csr_matrix(matrix).tocoo()
    indices = torch.from_numpy(np.stack([entries.row, entries.col]).astype(np.int64))
    return torch.sparse_coo_tensor(indices, torch.from_numpy(entries.data), entries.shape, is_coalesced=True)


class Solver(Contender):
    """Keeps x, s, z of its last call, (B, .), for the residual."""

    has_derivative = True

    def prepare(self, family: Large, batch: int) -> None:  # type: ignore[override]
        """Remember the numbers."""
        self.problem = family
        self.P, self.A = coordinates(family.P), coordinates(family.A)
        self.b = torch.from_numpy(family.b)

    def residual(self, values: Values) -> float:
        family, n = self.problem, self.problem.P.shape[0]
        (P, P_values), (A, A_values) = split("P", self.P, (n, n)), split("A", self.A, (family.cones.rows, n))
        theta = [P_values[None], values[0], A_values[None], self.b[None]]
        program = cone_program(n, True, family.cones, P, A).evaluate(theta)
        return float(measure(program, self.x, self.s, self.z).largest.max())


class OursLarge(Solver):
    """`solve_cone_program` on sparse tensors."""

    name = "convexlayers"

    def forward(self, inputs: Values) -> tuple[Tensor, ...]:
        solution = cl.solve_cone_program(self.P, inputs[0], self.A, self.b, self.problem.cones)
        self.x, self.s, self.z = (part.detach() for part in (solution.x, solution.s, solution.z))
        return (solution.x,)


class DirectClarabel(Solver):
    """Its own Python API, one element after the other, native P, set-up included."""

    name = "clarabel"
    packages = ("clarabel",)
    has_derivative = False

    def __init__(self, tolerance: float = 1e-8) -> None:
        self.tolerance = tolerance

    def forward(self, inputs: Values) -> tuple[Tensor, ...]:
        import clarabel

        settings = clarabel.DefaultSettings()
        settings.verbose = False
        settings.tol_gap_abs = settings.tol_gap_rel = settings.tol_feas = self.tolerance
        settings.max_threads = torch.get_num_threads()
        found = []
        for q in inputs[0].detach().numpy():
            problem, cones = self.problem, self.problem.cones
            blocks = [clarabel.ZeroConeT(cones.zero)] if cones.zero else []
            blocks += [clarabel.NonnegativeConeT(cones.nonnegative)] if cones.nonnegative else []
            blocks += [clarabel.SecondOrderConeT(dim) for dim in cones.second_order]
            P = sp.triu(problem.P, format="csc")
            found.append(clarabel.DefaultSolver(P, q, problem.A, problem.b, blocks, settings).solve())
        self.status = ", ".join(sorted({str(one.status) for one in found} - {"Solved"}))
        self.x, self.s, self.z = (
            torch.tensor([getattr(one, part) for one in found], dtype=torch.float64) for part in "xsz"
        )
        return (self.x.clone().requires_grad_(),)

    def complaint(self) -> str:
        return self.status


class DQP(Solver):
    """dQP over a solver of qpsolvers, one element after the other, its derivative by SuperLU."""

    packages = ("dqp", "qpsolvers")

    def __init__(self, solver: str) -> None:
        self.solver = solver
        self.name = f"dqp({solver})"

    @property
    def installed(self) -> bool:
        return super().installed and find_spec(self.solver) is not None

    def prepare(self, family: Large, batch: int) -> None:  # type: ignore[override]
        import dqp

        super().prepare(family, batch)
        if family.cones.second_order:
            raise ValueError("has no second-order cones")
        settings = dqp.build_settings(
            solve_type="sparse", qp_solver=self.solver, lin_solver="scipy SPLU", empty_batch=False
        )
        self.layer = dqp.dQP_layer(settings=settings)
        zero = family.cones.zero
        self.fixed = [coordinates(part).to_sparse_csc() for part in (family.P, family.A[zero:], family.A[:zero])]

    def forward(self, inputs: Values) -> tuple[Tensor, ...]:
        zero, (P, G, A) = self.problem.cones.zero, self.fixed
        equalities = (A, self.b[:zero]) if zero else ()
        found = [self.layer(P, q, G, self.b[zero:], *equalities)[:3] for q in inputs[0]]
        x = torch.stack([one[0] for one in found])
        self.x, y, z = (torch.stack([one[k] for one in found]).detach() for k in range(3))
        self.z = torch.cat([y, z], 1) if zero else z
        self.s = self.b - (self.A @ self.x.T).T
        self.s[:, :zero] = 0.0
        self.s.clamp_(min=0.0)
        return (x,)


def reference(problem: Large, values: Values) -> tuple[Values, Values]:
    """x and the gradient of |x|^2 in q, each (B, n), for every row of q.

    Polyhedra: K (x, y) = (-q, b) with the active rows as equalities, those with z + Ax > b, from Clarabel's point on
    until they are the same again; and K (w, .) = (2 x, 0), grad_q = -w. The ball around c: x = c - u with u = y / |y|,
    y = q + c outside of the unit ball, and grad_q = -2 (x - u u'x) / |y|.
    """
    if problem.cones.second_order:
        y = values[0] + 1.0
        length = y.norm(dim=1, keepdim=True)
        u = y / length
        x = 1.0 - u
        return [x], [-2.0 * (x - u * (u * x).sum(1, keepdim=True)) / length]
    solved = DirectClarabel(1e-11)
    solved.prepare(problem, len(values[0]))
    solved.forward(values)
    points, grads = [], []
    for q, s, z in zip(values[0].numpy(), solved.s.numpy(), solved.z.numpy(), strict=True):
        equality = np.arange(len(z)) < problem.cones.zero
        active = equality | (z > s)
        for _ in range(ACTIVE_SETS):
            A = problem.A.tocsr()[active]
            K = scipy.sparse.linalg.splu(sp.bmat([[problem.P, A.T], [A, None]], format="csc"))
            x, y = np.split(K.solve(np.concatenate([-q, problem.b[active]])), [len(q)])
            multipliers = np.zeros(len(z))
            multipliers[active] = y
            before, active = active, equality | (multipliers + problem.A @ x - problem.b > 0)
            if (active == before).all():
                break
        points.append(x)
        grads.append(-K.solve(np.concatenate([2 * x, np.zeros(A.shape[0])]))[: len(q)])
    return [torch.tensor(np.array(points))], [torch.tensor(np.array(grads))]


def compare(rows: list[Row]) -> list[Row]:
    """How many times slower than ours each is, and the share of our forward time that our backward takes."""

    def total(row: Row) -> float:
        return row["forward_ms"] + float(row["backward_ms"] or 0.0)

    ours = rows[0]
    for row in rows:
        if "forward_ms" not in row or "forward_ms" not in ours:
            continue
        row["forward_ratio"] = f"{row['forward_ms'] / ours['forward_ms']:.2f}"
        if row["backward_ms"] != "":
            row["total_ratio"] = f"{total(row) / total(ours):.2f}"
            row["backward_share"] = f"{row['backward_ms'] / row['forward_ms']:.2f}"
    return rows


def run(name: str, n: int, batch: int, contenders: list[Any], repeats: int) -> list[Row]:
    """One row per contender."""
    problem = PROBLEMS[name][0](n)
    values = problem.sample(batch)
    rows = race(contenders, problem, values, reference(problem, values), repeats=repeats, budget=BUDGET)
    for contender, row in zip(contenders, rows, strict=True):
        if not contender.has_derivative:
            row["backward_ms"] = row["gradient_error"] = ""
    return [{"problem": name, "n": n, "batch": batch} | row for row in compare(rows)]


def main() -> None:
    """Run, print a table, write a CSV file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", nargs="+", choices=PROBLEMS, default=list(PROBLEMS))
    parser.add_argument("--sizes", nargs="+", type=int, help="instead of each problem's own")
    parser.add_argument("--batch", nargs="+", type=int, default=[1])
    parser.add_argument("--threads", type=int, help="cores to use, all by default")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--output", type=Path, default=RESULTS / "large.csv")
    options = parser.parse_args()
    limit_threads(options.threads)
    warnings.filterwarnings("ignore", message="Sparse")
    peers = [contender for contender in map(DQP, DQP_SOLVERS) if contender.installed]
    if not peers:
        print("dQP takes no part: libdqp, or every solver it could use, is not installed.")
    contenders = [OursLarge(), DirectClarabel(), *peers]
    rows: list[Row] = []
    for name in options.problems:
        for n in options.sizes or PROBLEMS[name][1]:
            for batch in options.batch:
                rows += run(name, n, batch, contenders, options.repeats)
                write(options.output, environment(contenders), COLUMNS, rows)
    show(COLUMNS, rows)


if __name__ == "__main__":
    main()
