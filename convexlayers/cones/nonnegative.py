"""The nonnegative cone: rows of A that are inequalities. Self-dual."""

from dataclasses import dataclass

from torch import Tensor

from convexlayers.cones.base import Cone, IdentityBasis, Spectrum, step


@dataclass(frozen=True)
class Nonnegative(Cone):
    """K = {s : s >= 0}, dim entries at once."""

    dim: int

    def project(self, v: Tensor) -> Tensor:
        return v.clamp(min=0)

    def spectrum(self, v: Tensor) -> Spectrum:
        mu = step(v)
        return Spectrum(mu=mu, nu=1 - mu, basis=IdentityBasis())
