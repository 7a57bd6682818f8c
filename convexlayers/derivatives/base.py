"""What a derivative strategy is: a frozen value that turns cotangents of a solution into cotangents of its data."""

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from convexlayers.program import ConeProgram
from convexlayers.solution import DerivativeReport


@dataclass(frozen=True)
class Cotangents:
    """Cotangents of a solution, None for zero.

    Attributes:
        x: (B, n). s, z: (B, m). objective: (B,).
    """

    x: Tensor | None
    s: Tensor | None
    z: Tensor | None
    objective: Tensor | None = None

    def select(self, indices: Tensor) -> "Cotangents":
        """The elements at these indices."""
        parts = (self.x, self.s, self.z, self.objective)
        return Cotangents(*(None if part is None else part[indices] for part in parts))

    def dense(self, program: ConeProgram) -> tuple[Tensor, Tensor, Tensor]:
        """Those of x, s and z with zeros for None."""

        def filled(part: Tensor | None, width: int) -> Tensor:
            return program.data.new_zeros(program.batch, width) if part is None else part

        n, m = program.structure.n, program.structure.m
        return filled(self.x, n), filled(self.s, m), filled(self.z, m)


@dataclass(frozen=True)
class Tangents:
    """Tangents of a solution: dx (B, n), ds and dz (B, m), of the objective (B,)."""

    dx: Tensor
    ds: Tensor
    dz: Tensor
    objective: Tensor


class Derivative(Protocol):
    """A strategy, independent of who solved: any (x, s, z) goes in."""

    def adjoint(
        self, program: ConeProgram, x: Tensor, s: Tensor, z: Tensor, cotangents: Cotangents
    ) -> tuple[Tensor, DerivativeReport]:
        """Cotangent of program.data, (B, size), and the report."""
        ...

    def tangent(
        self, program: ConeProgram, x: Tensor, s: Tensor, z: Tensor, ddata: Tensor
    ) -> tuple[Tangents, DerivativeReport]:
        """Tangent of the solution for a tangent of program.data, (B, size), and the report."""
        ...
