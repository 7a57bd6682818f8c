"""What can be said of a solution and of its derivative, element by element, in words."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from convexlayers.activity import Activity, find_activity
from convexlayers.derivatives import Cotangents, Exact
from convexlayers.engines.base import Plan, select_solved
from convexlayers.program import ParametrizedConeProgram, RowGroup
from convexlayers.solution import Solution
from convexlayers.status import Status

# A linear system with a larger relative residual has no solution.
INCONSISTENT = 1e-8
MOST_ENTRIES = 6


@dataclass(frozen=True)
class ElementDiagnosis:
    """Findings on one element. Where it was not solved only the status says something.

    Attributes:
        index: of the element in the batch.
        status: of the solver.
        active: inequalities that hold with equality and have a multiplier, as the user wrote them, with the indices of
            their entries.
        weakly_active: those that hold with equality up to 2e-5 and whose multiplier is zero up to that.
        margin: distance from being weakly active, of the nearest constraint; see `convexlayers.activity`.
        locally_constant: whether x does not change with q, the linear part of the objective: it is at a vertex.
        unique_solution, unique_multipliers: whether x, and whether z, is the only one, to first order.
        primal_residual, dual_residual, gap: measured, relative.
    """

    index: tuple[int, ...]
    status: Status
    active: tuple[str, ...]
    weakly_active: tuple[str, ...]
    margin: float
    locally_constant: bool
    unique_solution: bool
    unique_multipliers: bool
    primal_residual: float
    dual_residual: float
    gap: float

    @property
    def rank_deficient(self) -> bool:
        """Whether the derivative's linear system is singular."""
        return not (self.unique_solution and self.unique_multipliers)

    def __str__(self) -> str:
        name = f"element {', '.join(map(str, self.index))}" if self.index else "solution"
        if self.status is not Status.SOLVED:
            return f"{name}: {self.status.name}. {self.status.sentence}"
        figures = f"primal {self.primal_residual:.1e}, dual {self.dual_residual:.1e}, gap {self.gap:.1e}"
        lines = [f"{name}: SOLVED, residuals {figures}"]
        lines += [f"  active: {text}" for text in self.active] or ["  active: no inequality"]
        lines += [f"  {text}" for text in self._remarks()]
        return "\n".join(lines)

    def _remarks(self) -> list[str]:
        remarks = [f"weakly active: {text}" for text in self.weakly_active]
        if self.weakly_active:
            remarks.append(
                "there the solution has one-sided derivatives only: one of them is returned, always the same; Smoothed "
                "gives one in between."
            )
        if self.locally_constant:
            remarks.append(
                "at a vertex: the solution does not change with the linear part of the objective, and that gradient is "
                "zero. Smoothed or Perturbed give a direction."
            )
        if not self.unique_solution:
            remarks.append(
                "the solution is not unique: one of them is returned, and the derivative of minimum norm. A small "
                "quadratic term in the objective makes it unique."
            )
        if not self.unique_multipliers:
            remarks.append(
                "the multipliers are not unique (redundant constraints, or more active ones than variables): the "
                "derivative of minimum norm is returned. Remove what is redundant."
            )
        return remarks or ["the derivative exists."]


@dataclass(frozen=True)
class Diagnosis:
    """Findings on every element of a batch; `print` it.

    Attributes:
        elements: one entry per element, in row-major order of the batch.
    """

    elements: tuple[ElementDiagnosis, ...]

    def __len__(self) -> int:
        return len(self.elements)

    def __getitem__(self, index: int) -> ElementDiagnosis:
        return self.elements[index]

    def __str__(self) -> str:
        return "\n".join(str(element) for element in self.elements)


def diagnose(plan: Plan, theta: Sequence[Tensor], shape: tuple[int, ...]) -> Diagnosis:
    """Solve and look at the solutions, whatever derivative strategy the plan has.

    Args:
        plan: who solves.
        theta: blocks (B, k_i) or (1, k_i).
        shape: of the batch.
    """
    solution = plan.solve(theta)
    activity, names = find_activity(solution), _row_names(plan.program)
    constant, unique_x, unique_z = _probe(plan, solution)
    residuals = solution.residuals
    elements = []
    for row in range(len(solution.x)):
        active, weak = _named(activity, row, names)
        element = ElementDiagnosis(
            index=tuple(int(i) for i in np.unravel_index(row, shape)) if shape else (),
            status=Status(int(solution.status[row])),
            active=active,
            weakly_active=weak,
            margin=float(activity.smallest[row]),
            locally_constant=bool(constant[row]),
            unique_solution=bool(unique_x[row]),
            unique_multipliers=bool(unique_z[row]),
            primal_residual=float(residuals.primal[row]),
            dual_residual=float(residuals.dual[row]),
            gap=float(residuals.gap[row]),
        )
        elements.append(element)
    return Diagnosis(tuple(elements))


def _probe(plan: Plan, solution: Solution) -> tuple[Tensor, Tensor, Tensor]:
    """Whether x is constant in q, whether x is unique, and whether z is, (B,) each, by two fixed cotangents.

    A cotangent of x is outside the range of the derivative's matrix exactly where the matrix has null vectors in x that
    are not orthogonal to it; one without structure is orthogonal to none, with probability one. So for z. The question
    is about the variables that the plan returns: those that reformulations introduce need not be unique.
    """
    solved = solution.solved.nonzero().squeeze(-1)
    elements = select_solved(solution, solved)
    probe_x = _spread_probe(plan.program, elements.x)
    _, by_x = Exact().adjoint(*elements.point, Cotangents(probe_x, None, None))
    _, by_z = Exact().adjoint(*elements.point, Cotangents(None, None, _irregular(elements.z)))
    assert by_x.residual is not None
    assert by_z.residual is not None
    assert by_x.locally_constant is not None

    def spread(values: Tensor, missing: bool) -> Tensor:
        return torch.full_like(solution.solved, missing).index_copy(0, solved, values)

    unique_x, unique_z = by_x.residual <= INCONSISTENT, by_z.residual <= INCONSISTENT
    return spread(by_x.locally_constant & unique_x, False), spread(unique_x, True), spread(unique_z, True)


def _irregular(like: Tensor) -> Tensor:
    """Fixed numbers without structure."""
    row = torch.cos(torch.arange(1, like.shape[-1] + 1, dtype=like.dtype, device=like.device) ** 2)
    return row.expand_as(like)


def _spread_probe(program: ParametrizedConeProgram, x: Tensor) -> Tensor:
    """Such numbers for the entries of x that the returned variables are made of; for all if there are none."""
    maps = [info.map for info in program.outputs if info.source == "x"]
    if not maps:
        return _irregular(x)
    return torch.stack([m.adjoint(_irregular(x.new_empty(len(x), m.shape[0]))) for m in maps]).sum(0)


def _row_names(program: ParametrizedConeProgram) -> list[tuple[RowGroup, np.ndarray]]:
    """The inequalities: their names, and where the cones of their entries stand in `Cones.heads`."""
    cones = program.structure.cones
    named = [group for group in program.row_groups if (group.rows >= cones.zero).all()]
    if not program.row_groups:
        heads = cones.heads[cones.heads >= cones.zero]
        named = [RowGroup("row", heads, (cones.rows,))] if len(heads) else []
    return [(group, np.searchsorted(cones.heads, group.rows)) for group in named]


def _named(
    activity: Activity, row: int, names: list[tuple[RowGroup, np.ndarray]]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Active and weakly active constraints of one element."""
    weak = activity.weak[row].cpu().numpy()
    active = activity.active[row].cpu().numpy() & ~weak
    found = []
    for mask in (active, weak):
        entries = [(group, np.nonzero(mask[heads])[0]) for group, heads in names]
        found.append(tuple(_entries(group, which) for group, which in entries if len(which)))
    return found[0], found[1]


def _entries(group: RowGroup, which: np.ndarray) -> str:
    """A constraint with the indices of some of its entries."""
    if len(group.rows) == 1 and group.shape in ((), (1,)):
        return group.label
    if group.label == "row":
        shown = [str(group.rows[k]) for k in which[:MOST_ENTRIES]]
    else:
        indices = [np.unravel_index(k, group.shape) for k in which[:MOST_ENTRIES]]
        shown = [f"[{', '.join(str(int(i)) for i in index)}]" for index in indices]
    more = f", ... ({len(which)} of {len(group.rows)} entries)" if len(which) > MOST_ENTRIES else ""
    return f"{group.label} at {', '.join(shown)}{more}"
