"""Three-dimensional cones with a smooth boundary: what the exponential and the power cone share.

Let v = s - z with s != 0 on the boundary of K and z != 0 on the boundary of K*, s'z = 0. Moving v along s scales s
(Proj_K(v + e s) = (1 + e) s) and moving it along z leaves s alone, so M = D Proj_K(v) has

    M s = s,    M z = 0,    and the third eigenvector w = s x z / |s x z|.

For the third eigenvalue write the boundary as g = 0 with K = {g >= 0}, g concave, z = k grad g(s), k > 0. The
projection solves s - k grad g(s) = v, g(s) = 0. Differentiate and multiply by w: both dk grad g and the part of ds
along s drop out (the second fundamental form of a cone vanishes along its rays), leaving with ds = a s + c w

    c - k c w' D2g(s) w = w'dv    =>    mu = 1 / (1 + k h),    h = -w' D2g(s) w >= 0.

Both 1 - mu = k h / (1 + k h) and mu come without cancellation.
"""

import torch
from torch import Tensor

from convexlayers.cones.base import DenseBasis, Spectrum


def unit(v: Tensor) -> Tensor:
    """v / |v| without overflow; zero stays zero."""
    largest = v.abs().amax(-1, keepdim=True)
    scaled = v / torch.where(largest > 0, largest, torch.ones_like(largest))
    norm = scaled.norm(dim=-1, keepdim=True)
    return scaled / torch.where(norm > 0, norm, torch.ones_like(norm))


def third_direction(s: Tensor, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Orthonormal (s, z, w) from an orthogonal pair, shapes (..., 3)."""
    first = unit(s)
    # z is orthogonal to s up to rounding; one Gram-Schmidt step makes the basis orthogonal to machine precision.
    second = unit(z)
    second = unit(second - first * (first * second).sum(-1, keepdim=True))
    return first, second, torch.linalg.cross(first, second)


def boundary_spectrum(first: Tensor, second: Tensor, third: Tensor, kh: Tensor) -> Spectrum:
    """Spectrum at a boundary pair.

    Args:
        first, second, third: the directions of s, z and w, shapes (..., 3).
        kh: the product k h of the derivation above, shape (...).
    """
    ones, zeros = torch.ones_like(kh), torch.zeros_like(kh)
    mu = torch.stack([ones, zeros, 1 / (1 + kh)], dim=-1)
    # For kh = inf (the edge of the cone) the third eigenvalue is 0.
    nu = torch.stack([zeros, ones, torch.where(torch.isinf(kh), ones, kh / (1 + kh))], dim=-1)
    return Spectrum(mu=mu, nu=nu, basis=DenseBasis(torch.stack([first, second, third], dim=-1)))


def select(cases: list[tuple[Tensor, Spectrum]], default: Spectrum) -> Spectrum:
    """Per cone the first case whose mask holds, else the default. Masks have shape (...), bases are dense."""
    mu, nu, Q = default.mu, default.nu, _dense(default)
    for mask, case in reversed(cases):
        mu = torch.where(mask.unsqueeze(-1), case.mu, mu)
        nu = torch.where(mask.unsqueeze(-1), case.nu, nu)
        Q = torch.where(mask.unsqueeze(-1).unsqueeze(-1), _dense(case), Q)
    return Spectrum(mu=mu, nu=nu, basis=DenseBasis(Q))


def diagonal_spectrum(mu: Tensor) -> Spectrum:
    """Spectrum with the coordinate axes as eigenvectors, mu of shape (..., 3)."""
    identity = torch.eye(3, dtype=mu.dtype, device=mu.device).expand(*mu.shape, 3)
    return Spectrum(mu=mu, nu=1 - mu, basis=DenseBasis(identity))


def _dense(spectrum: Spectrum) -> Tensor:
    assert isinstance(spectrum.basis, DenseBasis)
    return spectrum.basis.Q
