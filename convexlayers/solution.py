"""A solved batch, and how far it is from being one: residuals and gap are measured here, not believed."""

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor

from convexlayers.program import ConeProgram
from convexlayers.status import Status

# x (B, n), s (B, m), z (B, m).
Point = tuple[Tensor, Tensor, Tensor]

# Residuals below this are not asked for, whatever the tolerance: float64 has no more to give on scaled data.
SMALLEST_TOLERANCE = 1e-9
# A solver's own stopping test may use other norms than ours; beyond this factor the claim is not believed.
TOLERANCE_FACTOR = 10.0
# How exactly a ray has to prove infeasibility or unboundedness.
CERTIFICATE_TOLERANCE = 1e-6


@dataclass(frozen=True, eq=False)
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

    def put(self, indices: Tensor, new: "Residuals") -> "Residuals":
        """These with those of other measurements at some elements."""
        pairs = ((self.primal, new.primal), (self.dual, new.dual), (self.gap, new.gap))
        return Residuals(*(put(old, indices, part) for old, part in pairs))

    def to(self, device: torch.device) -> "Residuals":
        """On a device."""
        return Residuals(self.primal.to(device), self.dual.to(device), self.gap.to(device))


def put(old: Tensor, indices: Tensor, new: Tensor) -> Tensor:
    """`old` with other rows at some elements, detached, in its own dtype and on its own device."""
    return old.index_copy(0, indices, new.detach().to(old))


def _norm(v: Tensor) -> Tensor:
    """Maximum norm over the last dimension; 0 for an empty one."""
    return v.abs().amax(-1) if v.shape[-1] else torch.zeros(v.shape[:-1], dtype=v.dtype, device=v.device)


def measure(program: ConeProgram, x: Tensor, s: Tensor, z: Tensor) -> Residuals:
    """Residuals of a candidate solution; NaN for elements that hold anything not finite.

    Args:
        program: the numbers, batch B.
        x: (B, n). s, z: (B, m).
    """
    finite, program, (x, s, z) = _finite_elements(program, x, s, z)
    found = _measure_finite(program, x, s, z)
    primal, dual, gap = (part.masked_fill(~finite, float("nan")) for part in (found.primal, found.dual, found.gap))
    return Residuals(primal, dual, gap)


def finite_rows(values: Tensor) -> Tensor:
    """Which rows hold only finite numbers, (B, k) to (B,)."""
    # A finite sum has finite terms and is one pass; finite terms may have an infinite sum.
    finite = values.sum(-1).isfinite()
    return finite if bool(finite.all()) else values.isfinite().all(-1)


def _finite_elements(program: ConeProgram, *vectors: Tensor) -> tuple[Tensor, ConeProgram, list[Tensor]]:
    """Which elements hold only finite numbers, (B,), and everything with zeros standing in for the others.

    One NaN would make the eigenvalues of the whole batch an error.
    """
    finite = torch.stack([finite_rows(part) for part in (program.data, *vectors)]).all(0)
    if bool(finite.all()):
        return finite, program, list(vectors)
    rows = finite.unsqueeze(-1)
    data, *cleaned = (torch.where(rows, part, torch.zeros_like(part)) for part in (program.data, *vectors))
    return finite, ConeProgram(program.structure, data), cleaned


def _measure_finite(program: ConeProgram, x: Tensor, s: Tensor, z: Tensor) -> Residuals:
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


def certificates(program: ConeProgram, x: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    """Which elements carry a proof that they are infeasible, and which that they are unbounded, (B,) each.

    z in K* with A'z = 0, b'z < 0 proves that no x is feasible (Farkas); x with Px = 0, -Ax in K, q'x < 0 that the
    objective falls forever along x. Up to `CERTIFICATE_TOLERANCE`, relative to b'z or q'x (no x with |x|_1 up to its
    inverse is feasible) and relative to z or x themselves: one large entry of b or q is not a proof.

    Args:
        program: the numbers, batch B.
        x: (B, n). z: (B, m), of any scale.
    """
    cones = program.structure.cones
    _, program, (x, z) = _finite_elements(program, x, z)
    farkas, descent = -(program.b * z).sum(-1), -(program.q * x).sum(-1)
    ray_z = z / torch.where(farkas > 0, farkas, torch.ones_like(farkas)).unsqueeze(-1)
    ray_x = x / torch.where(descent > 0, descent, torch.ones_like(descent)).unsqueeze(-1)
    Ax = program.A_times(ray_x)
    off_z = torch.maximum(_norm(program.At_times(ray_z)), _norm(ray_z - cones.project_dual(ray_z)))
    off_x = torch.maximum(_norm(program.P_times(ray_x)), _norm(-Ax - cones.project(-Ax)))
    infeasible = (farkas > 0) & (off_z < CERTIFICATE_TOLERANCE * _norm(ray_z).clamp(max=1))
    return infeasible, (descent > 0) & (off_x < CERTIFICATE_TOLERANCE * _norm(ray_x).clamp(max=1))


def contradictory_equalities(program: ConeProgram) -> Tensor:
    """Which elements have equalities that contradict each other, (B,): interior-point methods may stall on those.

    The least-squares residual r of A0 x = b0 satisfies A0'r = 0 and b0'r = |r|^2, so z = -r proves it.
    """
    rows = program.structure.cones.zero
    if rows == 0 or program.batch == 0:
        return torch.zeros(program.batch, dtype=torch.bool, device=program.data.device)
    _, program, _ = _finite_elements(program)
    A, b = program.dense_A()[:, :rows], program.b[:, :rows].unsqueeze(-1)
    z = torch.zeros_like(program.b)
    z[:, :rows] = -(b - A @ (torch.linalg.pinv(A) @ b)).squeeze(-1)
    return certificates(program, torch.zeros_like(program.q), z)[0]


@dataclass
class DerivativeReport:
    """What is known of the last derivative taken at a solution; empty until one is.

    Attributes:
        residual: relative residual of the derivative's linear system, (B,).
        rank_deficient: whether the system was singular and its minimum-norm solution was returned, (B,).
        locally_constant: whether the gradient in q is zero up to rounding although the cotangent of the solution is
            not, (B,), as at a vertex of a linear program; known after a reverse pass.
    """

    residual: Tensor | None = None
    rank_deficient: Tensor | None = None
    locally_constant: Tensor | None = None
    # Set by who knows that no residual is worth looking at.
    all_accurate: bool = False

    PER_ELEMENT: ClassVar = ("residual", "rank_deficient", "locally_constant")


@dataclass(frozen=True, eq=False)
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
        rescued: elements on which the engine stalled and which it handed to a second one, (B,); None for none of them.
            Whether that one solved them is in `status`.
        relaxed: elements without a feasible point that were replaced by the closest feasible problem, (B,), and
        violation: the norm of the shift that it took, zero for the others, (B,); None where nobody asked for it.
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
    rescued: Tensor | None = None
    relaxed: Tensor | None = None
    violation: Tensor | None = None

    @property
    def solved(self) -> Tensor:
        """Boolean mask (B,)."""
        return self.status == int(Status.SOLVED)

    @cached_property
    def all_solved(self) -> bool:
        """Whether every element is."""
        return not bool(self.status.any())

    def plain(self) -> "Solution":
        """The same as a value that `replace` can work on."""
        return self

    def put(self, indices: Tensor, residuals: Residuals, **parts: Tensor) -> "Solution":
        """The solution with other rows of the named fields at some elements."""
        plain = self.plain()
        written = {name: put(getattr(plain, name), indices, new) for name, new in parts.items()}
        return replace(plain, residuals=plain.residuals.put(indices, residuals), **written)  # type: ignore[arg-type]


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
    """Make a Solution, by measurement where a claim can be measured.

    An element is SOLVED if and only if it was not certified infeasible or unbounded and its measured residuals are
    within `TOLERANCE_FACTOR` times the tolerance: a solver that says "solved" far from it is INACCURATE, one that ran
    out of iterations on top of the solution is SOLVED. One that stopped for another reason on top of a certificate is
    what the certificate proves.

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
    unclear = torch.where(claimed == int(Status.SOLVED), int(Status.INACCURATE), claimed)
    if bool((~certified & ~accurate).any()):
        infeasible, unbounded = certificates(program, x, z)
        open_elements = (~certified & ~accurate & ~infeasible & ~unbounded).nonzero().squeeze(-1)
        infeasible = infeasible.index_copy(0, open_elements, contradictory_equalities(program.select(open_elements)))
        unclear = torch.where(unbounded, int(Status.DUAL_INFEASIBLE), unclear)
        unclear = torch.where(infeasible, int(Status.PRIMAL_INFEASIBLE), unclear)
    status = torch.where(certified, claimed, torch.where(accurate, int(Status.SOLVED), unclear))
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
