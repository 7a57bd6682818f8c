"""Complementary pairs by construction: s in K, z in K*, s'z = 0, without a projection or a solver.

Each pair is strictly complementary, so that the projection onto K is differentiable at s - z, and its entries are of
the order of one. They come from the closed forms of the cones' boundaries, not from `convexlayers.cones`, so that the
two can be held against each other.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from convexlayers.cones import Cones, svec
from convexlayers.errors import ArgumentError

ACTIVITIES = ("boundary", "inside", "outside")


@dataclass(frozen=True)
class Sampler:
    """Random tensors of one batch from one seed.

    Attributes:
        batch: leading dimensions of every draw.
        generator: torch's random number generator.
    """

    batch: tuple[int, ...]
    generator: torch.Generator

    @classmethod
    def seeded(cls, batch: Sequence[int], seed: int) -> "Sampler":
        """A sampler that draws the same numbers for the same seed."""
        return cls(tuple(batch), torch.Generator().manual_seed(seed))

    def normal(self, *shape: int) -> Tensor:
        """Standard normal, (*batch, *shape)."""
        return torch.randn((*self.batch, *shape), generator=self.generator, dtype=torch.float64)

    def between(self, low: float, high: float, *shape: int) -> Tensor:
        """Uniform, (*batch, *shape)."""
        uniform = torch.rand((*self.batch, *shape), generator=self.generator, dtype=torch.float64)
        return low + (high - low) * uniform

    def positive(self, *shape: int) -> Tensor:
        """Uniform in [1/2, 2], (*batch, *shape)."""
        return self.between(0.5, 2.0, *shape)

    def orthonormal(self, rows: int, columns: int) -> Tensor:
        """Orthonormal columns, (*batch, rows, columns)."""
        return torch.linalg.qr(self.normal(rows, rows))[0][..., :columns]

    def pick(self, number: int) -> int:
        """An integer below `number`, the same for the whole batch."""
        return int(torch.randint(number, (1,), generator=self.generator))

    def half(self, size: int) -> Tensor:
        """A boolean mask (size,) of which half is true, rounded up, the same for the whole batch."""
        return torch.randperm(size, generator=self.generator) < (size + 1) // 2


Pair = tuple[Tensor, Tensor]


def complementary_pair(cones: Cones, sampler: Sampler, activity: str = "boundary") -> Pair:
    """Draw (s, z), each (*batch, m). Which constraint is active how is the same for the whole batch.

    Args:
        cones: the cones, of any sizes.
        sampler: where the random numbers come from.
        activity: "boundary" puts both s and z != 0 on the boundary of every cone that has one of dimension above 1,
            and makes half of the inequalities active; "inside" is s inside K and z = 0, "outside" is z inside K* and
            s = 0; "mixed" draws one of the three for each cone. Rows of the zero cone are always s = 0, z free.

    Raises:
        ArgumentError: the activity is not known.
    """
    if activity not in (*ACTIVITIES, "mixed"):
        known = ", ".join(map(repr, (*ACTIVITIES, "mixed")))
        raise ArgumentError(f"activity is {activity!r}, expected one of {known}.")
    pairs = []
    for draw in _draws(cones):
        chosen = ACTIVITIES[sampler.pick(3)] if activity == "mixed" else activity
        pairs.append(draw(sampler, chosen))
    if not pairs:
        return sampler.normal(0), sampler.normal(0)
    s, z = (torch.cat(parts, dim=-1) for parts in zip(*pairs, strict=True))
    return s, z


def _draws(cones: Cones) -> Iterator[Callable[[Sampler, str], Pair]]:
    """One function per cone, in row order."""
    if cones.zero:
        yield lambda sampler, _: (torch.zeros_like(z := sampler.normal(cones.zero)), z)
    if cones.nonnegative:
        yield lambda sampler, activity: nonnegative_pair(sampler, activity, cones.nonnegative)
    for dim in cones.second_order:
        yield lambda sampler, activity, dim=dim: second_order_pair(sampler, activity, dim)
    for order in cones.psd:
        yield lambda sampler, activity, order=order: psd_pair(sampler, activity, order)
    for _ in range(cones.exponential):
        yield exponential_pair
    for alpha in cones.power:
        yield lambda sampler, activity, alpha=alpha: power_pair(sampler, activity, alpha)


def _split(values: Tensor, activity: str, own: Tensor) -> Pair:
    """Positive values to s where `own`, to z elsewhere; all to one of them unless the activity is "boundary"."""
    if activity != "boundary":
        own = torch.full_like(own, activity == "inside")
    zero = torch.zeros_like(values)
    return torch.where(own, values, zero), torch.where(own, zero, values)


def nonnegative_pair(sampler: Sampler, activity: str, size: int) -> Pair:
    """s_i > 0 = z_i or s_i = 0 < z_i."""
    return _split(sampler.positive(size), activity, sampler.half(size))


def second_order_pair(sampler: Sampler, activity: str, dim: int) -> Pair:
    """Multiples of (1, u) and (1, -u) for a unit vector u; inside, of (1, u / 2)."""
    if dim == 1:
        return nonnegative_pair(sampler, activity, 1)
    u = torch.nn.functional.normalize(sampler.normal(dim - 1), dim=-1)
    a, c = sampler.positive(1), sampler.positive(1)
    if activity == "boundary":
        return torch.cat([a, a * u], dim=-1), torch.cat([c, -c * u], dim=-1)
    interior = torch.cat([a, 0.5 * a * u], dim=-1)
    return _one_sided(interior, activity)


def psd_pair(sampler: Sampler, activity: str, order: int) -> Pair:
    """U diag(l) U' with the positive and the negative part of l."""
    U = sampler.orthonormal(order, order)
    parts = _split(sampler.positive(order), activity, sampler.half(order))
    s, z = (svec((U * values.unsqueeze(-2)) @ U.transpose(-1, -2)) for values in parts)
    return s, z


def exponential_pair(sampler: Sampler, activity: str) -> Pair:
    """Multiples of (r, 1, exp(r)) and (-1, r - 1, exp(-r)); inside, with the last entry raised."""
    r, a, c = sampler.between(-1.0, 1.0), sampler.positive(), sampler.positive()
    s = torch.stack([a * r, a, a * r.exp()], dim=-1)
    z = torch.stack([-c, c * (r - 1), c * (-r).exp()], dim=-1)
    if activity == "boundary":
        return s, z
    up = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)
    return _one_sided((s if activity == "inside" else z) + up, activity)


def power_pair(sampler: Sampler, activity: str, alpha: float) -> Pair:
    """(x, y, +-r) with r = x^alpha y^(1 - alpha), and a multiple of the gradient of that; inside, with r halved."""
    x, y, c = sampler.positive(), sampler.positive(), sampler.positive()
    sign = 1.0 if sampler.pick(2) else -1.0
    r = x**alpha * y ** (1 - alpha)
    height = sign * torch.ones_like(r)
    s = torch.stack([x, y, height * r], dim=-1)
    z = torch.stack([c * alpha * r / x, c * (1 - alpha) * r / y, -c * height], dim=-1)
    if activity == "boundary":
        return s, z
    down = torch.tensor([1.0, 1.0, 0.5], dtype=torch.float64)
    return _one_sided((s if activity == "inside" else z) * down, activity)


def _one_sided(interior: Tensor, activity: str) -> Pair:
    zero = torch.zeros_like(interior)
    return (interior, zero) if activity == "inside" else (zero, interior)
