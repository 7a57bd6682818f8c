"""The method of Levenberg and Marquardt, for objectives 1/2 |r(x, y)|^2 without constraints.

Each element has its own damping, updated by the ratio of the actual to the predicted decrease (Nielsen, "Damping
parameter in Marquardt's method", 1999).
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from convexlayers.nodes.point import Outcome
from convexlayers.nodes.problem import BoundProblem, row_jacobian
from convexlayers.nodes.solvers.base import ROUNDING, claim

# A cosine between residuals and columns below which the exact Hessian is better than Gauss-Newton's, where it is known:
# with residuals that do not vanish Gauss-Newton converges linearly only.
NEAR = 0.1
LARGEST_DAMPING = 1e15


class Model(Protocol):
    """An objective f = 1/2 |r|^2, or one that is nearly that, over a block."""

    def quadratic(self, y: Tensor, exact: Tensor, /) -> tuple[Tensor, Tensor, Tensor]:
        """f, (B,), its gradient, (B, n), and a Hessian, (B, n, n): Gauss-Newton's, or the exact one in the mask."""
        ...


@dataclass(frozen=True, eq=False)
class Residuals:
    """The `Model` of residuals (B, n) -> (B, k), by automatic differentiation; always Gauss-Newton's Hessian."""

    function: Callable[[Tensor], Tensor]

    def quadratic(self, y: Tensor, exact: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """f, J'r, J'J."""
        r, J = self.function(y), row_jacobian(self.function, y)
        return 0.5 * r.square().sum(1), (J.mT @ r.unsqueeze(2)).squeeze(2), J.mT @ J


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

        return minimize(Residuals(residuals), start, self.tolerance, self.max_iterations, self.damping)


@dataclass(frozen=True, eq=False)
class _State:
    """y (B, n) and the model there; damping, its growth, iterations (B,); done, stuck, (B,)."""

    y: Tensor
    value: Tensor
    slope: Tensor
    N: Tensor
    mu: Tensor
    growth: Tensor
    iterations: Tensor
    done: Tensor
    stuck: Tensor

    def steep(self, share: float) -> Tensor:
        """Whether a cosine between residuals and columns of their Jacobian is above `share`, (B,)."""
        size = (torch.diagonal(self.N, dim1=1, dim2=2).abs() * 2 * self.value.unsqueeze(1)).sqrt()
        return (self.slope.abs() > share * size).any(1)


def minimize(model: Model, start: Tensor, tolerance: float, max_iterations: int, damping: float) -> Outcome:
    """Levenberg's and Marquardt's steps on a model, from `start`, (B, n)."""
    iterations = torch.zeros(len(start), dtype=torch.int64, device=start.device)
    none = torch.zeros_like(iterations, dtype=torch.bool)
    mu = torch.full_like(start[:, 0], damping)
    value, slope, N = model.quadratic(start, none)
    stuck = ~value.isfinite()
    at = _State(start, value, slope, N, mu, torch.full_like(mu, 2.0), iterations, none, stuck)
    for _ in range(max_iterations):
        at = replace(at, done=at.done | (~at.stuck & ~at.steep(tolerance)))
        if bool((at.done | at.stuck).all()):
            break
        at = _advance(model, at)
    return Outcome(at.y, claim(at.done, at.stuck), at.iterations)


def _advance(model: Model, at: _State) -> _State:
    """One step, taken where it lowers the objective."""
    moving = ~at.done & ~at.stuck
    step, weights, usable = _step(at.N, at.slope, at.mu)
    value, slope, N = model.quadratic(at.y + step, ~at.steep(NEAR))
    predicted = 0.5 * (step * (at.mu.unsqueeze(1) * weights * step - at.slope)).sum(1)
    gain = (at.value - value) / torch.where(predicted > 0, predicted, torch.ones_like(predicted))
    better = moving & (gain > 0) & (predicted > 0) & value.isfinite()
    # Where the model promises less than rounding, the objective has nothing more to say.
    flat = moving & usable & ~better & (predicted.abs() <= ROUNDING * at.value)
    small = step.abs().amax(1) <= ROUNDING * (at.y.abs().amax(1) + ROUNDING)
    hopeless = torch.where(usable, small, at.mu >= LARGEST_DAMPING)
    shrink = torch.clamp(1 - (2 * gain - 1) ** 3, min=1 / 3)
    worse = moving & ~better
    mu = torch.where(better, at.mu * shrink, torch.where(worse, at.mu * at.growth, at.mu))
    return _State(
        y=torch.where(better.unsqueeze(1), at.y + step, at.y),
        value=torch.where(better, value, at.value),
        slope=torch.where(better.unsqueeze(1), slope, at.slope),
        N=torch.where(better.reshape(-1, 1, 1), N, at.N),
        mu=mu.clamp(1e-15, LARGEST_DAMPING),
        growth=torch.where(better, torch.full_like(at.growth, 2.0), torch.where(worse, 2 * at.growth, at.growth)),
        iterations=at.iterations + moving,
        done=at.done | flat,
        stuck=at.stuck | (worse & ~flat & hopeless),
    )


def _step(N: Tensor, slope: Tensor, mu: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(N + mu diag(weights)) step = -slope; weights: diagonal of N, made positive, (B, n); and which are usable, (B,).

    The step is zero where the matrix is not positive definite: more damping is needed.
    """
    weights = torch.diagonal(N, dim1=1, dim2=2).abs()
    largest = weights.amax(1, keepdim=True)
    weights = torch.maximum(weights, 1e-12 * torch.where(largest > 0, largest, torch.ones_like(largest)))
    N = N + torch.diag_embed(mu.unsqueeze(1) * weights)
    finite = N.flatten(1).isfinite().all(1) & slope.isfinite().all(1)
    N = torch.where(finite.reshape(-1, 1, 1), N, torch.eye(N.shape[1], dtype=N.dtype, device=N.device))
    slope = torch.where(finite.unsqueeze(1), slope, torch.zeros_like(slope))
    weights = torch.where(finite.unsqueeze(1), weights, torch.ones_like(weights))
    scale = ((1 + mu.unsqueeze(1)) * weights).rsqrt()
    L, info = torch.linalg.cholesky_ex(scale.unsqueeze(2) * N * scale.unsqueeze(1))
    step = -scale * torch.cholesky_solve((scale * slope).unsqueeze(2), L).squeeze(2)
    usable = (info == 0) & finite & step.isfinite().all(1)
    return torch.where(usable.unsqueeze(1), step, torch.zeros_like(step)), weights, usable
