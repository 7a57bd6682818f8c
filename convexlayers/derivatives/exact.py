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

from torch import Tensor

from convexlayers.derivatives import implicit
from convexlayers.derivatives.base import NO_CONTEXT, Context, Cotangents, Derivative, Tangents
from convexlayers.derivatives.implicit import lagrangian_gradient
from convexlayers.program import ConeProgram
from convexlayers.solution import DerivativeReport


@dataclass(frozen=True)
class Exact(Derivative):
    """Exact implicit differentiation, dense and batched, on any device, in float64.

    Memory: about four matrices of (n + m)^2 doubles per element, for a chunk of the batch at a time.

    Args:
        refinement_steps: of iterative refinement of the linear system.
    """

    refinement_steps: int = 3

    def adjoint(
        self,
        program: ConeProgram,
        x: Tensor,
        s: Tensor,
        z: Tensor,
        cotangents: Cotangents,
        context: Context = NO_CONTEXT,
    ) -> tuple[Tensor, DerivativeReport]:
        cones = program.structure.cones
        grad, report = implicit.adjoint(
            program, x, z, lambda i: cones.spectrum(s[i] - z[i]), cotangents, self.refinement_steps
        )
        if cotangents.objective is not None:
            grad = grad + cotangents.objective.unsqueeze(-1) * lagrangian_gradient(program, x, z)
        return grad, report

    def tangent(
        self,
        program: ConeProgram,
        x: Tensor,
        s: Tensor,
        z: Tensor,
        ddata: Tensor,
        context: Context = NO_CONTEXT,
    ) -> tuple[Tangents, DerivativeReport]:
        cones = program.structure.cones
        (dx, ds, dz), report = implicit.tangent(
            program, x, z, lambda i: cones.spectrum(s[i] - z[i]), ddata, self.refinement_steps
        )
        d = ConeProgram(program.structure, ddata)
        objective = (x * (0.5 * d.P_times(x) + d.q)).sum(-1) - (z * (d.b - d.A_times(x))).sum(-1) + d.offset
        return Tangents(dx, ds, dz, objective), report
