"""QP layers that take tensors: minimize 1/2 x'Qx + p'x subject to Gx <= h, all four with a batch dimension."""

from dataclasses import dataclass

import torch
from contenders import Contender, Values
from families import randn
from moreau_contender import CompressedRows, make_solver, unsolved
from torch import Tensor

import convexlayers as cl


@dataclass(frozen=True)
class QP:
    """n variables, m inequalities."""

    n: int
    m: int

    def sample(self, batch: int) -> list[Tensor]:
        """Q, p, G, h as in OptNet's experiments: Q = LL' + 0.1 I, G normal, h = G x0 + s0 with s0 > 0, so feasible."""
        L = randn(batch, self.n, self.n, seed=1)
        Q = L @ L.mT + 0.1 * torch.eye(self.n, dtype=torch.float64)
        p, G = randn(batch, self.n, seed=2), randn(batch, self.m, self.n, seed=3)
        x0 = randn(batch, self.n, seed=4)
        s0 = torch.rand(batch, self.m, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
        return [Q, p, G, (G @ x0.unsqueeze(-1)).squeeze(-1) + s0]


def qp_residual(values: Values, x: Tensor, z: Tensor) -> float:
    """The largest violation of the KKT conditions, relative to the size of their terms, at least 1."""
    Q, p, G, h = values
    Qx, Gtz, Gx = ((M @ v.unsqueeze(-1)).squeeze(-1) for M, v in ((Q, x), (G.mT, z), (G, x)))
    slack = h - Gx
    dual = (Qx + p + Gtz).abs().amax(-1) / _size(Qx, p, Gtz)
    primal = (-slack).clamp(min=0).amax(-1) / _size(Gx, h)
    sign = (-z).clamp(min=0).amax(-1) / _size(z)
    gap = (slack * z).sum(-1).abs() / _size((Qx * x).sum(-1, keepdim=True), (p * x).sum(-1, keepdim=True))
    return float(torch.stack([dual, primal, sign, gap]).max())


def _size(*terms: Tensor) -> Tensor:
    """Sum of the maximum norms, at least 1."""
    return torch.stack([term.abs().amax(-1) for term in terms]).sum(0).clamp(min=1)


class QPContender(Contender):
    """A QP solver; subclasses keep their dual solution in `z`, if they have one."""

    z: Tensor | None = None
    x: Tensor

    def prepare(self, family: QP, batch: int) -> None:  # type: ignore[override]
        """Most of them have nothing to prepare."""

    def residual(self, values: Values) -> float | None:
        return None if self.z is None else qp_residual(values, self.x.detach(), self.z.detach())


class OursQP(QPContender):
    """`solve_qp` with its defaults."""

    name = "convexlayers"

    def forward(self, inputs: Values) -> tuple[Tensor, ...]:
        solution = cl.solve_qp(*inputs)
        self.x, self.z = solution.x, solution.z
        return (self.x,)


class MoreauQP(QPContender):
    """`moreau.torch.Solver` on dense patterns."""

    packages = ("moreau",)

    def __init__(self, algorithm: str = "auto") -> None:
        self.algorithm = algorithm
        self.name = "moreau" if algorithm == "auto" else f"moreau({algorithm})"

    def prepare(self, family: QP, batch: int) -> None:  # type: ignore[override]
        P, A = CompressedRows.dense(family.n, family.n), CompressedRows.dense(family.m, family.n)
        self.solver = make_solver(P, A, cl.cones.Cones(nonnegative=family.m), batch, self.algorithm)

    def forward(self, inputs: Values) -> tuple[Tensor, ...]:
        Q, p, G, h = inputs
        solution = self.solver.solve(Q.flatten(1), G.flatten(1), p, h)
        self.x, self.z = solution.x, solution.z
        return (self.x,)

    def complaint(self) -> str:
        return unsolved(self.solver)


class Qpth(QPContender):
    """OptNet's own layer, on the CPU in float64."""

    name = "qpth"
    packages = ("qpth",)

    def prepare(self, family: QP, batch: int) -> None:  # type: ignore[override]
        from qpth.qp import QPFunction

        self.function = QPFunction(verbose=-1)
        self.nothing = torch.empty(0, dtype=torch.float64)

    def forward(self, inputs: Values) -> tuple[Tensor, ...]:
        return (self.function(*inputs, self.nothing, self.nothing),)


class Proxsuite(QPContender):
    """QPLayer: ProxQP, problem by problem; its two-sided rows get a lower side that never binds."""

    name = "proxsuite"
    packages = ("proxsuite",)

    def prepare(self, family: QP, batch: int) -> None:  # type: ignore[override]
        from proxsuite.torch.qplayer import QPFunction

        self.function = QPFunction()
        self.A, self.b = torch.empty(0, family.n, dtype=torch.float64), torch.empty(0, dtype=torch.float64)
        self.lower = torch.full((batch, family.m), -1e20, dtype=torch.float64)

    def forward(self, inputs: Values) -> tuple[Tensor, ...]:
        Q, p, G, h = inputs
        self.x, _, self.z = self.function(Q, p, self.A, self.b, G, self.lower, h)
        return (self.x,)
