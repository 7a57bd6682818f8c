"""One call: values in, solved batch out, failure policy applied. What layers and standalone functions share."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from convexlayers.activity import WEAK, find_activity
from convexlayers.autograd import Call, differentiable_solve, in_transform, traceable_outputs
from convexlayers.batching import Batch, Value, block_values, to_batch
from convexlayers.engines.base import Engine, Plan, select_rows
from convexlayers.errors import ArgumentError
from convexlayers.operators import Operator
from convexlayers.program import Block, ParametrizedConeProgram
from convexlayers.relax import closest_feasible
from convexlayers.solution import DerivativeReport, Point, Solution
from convexlayers.status import Status, describe, raise_for_status
from convexlayers.validation import validate
from convexlayers.warm_start import starting_point

POLICIES = ("raise", "nan")


@dataclass(frozen=True)
class BatchSolution:
    """What every front door returns, one entry per element, in the user's batch shape, dtype and device.

    Attributes:
        objective: optimal value as the user wrote it, differentiable (envelope theorem), (*batch).
        status: `Status` codes, int64 (*batch).
        iterations: of the solver, int64 (*batch).
        primal_residual, dual_residual, gap: measured, relative, float64 (*batch); see `Residuals`.
        cone_solution: the flat solution of the cone program behind it, detached.
    """

    objective: Tensor
    status: Tensor
    iterations: Tensor
    primal_residual: Tensor
    dual_residual: Tensor
    gap: Tensor
    cone_solution: Solution

    @property
    def solved(self) -> Tensor:
        """Boolean mask (*batch)."""
        return self.status == int(Status.SOLVED)

    @cached_property
    def margin(self) -> Tensor:
        """Distance from losing strict complementarity, of the nearest constraint, float64 (*batch).

        With the numbers in units of size one; see `convexlayers.activity`. Infinite without inequalities, NaN in failed
        elements.
        """
        return find_activity(self.cone_solution).smallest.reshape(self.status.shape)

    @property
    def weakly_active(self) -> Tensor:
        """Whether a constraint holds with equality and a zero multiplier, up to 2e-5, bool (*batch).

        The solution then has one-sided derivatives only, of which one is returned, always the same.
        """
        return self.margin <= WEAK

    @property
    def rescued(self) -> Tensor:
        """Boolean mask (*batch): elements on which the engine stalled and which it handed to Clarabel."""
        return self._mask(self.cone_solution.rescued)

    @property
    def relaxed(self) -> Tensor:
        """Boolean mask (*batch): elements without a feasible point, replaced by the closest feasible problem."""
        return self._mask(self.cone_solution.relaxed)

    @property
    def violation(self) -> Tensor:
        """Euclidean norm of the shift of the right-hand side that relaxed elements needed, float64 (*batch)."""
        found = self.cone_solution.violation
        return torch.zeros_like(self.gap) if found is None else found.reshape(self.status.shape)

    def _mask(self, found: Tensor | None) -> Tensor:
        """A mask over the elements in the user's batch shape; None for none of them."""
        if found is None:
            return torch.zeros_like(self.status, dtype=torch.bool)
        return found.to(self.status.device).reshape(self.status.shape)

    @property
    def derivative_report(self) -> DerivativeReport:
        """What is known of the last derivative, one entry per element; empty before backward."""
        return self.cone_solution.report

    def raise_for_status(self) -> None:
        """Raise `SolverError` unless every element is solved."""
        raise_for_status(self.status)

    def describe(self) -> str:
        """The statuses in sentences, which elements a second engine was asked for, and which were relaxed."""
        return describe(self.status, self.rescued, self.relaxed)


@dataclass(frozen=True)
class Execution:
    """A solved call before the front door has given it names.

    Attributes:
        batch: how results are given back.
        values: what the program returns, (*batch, *shape), differentiable, NaN in failed elements.
        objective: as the user wrote it, (*batch), differentiable; None where it was not wanted.
        solution: the Solution, detached.
    """

    batch: Batch
    values: tuple[Tensor, ...]
    objective: Tensor | None
    solution: Solution

    def common(self) -> dict[str, object]:
        """The fields of `BatchSolution`."""
        solution, restore = self.solution, self.batch.restore
        exact = Batch(self.batch.shape, solution.objective.dtype, self.batch.device)
        return {
            "objective": self.objective,
            "status": restore(solution.status),
            "iterations": restore(solution.iterations),
            "primal_residual": exact.restore(solution.residuals.primal),
            "dual_residual": exact.restore(solution.residuals.dual),
            "gap": exact.restore(solution.residuals.gap),
            "cone_solution": solution,
        }


def check_policy(on_failure: str) -> str:
    """The policy, if it is one.

    Raises:
        ArgumentError: it is not.
    """
    if on_failure not in POLICIES:
        raise ArgumentError(f"on_failure is {on_failure!r}, expected one of {', '.join(map(repr, POLICIES))}.")
    return on_failure


def execute(
    plan: Plan,
    values: Sequence[Value],
    *,
    on_failure: str,
    check_values: bool,
    dtype: torch.dtype | None = None,
    with_objective: bool = True,
    relax: Engine | None = None,
    warm_start: BatchSolution | None = None,
) -> Execution:
    """Convert, check, solve, and apply the failure policy.

    Args:
        plan: from `engine.setup`.
        values: one per parameter of plan.program, (*batch, *shape).
        on_failure: "raise" or "nan".
        check_values: whether to check the parameters' attributes.
        dtype: of results, by default the common one of the values.
        with_objective: whether the objective is wanted.
        relax: the engine that solves the closest feasible problem of infeasible elements; None for none.
        warm_start: what an earlier call returned, to begin at; None for none.

    Raises:
        ArgumentError: bad values.
        SolverError: on_failure is "raise" and an element was not solved.
    """
    program = plan.program
    tensors, batch = to_batch(program.parameters, values, dtype)
    if in_transform():
        if relax is not None or warm_start is not None:
            raise ArgumentError("Neither relax nor warm_start can be used inside of torch.func's transforms.")
        return _execute_traceably(plan, tensors, batch, on_failure, check_values, with_objective)
    if check_values and program.checked:
        check(program, tensors, batch)
    start = None
    if warm_start is not None:
        previous = warm_start.cone_solution
        start = starting_point(previous, tuple(warm_start.status.shape), program.structure, batch)
    run = run_plan(plan, tensors, batch, with_objective, start)
    if relax is not None and not run.solution.all_solved:
        run = relax_infeasible(run, relax, program, tensors)
    if on_failure == "raise" and not run.solution.all_solved:
        raise_for_status(batch.restore(run.solution.status))
    return run


def _execute_traceably(
    plan: Plan, tensors: Sequence[Tensor], batch: Batch, on_failure: str, check_values: bool, with_objective: bool
) -> Execution:
    """The same inside of torch.func's transforms, where nothing may look at a number but the operators."""
    program = plan.program

    def check_rows(theta: Sequence[Tensor]) -> None:
        # Logarithms of positive parameters have said what there is to say: they are NaN where a value is not.
        pairs = [(block, row) for block, row in zip(program.blocks, theta, strict=True) if not block.logarithm]
        known = {block.parameter: row if block.sparse else _unflat(program, block, row) for block, row in pairs}
        check(program, known, batch)

    operator = Operator(
        plan,
        check=check_rows if check_values and program.checked else None,
        accept=(lambda solution: raise_for_status(solution.status)) if on_failure == "raise" else None,
    )
    values = block_values(program.blocks, tensors)
    outputs, solution = traceable_outputs(Call(plan, batch, with_objective), operator, values)
    return Execution(batch, outputs[: len(program.outputs)], outputs[-1] if with_objective else None, solution)


def _unflat(program: ParametrizedConeProgram, block: Block, row: Tensor) -> Tensor:
    """A block of theta, (B or 1, size), in the shape of its parameter."""
    return row.reshape(row.shape[0], *program.parameters[block.parameter].shape)


def run_plan(
    plan: Plan, tensors: Sequence[Tensor], batch: Batch, with_objective: bool = True, start: Point | None = None
) -> Execution:
    """Solve for values that `to_batch` made."""
    values = block_values(plan.program.blocks, tensors)
    outputs, solution = differentiable_solve(plan, values, batch, with_objective, start)
    if not with_objective:
        return Execution(batch, outputs, None, solution)
    return Execution(batch, outputs[:-1], outputs[-1], solution)


def relax_infeasible(
    run: Execution, engine: Engine, program: ParametrizedConeProgram, tensors: Sequence[Tensor]
) -> Execution:
    """Replace the infeasible elements of a call by their closest feasible problems; the others stay as they are."""
    indices = (run.solution.status == int(Status.PRIMAL_INFEASIBLE)).nonzero().squeeze(-1)
    if len(indices) == 0:
        return run
    batch, values = run.batch, block_values(program.blocks, tensors)
    infos = [program.parameters[block.parameter] for block in program.blocks]
    rows = [batch.as_row(value, info) for value, info in zip(values, infos, strict=True)]
    found = closest_feasible(engine, program, select_rows(rows, indices, batch.size), len(indices))

    def put(old: Tensor, new: Tensor) -> Tensor:
        flat = old.reshape(batch.size, *new.shape[1:])
        return flat.index_copy(0, indices, new.to(old)).reshape(old.shape)

    outputs = [info.recover(found.x, found.z, found.s) for info in program.outputs]
    objective = None if run.objective is None else put(run.objective, program.user_objective(found.objective))
    merged = tuple(put(old, new) for old, new in zip(run.values, outputs, strict=True))
    return Execution(batch, merged, objective, found.merge(run.solution, indices))


def check(program: ParametrizedConeProgram, tensors: Sequence[Tensor] | Mapping[int, Tensor], batch: Batch) -> None:
    """Check the values of the parameters that have attributes, of those that are given."""
    checked, parameters = program.checked, program.parameters
    if isinstance(tensors, Mapping):
        checked = tuple(i for i in checked if i in tensors)
    validate([parameters[i] for i in checked], [tensors[i] for i in checked], [batch.dtypes[i] for i in checked])
