"""A solved batch, and how far it is from being one: residuals and gap are measured here, not believed."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from convexlayers.program import ConeProgram
from convexlayers.status import Status

# Residuals below this are not asked for, whatever the tolerance: float64 has no more to give on scaled data.
SMALLEST_TOLERANCE = 1e-9
# A solver's own stopping test may use other norms than ours; beyond this factor the claim is not believed.
TOLERANCE_FACTOR = 10.0


@dataclass(frozen=True)
class Residuals:
    """How well (x, s, z) satisfies the optimality conditions, one number per element, shape (B,).

    Relative to the size of the terms, at least 1, in the maximum norm:

    Attributes:
        primal: Ax + s = b and s in K.
        dual: Px + A'z + q = 0 and z in K*.
        gap: x'Px + q'x + b'z = 0.
    """

    primal: Tensor
    dual: Tensor
    gap: Tensor

    @property
    def largest(self) -> Tensor:
        """The largest of the three; NaN counts as infinite."""
        worst = torch.maximum(torch.maximum(self.primal, self.dual), self.gap)
        return torch.nan_to_num(worst, nan=float("inf"))


def _norm(v: Tensor) -> Tensor:
    """Maximum norm over the last dimension; 0 for an empty one."""
    return v.abs().amax(-1) if v.shape[-1] else torch.zeros(v.shape[:-1], dtype=v.dtype, device=v.device)


def measure(program: ConeProgram, x: Tensor, s: Tensor, z: Tensor) -> Residuals:
    """Residuals of a candidate solution.

    Args:
        program: the numbers, batch B.
        x: (B, n). s, z: (B, m).
    """
    cones = program.structure.cones
    Ax, Px, Atz = program.A_times(x), program.P_times(x), program.At_times(z)
    primal_size = torch.clamp(_norm(Ax) + _norm(program.b) + _norm(s), min=1)
    dual_size = torch.clamp(_norm(Px) + _norm(program.q) + _norm(Atz), min=1)
    primal = torch.maximum(_norm(Ax + s - program.b), _norm(s - cones.project(s)))
    dual = torch.maximum(_norm(Px + Atz + program.q), _norm(z - cones.project_dual(z)))
    quadratic, linear, constant = (x * Px).sum(-1), (program.q * x).sum(-1), (program.b * z).sum(-1)
    gap_size = torch.clamp(quadratic.abs() + linear.abs() + constant.abs(), min=1)
    gap = (quadratic + linear + constant).abs() / gap_size
    return Residuals(primal=primal / primal_size, dual=dual / dual_size, gap=gap)


@dataclass
class DerivativeReport:
    """What is known of the last derivative taken at a solution; empty until one is.

    Attributes:
        residual: relative residual of the derivative's linear system, (B,).
        rank_deficient: whether the system was singular and its minimum-norm solution was returned, (B,).
    """

    residual: Tensor | None = None
    rank_deficient: Tensor | None = None


@dataclass(frozen=True)
class Solution:
    """Primal-dual solutions of a batch of cone programs.

    Attributes:
        program: the numbers that were solved.
        x: (B, n). s, z: (B, m). Undefined where status is not SOLVED.
        status: `Status` codes, int64 (B,).
        iterations: of the solver, int64 (B,).
        objective: 1/2 x'Px + q'x + offset, (B,).
        residuals: measured, not the solver's claim.
        report: what is known of the derivative, filled in when one is taken.
        engine_state: what the engine remembers for its own derivative, if it has one.
    """

    program: ConeProgram
    x: Tensor
    s: Tensor
    z: Tensor
    status: Tensor
    iterations: Tensor
    objective: Tensor
    residuals: Residuals
    report: DerivativeReport = field(default_factory=DerivativeReport)
    engine_state: object = None

    @property
    def solved(self) -> Tensor:
        """Boolean mask (B,)."""
        return self.status == int(Status.SOLVED)


def judge(
    program: ConeProgram,
    x: Tensor,
    s: Tensor,
    z: Tensor,
    claimed: Tensor,
    iterations: Tensor,
    tolerance: float,
    engine_state: object = None,
) -> Solution:
    """Make a Solution, believing certificates and stopping reasons but not claims of accuracy.

    An element is SOLVED if and only if it was not certified infeasible or unbounded and its measured residuals are
    within `TOLERANCE_FACTOR` times the tolerance: a solver that says "solved" far from it is INACCURATE, one that ran
    out of iterations on top of the solution is SOLVED.

    Args:
        program: the numbers, batch B.
        x, s, z: candidate solutions, (B, n), (B, m), (B, m).
        claimed: the engine's status codes, (B,).
        iterations: (B,).
        tolerance: relative accuracy asked for.
        engine_state: kept on the Solution.
    """
    residuals = measure(program, x, s, z)
    accurate = residuals.largest <= TOLERANCE_FACTOR * max(tolerance, SMALLEST_TOLERANCE)
    certified = torch.zeros_like(accurate)
    for code in (Status.PRIMAL_INFEASIBLE, Status.DUAL_INFEASIBLE, Status.INVALID_DATA):
        certified |= claimed == int(code)
    disbelieved = torch.where(claimed == int(Status.SOLVED), int(Status.INACCURATE), claimed)
    status = torch.where(certified, claimed, torch.where(accurate, int(Status.SOLVED), disbelieved))
    return Solution(
        program=program,
        x=x,
        s=s,
        z=z,
        status=status,
        iterations=iterations,
        objective=program.objective(x),
        residuals=residuals,
        engine_state=engine_state,
    )
