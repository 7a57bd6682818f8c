"""Projection onto the simplex and onto the capped simplex, with derivatives in the radius and the cap.

    minimize    1/2 |x - v|^2
    subject to  sum(x) = r,  0 <= x   (<= u: capped)

The Lagrangian's stationarity gives x = clip(v - tau, 0, u) with the one number tau for which sum(x) = r (Held, Wolfe
and Crowder, "Validation of subgradient optimization", 1974; Duchi et al., "Efficient projections onto the l1-ball",
2008). No sorting: sum(x) is piecewise linear in tau, and without a cap convex, so that Newton's method from the left
runs upwards to the root and stays there after finitely many steps, about 6 (Michelot, "A finite algorithm", 1986;
Condat, "Fast projection onto the simplex", 2016).

Derivative: with F the free entries, 0 < x_i < u_i, and U those at their cap,

    dx_F = dv_F - dtau,   dx_U = du_U,   dtau = (sum dv_F + sum du_U - dr) / |F|,

and the adjoint is the same symmetric map: grad_v = mask_F (g - mean_F g), grad_r = mean_F g, grad_u = mask_U (g -
mean_F g).
"""

import math
from typing import Any

import torch
from torch import Tensor

from convexlayers.batching import Value
from convexlayers.zoo import _kernels
from convexlayers.zoo._batched import (
    BatchedFunction,
    batched,
    expect,
    masked_mean,
    positive,
    remember,
    tangent_context,
    vector_of,
)

# Newton's steps before the first look at whether all elements are done.
BLIND_STEPS = 3
# Options of the kernel.
SIMPLEX, BALL, SPHERE = range(3)
# Bisection takes over from Newton's method where this many steps were not enough; it needs 64 for float64.
MAX_STEPS = 200


def threshold(v: Tensor, radius: Tensor) -> Tensor:
    """tau with sum(max(v - tau, 0)) = r, (..., 1); NaN where the radius is not positive or v is not finite.

    Args:
        v: (..., n).
        radius: (..., 1).
    """
    # sum(max(v - tau, 0)) is at least r at both of these, by its largest term and by dropping the maximum.
    tau = torch.maximum(v.amax(-1, keepdim=True) - radius, (v.sum(-1, keepdim=True) - radius) / v.shape[-1])
    for step in range(max(v.shape[-1], BLIND_STEPS) + 1):
        excess = (v - tau).relu_()
        count = excess.sign().sum(-1, keepdim=True)
        following = torch.maximum(tau, tau + (excess.sum(-1, keepdim=True) - radius) / count)
        if step >= BLIND_STEPS and not bool((following > tau).any()):
            break
        tau = following
    return torch.where(radius > 0, tau, math.nan)


def rows_on_simplex(v: Tensor, radius: Tensor, option: int) -> Tensor:
    """`Simplex` and `balls.Norm1` by the kernel, which iterates on each row alone."""
    v = _kernels.packed(v)
    x, n = torch.empty_like(v), v.shape[-1]
    _kernels.run(_kernels.SIMPLEX, (v, _kernels.packed(radius), x), radius.numel(), n, option=option)
    return x


def rows_on_simplex_adjoint(v: Tensor, radius: Tensor, x: Tensor, grad: Tensor, option: int) -> tuple[Tensor, Tensor]:
    """Their cotangents of v and radius."""
    v, radius, grad = _kernels.packed(v), _kernels.packed(radius), _kernels.packed(grad)
    grad_v, grad_radius = torch.empty_like(v), torch.empty_like(radius)
    tensors = (v, radius, _kernels.packed(x), grad, grad_v, grad_radius)
    _kernels.run(_kernels.SIMPLEX_ADJOINT, tensors, radius.numel(), v.shape[-1], option=option)
    return grad_v, grad_radius


class Simplex(BatchedFunction):
    """v (*batch, n), radius (*batch) -> x (*batch, n)."""

    @staticmethod
    def forward(v: Tensor, radius: Tensor) -> Tensor:  # type: ignore[override]
        if _kernels.usable(v, radius):
            return rows_on_simplex(v, radius, SIMPLEX)
        return (v - threshold(v, radius.unsqueeze(-1))).clamp_(min=0)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        remember(ctx, inputs, output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        v, radius, x = ctx.saved_tensors
        if _kernels.usable_once(x, grad):
            return rows_on_simplex_adjoint(v, radius, x, grad, SIMPLEX)
        mask = x.detach().sign()
        mean = masked_mean(grad, mask)
        return mask * (grad - mean), mean.squeeze(-1) if ctx.needs_input_grad[1] else None

    @staticmethod
    def jvp(ctx: Any, dv: Tensor | None, dradius: Tensor | None) -> Tensor:  # type: ignore[override]
        mask = tangent_context(ctx)[-1].detach().sign()
        out = torch.zeros_like(mask) if dv is None else mask * (dv - masked_mean(dv, mask))
        if dradius is not None:
            out = out + mask * (dradius.unsqueeze(-1) / mask.sum(-1, keepdim=True))
        return out


def capped_threshold(v: Tensor, radius: Tensor, cap: Tensor) -> Tensor:
    """tau with sum(clip(v - tau, 0, u)) = r, (..., 1); NaN where there is none.

    sum(x) is neither convex nor concave in tau: Newton's steps are kept inside of a bracket that shrinks with every
    evaluation, and where a step would leave it, it is halved.
    """
    low, high = (v - cap).amin(-1, keepdim=True), v.amax(-1, keepdim=True)
    rounding = 4 * torch.finfo(v.dtype).eps * torch.maximum(low.abs(), high.abs())
    tau = following = (low + high) / 2
    for step in range(MAX_STEPS):
        shifted = v - tau
        excess = torch.minimum(shifted.clamp(min=0), cap).sum(-1, keepdim=True) - radius
        low, high = torch.where(excess >= 0, tau, low), torch.where(excess <= 0, tau, high)
        count = ((shifted > 0) & (shifted < cap)).sum(-1, keepdim=True)
        following = tau + excess / count
        inside = ((following > low) & (following < high)) | ((following - tau).abs() <= rounding)
        following = torch.where(inside, following, (low + high) / 2)
        moving = (following - tau).abs() > rounding
        if step >= BLIND_STEPS and not bool(moving.any()):
            break
        tau = torch.where(moving, following, tau)
    feasible = (radius >= 0) & (radius <= cap.sum(-1, keepdim=True)) & (cap >= 0).all(-1, keepdim=True)
    return torch.where(feasible, following, math.nan)


class CappedSimplex(BatchedFunction):
    """v (*batch, n), radius (*batch), cap (*batch, n) -> x (*batch, n)."""

    @staticmethod
    def forward(v: Tensor, radius: Tensor, cap: Tensor) -> Tensor:  # type: ignore[override]
        if _kernels.usable(v, radius, cap):
            v, radius, cap = _kernels.packed(v), _kernels.packed(radius), _kernels.packed(cap)
            x = torch.empty_like(v)
            _kernels.run(_kernels.CAPPED, (v, radius, cap, x), radius.numel(), v.shape[-1])
            return x
        tau = capped_threshold(v, radius.unsqueeze(-1), cap)
        return torch.minimum((v - tau).clamp_(min=0), cap)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        remember(ctx, inputs, output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        _, radius, cap, x = ctx.saved_tensors
        if _kernels.usable_once(x, grad):
            cap, x, grad = _kernels.packed(cap), _kernels.packed(x), _kernels.packed(grad)
            grads = torch.empty_like(x), torch.empty(radius.shape, dtype=x.dtype), torch.empty_like(x)
            _kernels.run(_kernels.CAPPED_ADJOINT, (cap, x, grad, *grads), radius.numel(), x.shape[-1])
            return grads
        free, full = _free_and_full(x, cap)
        mean = masked_mean(grad, free)
        centred = grad - mean
        return free * centred, mean.squeeze(-1), full * centred

    @staticmethod
    def jvp(  # type: ignore[override]
        ctx: Any, dv: Tensor | None, dradius: Tensor | None, dcap: Tensor | None
    ) -> Tensor:
        _, _, cap, x = tangent_context(ctx)
        free, full = _free_and_full(x, cap)
        moved = torch.zeros_like(free) if dv is None else free * dv
        moved = moved if dcap is None else moved + full * dcap
        total = moved.sum(-1, keepdim=True)
        total = total if dradius is None else total - dradius.unsqueeze(-1)
        return moved - free * total / free.sum(-1, keepdim=True).clamp(min=1)


def _free_and_full(x: Tensor, cap: Tensor) -> tuple[Tensor, Tensor]:
    """Which entries are strictly between their bounds, and which at the upper one; 0 or 1."""
    x, cap = x.detach(), cap.detach()
    full = x >= cap
    return ((x > 0) & ~full).to(x.dtype), full.to(x.dtype)


def project_simplex(v: Value, radius: Value = 1.0) -> Tensor:
    """The nearest point with x >= 0, sum(x) = radius.

    Args:
        v: (*batch, n).
        radius: (*batch) or a number, positive; NaN comes out where an element of a tensor is not.

    Returns:
        x, (*batch, n), differentiable in v and radius, any number of times; piecewise linear.

    Raises:
        ArgumentError: a shape is wrong, or the number is not positive.

    Examples:
        >>> import torch, convexlayers as cl
        >>> cl.zoo.project_simplex(torch.tensor([0.5, 1.0, -1.0])).tolist()
        [0.25, 0.75, 0.0]
    """
    return Simplex.call(*batched(("v", v, 1), ("radius", positive("radius", radius), 0)))


def project_capped_simplex(v: Value, radius: Value = 1.0, cap: Value = 1.0) -> Tensor:
    """The nearest point with 0 <= x <= cap, sum(x) = radius; with cap 1, a relaxed choice of `radius` entries of n.

    Args:
        v: (*batch, n).
        radius: (*batch) or a number.
        cap: (*batch, n) or a number; NaN comes out of elements with radius > sum(cap).

    Returns:
        x, (*batch, n), differentiable in v, radius and cap. Where no entry is strictly between its bounds, the solution
        is a vertex, and its derivative in v is zero.

    Raises:
        ArgumentError: a shape is wrong, or a number is negative.
    """
    cap = vector_of(positive("cap", cap), v)
    v, radius, cap = batched(("v", v, 1), ("radius", positive("radius", radius, zero=True), 0), ("cap", cap, 1))
    expect("cap", cap, v.shape[-1:])
    return CappedSimplex.call(v, radius, cap)
