"""What a node knows about a call."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from convexlayers.nodes.derivative import NodeCall, NodeReport
from convexlayers.nodes.point import Point
from convexlayers.status import Status, describe, raise_for_status


@dataclass(frozen=True, eq=False)
class NodeSolution:
    """Solutions of a batch, one entry per element, in the user's batch shape.

    Attributes:
        y: (*batch, *shape), differentiable, NaN in failed elements.
        equality_multipliers, inequality_multipliers: (*batch, p) and (*batch, q), differentiable. The Lagrangian is
            f + nu'h + mu'g with mu >= 0.
        call: the values behind it, flat.
        inputs: (B, ...) each, differentiable, float64.
        batch: batch shape.
    """

    y: Tensor
    equality_multipliers: Tensor
    inequality_multipliers: Tensor
    call: NodeCall
    inputs: Sequence[Tensor]
    outputs: tuple[Tensor, Tensor]
    batch: tuple[int, ...]

    @property
    def point(self) -> Point:
        """Everything that was measured, flat."""
        return self.call.solved

    @cached_property
    def objective(self) -> Tensor:
        """Optimal value, (*batch), differentiable.

        It is the Lagrangian at the solution, whose derivative in y and in the multipliers is zero (the envelope
        theorem), with what second derivatives need.
        """
        y, lam = self.outputs
        return self._shaped(self.call.problem.lagrangian(self.inputs, y, lam)).to(self.y.dtype)

    @property
    def status(self) -> Tensor:
        """`Status` codes, int64 (*batch)."""
        return self._shaped(self.point.status)

    @property
    def solved(self) -> Tensor:
        """Boolean mask (*batch)."""
        return self.status == int(Status.SOLVED)

    @property
    def iterations(self) -> Tensor:
        """Of the solver, from the start that won, int64 (*batch)."""
        return self._shaped(self.point.iterations)

    @property
    def start(self) -> Tensor:
        """Which start won, int64 (*batch): 0 is the node's own, then `Restarts.points`, then the random ones."""
        return self._shaped(self.point.start)

    @property
    def stationarity(self) -> Tensor:
        """|grad L|, relative; see `convexlayers.nodes.point`. float64 (*batch)."""
        return self._shaped(self.point.stationarity)

    @property
    def violation(self) -> Tensor:
        """Largest violation of a constraint, as a relative distance, float64 (*batch)."""
        return self._shaped(self.point.violation)

    @property
    def active(self) -> Tensor:
        """Which inequalities hold with equality and a positive multiplier, bool (*batch, q)."""
        p = self.equality_multipliers.shape[-1]
        return self._shaped(self.point.active)[..., p:]

    @property
    def weakly_active(self) -> Tensor:
        """Whether an inequality holds with equality and a zero multiplier, bool (*batch): one-sided derivatives."""
        return self._shaped(self.point.weakly_active)

    @property
    def rank_deficient(self) -> Tensor:
        """Whether the optimality conditions are singular, bool (*batch): solution or multipliers are not unique."""
        return self._shaped(self.point.rank_deficient)

    @property
    def negative_curvature(self) -> Tensor:
        """Whether the objective falls along a direction within the active constraints, bool (*batch): no minimum."""
        return self._shaped(self.point.negative_curvature)

    @property
    def derivative_report(self) -> NodeReport:
        """What is known of the last derivative, flat over the batch; empty before backward."""
        return self.call.report

    def raise_for_status(self) -> None:
        """Raise `SolverError` unless every element is solved."""
        raise_for_status(self.status)

    def describe(self) -> str:
        """The statuses in sentences."""
        return describe(self.status)

    def _shaped(self, value: Tensor) -> Tensor:
        return value.reshape(*self.batch, *value.shape[1:])
