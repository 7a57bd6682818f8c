"""The second-order cone K = {(t, x) : |x|_2 <= t}. Self-dual.

With u = x / |x| the spectral decomposition of v = (t, x) is

    v = l1 c1 + l2 c2,    l1 = t + |x|, l2 = t - |x|,    c1 = (1, u) / 2, c2 = (1, -u) / 2,

and a spectral function acts on the eigenvalues (Alizadeh and Goldfarb, "Second-order cone programming", 2003):
Proj_K(v) = max(l1, 0) c1 + max(l2, 0) c2. Its derivative has the eigenvectors (1, u) / sqrt 2 with step(l1),
(1, -u) / sqrt 2 with step(l2), and (0, w) for every w orthogonal to u with max(l1, 0) - max(l2, 0) over l1 - l2.

Barrier f = -1/2 log(t^2 - |x|^2) = -1/2 (log l1 + log l2), so that -grad f(s) is the inverse of s in the algebra (|v|^2
is half the sum of squares of the eigenvalues).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from convexlayers.cones.barrier import coupling, smooth_pair
from convexlayers.cones.base import Basis, Cone, IdentityBasis, Spectrum, cross_ratio, step
from convexlayers.cones.complementarity import JordanComplementarity
from convexlayers.cones.svec import SQRT2


@dataclass(frozen=True)
class JordanBasis(Basis):
    """(1, u) / sqrt 2, (1, -u) / sqrt 2 and an orthonormal basis of u's complement, by one Householder reflection.

    H = I - 2 w w' / w'w with w = u + sign(u_0) e_0 maps e_0 to -sign(u_0) u, so its other columns span u's complement.

    Attributes:
        w: Householder vector, shape (..., dim - 1), normalized to |w|^2 = 2.
        sign: -sign(u_0), shape (..., 1).
    """

    w: Tensor
    sign: Tensor

    def _reflect(self, x: Tensor) -> Tensor:
        w = self.w.unsqueeze(-1)
        return x - w * (w * x).sum(-2, keepdim=True)

    def rotate(self, y: Tensor) -> Tensor:
        t, x = y[..., :1, :], self._reflect(y[..., 1:, :])
        along = self.sign.unsqueeze(-1) * x[..., :1, :]
        return torch.cat([(t + along) / SQRT2, (t - along) / SQRT2, x[..., 1:, :]], dim=-2)

    def unrotate(self, y: Tensor) -> Tensor:
        t = (y[..., :1, :] + y[..., 1:2, :]) / SQRT2
        along = (y[..., :1, :] - y[..., 1:2, :]) / SQRT2
        x = torch.cat([self.sign.unsqueeze(-1) * along, y[..., 2:, :]], dim=-2)
        return torch.cat([t, self._reflect(x)], dim=-2)


def jordan_basis(x: Tensor) -> JordanBasis:
    """The basis for the direction u = x / |x| (the first axis where x = 0)."""
    # Scaling by the largest entry first keeps the norm of tiny and huge vectors from under- and overflow.
    largest = x.abs().amax(-1, keepdim=True)
    u = x / torch.where(largest > 0, largest, torch.ones_like(largest))
    norm = u.norm(dim=-1, keepdim=True)
    first = torch.zeros_like(x)
    first[..., 0] = 1
    u = torch.where(norm > 0, u / torch.where(norm > 0, norm, torch.ones_like(norm)), first)
    sign = torch.where(u[..., :1] >= 0, 1.0, -1.0).to(x.dtype)
    w = u + sign * first
    return JordanBasis(w=w * (SQRT2 / w.norm(dim=-1, keepdim=True)), sign=-sign)


class SpinComplementarity(JordanComplementarity):
    """(t, x) o (u, y) = (t u + x'y, t y + u x)."""

    def product(self, a: Tensor, b: Tensor) -> Tensor:
        t, x, u, y = a[..., :1], a[..., 1:], b[..., :1], b[..., 1:]
        return torch.cat([t * u + (x * y).sum(-1, keepdim=True), t * y + u * x], dim=-1)

    def divide(self, c: Tensor, a: Tensor) -> Tensor:
        t, x = a[..., :1], a[..., 1:]
        norm = (x * x).sum(-1, keepdim=True).sqrt()
        first = (t * c[..., :1] - (x * c[..., 1:]).sum(-1, keepdim=True)) / ((t - norm) * (t + norm))
        return torch.cat([first, (c[..., 1:] - first * x) / t], dim=-1)


@dataclass(frozen=True)
class SecondOrder(Cone):
    """K = {(t, x) : |x|_2 <= t} of dimension dim >= 1; dim = 1 is the nonnegative half line."""

    dim: int

    def project(self, v: Tensor) -> Tensor:
        basis = jordan_basis(v[..., 1:]) if self.dim > 1 else None
        if basis is None:
            return v.clamp(min=0)
        rotated = basis.rotate(v.unsqueeze(-1))
        # The components orthogonal to u are zero by construction of u; only the two eigenvalues are left.
        kept = torch.cat([rotated[..., :2, :].clamp(min=0), torch.zeros_like(rotated[..., 2:, :])], dim=-2)
        projected = basis.unrotate(kept).squeeze(-1)
        inside = v[..., :1] >= v[..., 1:].norm(dim=-1, keepdim=True)
        return torch.where(inside, v, projected)

    def spectrum(self, v: Tensor) -> Spectrum:
        t, x = v[..., :1], v[..., 1:]
        if self.dim == 1:
            return Spectrum(mu=step(t), nu=1 - step(t), basis=IdentityBasis())
        norm = x.norm(dim=-1, keepdim=True)
        upper, lower = t + norm, t - norm
        mu, nu = cross_ratio(upper, lower)
        outer = torch.cat([step(upper), step(lower)], dim=-1)
        shape = (*v.shape[:-1], self.dim - 2)
        return Spectrum(
            mu=torch.cat([outer, mu.expand(shape)], dim=-1),
            nu=torch.cat([1 - outer, nu.expand(shape)], dim=-1),
            basis=jordan_basis(x),
        )

    def smooth(self, v: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Spectrum]:
        t, x = v[..., :1], v[..., 1:]
        weight = weight.unsqueeze(-1)
        if self.dim == 1:
            s, z = smooth_pair(t, weight)
            return s, z, Spectrum(mu=s / (s + z), nu=z / (s + z), basis=IdentityBasis())
        norm, basis = x.norm(dim=-1, keepdim=True), jordan_basis(x)
        sigma, zeta = smooth_pair(torch.cat([t + norm, t - norm], dim=-1), weight)
        middle_mu, middle_nu = coupling(*sigma.split(1, dim=-1), *zeta.split(1, dim=-1))
        shape = (*v.shape[:-1], self.dim - 2)
        total = sigma + zeta
        spectrum = Spectrum(
            mu=torch.cat([sigma / total, middle_mu.expand(shape)], dim=-1),
            nu=torch.cat([zeta / total, middle_nu.expand(shape)], dim=-1),
            basis=basis,
        )

        def assembled(eigenvalues: Tensor) -> Tensor:
            # c1, c2 are 1 / sqrt 2 times the first two vectors of the basis.
            padded = torch.cat([eigenvalues / SQRT2, v.new_zeros(shape)], dim=-1)
            return basis.unrotate(padded.unsqueeze(-1)).squeeze(-1)

        return assembled(sigma), assembled(zeta), spectrum

    def margin(self, v: Tensor) -> Tensor:
        if self.dim == 1:
            return v[..., 0].abs()
        t, norm = v[..., 0], v[..., 1:].norm(dim=-1)
        return torch.minimum((t + norm).abs(), (t - norm).abs()) / SQRT2

    @property
    def complementarity(self) -> SpinComplementarity:
        return SpinComplementarity()
