"""Barriers in place of projections: what the cones share for the central path.

With a convex barrier f of the cone and a weight w > 0, the proximal map

    s = argmin 1/2 |s - v|^2 + w f(s),    z = s - v = -w grad f(s)

takes the place of Proj_K: s and z are inside K and K*, and as w -> 0 they tend to Proj_K(v) and Proj_K*(-v). It is
differentiable everywhere, with

    M = ds/dv = (I + w D2f(s))^-1,

symmetric with eigenvalues in (0, 1). This is the smoothing of Chen and Tseng, "Non-interior continuation methods for
solving semidefinite complementarity problems" (2003), and of Fukushima, Luo and Tseng, "Smoothing functions for
second-order-cone complementarity problems" (2002).

On eigenvalues: where f is a sum of -log over the eigenvalues of a Jordan algebra, s and v have the same eigenvectors
and sigma - w / sigma = lambda, so sigma = phi(lambda) and zeta = w / sigma, its own mirror image, zeta = phi(-lambda),
with

    phi(l) = (l + sqrt(l^2 + 4 w)) / 2,    phi' = sigma / (sigma + zeta).

The divided difference that couples two eigenvalues is, since l1 - l2 = (sigma1 - sigma2) (1 + w / (sigma1 sigma2)),

    (sigma1 - sigma2) / (l1 - l2) = sigma1 sigma2 / (sigma1 sigma2 + w),

which is phi' for equal ones: no difference is taken, and nothing cancels.

In three dimensions: barriers of the exponential and the power cone come as gradient and factor, D2f = F F', and
Newton's method finds s. They are logarithmically homogeneous, f(c s) = f(s) - nu log c, so s(v, w) = sqrt(w) s(v /
sqrt(w), 1): one weight is enough. 1/2 |s - u|^2 + f(s) is self-concordant, so that with the decrement d a step of 1 /
(1 + d) stays inside the cone and decreases it (Nesterov and Nemirovskii, "Interior-point polynomial algorithms in
convex programming", 1994). The eigenvalues of D2f are the squares of the singular values of F, which keep twice the
digits.
"""

from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from convexlayers.cones.base import Cone, DenseBasis, Spectrum

NEWTON_STEPS = 100
# Full steps are taken where they converge quadratically.
QUADRATIC = 0.25
# A decrement this small, relative to |u|, is rounding.
ROUNDING = 1e-15


def smooth_pair(values: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """phi(l) and phi(-l): the positive solutions of sigma - zeta = l, sigma zeta = w, without cancellation."""
    root = torch.hypot(values, 2 * weight.sqrt().expand_as(values))
    large = 0.5 * (values.abs() + root)
    small = weight / large
    return torch.where(values >= 0, large, small), torch.where(values >= 0, small, large)


def coupling(sigma1: Tensor, sigma2: Tensor, zeta1: Tensor, zeta2: Tensor) -> tuple[Tensor, Tensor]:
    """sigma1 sigma2 / (sigma1 sigma2 + w) and its complement, w = sigma zeta for both.

    As (1 + zeta1 / sigma2)^-1: the ratio may overflow to infinity, and nothing else may.
    """
    # w / (sigma1 sigma2) = zeta1 / sigma2 = zeta2 / sigma1; the larger denominator is the better one.
    ratio = torch.where(sigma2 >= sigma1, zeta1 / sigma2, zeta2 / sigma1)
    mu = 1 / (1 + ratio)
    return mu, torch.where(ratio > 1, 1 / (1 + 1 / ratio), ratio * mu)


@dataclass(frozen=True)
class Local:
    """A barrier at a point s inside the cone.

    Attributes:
        value: f(s), shape (...); infinite or NaN outside.
        gradient: (..., 3).
        factor: F with D2f = F F', (..., 3, k).
    """

    value: Tensor
    gradient: Tensor
    factor: Tensor


class BarrierCone(Cone):
    """A three-dimensional cone with a self-concordant, logarithmically homogeneous barrier."""

    @abstractmethod
    def barrier(self, s: Tensor, z: Tensor | None = None) -> Local:
        """The barrier at s; z = -grad f(s), if given, knows the distance to the boundary better."""

    @abstractmethod
    def center(self, like: Tensor) -> Tensor:
        """A point well inside the cone, of norm about one, (..., 3)."""

    def smooth(self, v: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Spectrum]:
        unit = weight.sqrt().unsqueeze(-1)
        u = v / unit
        s = self._minimize(u)
        z = s - u
        # Deep inside the cone the difference cancels, at its boundary the gradient does.
        deep = (z.abs().amax(-1) < 1e-3 * s.abs().amax(-1)).unsqueeze(-1)
        z = torch.where(deep, -self.barrier(s).gradient, z)
        Q, singular, _ = torch.linalg.svd(self.barrier(s, z).factor)
        ratio = singular**2
        mu = 1 / (1 + ratio)
        return unit * s, unit * z, Spectrum(mu=mu, nu=ratio * mu, basis=DenseBasis(Q))

    def _minimize(self, u: Tensor) -> Tensor:
        """argmin 1/2 |s - u|^2 + f(s)."""
        s = self.project(u) + self.center(u)
        rounding = ROUNDING * (1 + u.norm(dim=-1))
        done = torch.zeros_like(rounding, dtype=torch.bool)
        identity = torch.eye(3, dtype=u.dtype, device=u.device)
        before = torch.full_like(rounding, float("inf"))
        for _ in range(NEWTON_STEPS):
            local = self.barrier(s)
            gradient = s - u + local.gradient
            hessian = identity + local.factor @ local.factor.transpose(-1, -2)
            step = torch.linalg.solve_ex(hessian, gradient.unsqueeze(-1))[0].squeeze(-1)
            decrement = (step * gradient).sum(-1).clamp(min=0).sqrt()
            # The decrement falls quadratically near the minimum; once it no longer does, rounding is all there is.
            stalled = (decrement < QUADRATIC) & (decrement >= 0.5 * before)
            done = done | (decrement <= rounding) | stalled | ~step.isfinite().all(-1)
            if bool(done.all()):
                break
            length = torch.where(decrement < QUADRATIC, torch.ones_like(decrement), 1 / (1 + decrement))
            s = torch.where(done.unsqueeze(-1), s, s - length.unsqueeze(-1) * step)
            before = decrement
        return s
