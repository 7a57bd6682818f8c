"""A candidate solution judged by measurement, and taken to rounding by Newton's steps on the optimality conditions.

Who found the point does not matter. Residuals, both in units of y, so that neither the scale of the objective nor that
of a constraint shows:

    stationarity  |grad L| / (|grad f| + |H| max(1, |y|))
    violation     the largest of |h_i| / (|grad h_i| max(1, |y|)) and of the same for g_i > 0
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from convexlayers.nodes.kkt import Factor, factor
from convexlayers.nodes.multipliers import distances, find_multipliers
from convexlayers.nodes.problem import BoundProblem
from convexlayers.status import Status

# A point counts as solved up to this multiple of the tolerance.
TOLERANCE_FACTOR = 10.0
# Up to this one a point is refined even if its solver gave up.
NEAR_FACTOR = 1e3
# Newton's steps stop at this residual: below it differences are rounding.
FINE = 1e-14
# The rank is not told apart more finely than this multiple of the residual.
NOISE_FACTOR = 10.0


@dataclass(frozen=True, eq=False)
class Outcome:
    """What a solver found, for a block of elements.

    Attributes:
        y: (B, n).
        status: `Status` codes, its claim, (B,).
        iterations: (B,).
        multipliers: equalities, then inequalities, (B, m); None where the solver has none.
        start: which of several starts won, (B,); None where there was one.
    """

    y: Tensor
    status: Tensor
    iterations: Tensor
    multipliers: Tensor | None = None
    start: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Point:
    """A point and what holds there.

    Attributes:
        y: (B, n). lam: (B, m), multipliers. active: (B, m), which constraints are.
        values: of the objective, (B,).
        stationarity, violation: residuals, (B,).
        reference: size of the Hessians of the objective and of the constraints' part of the Lagrangian, (B,).
        weakly_active, rank_deficient, negative_curvature: (B,), see `NodeReport`.
        status: `Status` codes, (B,). iterations: (B,). start: (B,).
    """

    y: Tensor
    lam: Tensor
    active: Tensor
    values: Tensor
    stationarity: Tensor
    violation: Tensor
    reference: Tensor
    weakly_active: Tensor
    rank_deficient: Tensor
    negative_curvature: Tensor
    status: Tensor
    iterations: Tensor
    start: Tensor

    @property
    def residual(self) -> Tensor:
        """The larger one, (B,); infinite where it is not a number."""
        found = torch.maximum(self.stationarity, self.violation)
        return torch.where(found.isnan(), torch.full_like(found, float("inf")), found)

    @property
    def noise(self) -> Tensor:
        """Relative error of the derivative's linear system, and the size of the terms of H, (B, 2)."""
        return torch.stack([NOISE_FACTOR * self.stationarity, self.reference], 1)

    def where(self, mask: Tensor, other: "Point") -> "Point":
        """This point in the elements of the mask, the other one elsewhere."""
        parts = {name: _where(mask, getattr(self, name), getattr(other, name)) for name in self.__dataclass_fields__}
        return Point(**parts)


def _where(mask: Tensor, one: Tensor, other: Tensor) -> Tensor:
    return torch.where(mask.reshape(-1, *[1] * (one.ndim - 1)), one, other)


def judge(problem: BoundProblem, outcome: Outcome, tolerance: float, refinement_steps: int) -> Point:
    """Measure, refine, and decide the status.

    Args:
        problem: at the inputs of the block.
        outcome: of a solver.
        tolerance: relative accuracy that was asked of it.
        refinement_steps: Newton's steps on the optimality conditions; the best of the points is kept.
    """
    point, step = _measure(problem, outcome, tolerance, None)
    # Far from a solution the steps would go to the next stationary point of any kind.
    near = (outcome.status == int(Status.SOLVED)) | (point.residual <= NEAR_FACTOR * tolerance)
    step = _where(near, step, torch.zeros_like(step))
    for _ in range(refinement_steps):
        rough = point.residual > FINE
        if not bool((rough & (step != 0).any(1)).any()):
            break
        refined, next_step = _measure(problem, _stepped(outcome, point, step), tolerance, point)
        better = rough & (refined.residual < point.residual) & (point.negative_curvature | ~refined.negative_curvature)
        if not bool(better.any()):
            break
        point = refined.where(better, point)
        step = _where(better, next_step, torch.zeros_like(step))
    accurate = point.residual <= TOLERANCE_FACTOR * tolerance
    claim = torch.where(outcome.status == int(Status.SOLVED), int(Status.INACCURATE), outcome.status)
    certain = outcome.status == int(Status.INVALID_DATA)
    return replace(point, status=torch.where(accurate & ~certain, int(Status.SOLVED), claim))


def _stepped(outcome: Outcome, point: Point, step: Tensor) -> Outcome:
    n = point.y.shape[1]
    return replace(outcome, y=point.y + step[:, :n], multipliers=point.lam + step[:, n:] * point.active)


def _measure(problem: BoundProblem, outcome: Outcome, tolerance: float, before: Point | None) -> tuple[Point, Tensor]:
    """The point, and Newton's step (dy, dlam) from it, (B, n + m): K (dy, dlam) = -(grad L, c of active rows).

    before: the point that this one was refined from, whose active set stays.
    """
    y, p = outcome.y, problem.equalities
    gradient, A, c = problem.gradient(y), problem.jacobian(y), problem.constraints(y)
    finite = torch.cat([y, gradient, A.flatten(1), c], 1).isfinite().all(1)
    gradient, A, c = (_where(finite, part, torch.zeros_like(part)) for part in (gradient, A, c))
    point = torch.where(finite.unsqueeze(1), y, torch.zeros_like(y))
    reference = scale = torch.zeros_like(gradient[:, 0])
    alone = None
    if c.shape[1]:
        alone = problem.objective_hessian(y)
        reference = alone.abs().amax((1, 2)).nan_to_num(1.0)
        scale = gradient.abs().amax(1) + reference * point.abs().amax(1).clamp(min=1)
    if before is None or outcome.multipliers is None:
        found = find_multipliers(gradient, A, c, point, scale, p, tolerance, outcome.multipliers)
        lam, active, weak = found.lam, found.active, found.weakly_active
    else:
        lam, active, weak = outcome.multipliers, before.active, before.weakly_active
    H = problem.hessian(y, lam)
    part = H if alone is None else H - alone
    reference = torch.maximum(reference, part.abs().amax((1, 2)).nan_to_num(1.0))
    finite = finite & H.flatten(1).isfinite().all(1)
    H = _where(finite, H, torch.eye(H.shape[1], dtype=H.dtype, device=H.device).expand_as(H))
    slope = gradient + (A.mT @ lam.unsqueeze(2)).squeeze(2)
    size = gradient.abs().amax(1) + H.abs().amax((1, 2)) * point.abs().amax(1).clamp(min=1)
    stationarity = slope.abs().amax(1) / torch.where(size > 0, size, torch.ones_like(size))
    off = distances(torch.cat([c[:, :p], c[:, p:].clamp(min=0)], 1), A.norm(dim=2), point)
    violation = off.amax(1) if off.shape[1] else torch.zeros_like(stationarity)
    # Multipliers of the wrong sign would make any point between two constraints stationary.
    stationarity = torch.where((lam[:, p:] >= 0).all(1), stationarity, torch.ones_like(stationarity))
    system = factor(H, A, active, NOISE_FACTOR * stationarity, reference)
    step = _newton_step(system, slope, c * active)
    broken = torch.full_like(stationarity, float("nan"))
    start = torch.zeros_like(outcome.status) if outcome.start is None else outcome.start
    return Point(
        y=y, lam=lam, active=active, values=problem.values(y),
        stationarity=torch.where(finite, stationarity, broken), violation=torch.where(finite, violation, broken),
        reference=reference,
        weakly_active=weak & finite, rank_deficient=system.rank_deficient & finite,
        negative_curvature=system.negative_curvature & finite,
        status=outcome.status, iterations=outcome.iterations, start=start,
    ), step  # fmt: skip


def _newton_step(system: Factor, slope: Tensor, c: Tensor) -> Tensor:
    return system.solve(-torch.cat([slope, c], 1))[0]
