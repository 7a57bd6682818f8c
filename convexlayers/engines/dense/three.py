"""The exponential and the power cone: what boundary.py needs of each."""

from dataclasses import dataclass

import torch
from torch import Tensor

from convexlayers.cones import Exponential, Power
from convexlayers.cones.root import increasing_root
from convexlayers.engines.dense.boundary import BoundarySteps, DualBarrier

# Heights below this count as this one: the shadow of a point on the plane z = 0 is there, too.
SMALLEST_HEIGHT = 1e-140
HALLEY_STEPS = 2


@dataclass(frozen=True)
class ExponentialSteps(BoundarySteps):
    """K = cl{(x, y, z) : y exp(x / y) <= z, y > 0}, phi = v - u - u log(-w / u)."""

    cone: Exponential

    def center(self, like: Tensor) -> Tensor:
        return self.cone.center(like)

    def barrier(self, z: Tensor) -> DualBarrier:
        u, v, w = z.unbind(-1)
        logarithm, zeros, ones = torch.log(-w / u), torch.zeros_like(u), torch.ones_like(u)
        phi = v - u - u * logarithm
        first = torch.stack([-logarithm, ones, -u / w], dim=-1)
        rows = [
            torch.stack([1 / u, zeros, -1 / w], dim=-1),
            torch.stack([zeros, zeros, zeros], dim=-1),
            torch.stack([-1 / w, zeros, u / w**2], dim=-1),
        ]
        weights = torch.tensor([1.0, 0.0, 1.0], dtype=z.dtype, device=z.device).expand_as(z)
        return DualBarrier.of(z, weights, phi, first, torch.stack(rows, dim=-2))

    def cubic(self, z: Tensor, u: Tensor, v: Tensor) -> Tensor:
        a, b, c = z.unbind(-1)
        phi = b - a - a * torch.log(-c / a)
        u0, u2, v0, v2 = u[..., 0], u[..., 2], v[..., 0], v[..., 2]
        first = u2 * v2 / c**2 - u0 * v0 / a**2
        third = (u0 * v2 + u2 * v0) / c**2 - 2 * a / c**3 * u2 * v2
        return torch.stack([first, torch.zeros_like(first), third], dim=-1) / phi.unsqueeze(-1)

    def shadow(self, s: Tensor) -> Tensor:
        x, y, z = s.unbind(-1)
        # With l = log(-w / u), the three equations leave q + log(1 + q) = log(z / y) - x / y for q = -1 / (u y).
        ratio = x / y
        delta = torch.log(z / y) - ratio
        # Halley's method; the first guess is off by at most 9 %, and two steps take it to rounding.
        q = (delta - torch.log1p(0.5 * delta)).clamp(min=0)
        for _ in range(HALLEY_STEPS):
            bend = 1 / (1 + q)
            slope, value = 1 + bend, q + torch.log1p(q) - delta
            q = q - 2 * value * slope / (2 * slope**2 + value * bend**2)
        return torch.stack([-1 / (y * q), (2 * q - 1 + ratio) / (y * q), (1 + 1 / q) / z], dim=-1)

    def inside(self, s: Tensor, z: Tensor) -> Tensor:
        x, y, h = s.unbind(-1)
        u, v, w = z.unbind(-1)
        in_primal = (y > 0) & (h > 0) & (y * torch.log(h / y) > x)
        return in_primal & (u < 0) & (w > 0) & (v - u - u * torch.log(-w / u) > 0)


@dataclass(frozen=True)
class PowerSteps(BoundarySteps):
    """K = {(x, y, z) : x^a y^b >= |z|, x, y >= 0}, phi = (u / a)^2a (v / b)^2b - w^2."""

    cone: Power

    def center(self, like: Tensor) -> Tensor:
        return self.cone.center(like)

    def _exponents(self, z: Tensor) -> tuple[Tensor, Tensor]:
        a = torch.tensor(self.cone.alphas, dtype=z.dtype, device=z.device)
        return a, 1 - a

    def _bound(self, z: Tensor) -> Tensor:
        """(u / a)^2a (v / b)^2b."""
        a, b = self._exponents(z)
        return torch.exp(2 * (a * torch.log(z[..., 0] / a) + b * torch.log(z[..., 1] / b)))

    def barrier(self, z: Tensor) -> DualBarrier:
        a, b = self._exponents(z)
        u, v, w = z.unbind(-1)
        bound, zeros = self._bound(z), torch.zeros_like(u)
        # Of the bound's logarithm.
        slope = torch.stack([2 * a / u, 2 * b / v, zeros], dim=-1)
        bend = torch.stack([2 * a / u**2, 2 * b / v**2, zeros], dim=-1)
        axis = torch.stack([zeros, zeros, 2 * torch.ones_like(u)], dim=-1)
        second = bound[..., None, None] * (slope.unsqueeze(-1) * slope.unsqueeze(-2) - torch.diag_embed(bend))
        weights = torch.stack([b.expand_as(u), a.expand_as(u), zeros], dim=-1)
        first = bound.unsqueeze(-1) * slope - axis * w.unsqueeze(-1)
        return DualBarrier.of(z, weights, bound - w**2, first, second - torch.diag_embed(axis))

    def cubic(self, z: Tensor, u: Tensor, v: Tensor) -> Tensor:
        # exp(L), L = 2a log z_0 + 2b log z_1 + const: derivative of exp(L) (Lu Lv + Luv).
        a, b = self._exponents(z)
        bound, zeros = self._bound(z), torch.zeros_like(z[..., 0])
        slope = torch.stack([2 * a / z[..., 0], 2 * b / z[..., 1], zeros], dim=-1)
        inverse = torch.stack([1 / z[..., 0], 1 / z[..., 1], zeros], dim=-1)
        second, third = -slope * inverse, 2 * slope * inverse**2
        along_u, along_v = ((slope * y).sum(-1, keepdim=True) for y in (u, v))
        mixed = (second * u * v).sum(-1, keepdim=True)
        inner = second * (u * along_v + v * along_u) + third * u * v
        scale = bound / (bound - z[..., 2] ** 2)
        return scale.unsqueeze(-1) * (slope * (along_u * along_v + mixed) + inner)

    def shadow(self, s: Tensor) -> Tensor:
        # With r = bound / phi - 1: z~ = ((1 + a + 2 a r) / x, (1 + b + 2 b r) / y, -2 r / z), and
        # log 4r(1 + r) - 2 log |z| = 2a log(z~_0 / a) + 2b log(z~_1 / b), whose difference increases in log r.
        a, b = self._exponents(s)
        x, y, z = s.unbind(-1)
        height = z.abs().clamp(min=SMALLEST_HEIGHT)
        log_height, four = torch.log(height), torch.tensor(4.0).to(s).log()
        known = 2 * log_height - four - 2 * (a * torch.log(x * a) + b * torch.log(y * b))

        def excess(t: Tensor) -> Tensor:
            r = torch.exp(t)
            right = a * torch.log(1 + a + 2 * a * r) + b * torch.log(1 + b + 2 * b * r)
            return t + torch.log1p(r) - known - 2 * right

        limit = 2 * (a * torch.log(x) + b * torch.log(y) - log_height)
        first = known + 2 * (a * torch.log(1 + a) + b * torch.log(1 + b))
        last = torch.maximum(torch.log(3 / limit.clamp(min=torch.finfo(s.dtype).tiny)), first + 1)
        r = torch.exp(increasing_root(excess, first - 1e-6, last))
        third = -2 * r / height * torch.where(z > 0, 1.0, -1.0).to(s)
        return torch.stack([(1 + a + 2 * a * r) / x, (1 + b + 2 * b * r) / y, third], dim=-1)

    def inside(self, s: Tensor, z: Tensor) -> Tensor:
        a, b = self._exponents(s)

        def above(first: Tensor, second: Tensor, height: Tensor) -> Tensor:
            bound = a * torch.log(first) + b * torch.log(second)
            return (first > 0) & (second > 0) & (bound > torch.log(height.abs()))

        return above(*s.unbind(-1)) & above(z[..., 0] / a, z[..., 1] / b, z[..., 2])
