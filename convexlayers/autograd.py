"""Where torch's automatic differentiation meets the engines.

One Function: it takes blocks of theta, returns (x, s, z, objective), and hands cotangents and tangents to the plan. The
Solution travels in the `Call`, one per call, so that nothing is written to the module or the plan.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from convexlayers.derivatives import Cotangents
from convexlayers.engines.base import Plan
from convexlayers.errors import DerivativeWarning, SecondDerivativeError, count_of
from convexlayers.solution import DerivativeReport, Solution

# A derivative whose linear system was solved worse than this is announced.
RESIDUAL_WORTH_A_WARNING = 1e-6


@dataclass
class Call:
    """One call of a plan.

    Attributes:
        plan: who solves.
        solution: what came out, set by the forward pass.
    """

    plan: Plan
    solution: Solution | None = None

    @property
    def solved(self) -> Solution:
        """The solution; the forward pass has run."""
        assert self.solution is not None
        return self.solution


class SolveFunction(torch.autograd.Function):
    """(x, s, z, objective) as a differentiable function of theta; failed elements are NaN with zero gradient."""

    @staticmethod
    def forward(call: Call, *theta: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # type: ignore[override]
        call.solution = call.plan.solve(theta)
        solution = call.solution
        failed = ~solution.solved
        rows = failed.unsqueeze(-1)
        nan = float("nan")
        return (
            solution.x.masked_fill(rows, nan),
            solution.s.masked_fill(rows, nan),
            solution.z.masked_fill(rows, nan),
            solution.objective.masked_fill(failed, nan),
        )

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.call, theta = inputs[0], inputs[1:]
        ctx.save_for_backward(*theta)
        ctx.save_for_forward(*theta)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        theta = ctx.saved_tensors
        return None, *AdjointFunction.apply(ctx.call, ctx.needs_input_grad[1:], len(theta), *theta, *grads)

    @staticmethod
    def jvp(ctx: Any, *dtheta: Tensor | None) -> tuple[Tensor, ...]:  # type: ignore[override]
        call = ctx.call
        tangents = call.plan.tangent(ctx.saved_tensors, call.solved, dtheta[1:])
        warn_of_residual(call.solved.report)
        return tangents.dx, tangents.ds, tangents.dz, tangents.objective


class AdjointFunction(torch.autograd.Function):
    """The backward pass as a Function of its own, so that differentiating it again is an error, not a silent zero."""

    @staticmethod
    def forward(  # type: ignore[override]
        call: Call, wanted: Sequence[bool], blocks: int, *tensors: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        theta, (grad_x, grad_s, grad_z, grad_objective) = tensors[:blocks], tensors[blocks:]
        solution = call.solved
        cotangents = Cotangents(
            x=torch.zeros_like(solution.x) if grad_x is None else grad_x,
            s=torch.zeros_like(solution.s) if grad_s is None else grad_s,
            z=torch.zeros_like(solution.z) if grad_z is None else grad_z,
            objective=grad_objective,
        )
        grads = call.plan.adjoint([t for t in theta if t is not None], solution, cotangents, wanted)
        warn_of_residual(solution.report)
        return grads

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor | None, ...]) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        raise SecondDerivativeError(
            "The derivative of a solution was differentiated again; second derivatives are not implemented. "
            "Call backward without create_graph=True, or detach the gradient."
        )


def warn_of_residual(report: DerivativeReport) -> None:
    """Announce derivatives whose linear system has no solution, or was not solved accurately."""
    if report.residual is None:
        return
    large = torch.nan_to_num(report.residual) > RESIDUAL_WORTH_A_WARNING
    number = int(large.sum())
    if number == 0:
        return
    first = int(large.nonzero()[0])
    warnings.warn(
        f"The derivative of {count_of(number, 'element')} of {large.numel()} is not exact (first index {first}, "
        f"relative residual {float(report.residual[first]):.1e}): the solution or its multipliers are not unique "
        "there, or the data are badly scaled. The least-squares derivative of minimum norm was returned.",
        DerivativeWarning,
        stacklevel=4,
    )


def differentiable_solve(plan: Plan, theta: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor, Solution]:
    """Solve and attach the derivative.

    Args:
        plan: from `engine.setup`.
        theta: float64 blocks of shape (B, k_i) or (1, k_i).

    Returns:
        x (B, n), s (B, m), z (B, m), objective (B,), all differentiable, NaN in failed elements; and the Solution.
    """
    call = Call(plan)
    outputs = SolveFunction.apply(call, *theta)
    x, s, z, objective = outputs  # type: ignore[misc]
    return x, s, z, objective, call.solved
