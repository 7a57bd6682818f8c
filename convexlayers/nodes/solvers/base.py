"""What a solver of a node is, and what those here share: every element has its own step length and its own end."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from convexlayers.nodes.point import Outcome
from convexlayers.nodes.problem import BoundProblem
from convexlayers.status import Status

# Sufficient decrease (Armijo), halvings of a step, and what counts as no change of a value.
DECREASE = 1e-4
HALVINGS = 40
ROUNDING = 1e-14


class NodeSolver(Protocol):
    """Finds a local solution in every element of a block.

    Attributes:
        constrained: whether it can have constraints.
    """

    constrained: ClassVar[bool]

    @property
    def tolerance(self) -> float:
        """Relative accuracy of stationarity and feasibility."""
        ...

    def solve(self, problem: BoundProblem, start: Tensor) -> Outcome:
        """From `start`, (B, n). What it says is measured afterwards, so it may be wrong about its success."""
        ...


@dataclass(frozen=True, eq=False)
class Search:
    """A step that was accepted.

    Attributes:
        y: the new point, (B, n); the old one where no step was accepted.
        accepted: (B,).
    """

    y: Tensor
    accepted: Tensor


def backtrack(
    merit: Callable[[Tensor], Tensor],
    y: Tensor,
    step: Tensor,
    value: Tensor,
    slope: Tensor,
    searching: Tensor,
    accept: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> Search:
    """Halve the step until the merit function falls enough, in each element by itself.

    Args:
        merit: (B, n) -> (B,); a value that is not a number is refused.
        y, step: (B, n). value: merit at y, (B,). slope: its derivative along the step, (B,), negative.
        searching: elements that want a step, (B,).
        accept: (point, its merit) -> (B,), another reason to accept the full step.
    """
    length = torch.ones_like(value)
    accepted, found = torch.zeros_like(searching), y
    for trial in range(HALVINGS):
        point = y + length.unsqueeze(1) * step
        new = merit(point)
        good = new <= value + DECREASE * length * slope
        if trial == 0 and accept is not None:
            good = good | (new.isfinite() & accept(point, new))
        good = good & searching & ~accepted
        found = torch.where(good.unsqueeze(1), point, found)
        accepted = accepted | good
        if bool((accepted | ~searching).all()):
            break
        length = torch.where(accepted, length, 0.5 * length)
    return Search(found, accepted)


def claim(done: Tensor, stuck: Tensor) -> Tensor:
    """Status codes: solved, no step found, or out of iterations."""
    status = torch.where(stuck, int(Status.NUMERICAL_ERROR), int(Status.MAX_ITERATIONS))
    return torch.where(done, int(Status.SOLVED), status)


def relative_slope(gradient: Tensor, H: Tensor, y: Tensor) -> Tensor:
    """The stationarity of `convexlayers.nodes.point`, without constraints, (B,)."""
    size = gradient.abs().amax(1) + H.abs().amax((1, 2)) * y.abs().amax(1).clamp(min=1)
    return gradient.abs().amax(1) / torch.where(size > 0, size, torch.ones_like(size))


def positive_part(H: Tensor, floor: float) -> tuple[Tensor, Tensor]:
    """Eigenvalues (B, n) and vectors of H with negative eigenvalues mirrored and small ones raised to a share of the
    largest; identity in elements that are not finite."""
    finite = H.flatten(1).isfinite().all(1)
    eye = torch.eye(H.shape[1], dtype=H.dtype, device=H.device)
    values, Q = torch.linalg.eigh(torch.where(finite.reshape(-1, 1, 1), H, eye))
    values = values.abs()
    largest = values.amax(1, keepdim=True)
    largest = torch.where(largest > 0, largest, torch.ones_like(largest))
    return values.clamp(min=floor * largest), Q
