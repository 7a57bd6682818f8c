"""Second derivatives of a solution: derivatives of its adjoint and of its tangent.

At a strictly complementary solution the optimality conditions are smooth equations F(theta, y) = 0 in y = (x, z, s),

    F1 = P x + A'z + q,    F2 = A x + s - b,    F3 = C(s, z)                          (cones/complementarity.py)

whose Jacobian J in y is regular where the solution is unique and so are its multipliers. For a cotangent g = (gx, gz,
gs) and a tangent u = (uP, uq, uA, ub) of the numbers, with J'k = g and J w = -F_data u,

    adjoint   G(g) = -F_data' k,    tangent   T(u) = w,    Phi = <G(g), u> = <g, T(u)> = -k' F_data u.

k1, k2 are read off G (its q-part is -k1, its b-part k2), k3 solves C_s'k3 = gs - k2, C_z'k3 = gz - A k1. As
J = F_y is linear in the numbers, F_data in (x, z), and P, A enter F as they are, for any change of numbers and point

    dPhi = -k' dJ w - k' dF_data u
         = -k1'(dP wx + dA'wz) - k2'dA wx - k3' D2C[(ds, dz), (ws, wz)] - k1'(uP dx + uA'dz) - k2'uA dx,

which is what a cotangent of G(g), or of T(u), pulls back (`pull_back`). The same terms, as they stand before the
products with w and with k are taken, are the tangents of G and T:

    dG = G(dg - dJ'k) - dF_data'k          dJ'k = (dP k1 + dA'k2, dA k1 + (Hess k3'C)(ds, dz)_z, (Hess k3'C)(ds, dz)_s)
    dT = T(du) - J^-1 (dJ w + dF_data u)

In the last one a right-hand side c of F3 is met by some (ds, dz) with C_s ds + C_z dz = c, and the rest by T at a
tangent of q and b. So every second derivative is one more solve of the first kind and some products; higher ones follow
by differentiating these, which are operations of torch and the solves themselves.

The objective's part of G, gobj times the gradient of the Lagrangian L (envelope theorem), adds gobj L_data(x, z) u to
Phi.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

import torch
from torch import Tensor

from convexlayers.cones.complementarity import Complementarity, Pair
from convexlayers.derivatives.implicit import entries, lagrangian_gradient
from convexlayers.program import ConeProgram, Structure

Parts = tuple[Tensor, Tensor, Tensor]
# (gx, gs, gz) to the cotangent of the numbers, (B, size); a tangent of the numbers to (dx, ds, dz).
AdjointSolve = Callable[[Tensor, Tensor, Tensor], Tensor]
TangentSolve = Callable[[Tensor], Parts]
Result = TypeVar("Result", Tensor, Pair)


@dataclass(frozen=True)
class Curvature:
    """Second derivatives at a batch of solutions.

    Attributes:
        program: the numbers, (B, size).
        x, s, z: the solution, (B, n), (B, m), (B, m).
        adjoint, tangent: the first derivatives there, themselves differentiable.
    """

    program: ConeProgram
    x: Tensor
    s: Tensor
    z: Tensor
    adjoint: AdjointSolve
    tangent: TangentSolve

    @property
    def structure(self) -> Structure:
        """Pattern and cones."""
        return self.program.structure

    def pull_back(self, cotangents: Parts, grad_objective: Tensor | None, u: Tensor) -> "PulledBack":
        """Gradients of Phi.

        Args:
            cotangents: gx, gs, gz.
            grad_objective: gobj, (B,).
            u: tangent of the numbers, (B, size).
        """
        wx, ws, wz = self.tangent(u)
        k1, k2, k3 = self._multipliers(cotangents)
        d = ConeProgram(self.structure, u)
        bend_s, bend_z = self._equations(lambda C, s, z: C.weighted_curvature(s, z, k3, self._scaled((ws, wz))))
        scale_s, scale_z = self._units
        grad_x = -(d.P_times(k1) + d.At_times(k2))
        grad_z = -d.A_times(k1) - bend_z / scale_z
        value = None
        if grad_objective is not None:
            weight = grad_objective.unsqueeze(-1)
            grad_x = grad_x + weight * (d.P_times(self.x) + d.q + d.At_times(self.z))
            grad_z = grad_z + weight * (d.A_times(self.x) - d.b)
            value = (lagrangian_gradient(self.program, self.x, self.z) * u).sum(-1)
        return PulledBack(
            data=-self._contract(k1, k2, wx, wz), x=grad_x, s=-bend_s / scale_s, z=grad_z, cotangents=(wx, ws, wz),
            objective=value,
        )  # fmt: skip

    def adjoint_tangent(
        self,
        cotangents: Parts,
        grad_objective: Tensor | None,
        changes: "Changes",
        dcotangents: Parts,
        dgrad_objective: Tensor | None,
    ) -> Tensor:
        """Tangent of G(g), (B, size)."""
        k1, k2, k3 = self._multipliers(cotangents)
        d = ConeProgram(self.structure, changes.data)
        bend_s, bend_z = self._equations(
            lambda C, s, z: C.weighted_curvature(s, z, k3, self._scaled((changes.ds, changes.dz)))
        )
        scale_s, scale_z = self._units
        dgx, dgs, dgz = dcotangents
        moved = self.adjoint(
            dgx - d.P_times(k1) - d.At_times(k2), dgs - bend_s / scale_s, dgz - d.A_times(k1) - bend_z / scale_z
        )
        moved = moved - self._contract(k1, k2, changes.dx, changes.dz)
        if grad_objective is not None:
            moved = moved + grad_objective.unsqueeze(-1) * self._lagrangian_tangent(changes)
        if dgrad_objective is not None:
            moved = moved + dgrad_objective.unsqueeze(-1) * lagrangian_gradient(self.program, self.x, self.z)
        return moved

    def tangent_tangent(self, u: Tensor, changes: "Changes", du: Tensor) -> tuple[Parts, Tensor]:
        """Tangents of T(u), (dx, ds, dz), and of the objective's tangent L_data u."""
        wx, ws, wz = self.tangent(u)
        d, e = ConeProgram(self.structure, changes.data), ConeProgram(self.structure, u)
        scale_s, scale_z = self._units
        bend = self._equations(
            lambda C, s, z: C.curvature(s, z, self._scaled((changes.ds, changes.dz)), self._scaled((ws, wz)))
        )
        cs, cz = self._equations(lambda C, s, z: C.correction(s, z, -bend))
        cs, cz = cs * scale_s, cz * scale_z
        right_x = -(d.P_times(wx) + d.At_times(wz) + e.P_times(changes.dx) + e.At_times(changes.dz))
        right_x = right_x - self.program.At_times(cz)
        right_s = -(d.A_times(wx) + e.A_times(changes.dx)) - cs
        slices = self.structure.slices
        zeros = torch.zeros_like(u)
        more = torch.cat([zeros[:, slices["P"]], -right_x, zeros[:, slices["A"]], right_s, zeros[:, :1]], dim=-1)
        dx, ds, dz = self.tangent(du + more)
        objective = (lagrangian_gradient(self.program, self.x, self.z) * du).sum(-1)
        objective = objective + (self._lagrangian_tangent(changes) * u).sum(-1)
        return (dx, ds + cs, dz + cz), objective

    def _multipliers(self, cotangents: Parts) -> Parts:
        """k1, k2, k3; the last one for the equations in units of size one."""
        grad = self.adjoint(*cotangents)
        slices = self.structure.slices
        k1, k2 = -grad[:, slices["q"]], grad[:, slices["b"]]
        _, gs, gz = cotangents
        scale_s, scale_z = self._units
        a, b = scale_s * (gs - k2), scale_z * (gz - self.program.A_times(k1))
        return k1, k2, self._equations(lambda C, s, z: C.multiplier(s, z, a, b))

    @cached_property
    def _units(self) -> Pair:
        """Powers of two near the largest entries of s and z, (B, 1) each."""
        return _unit(self.s), _unit(self.z)

    def _scaled(self, pair: Pair) -> Pair:
        """A direction for s and z in units of size one."""
        scale_s, scale_z = self._units
        return pair[0] / scale_s, pair[1] / scale_z

    def _equations(self, apply: Callable[[Complementarity, Tensor, Tensor], Result]) -> Result:
        """An operation of the complementarity equations, at s and z in units of size one."""
        scale_s, scale_z = self._units
        return apply(self.structure.cones.complementarity, self.s / scale_s, self.z / scale_z)

    def _contract(self, k1: Tensor, k2: Tensor, dx: Tensor, dz: Tensor) -> Tensor:
        """k' dJ w as a function of the numbers: coefficients of dP and dA, zero for q, b, offset."""
        i, j, rows, cols, twice = entries(self.program, self.x)
        P = twice * (k1[:, i] * dx[:, j] + dx[:, i] * k1[:, j])
        A = dz[:, rows] * k1[:, cols] + k2[:, rows] * dx[:, cols]
        return torch.cat([P, torch.zeros_like(k1), A, torch.zeros_like(k2), torch.zeros_like(k1[:, :1])], dim=-1)

    def _lagrangian_tangent(self, changes: "Changes") -> Tensor:
        """Tangent of the Lagrangian's gradient in the numbers."""
        x, z, dx, dz = self.x, self.z, changes.dx, changes.dz
        i, j, rows, cols, twice = entries(self.program, x)
        P = twice * (dx[:, i] * x[:, j] + x[:, i] * dx[:, j])
        A = dz[:, rows] * x[:, cols] + z[:, rows] * dx[:, cols]
        return torch.cat([P, dx, A, -dz, torch.zeros_like(dx[:, :1])], dim=-1)


@dataclass(frozen=True)
class Changes:
    """A direction in which numbers and solution move: data (B, size), dx (B, n), ds and dz (B, m)."""

    data: Tensor
    dx: Tensor
    ds: Tensor
    dz: Tensor


@dataclass(frozen=True)
class PulledBack:
    """Gradients of Phi.

    Attributes:
        data: in the numbers, (B, size).
        x, s, z: in the solution.
        cotangents: in gx, gs, gz.
        objective: in gobj, (B,); None without one.
    """

    data: Tensor
    x: Tensor
    s: Tensor
    z: Tensor
    cotangents: Parts
    objective: Tensor | None


def _unit(v: Tensor) -> Tensor:
    if v.shape[-1] == 0:
        return torch.ones_like(v.sum(-1, keepdim=True))
    largest = v.detach().abs().amax(-1, keepdim=True)
    # Rounding has no derivative: the unit counts as a constant.
    return torch.where(largest > 0, largest, torch.ones_like(largest)).log2().round().exp2()
