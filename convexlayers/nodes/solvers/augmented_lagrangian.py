"""The method of multipliers, for nodes with constraints whose quadratic programs are dear: large y, many constraints.

Each step minimizes, without constraints and from the last point,

    L(y) = f + sum_h (lam h + rho/2 h^2) + sum_g (max(0, lam + rho g)^2 - lam^2) / (2 rho)

and then moves the multipliers, lam <- lam + rho h and lam <- max(0, lam + rho g); rho grows where the violation does
not fall (Hestenes, 1969; Powell, 1969; Rockafellar, 1973; Birgin, Martinez, "Practical augmented Lagrangian methods",
2014). Objective and constraints are scaled by their gradients first, so that rho has no units. Every element has its
own multipliers, its own rho and its own end.
"""

from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor

from convexlayers.nodes.multipliers import distances
from convexlayers.nodes.point import Outcome
from convexlayers.nodes.problem import BoundProblem, Problem
from convexlayers.nodes.solvers.base import NodeSolver, claim
from convexlayers.nodes.solvers.newton import Newton
from convexlayers.status import Status

# rho grows by the first where the violation is above the second times the one before, up to the third.
GROWTH, SUFFICIENT, LARGEST_PENALTY = 10.0, 0.25, 1e9
# A step that ends further away than this, relative to where it began, ran off: rho was too small.
FAR = 1e6


@dataclass(frozen=True)
class AugmentedLagrangian:
    """The method of multipliers around a solver for nodes without constraints.

    Args:
        tolerance: relative, of stationarity, feasibility and complementarity.
        max_iterations: updates of the multipliers per element.
        penalty: rho at the start.
        inner: solver of the steps. Where Hessians are too dear, `LBFGS(tolerance=1e-3)`: each step then ends when the
            gradient is a thousandth of what it was.
    """

    constrained: ClassVar[bool] = True

    tolerance: float = 1e-7
    max_iterations: int = 60
    penalty: float = 10.0
    inner: NodeSolver = field(default_factory=Newton)

    def solve(self, problem: BoundProblem, start: Tensor) -> Outcome:
        """From `start`, (B, n). Iterations are those of the inner solver."""
        unit = _units(problem, start)
        at = _State(start, problem.constraints(start) * 0, torch.full_like(unit.objective, self.penalty), unit)
        iterations = torch.zeros(len(start), dtype=torch.int64, device=start.device)
        done, stuck = torch.zeros_like(iterations, dtype=torch.bool), ~_finite(problem, at)
        before = torch.full_like(unit.objective, float("inf"))
        for _ in range(self.max_iterations):
            moving = ~done & ~stuck
            if not bool(moving.any()):
                break
            found = self.inner.solve(_subproblem(problem, at, moving), at.y)
            iterations += found.iterations * moving
            reached = moving & found.y.isfinite().all(1) & (_size(found.y) <= FAR * _size(at.y))
            at, shift = _updated(problem, at, found.y, reached)
            slow = moving & ~(reached & (shift <= SUFFICIENT * before))
            before = torch.where(reached, shift, before)
            done = done | (reached & (_residual(problem, at) <= self.tolerance))
            stuck = stuck | (slow & ~done & (at.penalty >= LARGEST_PENALTY))
            at = replace(at, penalty=torch.where(slow & ~done & ~stuck, GROWTH * at.penalty, at.penalty))
        infeasible = ~done & (_violation(problem, at) > self.tolerance)
        status = torch.where(infeasible & stuck, int(Status.PRIMAL_INFEASIBLE), claim(done, stuck))
        return Outcome(at.y, status, iterations)


@dataclass(frozen=True, eq=False)
class _Units:
    """What the objective, (B,), and the constraints, (B, m), are divided by."""

    objective: Tensor
    constraints: Tensor


@dataclass(frozen=True, eq=False)
class _State:
    """y (B, n); multipliers of the scaled problem (B, m); rho (B,)."""

    y: Tensor
    lam: Tensor
    penalty: Tensor
    unit: _Units


def _units(problem: BoundProblem, start: Tensor) -> _Units:
    """Sizes of gradients at the start and beside it: at one point alone they may vanish."""
    beside = start + _size(start).unsqueeze(1) / start.shape[1] ** 0.5
    gradients = torch.stack([problem.gradient(y).abs().amax(1).nan_to_num(0, 0, 0) for y in (start, beside)])
    rows = torch.stack([problem.jacobian(y).norm(dim=2).nan_to_num(0, 0, 0) for y in (start, beside)])
    units = (part.amax(0) for part in (gradients, rows))
    return _Units(*(torch.where(unit > 0, unit, torch.ones_like(unit)) for unit in units))


def _size(y: Tensor) -> Tensor:
    return y.abs().amax(1).clamp(min=1)


def _finite(problem: BoundProblem, at: _State) -> Tensor:
    parts = torch.cat([problem.values(at.y).unsqueeze(1), problem.gradient(at.y), problem.constraints(at.y)], 1)
    return parts.isfinite().all(1)


def _subproblem(problem: BoundProblem, at: _State, moving: Tensor) -> BoundProblem:
    """The step's problem; constant, so that it ends at once, in elements that have stopped."""
    inner, p = problem.problem, problem.equalities

    def objective(*arguments: Tensor) -> Tensor:
        *xs, lam, rho, by_f, by_c, weight, y = arguments
        flat = y.reshape(len(y), -1)
        c, rho = inner.constraints(xs, flat) / by_c, rho.unsqueeze(1)
        h, g = c[:, :p], torch.relu(lam[:, p:] + rho * c[:, p:])
        equal = (lam[:, :p] * h + 0.5 * rho * h * h).sum(1)
        below = (0.5 * (g * g - lam[:, p:] ** 2) / rho).sum(1)
        return weight * (inner.values(xs, flat) / by_f + equal + below)

    given = (at.lam, at.penalty, at.unit.objective, at.unit.constraints, moving.to(at.y.dtype))
    return BoundProblem(Problem(objective, None, None, inner.shape, True), (*problem.xs, *given), 0)


def _updated(problem: BoundProblem, at: _State, y: Tensor, reached: Tensor) -> tuple[_State, Tensor]:
    """The next point and its multipliers; and how far these moved, over rho: violation and complementarity, (B,)."""
    p, rho = problem.equalities, at.penalty.unsqueeze(1)
    lam = at.lam + rho * problem.constraints(y) / at.unit.constraints
    lam = torch.cat([lam[:, :p], lam[:, p:].clamp(min=0)], 1)
    shift = ((lam - at.lam).abs() / rho).amax(1)
    keep = reached.unsqueeze(1)
    return replace(at, y=torch.where(keep, y, at.y), lam=torch.where(keep, lam, at.lam)), shift


def _violation(problem: BoundProblem, at: _State) -> Tensor:
    p, c = problem.equalities, problem.constraints(at.y)
    off = torch.cat([c[:, :p], c[:, p:].clamp(min=0)], 1)
    return distances(off, problem.jacobian(at.y).norm(dim=2), at.y).amax(1)


def _residual(problem: BoundProblem, at: _State) -> Tensor:
    """Stationarity, violation and complementarity, relative, (B,)."""
    p, c, A = problem.equalities, problem.constraints(at.y), problem.jacobian(at.y)
    gradient, norms = problem.gradient(at.y), A.norm(dim=2)
    lam = at.lam * (at.unit.objective.unsqueeze(1) / at.unit.constraints)
    size = torch.maximum(gradient.abs().amax(1), at.unit.objective)
    slope = (gradient + (A.mT @ lam.unsqueeze(2)).squeeze(2)).abs().amax(1) / size
    away = distances(c, norms, at.y)
    both = torch.minimum(lam.abs() * norms / size.unsqueeze(1), away)[:, p:]
    off = torch.cat([away[:, :p], torch.where(c[:, p:] > 0, away[:, p:], torch.zeros_like(away[:, p:]))], 1)
    return torch.cat([slope.unsqueeze(1), both, off], 1).amax(1)
