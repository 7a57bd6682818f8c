"""The exact derivative of a cone program's solution, by implicit differentiation of its optimality conditions.

Source: Agrawal, Barratt, Boyd, Busseti, Moursi, "Differentiating through a cone program" (2019); Busseti, Moursi, Boyd,
"Solution refinement at regular points of conic problems" (2019); here without their homogeneous embedding and with a
quadratic objective. Derivation:

With v = s - z the conditions Px + A'z + q = 0, Ax + s = b, s in K, z in K*, s'z = 0 say s = Proj_K(v), z = s - v.
Let M = D Proj_K(v), symmetric with eigenvalues in [0, 1]. Differentiating,

    P dx + A' dz = r1,     r1 = -dq - dP x - dA' z
    A dx + ds    = r2,     r2 = db - dA x
    ds = M dv,  dz = -(I - M) dv.

Eliminating dv gives the symmetric system of kkt.py in (dx, w) with dz = Q S w; then ds = r2 - A dx.

Adjoint. For cotangents (grad_x, grad_s, grad_z), substituting ds,

    grad_x' dx + grad_s' ds + grad_z' dz = (grad_x - A' grad_s)' dx + grad_s' r2 + (S Q' grad_z)' w.

With the same symmetric matrix solve K [wx; u] = [grad_x - A' grad_s; S Q' grad_z] and set wz = Q S u: the sum is
wx' r1 + wz' r2 + grad_s' r2, hence

    grad_q = -wx                               grad_b = wz + grad_s
    grad_P = -1/2 (wx x' + x wx')              grad_A = -z wx' - (wz + grad_s) x'.

Optimal value (envelope theorem, defined even where the solution is not unique):

    dp* = 1/2 x'dP x + dq'x + z'(dA x - db) + d(offset).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from convexlayers.derivatives.base import Cotangents, Tangents
from convexlayers.derivatives.kkt import assemble, chunks, factor, solve
from convexlayers.program import ConeProgram
from convexlayers.solution import DerivativeReport


@dataclass(frozen=True)
class Exact:
    """Exact implicit differentiation, dense and batched, on any device, in float64.

    Memory: about four matrices of (n + m)^2 doubles per element, for a chunk of the batch at a time.

    Args:
        refinement_steps: of iterative refinement of the linear system.
    """

    refinement_steps: int = 3

    def adjoint(
        self, program: ConeProgram, x: Tensor, s: Tensor, z: Tensor, cotangents: Cotangents
    ) -> tuple[Tensor, DerivativeReport]:
        """Cotangent of program.data.

        Args:
            program: the numbers, batch B.
            x, s, z: the solution, (B, n), (B, m), (B, m).
            cotangents: of the solution.

        Returns:
            (B, structure.size) and the report.
        """
        parts = [
            self._adjoint_chunk(program.select(i), x[i], s[i], z[i], cotangents.select(i)) for i in chunks(program)
        ]
        return torch.cat([grad for grad, _ in parts]), _join([report for _, report in parts])

    def tangent(
        self, program: ConeProgram, x: Tensor, s: Tensor, z: Tensor, ddata: Tensor
    ) -> tuple[Tangents, DerivativeReport]:
        """Tangent of the solution.

        Args:
            program: the numbers, batch B.
            x, s, z: the solution, (B, n), (B, m), (B, m).
            ddata: tangent of program.data, (B, structure.size).

        Returns:
            the tangents and the report.
        """
        parts = [self._tangent_chunk(program.select(i), x[i], s[i], z[i], ddata[i]) for i in chunks(program)]
        tangents = [tangent for tangent, _ in parts]
        joined = Tangents(
            dx=torch.cat([t.dx for t in tangents]),
            ds=torch.cat([t.ds for t in tangents]),
            dz=torch.cat([t.dz for t in tangents]),
            objective=torch.cat([t.objective for t in tangents]),
        )
        return joined, _join([report for _, report in parts])

    def _adjoint_chunk(
        self, program: ConeProgram, x: Tensor, s: Tensor, z: Tensor, cotangents: Cotangents
    ) -> tuple[Tensor, DerivativeReport]:
        n = program.structure.n
        system = assemble(program, s, z)
        factored = factor(system)
        grad_x, grad_s, grad_z = cotangents.dense(program)
        rhs_x = grad_x - (system.A.transpose(-1, -2) @ grad_s.unsqueeze(-1)).squeeze(-1)
        rhs = torch.cat([rhs_x, system.from_rows(grad_z)], dim=-1)
        u, residual = solve(factored, rhs, self.refinement_steps)
        wx, wz = u[:, :n], system.to_rows(u[:, n:])
        grad = contract(program, x, z, wx, wz + grad_s, cotangents.objective)
        return grad, DerivativeReport(residual=residual, rank_deficient=factored.singular)

    def _tangent_chunk(
        self, program: ConeProgram, x: Tensor, s: Tensor, z: Tensor, ddata: Tensor
    ) -> tuple[Tangents, DerivativeReport]:
        n = program.structure.n
        d = ConeProgram(program.structure, ddata)
        system = assemble(program, s, z)
        factored = factor(system)
        dP_x, dA_x = d.P_times(x), d.A_times(x)
        r1 = -d.q - dP_x - d.At_times(z)
        r2 = d.b - dA_x
        u, residual = solve(factored, torch.cat([r1, system.from_rows(r2)], dim=-1), self.refinement_steps)
        dx = u[:, :n]
        tangents = Tangents(
            dx=dx,
            ds=r2 - program.A_times(dx),
            dz=system.to_rows(u[:, n:]),
            objective=(x * (0.5 * dP_x + d.q)).sum(-1) - (z * r2).sum(-1) + d.offset,
        )
        return tangents, DerivativeReport(residual=residual, rank_deficient=factored.singular)


def contract(
    program: ConeProgram, x: Tensor, z: Tensor, wx: Tensor, row_weight: Tensor, grad_objective: Tensor | None
) -> Tensor:
    """Cotangent of program.data from the solution of the adjoint system, read off at the stored entries.

    An off-diagonal entry of the stored upper triangle of P stands twice in P, so it gets twice the entry of grad_P.

    Args:
        program: the numbers, batch B.
        x, z: the solution.
        wx: (B, n). row_weight: wz + grad_s, (B, m).
        grad_objective: cotangent of the objective, (B,), or None.
    """
    device = x.device
    structure = program.structure
    i, j = torch.as_tensor(structure.P_rows, device=device), torch.as_tensor(structure.P_cols, device=device)
    rows, cols = torch.as_tensor(structure.A_rows, device=device), torch.as_tensor(structure.A_cols, device=device)
    twice = torch.where(i == j, 0.5, 1.0).to(x.dtype)
    grad_P = -twice * (wx[:, i] * x[:, j] + x[:, i] * wx[:, j])
    grad_q, grad_b = -wx, row_weight
    grad_A = -(z[:, rows] * wx[:, cols] + row_weight[:, rows] * x[:, cols])
    grad_offset = torch.zeros_like(x[:, :0].sum(-1, keepdim=True))
    if grad_objective is not None:
        g = grad_objective.unsqueeze(-1)
        grad_P = grad_P + g * twice * x[:, i] * x[:, j]
        grad_q, grad_b = grad_q + g * x, grad_b - g * z
        grad_A = grad_A + g * z[:, rows] * x[:, cols]
        grad_offset = g
    return torch.cat([grad_P, grad_q, grad_A, grad_b, grad_offset], dim=-1)


def _join(reports: list[DerivativeReport]) -> DerivativeReport:
    residuals = [r.residual for r in reports if r.residual is not None]
    deficient = [r.rank_deficient for r in reports if r.rank_deficient is not None]
    return DerivativeReport(residual=torch.cat(residuals), rank_deficient=torch.cat(deficient))
