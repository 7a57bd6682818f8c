"""The exact derivative by the condensed system, and which elements have one that can be relied on.

derivatives/exact.py has the derivation. In units of one's own (units.py), with x = sigma D x~, s = sigma / E s~ and z =
zeta E z~, the system K [dx; dz] = [r1; r2] reads K~ [dx~; dz~] = [D r1 / zeta; E r2 / sigma], and so does its adjoint,
K being symmetric.

The condensed system is regularized: where K is singular, refinement does not converge for a right-hand side drawn at
random. Those elements, and those whose own right-hand side leaves a residual, are for `Exact`.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from convexlayers.derivatives import Cotangents, Tangents
from convexlayers.derivatives.implicit import contract, lagrangian_gradient, vanishes
from convexlayers.derivatives.inverse import times
from convexlayers.derivatives.kkt import LARGEST_INVERSE
from convexlayers.engines.dense.condensed import Condensed
from convexlayers.engines.dense.room import Room
from convexlayers.engines.dense.units import Point, Scaled, largest, power_of_two
from convexlayers.program import ConeProgram
from convexlayers.solution import DerivativeReport

REFINEMENT_STEPS = 6
# Relative residuals above this are left to `Exact`.
LARGEST_RESIDUAL = 1e-10
# Relative residuals below which refinement ends: of the right-hand side, a thousand roundings, and of the one drawn at
# random.
ENOUGH = 2.0**-42, 0.01 * LARGEST_RESIDUAL


@dataclass(frozen=True, eq=False)
class Differentiated:
    """The linear system of the derivative at a batch of solutions, factored.

    Attributes:
        program: the numbers. x, s, z: the solutions.
        numbers: the same in their own units.
        system: at the solutions.
    """

    program: ConeProgram
    x: Tensor
    s: Tensor
    z: Tensor
    numbers: Scaled
    system: Condensed

    @classmethod
    def at(cls, program: ConeProgram, point: Point, numbers: Scaled, last: Condensed | None = None) -> "Differentiated":
        """At solutions, given the numbers in their own units too.

        last: the system that the solve ended with. It is this one where its step did not change an active set.
        """
        # Several threads may differentiate at the same solution: each has a room of its own.
        numbers, scales = replace(numbers, room=Room()), numbers.scales
        x, s, z = point
        scaled_s, scaled_z = scales.scale_rows(s, z)
        spectrum = program.structure.cones.spectrum(scaled_s - scaled_z)
        if last is not None and torch.equal(last.spectrum.mu, spectrum.mu):
            return cls(program, x, s, z, numbers, last)
        return cls(program, x, s, z, numbers, Condensed.factor(numbers, spectrum))

    def adjoint(self, cotangents: Cotangents) -> tuple[Tensor, DerivativeReport, Tensor]:
        """Cotangent of program.data, (B, size), the report, and which elements can be relied on, (B,)."""
        grad_x, grad_s, grad_z = cotangents.dense(self.program)
        scales = self.numbers.scales
        rhs_x = grad_x - times(self.numbers.A.mT, grad_s / scales.E) / scales.D
        wx, wz, residual, good = self._solve(rhs_x, grad_z)
        report = DerivativeReport(
            residual=residual,
            rank_deficient=torch.zeros_like(good),
            locally_constant=vanishes(wx, rhs_x, grad_z),
        )
        grad = _contract(self.program, self.x, self.z, wx, wz + grad_s)
        if cotangents.objective is not None:
            grad = grad + cotangents.objective.unsqueeze(-1) * lagrangian_gradient(self.program, self.x, self.z)
        return grad, report, good

    def tangent(self, ddata: Tensor) -> tuple[Tangents, DerivativeReport, Tensor]:
        """Tangents for one of program.data, (B, size), the report, and which elements can be relied on, (B,)."""
        d, x, z, scales = ConeProgram(self.program.structure, ddata), self.x, self.z, self.numbers.scales
        r1 = -(d.q + d.P_times(x) + d.At_times(z))
        r2 = d.b - d.A_times(x)
        dx, dz, residual, good = self._solve(r1, r2)
        ds = r2 - times(self.numbers.A, dx / scales.D) / scales.E
        objective = (x * (0.5 * d.P_times(x) + d.q)).sum(-1) - (z * r2).sum(-1) + d.offset
        return Tangents(dx, ds, dz, objective), DerivativeReport(residual, torch.zeros_like(good)), good

    def _solve(self, r1: Tensor, r2: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """K [dx; dz] = [r1; r2], the relative residual and whether it and the matrix are good enough."""
        scales = self.numbers.scales
        first, second = scales.D * r1 / scales.zeta, scales.E * r2 / scales.sigma
        # At size one nothing over- or underflows.
        size = torch.maximum(largest(first), largest(second)).unsqueeze(-1)
        unit = power_of_two(torch.where((size > 0) & size.isfinite(), size, torch.ones_like(size)))
        rows = self.system.from_rows((second / unit).unsqueeze(-1))
        probe = _probe(self.system)
        n = r1.shape[-1]
        found = self.system.solve(
            torch.stack([first / unit, probe[:, :n]], dim=-1),
            torch.cat([rows, probe[:, n:].unsqueeze(-1)], dim=-1),
            REFINEMENT_STEPS,
            r1.new_tensor(ENOUGH),
        )
        dx, w, residual = found.dx, found.w, found.residual
        magnified = torch.cat([dx, w], dim=-2)[..., 1].abs().amax(-1)
        # Written so that NaN is not good.
        good = (residual <= LARGEST_RESIDUAL).all(-1) & (magnified < LARGEST_INVERSE)
        dz = self.system.to_rows(w[..., :1]).squeeze(-1)
        return (
            scales.sigma * scales.D * (unit * dx[..., 0]),
            scales.zeta * scales.E * (unit * dz),
            residual[..., 0],
            good,
        )


def _contract(program: ConeProgram, x: Tensor, z: Tensor, wx: Tensor, row_weight: Tensor) -> Tensor:
    """`contract`, by one product of matrices where all entries of A are stored."""
    structure = program.structure
    n, m = structure.n, structure.m
    if len(structure.A_rows) != n * m or m == 0:
        return contract(program, x, z, wx, row_weight)
    # Entry (j, i) is wx_j z_i + x_j (wz + grad_s)_i: column by column, as A is stored.
    grad_A = (torch.stack([-wx, -x], dim=-1) @ torch.stack([z, row_weight], dim=-2)).flatten(1)
    i, j = (torch.as_tensor(part, device=x.device) for part in (structure.P_rows, structure.P_cols))
    # Both halves of P, of which the upper triangle is stored, at once; an entry of the diagonal is there once.
    both = torch.stack([-wx, -x], dim=-1) @ torch.stack([x, wx], dim=-2)
    both.diagonal(dim1=-2, dim2=-1).mul_(0.5)
    grad_P = both.flatten(1).gather(-1, (i * n + j).expand(len(x), -1))
    return torch.cat([grad_P, -wx, grad_A, row_weight, torch.zeros_like(x[:, :1])], dim=-1)


def _probe(system: Condensed) -> Tensor:
    """A right-hand side that no null vector is orthogonal to but with probability zero, (B, n + m)."""
    batch, m, n = system.A.shape
    count = torch.arange(1, n + m + 1, dtype=system.P.dtype, device=system.P.device)
    return torch.cos(count**2).expand(batch, -1)
