"""Projection onto the second-order cone.

    minimize  1/2 |(s, x) - (t, v)|^2  subject to  |x|_2 <= s

With l1 = t + |v|, l2 = t - |v| and u = v / |v|: the point itself where l2 >= 0, 0 where l1 <= 0, and l1 / 2 (1, u)
between (`convexlayers.cones.second_order` has the source). There, with w = v_perp the part of dv orthogonal to u,

    ds = (dt + u'dv) / 2,    dx = ds u + l1 / (2 |v|) (dv - u u'dv),

a symmetric map, so that the adjoint is the same.
"""

from typing import Any

import torch
from torch import Tensor

from convexlayers.batching import Value
from convexlayers.errors import wrong_shape
from convexlayers.zoo import _kernels
from convexlayers.zoo._batched import BatchedFunction, batched, remember, tangent_context


class SecondOrderProjection(BatchedFunction):
    """v (*batch, n), first entry t -> projection (*batch, n)."""

    @staticmethod
    def forward(v: Tensor) -> Tensor:  # type: ignore[override]
        if _kernels.usable(v):
            v = _kernels.packed(v)
            x = torch.empty_like(v)
            _kernels.run(_kernels.SECOND_ORDER, (v, x), v.numel() // v.shape[-1], v.shape[-1])
            return x
        t, x = v[..., :1], v[..., 1:]
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        # Half of max(l1, 0), which is 0 in the polar cone; |x| is not 0 where the factor is used.
        s = ((t + norm) / 2).clamp(min=0)
        projected = torch.cat([s, x * (s / norm)], dim=-1)
        return torch.where(t >= norm, v, torch.where(s > 0, projected, v.clamp(min=0) * 0))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        remember(ctx, inputs, output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        v = ctx.saved_tensors[0]
        if _kernels.usable_once(v, grad):
            v, grad_v = _kernels.packed(v), torch.empty_like(grad, memory_format=torch.contiguous_format)
            tensors = (v, _kernels.packed(grad), grad_v)
            _kernels.run(_kernels.SECOND_ORDER_DERIVATIVE, tensors, v.numel() // v.shape[-1], v.shape[-1])
            return grad_v
        return _derivative(v, grad)

    @staticmethod
    def jvp(ctx: Any, dv: Tensor) -> Tensor:  # type: ignore[override]
        return _derivative(tangent_context(ctx)[0], dv)


def _derivative(v: Tensor, direction: Tensor) -> Tensor:
    """The derivative at v along a direction; linear and symmetric in it, differentiable in both."""
    t, x = v[..., :1], v[..., 1:]
    dt, dx = direction[..., :1], direction[..., 1:]
    square = (x * x).sum(-1, keepdim=True)
    norm = torch.where(square.detach() == 0, 1.0, square).sqrt()
    between = (norm.detach() > t.detach().abs()) & (square.detach() > 0)
    u = x / norm
    along = (u * dx).sum(-1, keepdim=True)
    ds = (dt + along) / 2
    moved = torch.cat([ds, ds * u + (t + norm) / (2 * norm) * (dx - u * along)], dim=-1)
    # At the apex, v = 0, the derivative of the inner points is taken.
    return torch.where(between, moved, torch.where(t.detach() >= 0, direction, 0.0))


def project_second_order_cone(v: Value) -> Tensor:
    """The nearest point (s, x) with |x|_2 <= s.

    Args:
        v: (*batch, n), n >= 2, the first entry being that of s.

    Returns:
        (*batch, n), differentiable any number of times.

    Raises:
        ArgumentError: a shape is wrong.
    """
    (v,) = batched(("v", v, 1))
    if v.shape[-1] < 2:
        raise wrong_shape("v", v.shape, "(*batch, n) with n >= 2")
    return SecondOrderProjection.call(v)
