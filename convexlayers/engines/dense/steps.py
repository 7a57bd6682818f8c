"""What a cone is to an interior-point step.

At a pair (s, z) inside K and K* a cone is replaced by a symmetric matrix H with H z = s, or close to it: the
Nesterov-Todd scaling W'W, or what takes its place in the cones that have none. Everything here has the shape (B, count,
dim) of `count` equal cones.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from convexlayers.cones.base import Basis, Spectrum


class Local(ABC):
    """Equal cones at a pair (s, z).

    Attributes:
        spectrum: of M = H (I + H)^-1, so that H = M (I - M)^-1.
    """

    spectrum: Spectrum

    @abstractmethod
    def corrector(self, ds: Tensor, dz: Tensor, weight: Tensor, sigma_mu: Tensor) -> Tensor:
        """d_s of the corrected step ds + H dz = -d_s.

        Args:
            ds, dz: the predictor's step, (B, count, dim).
            weight: share of the second-order correction, (B, 1, 1).
            sigma_mu: centering, (B, 1, 1).
        """

    @abstractmethod
    def exit_rate(self, ds: Tensor, dz: Tensor, rate: Tensor) -> Tensor:
        """1 / the largest step along (ds, dz) that stays inside both cones, at least `rate`; (B,)."""


class Steps(ABC):
    """A kind of cone.

    Attributes:
        degree: of the barrier of one cone.
    """

    degree: int

    @abstractmethod
    def at(self, s: Tensor, z: Tensor) -> Local:
        """The cones at a pair."""

    @abstractmethod
    def center(self, like: Tensor) -> Tensor:
        """The point with s = z = -grad f(s), (B, count, dim)."""

    @abstractmethod
    def depth(self, s: Tensor) -> Tensor:
        """How far along `center` a point lies inside, negative outside, (B, count)."""


def spectrum_of(h: Tensor, basis: Basis) -> Spectrum:
    """That of H (I + H)^-1 for H = Q diag(h) Q'."""
    nu = 1 / (1 + h)
    return Spectrum(mu=h * nu, nu=nu, basis=basis)


def worst(rates: Tensor, rate: Tensor) -> Tensor:
    """The largest of all cones' rates and `rate`, (B,)."""
    return torch.maximum(rates.flatten(1).amax(-1), rate)


def usable(*matrices: Tensor) -> list[Tensor]:
    """Matrices (..., k, k) with the identity in place of those that are not finite.

    One of them would be an error for the whole batch; the element is given up by its residual.
    """
    finite = torch.stack([matrix.isfinite().all(-1).all(-1) for matrix in matrices]).all(0)[..., None, None]
    identity = torch.eye(matrices[0].shape[-1], dtype=matrices[0].dtype, device=matrices[0].device)
    return [torch.where(finite, matrix, identity) for matrix in matrices]


@dataclass(frozen=True, eq=False)
class Apply:
    """Powers of H = Q diag(h) Q' times vectors.

    Attributes:
        h: (..., dim).
        basis: Q.
    """

    h: Tensor
    basis: Basis

    def power(self, exponent: float, y: Tensor) -> Tensor:
        """H^exponent y for y of shape (..., dim)."""
        rotated = self.basis.rotate(y.unsqueeze(-1))
        return self.basis.unrotate(self.h.pow(exponent).unsqueeze(-1) * rotated).squeeze(-1)
