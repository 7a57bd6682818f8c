"""The zero cone {0}: rows of A that are equalities. Its dual is the whole line."""

from dataclasses import dataclass

import torch
from torch import Tensor

from convexlayers.cones.base import Cone, IdentityBasis, Spectrum
from convexlayers.cones.complementarity import EqualityComplementarity


@dataclass(frozen=True)
class Zero(Cone):
    """K = {0}, dim entries at once."""

    dim: int

    def project(self, v: Tensor) -> Tensor:
        return torch.zeros_like(v)

    def spectrum(self, v: Tensor) -> Spectrum:
        return Spectrum(mu=torch.zeros_like(v), nu=torch.ones_like(v), basis=IdentityBasis())

    def smooth(self, v: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Spectrum]:
        return torch.zeros_like(v), -v, self.spectrum(v)

    def margin(self, v: Tensor) -> Tensor:
        return torch.full_like(v, float("inf"))

    @property
    def complementarity(self) -> EqualityComplementarity:
        return EqualityComplementarity()
