"""Projections onto the balls and spheres of the 1-, 2- and maximum norm, with derivatives in the radius.

    minimize    1/2 |x - v|_2^2
    subject to  |x|_p <= r    (ball)    or    |x|_p = r    (sphere: not convex, a nearest point is taken)

p = 1: signs are those of v, magnitudes the projection of |v| onto the simplex of size r (`simplex`; a ball's inner
points stay). On a sphere |v| is moved outwards the same way: tau is negative. An entry 0 moves to the positive side.

p = 2: x = r u with u = v / |v|, outside of the ball or onto the sphere. dx = (r / |v|) (dv - u u'dv) + u dr. At the
centre every point of the sphere is nearest: r e_0 is taken, with derivative 0 in v, the mean over all the others.

p = inf: entries are clipped to [-r, r]; onto the sphere, an inner point moves its first largest entry to r or -r.
"""

from typing import Any

import torch
from torch import Tensor

from convexlayers.batching import Value
from convexlayers.zoo import _kernels
from convexlayers.zoo._batched import BatchedFunction, batched, masked_mean, positive, remember, tangent_context
from convexlayers.zoo.simplex import BALL, SPHERE, rows_on_simplex, rows_on_simplex_adjoint, threshold


class Norm1(BatchedFunction):
    """v (*batch, n), radius (*batch), sphere -> x (*batch, n)."""

    @staticmethod
    def forward(v: Tensor, radius: Tensor, sphere: bool) -> Tensor:  # type: ignore[override]
        if _kernels.usable(v, radius):
            return rows_on_simplex(v, radius, SPHERE if sphere else BALL)
        size = v.abs()
        tau = threshold(size, radius.unsqueeze(-1))
        if sphere:
            return (size - tau).clamp_(min=0) * _sign(v)
        # The larger of two NaN or of NaN and 0 is NaN, so a radius that is not positive stays one.
        return (size - tau.clamp(min=0)).clamp_(min=0).copysign_(v)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        remember(ctx, inputs, output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        v, radius, x = ctx.saved_tensors
        if _kernels.usable_once(x, grad):
            return *rows_on_simplex_adjoint(v, radius, x, grad, SPHERE if ctx.options[0] else BALL), None
        sign, mask, moved = _faces(v, radius, x, *ctx.options)
        # Along the face's normal, sign on the support; nothing is lost inside of the ball.
        mean = moved * masked_mean(sign * grad, mask)
        inside = mask if ctx.options[0] else torch.where(moved > 0, mask, 1.0)
        return inside * grad - sign * mean, mean.squeeze(-1) if ctx.needs_input_grad[1] else None, None

    @staticmethod
    def jvp(ctx: Any, dv: Tensor | None, dradius: Tensor | None, _: None) -> Tensor:  # type: ignore[override]
        v, radius, x = tangent_context(ctx)
        sign, mask, moved = _faces(v, radius, x, *ctx.options)
        out = torch.zeros_like(sign)
        if dv is not None:
            inside = mask if ctx.options[0] else torch.where(moved > 0, mask, 1.0)
            out = inside * dv - sign * moved * masked_mean(sign * dv, mask)
        if dradius is not None:
            out = out + sign * moved * dradius.unsqueeze(-1) / mask.sum(-1, keepdim=True).clamp(min=1)
        return out


def _sign(v: Tensor) -> Tensor:
    """1 or -1, 1 for 0 and -0."""
    return torch.where(v >= 0, 1.0, -1.0).to(v.dtype)


def _faces(v: Tensor, radius: Tensor, x: Tensor, sphere: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Signs and support of x, and whether it was moved: constants to the derivative, which is piecewise linear."""
    sign = x.detach().sign()
    if sphere:
        return sign, sign.abs(), torch.ones_like(sign[..., :1])
    moved = v.detach().abs().sum(-1, keepdim=True) > radius.detach().unsqueeze(-1)
    return sign, sign.abs(), moved.to(v.dtype)


class Norm2(BatchedFunction):
    """v (*batch, n), radius (*batch), sphere -> x (*batch, n)."""

    @staticmethod
    def forward(v: Tensor, radius: Tensor, sphere: bool) -> Tensor:  # type: ignore[override]
        if _kernels.usable(v, radius):
            v = _kernels.packed(v)
            x = torch.empty_like(v)
            tensors = (v, _kernels.packed(radius), x)
            _kernels.run(_kernels.NORM2, tensors, radius.numel(), v.shape[-1], option=int(sphere))
            return x
        radius = radius.unsqueeze(-1)
        scale, moved, direction = _direction(v, radius, sphere)
        if direction is not None:
            return torch.where(moved, radius * direction, v)
        return v * scale

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        remember(ctx, inputs, output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        v, radius, x = ctx.saved_tensors
        if _kernels.usable_once(x, grad):
            v, radius = _kernels.packed(v), _kernels.packed(radius)
            grads = torch.empty_like(v), torch.empty_like(radius)
            tensors = (v, radius, _kernels.packed(x), _kernels.packed(grad), *grads)
            _kernels.run(_kernels.NORM2_ADJOINT, tensors, radius.numel(), v.shape[-1], option=int(ctx.options[0]))
            return *grads, None
        scale, normal, moved = _rays(v, radius.unsqueeze(-1), x, *ctx.options)
        along = (normal * grad).sum(-1, keepdim=True) * moved
        return scale * (grad - normal * along), along.squeeze(-1) if ctx.needs_input_grad[1] else None, None

    @staticmethod
    def jvp(ctx: Any, dv: Tensor | None, dradius: Tensor | None, _: None) -> Tensor:  # type: ignore[override]
        v, radius, x = tangent_context(ctx)
        scale, normal, moved = _rays(v, radius.unsqueeze(-1), x, *ctx.options)
        out = torch.zeros_like(x)
        if dv is not None:
            out = scale * (dv - moved * normal * (normal * dv).sum(-1, keepdim=True))
        if dradius is not None:
            out = out + moved * normal * dradius.unsqueeze(-1)
        return out


def _direction(v: Tensor, radius: Tensor, sphere: bool) -> tuple[Tensor, Tensor, Tensor | None]:
    """The factor of v, whether v is moved, and v / |v| where the factor would not do: at 0, for tiny or huge v."""
    norm = torch.linalg.vector_norm(v, dim=-1, keepdim=True)
    moved = torch.ones_like(norm, dtype=torch.bool) if sphere else norm > radius
    info = torch.finfo(v.dtype)
    ordinary = (norm > info.tiny**0.5) & (norm < info.max**0.5)
    scale = torch.where(moved, radius / norm, 1.0) if not sphere else radius / norm
    scale = torch.where(radius > 0, scale, torch.nan)
    if bool((ordinary | ~moved).all()):
        return scale, moved, None
    largest = v.abs().amax(-1, keepdim=True)
    centre = largest == 0
    u = v / torch.where(centre, 1.0, largest)
    first = torch.zeros_like(v)
    first[..., 0] = 1
    u = torch.where(centre, first, u / torch.linalg.vector_norm(u, dim=-1, keepdim=True))
    return scale, moved, torch.where(radius > 0, u, torch.nan)


def _rays(v: Tensor, radius: Tensor, x: Tensor, sphere: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Factor r / |v| of tangential motion (0 at the centre), unit normal x / r, and whether v was moved (0 or 1)."""
    # |v|^2 is differentiated, not |v|, and where it is 0 not at all: no NaN from the root.
    square = (v * v).sum(-1, keepdim=True)
    centre = square.detach() == 0
    norm = torch.where(centre, 1.0, square).sqrt()
    normal = x / radius
    if sphere:
        return torch.where(centre, 0.0, radius / norm), normal, torch.ones_like(norm)
    moved = norm.detach() > radius.detach()
    moved = moved & ~centre
    return torch.where(moved, radius / norm, 1.0), normal, moved.to(v.dtype)


class NormInf(BatchedFunction):
    """v (*batch, n), radius (*batch), sphere -> x (*batch, n)."""

    @staticmethod
    def forward(v: Tensor, radius: Tensor, sphere: bool) -> Tensor:  # type: ignore[override]
        if _kernels.usable(v, radius):
            v = _kernels.packed(v)
            x = torch.empty_like(v)
            tensors = (v, _kernels.packed(radius), x)
            _kernels.run(_kernels.NORM_INF, tensors, radius.numel(), v.shape[-1], option=int(sphere))
            return x
        bound = torch.where(radius > 0, radius, torch.nan).unsqueeze(-1)
        x = torch.minimum(torch.maximum(v, -bound), bound)
        if not sphere:
            return x
        largest, index = v.abs().max(-1, keepdim=True)
        target = torch.where(v.gather(-1, index) >= 0, bound, -bound)
        return torch.where(largest < bound, x.scatter(-1, index, target), x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        remember(ctx, inputs, output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        v, radius, x = ctx.saved_tensors
        if _kernels.usable_once(x, grad):
            v = _kernels.packed(v)
            grads = torch.empty_like(v), torch.empty(radius.shape, dtype=v.dtype)
            tensors = (v, _kernels.packed(x), _kernels.packed(grad), *grads)
            _kernels.run(_kernels.NORM_INF_ADJOINT, tensors, radius.numel(), v.shape[-1], option=int(ctx.options[0]))
            return *grads, None
        clipped = _clipped(v, x, *ctx.options)
        along = (clipped * grad).sum(-1) if ctx.needs_input_grad[1] else None
        return grad.masked_fill(clipped != 0, 0.0), along, None

    @staticmethod
    def jvp(ctx: Any, dv: Tensor | None, dradius: Tensor | None, _: None) -> Tensor:  # type: ignore[override]
        v, x = tangent_context(ctx)[::2]
        clipped = _clipped(v, x, *ctx.options)
        out = torch.zeros_like(clipped) if dv is None else dv.masked_fill(clipped != 0, 0.0)
        return out if dradius is None else out + clipped * dradius.unsqueeze(-1)


def _clipped(v: Tensor, x: Tensor, sphere: bool) -> Tensor:
    """Sign of the entries at their bound, 0 elsewhere; at a tie, v = r, the derivative is that of inner points."""
    moved = (x.detach() != v.detach()).to(x.dtype)
    if sphere:
        # A point of the sphere stays where it is, and its largest entry moves with the radius.
        first = torch.zeros_like(moved).scatter(-1, x.detach().abs().max(-1, keepdim=True).indices, 1.0)
        moved = torch.where(moved.any(-1, keepdim=True), moved, first)
    return moved * x.detach().sign()


def _project(kind: type[BatchedFunction], v: Value, radius: Value, sphere: bool) -> Tensor:
    return kind.call(*batched(("v", v, 1), ("radius", positive("radius", radius), 0)), sphere)


def project_l1_ball(v: Value, radius: Value = 1.0) -> Tensor:
    """The nearest point with sum |x_i| <= radius.

    Args:
        v: (*batch, n).
        radius: (*batch) or a number, positive; NaN comes out where an element of a tensor is not.

    Returns:
        x, (*batch, n), differentiable in v and radius, any number of times.

    Raises:
        ArgumentError: a shape is wrong, or the number is not positive.
    """
    return _project(Norm1, v, radius, sphere=False)


def project_l1_sphere(v: Value, radius: Value = 1.0) -> Tensor:
    """A nearest point with sum |x_i| = radius; arguments as in `project_l1_ball`."""
    return _project(Norm1, v, radius, sphere=True)


def project_l2_ball(v: Value, radius: Value = 1.0) -> Tensor:
    """The nearest point with |x|_2 <= radius; arguments as in `project_l1_ball`."""
    return _project(Norm2, v, radius, sphere=False)


def project_l2_sphere(v: Value, radius: Value = 1.0) -> Tensor:
    """A nearest point with |x|_2 = radius; from the centre, radius e_0. Arguments as in `project_l1_ball`."""
    return _project(Norm2, v, radius, sphere=True)


def project_linf_ball(v: Value, radius: Value = 1.0) -> Tensor:
    """The nearest point with max |x_i| <= radius; arguments as in `project_l1_ball`."""
    return _project(NormInf, v, radius, sphere=False)


def project_linf_sphere(v: Value, radius: Value = 1.0) -> Tensor:
    """A nearest point with max |x_i| = radius; arguments as in `project_l1_ball`."""
    return _project(NormInf, v, radius, sphere=True)
