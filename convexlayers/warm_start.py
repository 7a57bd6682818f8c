"""Beginning at the solution of an earlier call: where it may come from, and the point it gives."""

import math

import torch

from convexlayers.batching import Batch
from convexlayers.errors import ArgumentError
from convexlayers.program import Structure
from convexlayers.solution import Point, Solution


def starting_point(previous: Solution, shape: tuple[int, ...], structure: Structure, batch: Batch) -> Point:
    """The points of an earlier solution for the elements of a batch; NaN for those that were not solved.

    Args:
        previous: the flat solution of the earlier call.
        shape: its batch dimensions: those of `batch`, or of size one for a solution that all elements begin at.
        structure: of the program that is about to be solved.
        batch: of the call that is about to be made.

    Returns:
        x (B, n), s (B, m), z (B, m).

    Raises:
        ArgumentError: the solution is of other cones, or of another batch.
    """
    found = previous.program.structure
    if (found.n, found.cones) != (structure.n, structure.cones):
        raise ArgumentError(
            f"warm_start is a solution with {found.n} variables and {found.cones.describe()}, expected one of this "
            f"problem, with {structure.n} variables and {structure.cones.describe()}."
        )
    if shape != batch.shape and math.prod(shape) != 1:
        raise ArgumentError(
            f"warm_start is the solution of a batch {shape}, expected {batch.shape} as in this call, or one element."
        )
    unsolved = ~previous.solved.unsqueeze(-1)
    parts = (previous.x, previous.s, previous.z)
    x, s, z = (part.detach().masked_fill(unsolved, torch.nan).expand(batch.size, -1) for part in parts)
    return x, s, z
