"""Declarative nodes: layers that are defined by what their output minimizes, convex or not.

Source: Gould, Hartley, Campbell, "Deep declarative networks: a new hope" (arXiv 1909.04866).
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from convexlayers.autograd import in_forward_mode
from convexlayers.batching import Value, as_tensor, common_dtype
from convexlayers.errors import ArgumentError, MissingArgumentError, count_of, wrong_shape
from convexlayers.execute import check_policy
from convexlayers.nodes.blocks import in_blocks
from convexlayers.nodes.derivative import NodeCall, NodeFunction
from convexlayers.nodes.point import Outcome, Point, judge
from convexlayers.nodes.problem import BoundProblem, Function, Problem
from convexlayers.nodes.solution import NodeSolution
from convexlayers.nodes.solvers import SQP, LevenbergMarquardt, Newton, NodeSolver
from convexlayers.nodes.starts import Restarts, Start, better_of, first_start, starting_points
from convexlayers.status import Status, raise_for_status

OwnSolve = Callable[..., Any]
FIELDS = tuple(Point.__dataclass_fields__)


class DeclarativeNode(nn.Module):
    """y(x) = argmin_y f(x, y) subject to h(x, y) = 0, g(x, y) <= 0, differentiable in every input x.

    The functions are written with torch for ONE element: `objective(*inputs, y)` returns a scalar, `equalities` and
    `inequalities` tensors of any shape. They are mapped over the batch, so that no element can reach into another. The
    derivative follows from the optimality conditions and needs no knowledge of how the solution was found. It is
    computed in float64.

    Args:
        objective: f.
        equalities, inequalities: h and g, or None.
        start: where solvers start: a tensor of the shape of y, or a function of the inputs of one element. Not needed
            with a solve of your own.
        solver: None for `Newton`, or `SQP` where there are constraints; a solver object of `convexlayers.nodes`; or a
            function of your own that takes the inputs of the whole batch, (B, ...) each, detached, and returns y,
            (B, *shape), or y and multipliers, (B, p + q).
        restarts: more starts, see `Restarts`.
        event_dims: number of dimensions of each input of one element. Dimensions in front of them are batch dimensions
            and broadcast; an input without any is shared, and its gradient is the sum over the batch. By default every
            input has exactly one batch dimension.
        on_failure: "raise", or "nan": failed elements are NaN and have zero gradients, the others are as if alone.
        tolerance: relative accuracy of a solve of your own, 1e-6 by default; built-in solvers have theirs.
        refinement: Newton's steps on the optimality conditions after the solver, so that gradients do not carry its
            tolerance. By default 3 after built-in solvers and none after your own.
        damping: added to the diagonal of the Hessian in derivatives.
        block: number of elements that are worked off together. It bounds memory, and as every block has the same
            shapes, an element's numbers are the same to the last bit in any batch.
        batched: whether the functions, `start` and `points` take a batch, (B, ...) each, instead of one element.

    Shape:
        inputs (*batch, *event) each; output (*batch, *shape of y).

    Examples:
        >>> import torch
        >>> from convexlayers.nodes import DeclarativeNode
        >>> node = DeclarativeNode(lambda x, y: (y - x).square().sum(), lambda x, y: y.sum() - 1, start=torch.zeros(2))
        >>> x = torch.tensor([[1.0, 3.0]], requires_grad=True)
        >>> y = node(x)
        >>> [round(value, 6) for value in y[0].tolist()]
        [-0.5, 1.5]
        >>> y[0, 0].backward()
        >>> [round(value, 6) for value in x.grad[0].tolist()]
        [0.5, -0.5]
    """

    def __init__(
        self,
        objective: Function,
        equalities: Function | None = None,
        inequalities: Function | None = None,
        *,
        start: Start | None = None,
        solver: NodeSolver | OwnSolve | None = None,
        restarts: Restarts | None = None,
        event_dims: Sequence[int] | None = None,
        on_failure: str = "raise",
        tolerance: float = 1e-6,
        refinement: int | None = None,
        damping: float = 0.0,
        block: int = 64,
        batched: bool = False,
    ) -> None:
        super().__init__()
        own = solver is not None and not hasattr(solver, "solve")
        if own == (start is not None):
            raise ArgumentError("start is where a built-in solver begins: give a start, or a solve of your own.")
        if own and restarts is not None:
            raise ArgumentError("restarts are for built-in solvers, not for a solve of your own.")
        if block < 1:
            raise ArgumentError(f"block is {block}, expected a number of elements, 1 or more.")
        constrained = equalities is not None or inequalities is not None
        if constrained and not own and solver is not None and not solver.constrained:  # type: ignore[union-attr]
            raise ArgumentError(
                f"{type(solver).__name__} is for nodes without constraints; use SQP or AugmentedLagrangian."
            )
        self.objective, self.equalities, self.inequalities = objective, equalities, inequalities
        self.start, self.restarts = start, restarts
        self.solver: Any = solver if solver is not None else SQP() if constrained else Newton()
        self.event_dims = None if event_dims is None else tuple(event_dims)
        self.on_failure = check_policy(on_failure)
        self.tolerance = tolerance if own else self.solver.tolerance
        self.refinement = refinement if refinement is not None else 0 if own else 3
        self.damping, self.block, self.batched, self.own = damping, block, batched, own

    def forward(self, *inputs: Value) -> Tensor:
        """The solution, (*batch, *shape).

        Raises:
            ArgumentError: an input or the result of a function has a wrong shape.
            SolverError: on_failure is "raise" and an element was not solved.
        """
        xs, batch, dtype = self._prepare(inputs)
        if 0 in batch:
            return self._empty(xs, batch, dtype)
        call, (y, _) = self._run(xs)
        return self._restore(y, call.problem.shape, batch, dtype)

    def solve(self, *inputs: Value) -> NodeSolution:
        """The solution with everything that is known of it. Raises as `forward`, and for an empty batch."""
        xs, batch, dtype = self._prepare(inputs)
        if 0 in batch:
            raise ArgumentError("The batch is empty, expected at least one element.")
        call, (y, lam) = self._run(xs)
        p = call.equalities
        restored = self._restore(y, call.problem.shape, batch, dtype)
        multipliers = lam.reshape(*batch, lam.shape[1]).to(dtype)
        return NodeSolution(restored, multipliers[..., :p], multipliers[..., p:], call, xs, (y, lam), batch)

    def _empty(self, xs: list[Tensor], batch: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """No solutions, with the shape that there would be."""
        if self.start is None:
            shape = self._own_outcome(xs)[0].shape[1:]
        else:
            shape = first_start(self.start, [x.new_zeros(1, *x.shape[1:]) for x in xs], self.batched).shape[1:]
        nothing = sum(x.sum() for x in xs if x.is_floating_point())
        return (xs[0].new_zeros(*batch, *shape, dtype=torch.float64) + nothing).to(dtype)

    def _run(self, xs: list[Tensor]) -> tuple[NodeCall, tuple[Tensor, Tensor]]:
        call = NodeCall(self._problem(()), self._solve, self.block)
        call.damping = self.damping
        y, lam, *_ = NodeFunction.apply(call, *xs)  # type: ignore[misc]
        if in_forward_mode() and not torch._C._are_functorch_transforms_active():
            call.problem.refuse_tangents([forward_ad.unpack_dual(x[:1]).primal for x in xs], call.solved.y[:1])
        if self.on_failure == "raise":
            raise_for_status(call.solved.status)
        return call, (y, lam)

    def _prepare(self, inputs: Sequence[Value]) -> tuple[list[Tensor], tuple[int, ...], torch.dtype]:
        """Inputs as (B, ...), differentiable, floating-point ones in float64; the batch shape; the results' dtype."""
        if not inputs:
            raise MissingArgumentError("A node needs at least one input.")
        tensors = [
            value if isinstance(value, Tensor) else as_tensor(f"input {i}", value) for i, value in enumerate(inputs)
        ]
        dims = self.event_dims or tuple(tensor.ndim - 1 for tensor in tensors)
        if len(dims) != len(tensors):
            raise MissingArgumentError(f"{count_of(len(tensors), 'input')} given, expected {len(dims)}.")
        for i, (tensor, ndim) in enumerate(zip(tensors, dims, strict=True)):
            if tensor.ndim < ndim or ndim < 0:
                expected = "one batch dimension in front" if ndim < 0 else f"{count_of(ndim, 'dimension')} or more"
                raise wrong_shape(f"input {i}", tensor.shape, expected)
        leading = [tensor.shape[: tensor.ndim - ndim] for tensor, ndim in zip(tensors, dims, strict=True)]
        try:
            batch = tuple(torch.broadcast_shapes(*leading))
        except RuntimeError as error:
            listed = ", ".join(str(tuple(lead)) for lead in leading)
            raise ArgumentError(f"The batch dimensions of the inputs do not broadcast: {listed}.") from error
        rows = []
        for tensor, lead in zip(tensors, leading, strict=True):
            event = tensor.shape[len(lead) :]
            row = tensor.expand(*batch, *event).reshape(-1, *event)
            rows.append(row.to(torch.float64) if row.is_floating_point() else row)
        return rows, batch, common_dtype(inputs)

    def _restore(self, y: Tensor, shape: tuple[int, ...], batch: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        return y.reshape(*batch, *shape).to(dtype)

    def _problem(self, shape: tuple[int, ...]) -> Problem:
        """The functions; nodes that know derivatives of theirs by formula add them here."""
        return Problem(self.objective, self.equalities, self.inequalities, shape, self.batched)

    def _solve(self, call: NodeCall, xs: Sequence[Tensor]) -> Point:
        """Solve for inputs (B, ...); sets the problem of the call, whose shapes are known now."""
        xs = [x.detach() for x in xs]
        given = self._own_outcome(xs) if self.own else None
        start = self.start
        if given is not None:
            shape = tuple(given[0].shape[1:])
        else:
            assert start is not None
            shape = tuple(first_start(start, [x[:1] for x in xs], self.batched).shape[1:])
        problem = self._problem(shape)
        first = torch.ones(1, problem.n, dtype=torch.float64, device=xs[0].device)
        call.problem = problem
        call.equalities, inequalities = problem.probe([x[:1] for x in xs], first)
        if given is None:
            return self._solve_from_starts(call, xs)
        outcome = _check_own(given, len(xs[0]), call.equalities + inequalities)
        return Point(*in_blocks(self._judged_block(call, len(xs)), [*xs, *outcome], self.block))

    def _solve_from_starts(self, call: NodeCall, xs: list[Tensor]) -> Point:
        """Every start of every element is an element of its own; the best start of each is kept."""
        start, batch = self.start, len(xs[0])
        assert start is not None

        def points(*block: Tensor) -> list[Tensor]:
            return [torch.stack(starting_points(call.problem, start, self.restarts, block), 1)]

        def solved(*block: Tensor) -> list[Tensor]:
            bound = BoundProblem(call.problem, block[:-1], call.equalities)
            found = self._judge(bound, self.solver.solve(bound, block[-1]))
            return [getattr(found, name) for name in FIELDS]

        (starts,) = in_blocks(points, xs, self.block)
        count = starts.shape[1]
        repeated = xs if count == 1 else [x.repeat_interleave(count, 0) for x in xs]
        parts = in_blocks(solved, [*repeated, starts.flatten(0, 1)], self.block)
        rows = [part.reshape(batch, count, *part.shape[1:]).unbind(1) for part in parts]
        best = Point(*(part[0] for part in rows))
        for index in range(1, count):
            best = better_of(best, Point(*(part[index] for part in rows)), index)
        return best

    def _judged_block(self, call: NodeCall, count: int) -> Callable[..., list[Tensor]]:
        def block(*tensors: Tensor) -> list[Tensor]:
            bound = BoundProblem(call.problem, tensors[:count], call.equalities)
            y, *multipliers = tensors[count:]
            status = torch.zeros(len(y), dtype=torch.int64, device=y.device)
            outcome = Outcome(y, status, status.clone(), multipliers[0] if multipliers else None)
            found = self._judge(bound, outcome)
            return [getattr(found, name) for name in FIELDS]

        return block

    def _judge(self, bound: BoundProblem, outcome: Outcome) -> Point:
        status = outcome.status
        for x in bound.xs:
            if x.is_floating_point():
                bad = ~x.reshape(len(x), -1).isfinite().all(1)
                status = torch.where(bad, int(Status.INVALID_DATA), status)
        outcome = Outcome(outcome.y, status, outcome.iterations, outcome.multipliers, outcome.start)
        return judge(bound, outcome, self.tolerance, self.refinement)

    def _own_outcome(self, xs: Sequence[Tensor]) -> tuple[Tensor, Tensor | None]:
        found = self.solver(*xs)
        y, multipliers = found if isinstance(found, tuple) else (found, None)
        return y.detach(), None if multipliers is None else multipliers.detach()


def _check_own(given: tuple[Tensor, Tensor | None], batch: int, m: int) -> list[Tensor]:
    """y (B, n) and, where given, multipliers (B, m), float64."""
    y, multipliers = given
    if y.ndim < 1 or y.shape[0] != batch:
        raise wrong_shape("the result of the solve", y.shape, f"({batch}, ...)")
    outcome = [y.reshape(batch, -1).to(torch.float64)]
    if multipliers is not None:
        if multipliers.shape[0] != batch or multipliers.numel() != batch * m:
            raise wrong_shape("the multipliers of the solve", multipliers.shape, f"({batch}, {m})")
        outcome.append(multipliers.reshape(batch, m).to(torch.float64))
    return outcome


def declarative_node(
    objective: Function, equalities: Function | None = None, inequalities: Function | None = None, **options: Any
) -> Callable[[OwnSolve], DeclarativeNode]:
    """Decorator that makes a node of a solve of your own; arguments as of `DeclarativeNode`.

    Examples:
        >>> import torch
        >>> from convexlayers.nodes import declarative_node
        >>> @declarative_node(lambda x, y: 0.5 * (y - x).square().sum(), lambda x, y: y @ y - 1)
        ... def on_sphere(x):
        ...     return x / x.norm(dim=1, keepdim=True)
        >>> on_sphere(torch.tensor([[3.0, 4.0]])).tolist()
        [[0.6000000238418579, 0.800000011920929]]
    """

    def decorate(solve: OwnSolve) -> DeclarativeNode:
        return DeclarativeNode(objective, equalities, inequalities, solver=solve, **options)

    return decorate


def least_squares_node(residuals: Function, *, start: Start, **options: Any) -> DeclarativeNode:
    """The node that minimizes 1/2 |r(x, y)|^2, solved by `LevenbergMarquardt`.

    Args:
        residuals: r(*inputs, y) of one element, any shape.
        start, options: as of `DeclarativeNode`; tolerance and max_iterations are the solver's.
    """
    chosen = {name: options.pop(name) for name in ("tolerance", "max_iterations") if name in options}

    def objective(*arguments: Tensor) -> Tensor:
        found = residuals(*arguments)
        return 0.5 * (found.flatten(1).square().sum(1) if options.get("batched") else found.square().sum())

    return DeclarativeNode(objective, start=start, solver=LevenbergMarquardt(residuals, **chosen), **options)
