"""The linear algebra that every derivative by the implicit function theorem shares; exact.py has the derivation.

A point is given by (x, s, z) with s a function of v = s - z and M = ds/dv, 0 <= M <= I, by its spectrum: M = D
Proj_K(v) at a solution (exact.py), M = (I + mu D2f(s))^-1 on the central path (smoothed.py). The conditions are the
same.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from convexlayers.cones.base import Spectrum
from convexlayers.derivatives.base import Cotangents
from convexlayers.derivatives.inverse import times
from convexlayers.derivatives.kkt import assemble, chunks, factor, solve
from convexlayers.program import ConeProgram
from convexlayers.solution import DerivativeReport

# A derivative of x in q below this share of its right-hand side is rounding; both in units of size one.
VANISHING = 1e-10


# The spectrum of M at the elements with these indices.
SpectrumAt = Callable[[Tensor], Spectrum]


def adjoint(
    program: ConeProgram, x: Tensor, z: Tensor, spectrum_at: SpectrumAt, cotangents: Cotangents, refinement_steps: int
) -> tuple[Tensor, DerivativeReport]:
    """Cotangent of program.data from those of x, s and z; that of the objective is left to the caller.

    Args:
        program: the numbers, batch B.
        x, z: the point, (B, n), (B, m).
        spectrum_at: of M there, for a chunk of the batch at a time.
        cotangents: of the point.
        refinement_steps: of the linear system.

    Returns:
        (B, structure.size) and the report.
    """
    parts = [
        _adjoint_chunk(program.select(i), x[i], z[i], spectrum_at(i), cotangents.select(i), refinement_steps)
        for i in chunks(program)
    ]
    return torch.cat([grad for grad, _ in parts]), join_reports([report for _, report in parts])


def tangent(
    program: ConeProgram, x: Tensor, z: Tensor, spectrum_at: SpectrumAt, ddata: Tensor, refinement_steps: int
) -> tuple[tuple[Tensor, Tensor, Tensor], DerivativeReport]:
    """Tangents (dx, ds, dz) for a tangent of program.data, and the report. Arguments as in `adjoint`."""
    parts = [
        _tangent_chunk(program.select(i), x[i], z[i], spectrum_at(i), ddata[i], refinement_steps)
        for i in chunks(program)
    ]
    dx, ds, dz = (torch.cat([tangents[k] for tangents, _ in parts]) for k in range(3))
    return (dx, ds, dz), join_reports([report for _, report in parts])


def _adjoint_chunk(
    program: ConeProgram, x: Tensor, z: Tensor, spectrum: Spectrum, cotangents: Cotangents, refinement_steps: int
) -> tuple[Tensor, DerivativeReport]:
    n = program.structure.n
    system = assemble(program, spectrum)
    factored = factor(system)
    grad_x, grad_s, grad_z = cotangents.dense(program)
    rhs_x = grad_x - times(system.A.mT, grad_s)
    u, residual = solve(factored, torch.cat([rhs_x, system.from_rows(grad_z)], dim=-1), refinement_steps)
    wx, wz = u[:, :n], system.to_rows(u[:, n:])
    report = DerivativeReport(
        residual=residual, rank_deficient=factored.singular, locally_constant=vanishes(wx, rhs_x, grad_z)
    )
    return contract(program, x, z, wx, wz + grad_s), report


def _tangent_chunk(
    program: ConeProgram, x: Tensor, z: Tensor, spectrum: Spectrum, ddata: Tensor, refinement_steps: int
) -> tuple[tuple[Tensor, Tensor, Tensor], DerivativeReport]:
    n = program.structure.n
    d = ConeProgram(program.structure, ddata)
    system = assemble(program, spectrum)
    factored = factor(system)
    r1 = -d.q - d.P_times(x) - d.At_times(z)
    r2 = d.b - d.A_times(x)
    u, residual = solve(factored, torch.cat([r1, system.from_rows(r2)], dim=-1), refinement_steps)
    dx = u[:, :n]
    report = DerivativeReport(residual=residual, rank_deficient=factored.singular)
    return (dx, r2 - program.A_times(dx), system.to_rows(u[:, n:])), report


def vanishes(wx: Tensor, rhs_x: Tensor, rhs_z: Tensor) -> Tensor:
    """Whether a derivative in q is zero up to rounding although its right-hand side is not, (B,)."""
    size = torch.cat([rhs_x, rhs_z], dim=-1).abs().amax(-1)
    return (wx.abs().amax(-1) <= VANISHING * size) & (size > 0)


def contract(program: ConeProgram, x: Tensor, z: Tensor, wx: Tensor, row_weight: Tensor) -> Tensor:
    """Cotangent of program.data from the solution of the adjoint system, read off at the stored entries.

    An off-diagonal entry of the stored upper triangle of P stands twice in P, so it gets twice the entry of grad_P.

    Args:
        program: the numbers, batch B.
        x, z: the solution.
        wx: (B, n). row_weight: wz + grad_s, (B, m).
    """
    i, j, rows, cols, twice = entries(program, x)
    grad_P = -twice * (wx[:, i] * x[:, j] + x[:, i] * wx[:, j])
    grad_A = -(z[:, rows] * wx[:, cols] + row_weight[:, rows] * x[:, cols])
    return torch.cat([grad_P, -wx, grad_A, row_weight, torch.zeros_like(x[:, :1])], dim=-1)


def lagrangian_gradient(program: ConeProgram, x: Tensor, z: Tensor) -> Tensor:
    """Gradient in program.data of L = 1/2 x'Px + q'x + z'(Ax - b) + offset at fixed x and z, (B, size).

    At a solution this is the gradient of the optimal value, with z = 0 that of the objective at a fixed point.
    """
    i, j, rows, cols, twice = entries(program, x)
    return torch.cat([twice * x[:, i] * x[:, j], x, z[:, rows] * x[:, cols], -z, torch.ones_like(x[:, :1])], dim=-1)


def entries(program: ConeProgram, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Rows and columns of the stored entries of P and of A, and half of how often each of P's stands in P."""
    structure = program.structure
    names = ("P_rows", "P_cols", "A_rows", "A_cols")
    i, j, rows, cols = (torch.as_tensor(getattr(structure, name), device=x.device) for name in names)
    return i, j, rows, cols, torch.where(i == j, 0.5, 1.0).to(x.dtype)


def join_reports(reports: Sequence[DerivativeReport]) -> DerivativeReport:
    """The report of a batch from those of its chunks."""
    joined = DerivativeReport()
    for name in DerivativeReport.PER_ELEMENT:
        parts = [part for report in reports if (part := getattr(report, name)) is not None]
        if parts:
            setattr(joined, name, torch.cat(parts))
    return joined
