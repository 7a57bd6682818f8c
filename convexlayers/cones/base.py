"""What a cone is to the rest of the library, and the spectrum of its projection's derivative.

Every cone K is closed, convex and given by operations on tensors whose last dimension is the cone's own, so that one
call serves all elements of a batch and all cones of the same kind and size. With v = s - z, the complementary pair
(s in K, z in K*, s'z = 0) is recovered by s = Proj_K(v), z = s - v (Moreau).
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from convexlayers.cones.complementarity import Complementarity


class Basis(ABC):
    """An orthogonal matrix Q per cone, applied without being formed where that is cheaper."""

    @abstractmethod
    def rotate(self, y: Tensor) -> Tensor:
        """Q'y for y of shape (..., dim, k)."""

    @abstractmethod
    def unrotate(self, y: Tensor) -> Tensor:
        """Q y for y of shape (..., dim, k)."""


class IdentityBasis(Basis):
    """Q = I, for the cones that work entry by entry."""

    def rotate(self, y: Tensor) -> Tensor:
        return y

    def unrotate(self, y: Tensor) -> Tensor:
        return y


@dataclass(frozen=True)
class DenseBasis(Basis):
    """Q given as a matrix, shape (..., dim, dim)."""

    Q: Tensor

    def rotate(self, y: Tensor) -> Tensor:
        return self.Q.transpose(-1, -2) @ y

    def unrotate(self, y: Tensor) -> Tensor:
        return self.Q @ y


@dataclass(frozen=True)
class Spectrum:
    """Eigen-decomposition M = Q diag(mu) Q' of the derivative M = D Proj_K(v).

    Proj_K is the gradient of a convex function with a 1-Lipschitz gradient, so M is symmetric with eigenvalues in
    [0, 1]. Where Proj_K has a kink, one of the one-sided derivatives is returned, always the same for the same v.

    Attributes:
        mu: eigenvalues, shape (..., dim). (The weight of a barrier has the same letter in the literature; here it is
            called weight.)
        nu: 1 - mu, computed without cancellation, shape (..., dim).
        basis: the eigenvectors Q.
    """

    mu: Tensor
    nu: Tensor
    basis: Basis


class Cone(ABC):
    """A closed convex cone of dimension `dim`."""

    dim: int

    @abstractmethod
    def project(self, v: Tensor) -> Tensor:
        """Euclidean projection onto K. Shape (..., dim) to (..., dim)."""

    def project_dual(self, v: Tensor) -> Tensor:
        """Euclidean projection onto the dual cone K*, by Moreau: v = Proj_K*(v) - Proj_K(-v)."""
        return v + self.project(-v)

    @abstractmethod
    def spectrum(self, v: Tensor) -> Spectrum:
        """Eigen-decomposition of D Proj_K(v). Shape (..., dim)."""

    @abstractmethod
    def smooth(self, v: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Spectrum]:
        """s = argmin 1/2 |s - v|^2 + weight f(s) for the cone's barrier f, z = s - v, and the spectrum of ds/dv.

        See barrier.py. The zero cone has no barrier: s = 0.

        Args:
            v: shape (..., dim).
            weight: positive, shape (...) or one that expands to it.
        """

    @abstractmethod
    def margin(self, v: Tensor) -> Tensor:
        """How far v is from where Proj_K has a kink: zero without strict complementarity. Shape (..., dim) to (...).

        Exact for cones that are Jordan algebras; of the first order for the others. The nonnegative cone answers for
        every entry, and so does the zero cone, with infinity: shape (..., dim).
        """

    @property
    @abstractmethod
    def complementarity(self) -> Complementarity:
        """Complementarity as smooth equations, for second derivatives."""


def step(values: Tensor) -> Tensor:
    """1 where positive, 0 elsewhere: the derivative of max(., 0), one-sided at zero."""
    return (values > 0).to(values.dtype)


def cross_ratio(positive: Tensor, negative: Tensor) -> tuple[Tensor, Tensor]:
    """The eigenvalue l+ / (l+ - l-) that couples an eigenvalue l+ > 0 with one l- < 0, and its complement.

    Pairs on the same side of zero get 1 (both positive) or 0 (neither is). `positive >= negative` is assumed.
    """
    mixed = (positive > 0) & (negative < 0)
    gap = torch.where(mixed, positive - negative, torch.ones_like(positive))
    # On one side of zero: 1 if the smaller one is >= 0 and the larger one > 0, else 0.
    one_side = ((positive > 0) & (negative >= 0)).to(positive.dtype)
    mu = torch.where(mixed, positive / gap, one_side)
    nu = torch.where(mixed, -negative / gap, 1 - one_side)
    return mu, nu
