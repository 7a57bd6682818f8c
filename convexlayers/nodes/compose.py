"""Nodes side by side, and parts of a result. One after the other is `torch.nn.Sequential`: nodes are modules."""

from typing import Any

import torch
from torch import Tensor, nn


class Parallel(nn.Module):
    """Several modules on the same inputs, their results side by side along the last dimension.

    Args:
        modules: nodes, or any modules.
    """

    def __init__(self, *modules: nn.Module) -> None:
        super().__init__()
        self.branches = nn.ModuleList(modules)

    def forward(self, *inputs: Any) -> Tensor:
        """Results (*batch, n_i), put together."""
        return torch.cat([branch(*inputs) for branch in self.branches], dim=-1)


class Select(nn.Module):
    """Entries `start` to `stop`, without the latter, of the last dimension.

    Args:
        start, stop: as in a slice.
    """

    def __init__(self, start: int, stop: int | None = None) -> None:
        super().__init__()
        self.entries = slice(start, stop)

    def forward(self, y: Tensor) -> Tensor:
        """(*batch, n) to (*batch, stop - start)."""
        return y[..., self.entries]
