"""Solve, adjoint and tangent as operators of torch: functions of tensors that all of torch's transforms go through.

`autograd.py` takes the direct way through one call for what training does all day. Here is the way for the rest:
torch.func's vmap, grad, jvp, jacrev, jacfwd, hessian in any nesting, and derivatives of derivatives.

    solve     theta                            -> x, s, z, objective, status, iterations, residuals, states
    adjoint   theta, point, (gx, gs, gz, gobj) -> cotangents of theta
    tangent   theta, point, dtheta             -> dx, ds, dz, dobjective

theta are blocks (B, k_i), or (1, k_i) where the batch shares them; a point is x, s, z, status and the engine's states.
Each operator has a derivative made of the other two (derivatives/second.py), so that derivatives of all orders exist,
and a rule for vmap that makes one larger batch of it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from convexlayers.activity import WEAK, find_activity
from convexlayers.derivatives import Cotangents, Exact
from convexlayers.derivatives.second import Changes, Curvature
from convexlayers.engines.base import Plan
from convexlayers.errors import SecondDerivativeError
from convexlayers.maps import AffineMap
from convexlayers.program import ConeProgram, DeferredProgram
from convexlayers.reports import RESIDUAL_WORTH_A_WARNING, warn_of_residual
from convexlayers.solution import Residuals, Solution
from convexlayers.stacks import understands_stacks

Rows = Sequence[Tensor]
# Where the parts of a point stand among the outputs of solve: x, s, z; status; the engine's states.
POINT, OBJECTIVE, STATUS, STATES = slice(0, 3), 3, 4, 9


@dataclass(frozen=True, eq=False)
class Operator:
    """What the operators know besides tensors.

    Attributes:
        plan: who solves.
        check: called with the blocks of theta before a solve; raises what there is to say of them.
        accept: called with a solution; raises if it will not do.
        regular: whether solutions have to be unique and strictly complementary.
    """

    plan: Plan
    check: Callable[[Rows], None] | None = None
    accept: Callable[[Solution], None] | None = None
    regular: bool = False

    @cached_property
    def on_numbers(self) -> "Operator":
        """The operators on the same programs given by their numbers, for derivatives of derivatives.

        Raises:
            SecondDerivativeError: the derivative strategy is not `Exact`.
        """
        strategy = self.plan.derivative
        if type(strategy) is not Exact:
            raise SecondDerivativeError(
                f"The derivative by {type(strategy).__name__} was differentiated again, which only that of Exact can "
                "be. Use Exact, or detach the gradient."
            )
        return Operator(self.plan.on_numbers(), regular=True)

    def solve(self, theta: Rows) -> Solution:
        """Check, solve, accept."""
        if self.check is not None:
            self.check(theta)
        solution = self.plan.answer(theta)
        if self.accept is not None:
            self.accept(solution)
        return solution

    def restore(self, theta: Rows, point: Rows) -> Solution:
        """The solution that a point is of, without what no derivative asks for."""
        x, s, z, status, *states = point
        unknown = x.new_zeros(x.shape[0])
        return Solution(
            program=DeferredProgram(self.plan.program, theta, x.shape[0]), x=x, s=s, z=z, status=status,
            iterations=status, objective=unknown, residuals=Residuals(unknown, unknown, unknown),
            engine_state=self.plan.state_of(states),
        )  # fmt: skip

    def inspect(self, solution: Solution) -> None:
        """Announce an inaccurate derivative, or refuse it where it is to be differentiated again.

        Raises:
            SecondDerivativeError: names the first element and what it is.
        """
        report = solution.report
        if not self.regular:
            return warn_of_residual(report)
        reasons = [("a constraint is weakly active there", find_activity(solution).smallest <= WEAK)]
        if report.rank_deficient is not None:
            reasons.append(("its solution or its multipliers are not unique", report.rank_deficient))
        if report.residual is not None:
            reasons.append(("its first derivative is not exact", report.residual > RESIDUAL_WORTH_A_WARNING))
        for reason, mask in reasons:
            if bool(mask.any()):
                raise SecondDerivativeError(
                    f"Element {int(mask.nonzero()[0])} has no second derivative: {reason}. Detach the gradient, or "
                    "make the problem regular (a small quadratic term, no redundant constraints)."
                )

    def curvature(self, theta: Rows, point: Rows) -> Curvature:
        """Second derivatives at a point, in the numbers."""
        on_numbers, program = self.on_numbers, self.plan.program
        numbers = program.map.apply(theta).expand(point[0].shape[0], -1)

        def adjoint(gx: Tensor, gs: Tensor, gz: Tensor) -> Tensor:
            return AdjointOperator.apply(on_numbers, (True,), 1, numbers, *point, gx, gs, gz, None)[0]  # type: ignore[index]

        def tangent(ddata: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            return TangentOperator.apply(on_numbers, 1, numbers, *point, ddata)[:3]  # type: ignore[index]

        x, s, z = point[:3]
        return Curvature(ConeProgram(program.structure, numbers), x, s, z, adjoint, tangent)


class SolveOperator(torch.autograd.Function):
    """theta to the solution."""

    @staticmethod
    def forward(op: Operator, known: Solution | None, *theta: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        solution = op.solve(theta) if known is None else known
        residuals = solution.residuals
        parts = (
            solution.x, solution.s, solution.z, solution.objective, solution.status, solution.iterations,
            residuals.primal, residuals.dual, residuals.gap, *op.plan.states(solution),
        )  # fmt: skip
        # Detached: what autograd attaches its graph to must not be what the Solution holds.
        return tuple([part.detach() for part in parts])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.op, _, *theta = inputs
        ctx.count, ctx.outputs = len(theta), len(output)
        ctx.mark_non_differentiable(*output[STATUS:])
        ctx.set_materialize_grads(False)
        saved = (*theta, *point_of(output))
        ctx.save_for_backward(*saved)
        ctx.save_for_forward(*saved)

    @staticmethod
    @understands_stacks
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        gx, gs, gz, grad_objective = grads[:STATUS]
        wanted = tuple(ctx.needs_input_grad[2:])
        found = AdjointOperator.apply(ctx.op, wanted, ctx.count, *ctx.saved_tensors, gx, gs, gz, grad_objective)
        return None, None, *fill(wanted, found)  # type: ignore[arg-type]

    @staticmethod
    @understands_stacks
    def jvp(ctx: Any, *dtheta: Any) -> tuple[Tensor | None, ...]:
        found = TangentOperator.apply(ctx.op, ctx.count, *ctx.saved_tensors, *dtheta[2:])
        return *found, *[None] * (ctx.outputs - STATUS)  # type: ignore[misc]

    @staticmethod
    def vmap(  # type: ignore[override]
        info: Any, in_dims: tuple[Any, ...], op: Operator, known: Solution | None, *theta: Tensor
    ) -> Any:
        merge = Merge.of_rows(info.batch_size, theta, in_dims[2:])
        rows = [merge.rows(value, dim) for value, dim in zip(theta, in_dims[2:], strict=True)]
        outputs = SolveOperator.apply(op, None, *rows)
        return tuple([merge.split(part) for part in outputs]), (0,) * len(outputs)  # type: ignore[arg-type]


class AdjointOperator(torch.autograd.Function):
    """Cotangents of a solution to those of the blocks of theta that are wanted."""

    @staticmethod
    def forward(op: Operator, wanted: tuple[bool, ...], count: int, *tensors: Tensor | None) -> tuple[Tensor, ...]:  # type: ignore[override]
        theta, point, cotangents = _parts(tensors, count)
        solution = op.restore(theta, point)
        found = op.plan.adjoint(theta, solution, Cotangents(*cotangents), wanted)
        op.inspect(solution)
        return tuple([grad for grad in found if grad is not None])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.op, ctx.wanted, ctx.count, *tensors = inputs
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)

    @staticmethod
    @understands_stacks
    def backward(ctx: Any, *u: Tensor | None) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        theta, point, cotangents = _parts(ctx.saved_tensors, ctx.count)
        op = ctx.op
        blocks = op.plan.program.map
        found = op.curvature(theta, point).pull_back(
            _dense(cotangents[:3], point), cotangents[3], _numbers(blocks, fill(ctx.wanted, u), point)
        )
        solved = _solved(point)
        objective = None if found.objective is None else solved(found.objective.unsqueeze(-1)).squeeze(-1)
        return (
            None, None, None, *blocks.adjoint(solved(found.data), theta, [True] * ctx.count),
            solved(found.x), solved(found.s), solved(found.z), *[None] * (len(point) - 3),
            *[None if part is None else solved(w) for part, w in zip(cotangents, found.cotangents, strict=False)],
            objective,
        )  # fmt: skip

    @staticmethod
    @understands_stacks
    def jvp(ctx: Any, *dtensors: Any) -> tuple[Tensor, ...]:
        theta, point, cotangents = _parts(ctx.saved_tensors, ctx.count)
        dtheta, dpoint, dcotangents = _parts(dtensors[3:], ctx.count)
        curvature, blocks = ctx.op.curvature(theta, point), ctx.op.plan.program.map
        moved = curvature.adjoint_tangent(
            _dense(cotangents[:3], point), cotangents[3], _changes(blocks, dtheta, dpoint, point),
            _dense(dcotangents[:3], point), dcotangents[3],
        )  # fmt: skip
        found = blocks.adjoint(_solved(point)(moved), theta, ctx.wanted)
        return tuple([grad for grad in found if grad is not None])

    @staticmethod
    def vmap(  # type: ignore[override]
        info: Any, in_dims: tuple[Any, ...], op: Operator, wanted: tuple[bool, ...], count: int, *tensors: Tensor | None
    ) -> Any:
        dims = in_dims[3:]
        merge = Merge.of_point(info.batch_size, tensors[count], dims[count])
        # A block that is wanted needs rows of its own for every element of the new dimension.
        own = [*wanted, *[True] * (len(tensors) - count)]
        rows = [merge.rows(value, dim, each) for value, dim, each in zip(tensors, dims, own, strict=True)]
        grads = [merge.split(part) for part in AdjointOperator.apply(op, wanted, count, *rows)]  # type: ignore[union-attr]
        given = [(value, dim) for value, dim, wish in zip(tensors, dims, wanted, strict=False) if wish]
        out = [
            grad.sum(1, keepdim=True) if merge.height(value, dim) == 1 and merge.batch != 1 else grad
            for grad, (value, dim) in zip(grads, given, strict=True)
        ]
        return tuple(out), (0,) * len(out)


class TangentOperator(torch.autograd.Function):
    """Tangents of theta to those of the solution and of the objective."""

    @staticmethod
    def forward(op: Operator, count: int, *tensors: Tensor | None) -> tuple[Tensor, ...]:  # type: ignore[override]
        theta, point, dtheta = _parts(tensors, count, count)
        solution = op.restore(theta, point)
        found = op.plan.tangent(theta, solution, dtheta)
        op.inspect(solution)
        return found.dx, found.ds, found.dz, found.objective

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.op, ctx.count, *tensors = inputs
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)

    @staticmethod
    @understands_stacks
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        theta, point, dtheta = _parts(ctx.saved_tensors, ctx.count, ctx.count)
        op, count = ctx.op, ctx.count
        blocks = op.plan.program.map
        u = _numbers(blocks, dtheta, point)
        found = op.curvature(theta, point).pull_back(_dense(grads[:3], point), grads[3], u)
        solved = _solved(point)
        wanted = tuple(d is not None for d in dtheta)
        back = AdjointOperator.apply(op, wanted, count, *theta, *point, *grads) if any(wanted) else ()
        return (
            None, None, *blocks.adjoint(solved(found.data), theta, [True] * count),
            solved(found.x), solved(found.s), solved(found.z), *[None] * (len(point) - 3), *fill(wanted, back),
        )  # type: ignore[arg-type] # fmt: skip

    @staticmethod
    @understands_stacks
    def jvp(ctx: Any, *dtensors: Any) -> tuple[Tensor, ...]:
        theta, point, directions = _parts(ctx.saved_tensors, ctx.count, ctx.count)
        dtheta, dpoint, ddirections = _parts(dtensors[2:], ctx.count, ctx.count)
        curvature, blocks = ctx.op.curvature(theta, point), ctx.op.plan.program.map
        u, du = _numbers(blocks, directions, point), _numbers(blocks, ddirections, point)
        parts, objective = curvature.tangent_tangent(u, _changes(blocks, dtheta, dpoint, point), du)
        solved = _solved(point)
        return *[solved(part) for part in parts], solved(objective.unsqueeze(-1)).squeeze(-1)

    @staticmethod
    def vmap(  # type: ignore[override]
        info: Any, in_dims: tuple[Any, ...], op: Operator, count: int, *tensors: Tensor | None
    ) -> Any:
        dims = in_dims[2:]
        merge = Merge.of_point(info.batch_size, tensors[count], dims[count])
        point = slice(count, len(tensors) - count)
        own = [point.start <= k < point.stop for k in range(len(tensors))]
        rows = [merge.rows(value, dim, each) for value, dim, each in zip(tensors, dims, own, strict=True)]
        outputs = TangentOperator.apply(op, count, *rows)
        return tuple([merge.split(part) for part in outputs]), (0,) * len(outputs)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Merge:
    """A dimension of vmap and the batch, made into one batch.

    Attributes:
        size: of the dimension of vmap.
        batch: B, without it.
    """

    size: int
    batch: int

    @classmethod
    def of_rows(cls, size: int, theta: Rows, dims: Sequence[int | None]) -> "Merge":
        """For blocks of theta."""
        heights = [cls.height(value, dim) for value, dim in zip(theta, dims, strict=True)]
        return cls(size, 0 if 0 in heights else max(heights, default=1))

    @classmethod
    def of_point(cls, size: int, x: Tensor | None, dim: int | None) -> "Merge":
        """For a point with this x."""
        return cls(size, cls.height(x, dim))

    @staticmethod
    def height(value: Tensor | None, dim: int | None) -> int:
        """Rows of a tensor (rows, ...) that may have the dimension of vmap besides."""
        assert value is not None
        return value.shape[1 if dim == 0 else 0]

    def rows(self, value: Tensor | None, dim: int | None, own: bool = False) -> Tensor | None:
        """The rows of the one batch; a single row that all share stays one, unless it is to have `own` rows."""
        if value is None or (dim is None and value.shape[0] == 1 and not own):
            return value
        spread = value.unsqueeze(0) if dim is None else value.movedim(dim, 0)
        shape = spread.shape[2:]
        return spread.expand(self.size, self.batch, *shape).reshape(self.size * self.batch, *shape)

    def split(self, value: Tensor) -> Tensor:
        """(size * B, ...) to (size, B, ...)."""
        return value.reshape(self.size, self.batch, *value.shape[1:])


def _parts(tensors: Sequence[Any], count: int, last: int = 4) -> tuple[Any, Any, Any]:
    """theta, the point, and the last ones: four cotangents, or `count` tangents."""
    return tuple(tensors[:count]), tuple(tensors[count : len(tensors) - last]), tuple(tensors[len(tensors) - last :])


def fill(wanted: Sequence[bool], found: Sequence[Tensor | None]) -> tuple[Tensor | None, ...]:
    """One entry per block, None where not wanted."""
    left = iter(found)
    return tuple([next(left) if wish else None for wish in wanted])


def point_of(outputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The point among the outputs of solve."""
    return (*outputs[POINT], outputs[STATUS], *outputs[STATES:])


def _dense(parts: Sequence[Tensor | None], point: Rows) -> tuple[Tensor, Tensor, Tensor]:
    """Parts for x, s and z, with zeros for None."""
    x, s, z = (torch.zeros_like(v) if part is None else part for part, v in zip(parts, point, strict=False))
    return x, s, z


def _numbers(blocks: AffineMap, dtheta: Sequence[Tensor | None], point: Rows) -> Tensor:
    """Tangent of the numbers, (B, size)."""
    found = blocks.tangent(dtheta, point[0].shape[0])
    return found if found.device == point[0].device else found.to(point[0].device)


def _changes(
    blocks: AffineMap, dtheta: Sequence[Tensor | None], dpoint: Sequence[Tensor | None], point: Rows
) -> Changes:
    """How numbers and solution move."""
    dx, ds, dz = _dense(dpoint[:3], point)
    return Changes(_numbers(blocks, dtheta, point), dx, ds, dz)


def _solved(point: Rows) -> Callable[[Tensor], Tensor]:
    """Zero for the elements that were not solved, (B, k) to (B, k)."""
    solved = (point[3] == 0).unsqueeze(-1)
    return lambda value: torch.where(solved, value, 0.0)
