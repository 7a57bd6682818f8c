"""The derivative of the central path, in place of a solution that does not move or has no derivative.

x_mu = argmin 1/2 x'Px + q'x + mu f(s), Ax + s = b, with the barrier f of K (central.py says how it is found), is a
smooth function of P, q, A, b wherever it exists. Its conditions are those of the cone program with s = s(v), the
proximal map of mu f, for Proj_K(v), so its derivative is that of exact.py with

    M = ds/dv = (I + mu D2f(s))^-1    for    M = D Proj_K(v),

that is H = M (I - M)^-1 = (mu D2f(s))^-1, the scaling matrix of an interior-point method at that point. The eigenvalues
of M lie strictly between 0 and 1: at a vertex, where the exact derivative in q is zero, this one is about mu over the
square of the multipliers, and at a weakly active constraint, s_i = z_i = sqrt(mu), it is 1/2.

The objective 1/2 x'Px + q'x + offset is not minimal at x_mu, so the envelope theorem does not hold; with g its
cotangent,

    g d(objective) = g (Px + q)'dx + g (1/2 x'dP x + dq'x + d(offset)).

Units: barriers change by a constant if a cone is scaled as a whole, so with the objective in units of omega
(scaling.py) mu f is mu / omega f.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from convexlayers.derivatives import implicit
from convexlayers.derivatives.base import NO_CONTEXT, Context, Cotangents, Derivative, Tangents
from convexlayers.derivatives.central import CentralPoint, central_point
from convexlayers.derivatives.implicit import lagrangian_gradient
from convexlayers.errors import ArgumentError
from convexlayers.program import ConeProgram
from convexlayers.solution import DerivativeReport

FORWARD = ("smoothed", "exact")


@dataclass(frozen=True)
class Smoothed(Derivative):
    """Differentiate the solution with a barrier: useful where the exact derivative is zero or does not exist.

    Args:
        mu: weight of the barrier, in the units of your objective: the objective at x_mu is at most about mu times the
            number of inequalities above its optimal value. Smaller is closer to the solution and its derivative, larger
            is smoother.
        forward: what the layer returns: "smoothed", the point x_mu that is differentiated (also s, z, duals and the
            objective), so that finite differences of the output agree with its derivative; or "exact", the solution.
        refinement_steps: of the linear system.

    An element without an x_mu (constraints without interior, an unbounded set of solutions) has status INACCURATE with
    forward="smoothed"; with "exact" the residual in the report is infinite, and a DerivativeWarning says so.

    Examples:
        >>> import torch, convexlayers as cl
        >>> cost = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64, requires_grad=True)
        >>> one = torch.ones(1, 3, dtype=torch.float64)
        >>> x = cl.solve_lp(cost, A=one, b=one[0, :1], lb=0.0, derivative=cl.Smoothed(mu=0.1)).x
        >>> x[1].backward()
        >>> cost.grad[1] < 0  # a cheaper entry would get more
        tensor(True)
    """

    mu: float = 1e-3
    forward: str = "smoothed"
    refinement_steps: int = 3

    def __post_init__(self) -> None:
        if not 0 < self.mu < float("inf"):
            raise ArgumentError(f"mu is {self.mu}, expected a positive number.")
        if self.forward not in FORWARD:
            raise ArgumentError(f"forward is {self.forward!r}, expected one of {', '.join(map(repr, FORWARD))}.")

    @property
    def moves_solution(self) -> bool:
        return self.forward == "smoothed"

    def move(
        self, program: ConeProgram, x: Tensor, s: Tensor, z: Tensor, context: Context
    ) -> tuple[tuple[Tensor, Tensor, Tensor], Tensor]:
        point = central_point(program, x, s, z, self._weight(x, context))
        return (point.x, point.s, point.z), point.reached

    def adjoint(
        self,
        program: ConeProgram,
        x: Tensor,
        s: Tensor,
        z: Tensor,
        cotangents: Cotangents,
        context: Context = NO_CONTEXT,
    ) -> tuple[Tensor, DerivativeReport]:
        weight = self._weight(x, context)
        point = central_point(program, x, s, z, weight)
        g = cotangents.objective
        grad_x, grad_s, grad_z = cotangents.dense(program)
        if g is not None:
            grad_x = grad_x + g.unsqueeze(-1) * (program.P_times(point.x) + program.q)
        grad, report = implicit.adjoint(
            program, point.x, point.z, _spectrum_at(program, point, weight), Cotangents(grad_x, grad_s, grad_z),
            self.refinement_steps,
        )  # fmt: skip
        if g is not None:
            grad = grad + g.unsqueeze(-1) * lagrangian_gradient(program, point.x, torch.zeros_like(point.z))
        return grad, _report(report, point)

    def tangent(
        self,
        program: ConeProgram,
        x: Tensor,
        s: Tensor,
        z: Tensor,
        ddata: Tensor,
        context: Context = NO_CONTEXT,
    ) -> tuple[Tangents, DerivativeReport]:
        weight = self._weight(x, context)
        point = central_point(program, x, s, z, weight)
        (dx, ds, dz), report = implicit.tangent(
            program, point.x, point.z, _spectrum_at(program, point, weight), ddata, self.refinement_steps
        )
        d = ConeProgram(program.structure, ddata)
        slope = program.P_times(point.x) + program.q
        objective = (slope * dx).sum(-1) + (point.x * (0.5 * d.P_times(point.x) + d.q)).sum(-1) + d.offset
        return Tangents(dx, ds, dz, objective), _report(report, point)

    def _weight(self, x: Tensor, context: Context) -> Tensor:
        """mu in normalized units, (B,)."""
        mu = torch.full_like(x[:, :0].sum(-1), self.mu)
        return mu if context.objective_unit is None else mu / context.objective_unit


def _spectrum_at(program: ConeProgram, point: CentralPoint, weight: Tensor) -> implicit.SpectrumAt:
    return lambda i: program.structure.cones.smooth(point.s[i] - point.z[i], weight[i])[2]


def _report(report: DerivativeReport, point: CentralPoint) -> DerivativeReport:
    """The report; the residual is infinite where there is no point that the derivative could be of."""
    assert report.residual is not None
    missing = torch.full_like(point.residual, float("inf"))
    report.residual = torch.where(point.reached, torch.maximum(report.residual, point.residual), missing)
    return report
