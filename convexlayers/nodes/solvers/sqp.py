"""Sequential quadratic programming with line search, for nodes with constraints.

Each step solves, for the elements that are not done and in one batch of the library's own solver,

    minimize 1/2 d'Bd + grad f'd    subject to    h + A_h d = 0,  g + A_g d <= 0

with B the Hessian of the Lagrangian made positive definite, and, where that has no solution, the same with every
constraint relaxed at the price rho (Nocedal, Wright, "Numerical optimization", 2006, section 18.5; Fletcher's Sl1QP).
The merit function is f + rho (|h|_1 + |max(g, 0)|_1), rho above the multipliers. A full step that halves the residual
of the optimality conditions is taken whatever the merit says, so that curved constraints do not shorten the last steps
(Maratos' effect).
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from convexlayers.functional import solve_qp
from convexlayers.nodes.kkt import factor
from convexlayers.nodes.multipliers import distances
from convexlayers.nodes.point import Outcome
from convexlayers.nodes.problem import BoundProblem
from convexlayers.nodes.solvers.base import backtrack, claim, positive_part
from convexlayers.status import Status

# Curvatures below this share of the scale are none, and get this one instead.
FLAT, PROXIMAL = 1e-8, 1e-2
# Weight of the squared active constraints in B where the Hessian alone is not positive definite.
CONVEXIFY = 10.0
LARGEST_PENALTY = 1e10
# Entries of B below this share of their diagonal entries are left out: it is a model, and these are mostly rounding.
NEGLIGIBLE = 1e-9
QP_TOLERANCE = 1e-9
# Relative residual above which linearized equalities have no solution.
CONTRADICTION = 1e-6
# Constraints that hold up to rounding hold.
ROUNDING = 1e-13


@dataclass(frozen=True, eq=False)
class _Iterate:
    """A point and what the next step needs. lam (B, m), penalty (B,), relaxed: last step needed slacks, (B,)."""

    y: Tensor
    lam: Tensor
    penalty: Tensor
    relaxed: Tensor
    gradient: Tensor
    A: Tensor
    c: Tensor
    H: Tensor


@dataclass(frozen=True)
class SQP:
    """Sequential quadratic programming.

    Args:
        tolerance: relative, of stationarity, feasibility and complementarity.
        max_iterations: per element.
        penalty: rho at the start.
    """

    constrained: ClassVar[bool] = True

    tolerance: float = 1e-8
    max_iterations: int = 100
    penalty: float = 1.0

    def solve(self, problem: BoundProblem, start: Tensor) -> Outcome:
        """From `start`, (B, n)."""
        p, m = problem.equalities, problem.constraints(start).shape[1]
        lam, price = start.new_zeros(len(start), m), torch.full_like(start[:, 0], self.penalty)
        iterations = torch.zeros(len(start), dtype=torch.int64, device=start.device)
        done, stuck, relaxed = (torch.zeros_like(iterations, dtype=torch.bool) for _ in range(3))
        at = _evaluate(problem, start, lam, price, relaxed)
        for _ in range(self.max_iterations):
            stuck = stuck | ~_finite(at)
            done = done | (~stuck & (_residual(at, p) <= self.tolerance))
            moving = ~done & ~stuck
            if not bool(moving.any()):
                break
            iterations += moving
            at, accepted = _step(problem, at, moving)
            stuck = stuck | (moving & ~accepted)
        status = claim(done, stuck)
        infeasible = ~done & at.relaxed & (_violation(at, p) > self.tolerance)
        status = torch.where(infeasible, int(Status.PRIMAL_INFEASIBLE), status)
        return Outcome(at.y, status, iterations, None)


def _evaluate(problem: BoundProblem, y: Tensor, lam: Tensor, penalty: Tensor, relaxed: Tensor) -> _Iterate:
    gradient, A, c = problem.gradient(y), problem.jacobian(y), problem.constraints(y)
    return _Iterate(y, lam, penalty, relaxed, gradient, A, c, problem.hessian(y, lam))


def _finite(at: _Iterate) -> Tensor:
    parts = torch.cat([at.y, at.gradient, at.c, at.A.flatten(1), at.H.flatten(1)], 1)
    return parts.isfinite().all(1)


def _slope(gradient: Tensor, A: Tensor, lam: Tensor) -> Tensor:
    return gradient + (A.mT @ lam.unsqueeze(2)).squeeze(2)


def _violation(at: _Iterate, p: int) -> Tensor:
    off = torch.cat([at.c[:, :p], at.c[:, p:].clamp(min=0)], 1)
    return distances(off, at.A.norm(dim=2), at.y).amax(1)


def _scale(at: _Iterate) -> Tensor:
    """Of gradients, (B,)."""
    size = at.gradient.abs().amax(1) + at.H.abs().amax((1, 2)) * at.y.abs().amax(1).clamp(min=1)
    return torch.where(size > 0, size, torch.ones_like(size))


def _residual(at: _Iterate, p: int) -> Tensor:
    """Stationarity, violation and complementarity, (B,)."""
    norms, size = at.A.norm(dim=2), _scale(at)
    slope = _slope(at.gradient, at.A, at.lam).abs().amax(1) / size
    push = at.lam * norms / size.unsqueeze(1)
    both = torch.minimum(push.abs(), distances(at.c, norms, at.y))[:, p:]
    complementarity = both.amax(1) if both.shape[1] else torch.zeros_like(slope)
    return torch.maximum(torch.maximum(slope, _violation(at, p)), complementarity)


def _convex(at: _Iterate) -> Tensor:
    """B: the Hessian where it is positive definite; otherwise with the squares of the constraints that push added,
    which changes nothing along them, and with what is still negative mirrored."""
    reach = at.gradient.abs().amax(1) / at.y.abs().amax(1).clamp(min=1)
    H = at.H
    largest = H.abs().amax((1, 2))
    norms = at.A.norm(dim=2)
    rows = at.A / torch.where(norms > 0, norms, torch.ones_like(norms)).unsqueeze(2) * (at.lam != 0).unsqueeze(2)
    indefinite = torch.linalg.eigvalsh(H).amin(1) <= FLAT * largest
    weight = torch.where(indefinite, CONVEXIFY * largest, torch.zeros_like(largest))
    values, Q = positive_part(H + weight.reshape(-1, 1, 1) * (rows.mT @ rows), 0.0)
    reference = torch.where(largest > FLAT * reach, largest, reach).unsqueeze(1)
    reference = torch.where(reference > 0, reference, torch.ones_like(reference))
    proximal = torch.where(largest.unsqueeze(1) > FLAT * reach.unsqueeze(1), PROXIMAL, 1.0) * reference
    values = torch.where(values > FLAT * reference, values, proximal)
    B = (Q * values.unsqueeze(1)) @ Q.mT
    B = 0.5 * (B + B.mT)
    # Rounding in place of zeros would give the quadratic program entries of every size to be scaled by.
    root = torch.diagonal(B, dim1=1, dim2=2).sqrt()
    return torch.where(B.abs() > NEGLIGIBLE * root.unsqueeze(2) * root.unsqueeze(1), B, torch.zeros_like(B))


def _step(problem: BoundProblem, at: _Iterate, moving: Tensor) -> tuple[_Iterate, Tensor]:
    p = problem.equalities
    # Elements that have stopped may hold anything.
    clean = replace(at, **{name: _masked(moving, getattr(at, name)) for name in ("y", "gradient", "A", "c", "H")})
    d, lam, relaxed, solved = _directions(_convex(clean), at, moving, p)
    pushed = 1.5 * lam.abs().amax(1)
    penalty = torch.where(moving, torch.maximum(at.penalty, pushed), at.penalty)
    penalty = torch.where(moving & relaxed, 10 * penalty, penalty).clamp(max=LARGEST_PENALTY)

    def merit(point: Tensor) -> Tensor:
        return problem.values(point) + penalty * _total(problem.constraints(point), p)

    linear = at.c + (at.A @ d.unsqueeze(2)).squeeze(2)
    slope = (at.gradient * d).sum(1) + penalty * (_total(linear, p) - _total(at.c, p))
    accept = _halves_residual(problem, at, lam)
    found = backtrack(merit, at.y, d, merit(at.y), slope, moving & solved, accept)
    keep = found.accepted.unsqueeze(1)
    # Multipliers are those of the step even where it is too long: they are the best known.
    new_lam = torch.where(keep, lam, at.lam)
    return _evaluate(problem, found.y, new_lam, penalty, torch.where(moving, relaxed, at.relaxed)), found.accepted


def _total(c: Tensor, p: int) -> Tensor:
    return c[:, :p].abs().sum(1) + c[:, p:].clamp(min=0).sum(1)


def _halves_residual(problem: BoundProblem, at: _Iterate, lam: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    """Whether the full step halves stationarity and violation, in the units of the point before."""
    p, size = problem.equalities, _scale(at)

    def residual(gradient: Tensor, A: Tensor, c: Tensor, multipliers: Tensor) -> Tensor:
        slope = _slope(gradient, A, multipliers).abs().amax(1) / size
        off = torch.cat([c[:, :p], c[:, p:].clamp(min=0)], 1)
        return torch.maximum(slope, distances(off, at.A.norm(dim=2), at.y).amax(1))

    before = residual(at.gradient, at.A, at.c, at.lam)

    def accept(point: Tensor, _: Tensor) -> Tensor:
        after = residual(problem.gradient(point), problem.jacobian(point), problem.constraints(point), lam)
        return after <= 0.5 * before

    return accept


def _directions(B: Tensor, at: _Iterate, moving: Tensor, p: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Steps (B, n), multipliers (B, m), which needed slacks (B,), and which were found (B,).

    The active set of the last step comes first: near the solution it does not change, and one linear system will do.
    """
    d, lam, solved = _active_set_qp(B, at, moving, p)
    relaxed = torch.zeros_like(solved)
    for solve in (_plain_qp, _relaxed_qp):
        rest = (moving & ~solved).nonzero().squeeze(1)
        if len(rest) == 0:
            break
        relaxed[rest] = solve is _relaxed_qp
        if solve is _relaxed_qp or at.c.shape[1] > p:
            parts = (B[rest], at.gradient[rest], at.A[rest], at.c[rest])
            d[rest], lam[rest], solved[rest] = solve(*parts, p, at.penalty[rest])
    return d, lam, relaxed, solved


def _active_set_qp(B: Tensor, at: _Iterate, moving: Tensor, p: int) -> tuple[Tensor, Tensor, Tensor]:
    """The solution with the equalities and the inequalities that push now; found where it is one.

    In least squares where constraints are redundant, and not found where they contradict.
    """
    gradient, A, c = (_masked(moving, part) for part in (at.gradient, at.A, at.c))
    active = at.lam > 0
    active[:, :p] = True
    solution, residual = factor(B, A, active).solve(-torch.cat([gradient, c * active], 1))
    d, lam, good = _cleaned(solution[:, : B.shape[1]], [solution[:, B.shape[1] :] * active])
    linear = (c + (A @ d.unsqueeze(2)).squeeze(2))[:, p:]
    allowed = ROUNDING * (A.norm(dim=2) * (at.y.abs() + d.abs()).amax(1, keepdim=True).clamp(min=1))[:, p:]
    holds = (linear <= allowed).all(1) & (lam[:, p:] >= 0).all(1)
    return d, lam, good & holds & moving & (residual <= CONTRADICTION)


def _masked(mask: Tensor, part: Tensor) -> Tensor:
    return torch.where(mask.reshape(-1, *[1] * (part.ndim - 1)), part, torch.zeros_like(part))


def _plain_qp(B: Tensor, gradient: Tensor, A: Tensor, c: Tensor, p: int, _: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    c = torch.where(c.abs() <= ROUNDING * A.norm(dim=2), torch.zeros_like(c), c)
    solution = solve_qp(
        B, gradient,
        G=A[:, p:] if A.shape[1] > p else None, h=-c[:, p:] if A.shape[1] > p else None,
        A=A[:, :p] if p else None, b=-c[:, :p] if p else None,
        on_failure="nan", validate=False, tolerance=QP_TOLERANCE,
    )  # fmt: skip
    return _cleaned(solution.x, [solution.duals[name] for name in ("A", "G") if name in solution.duals])


def _relaxed_qp(
    B: Tensor, gradient: Tensor, A: Tensor, c: Tensor, p: int, price: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """With slacks: h + A_h d = u - v, g + A_g d <= t, all nonnegative, at the price rho each."""
    batch, m, n = A.shape
    q, count = m - p, p + m
    quadratic = torch.zeros(batch, n + count, n + count, dtype=B.dtype, device=B.device)
    quadratic[:, :n, :n] = B
    linear = torch.cat([gradient, price.unsqueeze(1).expand(-1, count)], 1)
    eye = torch.eye(count, dtype=B.dtype, device=B.device)
    slacks = torch.cat([eye[p : 2 * p] - eye[:p], -eye[2 * p :]], 0).expand(batch, m, count)
    extended = torch.cat([A, slacks], 2)
    free = torch.full((n,), -1e20, dtype=B.dtype, device=B.device)
    lower = torch.cat([free, free.new_zeros(count)])
    solution = solve_qp(
        quadratic, linear,
        G=extended[:, p:] if q else None, h=-c[:, p:] if q else None,
        A=extended[:, :p] if p else None, b=-c[:, :p] if p else None,
        lb=lower, on_failure="nan", validate=False, tolerance=QP_TOLERANCE,
    )  # fmt: skip
    return _cleaned(solution.x[:, :n], [solution.duals[name] for name in ("A", "G") if name in solution.duals])


def _cleaned(d: Tensor, duals: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    lam = torch.cat(duals, 1)
    good = d.isfinite().all(1) & lam.isfinite().all(1)
    mask = good.unsqueeze(1)
    return torch.where(mask, d, torch.zeros_like(d)), torch.where(mask, lam, torch.zeros_like(lam)), good
