"""A batch worked off in blocks of a fixed number of elements.

torch's kernels choose how they add up, and whether the last numbers of a tensor go through vector instructions, by the
shapes that they meet: the same element can come out with other last bits in a larger batch. A block always has the same
shapes, the last one padded with copies, so an element's numbers do not depend on what else is in the batch, nor on how
much. Memory is bounded by the block, too.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Block = Callable[..., Sequence[Tensor]]


def in_blocks(function: Block, tensors: Sequence[Tensor], size: int) -> list[Tensor]:
    """Apply a function to every block and put its results together.

    Args:
        function: of tensors (size, ...), to a sequence of tensors (size, ...).
        tensors: (B, ...) each, B >= 1. Differentiable.
        size: of a block.

    Returns:
        the results, (B, ...) each.
    """
    batch = tensors[0].shape[0]
    parts = [function(*(_rows(tensor, first, size) for tensor in tensors)) for first in range(0, batch, size)]
    return [torch.cat(pieces)[:batch] for pieces in zip(*parts, strict=True)]


def _rows(tensor: Tensor, first: int, size: int) -> Tensor:
    """Rows first to first + size, the last row repeated where there are fewer; a copy, aligned alike."""
    rows = tensor[first : first + size]
    missing = size - rows.shape[0]
    if missing:
        rows = torch.cat([rows, rows[-1:].expand(missing, *rows.shape[1:])])
    return rows.clone(memory_format=torch.contiguous_format)
