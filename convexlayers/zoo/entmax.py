"""Sparse alternatives to softmax: the entropies of Tsallis in place of Shannon's.

    maximize    z'p + H_alpha(p),   H_alpha(p) = sum_i (p_i - p_i^alpha) / (alpha (alpha - 1))
    subject to  sum(p) = 1,  p >= 0

alpha = 1 is softmax, alpha = 2 the projection onto the simplex (sparsemax). Stationarity: p_i = max(u_i, 0)^(1 /
(alpha - 1)) with u_i = (alpha - 1) z_i - tau, one number tau for sum(p) = 1 (Peters, Niculae and Martins, "Sparse
sequence-to-sequence models", 2019). It is found by Newton's method: for alpha <= 2 sum(p) is convex in tau, so that
the steps run up from the left; beyond, they are kept in a bracket.

Derivative, with s_i = p_i^(2 - alpha) on the support: dp = c - s sum(c) / sum(s), where

    c_i = s_i dz_i + (s_i z_i - p_i log(p_i)) dalpha / (alpha - 1)

(from log p = log(u) / (alpha - 1) and p / u = s; Correia, Niculae and Martins, "Adaptively sparse transformers", 2019).
"""

import math
from typing import Any

import torch
from torch import Tensor

from convexlayers.batching import Value
from convexlayers.errors import ArgumentError
from convexlayers.zoo import _kernels
from convexlayers.zoo._batched import BatchedFunction, batched, remember, tangent_context
from convexlayers.zoo.simplex import Simplex

# Newton's method needs about 8 steps, bisection 60 for float64.
MAX_STEPS = 100
BLIND_STEPS = 4


def _solve(z: Tensor, alpha: Tensor) -> Tensor:
    """p for scaled scores z = (alpha - 1) (scores - their maximum), alpha (..., 1) > 1."""
    exponent = 1 / (alpha - 1)
    # The largest score alone gives 1 at tau = -1, all of them at least 1 at their level if they were equal.
    low, high = torch.full_like(z[..., :1], -1.0), -(z.shape[-1] ** (1 - alpha))
    p, total, tau = z, low, low
    for step in range(MAX_STEPS):
        u = (z - tau).clamp_(min=0)
        p = u.pow(exponent)
        total = p.sum(-1, keepdim=True)
        low, high = torch.where(total >= 1, tau, low), torch.where(total <= 1, tau, high)
        slope = exponent * torch.where(u > 0, p / u, 0.0).sum(-1, keepdim=True)
        following = tau + (total - 1) / slope
        following = torch.where((following > low) & (following < high), following, (low + high) / 2)
        # At the root the steps are of the size of rounding, up and down.
        done = (total - 1).abs() <= 4 * torch.finfo(z.dtype).eps
        if step >= BLIND_STEPS and not bool((~done & (following != tau) & (following == following)).any()):
            break
        tau = torch.where(done, tau, following)
    return p / total


class Entmax(BatchedFunction):
    """z (*batch, n), alpha (*batch) -> p (*batch, n)."""

    @staticmethod
    def forward(z: Tensor, alpha: Tensor) -> Tensor:  # type: ignore[override]
        alpha = torch.where(alpha > 1, alpha, math.nan).unsqueeze(-1)
        return _solve((alpha - 1) * (z - z.amax(-1, keepdim=True)), alpha)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        remember(ctx, inputs, output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None]:  # type: ignore[override]
        z, alpha, p = ctx.saved_tensors
        s = _weights(p, alpha)
        centred = grad - (s * grad).sum(-1, keepdim=True) / s.sum(-1, keepdim=True)
        along = (centred * _alpha_slope(z, alpha, p, s)).sum(-1) if ctx.needs_input_grad[1] else None
        return s * centred, along

    @staticmethod
    def jvp(ctx: Any, dz: Tensor | None, dalpha: Tensor | None) -> Tensor:  # type: ignore[override]
        z, alpha, p = tangent_context(ctx)
        s = _weights(p, alpha)
        c = torch.zeros_like(p) if dz is None else s * dz
        c = c if dalpha is None else c + _alpha_slope(z, alpha, p, s) * dalpha.unsqueeze(-1)
        return c - s * c.sum(-1, keepdim=True) / s.sum(-1, keepdim=True)


def _weights(p: Tensor, alpha: Tensor) -> Tensor:
    """s = p^(2 - alpha) on the support, 0 off it."""
    support = p.detach() > 0
    return torch.where(support, torch.where(support, p, 1.0).pow(2 - alpha.unsqueeze(-1)), 0.0)


def _alpha_slope(z: Tensor, alpha: Tensor, p: Tensor, s: Tensor) -> Tensor:
    """What dalpha is multiplied with in c. A multiple of s may be added: z is taken from its largest entry."""
    rest = alpha.unsqueeze(-1) - 1
    level = z.detach().amax(-1, keepdim=True)
    logarithm = torch.where(p.detach() > 0, p, 1.0).log()
    return (s * (z - level) - p * logarithm) / rest


def sparsemax(z: Value) -> Tensor:
    """The projection of scores onto the simplex: probabilities of which many are exactly 0.

    Args:
        z: (*batch, n).

    Returns:
        p, (*batch, n), differentiable any number of times.

    Raises:
        ArgumentError: a shape is wrong.
    """
    return Simplex.call(*batched(("z", z, 1), ("radius", 1.0, 0)))


def entmax(z: Value, alpha: Value = 1.5) -> Tensor:
    """Probabilities between softmax (alpha = 1) and sparsemax (alpha = 2), or sparser.

    Args:
        z: (*batch, n).
        alpha: (*batch) or a number, above 1; the number 1 is softmax. NaN comes out where an element of a tensor is
        not.

    Returns:
        p, (*batch, n), differentiable in z and alpha, any number of times.

    Raises:
        ArgumentError: a shape is wrong, or the number is below 1.

    Examples:
        >>> import torch, convexlayers as cl
        >>> [round(p, 4) for p in cl.zoo.entmax(torch.tensor([1.0, 0.5, -2.0])).tolist()]
        [0.674, 0.326, 0.0]
    """
    if isinstance(alpha, int | float) and alpha <= 2:
        if not alpha >= 1:
            raise ArgumentError(f"alpha is {alpha}, expected at least 1.")
        if alpha == 1:
            return torch.softmax(batched(("z", z, 1))[0], dim=-1)
        if alpha == 2:
            return sparsemax(z)
        if alpha == 1.5:
            return Entmax15.call(*batched(("z", z, 1)))
    return Entmax.call(*batched(("z", z, 1), ("alpha", alpha, 0)))


class Entmax15(BatchedFunction):
    """z (*batch, n) -> p (*batch, n) with alpha = 1.5, whose powers are squares and roots."""

    @staticmethod
    def forward(z: Tensor) -> Tensor:  # type: ignore[override]
        if _kernels.usable(z):
            z = _kernels.packed(z)
            p = torch.empty_like(z)
            _kernels.run(_kernels.ENTMAX15, (z, p), z.numel() // z.shape[-1], z.shape[-1])
            return p
        half = (z - z.amax(-1, keepdim=True)) / 2
        tau = torch.full_like(half[..., :1], -1.0)
        u, total = half, tau
        for step in range(MAX_STEPS):
            u = (half - tau).clamp_(min=0)
            total = (u * u).sum(-1, keepdim=True)
            following = tau + (total - 1) / (2 * u.sum(-1, keepdim=True))
            done = total - 1 <= 4 * torch.finfo(z.dtype).eps
            if step >= BLIND_STEPS and not bool((~done & (following > tau)).any()):
                break
            tau = torch.where(done, tau, following)
        return u * u / total

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        remember(ctx, inputs, output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        p = ctx.saved_tensors[-1]
        if _kernels.usable_once(p, grad):
            p, grad = _kernels.packed(p), _kernels.packed(grad)
            grad_z = torch.empty_like(grad)
            _kernels.run(_kernels.ENTMAX15_DERIVATIVE, (p, grad, grad_z), p.numel() // p.shape[-1], p.shape[-1])
            return grad_z
        return _root_derivative(p, grad)

    @staticmethod
    def jvp(ctx: Any, dz: Tensor) -> Tensor:  # type: ignore[override]
        return _root_derivative(tangent_context(ctx)[-1], dz)


def _root_derivative(p: Tensor, direction: Tensor) -> Tensor:
    """(diag(s) - ss' / sum(s)) direction with s = sqrt(p), whose own derivative is that of the support only."""
    support = p.detach() > 0
    s = torch.where(support, torch.where(support, p, 1.0).sqrt(), 0.0)
    weighted = s * direction
    return weighted - s * (weighted.sum(-1, keepdim=True) / s.sum(-1, keepdim=True))
