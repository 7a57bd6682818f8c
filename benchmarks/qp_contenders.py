"""QP layers that take tensors: minimize 1/2 x'Px + q'x subject to Gx <= h, Ax = b."""

import contextlib
import io

import torch
from contenders import Contender, Cvxpylayers, Ours, Values
from families import randn
from matrix_qps import MatrixQP
from moreau_contender import CompressedRows, Moreau, make_solver, unsolved
from torch import Tensor

import convexlayers as cl


def ridged(n: int, m: int) -> MatrixQP:
    """P, q, G, h: P = LL' + 0.1 I, L, q, G normal, h = G x0 + s0 with x0 normal and s0 uniform, so feasible."""

    def draw(batch: int) -> list[Tensor]:
        L = randn(batch, n, n, seed=1)
        P = L @ L.mT + 0.1 * torch.eye(n, dtype=torch.float64)
        q, G, x0 = randn(batch, n, seed=2), randn(batch, m, n, seed=3), randn(batch, n, seed=4)
        s0 = torch.rand(batch, m, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
        return [P, q, G, (G @ x0.unsqueeze(-1)).squeeze(-1) + s0]

    return MatrixQP(("P", "q", "G", "h"), draw, n, m)


def qp_residual(values: Values, x: Tensor, z: Tensor, y: Tensor) -> float:
    """The largest violation of the KKT conditions, relative to the size of their terms, at least 1.

    Args:
        values: all six with a batch dimension.
        x: (B, n). z: of Gx <= h, (B, m). y: of Ax = b, (B, p).
    """
    P, q, G, h, A, b = values
    pairs = ((P, x), (G.mT, z), (A.mT, y), (G, x), (A, x))
    Px, Gtz, Aty, Gx, Ax = ((M @ v.unsqueeze(-1)).squeeze(-1) for M, v in pairs)
    slack = h - Gx
    dual = _norm(Px + q + Gtz + Aty) / _size(Px, q, Gtz, Aty)
    primal = torch.maximum(_norm((-slack).clamp(min=0)), _norm(Ax - b)) / _size(Gx, h, Ax, b)
    sign = _norm((-z).clamp(min=0)) / _size(z)
    # Where Ax = b holds, b'y drops out.
    products = [(v * w).sum(-1, keepdim=True) for v, w in ((Px, x), (q, x), (slack, z))]
    gap = products[2].squeeze(-1).abs() / _size(*products[:2])
    return float(torch.stack([dual, primal, sign, gap]).max())


def _norm(v: Tensor) -> Tensor:
    return v.abs().amax(-1) if v.shape[-1] else v.new_zeros(v.shape[:-1])


def _size(*terms: Tensor) -> Tensor:
    """Sum of the maximum norms, at least 1."""
    return torch.stack([_norm(term) for term in terms]).sum(0).clamp(min=1)


class QPContender(Contender):
    """A QP solver; subclasses keep their solution in `x`, and their multipliers in `z` and `y` if they have them."""

    z: Tensor | None = None
    y: Tensor | None = None
    x: Tensor

    def prepare(self, family: MatrixQP, batch: int) -> None:  # type: ignore[override]
        """Most of them have nothing else to prepare."""
        self.family = family

    def residual(self, values: Values) -> float | None:
        if self.z is None:
            return None
        y = self.x.new_zeros(len(self.x), 0) if self.y is None else self.y.detach()
        return qp_residual(self.family.expanded(values), self.x.detach(), self.z.detach(), y)


class OursQP(QPContender):
    """`solve_qp` with its defaults."""

    name = "convexlayers"

    def forward(self, inputs: Values) -> tuple[Tensor, ...]:
        solution = cl.solve_qp(*self.family.complete(inputs))  # type: ignore[arg-type]
        self.x, self.z, self.y = solution.x, solution.duals.get("G"), solution.duals.get("A")
        return (self.x,)


class MoreauQP(QPContender):
    """`moreau.torch.Solver` on dense patterns."""

    packages = ("moreau",)

    def __init__(self, algorithm: str = "auto") -> None:
        self.algorithm = algorithm
        self.name = "moreau" if algorithm == "auto" else f"moreau({algorithm})"

    def prepare(self, family: MatrixQP, batch: int) -> None:  # type: ignore[override]
        super().prepare(family, batch)
        P, A = CompressedRows.dense(family.n, family.n), CompressedRows.dense(family.p + family.m, family.n)
        cones = cl.cones.Cones(zero=family.p, nonnegative=family.m)
        self.solver = make_solver(P, A, cones, batch, self.algorithm)

    def forward(self, inputs: Values) -> tuple[Tensor, ...]:
        P, q, G, h, A, b = self.family.expanded(inputs)
        rows, right = (torch.cat([A, G], 1), torch.cat([b, h], 1)) if self.family.p else (G, h)
        solution = self.solver.solve(P.flatten(1), rows.flatten(1), q, right)
        self.x, self.y, self.z = solution.x, solution.z[:, : self.family.p], solution.z[:, self.family.p :]
        return (self.x,)

    def complaint(self) -> str:
        return unsolved(self.solver)


class Qpth(QPContender):
    """OptNet's own layer, on the CPU in float64."""

    name = "qpth"
    packages = ("qpth",)

    def prepare(self, family: MatrixQP, batch: int) -> None:  # type: ignore[override]
        super().prepare(family, batch)
        from qpth.qp import QPFunction

        self.function = QPFunction(verbose=-1)
        self.nothing = torch.empty(0, dtype=torch.float64)

    def forward(self, inputs: Values) -> tuple[Tensor, ...]:
        P, q, G, h, A, b = self.family.expanded(inputs)
        equalities = (A, b) if self.family.p else (self.nothing, self.nothing)
        # It says on the standard output when it is not content.
        with contextlib.redirect_stdout(io.StringIO()) as said:
            x = self.function(P, q, G, h, *equalities)
        self.said = "says that the solution is inaccurate" if "inaccurate" in said.getvalue() else ""
        return (x,)

    def complaint(self) -> str:
        return self.said


class Proxsuite(QPContender):
    """QPLayer: ProxQP, problem by problem; its two-sided rows get a lower side that never binds."""

    name = "proxsuite"
    packages = ("proxsuite",)

    def prepare(self, family: MatrixQP, batch: int) -> None:  # type: ignore[override]
        super().prepare(family, batch)
        from proxsuite.torch.qplayer import QPFunction

        self.function = QPFunction()
        self.A, self.b = torch.empty(0, family.n, dtype=torch.float64), torch.empty(0, dtype=torch.float64)
        self.lower = torch.full((batch, family.m), -1e20, dtype=torch.float64)

    def forward(self, inputs: Values) -> tuple[Tensor, ...]:
        P, q, G, h, A, b = self.family.expanded(inputs)
        equalities = (A, b) if self.family.p else (self.A, self.b)
        self.x, y, self.z = self.function(P, q, *equalities, G, self.lower, h)
        self.y = y if self.family.p else None
        return (self.x,)


class DQP(QPContender):
    """dQP's layer with the fastest of its solvers that can be installed: DAQP for dense matrices, PIQP for sparse ones.

    Matrices that do not vary are made compressed sparse columns beforehand, if the workload's are sparse.
    """

    name = "dqp"
    packages = ("dqp", "qpsolvers", "daqp", "piqp", "qdldl")

    def prepare(self, family: MatrixQP, batch: int) -> None:  # type: ignore[override]
        super().prepare(family, batch)
        with contextlib.redirect_stdout(io.StringIO()):
            from dqp import dQP
        matrices = [family.constants[key] for key in ("P", "G", "A") if key in family.constants]
        self.sparse = len(matrices) == 3 and all((M != 0).double().mean() < 0.25 for M in matrices)
        options = ("sparse", "piqp", "qdldl") if self.sparse else ("dense", "daqp", "scipy LU")
        settings = dict(zip(("solve_type", "qp_solver", "lin_solver"), options, strict=True))
        self.layer = dQP.dQP_layer(dQP.build_settings(**settings))
        self.columns = [[M.to_sparse_csc()] * batch for M in matrices] if self.sparse else []

    def forward(self, inputs: Values) -> tuple[Tensor, ...]:
        P, q, G, h, A, b = self.family.expanded(inputs)
        if self.sparse:
            P, G, A = self.columns
        equalities = (A, b) if self.family.p else ()
        self.x, y, self.z, *_ = self.layer(P, q, G, h, *equalities)
        self.y = y if self.family.p else None
        return (self.x,)


class CvxpylayersQP(Cvxpylayers):
    """`CvxpyLayer` on the same QP. A P that varies enters by its root, which is taken untimed, in its favour."""

    def prepare(self, family: MatrixQP, batch: int) -> None:  # type: ignore[override]
        self.roots = "P" in family.varying
        super().prepare(family.family(), batch)

    def inputs(self, values: Values) -> list[Tensor]:
        if not self.roots:
            return super().inputs(values)
        self.values = super().inputs(values)
        self.root = torch.linalg.cholesky(self.values[0]).mT
        return super().inputs([self.root, *self.values[1:]])

    def gradients(self, inputs: Values) -> list[Tensor]:
        found = super().gradients(inputs)
        if self.roots:
            found[0] = torch.autograd.grad(self.root, self.values[0], found[0])[0]
        return found


class OursLayer(Ours):
    """`ConvexLayer` on a QP given by matrices: the way to have constants, and their sparsity."""

    def prepare(self, family: MatrixQP, batch: int) -> None:  # type: ignore[override]
        super().prepare(family.family(), batch)


class MoreauLayer(Moreau):
    """`moreau.torch.Solver` on the cone program that our compiler makes of a QP given by matrices."""

    def prepare(self, family: MatrixQP, batch: int) -> None:  # type: ignore[override]
        super().prepare(family.family(), batch)
