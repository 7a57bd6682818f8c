"""Stacks of tangents and cotangents as `torch.autograd.grad(..., is_grads_batched=True)` makes them.

That vmap, which `torch.autograd.functional` uses for vectorize=True and gradcheck for its batched checks, is older than
torch.func's and knows no rules for Functions. Here its tensors are taken apart and the rest is left to torch.func's.
"""

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any

import torch
from torch import Tensor

_C: Any = torch._C
_torch: Any = torch

Parts = tuple[Tensor | None, ...]


def is_stacked(tensors: Sequence[Any]) -> bool:
    """Whether there is such a tensor among these."""
    return any(isinstance(t, Tensor) and _C._functorch.is_legacy_batchedtensor(t) for t in tensors)


def understands_stacks(rule: Callable[..., Parts]) -> Callable[..., Parts]:
    """For `backward` and `jvp` of a Function: rule(ctx, *tensors) is applied by torch.func.vmap to stacks."""

    @wraps(rule)
    def applied(ctx: Any, *tensors: Any) -> Parts:
        if not is_stacked(tensors):
            return rule(ctx, *tensors)
        level = _C._vmapmode_increment_nesting() - 1
        _C._vmapmode_decrement_nesting()
        dims = tuple([0 if is_stacked([t]) else None for t in tensors])
        stacks = [
            t if dim is None else _torch._remove_batch_dim(t, level, 1, 0) for t, dim in zip(tensors, dims, strict=True)
        ]
        present: list[bool] = []

        def without_none(*parts: Any) -> tuple[Tensor, ...]:
            found = rule(ctx, *parts)
            present[:] = [part is not None for part in found]
            return tuple([part for part in found if part is not None])

        found = iter(torch.func.vmap(without_none, in_dims=dims)(*stacks))
        return tuple([_torch._add_batch_dim(next(found), 0, level) if there else None for there in present])

    return applied
