"""What a derivative strategy is: a frozen value that turns cotangents of a solution into cotangents of its data."""

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from convexlayers.program import ConeProgram
from convexlayers.solution import DerivativeReport


@dataclass(frozen=True)
class Cotangents:
    """Cotangents of a solution.

    Attributes:
        x: (B, n). s, z: (B, m).
        objective: (B,), or None for zero.
    """

    x: Tensor
    s: Tensor
    z: Tensor
    objective: Tensor | None = None

    def select(self, indices: Tensor) -> "Cotangents":
        """The elements at these indices."""
        objective = None if self.objective is None else self.objective[indices]
        return Cotangents(self.x[indices], self.s[indices], self.z[indices], objective)


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
