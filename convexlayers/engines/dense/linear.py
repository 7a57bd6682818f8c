"""Equalities and inequalities: H = diag(s / z), and H = 0 where s = 0."""

from dataclasses import dataclass

import torch
from torch import Tensor

from convexlayers.cones.base import IdentityBasis, Spectrum
from convexlayers.engines.dense.steps import Local, Steps, worst


@dataclass(frozen=True, eq=False)
class LinearLocal(Local):
    """Inequalities at (s, z)."""

    s: Tensor
    z: Tensor

    @property
    def spectrum(self) -> Spectrum:  # type: ignore[override]
        total = self.s + self.z
        return Spectrum(mu=self.s / total, nu=self.z / total, basis=IdentityBasis())

    def corrector(self, ds: Tensor, dz: Tensor, weight: Tensor, sigma_mu: Tensor) -> Tensor:
        return self.s + (weight * ds * dz - sigma_mu) / self.z

    def exit_rate(self, ds: Tensor, dz: Tensor, rate: Tensor) -> Tensor:
        return worst(torch.maximum(-ds / self.s, -dz / self.z), rate)


@dataclass(frozen=True)
class LinearSteps(Steps):
    """Half lines {s >= 0}: `degree` of them are one cone."""

    degree: int = 1

    def at(self, s: Tensor, z: Tensor) -> LinearLocal:
        return LinearLocal(s, z)

    def center(self, like: Tensor) -> Tensor:
        return torch.ones_like(like)

    def depth(self, s: Tensor) -> Tensor:
        return s.amin(-1)


@dataclass(frozen=True, eq=False)
class ZeroLocal(Local):
    """Equalities: s = 0 and any z."""

    spectrum: Spectrum

    def corrector(self, ds: Tensor, dz: Tensor, weight: Tensor, sigma_mu: Tensor) -> Tensor:
        return torch.zeros_like(ds)

    def exit_rate(self, ds: Tensor, dz: Tensor, rate: Tensor) -> Tensor:
        return rate


@dataclass(frozen=True)
class ZeroSteps(Steps):
    """The zero cone; a point of its dual is never outside."""

    degree: int = 0

    def at(self, s: Tensor, z: Tensor) -> ZeroLocal:
        return ZeroLocal(Spectrum(mu=torch.zeros_like(s), nu=torch.ones_like(s), basis=IdentityBasis()))

    def center(self, like: Tensor) -> Tensor:
        return torch.zeros_like(like)

    def depth(self, s: Tensor) -> Tensor:
        return torch.full_like(s[..., 0], float("inf"))
