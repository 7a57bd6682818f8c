"""The nonnegative cone: rows of A that are inequalities. Self-dual. Barrier f(s) = -sum log s."""

from dataclasses import dataclass

from torch import Tensor

from convexlayers.cones.barrier import smooth_pair
from convexlayers.cones.base import Cone, IdentityBasis, Spectrum, step
from convexlayers.cones.complementarity import EntrywiseComplementarity


@dataclass(frozen=True)
class Nonnegative(Cone):
    """K = {s : s >= 0}, dim entries at once."""

    dim: int

    def project(self, v: Tensor) -> Tensor:
        return v.clamp(min=0)

    def spectrum(self, v: Tensor) -> Spectrum:
        mu = step(v)
        return Spectrum(mu=mu, nu=1 - mu, basis=IdentityBasis())

    def smooth(self, v: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Spectrum]:
        s, z = smooth_pair(v, weight.unsqueeze(-1))
        return s, z, Spectrum(mu=s / (s + z), nu=z / (s + z), basis=IdentityBasis())

    def margin(self, v: Tensor) -> Tensor:
        return v.abs()

    @property
    def complementarity(self) -> EntrywiseComplementarity:
        return EntrywiseComplementarity()
