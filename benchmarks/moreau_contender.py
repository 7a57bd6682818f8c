"""Moreau's own torch interface, fed with numbers: the strongest peer, as far as we know.

On problems written in CVXPY it gets the cone program that this library's compiler makes. Its inputs are P, A, q, b
themselves: the map from parameters to them is not timed, in its favour, and the untimed map turns its gradients into
those of the parameters, so that one gradient error means the same for everybody.
"""

from collections import Counter
from typing import Any

import numpy as np
import torch
from contenders import Contender, Values
from families import Family
from torch import Tensor

import convexlayers as cl
from convexlayers.batching import block_values
from convexlayers.compat.moreau import translate_cones
from convexlayers.cones import Cones
from convexlayers.program import ConeProgram, Structure
from convexlayers.solution import measure


class CompressedRows:
    """A sparsity pattern as compressed sparse rows, and where each of its values comes from."""

    def __init__(self, rows: np.ndarray, cols: np.ndarray, source: np.ndarray, height: int) -> None:
        order = np.lexsort((cols, rows))
        self.offsets = torch.from_numpy(np.searchsorted(rows[order], np.arange(height + 1)))
        self.columns = torch.from_numpy(cols[order].astype(np.int64))
        self.source = torch.from_numpy(source[order].astype(np.int64))

    @classmethod
    def of_A(cls, structure: Structure) -> "CompressedRows":
        """The pattern of A."""
        return cls(structure.A_rows, structure.A_cols, np.arange(len(structure.A_rows)), structure.m)

    @classmethod
    def of_P(cls, structure: Structure) -> "CompressedRows":
        """The full symmetric pattern of P, from its upper triangle."""
        rows, cols, source = structure.P_rows, structure.P_cols, np.arange(len(structure.P_rows))
        off = rows != cols
        both = np.concatenate([rows, cols[off]]), np.concatenate([cols, rows[off]])
        return cls(*both, np.concatenate([source, source[off]]), structure.n)

    @classmethod
    def dense(cls, height: int, width: int) -> "CompressedRows":
        """Every entry, row-major."""
        rows, cols = (index.reshape(-1) for index in np.indices((height, width)))
        return cls(rows, cols, np.arange(height * width), height)


def make_solver(P: CompressedRows, A: CompressedRows, cones: Cones, batch: int, algorithm: str) -> Any:
    """A solver object for this pattern and batch size; the order of the rows is the same as ours."""
    import moreau
    import moreau.torch

    settings = moreau.Settings(batch_size=batch, device="cpu", enable_grad=True, solver=algorithm)
    sizes = len(P.offsets) - 1, len(A.offsets) - 1
    return moreau.torch.Solver(
        *sizes, P.offsets, P.columns, A.offsets, A.columns, cones=translate_cones(moreau, cones), settings=settings
    )  # fmt: skip


def unsolved(solver: Any) -> str:
    """How many elements ended in which status other than success."""
    status = solver.info.status
    names = Counter(str(one) for one in (status if isinstance(status, list) else [status]))
    return ", ".join(f"{name} x{count}" for name, count in names.items() if name not in ("Solved", "AlmostSolved"))


class Moreau(Contender):
    """`moreau.torch.Solver` on the compiled cone program; "auto" lets it choose, "ipm" is its interior-point method.

    For programs with linear constraints only, "auto" means its active-set method up to 500 variables.
    """

    packages = ("moreau",)

    def __init__(self, algorithm: str = "auto") -> None:
        self.algorithm = algorithm
        self.name = "moreau" if algorithm == "auto" else f"moreau({algorithm})"

    def prepare(self, family: Family, batch: int) -> None:
        self.program = cl.compile_problem(*family[:3])
        structure = self.program.structure
        self.P, self.A = CompressedRows.of_P(structure), CompressedRows.of_A(structure)
        self.resize(batch)

    def resize(self, batch: int) -> None:
        self.solver = make_solver(self.P, self.A, self.program.structure.cones, batch, self.algorithm)

    def _evaluate(self, values: Values) -> ConeProgram:
        blocks = block_values(self.program.blocks, values)
        return self.program.evaluate([value.flatten(1) if value.ndim > 1 else value[:, None] for value in blocks])

    def inputs(self, values: Values) -> list[Tensor]:
        self.values = super().inputs(values)
        data = self._evaluate(self.values)
        numbers = data.P_values[:, self.P.source], data.A_values[:, self.A.source], data.q, data.b
        # A problem all of whose parameters are shared would have one row; the solver wants one per element.
        batch = self.solver.batch_size
        self.numbers = [part.expand(batch, -1).contiguous() for part in numbers]
        return super().inputs(self.numbers)

    def forward(self, inputs: Values) -> tuple[Tensor, ...]:
        P, A, q, b = inputs
        self.solution = self.solver.solve(P, A, q, b)
        return (self.solution.x,)

    def outputs(self, results: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(info.recover(results[0], self.solution.z) for info in self.program.outputs)

    def gradients(self, inputs: Values) -> list[Tensor]:
        pairs = zip(self.numbers, super().gradients(inputs), strict=True)
        # Numbers that no parameter enters, as a constant P, have no graph.
        varying = [(number, grad) for number, grad in pairs if number.requires_grad]
        torch.autograd.backward([number for number, _ in varying], [grad for _, grad in varying])
        return super().gradients(self.values)

    def residual(self, values: Values) -> float:
        x, s, z = (part.detach() for part in (self.solution.x, self.solution.s, self.solution.z))
        return float(measure(self._evaluate(values), x, s, z).largest.max())

    def complaint(self) -> str:
        return unsolved(self.solver)
