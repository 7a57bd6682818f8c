"""Complementarity as smooth equations: what second derivatives of a solution need of a cone.

Near a strictly complementary pair the conditions s in K, z in K*, s'z = 0 say the same as dim smooth equations
C(s, z) = 0 whose Jacobian [C_s, C_z] has full row rank. For cones that are Jordan algebras C(s, z) = s o z (Alizadeh
and Goldfarb, "Second-order cone programming", 2003; for matrices the symmetrized product, Alizadeh, Haeberly and
Overton, 1998), which is bilinear, so that C_s = L(z), C_z = L(s), L(a) b = a o b. As s and z share their eigenvectors,
L(s) and L(z) commute, and L(s) + L(z) = L(s + z) is positive definite.

Every operation works on tensors (..., dim), is made of differentiable operations of torch, and expects s and z of size
about one.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

Pair = tuple[Tensor, Tensor]


class Complementarity(ABC):
    """The equations C(s, z) = 0 of a cone."""

    @abstractmethod
    def multiplier(self, s: Tensor, z: Tensor, a: Tensor, b: Tensor) -> Tensor:
        """y with C_s' y = a and C_z' y = b, for a and b for which there is one."""

    @abstractmethod
    def correction(self, s: Tensor, z: Tensor, c: Tensor) -> Pair:
        """One (ds, dz) with C_s ds + C_z dz = c."""

    @abstractmethod
    def curvature(self, s: Tensor, z: Tensor, first: Pair, second: Pair) -> Tensor:
        """D2C[(ds, dz), (es, ez)] of two directions."""

    @abstractmethod
    def weighted_curvature(self, s: Tensor, z: Tensor, y: Tensor, direction: Pair) -> Pair:
        """The Hessian of y'C times a direction (ds, dz): its parts for s and for z."""


class JordanComplementarity(Complementarity):
    """C(s, z) = s o z."""

    @abstractmethod
    def product(self, a: Tensor, b: Tensor) -> Tensor:
        """a o b."""

    @abstractmethod
    def divide(self, c: Tensor, a: Tensor) -> Tensor:
        """L(a)^-1 c, for a in the interior of the cone."""

    def multiplier(self, s: Tensor, z: Tensor, a: Tensor, b: Tensor) -> Tensor:
        return self.divide(a + b, s + z)

    def correction(self, s: Tensor, z: Tensor, c: Tensor) -> Pair:
        both = self.divide(c, s + z)
        return both, both

    def curvature(self, s: Tensor, z: Tensor, first: Pair, second: Pair) -> Tensor:
        return self.product(first[0], second[1]) + self.product(first[1], second[0])

    def weighted_curvature(self, s: Tensor, z: Tensor, y: Tensor, direction: Pair) -> Pair:
        return self.product(y, direction[1]), self.product(y, direction[0])


class EntrywiseComplementarity(JordanComplementarity):
    """s_i z_i = 0."""

    def product(self, a: Tensor, b: Tensor) -> Tensor:
        return a * b

    def divide(self, c: Tensor, a: Tensor) -> Tensor:
        return c / a


class EqualityComplementarity(Complementarity):
    """The zero cone: C(s, z) = s."""

    def multiplier(self, s: Tensor, z: Tensor, a: Tensor, b: Tensor) -> Tensor:
        return a

    def correction(self, s: Tensor, z: Tensor, c: Tensor) -> Pair:
        return c, torch.zeros_like(c)

    def curvature(self, s: Tensor, z: Tensor, first: Pair, second: Pair) -> Tensor:
        return torch.zeros_like(s)

    def weighted_curvature(self, s: Tensor, z: Tensor, y: Tensor, direction: Pair) -> Pair:
        return torch.zeros_like(s), torch.zeros_like(s)


# A part of s or z below this, in units of size one, is zero; strict complementarity keeps the others well above it.
VANISHING = 1e-6


@dataclass(frozen=True)
class Equations:
    """Equations of three-dimensional cones at a point.

    Attributes:
        C_s, C_z: the Jacobian, (..., 3, 3).
        curved: whether the cone is on its curved boundary, where C has second derivatives, (...).
    """

    C_s: Tensor
    C_z: Tensor
    curved: Tensor

    def normal_solve(self, c: Tensor) -> Tensor:
        """(C_s C_s' + C_z C_z')^-1 c."""
        normal = self.C_s @ self.C_s.mT + self.C_z @ self.C_z.mT
        return torch.linalg.solve(normal, c.unsqueeze(-1)).squeeze(-1)


class BoundaryComplementarity(Complementarity):
    """Three-dimensional cones: the equations depend on which face s is in.

    In the interior of K they are z = 0, at its apex s = 0, on its curved boundary what the cone says.
    """

    @abstractmethod
    def equations(self, s: Tensor, z: Tensor) -> Equations:
        """The equations at a pair."""

    @abstractmethod
    def boundary_curvature(self, s: Tensor, z: Tensor, first: Pair, second: Pair) -> Tensor:
        """`curvature` on the curved boundary."""

    @abstractmethod
    def boundary_weighted_curvature(self, s: Tensor, z: Tensor, y: Tensor, direction: Pair) -> Pair:
        """`weighted_curvature` on the curved boundary."""

    def multiplier(self, s: Tensor, z: Tensor, a: Tensor, b: Tensor) -> Tensor:
        at = self.equations(s, z)
        right = at.C_s @ a.unsqueeze(-1) + at.C_z @ b.unsqueeze(-1)
        return at.normal_solve(right.squeeze(-1))

    def correction(self, s: Tensor, z: Tensor, c: Tensor) -> Pair:
        at = self.equations(s, z)
        y = at.normal_solve(c).unsqueeze(-1)
        return (at.C_s.mT @ y).squeeze(-1), (at.C_z.mT @ y).squeeze(-1)

    def curvature(self, s: Tensor, z: Tensor, first: Pair, second: Pair) -> Tensor:
        curved = self.equations(s, z).curved.unsqueeze(-1)
        return torch.where(curved, self.boundary_curvature(s, z, first, second), 0.0)

    def weighted_curvature(self, s: Tensor, z: Tensor, y: Tensor, direction: Pair) -> Pair:
        curved = self.equations(s, z).curved.unsqueeze(-1)
        for_s, for_z = self.boundary_weighted_curvature(s, z, y, direction)
        return torch.where(curved, for_s, 0.0), torch.where(curved, for_z, 0.0)


def is_zero(v: Tensor) -> Tensor:
    """Whether a vector vanishes, (..., 3) to (...)."""
    return v.abs().amax(-1) <= VANISHING


def coordinates(like: Tensor, *which: int) -> Tensor:
    """The matrix whose rows read these of three coordinates; -1 gives a row of zeros. (..., 3, 3) for (..., 3)."""
    rows = torch.zeros(3, 3, dtype=like.dtype, device=like.device)
    for row, column in enumerate(which):
        if column >= 0:
            rows[row, column] = 1
    return rows.expand(*like.shape, 3)


def matrix(*rows: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """(..., 3, 3) from three rows of entries (...)."""
    return torch.stack([torch.stack(row, dim=-1) for row in rows], dim=-2)


def choose(cases: list[tuple[Tensor, Tensor, Tensor]], C_s: Tensor, C_z: Tensor) -> tuple[Tensor, Tensor]:
    """Per cone the Jacobian of the first case (mask, C_s, C_z) whose mask holds, else the given one."""
    for mask, case_s, case_z in reversed(cases):
        C_s = torch.where(mask[..., None, None], case_s, C_s)
        C_z = torch.where(mask[..., None, None], case_z, C_z)
    return C_s, C_z
