"""Where torch's automatic differentiation meets the engines.

One Function takes the parameters' values as the user passed them and returns the requested variables as the user gets
them: conversion, batch dimensions and recovery of variables happen inside, so that a call is one node of torch's graph.
The Solution travels in the `Call`, one per call, so that nothing is written to the module or the plan.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from convexlayers.batching import Batch
from convexlayers.derivatives import Cotangents
from convexlayers.engines.base import Plan
from convexlayers.errors import DerivativeWarning, SecondDerivativeError, count_of
from convexlayers.solution import DerivativeReport, Point, Solution

# A derivative whose linear system was solved worse than this is announced.
RESIDUAL_WORTH_A_WARNING = 1e-6
NOT_UNIQUE = (
    "the solution or its multipliers are not unique there, or the data are badly scaled. The least-squares derivative "
    "of minimum norm was returned."
)
NO_POINT = (
    "the derivative strategy found no point to take it at. With Smoothed, the constraints have no interior there, or "
    "the set of solutions is unbounded; with Perturbed, the perturbed problems have no solution: lower tau or raise "
    "rho."
)


@dataclass
class Call:
    """One call of a plan.

    Attributes:
        plan: who solves.
        batch: how values come and results are given back.
        with_objective: whether the objective is among the outputs, as the last one.
        start: points to begin at, x (B, n), s (B, m), z (B, m); None for none.
        solution, theta: what came out, and from which blocks (B or 1, k_i); set by the forward pass.
    """

    plan: Plan
    batch: Batch
    with_objective: bool = True
    start: Point | None = None
    solution: Solution | None = None
    theta: tuple[Tensor, ...] = ()

    @property
    def solved(self) -> Solution:
        """The solution; the forward pass has run."""
        assert self.solution is not None
        return self.solution

    def rows(self, values: Sequence[Tensor | None]) -> list[Tensor | None]:
        """Blocks (B or 1, k_i) from values, or tangents of values, one per block of theta; None where there is none."""
        parameters, blocks = self.plan.program.parameters, self.plan.program.blocks
        return [
            None if value is None else self.batch.as_row(value, parameters[block.parameter])
            for block, value in zip(blocks, values, strict=True)
        ]

    def outputs(self) -> tuple[Tensor, ...]:
        """Requested variables and the objective, NaN in failed elements."""
        solution, program, batch = self.solved, self.plan.program, self.batch
        x, s, z, objective = solution.x, solution.s, solution.z, solution.objective
        if not solution.all_solved:
            failed = ~solution.solved
            x, s, z = (part.masked_fill(failed.unsqueeze(-1), float("nan")) for part in (x, s, z))
            objective = objective.masked_fill(failed, float("nan"))
        values = [info.recover(x, z, s) for info in program.outputs]
        if self.with_objective:
            values.append(program.user_objective(objective))
        # Detached: what autograd attaches its graph to must not be what the Solution holds.
        return tuple([batch.restore(value).detach() for value in values])

    def cotangents(self, grads: Sequence[Tensor | None]) -> Cotangents:
        """Cotangents of x, s, z and the objective from those of the outputs."""
        solution, program = self.solved, self.plan.program
        found: dict[str, Tensor | None] = {"x": None, "s": None, "z": None}
        for info, grad in zip(program.outputs, grads, strict=False):
            if grad is None:
                continue
            flat = self.batch.as_rows(grad, info.shape)
            if info.exponential:
                flat = flat * info.map.apply(getattr(solution, info.source)).exp()
            part, before = info.map.adjoint(flat), found[info.source]
            found[info.source] = part if before is None else before + part
        objective = grads[-1] if self.with_objective else None
        if objective is not None:
            objective = self.batch.as_rows(objective, ()).reshape(-1)
            objective = program.objective_slope(solution.objective) * objective
        return Cotangents(found["x"], found["s"], found["z"], objective)


class SolveFunction(torch.autograd.Function):
    """The requested variables and the objective as a function of parameters; failed elements have zero gradient."""

    @staticmethod
    def forward(call: Call, *values: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        call.theta = tuple([row for row in call.rows(values) if row is not None])
        call.solution = call.plan.answer(call.theta, call.start)
        return call.outputs()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.call, values = inputs[0], inputs[1:]
        ctx.save_for_backward(*values)
        ctx.save_for_forward(*values)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        values, wanted = ctx.saved_tensors, ctx.needs_input_grad[1:]
        # create_graph=True, or tangents on their way through: the backward pass is itself to be differentiated.
        if torch.is_grad_enabled() or in_forward_mode():
            return None, *AdjointFunction.apply(ctx.call, wanted, len(values), *values, *grads)
        return None, *pull_back(ctx.call, wanted, values, grads)

    @staticmethod
    def jvp(ctx: Any, *dvalues: Tensor | None) -> tuple[Tensor, ...]:  # type: ignore[override]
        values = ctx.saved_tensors
        if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (*values, *dvalues[1:])):
            return TangentFunction.apply(ctx.call, len(values), *values, *dvalues[1:])
        return push_forward(ctx.call, dvalues[1:])


def apply(call: Call, values: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """`SolveFunction.apply`, without the tenth of a small call that torch spends on binding default arguments."""
    if torch._C._are_functorch_transforms_active():
        return SolveFunction.apply(call, *values)  # type: ignore[return-value]
    return super(torch.autograd.Function, SolveFunction).apply(call, *values)  # type: ignore[attr-defined]


def pull_back(
    call: Call, wanted: Sequence[bool], values: Sequence[Tensor], grads: Sequence[Tensor | None]
) -> tuple[Tensor | None, ...]:
    """Cotangents of the values, in their shapes, dtypes and devices."""
    solution = call.solved
    found = call.plan.adjoint(call.theta, solution, call.cotangents(grads), wanted)
    warn_of_residual(solution.report)
    pairs = zip(found, values, strict=True)
    return tuple([None if grad is None else _like(grad, value) for grad, value in pairs])


def push_forward(call: Call, dvalues: Sequence[Tensor | None]) -> tuple[Tensor, ...]:
    """Tangents of the outputs, in their shapes, dtypes and devices, from those of the values."""
    solution, program, batch = call.solved, call.plan.program, call.batch
    tangents = call.plan.tangent(call.theta, solution, call.rows(dvalues))
    warn_of_residual(solution.report)
    parts = {"x": tangents.dx, "s": tangents.ds, "z": tangents.dz}
    out = []
    for info in program.outputs:
        tangent = info.map.apply(parts[info.source])
        if info.exponential:
            tangent = tangent * info.map.apply(getattr(solution, info.source)).exp()
        out.append(batch.restore(tangent.reshape(tangent.shape[0], *info.shape)))
    if call.with_objective:
        out.append(batch.restore(program.objective_slope(solution.objective) * tangents.objective))
    return tuple(out)


def in_forward_mode() -> bool:
    """Whether the caller is inside a level of torch's forward-mode differentiation."""
    return forward_ad._current_level >= 0


def _like(grad: Tensor, value: Tensor) -> Tensor:
    """A cotangent in the shape, dtype and device of its value."""
    if grad.shape != value.shape:
        grad = grad.view(value.shape)
    return grad if grad.dtype is value.dtype and grad.device == value.device else grad.to(value)


class AdjointFunction(torch.autograd.Function):
    """The backward pass as a Function of its own, so that differentiating it again is an error, not a silent zero."""

    @staticmethod
    def forward(  # type: ignore[override]
        call: Call, wanted: Sequence[bool], count: int, *tensors: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        values, grads = tensors[:count], tensors[count:]
        return pull_back(call, wanted, [value for value in values if value is not None], grads)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor | None, ...]) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        raise second_derivative()

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        raise second_derivative()


class TangentFunction(torch.autograd.Function):
    """The tangents as a Function of their own, for the same reason."""

    @staticmethod
    def forward(call: Call, count: int, *tensors: Tensor | None) -> tuple[Tensor, ...]:  # type: ignore[override]
        return push_forward(call, tensors[count:])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        raise second_derivative()


def second_derivative() -> SecondDerivativeError:
    """The error, with the remedies."""
    return SecondDerivativeError(
        "The derivative of a solution was differentiated again; second derivatives are not implemented. "
        "Call backward without create_graph=True, or detach the gradient."
    )


def warn_of_residual(report: DerivativeReport) -> None:
    """Announce derivatives whose linear system has no solution, or was not solved accurately."""
    if report.residual is None or report.all_accurate:
        return
    large = report.residual > RESIDUAL_WORTH_A_WARNING
    number = int(large.sum())
    if number == 0:
        return
    first = int(large.nonzero()[0])
    residual = float(report.residual[first])
    warnings.warn(
        f"The derivative of {count_of(number, 'element')} of {large.numel()} is not exact (first index {first}, "
        f"relative residual {residual:.1e}): {NO_POINT if residual == float('inf') else NOT_UNIQUE}",
        DerivativeWarning,
        stacklevel=4,
    )


def differentiable_solve(
    plan: Plan, values: Sequence[Tensor], batch: Batch, with_objective: bool = True, start: Point | None = None
) -> tuple[tuple[Tensor, ...], Solution]:
    """Solve and attach the derivative.

    Args:
        plan: from `engine.setup`.
        values: one per block of theta, (*batch, *shape) or with a batch of size one.
        batch: as `to_batch` made it.
        with_objective: whether the objective is wanted.
        start: points to begin at.

    Returns:
        the requested variables, then the objective, differentiable, NaN in failed elements; and the Solution.
    """
    call = Call(plan, batch, with_objective, start)
    return apply(call, values), call.solved
