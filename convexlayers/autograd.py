"""Where torch's automatic differentiation meets the engines.

One Function takes the parameters' values as the user passed them and returns the requested variables as the user gets
them: conversion, batch dimensions and recovery of variables happen inside, so that a call is one node of torch's graph.
The Solution travels in the `Call`, one per call, so that nothing is written to the module or the plan.

Where a derivative is itself differentiated, and inside of torch.func's transforms, the same is done in steps that torch
can follow, with operators.py in the middle (`traceable_outputs`).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from convexlayers.batching import Batch
from convexlayers.derivatives import Cotangents
from convexlayers.engines.base import Plan
from convexlayers.errors import SecondDerivativeError
from convexlayers.operators import (
    OBJECTIVE,
    POINT,
    STATES,
    STATUS,
    Operator,
    SolveOperator,
    TangentOperator,
    fill,
    point_of,
)
from convexlayers.program import DeferredProgram
from convexlayers.reports import warn_of_residual
from convexlayers.solution import Point, Residuals, Solution
from convexlayers.stacks import understands_stacks


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

    def output_tangents(
        self, point: Mapping[str, Tensor], objective: Tensor, tangents: Mapping[str, Tensor], dobjective: Tensor
    ) -> tuple[Tensor, ...]:
        """Tangents of the outputs from those of x, s, z and the objective."""
        program, out = self.plan.program, []
        for info in program.outputs:
            tangent = info.map.apply(tangents[info.source])
            if info.exponential:
                tangent = tangent * info.map.apply(point[info.source]).exp()
            out.append(self.batch.restore(tangent.reshape(tangent.shape[0], *info.shape)))
        if self.with_objective:
            out.append(self.batch.restore(program.objective_slope(objective) * dobjective))
        return tuple(out)


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
    @understands_stacks
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        values, wanted = ctx.saved_tensors, ctx.needs_input_grad[1:]
        # create_graph=True, tangents or a dimension of vmap on their way through: torch has to see the steps.
        if torch.is_grad_enabled() or in_forward_mode() or in_transform():
            return None, *pull_back_again(ctx.call, wanted, values, grads)
        return None, *pull_back(ctx.call, wanted, values, grads)

    @staticmethod
    @understands_stacks
    def jvp(ctx: Any, *dvalues: Tensor | None) -> tuple[Tensor, ...]:  # type: ignore[override]
        values = ctx.saved_tensors
        differentiable = any(t is not None and t.requires_grad for t in (*values, *dvalues[1:]))
        if in_transform() or (torch.is_grad_enabled() and differentiable):
            return push_forward_again(ctx.call, values, dvalues[1:])
        return push_forward(ctx.call, dvalues[1:])


class FirstDerivative(torch.autograd.Function):
    """A derivative by an engine that torch cannot look into: differentiating it is an error, not a silent zero."""

    @staticmethod
    def forward(  # type: ignore[override]
        engine: str, derivative: Callable[..., tuple[Tensor | None, ...]], *tensors: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        return derivative(*tensors)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor | None, ...]) -> None:
        ctx.engine = inputs[0]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        raise no_second_derivative(ctx.engine)

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        raise no_second_derivative(ctx.engine)


def no_second_derivative(engine: str) -> SecondDerivativeError:
    """The error, with the remedies."""
    return SecondDerivativeError(
        f"The derivative by engine {engine!r} was differentiated again, which it cannot be. Choose another engine, or "
        "detach the gradient."
    )


def apply(call: Call, values: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """`SolveFunction.apply`, without the tenth of a small call that torch spends on binding default arguments."""
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


def pull_back_again(
    call: Call, wanted: Sequence[bool], values: Sequence[Tensor], grads: Sequence[Tensor | None]
) -> tuple[Tensor | None, ...]:
    """The same, differentiable: through the steps of `traceable_outputs` at the solution that is known."""
    if not call.plan.is_traceable:
        count = len(values)

        def once(*tensors: Tensor) -> tuple[Tensor | None, ...]:
            return pull_back(call, wanted, tensors[:count], tensors[count:])

        return FirstDerivative.apply(call.plan.resolving_engine.name, once, *values, *grads)  # type: ignore[return-value]
    create_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        outputs, _ = traceable_outputs(call, Operator(call.plan), values, call.solved)
        pairs = [(out, grad) for out, grad in zip(outputs, grads, strict=True) if grad is not None]
        found = torch.autograd.grad(
            [out for out, _ in pairs],
            [value for value, wish in zip(values, wanted, strict=True) if wish],
            [grad for _, grad in pairs],
            create_graph=create_graph,
            materialize_grads=True,
        )
    return fill(wanted, found)


def push_forward(call: Call, dvalues: Sequence[Tensor | None]) -> tuple[Tensor, ...]:
    """Tangents of the outputs, in their shapes, dtypes and devices, from those of the values."""
    solution = call.solved
    tangents = call.plan.tangent(call.theta, solution, call.rows(dvalues))
    warn_of_residual(solution.report)
    point = {"x": solution.x, "s": solution.s, "z": solution.z}
    return call.output_tangents(
        point, solution.objective, {"x": tangents.dx, "s": tangents.ds, "z": tangents.dz}, tangents.objective
    )


def push_forward_again(call: Call, values: Sequence[Tensor], dvalues: Sequence[Tensor | None]) -> tuple[Tensor, ...]:
    """The same, differentiable."""
    if not call.plan.is_traceable:
        count = len(values)

        def once(*tensors: Tensor) -> tuple[Tensor, ...]:
            return push_forward(call, tensors[count:])

        return FirstDerivative.apply(call.plan.resolving_engine.name, once, *values, *dvalues)  # type: ignore[return-value]
    operator, rows = Operator(call.plan), call.rows(values)
    parts: Any = SolveOperator.apply(operator, call.solved, *rows)
    found: Any = TangentOperator.apply(operator, len(rows), *rows, *point_of(parts), *call.rows(dvalues))
    dx, ds, dz, dobjective = found
    point = dict(zip("xsz", parts[POINT], strict=True))
    return call.output_tangents(point, parts[OBJECTIVE], {"x": dx, "s": ds, "z": dz}, dobjective)


def traceable_outputs(
    call: Call, operator: Operator, values: Sequence[Tensor], known: Solution | None = None
) -> tuple[tuple[Tensor, ...], Solution]:
    """The outputs of a call, and its solution, by operations that torch can transform."""
    theta = call.rows(values)
    parts: Any = SolveOperator.apply(operator, known, *theta)
    status, iterations, *residuals = parts[STATUS:STATES]
    solved, nan = status == 0, torch.full_like(parts[OBJECTIVE], torch.nan)
    x, s, z = (torch.where(solved.unsqueeze(-1), part, nan.unsqueeze(-1)) for part in parts[POINT])
    objective, program = torch.where(solved, parts[OBJECTIVE], nan), call.plan.program
    found = [info.recover(x, z, s) for info in program.outputs]
    if call.with_objective:
        found.append(program.user_objective(objective))
    numbers = DeferredProgram(program, [row for row in theta if row is not None], parts[0].shape[0])
    primal, dual, gap = residuals
    solution = Solution(
        program=numbers, x=x, s=s, z=z, status=status, iterations=iterations, objective=objective,
        residuals=Residuals(primal, dual, gap),
    )  # fmt: skip
    return tuple([call.batch.restore(value) for value in found]), solution


def in_forward_mode() -> bool:
    """Whether the caller is inside a level of torch's forward-mode differentiation."""
    return forward_ad._current_level >= 0


def in_transform() -> bool:
    """Whether the caller is inside a transform of torch.func, or one that torch.autograd makes use of."""
    return torch._C._are_functorch_transforms_active()


def _like(grad: Tensor, value: Tensor) -> Tensor:
    """A cotangent in the shape, dtype and device of its value."""
    if grad.shape != value.shape:
        grad = grad.view(value.shape)
    return grad if grad.dtype is value.dtype and grad.device == value.device else grad.to(value)


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
