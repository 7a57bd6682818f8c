"""The exponential cone K = cl{(x, y, z) : y exp(x / y) <= z, y > 0}.

Dual: K* = cl{(u, v, w) : -u exp(v / u) <= e w, u < 0}.

Projection (Friberg, "Projection onto the exponential cone: a univariate root-finding problem", 2023): with r = x / y
the boundary rays of K and of K* that are orthogonal to each other are

    p(r) = (r, 1, exp(r)),    d(r) = (-1, r - 1, exp(-r)),    p'd = 0,

so that v = a p(r) - c d(r), a, c > 0, has to be solved for a, c, r. The first two equations give

    a = ((r - 1) v0 + v1) / D,    c = (v0 - r v1) / D,    D = r^2 - r + 1,

and the third, a exp(r) - c exp(-r) = v2, is a univariate equation whose left side increases where a, c > 0.

Barrier f = -log(psi) - log y - log z with psi = y log(z / y) - x (Nesterov and Nemirovskii). With
-D2 psi = 1/y g g', g = (0, 1, -y/z), it has D2f = F F' for F = [grad psi / psi, g / sqrt(psi y), e_y / y, e_z / z].
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from convexlayers.cones.barrier import BarrierCone, Local
from convexlayers.cones.base import Spectrum
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

# The point with s = -grad f(s).
CENTER = (-1.051383945322714, 0.556409619469370, 1.258967884768947)
# exp(+-EXPONENT_RANGE / 2) is at the ends of what float64 holds.
EXPONENT_RANGE = 1400.0


def inside(v: Tensor) -> Tensor:
    """Whether v is in K, shape (..., 3) to (...)."""
    x, y, z = v.unbind(-1)
    positive = y > 0
    ratio = x / torch.where(positive, y, torch.ones_like(y))
    return torch.where(positive, y * torch.exp(ratio) <= z, (y == 0) & (x <= 0) & (z >= 0))


def inside_polar(v: Tensor) -> Tensor:
    """Whether -v is in K*, shape (..., 3) to (...)."""
    u, w, t = (-v).unbind(-1)
    negative = u < 0
    ratio = w / torch.where(negative, u, -torch.ones_like(u))
    return torch.where(negative, -u * torch.exp(ratio - 1) <= t, (u == 0) & (w >= 0) & (t >= 0))


def coefficients(v: Tensor, r: Tensor) -> tuple[Tensor, Tensor]:
    """The multiples a of p(r) and c of d(r), from the first two equations."""
    x, y = v[..., 0], v[..., 1]
    D = r * r - r + 1
    return ((r - 1) * x + y) / D, (x - r * y) / D


@dataclass(frozen=True)
class BoundaryPair:
    """v = s - z with s = a p(r) and z = c d(r), for v outside K, -K* and the quadrant x, y <= 0.

    Attributes:
        r: the ratio x / y of the ray of s, shape (...).
        a, c: the multiples, shape (...).
        s: the projection, shape (..., 3).
    """

    r: Tensor
    a: Tensor
    c: Tensor
    s: Tensor


def boundary_pair(v: Tensor) -> BoundaryPair:
    """Solve for the boundary ray that v projects to."""
    x, y, z = v.unbind(-1)
    # a > 0 bounds r from below where x > 0 and from above where x < 0; c > 0 from above where y > 0, below where y < 0.
    from_a = 1 - y / torch.where(x == 0, torch.ones_like(x), x)
    from_c = x / torch.where(y == 0, torch.ones_like(y), y)
    inf = torch.full_like(x, float("inf"))
    lower = torch.maximum(torch.where(x > 0, from_a, -inf), torch.where(y < 0, from_c, -inf))
    upper = torch.minimum(torch.where(x < 0, from_a, inf), torch.where(y > 0, from_c, inf))
    # One end is finite; the root is within the exponents that float64 holds on the other side of it or of zero.
    lower = torch.where(torch.isinf(lower), upper.clamp(max=0) - EXPONENT_RANGE, lower)
    upper = torch.where(torch.isinf(upper), lower.clamp(min=0) + EXPONENT_RANGE, upper)

    def third_equation(r: Tensor) -> Tensor:
        # Divided by exp(|r|): only the sign matters, and nothing overflows.
        a, c = coefficients(v, r)
        decay = torch.exp(-r.abs())
        return torch.where(r < 0, a * decay**2 - c - z * decay, a - c * decay**2 - z * decay)

    r = increasing_root(third_equation, lower, torch.maximum(lower, upper))
    a, c = (part.clamp(min=0) for part in coefficients(v, r))
    decay = torch.exp(-r.abs())
    # Far along the cone a (r >> 0) or c (r << 0) is tiny and the first two equations cancel; the third one does not.
    height = torch.where(r > 1, (z + c * decay).clamp(min=0), a * torch.exp(r.clamp(max=1)))
    a = torch.where(r > 1, height * decay, a)
    c = torch.where(r < -1, (height - z).clamp(min=0) * decay, c)
    return BoundaryPair(r=r, a=a, c=c, s=torch.stack([a * r, a, height], dim=-1))


def rays(r: Tensor) -> tuple[Tensor, Tensor]:
    """Directions of the boundary rays p(r) of K and d(r) of K*, scaled by exp(-|r|) where they would overflow."""
    ones, decay = torch.ones_like(r), torch.exp(-r.abs())
    shrink_p, shrink_d = torch.where(r > 0, decay, ones), torch.where(r < 0, decay, ones)
    p = torch.stack([r * shrink_p, shrink_p, torch.where(r > 0, ones, decay)], dim=-1)
    d = torch.stack([-shrink_d, (r - 1) * shrink_d, torch.where(r < 0, ones, decay)], dim=-1)
    return p, d


class ExponentialComplementarity(BoundaryComplementarity):
    """On the curved boundary, with s = (x, y, t) and z = (u, v, w):

        y exp(x / y) - t = 0,    u y + w t = 0,    (v - u) y + u x = 0,

    the last two saying that z is a multiple of d(x / y), with exp(x / y) = t / y. Besides, there are the face x < 0,
    y = 0, t > 0 with z = (0, v, 0), and its ray t = 0, with z = (0, v, w).
    """

    def equations(self, s: Tensor, z: Tensor) -> Equations:
        x, y, t = s.unbind(-1)
        u, v, w = z.unbind(-1)
        inside, apex = is_zero(z), is_zero(s)
        flat = (y.abs() <= VANISHING) & ~inside & ~apex
        ray = flat & (t.abs() <= VANISHING)
        curved = ~(inside | apex | flat)
        r, growth = _growth(x, y, curved)
        zero, one = torch.zeros_like(x), torch.ones_like(x)
        C_s = matrix((growth, growth * (1 - r), -one), (zero, u, w), (u, v - u, zero))
        C_z = matrix((zero, zero, zero), (y, zero, t), (x - y, y, zero))
        nothing, everything = coordinates(s), coordinates(s, 0, 1, 2)
        cases = [
            (inside, nothing, everything),
            (apex, everything, nothing),
            (ray, coordinates(s, 1, 2, -1), coordinates(s, -1, -1, 0)),
            (flat, coordinates(s, 1, -1, -1), coordinates(s, -1, 0, 2)),
        ]
        return Equations(*choose(cases, C_s, C_z), curved)

    def boundary_curvature(self, s: Tensor, z: Tensor, first: Pair, second: Pair) -> Tensor:
        x, y, _ = s.unbind(-1)
        (dx, dy, dt), (du, dv, dw) = (part.unbind(-1) for part in first)
        (ex, ey, et), (eu, ev, ew) = (part.unbind(-1) for part in second)
        r, growth = _growth(x, y, y > VANISHING)
        bend = growth / torch.where(y > VANISHING, y, 1.0)
        return torch.stack(
            [
                bend * (dx - r * dy) * (ex - r * ey),
                du * ey + dy * eu + dw * et + dt * ew,
                dy * (ev - eu) + ey * (dv - du) + dx * eu + ex * du,
            ],
            dim=-1,
        )

    def boundary_weighted_curvature(self, s: Tensor, z: Tensor, y: Tensor, direction: Pair) -> Pair:
        x, height, _ = s.unbind(-1)
        first, second, third = y.unbind(-1)
        (dx, dy, dt), (du, dv, dw) = (part.unbind(-1) for part in direction)
        r, growth = _growth(x, height, height > VANISHING)
        bend = first * growth / torch.where(height > VANISHING, height, 1.0) * (dx - r * dy)
        for_s = torch.stack([bend + third * du, -r * bend + second * du + third * (dv - du), second * dw], dim=-1)
        return for_s, torch.stack([second * dy + third * (dx - dy), third * dy, second * dt], dim=-1)


def _growth(x: Tensor, y: Tensor, usable: Tensor) -> tuple[Tensor, Tensor]:
    """r = x / y and exp(r), with 0 and 1 where y is not usable."""
    r = torch.where(usable, x, 0.0) / torch.where(usable, y, 1.0)
    return r, r.exp()


@dataclass(frozen=True)
class Exponential(BarrierCone):
    """K = cl{(x, y, z) : y exp(x / y) <= z, y > 0}."""

    dim: int = 3

    def project(self, v: Tensor) -> Tensor:
        x, y, z = v.unbind(-1)
        on_face = torch.stack([x, torch.zeros_like(y), z.clamp(min=0)], dim=-1)
        result = torch.where(((x <= 0) & (y <= 0)).unsqueeze(-1), on_face, boundary_pair(v).s)
        result = torch.where(inside_polar(v).unsqueeze(-1), torch.zeros_like(v), result)
        return torch.where(inside(v).unsqueeze(-1), v, result)

    def spectrum(self, v: Tensor) -> Spectrum:
        x, y, z = v.unbind(-1)
        pair = boundary_pair(v)
        first, second, third = third_direction(*rays(pair.r))
        # boundary.py with g = z - y exp(x / y): grad g = exp(r) d(r), so k = c exp(-r), and
        # -w'D2g w = exp(r) (w0 - r w1)^2 / y with y = a: k h = c (w0 - r w1)^2 / a.
        kh = pair.c * (third[..., 0] - pair.r * third[..., 1]) ** 2
        kh = torch.where(kh > 0, kh / pair.a, kh)
        ones, zeros = torch.ones_like(x), torch.zeros_like(x)
        on_face = diagonal_spectrum(torch.stack([ones, zeros, (z > 0).to(v.dtype)], dim=-1))
        return select(
            [
                (inside(v), diagonal_spectrum(torch.ones_like(v))),
                (inside_polar(v), diagonal_spectrum(torch.zeros_like(v))),
                ((x <= 0) & (y <= 0), on_face),
            ],
            boundary_spectrum(first, second, third, kh),
        )

    def center(self, like: Tensor) -> Tensor:
        return torch.tensor(CENTER, dtype=like.dtype, device=like.device).expand_as(like)

    def barrier(self, s: Tensor, z: Tensor | None = None) -> Local:
        x, y, height = s.unbind(-1)
        ratio = torch.log(height / y)
        # The first entry of z = -grad f is -1 / psi.
        psi = y * ratio - x if z is None else -1 / z[..., 0]
        zeros, ones = torch.zeros_like(x), torch.ones_like(x)
        slope = torch.stack([-ones, ratio - 1, y / height], dim=-1) / psi.unsqueeze(-1)
        bend = torch.stack([zeros, ones, -y / height], dim=-1) / torch.sqrt(psi * y).unsqueeze(-1)
        second, third = torch.stack([zeros, 1 / y, zeros], dim=-1), torch.stack([zeros, zeros, 1 / height], dim=-1)
        return Local(
            value=-torch.log(psi) - torch.log(y) - torch.log(height),
            gradient=-(slope + second + third),
            factor=torch.stack([slope, bend, second, third], dim=-1),
        )

    def margin(self, v: Tensor) -> Tensor:
        s = self.project(v)
        margin = torch.minimum(s.norm(dim=-1), (s - v).norm(dim=-1))
        x, y, z = v.unbind(-1)
        # Inside K and inside its polar: psi over its slope is the distance to the boundary, to first order.
        margin = torch.where(inside(v), _depth(x, y, z, 1.0), margin)
        # (u, v, w) in K* says (u - v, -u, w) in K, and psi = -u log(w / -u) - u + v has the slope -log(w / -u) in u.
        margin = torch.where(inside_polar(v), _depth(y - x, x, -z, 0.0), margin)
        face = (x <= 0) & (y <= 0) & ~inside_polar(v) & ~inside(v)
        return torch.where(face, torch.minimum(torch.minimum(x.abs(), y.abs()), z.abs()), margin)

    @property
    def complementarity(self) -> ExponentialComplementarity:
        return ExponentialComplementarity()


def _depth(x: Tensor, y: Tensor, z: Tensor, shift: float) -> Tensor:
    """psi over its slope, where that in the second direction is log(z / y) less the shift; 0 on the edge y = 0."""
    safe_y, safe_z = (torch.where(part > 0, part, torch.ones_like(part)) for part in (y, z))
    ratio = torch.log(safe_z / safe_y)
    slope = torch.sqrt(1 + (ratio - shift) ** 2 + (safe_y / safe_z) ** 2)
    inner = (safe_y * ratio - x).clamp(min=0) / slope
    return torch.where((y > 0) & (z > 0), inner, torch.zeros_like(x))
