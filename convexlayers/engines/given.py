"""Not a solver: a solution that was found elsewhere, judged, and given the library's derivative."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from convexlayers.assembly import numbers_program
from convexlayers.derivatives import Derivative, Exact
from convexlayers.engines.base import Plan
from convexlayers.engines.clarabel import Clarabel
from convexlayers.program import ConeProgram, ParametrizedConeProgram
from convexlayers.scaling import find_scaling
from convexlayers.solution import Point, Solution, judge
from convexlayers.status import Status


@dataclass(frozen=True)
class Given:
    """An engine that returns what it was given.

    Attributes:
        x: (B, n). s, z: (B, m). float64.
        tolerance: up to which the residuals make it a solution.
        derivative: the derivative strategy.
    """

    x: Tensor
    s: Tensor
    z: Tensor
    tolerance: float
    derivative: Derivative = field(default_factory=Exact)

    def setup(self, program: ParametrizedConeProgram) -> "GivenPlan":
        """Prepare for a program."""
        return GivenPlan(program, self)


class GivenPlan(Plan):
    """The plan of `Given`."""

    def __init__(self, program: ParametrizedConeProgram, engine: Given) -> None:
        super().__init__(program, engine.derivative)
        self.engine = engine

    @property
    def resolving_engine(self) -> Clarabel:
        return Clarabel()

    def on_numbers(self) -> "GivenPlan":
        return self.engine.setup(numbers_program(self.program.structure))

    def solve(self, theta: Sequence[Tensor], start: Point | None = None) -> Solution:
        given = self.engine
        data = self.program.evaluate(theta).data.detach()
        program = ConeProgram(self.program.structure, data.expand(len(given.x), -1))
        scaling = find_scaling(program)
        claimed = torch.full((len(given.x),), int(Status.SOLVED), dtype=torch.int64, device=data.device)
        claimed = torch.where(program.data.isfinite().all(-1), claimed, int(Status.INVALID_DATA))
        point = scaling.normalize_point(given.x, given.s, given.z)
        found = judge(scaling.normalize(program), *point, claimed, torch.zeros_like(claimed), given.tolerance)
        objective = program.objective(given.x)
        return replace(found, program=program, x=given.x, s=given.s, z=given.z, objective=objective)
