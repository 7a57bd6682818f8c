"""Newton's method with line search, for nodes without constraints.

Directions of negative curvature are followed downwards: with H = Q diag(l) Q' the step is -Q diag(1 / |l|) Q' g
(Nocedal, Wright, "Numerical optimization", 2006, section 3.4), which never ends at a saddle by attraction.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from convexlayers.nodes.point import Outcome
from convexlayers.nodes.problem import BoundProblem
from convexlayers.nodes.solvers.base import ROUNDING, backtrack, claim, positive_part, relative_slope

# Curvatures below this share of the largest are raised to it.
FLOOR = 1e-12


@dataclass(frozen=True)
class Newton:
    """Newton's method: few iterations, each with a dense Hessian.

    Args:
        tolerance: relative, of stationarity.
        max_iterations: per element.
    """

    constrained: ClassVar[bool] = False

    tolerance: float = 1e-8
    max_iterations: int = 100

    def solve(self, problem: BoundProblem, start: Tensor) -> Outcome:
        """From `start`, (B, n)."""
        y, none = start, start.new_zeros(start.shape[0], problem.constraints(start).shape[1])
        iterations = torch.zeros(len(y), dtype=torch.int64, device=y.device)
        done, stuck = torch.zeros_like(iterations, dtype=torch.bool), torch.zeros_like(iterations, dtype=torch.bool)
        for _ in range(self.max_iterations):
            gradient, H = problem.gradient(y), problem.hessian(y, none)
            done = done | (~stuck & (relative_slope(gradient, H, y) <= self.tolerance))
            if bool((done | stuck).all()):
                break
            y, accepted = _step(problem, y, gradient, H, ~done & ~stuck)
            iterations += ~done & ~stuck
            stuck = stuck | (~done & ~accepted)
        return Outcome(y, claim(done, stuck), iterations)


def _step(problem: BoundProblem, y: Tensor, gradient: Tensor, H: Tensor, searching: Tensor) -> tuple[Tensor, Tensor]:
    values, Q = positive_part(H, FLOOR)
    step = -(Q @ ((Q.mT @ gradient.unsqueeze(2)) / values.unsqueeze(2))).squeeze(2)
    step = torch.where(step.isfinite().all(1, keepdim=True), step, torch.zeros_like(step))
    value, slope, size = problem.values(y), (gradient * step).sum(1), gradient.norm(dim=1)

    def flat(point: Tensor, new: Tensor) -> Tensor:
        # Near a minimum differences of values are rounding; then the gradient has to fall.
        same = (new - value).abs() <= ROUNDING * value.abs()
        return same & (problem.gradient(point).norm(dim=1) < 0.5 * size)

    found = backtrack(problem.values, y, step, value, slope, searching & (slope < 0), flat)
    return found.y, found.accepted
