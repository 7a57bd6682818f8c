"""Isotonic regression: projection onto monotone sequences.

    minimize    1/2 sum_i w_i (x_i - v_i)^2
    subject to  x_1 <= x_2 <= ... <= x_n

The solution is constant on blocks, with the weighted mean of v as value. Neighbouring blocks whose means are in the
wrong order belong together, in whatever order they are pooled (Barlow, Bartholomew, Bremner and Brunk, "Statistical
inference under order restrictions", 1972). A compiled loop pools them from left to right. Torch's operations pool all
of them at once, in all rows of the batch, until none is left: about log n rounds for noisy data.

Derivative: with B the block of i, x_i = sum_B w v / sum_B w, so dx_i = sum_B (w dv + (v - x) dw) / sum_B w (Best,
Chakravarti, "Active set algorithms for isotonic regression", 1990).
"""

from typing import Any

import torch
from torch import Tensor

from convexlayers.batching import Value
from convexlayers.zoo import _kernels
from convexlayers.zoo._batched import BatchedFunction, batched, expect, positive, remember, tangent_context, vector_of
from convexlayers.zoo._blocks import block_sum, labels_of, merged


class Isotonic(BatchedFunction):
    """v (*batch, n), weight (*batch, n) -> x (*batch, n)."""

    @staticmethod
    def forward(v: Tensor, weight: Tensor) -> Tensor:  # type: ignore[override]
        n = v.shape[-1]
        if v.numel() == 0:
            return torch.empty_like(v)
        if _kernels.usable(v, weight):
            v, weight = _kernels.packed(v), _kernels.packed(weight)
            x = torch.empty_like(v)
            _kernels.run(_kernels.ISOTONIC, (v, weight, x), v.numel() // n, n)
            return x
        width, total = weight.reshape(-1), (weight * v).reshape(-1)
        row = torch.arange(width.numel(), device=v.device) // n
        labels = torch.arange(width.numel(), device=v.device)
        mean = v.reshape(-1)
        while True:
            joined = (mean[:-1] > mean[1:]) & (row[:-1] == row[1:])
            if not bool(joined.any()):
                break
            numbers, (total, width) = merged(joined, total, width)
            # Every old block writes its row into its new one; all of them are in the same.
            row = row.new_zeros(len(total)).scatter_(0, numbers, row)
            labels, mean = numbers[labels], total / width
        x = mean[labels].reshape(v.shape)
        valid = v.isfinite().all(-1, keepdim=True) & (weight > 0).all(-1, keepdim=True)
        return torch.where(valid, x, torch.nan)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        remember(ctx, inputs, output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None]:  # type: ignore[override]
        v, weight, x = ctx.saved_tensors
        if _kernels.usable_once(x, grad):
            v, weight, x, grad = (_kernels.packed(tensor) for tensor in (v, weight, x, grad))
            grads = torch.empty_like(v), torch.empty_like(v) if ctx.needs_input_grad[1] else None
            tensors = (v, weight, x, grad, *grads)
            _kernels.run(_kernels.ISOTONIC_ADJOINT, tensors, v.numel() // v.shape[-1], v.shape[-1])
            return grads
        labels = labels_of(x)
        share = block_sum(grad, labels) / block_sum(weight, labels)
        return weight * share, share * (v - x) if ctx.needs_input_grad[1] else None

    @staticmethod
    def jvp(ctx: Any, dv: Tensor | None, dweight: Tensor | None) -> Tensor:  # type: ignore[override]
        v, weight, x = tangent_context(ctx)
        labels = labels_of(x)
        change = torch.zeros_like(v) if dv is None else weight * dv
        change = change if dweight is None else change + dweight * (v - x)
        return block_sum(change, labels) / block_sum(weight, labels)


def project_isotonic(v: Value, weight: Value = 1.0, *, decreasing: bool = False) -> Tensor:
    """The nearest sequence that does not decrease (or does not increase).

    Args:
        v: (*batch, n).
        weight: (*batch, n) or a number, positive; NaN comes out of elements where it is not.
        decreasing: the other order.

    Returns:
        x, (*batch, n), differentiable in v and weight, any number of times.

    Raises:
        ArgumentError: a shape is wrong.

    Examples:
        >>> import torch, convexlayers as cl
        >>> cl.zoo.project_isotonic(torch.tensor([1.0, 3.0, 2.0])).tolist()
        [1.0, 2.5, 2.5]
    """
    v, weight = batched(("v", v, 1), ("weight", vector_of(positive("weight", weight), v), 1))
    expect("weight", weight, v.shape[-1:])
    return -Isotonic.call(-v, weight) if decreasing else Isotonic.call(v, weight)
