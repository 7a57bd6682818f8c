"""The power cone K = {(x, y, z) : x^a y^(1 - a) >= |z|, x >= 0, y >= 0}, 0 < a < 1.

Dual: K* = {(u, v, w) : (u / a)^a (v / (1 - a))^(1 - a) >= |w|, u >= 0, v >= 0}.

Projection (Hien, "Differential properties of Euclidean projection onto power cone", 2015): off the cone, its polar and
the plane z = 0, the projection is (x_r, y_r, sign(z) r), where r in (0, |z|) makes x_r^a y_r^(1-a) = r and

    x_r = (x + sqrt(x^2 + 4 a r (|z| - r))) / 2,    y_r = (y + sqrt(y^2 + 4 (1 - a) r (|z| - r))) / 2.

The search is in the logit t of r / |z|, so that both r and |z| - r keep their relative accuracy at either end.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from convexlayers.cones.base import Cone, Spectrum, step
from convexlayers.cones.boundary import boundary_spectrum, diagonal_spectrum, select, third_direction
from convexlayers.cones.root import increasing_root

LOGIT_LIMIT = 700.0


def larger_root(x: Tensor, product: Tensor) -> Tensor:
    """(x + sqrt(x^2 + 4 product)) / 2 for product >= 0, without cancellation where x < 0."""
    root = torch.sqrt(x * x + 4 * product)
    # For x < 0 multiply by the conjugate; the denominator is zero only where product and x are.
    denominator = torch.where(root - x > 0, root - x, torch.ones_like(x))
    return torch.where(x >= 0, 0.5 * (x + root), 2 * product / denominator)


@dataclass(frozen=True)
class Power(Cone):
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

    def _boundary_point(self, v: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """x_r, y_r, r and |z| - r of the boundary point that v projects to."""
        a = self._exponent(v)
        x, y, z = v.unbind(-1)
        height = z.abs()

        def point(t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
            r, rest = height * torch.sigmoid(t), height * torch.sigmoid(-t)
            return larger_root(x, a * r * rest), larger_root(y, (1 - a) * r * rest), r, rest

        def excess(t: Tensor) -> Tensor:
            # Increasing in r: the point leaves the cone as r grows to |z|.
            px, py, r, _ = point(t)
            return torch.log(r) - a * torch.log(px) - (1 - a) * torch.log(py)

        limit = torch.full_like(x, LOGIT_LIMIT)
        return point(increasing_root(excess, -limit, limit))

    def project(self, v: Tensor) -> Tensor:
        x, y, z = v.unbind(-1)
        px, py, r, _ = self._boundary_point(v)
        result = torch.stack([px, py, torch.copysign(r, z)], dim=-1)
        flat = torch.stack([x.clamp(min=0), y.clamp(min=0), torch.zeros_like(z)], dim=-1)
        result = torch.where((z == 0).unsqueeze(-1), flat, result)
        result = torch.where(self._inside_polar(v).unsqueeze(-1), torch.zeros_like(v), result)
        return torch.where(self._inside(v).unsqueeze(-1), v, result)

    def spectrum(self, v: Tensor) -> Spectrum:
        a = self._exponent(v)
        x, y, z = v.unbind(-1)
        px, py, r, rest = self._boundary_point(v)
        sign = torch.copysign(torch.ones_like(z), z)
        s = torch.stack([px, py, sign * r], dim=-1)
        # grad g for g = x^a y^(1-a) - |z|, where x^a y^(1-a) = r; z = k grad g, and its third entry says k = |z| - r.
        gradient = torch.stack([a * r / px, (1 - a) * r / py, -sign], dim=-1)
        first, second, third = third_direction(s, gradient)
        # boundary.py: -w'D2g w = a (1 - a) r (w0 / x - w1 / y)^2.
        kh = rest * a * (1 - a) * r * (third[..., 0] / px - third[..., 1] / py) ** 2
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
