"""Limited-memory BFGS, for nodes without constraints whose Hessian is dear (Nocedal, Wright, algorithm 7.4).

Every element has its own pairs, its own step length and its own end: one element's curvature says nothing about
another's.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from convexlayers.nodes.point import Outcome
from convexlayers.nodes.problem import BoundProblem
from convexlayers.nodes.solvers.base import ROUNDING, backtrack, claim

# A pair is kept where its curvature is at least this share of |s| |r|.
CURVATURE = 1e-10


@dataclass(frozen=True)
class LBFGS:
    """L-BFGS with backtracking.

    Args:
        tolerance: relative to the largest gradient seen.
        max_iterations: per element.
        memory: number of pairs.
    """

    constrained: ClassVar[bool] = False

    tolerance: float = 1e-8
    max_iterations: int = 500
    memory: int = 10

    def solve(self, problem: BoundProblem, start: Tensor) -> Outcome:
        """From `start`, (B, n)."""
        y, gradient = start, problem.gradient(start)
        steps, changes, curvature = _no_pairs(y, self.memory)
        largest = gradient.abs().amax(1)
        iterations = torch.zeros(len(y), dtype=torch.int64, device=y.device)
        done = torch.zeros_like(iterations, dtype=torch.bool)
        stuck = ~gradient.isfinite().all(1)
        for _ in range(self.max_iterations):
            done = done | (~stuck & (gradient.abs().amax(1) <= self.tolerance * largest))
            if bool((done | stuck).all()):
                break
            moving = ~done & ~stuck
            iterations += moving
            direction = _direction(gradient, steps, changes, curvature)
            new, accepted = _search(problem, y, gradient, direction, moving)
            stuck = stuck | (moving & ~accepted)
            new_gradient = torch.where(accepted.unsqueeze(1), problem.gradient(new), gradient)
            steps, changes, curvature = _remember(steps, changes, curvature, new - y, new_gradient - gradient, accepted)
            y, gradient = new, new_gradient
            largest = torch.maximum(largest, gradient.abs().amax(1))
        return Outcome(y, claim(done, stuck), iterations)


def _no_pairs(y: Tensor, memory: int) -> tuple[Tensor, Tensor, Tensor]:
    """s and r = change of the gradient, (B, memory, n) each, newest last; 1 / s'r, zero for no pair, (B, memory)."""
    empty = y.new_zeros(len(y), memory, y.shape[1])
    return empty, empty, y.new_zeros(len(y), memory)


def _remember(
    steps: Tensor, changes: Tensor, curvature: Tensor, s: Tensor, r: Tensor, accepted: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    product = (s * r).sum(1)
    keep = accepted & (product > CURVATURE * s.norm(dim=1) * r.norm(dim=1))
    inverse = 1 / torch.where(keep, product, torch.ones_like(product))

    def push(rows: Tensor, new: Tensor) -> Tensor:
        pushed = torch.cat([rows[:, 1:], new.unsqueeze(1)], 1)
        return torch.where(keep.reshape(-1, *[1] * (rows.ndim - 1)), pushed, rows)

    return push(steps, s), push(changes, r), push(curvature, inverse)


def _direction(gradient: Tensor, steps: Tensor, changes: Tensor, curvature: Tensor) -> Tensor:
    """The two loops."""
    memory, q, weights = steps.shape[1], gradient, []
    for i in reversed(range(memory)):
        weight = curvature[:, i] * (steps[:, i] * q).sum(1)
        q = q - weight.unsqueeze(1) * changes[:, i]
        weights.append(weight)
    last = (changes[:, -1] * changes[:, -1]).sum(1) * curvature[:, -1]
    first = 1 / gradient.norm(dim=1).clamp(min=1)
    q = q * torch.where(last > 0, 1 / torch.where(last > 0, last, torch.ones_like(last)), first).unsqueeze(1)
    for i in range(memory):
        back = curvature[:, i] * (changes[:, i] * q).sum(1)
        q = q + (weights[memory - 1 - i] - back).unsqueeze(1) * steps[:, i]
    return -q


def _search(
    problem: BoundProblem, y: Tensor, gradient: Tensor, direction: Tensor, moving: Tensor
) -> tuple[Tensor, Tensor]:
    slope = (gradient * direction).sum(1)
    good = slope < 0
    direction = torch.where(good.unsqueeze(1), direction, -gradient)
    slope = torch.where(good, slope, -(gradient * gradient).sum(1))
    value = problem.values(y)

    def flat(point: Tensor, new: Tensor) -> Tensor:
        same = (new - value).abs() <= ROUNDING * value.abs()
        return same & (problem.gradient(point).norm(dim=1) < gradient.norm(dim=1))

    found = backtrack(problem.values, y, direction, value, slope, moving, flat)
    return found.y, found.accepted
