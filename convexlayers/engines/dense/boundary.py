"""The exponential and the power cone in an interior-point step, by a barrier of the dual cone,

    f*(z) = -log phi(z) - sum_i w_i log |z_i|,

    exponential   phi = v - u - u log(-w / u),                    w = (1, 0, 1),   z = (u, v, w)
    power         phi = (u / a)^2a (v / b)^2b - w^2, b = 1 - a,   w = (b, a, 0).

Scaling (Tuncel 2001; Dahl, Andersen, "A primal-dual interior-point algorithm for nonsymmetric exponential-cone
optimization", 2022), in the form for three dimensions. With z~ the point where s = -D f*(z~), s~ = -D f*(z), mu = s'z /
3, mu~ = s~'z~ / 3, ds = s - mu s~, dz = z - mu z~, n orthogonal to z and z~, |n| = 1,

    H = ss' / s'z + ds ds' / ds'dz + t nn',   t = mu |D2f*(z) - s~s~' / 3 - rr' / r'z~|_F,   r = D2f*(z) z~ - mu~ s~,

has H z = s, H z~ = s~ and is close to mu D2f*(z), which stands in where z is nearly central (ds ~ 0). H = F'F with
three rows, whose singular values keep twice the digits of H's eigenvalues.

Corrector: s = -mu D f*(z) along the central path; differentiated twice, with H_f = D2f*(z) and the predictor's steps,

    d_s = s + sigma mu D f*(z) - weight / 2 D3f*(z)[H_f^-1 ds_a, dz_a].
"""

from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from convexlayers.cones.base import DenseBasis, Spectrum
from convexlayers.cones.boundary import unit
from convexlayers.engines.dense.steps import Local, Steps, spectrum_of, usable

# Steps to the boundary: shortened by this factor until inside, then halfway back so many times.
SHORTER, LONGEST_SEARCH, REFINED = 0.7, 60, 4
# Below these, relative, the pair is central, and the scaling by two points is a quotient of rounding errors.
CENTRAL_MU, CENTRAL = 1e-8, 1e-12


@dataclass(frozen=True, eq=False)
class DualBarrier:
    """f* at a point of K*'s interior.

    Attributes:
        gradient: D f*(z), (..., 3).
        hessian: D2f*(z), (..., 3, 3).
        phi_gradient, phi_hessian: of phi, divided by phi, (..., 3) and (..., 3, 3).
        inverse_cubed: w_i / z_i^3, (..., 3).
    """

    gradient: Tensor
    hessian: Tensor
    phi_gradient: Tensor
    phi_hessian: Tensor
    inverse_cubed: Tensor

    @classmethod
    def of(cls, z: Tensor, weights: Tensor, phi: Tensor, first: Tensor, second: Tensor) -> "DualBarrier":
        """From phi (...), its gradient (..., 3) and its second derivatives (..., 3, 3)."""
        # A coordinate without a logarithm may be zero.
        safe = torch.where(weights > 0, z, torch.ones_like(z))
        first, second = first / phi.unsqueeze(-1), second / phi[..., None, None]
        diagonal = torch.diag_embed(weights / safe**2)
        return cls(
            gradient=-(first + weights / safe),
            hessian=first.unsqueeze(-1) * first.unsqueeze(-2) - second + diagonal,
            phi_gradient=first,
            phi_hessian=second,
            inverse_cubed=weights / safe**3,
        )

    def third(self, u: Tensor, v: Tensor, cubic: Tensor) -> Tensor:
        """D3f*(z)[u, v], given D3phi[u, v] / phi."""
        along_u, along_v = ((self.phi_gradient * y).sum(-1, keepdim=True) for y in (u, v))
        bent_u, bent_v = (_times(self.phi_hessian, y) for y in (u, v))
        outer = self.phi_gradient * ((bent_u * v).sum(-1, keepdim=True) - 2 * along_u * along_v)
        return outer + along_u * bent_v + along_v * bent_u - cubic - 2 * self.inverse_cubed * u * v


class BoundarySteps(Steps):
    """A three-dimensional cone with a dual barrier."""

    degree: int = 3

    @abstractmethod
    def barrier(self, z: Tensor) -> DualBarrier:
        """f* at z, (..., 3)."""

    @abstractmethod
    def cubic(self, z: Tensor, u: Tensor, v: Tensor) -> Tensor:
        """D3phi(z)[u, v] / phi."""

    @abstractmethod
    def shadow(self, s: Tensor) -> Tensor:
        """z~ with s = -D f*(z~)."""

    @abstractmethod
    def inside(self, s: Tensor, z: Tensor) -> Tensor:
        """Whether s is inside K and z inside K*, (...)."""

    def at(self, s: Tensor, z: Tensor) -> "BoundaryLocal":
        barrier = self.barrier(z)
        (factor,) = usable(_scaling_factor(s, z, self.shadow(s), barrier))
        _, singular, right = torch.linalg.svd(factor)
        return BoundaryLocal(self, s, z, barrier, spectrum_of(singular**2, DenseBasis(right.mT)))

    def depth(self, s: Tensor) -> Tensor:
        # Not asked for: with such a cone the first point is central.
        return torch.full_like(s[..., 0], -float("inf"))


@dataclass(frozen=True, eq=False)
class BoundaryLocal(Local):
    """Three-dimensional cones at (s, z)."""

    kind: BoundarySteps
    s: Tensor
    z: Tensor
    barrier: DualBarrier
    spectrum: Spectrum

    def corrector(self, ds: Tensor, dz: Tensor, weight: Tensor, sigma_mu: Tensor) -> Tensor:
        u = torch.linalg.solve_ex(self.barrier.hessian, ds.unsqueeze(-1))[0].squeeze(-1)
        third = self.barrier.third(u, dz, self.kind.cubic(self.z, u, dz))
        return self.s + sigma_mu * self.barrier.gradient - 0.5 * weight * third

    def exit_rate(self, ds: Tensor, dz: Tensor, rate: Tensor) -> Tensor:
        def inside(step: Tensor) -> Tensor:
            a = step[:, None, None]
            return self.kind.inside(self.s + a * ds, self.z + a * dz).all(-1)

        step = 1 / rate.clamp(min=1)
        upper, outside = step, ~inside(step)
        left = outside
        for _ in range(LONGEST_SEARCH):
            if step.device.type == "cpu" and not bool(outside.any()):
                break
            upper = torch.where(outside, step, upper)
            step = torch.where(outside, SHORTER * step, step)
            outside = outside & ~inside(step)
        for _ in range(REFINED):
            middle = 0.5 * (step + upper)
            good = inside(middle)
            step, upper = torch.where(good, middle, step), torch.where(good, upper, middle)
        return torch.where(left, torch.maximum(1 / step, rate), rate)


def _scaling_factor(s: Tensor, z: Tensor, near_z: Tensor, barrier: DualBarrier) -> Tensor:
    """F with H = F'F, (..., 3, 3)."""
    sz = (s * z).sum(-1, keepdim=True)
    mu, near_s = sz / 3, -barrier.gradient
    near_mu = (near_s * near_z).sum(-1, keepdim=True) / 3
    ds, dz = s - mu * near_s, z - mu * near_z
    image = _times(barrier.hessian, near_z)
    r = image - near_mu * near_s
    ds_dz, r_z, size = ((a * b).sum(-1, keepdim=True) for a, b in ((ds, dz), (r, near_z), (image, near_z)))
    ones = torch.ones_like(sz)
    outer_s = near_s.unsqueeze(-1) * near_s.unsqueeze(-2) / 3
    outer_r = r.unsqueeze(-1) * r.unsqueeze(-2) / torch.where(r_z > 0, r_z, ones).unsqueeze(-1)
    t = mu * (barrier.hessian - outer_s - outer_r).flatten(-2).norm(dim=-1, keepdim=True)
    good = (
        ((mu * near_mu - 1).abs() > CENTRAL_MU) & (r_z > CENTRAL * size) & (ds_dz > CENTRAL * sz) & (sz > 0) & (t > 0)
    )
    n = unit(torch.linalg.cross(z, near_z))
    by_points = torch.stack(
        [s / sz.sqrt(), ds / torch.where(good, ds_dz, ones).sqrt(), torch.where(good, t, ones).sqrt() * n], dim=-2
    )
    lower, _ = torch.linalg.cholesky_ex(barrier.hessian)
    return torch.where(good.unsqueeze(-1), by_points, mu.unsqueeze(-1).sqrt() * lower.mT)


def _times(matrix: Tensor, v: Tensor) -> Tensor:
    """Matrix times vector for small ones, (..., i, j) times (..., j)."""
    return (matrix * v.unsqueeze(-2)).sum(-1)
