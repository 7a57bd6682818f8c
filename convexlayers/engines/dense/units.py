"""Dense numbers of a batch, equilibrated: every element is solved in units of its own.

With diagonal D, E and positive sigma, zeta, all powers of two so that nothing is rounded,

    P~ = sigma / zeta D P D,   q~ = D q / zeta,   A~ = E A D,   b~ = E b / sigma

has the solution x~ = x / (sigma D), s~ = E s / sigma, z~ = z / (zeta E). D and E come from Ruiz's equilibration of
[P A'; A 0] (Ruiz, "A scaling algorithm to equilibrate both rows and columns norms in matrices", 2001), E being constant
on the rows of a cone that is not a product; sigma and zeta bring b and q to size one.
"""

from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from convexlayers.cones import Cones, Nonnegative, Zero
from convexlayers.engines.dense.elements import Elements
from convexlayers.engines.dense.matrices import DenseProgram
from convexlayers.engines.dense.room import Room

Point = tuple[Tensor, Tensor, Tensor]

# Added to the diagonals of P and of M where a system is factored (condensed.py).
REGULARIZATION = {torch.float64: 1e-8, torch.float32: 1e-4}
EQUILIBRATION_STEPS = 5
# Rows whose largest entries are within this factor of 1 are balanced.
BALANCED = 4.0
# Right-hand sides of inequalities this many times the typical one are out of proportion.
FAR = 1024.0
# What stands for no bound (functional.py) says nothing about the size of the others.
NO_BOUND = 1e20


@dataclass(frozen=True, eq=False)
class Scales(Elements):
    """The units of each element.

    Attributes:
        D: (B, n). E: (B, m). sigma, zeta: (B, 1).
    """

    D: Tensor
    E: Tensor
    sigma: Tensor
    zeta: Tensor

    @classmethod
    def ones(cls, like: Tensor, n: int, m: int) -> "Scales":
        """No scaling, for as many elements as `like` has."""
        return cls(*(like.new_ones(len(like), width) for width in (n, m, 1, 1)))

    @cached_property
    def row_unit(self) -> Tensor:
        """s over s~, and what a residual of the rows is over its scaled one, (B, m)."""
        return self.sigma / self.E

    @cached_property
    def column_unit(self) -> Tensor:
        """What a residual of the columns, Px + A'z + q, is over its scaled one, (B, n)."""
        return self.zeta / self.D

    @cached_property
    def objective_unit(self) -> Tensor:
        """What an objective is over its scaled one, (B,)."""
        return (self.sigma * self.zeta).squeeze(-1)

    def restore_point(self, x: Tensor, s: Tensor, z: Tensor) -> Point:
        """A solution of the original from one of the scaled program."""
        return self.sigma * self.D * x, self.row_unit * s, self.zeta * self.E * z

    def scale_rows(self, s: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """Slacks and multipliers of the scaled program."""
        return s / self.row_unit, z / (self.zeta * self.E)


@dataclass(frozen=True, eq=False)
class Scaled:
    """Numbers in their own units.

    Attributes:
        cones: of the rows.
        P: (B, n, n). q: (B, n). A: (B, m, n). b: (B, m).
        scales: the units.
        room: for the matrices of an iteration.
    """

    cones: Cones
    P: Tensor
    q: Tensor
    A: Tensor
    b: Tensor
    scales: Scales
    room: Room = field(default_factory=Room)

    @classmethod
    def of(cls, program: DenseProgram, scales: Scales | None = None) -> "Scaled":
        """Scale a program, by units that were found before where they are given."""
        if scales is None:
            P, A, D, E = _equilibrate(program.P, program.A, program.structure.cones)
            scales = _units(program.structure.cones, D, E, P, program.q, program.b)
            own = P is not program.P
            P, A = _times_rows(P, scales.sigma / scales.zeta, own), _times_rows(A, scales.E / E, own)
        else:
            P = _between(scales.sigma / scales.zeta * scales.D, program.P, scales.D)
            A = _between(scales.E, program.A, scales.D)
        D, E, sigma, zeta = scales.D, scales.E, scales.sigma, scales.zeta
        q, b = program.q * (D / zeta), program.b * (E / sigma)
        return cls(program.structure.cones, P, q, A, b, scales)

    @cached_property
    def equalities(self) -> Tensor:
        """Mask of the rows that are equalities, (m,)."""
        return torch.arange(self.b.shape[-1], device=self.b.device) < self.cones.zero

    def select(self, indices: Tensor) -> "Scaled":
        """The elements at these indices."""
        P, q, A, b = (part[indices] for part in (self.P, self.q, self.A, self.b))
        return Scaled(self.cones, P, q, A, b, self.scales.select(indices), self.room)

    def keep(self, indices: Tensor) -> "Scaled":
        """The elements at these indices in ascending order; without a copy where that is all of them."""
        return self if len(indices) == len(self.q) else self.select(indices)

    def to(self, dtype: torch.dtype) -> "Scaled":
        """In another precision."""
        P, q, A, b = (part.to(dtype) for part in (self.P, self.q, self.A, self.b))
        return Scaled(self.cones, P, q, A, b, self.scales.to(dtype))


def largest(v: Tensor) -> Tensor:
    """Maximum norm over the last dimension, (..., k) to (...); 0 for an empty one."""
    return v.abs().amax(-1) if v.shape[-1] else v.sum(-1)


def power_of_two(size: Tensor) -> Tensor:
    """The power of two nearest below a positive, finite size."""
    return torch.exp2(torch.frexp(size).exponent.to(size.dtype) - 1)


def _equilibrate(P: Tensor, A: Tensor, cones: Cones) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """D P D, E A D, D (B, n) and E (B, m)."""
    D, E = torch.ones_like(P[..., 0]), torch.ones_like(A[..., 0])
    for step in range(EQUILIBRATION_STEPS):
        column, row = _largest_entry(P, -2), E
        if A.shape[-2]:
            column, row = torch.maximum(column, _largest_entry(A, -2)), _level(_largest_entry(A, -1), cones)
        # An element whose rows are balanced is left alone, so that it does not depend on the others.
        both = torch.cat([column, row], dim=-1)
        unbalanced = ((both >= BALANCED) | ((both > 0) & (both < 1 / BALANCED))).any(-1, keepdim=True)
        if D.device.type == "cpu" and not bool(unbalanced.any()):
            break
        d, e = (torch.where(unbalanced, _inverse_root(norm), torch.ones_like(norm)) for norm in (column, row))
        D, E = D * d, E * e
        # The program's own matrices once, then the copies in their places.
        P, A = _between(d, P, d, in_place=step > 0), _between(e, A, d, in_place=step > 0)
    return P, A, D, E


def _times_rows(matrix: Tensor, factor: Tensor, in_place: bool) -> Tensor:
    """diag(factor) matrix; a pass over the matrix that is rarely needed."""
    if matrix.device.type == "cpu" and bool((factor == 1).all()):
        return matrix
    return matrix.mul_(factor.unsqueeze(-1)) if in_place else matrix * factor.unsqueeze(-1)


def _between(left: Tensor, matrix: Tensor, right: Tensor, in_place: bool = False) -> Tensor:
    """diag(left) matrix diag(right)."""
    rows = matrix.mul_(left.unsqueeze(-1)) if in_place else matrix * left.unsqueeze(-1)
    return rows.mul_(right.unsqueeze(-2))


def _largest_entry(matrix: Tensor, dim: int) -> Tensor:
    """Maximum norms along a dimension, without a matrix of sizes in between."""
    return torch.maximum(matrix.amax(dim), -matrix.amin(dim))


def _inverse_root(norm: Tensor) -> Tensor:
    """The power of two nearest below norm^(-1/2); 1 for zero."""
    return power_of_two(torch.where(norm > 0, norm, torch.ones_like(norm)).rsqrt())


def _level(row: Tensor, cones: Cones) -> Tensor:
    """The rows of a cone that is not a product share the largest norm."""
    parts = []
    for group in cones.groups:
        part = group.split(row)
        if not isinstance(group.cone, Zero | Nonnegative):
            part = part.amax(-1, keepdim=True).expand_as(part)
        parts.append(part.flatten(-2))
    return torch.cat(parts, dim=-1)


def _typical(values: Tensor) -> tuple[Tensor, Tensor]:
    """log2 of the geometric mean of the entries that are not zero, and whether there are any, (B, 1) each."""
    size = values.abs().flatten(1)
    present = size > 0
    logarithm = torch.where(present, size, torch.ones_like(size)).log2()
    count = present.sum(-1, keepdim=True)
    return logarithm.sum(-1, keepdim=True) / count.clamp(min=1), count > 0


def _units(cones: Cones, D: Tensor, E: Tensor, P: Tensor, q: Tensor, b: Tensor) -> Scales:
    """sigma and zeta as scaling.py has them for A of size one, and E once more for bounds out of proportion.

    P is the equilibrated matrix, q and b are the program's.

    A linear system does not depend on the size of its right-hand side; without inequalities there is nothing else.
    """
    ones = torch.ones_like(q[:, :1])
    if cones.zero == cones.rows:
        return Scales(D, E, ones, ones)
    scaled_b = E * b
    # The diagonal of a positive semidefinite matrix bounds its entries.
    size_P, has_P = _typical(P.diagonal(dim1=-2, dim2=-1))
    size_q, has_q = _typical(q * D)
    size_b, has_b = _typical(torch.where(b.abs() < NO_BOUND, scaled_b, torch.zeros_like(b)))
    sigma = torch.where(has_b, size_b, torch.where(has_P & has_q, size_q - size_P, torch.zeros_like(size_q))).round()
    nothing = torch.full_like(size_q, -float("inf"))
    linear, quadratic = torch.where(has_q, sigma + size_q, nothing), torch.where(has_P, 2 * sigma + size_P, nothing)
    omega = torch.where(has_q | has_P, torch.maximum(linear, quadratic), torch.zeros_like(size_q)).round()
    sigma, zeta = sigma.exp2(), (omega - sigma).exp2()
    return Scales(D, E * _shrink_far(cones, scaled_b, FAR * sigma), sigma, zeta)


def _shrink_far(cones: Cones, b: Tensor, limit: Tensor) -> Tensor:
    """Factors of the rows: inequalities so far away that they will not hold with equality do not drown the others."""
    far = b.abs() > limit
    far[:, : cones.zero] = False
    far[:, cones.zero + cones.nonnegative :] = False
    ones = torch.ones_like(b)
    return torch.where(far, power_of_two(limit / torch.where(far, b.abs(), limit.expand_as(b))), ones)
