"""Denoising by total variation in one dimension.

    minimize  1/2 |x - y|^2 + lambda |Dx|_1,    (Dx)_i = x_i+1 - x_i

The dual is a box-constrained QP with a tridiagonal matrix, x = y - D'u:

    minimize  1/2 u'DD'u - (Dy)'u    subject to  -lambda <= u <= lambda

The sums of x up to an entry are a string, pulled taut between two walls lambda below and above the sums of y. Its bends
are the active bounds of the dual: a compiled loop finds them (native/src/zoo/sequences.hpp), and where that cannot be
used `solve_qp` does. They are the steps of x, with signs sigma; between them x is constant, and with d_i = sigma_i -
sigma_i-1 it is the mean over the block of y + lambda d: exact, not to a tolerance.

Derivative: the steps and their signs stay, so dx is the mean over the block of dy + d dlambda. It is block averaging,
not the identity that |.| would give automatic differentiation.
"""

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from convexlayers.batching import Value
from convexlayers.functional import solve_qp
from convexlayers.zoo import _kernels
from convexlayers.zoo._batched import BatchedFunction, batched, positive, remember, tangent_context
from convexlayers.zoo._blocks import block_mean, labels_of


@lru_cache(maxsize=16)
def _second_difference(size: int) -> Tensor:
    """DD', with 2 on and -1 beside the diagonal, (size, size), sparse."""
    index = torch.arange(size)
    rows = torch.cat([index, index[1:], index[:-1]])
    cols = torch.cat([index, index[:-1], index[1:]])
    values = torch.cat([torch.full((size,), 2.0), torch.full((2 * size - 2,), -1.0)]).to(torch.float64)
    return torch.sparse_coo_tensor(torch.stack([rows, cols]), values, (size, size), check_invariants=False).coalesce()


def _steps(y: Tensor, strength: Tensor) -> tuple[Tensor, Tensor]:
    """Signs of the steps of x, (*batch, n - 1), and which elements were solved, (*batch)."""
    bound = strength.to(torch.float64).unsqueeze(-1)
    jump = y.to(torch.float64).diff(dim=-1)
    # Elements that need no solver are given something harmless.
    valid = jump.isfinite().all(-1, keepdim=True) & bound.isfinite() & (bound > 0)
    jump, bound = torch.where(valid, jump, 0.0), torch.where(valid, bound, 1.0)
    bound = bound.expand(jump.shape)
    dual = solve_qp(_second_difference(jump.shape[-1]), -jump, lb=-bound, ub=bound, on_failure="nan", validate=False)
    # Of slack and multiplier of a bound, both in units of y, the larger one says whether it is active.
    up = dual.duals["ub"] > bound - dual.x
    down = dual.duals["lb"] > bound + dual.x
    return up.to(y.dtype) - down.to(y.dtype), dual.solved & valid.squeeze(-1)


def _turns(sign: Tensor) -> Tensor:
    """d, from the signs of the steps: that to the next entry less that from the one before, 0 beyond the ends."""
    border = torch.zeros_like(sign[..., :1])
    return torch.cat([sign, border], dim=-1) - torch.cat([border, sign], dim=-1)


class TotalVariation(BatchedFunction):
    """y (*batch, n), strength (*batch) -> x (*batch, n)."""

    @staticmethod
    def forward(y: Tensor, strength: Tensor) -> Tensor:  # type: ignore[override]
        if _kernels.usable(y, strength):
            y = _kernels.packed(y)
            x = torch.empty_like(y)
            tensors = (y, _kernels.packed(strength), x)
            _kernels.run(_kernels.TOTAL_VARIATION, tensors, strength.numel(), y.shape[-1])
            return x
        if y.shape[-1] == 1 or y.numel() == 0:
            return torch.where(strength.unsqueeze(-1) >= 0, y, torch.nan)
        sign, solved = _steps(y, strength)
        labels = torch.cat([torch.zeros_like(sign[..., :1]), sign.abs().cumsum(-1)], dim=-1).to(torch.int64)
        x = block_mean(y + strength.unsqueeze(-1) * _turns(sign), labels)
        x = torch.where(solved.unsqueeze(-1), x, torch.nan)
        return torch.where(strength.unsqueeze(-1) == 0, y, x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        remember(ctx, inputs, output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None]:  # type: ignore[override]
        _, strength, x = ctx.saved_tensors
        if _kernels.usable_once(x, grad):
            x, grad = _kernels.packed(x), _kernels.packed(grad)
            grads = torch.empty_like(x), torch.empty(strength.shape, dtype=x.dtype)
            _kernels.run(_kernels.TOTAL_VARIATION_ADJOINT, (x, grad, *grads), strength.numel(), x.shape[-1])
            return grads
        mean = block_mean(grad, labels_of(x))
        turns = _turns(x.detach().diff(dim=-1).sign())
        return mean, (mean * turns).sum(-1) if ctx.needs_input_grad[1] else None

    @staticmethod
    def jvp(ctx: Any, dy: Tensor | None, dstrength: Tensor | None) -> Tensor:  # type: ignore[override]
        x = tangent_context(ctx)[-1]
        change = torch.zeros_like(x) if dy is None else dy
        if dstrength is not None:
            change = change + _turns(x.detach().diff(dim=-1).sign()) * dstrength.unsqueeze(-1)
        return block_mean(change, labels_of(x))


def tv_denoise(y: Value, strength: Value) -> Tensor:
    """The piecewise constant signal next to y.

    Args:
        y: (*batch, n).
        strength: lambda, (*batch) or a number, not negative; NaN comes out where an element of a tensor is.

    Returns:
        x, (*batch, n), differentiable in y and strength, any number of times.

    Raises:
        ArgumentError: a shape is wrong, or the number is negative.

    Examples:
        >>> import torch, convexlayers as cl
        >>> cl.zoo.tv_denoise(torch.tensor([0.0, 0.0, 3.0]), 1.0).tolist()
        [0.5, 0.5, 2.0]
    """
    return TotalVariation.call(*batched(("y", y, 1), ("strength", positive("strength", strength, zero=True), 0)))
