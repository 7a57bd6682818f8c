"""The product of cones in an interior-point step, row by row as `Cones` orders them."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from convexlayers.cones import PSD, Cones, Exponential, Nonnegative, Power, SecondOrder, Zero
from convexlayers.cones.base import Cone, IdentityBasis, Spectrum
from convexlayers.cones.product import Group, ProductBasis
from convexlayers.engines.dense.boundary import BoundarySteps
from convexlayers.engines.dense.linear import LinearSteps, ZeroSteps
from convexlayers.engines.dense.second_order import SecondOrderSteps
from convexlayers.engines.dense.semidefinite import SemidefiniteSteps
from convexlayers.engines.dense.steps import Local, Steps
from convexlayers.engines.dense.three import ExponentialSteps, PowerSteps

# A first point less deep inside than this is moved in.
SHALLOW = 1e-4


def steps_of(cone: Cone) -> Steps:
    """The interior-point operations of a kind of cone."""
    if isinstance(cone, SecondOrder):
        return SecondOrderSteps() if cone.dim > 1 else LinearSteps()
    if isinstance(cone, PSD):
        return SemidefiniteSteps(cone.order)
    if isinstance(cone, Exponential):
        return ExponentialSteps(cone)
    if isinstance(cone, Power):
        return PowerSteps(cone)
    return ZeroSteps() if isinstance(cone, Zero) else LinearSteps(cone.dim)


@dataclass(frozen=True)
class Product:
    """All cones of a program.

    Attributes:
        cones: which.
    """

    cones: Cones

    @cached_property
    def parts(self) -> tuple[tuple[Group, Steps], ...]:
        """The groups of equal cones, in row order."""
        return tuple((group, steps_of(group.cone)) for group in self.cones.groups)

    @cached_property
    def degree(self) -> int:
        """Of the barrier."""
        return sum(group.count * steps.degree for group, steps in self.parts)

    @property
    def is_linear(self) -> bool:
        """Whether there are only equalities and inequalities."""
        return all(isinstance(group.cone, Zero | Nonnegative) for group in self.cones.groups)

    @property
    def starts_central(self) -> bool:
        """Whether a cone has no axis to move along, so that the first point is at the centers of the cones."""
        return any(isinstance(steps, BoundarySteps) for _, steps in self.parts)

    def at(self, s: Tensor, z: Tensor) -> "ProductLocal":
        """The cones at a pair inside K and K*, (B, m) each."""
        return ProductLocal(
            self.cones.groups, [steps.at(group.split(s), group.split(z)) for group, steps in self.parts]
        )

    def center(self, like: Tensor) -> Tensor:
        """Centers of all cones, (B, m)."""
        return _join([steps.center(group.split(like)) for group, steps in self.parts], like)

    def move_inside(self, v: Tensor) -> Tensor:
        """A point moved along the axes of the cones until it is well inside, (B, m)."""
        if not self.parts:
            return v
        depth = torch.stack([steps.depth(group.split(v)).amin(-1) for group, steps in self.parts]).amin(0)
        # One shift for all cones, and none of rows without a cone.
        shift = torch.where(depth < SHALLOW, 1 - depth, torch.zeros_like(depth))
        return v + shift.unsqueeze(-1) * self.center(v)


@dataclass(frozen=True, eq=False)
class ProductLocal:
    """All cones at a pair.

    Attributes:
        groups: of equal cones, in row order.
        parts: one for each.
    """

    groups: tuple[Group, ...]
    parts: Sequence[Local]

    def spectrum(self, like: Tensor) -> Spectrum:
        """Of M = H (I + H)^-1, entries (B, m)."""
        if not self.parts:
            return Spectrum(like, like, IdentityBasis())
        spectra = [part.spectrum for part in self.parts]
        mu, nu = (_join([getattr(spectrum, name) for spectrum in spectra], like) for name in ("mu", "nu"))
        return Spectrum(mu, nu, ProductBasis.of(self.groups, [spectrum.basis for spectrum in spectra]))

    def corrector(self, ds: Tensor, dz: Tensor, weight: Tensor, sigma_mu: Tensor) -> Tensor:
        """d_s, (B, m), for the predictor's ds and dz, (B, m), weight and sigma_mu, (B,)."""
        scalars = weight.reshape(-1, 1, 1), sigma_mu.reshape(-1, 1, 1)
        pairs = zip(self.groups, self.parts, strict=True)
        return _join([part.corrector(group.split(ds), group.split(dz), *scalars) for group, part in pairs], ds)

    def exit_rate(self, ds: Tensor, dz: Tensor, rate: Tensor) -> Tensor:
        """1 / the largest step that stays inside all cones, at least `rate`, (B,)."""
        for group, part in zip(self.groups, self.parts, strict=True):
            rate = part.exit_rate(group.split(ds), group.split(dz), rate)
        return rate


def _join(parts: Sequence[Tensor], like: Tensor) -> Tensor:
    """Groups (B, count, dim) to rows (B, m)."""
    return torch.cat([part.flatten(-2) for part in parts], dim=-1) if parts else like
