"""What an iterate of the embedding is worth: its residuals, those of the solution it stands for, and its rays."""

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from convexlayers.derivatives.inverse import times
from convexlayers.engines.dense.elements import Elements
from convexlayers.engines.dense.units import Scaled, largest

# As in solution.py: residuals are relative to terms of at least this size.
FLOOR = 1.0


@dataclass(frozen=True, eq=False)
class Products(Elements):
    """Of the matrices with x and z.

    Attributes:
        Px, Atz: (B, n). Ax: (B, m).
    """

    Px: Tensor
    Atz: Tensor
    Ax: Tensor

    @classmethod
    def of(cls, numbers: Scaled, x: Tensor, z: Tensor) -> "Products":
        """Multiplied anew."""
        return cls(times(numbers.P, x), times(numbers.A.mT, z), times(numbers.A, x))

    def plus(self, length: Tensor, other: "Products") -> "Products":
        """With x + length dx and z + length dz, (B,), from those with dx and dz."""
        a = length.unsqueeze(-1)
        return Products(self.Px + a * other.Px, self.Atz + a * other.Atz, self.Ax + a * other.Ax)


@dataclass(frozen=True, eq=False)
class Measures:
    """At (x, s, z, tau, kappa).

    Attributes:
        products: with x and z.
        rx: Px + A'z + q tau, (B, n). rz: Ax + s - b tau, (B, m).
        rtau: kappa + q'x + b'z + x'Px / tau, (B,).
        residual: largest relative residual of (x, s, z) / tau in the program's units, as `Residuals` has it, (B,).
        infeasible, unbounded: how far z and x are from certificates, as `certificates` has it, (B,); infinite where
            they point the wrong way, and where no element of the batch has more kappa than tau.
    """

    products: Products
    rx: Tensor
    rz: Tensor
    rtau: Tensor
    residual: Tensor
    infeasible: Tensor
    unbounded: Tensor

    def select(self, indices: Tensor) -> "Measures":
        """The elements at these indices."""
        vectors = (getattr(self, field.name)[indices] for field in fields(self)[1:])
        return Measures(self.products.select(indices), *vectors)


def measure(
    numbers: Scaled, products: Products, x: Tensor, s: Tensor, z: Tensor, tau: Tensor, kappa: Tensor
) -> Measures:
    """Measure x (B, n), s, z (B, m), tau, kappa (B,)."""
    Px, Atz, Ax = products.Px, products.Atz, products.Ax
    column = tau.unsqueeze(-1)
    q, b = numbers.q * column, numbers.b * column
    rx, rz = Px + Atz + q, Ax + s - b
    # In the program's units.
    scales = numbers.scales
    primal = largest(torch.stack([rz, Ax, b, s], dim=1) * scales.row_unit.unsqueeze(1))
    dual = largest(torch.stack([rx, Px, Atz, q], dim=1) * scales.column_unit.unsqueeze(1))
    linear, constant = (numbers.q * x).sum(-1), (numbers.b * z).sum(-1)
    terms = torch.stack([(x * Px).sum(-1) / tau, linear, constant], dim=-1)
    gap, unit = terms.sum(-1), scales.objective_unit
    gaps = torch.stack([gap, *terms.unbind(-1)], dim=-1) * unit.unsqueeze(-1)
    # Of the point over tau each: both sides of the fractions are times tau.
    sizes = torch.stack([primal, dual, gaps.abs()])
    worst = (sizes[..., 0] / torch.maximum(sizes[..., 1:].sum(-1), FLOOR * tau)).amax(0)
    infeasible = unbounded = torch.full_like(worst, float("inf"))
    if worst.device.type != "cpu" or bool((kappa > tau).any()):
        infeasible = _off(dual[:, 2], -constant * unit, largest(z * scales.zeta * scales.E))
        off = torch.maximum(dual[:, 1], largest((Ax + s) * scales.row_unit))
        unbounded = _off(off, -linear * unit, largest(x * scales.sigma * scales.D))
    return Measures(
        products=products,
        rx=rx,
        rz=rz,
        rtau=kappa + gap,
        residual=torch.nan_to_num(worst, nan=float("inf")),
        infeasible=infeasible,
        unbounded=unbounded,
    )


def _off(off: Tensor, slope: Tensor, size: Tensor) -> Tensor:
    """What should be zero of a ray, beside its slope and beside the ray itself."""
    found = torch.maximum(off / slope, off / size)
    return torch.where(slope > 0, torch.nan_to_num(found, nan=float("inf")), torch.full_like(found, float("inf")))
