"""What became of the elements of a batch: statuses, iterations, residuals, and which of them to look at."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from convexlayers.execute import BatchSolution
from convexlayers.seeing.render import Section
from convexlayers.status import Status

# How many of the worst elements are listed.
LISTED = 5
ONE_SIDED = ": their solution may have one-sided derivatives only"


@dataclass(frozen=True)
class BatchReport:
    """A solved batch, to be looked at.

    Attributes:
        solution: everything that is known of it.
        seconds: that the call took, conversion and checks included.
    """

    solution: BatchSolution
    seconds: float

    @property
    def worst(self) -> list[tuple[int, ...]]:
        """Indices of the elements to look at: those without a solution first, then by falling largest residual."""
        badness = self._largest().reshape(-1)
        badness = torch.where(self.solution.solved.reshape(-1).cpu(), badness, torch.inf)
        order = badness.argsort(descending=True, stable=True)[:LISTED].tolist()
        return [tuple(int(i) for i in np.unravel_index(k, tuple(self.solution.status.shape))) for k in order]

    def section(self) -> Section:
        """Lines and the table of the worst elements."""
        solution, shape = self.solution, tuple(self.solution.status.shape)
        number = solution.status.numel()
        if number == 0:
            return Section("batch", (("elements", f"none, of shape {shape}"),))
        weak = int((solution.weakly_active & solution.solved).sum())
        lines = (
            ("elements", f"{number}, of shape {shape}" if shape else "1"),
            ("status", solution.describe()),
            ("iterations", _spread(solution.iterations, "{:.0f}")),
            ("residual", _spread(self._largest()[solution.solved.cpu()], "{:.1e}") + ", of the solved ones"),
            ("weakly active", f"{weak or 'none'} of the solved ones" + (ONE_SIDED if weak else "")),
            ("time", f"{1e3 * self.seconds:.3g} ms for this call, its conversions and checks included"),
        )
        return Section("batch", lines, self._table())

    def _largest(self) -> Tensor:
        """The largest of the three residuals of each element; NaN as infinite."""
        solution = self.solution
        largest = torch.stack([solution.primal_residual, solution.dual_residual, solution.gap]).detach().cpu()
        return largest.nan_to_num(nan=torch.inf).amax(0)

    def _table(self) -> tuple[tuple[str, ...], ...]:
        solution = self.solution
        head = ("worst", "status", "iterations", "primal", "dual", "gap", "margin")
        measures = (solution.primal_residual, solution.dual_residual, solution.gap, solution.margin)
        rows = [
            (
                ", ".join(map(str, index)) or "0",
                Status(int(solution.status[index])).name,
                str(int(solution.iterations[index])),
                *(f"{float(part[index]):.1e}" for part in measures),
            )
            for index in self.worst
        ]
        return (head, *rows)


def _spread(values: Tensor, form: str) -> str:
    """Smallest, median and largest."""
    if values.numel() == 0:
        return "none"
    found = values.detach().double().reshape(-1).cpu()
    smallest, middle, largest = (form.format(float(v)) for v in (found.amin(), found.median(), found.amax()))
    return f"{smallest} to {largest}, median {middle}"
