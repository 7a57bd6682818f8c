"""The method of Levenberg and Marquardt, for objectives 1/2 |r(x, y)|^2 without constraints.

Each element has its own damping, updated by the ratio of the actual to the predicted decrease (Nielsen, "Damping
parameter in Marquardt's method", 1999).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from convexlayers.nodes.point import Outcome
from convexlayers.nodes.problem import BoundProblem, row_jacobian
from convexlayers.nodes.solvers.base import ROUNDING, claim


@dataclass(frozen=True, eq=False)
class LevenbergMarquardt:
    """Levenberg-Marquardt; the objective of the node must be half the squared norm of the residuals.

    Args:
        residuals: function of (*inputs, y) of one element, as the objective is; any shape.
        tolerance: on the cosine between the residuals and the columns of their Jacobian, or on the step where the
            residuals vanish.
        max_iterations: per element.
        damping: at the start, relative to the squared columns.
    """

    constrained: ClassVar[bool] = False

    residuals: Callable[..., Tensor]
    tolerance: float = 1e-8
    max_iterations: int = 100
    damping: float = 1e-3

    def solve(self, problem: BoundProblem, start: Tensor) -> Outcome:
        """From `start`, (B, n)."""

        def residuals(point: Tensor) -> Tensor:
            return problem.apply(self.residuals, point).reshape(len(point), -1)

        y, r = start, residuals(start)
        mu, growth = torch.full_like(y[:, 0], self.damping), torch.full_like(y[:, 0], 2.0)
        iterations = torch.zeros(len(y), dtype=torch.int64, device=y.device)
        done = torch.zeros_like(iterations, dtype=torch.bool)
        stuck = ~r.isfinite().all(1)
        for _ in range(self.max_iterations):
            J = row_jacobian(residuals, y)
            slope = (J.mT @ r.unsqueeze(2)).squeeze(2)
            size = J.norm(dim=1) * r.norm(dim=1, keepdim=True)
            done = done | (~stuck & (slope.abs() <= self.tolerance * size).all(1))
            if bool((done | stuck).all()):
                break
            moving = ~done & ~stuck
            iterations += moving
            step, weights = _step(J, slope, mu)
            new = residuals(y + step)
            actual = (r * r).sum(1) - (new * new).sum(1)
            predicted = (step * (mu.unsqueeze(1) * weights * step - slope)).sum(1)
            gain = actual / torch.where(predicted > 0, predicted, torch.ones_like(predicted))
            better = moving & (gain > 0) & new.isfinite().all(1)
            small = step.abs().amax(1) <= ROUNDING * (y.abs().amax(1) + ROUNDING)
            stuck = stuck | (moving & ~better & small)
            y = torch.where(better.unsqueeze(1), y + step, y)
            r = torch.where(better.unsqueeze(1), new, r)
            shrink = torch.clamp(1 - (2 * gain - 1) ** 3, min=1 / 3)
            mu = torch.where(better, mu * shrink, torch.where(moving, mu * growth, mu)).clamp(1e-15, 1e15)
            growth = torch.where(better, torch.full_like(growth, 2.0), torch.where(moving, 2 * growth, growth))
        return Outcome(y, claim(done, stuck), iterations)


def _step(J: Tensor, slope: Tensor, mu: Tensor) -> tuple[Tensor, Tensor]:
    """(J'J + mu diag(weights)) step = -slope; weights: squared columns, (B, n)."""
    N = J.mT @ J
    weights = torch.diagonal(N, dim1=1, dim2=2)
    largest = weights.amax(1, keepdim=True)
    weights = torch.maximum(weights, 1e-12 * torch.where(largest > 0, largest, torch.ones_like(largest)))
    N = N + torch.diag_embed(mu.unsqueeze(1) * weights)
    finite = N.flatten(1).isfinite().all(1) & slope.isfinite().all(1)
    N = torch.where(finite.reshape(-1, 1, 1), N, torch.eye(N.shape[1], dtype=N.dtype, device=N.device))
    slope = torch.where(finite.unsqueeze(1), slope, torch.zeros_like(slope))
    scale = torch.diagonal(N, dim1=1, dim2=2).rsqrt()
    L, _ = torch.linalg.cholesky_ex(scale.unsqueeze(2) * N * scale.unsqueeze(1))
    return -scale * torch.cholesky_solve((scale * slope).unsqueeze(2), L).squeeze(2), weights
