"""The product of cones that a program's slack lives in: the one place that knows the order of the rows.

Rows come as zero, nonnegative, second-order, PSD (svec), exponential, power. Another solver's order exists only in the
adapter of that solver.
"""

import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import groupby
from typing import Any

import numpy as np
import torch
from torch import Tensor

from convexlayers.cones.base import Basis, Cone, IdentityBasis, Spectrum
from convexlayers.cones.complementarity import Complementarity, Pair
from convexlayers.cones.exponential import Exponential
from convexlayers.cones.nonnegative import Nonnegative
from convexlayers.cones.power import Power
from convexlayers.cones.psd import PSD
from convexlayers.cones.second_order import SecondOrder
from convexlayers.cones.svec import triangle_size
from convexlayers.cones.zero import Zero
from convexlayers.errors import ArgumentError


@dataclass(frozen=True)
class Group:
    """`count` equal cones that stand in consecutive rows, handled by one call.

    Attributes:
        cone: the cone; its operations take (..., count, dim).
        start: the first row.
        count: the number of cones.
    """

    cone: Cone
    start: int
    count: int

    @property
    def stop(self) -> int:
        """One past the last row."""
        return self.start + self.count * self.cone.dim

    def split(self, rows: Tensor) -> Tensor:
        """Rows (..., m) of the product to (..., count, dim) of this group."""
        part = rows[..., self.start : self.stop]
        return part.reshape(*part.shape[:-1], self.count, self.cone.dim)

    def split_pair(self, pair: Pair) -> Pair:
        """The same for two of them."""
        return self.split(pair[0]), self.split(pair[1])


@dataclass(frozen=True)
class Cones:
    """Sizes of the cones of a program, in the order of its rows.

    Attributes:
        zero: number of equality rows.
        nonnegative: number of inequality rows.
        second_order: dimension of each second-order cone {(t, x) : |x| <= t}.
        psd: order n of each PSD cone; it takes n (n + 1) / 2 rows (svec: upper triangle by columns, off-diagonals
            times sqrt(2)).
        exponential: number of cones cl{(x, y, z) : y exp(x / y) <= z, y > 0}.
        power: exponent a of each cone {(x, y, z) : x^a y^(1-a) >= |z|, x, y >= 0}.

    Raises:
        ArgumentError: a size is negative, a dimension below 1 or an exponent outside (0, 1).
    """

    zero: int = 0
    nonnegative: int = 0
    second_order: tuple[int, ...] = ()
    psd: tuple[int, ...] = ()
    exponential: int = 0
    power: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        for name in ("zero", "nonnegative", "exponential"):
            object.__setattr__(self, name, _checked(name, getattr(self, name), _count, "a count of at least 0"))
        for name in ("second_order", "psd"):
            expected = "a sequence of sizes of at least 1"
            object.__setattr__(self, name, _checked(name, getattr(self, name), _sizes, expected))
        expected = "a sequence of exponents strictly between 0 and 1"
        object.__setattr__(self, "power", _checked("power", self.power, _exponents, expected))

    @classmethod
    def coerce(cls, cones: "Cones | Mapping[str, object]") -> "Cones":
        """Accept a mapping with the attribute names as keys.

        Raises:
            ArgumentError: a key is not one of them.
        """
        if isinstance(cones, Cones):
            return cones
        known = set(cls.__dataclass_fields__)
        unknown = set(cones) - known
        if unknown:
            raise ArgumentError(f"cones: unknown keys {sorted(unknown)}, expected some of {sorted(known)}.")
        return cls(**dict(cones))  # type: ignore[arg-type]

    @cached_property
    def groups(self) -> tuple[Group, ...]:
        """Runs of equal cones, in row order."""
        groups, row = [], 0
        for cone, count in self._runs():
            groups.append(Group(cone, row, count))
            row = groups[-1].stop
        return tuple(groups)

    def _runs(self) -> Iterator[tuple[Cone, int]]:
        if self.zero:
            yield Zero(self.zero), 1
        if self.nonnegative:
            yield Nonnegative(self.nonnegative), 1
        for dim, run in groupby(self.second_order):
            yield SecondOrder(dim), len(list(run))
        for order, run in groupby(self.psd):
            yield PSD(order), len(list(run))
        if self.exponential:
            yield Exponential(), self.exponential
        if self.power:
            yield Power(self.power), len(self.power)

    @cached_property
    def rows(self) -> int:
        """m, the number of rows of A."""
        return (
            self.zero
            + self.nonnegative
            + sum(self.second_order)
            + sum(triangle_size(order) for order in self.psd)
            + 3 * (self.exponential + len(self.power))
        )

    def project(self, v: Tensor) -> Tensor:
        """Projection onto K, (..., m) to (..., m)."""
        parts = [group.cone.project(group.split(v)).flatten(-2) for group in self.groups]
        return torch.cat(parts, dim=-1) if parts else v.clone()

    def project_dual(self, v: Tensor) -> Tensor:
        """Projection onto K*, (..., m) to (..., m)."""
        return v + self.project(-v)

    def spectrum(self, v: Tensor) -> Spectrum:
        """Eigen-decomposition of D Proj_K(v) for v of shape (..., m); its basis acts on (..., m, k)."""
        parts = [group.cone.spectrum(group.split(v)) for group in self.groups]
        if not parts:
            return Spectrum(mu=v.clone(), nu=v.clone(), basis=IdentityBasis())
        return self._joined(parts)

    def _joined(self, parts: Sequence[Spectrum]) -> Spectrum:
        """The spectrum of the product from those of the groups."""
        return Spectrum(
            mu=torch.cat([part.mu.flatten(-2) for part in parts], dim=-1),
            nu=torch.cat([part.nu.flatten(-2) for part in parts], dim=-1),
            basis=ProductBasis.of(self.groups, [part.basis for part in parts]),
        )

    def smooth(self, v: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Spectrum]:
        """s and z = s - v on the central path, and the spectrum of ds/dv, for v (..., m) and weight (...)."""
        parts = [group.cone.smooth(group.split(v), weight.unsqueeze(-1)) for group in self.groups]
        if not parts:
            return v.clone(), v.clone(), self.spectrum(v)
        s = torch.cat([part[0].flatten(-2) for part in parts], dim=-1)
        z = torch.cat([part[1].flatten(-2) for part in parts], dim=-1)
        return s, z, self._joined([part[2] for part in parts])

    @cached_property
    def heads(self) -> np.ndarray:
        """First row of each cone, where every row of the zero and the nonnegative cone counts as one."""
        linear = [np.arange(self.zero + self.nonnegative)]
        groups = [group for group in self.groups if not isinstance(group.cone, Zero | Nonnegative)]
        return np.concatenate(linear + [group.start + group.cone.dim * np.arange(group.count) for group in groups])

    def largest(self, v: Tensor) -> Tensor:
        """Largest absolute entry of each cone, (..., m) to (..., len(heads))."""
        parts = [v[..., : self.zero + self.nonnegative].abs()]
        for group in self.groups:
            if not isinstance(group.cone, Zero | Nonnegative):
                parts.append(group.split(v).abs().amax(-1))
        return torch.cat(parts, dim=-1)

    def margin(self, v: Tensor) -> Tensor:
        """How far each cone is from a kink of its projection, (..., m) to (..., len(heads)); see `Cone.margin`."""
        parts = []
        for group in self.groups:
            part = group.cone.margin(group.split(v))
            parts.append(part.flatten(-2) if isinstance(group.cone, Zero | Nonnegative) else part)
        return torch.cat(parts, dim=-1) if parts else v.clone()

    @cached_property
    def complementarity(self) -> "ProductComplementarity":
        """The complementarity equations of all cones, one after the other."""
        return ProductComplementarity(self.groups)

    def describe(self) -> str:
        """The cones in words, empty kinds left out."""
        words = []
        for name, value in asdict(self).items():
            if not value:
                continue
            words.append(f"{name.replace('_', '-')} {_summary(value)}")
        return ", ".join(words) or "none"


def _checked(name: str, value: Any, convert: Callable[[Any], Any], expected: str) -> Any:
    """The converted value of a field of `Cones`."""
    try:
        return convert(value)
    except (TypeError, ValueError) as error:
        raise ArgumentError(f"cones: {name} is {value!r}, expected {expected}.") from error


def _count(value: Any) -> int:
    count = operator.index(value)
    if count < 0:
        raise ValueError
    return count


def _sizes(values: Any) -> tuple[int, ...]:
    sizes = tuple(operator.index(value) for value in values)
    if any(size < 1 for size in sizes):
        raise ValueError
    return sizes


def _exponents(values: Any) -> tuple[float, ...]:
    if isinstance(values, str):
        raise TypeError
    exponents = tuple(float(value) for value in values)
    if any(not 0 < a < 1 for a in exponents):
        raise ValueError
    return exponents


def _summary(value: object) -> str:
    """A count as it is; sizes as '3, 3, 5', cut in the middle where there are many."""
    if not isinstance(value, tuple):
        return str(value)
    shown = [f"{item:g}" for item in value]
    if len(shown) > 8:
        shown = [*shown[:4], "...", *shown[-2:], f"({len(value)} cones)"]
    return "[" + ", ".join(shown) + "]"


@dataclass(frozen=True)
class ProductBasis(Basis):
    """The bases of the groups, one after the other along the rows."""

    groups: tuple[Group, ...]
    parts: tuple[Basis, ...]

    @classmethod
    def of(cls, groups: tuple[Group, ...], parts: Sequence[Basis]) -> Basis:
        """The basis of the product; of inequalities and equalities alone the identity, which copies nothing."""
        plain = all(isinstance(part, IdentityBasis) for part in parts)
        return IdentityBasis() if plain else cls(groups, tuple(parts))

    def rotate(self, y: Tensor) -> Tensor:
        return self._apply(y, inverse=True)

    def unrotate(self, y: Tensor) -> Tensor:
        return self._apply(y, inverse=False)

    def _apply(self, y: Tensor, inverse: bool) -> Tensor:
        out = []
        for group, basis in zip(self.groups, self.parts, strict=True):
            rows = y[..., group.start : group.stop, :]
            if isinstance(basis, IdentityBasis):
                out.append(rows)
                continue
            split = rows.reshape(*rows.shape[:-2], group.count, group.cone.dim, rows.shape[-1])
            rotated = basis.rotate(split) if inverse else basis.unrotate(split)
            out.append(rotated.flatten(-3, -2))
        return torch.cat(out, dim=-2)


@dataclass(frozen=True)
class ProductComplementarity(Complementarity):
    """The equations of the groups, on vectors (..., m)."""

    groups: tuple[Group, ...]

    def multiplier(self, s: Tensor, z: Tensor, a: Tensor, b: Tensor) -> Tensor:
        return self._join(
            s,
            [
                group.cone.complementarity.multiplier(group.split(s), group.split(z), group.split(a), group.split(b))
                for group in self.groups
            ],
        )

    def correction(self, s: Tensor, z: Tensor, c: Tensor) -> Pair:
        parts = [
            group.cone.complementarity.correction(group.split(s), group.split(z), group.split(c))
            for group in self.groups
        ]
        return self._join(s, [part[0] for part in parts]), self._join(s, [part[1] for part in parts])

    def curvature(self, s: Tensor, z: Tensor, first: Pair, second: Pair) -> Tensor:
        return self._join(
            s,
            [
                group.cone.complementarity.curvature(
                    group.split(s), group.split(z), group.split_pair(first), group.split_pair(second)
                )
                for group in self.groups
            ],
        )

    def weighted_curvature(self, s: Tensor, z: Tensor, y: Tensor, direction: Pair) -> Pair:
        parts = [
            group.cone.complementarity.weighted_curvature(
                group.split(s), group.split(z), group.split(y), group.split_pair(direction)
            )
            for group in self.groups
        ]
        return self._join(s, [part[0] for part in parts]), self._join(s, [part[1] for part in parts])

    @staticmethod
    def _join(like: Tensor, parts: list[Tensor]) -> Tensor:
        return torch.cat([part.flatten(-2) for part in parts], dim=-1) if parts else torch.zeros_like(like)
