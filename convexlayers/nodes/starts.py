"""Where solvers start, and the best of several starts for objectives with several local minima."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from convexlayers.errors import ArgumentError, wrong_shape
from convexlayers.nodes.point import Point
from convexlayers.nodes.problem import Problem
from convexlayers.status import Status

# Values this close, relatively, are the same minimum: the earlier start wins.
SAME_VALUE = 1e-10

Start = Tensor | Callable[..., Tensor]


@dataclass(frozen=True, eq=False)
class Restarts:
    """More starts: the best local solution wins, and `NodeSolution.start` says which start found it (0: the node's).

    Args:
        count: number of random starts, around the node's own.
        scale: standard deviation of the random shifts.
        seed: of their random numbers. All elements get the same shifts, so that none depends on the batch.
        points: function of the inputs of one element to further starts, (k, *shape of y), before the random ones; of a
            batch to (B, k, *shape) for a node with batched functions.
    """

    count: int = 0
    scale: float = 1.0
    seed: int = 0
    points: Callable[..., Tensor] | None = None

    def __post_init__(self) -> None:
        if self.count < 0:
            raise ArgumentError(f"count is {self.count}, expected a number of starts, 0 or more.")


def starting_points(problem: Problem, start: Start, restarts: Restarts | None, xs: Sequence[Tensor]) -> list[Tensor]:
    """The starts of every element, (B, n) each.

    Raises:
        ArgumentError: a start has the wrong shape.
    """
    batch = xs[0].shape[0]
    first = first_start(start, xs, problem.batched)
    if first.shape[1:] != problem.shape:
        raise wrong_shape("start", first.shape[1:], f"{problem.shape} for one element")
    found = [first.reshape(batch, -1)]
    if restarts is None:
        return found
    if restarts.points is not None:
        lifted = restarts.points if problem.batched else torch.func.vmap(restarts.points)
        more = lifted(*xs).to(first)
        if more.shape[2:] != problem.shape or more.ndim < 2:
            raise wrong_shape("the result of points", more.shape[1:], f"(k, {', '.join(map(str, problem.shape))})")
        found += [one.reshape(batch, -1) for one in more.unbind(1)]
    generator = torch.Generator().manual_seed(restarts.seed)
    shifts = restarts.scale * torch.randn(restarts.count, problem.n, generator=generator, dtype=torch.float64)
    return found + [found[0] + shift for shift in shifts.to(first)]


def first_start(start: Start, xs: Sequence[Tensor], batched: bool) -> Tensor:
    """The node's own start, (B, *shape)."""
    if isinstance(start, Tensor):
        return start.detach().to(xs[0].device, torch.float64).expand(xs[0].shape[0], *start.shape)
    lifted = start if batched else torch.func.vmap(start)
    return lifted(*xs).to(torch.float64)


def better_of(best: Point, other: Point, index: int) -> Point:
    """Per element: solved before not solved, a minimum before a saddle, the smaller value, the earlier start."""
    values = torch.where(other.values.isnan(), torch.full_like(other.values, float("inf")), other.values)
    lower = values < best.values - SAME_VALUE * best.values.abs()
    rank, other_rank = _rank(best), _rank(other)
    wins = (other_rank > rank) | ((other_rank == rank) & lower)
    return replace(other.where(wins, best), start=torch.where(wins, index, best.start))


def _rank(point: Point) -> Tensor:
    solved = (point.status == int(Status.SOLVED)).to(torch.int64)
    return solved * (2 - point.negative_curvature.to(torch.int64))
