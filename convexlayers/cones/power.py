"""The power cone K = {(x, y, z) : x^a y^(1 - a) >= |z|, x >= 0, y >= 0}, 0 < a < 1.

Dual: K* = {(u, v, w) : (u / a)^a (v / (1 - a))^(1 - a) >= |w|, u >= 0, v >= 0}.

Projection (Hien, "Differential properties of Euclidean projection onto power cone", 2015): off the cone, its polar and
the plane z = 0, the projection is (x_r, y_r, sign(z) r), where r in (0, |z|) makes x_r^a y_r^(1-a) = r and

    x_r = (x + sqrt(x^2 + 4 a r (|z| - r))) / 2,    y_r = (y + sqrt(y^2 + 4 (1 - a) r (|z| - r))) / 2.

The search is in the logit t of r / |z|, so that both r and |z| - r keep their relative accuracy at either end.

Barrier f = -log(x^2a y^2(1-a) - z^2) - (1 - a) log x - a log y (Chares, "Cones and interior-point algorithms for
structured convex optimization involving powers and exponentials", 2009). With the mean r = x^a y^(1-a), whose second
derivative is -a (1 - a) r d d', d = (1/x, -1/y, 0), the first logarithm is -log(r - z) - log(r + z), so D2f = F F' for

    F = [(grad r - e_z) / (r - z), (grad r + e_z) / (r + z), sqrt(a (1-a) r (1/(r-z) + 1/(r+z))) d,
         sqrt(1-a) e_x / x, sqrt(a) e_y / y].
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from convexlayers.cones.barrier import BarrierCone, Local
from convexlayers.cones.base import Spectrum, step
from convexlayers.cones.boundary import boundary_spectrum, diagonal_spectrum, select, third_direction
from convexlayers.cones.complementarity import (
    VANISHING,
    BoundaryComplementarity,
    Equations,
    Pair,
    choose,
    coordinates,
    is_zero,
    matrix,
)
from convexlayers.cones.root import increasing_root

LOGIT_LIMIT = 700.0


def softplus(t: Tensor) -> Tensor:
    """log(1 + exp(t)); torch's own rounds differently by where a number stands in a tensor."""
    return torch.log1p(torch.exp(-t.abs())) + t.clamp(min=0)


def log_larger_root(x: Tensor, log_product: Tensor) -> Tensor:
    """Logarithm of (x + sqrt(x^2 + 4 product)) / 2 from that of the product, without cancellation for x < 0."""
    root = torch.sqrt(x * x + 4 * torch.exp(log_product))
    negative = x < 0
    # For x < 0 multiply by the conjugate: 2 product / (root - x). The product itself may underflow, its logarithm not.
    conjugate = math.log(2) + log_product - torch.log(torch.where(negative, root - x, 1.0))
    direct = torch.log(torch.where(negative, 1.0, 0.5 * (x + root)))
    return torch.where(negative, conjugate, torch.where(x == 0, 0.5 * log_product, direct))


@dataclass(frozen=True)
class PowerComplementarity(BoundaryComplementarity):
    """On the curved boundary, with s = (x, y, t), z = (u, v, w), b = 1 - a:

        x^a y^b - |t| = 0,    b u x - a v y = 0,    u x + a w t = 0,

    the last two saying that z is a multiple of grad (x^a y^b - |t|): x u, y v, t w are as a to b to -1.

    Attributes:
        alphas: the exponents a.
    """

    alphas: tuple[float, ...]

    def _at(self, s: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """a, b, the reciprocals of x and y, and x^a y^b; ones away from the curved boundary."""
        a = torch.as_tensor(self.alphas, dtype=s.dtype, device=s.device)
        x, y, _ = s.unbind(-1)
        usable = (x > VANISHING) & (y > VANISHING)
        x, y = torch.where(usable, x, 1.0), torch.where(usable, y, 1.0)
        return a, 1 - a, 1 / x, 1 / y, x**a * y ** (1 - a)

    def equations(self, s: Tensor, z: Tensor) -> Equations:
        a, b, inverse_x, inverse_y, mean = self._at(s)
        x, y, t = s.unbind(-1)
        u, v, w = z.unbind(-1)
        zero = torch.zeros_like(x)
        C_s = matrix((a * mean * inverse_x, b * mean * inverse_y, -t.sign()), (b * u, -a * v, zero), (u, zero, a * w))
        C_z = matrix((zero, zero, zero), (b * x, -a * y, zero), (x, zero, a * t))
        inside, apex = is_zero(z), is_zero(s)
        nothing, everything = coordinates(s), coordinates(s, 0, 1, 2)
        cases = [(inside, nothing, everything), (apex, everything, nothing)]
        return Equations(*choose(cases, C_s, C_z), ~(inside | apex))

    def boundary_curvature(self, s: Tensor, z: Tensor, first: Pair, second: Pair) -> Tensor:
        a, b, inverse_x, inverse_y, mean = self._at(s)
        (dx, dy, dt), (du, dv, dw) = (part.unbind(-1) for part in first)
        (ex, ey, et), (eu, ev, ew) = (part.unbind(-1) for part in second)
        bend = -a * b * mean * (dx * inverse_x - dy * inverse_y) * (ex * inverse_x - ey * inverse_y)
        x_u, y_v, t_w = dx * eu + ex * du, dy * ev + ey * dv, dt * ew + et * dw
        return torch.stack([bend, b * x_u - a * y_v, x_u + a * t_w], dim=-1)

    def boundary_weighted_curvature(self, s: Tensor, z: Tensor, y: Tensor, direction: Pair) -> Pair:
        a, b, inverse_x, inverse_y, mean = self._at(s)
        first, second, third = y.unbind(-1)
        (dx, dy, dt), (du, dv, dw) = (part.unbind(-1) for part in direction)
        bend = -a * b * mean * first * (dx * inverse_x - dy * inverse_y)
        x_u, y_v, t_w = b * second + third, -a * second, a * third
        for_s = torch.stack([bend * inverse_x + x_u * du, -bend * inverse_y + y_v * dv, t_w * dw], dim=-1)
        return for_s, torch.stack([x_u * dx, y_v * dy, t_w * dt], dim=-1)


@dataclass(frozen=True)
class Power(BarrierCone):
    """K = {(x, y, z) : x^alpha y^(1 - alpha) >= |z|, x, y >= 0} for several exponents at once.

    Attributes:
        alphas: one exponent in (0, 1) per cone; tensors have shape (..., len(alphas), 3).
    """

    alphas: tuple[float, ...]
    dim: int = 3

    def _exponent(self, v: Tensor) -> Tensor:
        return torch.as_tensor(self.alphas, dtype=v.dtype, device=v.device)

    def _inside(self, v: Tensor) -> Tensor:
        a = self._exponent(v)
        x, y, z = v.unbind(-1)
        quadrant = (x >= 0) & (y >= 0)
        return quadrant & (x.clamp(min=0) ** a * y.clamp(min=0) ** (1 - a) >= z.abs())

    def _inside_polar(self, v: Tensor) -> Tensor:
        a = self._exponent(v)
        x, y, z = (-v).unbind(-1)
        quadrant = (x >= 0) & (y >= 0)
        return quadrant & ((x.clamp(min=0) / a) ** a * (y.clamp(min=0) / (1 - a)) ** (1 - a) >= z.abs())

    def _boundary_logarithms(self, v: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor, Tensor]]:
        """A size, and the logarithms of x_r, y_r, r and |z| - r, over this size, of the point that v projects to."""
        a = self._exponent(v)
        # The projection is homogeneous: at size one nothing over- or underflows that matters.
        size = v.abs().amax(-1)
        x, y, z = (v / torch.where(size > 0, size, torch.ones_like(size)).unsqueeze(-1)).unbind(-1)
        log_height = torch.log(torch.where(z == 0, torch.ones_like(z), z.abs()))

        def log_point(t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
            log_r, log_rest = log_height - softplus(-t), log_height - softplus(t)
            product = log_r + log_rest
            return log_larger_root(x, product + a.log()), log_larger_root(y, product + (1 - a).log()), log_r, log_rest

        def excess(t: Tensor) -> Tensor:
            # Increasing in r: the point leaves the cone as r grows to |z|.
            log_x, log_y, log_r, _ = log_point(t)
            return log_r - a * log_x - (1 - a) * log_y

        limit = torch.full_like(x, LOGIT_LIMIT)
        return size, log_point(increasing_root(excess, -limit, limit))

    def project(self, v: Tensor) -> Tensor:
        x, y, z = v.unbind(-1)
        size, logarithms = self._boundary_logarithms(v)
        px, py, r = (size * part.exp() for part in logarithms[:3])
        result = torch.stack([px, py, torch.copysign(r, z)], dim=-1)
        flat = torch.stack([x.clamp(min=0), y.clamp(min=0), torch.zeros_like(z)], dim=-1)
        result = torch.where((z == 0).unsqueeze(-1), flat, result)
        result = torch.where(self._inside_polar(v).unsqueeze(-1), torch.zeros_like(v), result)
        return torch.where(self._inside(v).unsqueeze(-1), v, result)

    def spectrum(self, v: Tensor) -> Spectrum:
        a = self._exponent(v)
        x, y, z = v.unbind(-1)
        _, (log_x, log_y, log_r, log_rest) = self._boundary_logarithms(v)
        sign = torch.copysign(torch.ones_like(z), z)
        # In units of the larger of x_r and y_r neither ray loses anything.
        unit = torch.maximum(log_x, log_y)
        ray_x, ray_y = (log_x - unit).exp(), (log_y - unit).exp()
        s = torch.stack([ray_x, ray_y, sign * (log_r - unit).exp()], dim=-1)
        # grad g for g = x^a y^(1-a) - |z|, where x^a y^(1-a) = r, times x y / r; z = k grad g, k = |z| - r by its third
        # entry.
        gradient = torch.stack([a * ray_y, (1 - a) * ray_x, -sign * (log_x - unit + log_y - log_r).exp()], dim=-1)
        # boundary.py: -w'D2g w = a (1 - a) r (w0 / x - w1 / y)^2, and with w = s x grad g / |s| |grad g| the difference
        # is |s| / (x y |grad g|).
        ratio = (s * s).sum(-1) / (gradient * gradient).sum(-1)
        kh = a * (1 - a) * (log_rest - log_r).exp() * ratio
        first, second, third = third_direction(s, gradient)
        return select(
            [
                (self._inside(v), diagonal_spectrum(torch.ones_like(v))),
                (self._inside_polar(v), diagonal_spectrum(torch.zeros_like(v))),
                (z == 0, self._flat_spectrum(a, x, y)),
            ],
            boundary_spectrum(first, second, third, kh),
        )

    @staticmethod
    def _flat_spectrum(a: Tensor, x: Tensor, y: Tensor) -> Spectrum:
        """On the plane z = 0 with one of x, y negative.

        For y < 0 < x and small |z|, y_r = (1 - a) r (|z| - r) / |y| turns the equation for r into
        r^a = C (|z| - r)^(1-a): dr / d|z| at 0 is 1 for a > 1/2, 0 for a < 1/2 and x / (x + 2 |y|) for a = 1/2.
        """
        positive, negative = torch.maximum(x, y).clamp(min=0), -torch.minimum(x, y).clamp(max=0)
        exponent = torch.where(x > 0, a, 1 - a)
        total = positive + 2 * negative
        at_half = positive / torch.where(total > 0, total, torch.ones_like(total))
        third = torch.where(exponent == 0.5, at_half, step(exponent - 0.5))
        return diagonal_spectrum(torch.stack([step(x), step(y), third], dim=-1))

    def center(self, like: Tensor) -> Tensor:
        # The point with s = -grad f(s): x^2 = 1 + a, y^2 = 2 - a, z = 0.
        a = self._exponent(like)
        return torch.stack([(1 + a).sqrt(), (2 - a).sqrt(), torch.zeros_like(a)], dim=-1).expand_as(like)

    def barrier(self, s: Tensor, z: Tensor | None = None) -> Local:
        a = self._exponent(s)
        x, y, height = s.unbind(-1)
        mean = x**a * y ** (1 - a)
        above, below = 1 / (mean - height), 1 / (mean + height)
        if z is not None:
            # The third entry of z = -grad f is the difference of the two; the larger one comes from the smaller.
            difference = -z[..., 2]
            above, below = (
                torch.where(height > 0, below + difference, above),
                torch.where(height < 0, above - difference, below),
            )
        zeros, ones = torch.zeros_like(x), torch.ones_like(x)
        slope = torch.stack([a * mean / x, (1 - a) * mean / y, zeros], dim=-1)
        axis = torch.stack([zeros, zeros, ones], dim=-1)
        bend = (a * (1 - a) * mean * (above + below)).sqrt().unsqueeze(-1) * torch.stack([1 / x, -1 / y, zeros], dim=-1)
        first = torch.stack([(1 - a).sqrt() / x, zeros, zeros], dim=-1)
        second = torch.stack([zeros, a.sqrt() / y, zeros], dim=-1)
        up, down = above.unsqueeze(-1) * (slope - axis), below.unsqueeze(-1) * (slope + axis)
        return Local(
            value=torch.log(above) + torch.log(below) - (1 - a) * torch.log(x) - a * torch.log(y),
            gradient=-(up + down + torch.stack([(1 - a) / x, a / y, zeros], dim=-1)),
            factor=torch.stack([up, down, bend, first, second], dim=-1),
        )

    def margin(self, v: Tensor) -> Tensor:
        a = self._exponent(v)
        s = self.project(v)
        margin = torch.minimum(s.norm(dim=-1), (s - v).norm(dim=-1))
        margin = torch.where(self._inside(v), _depth(v, a, torch.ones_like(a), torch.ones_like(a)), margin)
        return torch.where(self._inside_polar(v), _depth(-v, a, a, 1 - a), margin)

    @property
    def complementarity(self) -> PowerComplementarity:
        return PowerComplementarity(self.alphas)


def _depth(v: Tensor, a: Tensor, unit_x: Tensor, unit_y: Tensor) -> Tensor:
    """Distance of a point of {(x / unit_x)^a (y / unit_y)^(1-a) >= |z|} to the boundary, to first order."""
    x, y, z = v[..., 0].clamp(min=0), v[..., 1].clamp(min=0), v[..., 2].abs()
    mean = (x / unit_x) ** a * (y / unit_y) ** (1 - a)
    tiny = torch.finfo(v.dtype).tiny
    slope = torch.sqrt(1 + (a * mean / x.clamp(min=tiny)) ** 2 + ((1 - a) * mean / y.clamp(min=tiny)) ** 2)
    return ((mean - z) / slope).clamp(min=0)
