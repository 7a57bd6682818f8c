"""What an engine's own method stalls on goes to Clarabel, element by element."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from convexlayers.engines.base import Engine, select_rows
from convexlayers.engines.clarabel import Clarabel
from convexlayers.program import ParametrizedConeProgram
from convexlayers.solution import Solution
from convexlayers.status import Status

# What a second method may still solve.
RESCUABLE = (Status.INACCURATE, Status.NUMERICAL_ERROR, Status.MAX_ITERATIONS)


def rescue(
    engine: Engine,
    program: ParametrizedConeProgram,
    theta: Sequence[Tensor],
    solution: Solution,
    contested: Tensor | None = None,
) -> Solution:
    """Give what an engine stalled on to Clarabel; a limit that the user set is a limit.

    Args:
        engine: with the user's settings.
        program: that was solved.
        theta: at these values.
        solution: with what the engine found.
        contested: elements whose solution is in doubt besides, (B,).

    Returns:
        the solution with `rescued` where Clarabel was asked, None there where it was not.
    """
    codes = RESCUABLE if engine.max_iterations is None else RESCUABLE[:2]
    stalled = torch.stack([solution.status == int(code) for code in codes]).any(0)
    stalled = stalled if contested is None else stalled | contested
    indices = stalled.nonzero().squeeze(-1)
    if len(indices) == 0:
        return solution
    second = Clarabel(engine.tolerance, engine.max_iterations, engine.threads)
    found = second.setup(program).solve(select_rows(theta, indices, len(stalled)))
    names = ("x", "s", "z", "status", "iterations", "objective")
    merged = solution.put(indices, found.residuals, **{name: getattr(found, name) for name in names})
    return replace(merged, rescued=stalled)
