"""Solutions that are constant on runs of neighbours: which entries share a value, and averages over those."""

import torch
from torch import Tensor


def labels_of(x: Tensor) -> Tensor:
    """Number of the block of equal neighbours that each entry of the last dimension is in, from 0 on."""
    x = x.detach()
    starts = torch.cat([torch.zeros_like(x[..., :1]), (x[..., 1:] != x[..., :-1]).to(x.dtype)], dim=-1)
    return starts.cumsum(-1).to(torch.int64)


def block_sum(value: Tensor, labels: Tensor) -> Tensor:
    """The sum over each entry's block."""
    return torch.zeros_like(value).scatter_add(-1, labels, value).gather(-1, labels)


def block_mean(value: Tensor, labels: Tensor) -> Tensor:
    """The mean over each entry's block; linear in the value, symmetric, a projector."""
    return block_sum(value, labels) / block_sum(torch.ones_like(value), labels)


def merged(joined: Tensor, *sums: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Blocks in a row, some of them joined with the next.

    Args:
        joined: (k - 1), whether blocks i and i + 1 become one.
        *sums: (k), one number per block.

    Returns:
        the new number of each block, and the sums over the new blocks.
    """
    numbers = torch.cat([torch.zeros_like(joined[:1], dtype=torch.int64), (~joined).cumsum(0)])
    count = int(numbers[-1]) + 1
    return numbers, [total.new_zeros(count).index_add_(0, numbers, total) for total in sums]
