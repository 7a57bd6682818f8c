"""The second-order cone in an interior-point step (Andersen, Roos, Terlaky, "On implementing a primal-dual
interior-point method for conic quadratic optimization", 2003).

With J = diag(1, -I), s^ = s / sqrt(s'Js), z^ = z / sqrt(z'Jz), w = (s^ + J z^) / |s^ + J z^|_J and eta^2 =
sqrt(s'Js / z'Jz), the Nesterov-Todd scaling is H = W'W = eta^2 (2 w w' - J): eigenvalues eta^2 (a^2, a^-2, 1), a =
w_0 + |w_1|, with the eigenvectors (1, u), (1, -u) over sqrt 2 for u = w_1 / |w_1|, and the complement of both.

Corrector: d_s = s + W (lambda \\ (weight W^-1 ds_a o W dz_a - sigma mu e)), lambda = W z, in the Jordan algebra a o b =
(a'b, a_0 b_1 + b_0 a_1), where a \\ b is the x with a o x = b.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from convexlayers.cones.base import Spectrum
from convexlayers.cones.second_order import jordan_basis
from convexlayers.engines.dense.steps import Apply, Local, Steps, spectrum_of, worst


@dataclass(frozen=True, eq=False)
class SecondOrderLocal(Local):
    """Second-order cones at (s, z)."""

    s: Tensor
    z: Tensor
    scaling: Apply
    spectrum: Spectrum

    def corrector(self, ds: Tensor, dz: Tensor, weight: Tensor, sigma_mu: Tensor) -> Tensor:
        W = self.scaling
        product = weight * jordan_product(W.power(-0.5, ds), W.power(0.5, dz))
        product = torch.cat([product[..., :1] - sigma_mu, product[..., 1:]], dim=-1)
        return self.s + W.power(0.5, jordan_divide(W.power(0.5, self.z), product))

    def exit_rate(self, ds: Tensor, dz: Tensor, rate: Tensor) -> Tensor:
        return worst(torch.maximum(_exit_rate(self.s, ds), _exit_rate(self.z, dz)), rate)


@dataclass(frozen=True)
class SecondOrderSteps(Steps):
    """Cones {(t, x) : |x| <= t} of dimension at least 2."""

    degree: int = 1

    def at(self, s: Tensor, z: Tensor) -> SecondOrderLocal:
        root_s, root_z = determinant(s).sqrt(), determinant(z).sqrt()
        unit_s, unit_z = s / root_s, z / root_z
        factor = (2 * (1 + (unit_s * unit_z).sum(-1, keepdim=True))).rsqrt()
        w = (unit_s - unit_z)[..., 1:] * factor
        a = (unit_s + unit_z)[..., :1] * factor + w.norm(dim=-1, keepdim=True)
        eta = root_s / root_z
        rest = eta.expand(*s.shape[:-1], s.shape[-1] - 2)
        basis, h = jordan_basis(w), torch.cat([eta * a**2, eta / a**2, rest], dim=-1)
        return SecondOrderLocal(s, z, Apply(h, basis), spectrum_of(h, basis))

    def center(self, like: Tensor) -> Tensor:
        first = torch.zeros_like(like)
        first[..., 0] = 1
        return first

    def depth(self, s: Tensor) -> Tensor:
        return s[..., 0] - s[..., 1:].norm(dim=-1)


def determinant(s: Tensor) -> Tensor:
    """s'Js without cancellation, (..., 1)."""
    length = s[..., 1:].norm(dim=-1, keepdim=True)
    return (s[..., :1] - length) * (s[..., :1] + length)


def jordan_product(a: Tensor, b: Tensor) -> Tensor:
    """a o b."""
    return torch.cat([(a * b).sum(-1, keepdim=True), a[..., :1] * b[..., 1:] + b[..., :1] * a[..., 1:]], dim=-1)


def jordan_divide(a: Tensor, b: Tensor) -> Tensor:
    """The x with a o x = b."""
    head = (a[..., :1] * b[..., :1] - (a[..., 1:] * b[..., 1:]).sum(-1, keepdim=True)) / determinant(a)
    return torch.cat([head, (b[..., 1:] - head * a[..., 1:]) / a[..., :1]], dim=-1)


def _exit_rate(s: Tensor, ds: Tensor) -> Tensor:
    """The rate at which s + a ds leaves the cone, (...).

    With c + 2 b a + k a^2 = det(s + a ds) the smallest positive root is c / (-b + sqrt(b^2 - c k)), where that
    denominator is positive; elsewhere s + a ds never leaves the cone.
    """
    c = determinant(s).squeeze(-1)
    b = s[..., 0] * ds[..., 0] - (s[..., 1:] * ds[..., 1:]).sum(-1)
    k = ds[..., 0] ** 2 - (ds[..., 1:] ** 2).sum(-1)
    discriminant = b * b - c * k
    return torch.where(discriminant >= 0, (discriminant.clamp(min=0).sqrt() - b) / c, torch.zeros_like(c))
