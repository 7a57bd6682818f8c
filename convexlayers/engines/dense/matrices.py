"""P and A of a batch as dense matrices, and a program that multiplies with them."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from convexlayers.derivatives.inverse import times
from convexlayers.program import ConeProgram, Structure


@dataclass(frozen=True, eq=False)
class DenseProgram(ConeProgram):
    """Numbers with dense copies of the two matrices.

    Attributes:
        P: (B, n, n). A: (B, m, n).
    """

    P: Tensor
    A: Tensor

    @classmethod
    def of(cls, program: ConeProgram) -> "DenseProgram":
        """With matrices read from the numbers; gathered, not scattered, which is slow."""
        structure, data = program.structure, program.data
        n, m = structure.n, structure.m
        if len(structure.A_rows) == n * m:
            # All entries, column by column.
            A = program.A_values.reshape(program.batch, n, m).mT
        else:
            A = _gather(program.A_values, *_places(structure, "A", data.device)).reshape(program.batch, m, n)
        P = _gather(program.P_values, *_places(structure, "P", data.device)).reshape(program.batch, n, n)
        return cls(structure, data, P, A)

    def dense_P(self) -> Tensor:
        return self.P

    def dense_A(self) -> Tensor:
        return self.A

    def P_times(self, x: Tensor) -> Tensor:
        return times(self.P, x)

    def A_times(self, x: Tensor) -> Tensor:
        return times(self.A, x)

    def At_times(self, z: Tensor) -> Tensor:
        return times(self.A.mT, z)

    def select(self, indices: Tensor) -> "DenseProgram":
        return DenseProgram(self.structure, self.data[indices], self.P[indices], self.A[indices])


def _gather(values: Tensor, places: Tensor, is_full: bool) -> Tensor:
    """Entries at places, where the last place after the values holds a zero, if there are any such."""
    padded = values if is_full else torch.cat([values, values.new_zeros(len(values), 1)], dim=-1)
    return padded.gather(-1, places.expand(len(values), -1))


@lru_cache(maxsize=64)
def _places(structure: Structure, name: str, device: torch.device) -> tuple[Tensor, bool]:
    """For each entry of a dense matrix, row by row, which of the stored values it is, one past them where none; and
    whether there are no such entries."""
    rows, cols = (getattr(structure, f"{name}_{part}") for part in ("rows", "cols"))
    height = structure.n if name == "P" else structure.m
    places = np.full((height, structure.n), len(rows), dtype=np.int64)
    places[rows, cols] = np.arange(len(rows))
    if name == "P":
        places[cols, rows] = np.arange(len(rows))
    return torch.as_tensor(places.reshape(-1), device=device), bool((places < len(rows)).all())
