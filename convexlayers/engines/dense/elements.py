"""Dataclasses of tensors with one row per element of a batch."""

from dataclasses import dataclass, fields
from typing import Self

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Elements:
    """All fields are tensors (B, ...) of the same B."""

    def select(self, indices: Tensor) -> Self:
        """The elements at these indices."""
        return type(self)(*(getattr(self, field.name)[indices] for field in fields(self)))

    def put(self, indices: Tensor, other: Self) -> Self:
        """These elements with others in the place of those at the indices."""
        return type(self)(*(old.index_copy(0, indices, new) for old, new in self._pairs(other)))

    def where(self, mask: Tensor, other: Self) -> Self:
        """The other's elements where the mask holds, (B,)."""
        shaped = ((mask.reshape(-1, *[1] * (old.ndim - 1)), old, new) for old, new in self._pairs(other))
        return type(self)(*(torch.where(at, new, old) for at, old, new in shaped))

    def to(self, dtype: torch.dtype) -> Self:
        """In another precision."""
        parts = (getattr(self, field.name) for field in fields(self))
        return type(self)(*(part.to(dtype) if part.is_floating_point() else part for part in parts))

    def _pairs(self, other: Self) -> list[tuple[Tensor, Tensor]]:
        return [(getattr(self, field.name), getattr(other, field.name)) for field in fields(self)]
