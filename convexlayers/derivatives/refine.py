"""Newton refinement of a solution, with the derivative's own matrix.

An interior-point method stops where the gap is about the tolerance, and on a curved cone the point is then only
accurate to its square root. The conditions, as equations in (x, v) with s = Proj_K(v), z = s - v, are

    P x + A'z + q = 0,    A x + s = b,

and their linearization has the matrix of exact.py: solve P dx + A'dz = r1, A dx + ds = r2, ds = M dv, dz = -(I - M) dv
for the residuals r1 = -(Px + A'z + q), r2 = b - Ax - s, and step to v + dv, dv = ds - dz (Busseti, Moursi, Boyd,
"Solution refinement at regular points of conic problems", 2019). Convergence is quadratic where the solution is
regular. On an ill-conditioned problem the first steps are long and may raise the residual before it falls, so all
steps are taken and each element keeps the point with the smallest measured residual: nothing gets worse anywhere.

Which elements need it: all with curved cones, and those where s and Proj_K(s - z), which are the same at a solution,
differ by more than the tolerance: they do on inequalities that are nearly weakly active (s and z about the root of the
gap). In a small program they may differ by rounding alone: were it by a share of the tolerance, a solution at a tight
one, just within its share, would be left further from the truth than one at a loose one, which is outside and refined.
"""

import torch
from torch import Tensor

from convexlayers.cones.base import Spectrum
from convexlayers.derivatives.kkt import assemble, chunks, factor, solve
from convexlayers.program import ConeProgram
from convexlayers.solution import measure

STEPS = 5
# Residuals this small are left alone.
ROUNDING = 1e-13
# Above this n + m the dense factorizations cost more than they bring.
LARGEST_SIZE = 1000
SMALL_SIZE = 200


def needs_refinement(program: ConeProgram, s: Tensor, z: Tensor, tolerance: float) -> Tensor:
    """Which elements may be further from the solution than the tolerance asks for, (B,); none of a large program."""
    cones = program.structure.cones
    if program.structure.n + cones.rows > LARGEST_SIZE or cones.rows == 0:
        return torch.zeros(len(s), dtype=torch.bool, device=s.device)
    if cones.second_order or cones.psd or cones.exponential or cones.power:
        return torch.ones(len(s), dtype=torch.bool, device=s.device)
    # A small system costs less than the solve before it, and conditioning multiplies what is left of the distance.
    allowed = ROUNDING if program.structure.n + cones.rows <= SMALL_SIZE else tolerance
    return complementarity(program, s, z) > allowed


def complementarity(program: ConeProgram, s: Tensor, z: Tensor) -> Tensor:
    """How far s is from Proj_K(s - z), relative, (B,).

    The gap s'z says less: on a curved cone it is of second order in the error.
    """
    distance = (s - program.structure.cones.project(s - z)).abs().amax(-1)
    return distance / torch.clamp(torch.maximum(s.abs().amax(-1), z.abs().amax(-1)), min=1)


def refine(program: ConeProgram, x: Tensor, s: Tensor, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Refine approximate solutions.

    Args:
        program: the numbers, batch B.
        x: (B, n). s, z: (B, m).

    Returns:
        x, s, z with s in K, z in K*, s'z = 0 up to rounding where a step was taken.
    """
    parts = [_refine_chunk(program.select(i), x[i], s[i], z[i]) for i in chunks(program)]
    if not parts:
        return x, s, z
    x, s, z = (torch.cat(part) for part in zip(*parts, strict=True))
    return x, s, z


def _refine_chunk(program: ConeProgram, x: Tensor, s: Tensor, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    kept = measure(program, x, s, z).largest
    best = torch.maximum(kept, complementarity(program, s, z)) if program.structure.m else kept
    walk_x, walk_v = x, s - z
    for _ in range(STEPS):
        # Finished elements stay where they are, whatever their neighbours need.
        active = (best > ROUNDING).nonzero().squeeze(-1)
        if len(active) == 0:
            break
        part = program.select(active)
        new_x, new_v = _newton_step(part, walk_x[active], walk_v[active])
        new_s = program.structure.cones.project(new_v)
        new_z = new_s - new_v
        residual = measure(part, new_x, new_s, new_z).largest
        walk_x, walk_v = walk_x.index_copy(0, active, new_x), walk_v.index_copy(0, active, new_v)
        # Complementarity must not be bought with residual: where the active set is guessed wrong, steps may cycle.
        lower = (residual < best[active]) & (residual <= kept[active].clamp(min=ROUNDING))
        better = active[lower]
        x, s, z = (old.index_copy(0, better, new[lower]) for old, new in ((x, new_x), (s, new_s), (z, new_z)))
        best, kept = (old.index_copy(0, better, residual[lower]) for old in (best, kept))
    return x, s, z


def _newton_step(program: ConeProgram, x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    cones = program.structure.cones
    s = cones.project(v)
    dx, dv = newton_direction(program, x, s, s - v, cones.spectrum(v))
    return x + dx, v + dv


def newton_direction(
    program: ConeProgram, x: Tensor, s: Tensor, z: Tensor, spectrum: Spectrum
) -> tuple[Tensor, Tensor]:
    """The step (dx, dv) that solves the linearized conditions; zero where it would not be finite.

    Args:
        program: the numbers, batch B.
        x: (B, n). s, z: (B, m), functions of v = s - z.
        spectrum: of M = ds/dv.
    """
    n = program.structure.n
    r1 = -(program.P_times(x) + program.At_times(z) + program.q)
    r2 = program.b - program.A_times(x) - s
    system = assemble(program, spectrum)
    u, _ = solve(factor(system), torch.cat([r1, system.from_rows(r2)], dim=-1), 1)
    dx, dz = u[:, :n], system.to_rows(u[:, n:])
    ds = r2 - program.A_times(dx)
    # A step that is not finite is not taken: eigenvalues of such a point would be an error for the whole batch.
    usable = (dx.isfinite().all(-1) & ds.isfinite().all(-1) & dz.isfinite().all(-1)).unsqueeze(-1)
    return torch.where(usable, dx, torch.zeros_like(dx)), torch.where(usable, ds - dz, torch.zeros_like(ds))
