"""The face of `ddn.pytorch.node`: deep declarative nodes written for that package run on this one.

Replace `from ddn.pytorch.node import *` by `from convexlayers.compat.ddn.pytorch.node import *`. A node is a class with
`objective`, constraints and `solve`, all over a batch, (b, ...); the derivative is `convexlayers.nodes`': linear
equalities are respected, active inequalities are found by multipliers, redundant constraints and singular Hessians get
least squares, and second derivatives are right. The other face, `ddn.basic.node`, is
`convexlayers.compat.ddn.basic.node`.

What differs: `eps` is not what decides about active constraints, which is tied to the accuracy of the dtype and to what
was measured; `chunk_size` is accepted and not needed, since no Jacobian in the inputs is formed; `ctx['nu']` is used
where there are equalities only, and multipliers are found by nonnegative least squares otherwise.
"""

import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd import grad

from convexlayers.errors import ArgumentError, DerivativeWarning, SecondDerivativeError, count_of
from convexlayers.nodes.derivative import NodeCall, NodeFunction
from convexlayers.nodes.point import Outcome, Point, judge
from convexlayers.nodes.problem import BoundProblem, Problem
from convexlayers.status import Status

__all__ = [
    "AbstractDeclarativeNode",
    "AbstractNode",
    "DeclarativeFunction",
    "DeclarativeLayer",
    "EqConstDeclarativeNode",
    "IneqConstDeclarativeNode",
    "LinEqConstDeclarativeNode",
    # That module's star import gives these, too, and nodes written for it rely on it.
    "grad",
    "torch",
    "warnings",
]

# How accurate a solve in this dtype is taken to be.
ACCURACY = {torch.float64: 1e-6}
LOW_ACCURACY = 1e-3


class AbstractNode:
    """A function with a gradient: `solve` returns the output and a context, `gradient` a tuple of products."""

    def __init__(self) -> None:
        self.b: int | None = None
        self.m: int | None = None
        self.n: Any = None

    def solve(self, *xs: Any) -> tuple[Tensor, Any]:
        """The output, (b, ...), and what the gradient may use, or None."""
        raise NotImplementedError(f"{type(self).__name__} does not implement solve.")

    def gradient(self, *xs: Any, y: Tensor | None = None, v: Tensor | None = None, ctx: Any = None) -> tuple[Any, ...]:
        """v' dy/dx for every input, None for those that do not require gradients."""
        raise NotImplementedError(f"{type(self).__name__} does not implement gradient.")

    def _expand_as_batch(self, x: Tensor) -> Tensor:
        """x repeated along a new batch dimension, without a copy."""
        assert self.b is not None
        return x.expand(self.b, *x.size())


class AbstractDeclarativeNode(AbstractNode):
    """minimize f(x, y) over y. Implement `objective` and `solve`.

    Args:
        eps: kept for its name; see the module.
        gamma: added to the diagonal of the Hessian in derivatives.
        chunk_size: accepted; see the module.
    """

    def __init__(self, eps: float = 1e-12, gamma: float | None = None, chunk_size: int | None = None) -> None:
        super().__init__()
        self.eps, self.gamma, self.chunk_size = eps, gamma, chunk_size

    def objective(self, *xs: Any, y: Tensor) -> Tensor:
        """f, (b,)."""
        raise NotImplementedError(f"{type(self).__name__} does not implement objective.")

    def gradient(self, *xs: Any, y: Tensor | None = None, v: Tensor | None = None, ctx: Any = None) -> tuple[Any, ...]:
        """v' dy/dx for every input.

        Args:
            xs: inputs, (b, ...) each.
            y: solution, (b, ...), by default that of `solve`. v: cotangent of y, by default ones.
            ctx: of `solve`; "nu" are multipliers of equalities, in the Lagrangian f - nu'h.
        """
        with torch.no_grad():
            if y is None:
                y, ctx = self.solve(*xs)
        wanted = [i for i, x in enumerate(xs) if isinstance(x, Tensor) and x.requires_grad]
        leaves: list[Any] = [x.detach().requires_grad_() if i in wanted else x for i, x in enumerate(xs)]
        found: list[Tensor | None] = [None] * len(xs)
        if wanted:
            with torch.enable_grad():
                attached = attach(self, leaves, y.detach(), ctx)
            v = torch.ones_like(y) if v is None else v
            products = grad(attached, [leaves[i] for i in wanted], v.reshape(y.shape))
            for i, product in zip(wanted, products, strict=True):
                found[i] = product
        return tuple(found)

    def jacobian(self, *xs: Any, y: Tensor | None = None, ctx: Any = None) -> tuple[Any, ...]:
        """dy/dx for every input, (b, *shape of y, *shape of x), None for those that do not require gradients."""
        with torch.no_grad():
            if y is None:
                y, ctx = self.solve(*xs)
        flat = y.reshape(len(y), -1)
        rows = []
        for i in range(flat.shape[1]):
            v = torch.zeros_like(flat)
            v[:, i] = 1
            rows.append(self.gradient(*xs, y=y, v=v.reshape(y.shape), ctx=ctx))
        columns = zip(*rows, strict=True)
        return tuple(
            None if column[0] is None else torch.stack(column, 1).reshape(*y.shape, *column[0].shape[1:])
            for column in columns
        )


class EqConstDeclarativeNode(AbstractDeclarativeNode):
    """minimize f(x, y) over y subject to h(x, y) = 0. Implement `objective`, `equality_constraints` and `solve`."""

    def equality_constraints(self, *xs: Any, y: Tensor) -> Tensor | None:
        """h, (b,) or (b, p)."""
        raise NotImplementedError(f"{type(self).__name__} does not implement equality_constraints.")


class IneqConstDeclarativeNode(EqConstDeclarativeNode):
    """minimize f(x, y) over y subject to h(x, y) = 0, g(x, y) <= 0. Implement `objective`, `inequality_constraints`,
    `solve` and, where there are equalities, `equality_constraints`."""

    def equality_constraints(self, *xs: Any, y: Tensor) -> Tensor | None:
        """h, (b,) or (b, p), or None for none."""
        return None

    def inequality_constraints(self, *xs: Any, y: Tensor) -> Tensor | None:
        """g, (b,) or (b, q), or None for none."""
        raise NotImplementedError(f"{type(self).__name__} does not implement inequality_constraints.")


class LinEqConstDeclarativeNode(EqConstDeclarativeNode):
    """minimize f(x, y) over y subject to A y = d. Implement `objective`, `linear_constraint_parameters`, `solve`."""

    def linear_constraint_parameters(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """A, (p, m), and d, (p,), which do not depend on the inputs."""
        raise NotImplementedError(f"{type(self).__name__} does not implement linear_constraint_parameters.")

    def equality_constraints(self, *xs: Any, y: Tensor) -> Tensor | None:
        """A y - d, (b, p)."""
        A, d = self.linear_constraint_parameters(y)
        return y.reshape(y.shape[0], -1) @ A.to(y).mT - d.to(y)


def attach(node: AbstractDeclarativeNode, xs: Sequence[Any], y: Tensor, ctx: Any = None) -> Tensor:
    """y as a differentiable function of the tensors among xs; derivatives of every order.

    Args:
        node: whose solution y is.
        xs: inputs, (b, ...); those that are no tensors are constants.
        y: (b, ...). ctx: as `solve` returned it.
    """
    places = [i for i, x in enumerate(xs) if isinstance(x, Tensor)]
    tensors = [xs[i].to(torch.float64) if xs[i].is_floating_point() else xs[i] for i in places]
    for i, tensor in zip(places, tensors, strict=True):
        if tensor.shape[:1] != y.shape[:1]:
            raise ArgumentError(f"input {i} has shape {tuple(tensor.shape)}, expected ({len(y)}, ...) as the output.")
    if not tensors:
        return y
    problem = _problem(node, xs, places, tuple(y.shape[1:]))
    call = NodeCall(problem, lambda call, rows: _point(call, rows, y, ctx), len(y), node.gamma or 0.0)
    attached, *_ = NodeFunction.apply(call, *tensors)  # type: ignore[misc]
    return attached.reshape(y.shape).to(y.dtype)


def _problem(
    node: AbstractDeclarativeNode, xs: Sequence[Any], places: Sequence[int], shape: tuple[int, ...]
) -> Problem:
    def function(name: str) -> Any:
        def of_tensors(*arguments: Tensor) -> Tensor:
            merged = list(xs)
            for place, value in zip(places, arguments, strict=False):
                merged[place] = value
            return getattr(node, name)(*merged, y=arguments[-1])

        return of_tensors

    def given(name: str) -> Any:
        """None where the node has no such constraints."""
        if not hasattr(node, name):
            return None
        probe = torch.ones(len(xs[places[0]]), *shape, dtype=torch.float64, device=xs[places[0]].device)
        values = [x.detach() if isinstance(x, Tensor) else x for x in xs]
        with torch.no_grad():
            return None if getattr(node, name)(*values, y=probe) is None else function(name)

    return Problem(function("objective"), given("equality_constraints"), given("inequality_constraints"), shape, True)


def _point(call: NodeCall, xs: Sequence[Tensor], y: Tensor, ctx: Any) -> Point:
    """The node's own solution, measured; a poor one is announced, and differentiated nevertheless."""
    flat = y.detach().reshape(len(y), -1).to(torch.float64)
    p, q = call.problem.probe([x[:1].detach() for x in xs], flat[:1])
    call.equalities = p
    given = None
    if isinstance(ctx, dict) and isinstance(ctx.get("nu"), Tensor) and q == 0 and ctx["nu"].numel() == len(y) * p:
        given = -ctx["nu"].detach().reshape(len(y), p).to(torch.float64)
    status = torch.zeros(len(y), dtype=torch.int64, device=y.device)
    bound = BoundProblem(call.problem, tuple(x.detach() for x in xs), p)
    accuracy = ACCURACY.get(y.dtype, LOW_ACCURACY)
    point = judge(bound, Outcome(flat, status, status.clone(), given), accuracy, 0)
    poor = point.status != int(Status.SOLVED)
    if bool(poor.any()):
        worst = int(point.residual.argmax())
        warnings.warn(
            f"The output of {count_of(int(poor.sum()), 'element')} of {len(y)} is not a solution (index {worst}: "
            f"stationarity {float(point.stationarity[worst]):.1e}, violation {float(point.violation[worst]):.1e}).",
            DerivativeWarning,
            stacklevel=2,
        )
        finite = point.residual.isfinite()
        point = replace(point, status=torch.where(finite, int(Status.SOLVED), point.status))
    return point


class DeclarativeFunction(torch.autograd.Function):
    """A node whose class has a `gradient` of its own. Differentiable once."""

    @staticmethod
    def forward(ctx: Any, problem: AbstractNode, *inputs: Any) -> Tensor:  # type: ignore[override]
        output, ctx.solve_ctx = problem.solve(*inputs)
        ctx.problem, ctx.places = problem, [i for i, x in enumerate(inputs) if isinstance(x, Tensor)]
        ctx.constants = [None if isinstance(x, Tensor) else x for x in inputs]
        ctx.save_for_backward(output, *(inputs[i] for i in ctx.places))
        return output.clone()

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Any, ...]:  # type: ignore[override]
        if torch.is_grad_enabled():
            raise SecondDerivativeError(
                f"{type(ctx.problem).__name__} has a gradient of its own, which cannot be differentiated again. Leave "
                "gradient to the base class."
            )
        output, *tensors = ctx.saved_tensors
        inputs = list(ctx.constants)
        for place, tensor in zip(ctx.places, tensors, strict=True):
            inputs[place] = tensor
        with torch.enable_grad():
            y = output.detach().requires_grad_()
            found = ctx.problem.gradient(*inputs, y=y, v=grad_output, ctx=ctx.solve_ctx)
        return None, *found


class DeclarativeLayer(torch.nn.Module):
    """A node as a module.

    Args:
        problem: the node.
    """

    def __init__(self, problem: AbstractNode) -> None:
        super().__init__()
        self.problem = problem

    def forward(self, *inputs: Any) -> Tensor:
        """The node's output, (b, ...), differentiable in the inputs that are tensors, (b, ...) each."""
        node = self.problem
        own = getattr(node.gradient, "__func__", node.gradient) is not AbstractDeclarativeNode.gradient
        if own or not isinstance(node, AbstractDeclarativeNode):
            return DeclarativeFunction.apply(node, *inputs)  # type: ignore[return-value]
        with torch.no_grad():
            y, ctx = node.solve(*(x.detach() if isinstance(x, Tensor) else x for x in inputs))
        return attach(node, inputs, y.detach(), ctx)
