"""Solutions to machine precision, and their differences, to compare with.

An interior-point method that stops at a gap of 1e-11 may leave an error of its square root, 3e-6, in x: where a cone is
curved the objective is flat. A few Newton steps on the optimality conditions take that to 1e-15. They have their own
dense matrix here, apart from the library's derivative, and their result is believed only where its residual says so.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from convexlayers.cones.base import Spectrum
from convexlayers.program import ConeProgram, ParametrizedConeProgram
from convexlayers.solution import measure

NEWTON_STEPS = 12
# Newton's method stops at the first residual, and must reach the second.
ENOUGH, REQUIRED = 1e-15, 1e-12


OUTPUTS = ("x", "s", "z", "objective")
# Weights of f(theta + k step d) for k = the keys; both stencils are exact to fourth order.
CENTRAL = {-2: 1 / 12, -1: -2 / 3, 1: 2 / 3, 2: -1 / 12}
ONE_SIDED = {0: -25 / 12, 1: 4.0, 2: -3.0, 3: 4 / 3, 4: -1 / 4}

Point = tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class Line:
    """A line in theta on which solutions are compared.

    Attributes:
        direction: of one block of theta, (B, k_i).
        stencil: weights of the points by their multiple of the step.
    """

    direction: Tensor
    stencil: dict[int, float]

    def quotient(self, values: Tensor, step: float) -> Tensor:
        """Derivative (B, width) from the values at the points, stacked point after point."""
        weights = torch.tensor(list(self.stencil.values()), dtype=values.dtype) / step
        return torch.einsum("k,kbi->bi", weights, values.reshape(len(weights), len(self.direction), -1))


def difference_quotients(
    program: ParametrizedConeProgram, theta: Sequence[Tensor], lines: Sequence[Line], step: float, start: Point
) -> list[dict[str, Tensor]]:
    """Derivatives of all outputs along one line per block of theta, each (B, width).

    Args:
        program: to be solved.
        theta: blocks (B, k_i).
        lines: one per block.
        step: distance of the points on a line.
        start: x, s, z near the solution at theta.

    Raises:
        AssertionError: see `reference_solution`.
    """
    points = [(k, multiple * step * line.direction) for k, line in enumerate(lines) for multiple in line.stencil]
    moved = [torch.cat([value + d if k == i else value for k, d in points]) for i, value in enumerate(theta)]
    x, s, z = (value.repeat(len(points), 1) for value in start)
    # All points of all lines in one batch.
    x, s, z = reference_solution(program, moved, (x, s, z))
    values = dict(zip(OUTPUTS, (x, s, z, program.evaluate(moved).objective(x)), strict=True))
    sizes = [len(line.stencil) * len(line.direction) for line in lines]
    pieces = {name: value.split(sizes) for name, value in values.items()}
    return [{name: line.quotient(pieces[name][k], step) for name in OUTPUTS} for k, line in enumerate(lines)]


def reference_solution(program: ParametrizedConeProgram, theta: Sequence[Tensor], start: Point) -> Point:
    """Solve to machine precision from a point nearby.

    Args:
        program: to be solved.
        theta: blocks (B, k_i), with solutions at which the optimality conditions can be differentiated.
        start: x (B, n), s and z (B, m) near the solutions, such as an engine's solutions.

    Returns:
        x, s, z.

    Raises:
        AssertionError: the residual of an element stays above 1e-12.
    """
    numbers = program.evaluate(theta)
    point = polish(numbers, start)
    residual = measure(numbers, *point).largest
    assert bool((residual <= REQUIRED).all()), f"The reference has a residual of {float(residual.amax()):.1e}."
    return point


def polish(program: ConeProgram, start: Point) -> Point:
    """Newton's method on Px + A'z + q = 0, Ax + s = b with s = Proj_K(v), z = s - v, in the unknowns x and v.

    Returns:
        for each element the point with the smallest residual on the way.
    """
    x, v = start[0], start[1] - start[2]
    best_x, best_v, smallest = x, v, torch.full_like(x[:, 0], float("inf"))
    for _ in range(NEWTON_STEPS):
        dx, dv, residual = _newton_step(program, x, v)
        better = residual < smallest
        smallest, rows = torch.where(better, residual, smallest), better.unsqueeze(-1)
        best_x, best_v = torch.where(rows, x, best_x), torch.where(rows, v, best_v)
        if bool((smallest <= ENOUGH).all()):
            break
        x, v = x + dx, v + dv
    s = program.structure.cones.project(best_v)
    return best_x, s, s - best_v


def newton_matrix(P: Tensor, A: Tensor, spectrum: Spectrum) -> Tensor:
    """[P  A'(M - I); A  M], (..., n + m, n + m), for M = D Proj_K(v) given by its spectrum."""
    m = A.shape[-2]
    eye = torch.eye(m, dtype=A.dtype).expand(*A.shape[:-2], m, m)
    M = spectrum.basis.unrotate(spectrum.mu.unsqueeze(-1) * spectrum.basis.rotate(eye))
    upper = torch.cat([P, A.transpose(-1, -2) @ (M - eye)], dim=-1)
    return torch.cat([upper, torch.cat([A, M], dim=-1)], dim=-2)


def _newton_step(program: ConeProgram, x: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """dx, dv, and the size of the residual at (x, v) relative to its terms."""
    n, cones = program.structure.n, program.structure.cones
    s = cones.project(v)
    terms = [torch.cat(pair, dim=-1) for pair in ((program.P_times(x), s), (program.At_times(s - v), -program.b))]
    terms.append(torch.cat([program.q, program.A_times(x)], dim=-1))
    residual = terms[0] + terms[1] + terms[2]
    size = torch.stack(terms).abs().amax(0).amax(-1).clamp(min=1)
    matrix = newton_matrix(program.dense_P(), program.dense_A(), cones.spectrum(v))
    # Where the matrix is singular the step is useless, but it must be finite.
    step = torch.linalg.solve_ex(matrix, -residual)[0].nan_to_num(0.0, 0.0, 0.0)
    return step[:, :n], step[:, n:], residual.abs().amax(-1) / size
