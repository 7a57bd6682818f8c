"""What a derivative strategy is: a frozen value that turns cotangents of a solution into cotangents of its data."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from convexlayers.program import ConeProgram
from convexlayers.solution import DerivativeReport, Solution


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


@dataclass(frozen=True, eq=False)
class Context:
    """What a strategy may use besides the solution, which it gets in units of size one (scaling.py).

    Attributes:
        objective_unit: by what the user's objective was divided, (B,); None for one.
        resolve: solves programs of any structure with the engine that found the solution; None if there is none.
    """

    objective_unit: Tensor | None = None
    resolve: Callable[[ConeProgram], Solution] | None = None


NO_CONTEXT = Context()


class Derivative(ABC):
    """A strategy, independent of who solved: any (x, s, z) goes in."""

    @property
    def moves_solution(self) -> bool:
        """Whether the forward pass returns another point than the solution: what `move` makes of it."""
        return False

    def move(
        self, program: ConeProgram, x: Tensor, s: Tensor, z: Tensor, context: Context
    ) -> tuple[tuple[Tensor, Tensor, Tensor], Tensor]:
        """The point (x, s, z) that the forward pass returns, and which elements have one, (B,)."""
        return (x, s, z), torch.ones_like(x[:, :0].sum(-1), dtype=torch.bool)

    @abstractmethod
    def adjoint(
        self, program: ConeProgram, x: Tensor, s: Tensor, z: Tensor, cotangents: Cotangents, context: Context
    ) -> tuple[Tensor, DerivativeReport]:
        """Cotangent of program.data.

        Args:
            program: the numbers, batch B.
            x, s, z: what the forward pass returned, (B, n), (B, m), (B, m).
            cotangents: of it.
            context: see `Context`.

        Returns:
            (B, structure.size) and the report.
        """

    @abstractmethod
    def tangent(
        self, program: ConeProgram, x: Tensor, s: Tensor, z: Tensor, ddata: Tensor, context: Context
    ) -> tuple[Tangents, DerivativeReport]:
        """Tangent of the solution for a tangent of program.data, (B, structure.size), and the report.

        Arguments as in `adjoint`.
        """
