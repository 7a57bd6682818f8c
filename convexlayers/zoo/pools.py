"""Robust pools: the point with the least sum of penalties of its distances to given ones.

    minimize  sum_i c_i phi(|y - x_i|; alpha)

    quadratic            z^2 / 2
    pseudo-Huber         alpha^2 (sqrt(1 + z^2 / alpha^2) - 1)
    Huber                z^2 / 2 up to alpha, alpha (z - alpha / 2) beyond
    Welsch               1 - exp(-z^2 / (2 alpha^2))              not convex
    truncated quadratic  min(z^2, alpha^2) / 2                    not convex

(Gould, Hartley and Campbell, "Deep declarative networks", 2019, where alpha has no gradient.) With w(z) = phi'(z) / z,
of z and alpha, and w_i = c_i w(z_i), the optimality condition is sum_i w_i (y - x_i) = 0.

Scalars, convex: the derivative of the objective is increasing; Newton's method in a bracket. Everything else:
Newton's step where it does better than the step of majorization y = sum w_i x_i / sum w_i, which always descends
(Huber and Ronchetti, "Robust Statistics", 2009, section 7.8), from several starts, of which every element of the
batch keeps its best. For scalars one of them is the global minimum of the truncated quadratic, by sorting
(`_best_window`).

Derivative: with H = sum_i H_i, H_i = w_i I + (w'_i / z_i) r_i r_i', r_i = y - x_i and u = H^-1 g for a cotangent g,

    grad_x_i = H_i u,    grad_alpha = -u' sum_i (dw_i / dalpha) r_i,    grad_c_i = -w(z_i) u' r_i.

Where H is singular (Huber: no point within alpha), the solution is not unique and the derivative returned is 0.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from convexlayers.batching import Value
from convexlayers.errors import ArgumentError
from convexlayers.zoo import _kernels
from convexlayers.zoo._batched import BatchedFunction, batched, expect, positive, remember, tangent_context

MAX_STEPS = 100
BLIND_STEPS = 3
# Points at which the objective is looked at for a start.
CANDIDATES = 64

# Kinds that the kernel has, by its options.
OPTIONS = {"pseudo-huber": 0, "huber": 1}

Part = Callable[[Tensor, Tensor], Tensor]
Pair = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Penalty:
    """A penalty phi and what Newton's method needs of it, as functions of the squared distance t = z^2 and of alpha.

    Attributes:
        value: phi.
        weights: w = 2 dphi/dt, and its bend 2 dw/dt = w'(z) / z, so that H_i = w I + bend r r'.
        slope: dw / dalpha.
        convex: whether phi is.
    """

    value: Part
    weights: Pair
    slope: Part
    convex: bool


def _beyond(t: Tensor, alpha: Tensor) -> tuple[Tensor, Tensor]:
    """Which points are further than alpha, and their distances, 1 for the others."""
    far = t.detach() > alpha.detach() ** 2
    return far, torch.where(far, t, 1.0).sqrt()


def _huber_value(t: Tensor, alpha: Tensor) -> Tensor:
    far, z = _beyond(t, alpha)
    return torch.where(far, alpha * (z - alpha / 2), t / 2)


def _huber_weights(t: Tensor, alpha: Tensor) -> tuple[Tensor, Tensor]:
    far, z = _beyond(t, alpha)
    return torch.where(far, alpha / z, 1.0), torch.where(far, -alpha / z**3, 0.0)


def _huber_slope(t: Tensor, alpha: Tensor) -> Tensor:
    far, z = _beyond(t, alpha)
    return torch.where(far, 1 / z, 0.0)


def _pseudo_huber_weights(t: Tensor, alpha: Tensor) -> tuple[Tensor, Tensor]:
    square = alpha**2
    w = (1 + t / square).rsqrt()
    return w, w**3 / -square


def _welsch_weights(t: Tensor, alpha: Tensor) -> tuple[Tensor, Tensor]:
    square = alpha**2
    w = torch.exp(t / (-2 * square)) / square
    return w, w / -square


PENALTIES = {
    "quadratic": Penalty(
        value=lambda t, alpha: t / 2,
        weights=lambda t, alpha: (torch.ones_like(t), torch.zeros_like(t)),
        slope=lambda t, alpha: torch.zeros_like(t),
        convex=True,
    ),
    "pseudo-huber": Penalty(
        value=lambda t, alpha: alpha**2 * ((1 + t / alpha**2).sqrt() - 1),
        weights=_pseudo_huber_weights,
        slope=lambda t, alpha: t / alpha**3 * (1 + t / alpha**2) ** -1.5,
        convex=True,
    ),
    "huber": Penalty(value=_huber_value, weights=_huber_weights, slope=_huber_slope, convex=True),
    "welsch": Penalty(
        value=lambda t, alpha: -torch.expm1(t / (-2 * alpha**2)),
        weights=_welsch_weights,
        slope=lambda t, alpha: torch.exp(t / (-2 * alpha**2)) * (t / alpha**2 - 2) / alpha**3,
        convex=False,
    ),
    "truncated": Penalty(
        value=lambda t, alpha: torch.minimum(t, alpha**2) / 2,
        weights=lambda t, alpha: ((t <= alpha**2).to(t.dtype), torch.zeros_like(t)),
        slope=lambda t, alpha: torch.zeros_like(t),
        convex=False,
    ),
}


def _weights(penalty: Penalty, t: Tensor, alpha: Tensor, c: Tensor | None) -> tuple[Tensor, Tensor]:
    """w_i and its bend, (..., n), of squared distances t and points that count c times, None for once."""
    w, bend = penalty.weights(t, alpha)
    return (w, bend) if c is None else (c * w, c * bend)


def _mean(x: Tensor, c: Tensor | None) -> Tensor:
    """(..., d) of points (..., n, d)."""
    return x.mean(-2) if c is None else (c.unsqueeze(-1) * x).sum(-2) / c.sum(-1, keepdim=True)


# --------------------------------------------------------------------------------------------------- finding the point


def _root(x: Tensor, alpha: Tensor, penalty: Penalty, c: Tensor | None) -> Tensor:
    """The minimizer of a convex penalty over scalars, (..., 1), by Newton's method in a bracket."""
    low, high = x.aminmax(dim=-1, keepdim=True)
    rounding = 4 * torch.finfo(x.dtype).eps * torch.maximum(low.abs(), high.abs())
    y = following = _mean(x.unsqueeze(-1), c)
    for step in range(MAX_STEPS):
        r = y - x
        t = r * r
        w, bend = _weights(penalty, t, alpha, c)
        slope = (w * r).sum(-1, keepdim=True)
        curvature = (w + bend * t).sum(-1, keepdim=True)
        low, high = torch.where(slope <= 0, y, low), torch.where(slope >= 0, y, high)
        following = y - slope / curvature
        # Strictly inside, so that the bracket shrinks; a step of the size of rounding is the last one.
        inside = ((following > low) & (following < high)) | ((following - y).abs() <= rounding)
        following = torch.where(inside, following, (low + high) / 2)
        moving = (following - y).abs() > rounding
        if step >= BLIND_STEPS and not bool(moving.any()):
            break
        y = torch.where(moving, following, y)
    return following


def _descend(x: Tensor, y: Tensor, alpha: Tensor, penalty: Penalty, c: Tensor | None) -> tuple[Tensor, Tensor]:
    """A stationary point below y, and the objective there.

    Args:
        x: (..., n, d). y: (..., d). alpha: (..., 1). c: (..., n).
    """
    shape, d = y.shape, y.shape[-1]
    x, y, alpha = x.reshape(-1, *x.shape[-2:]), y.reshape(-1, d).clone(), alpha.expand(*shape[:-1], 1).reshape(-1, 1)
    c = None if c is None else c.reshape(x.shape[:2])
    rounding = 4 * torch.finfo(x.dtype).eps * x.abs().amax((-1, -2)).unsqueeze(-1)
    # A few elements take many more steps than the others: the rest is left behind whenever it is half of all.
    left, points, at, scale, small, count = torch.arange(len(y), device=y.device), x, y, alpha, rounding, c
    for step in range(MAX_STEPS):
        following = _better_step(points, at, scale, penalty, count)
        moving = ((following - at).abs() > small).any(-1)
        if step >= BLIND_STEPS and not bool(moving.any()):
            break
        at = torch.where(moving.unsqueeze(-1), following, at)
        if step >= BLIND_STEPS and 2 * int(moving.sum()) <= len(left):
            y[left] = at
            left = left[moving]
            points, at, scale, small = x[left], at[moving], alpha[left], rounding[left]
            count = None if c is None else c[left]
    y[left] = at
    return y.reshape(shape), _objective(x, y, alpha, penalty, c).reshape(shape[:-1])


def _better_step(x: Tensor, y: Tensor, alpha: Tensor, penalty: Penalty, c: Tensor | None) -> Tensor:
    """Newton's step from y where it does better than that of majorization, otherwise the latter."""
    r = y.unsqueeze(-2) - x
    w, bend = _weights(penalty, (r * r).sum(-1), alpha, c)
    gradient, total = (w.unsqueeze(-1) * r).sum(-2), w.sum(-1, keepdim=True)
    majorized = torch.where(total > 0, y - gradient / total, y)
    newton = y - torch.linalg.solve_ex(_hessian(r, w, bend), gradient.unsqueeze(-1))[0].squeeze(-1)
    bound = _objective(x, majorized, alpha, penalty, c)
    better = _objective(x, newton, alpha, penalty, c) <= bound * (1 + 4 * torch.finfo(x.dtype).eps)
    return torch.where(better.unsqueeze(-1), newton, majorized)


def _objective(x: Tensor, y: Tensor, alpha: Tensor, penalty: Penalty, c: Tensor | None) -> Tensor:
    """sum_i c_i phi, (...)."""
    r = y.unsqueeze(-2) - x
    value = penalty.value((r * r).sum(-1), alpha)
    return (value if c is None else c * value).sum(-1)


def _best_window(x: Tensor, alpha: Tensor, c: Tensor | None) -> Tensor:
    """The global minimizer of the truncated quadratic over scalars, (..., 1).

    The points within alpha of the optimum are a window of the sorted ones, i to j. As y rises, points enter the
    window at x_j - alpha and leave it at x_i + alpha, so all windows there are, are those after one of these 2 n
    events. Each costs its sum of squares about its mean and alpha^2 for every point outside: no less than the
    objective at its mean.
    """
    n = x.shape[-1]
    x, order = x.sort(-1)
    c = torch.ones_like(x) if c is None else c.gather(-1, order)
    centred = x - x.mean(-1, keepdim=True)
    zero = torch.zeros_like(x[..., :1])
    moments = c, c * centred, c * centred * centred
    weight, first, second = (torch.cat([zero, power.cumsum(-1)], dim=-1) for power in moments)
    index = torch.arange(n, device=x.device).expand(x.shape)
    entering = torch.searchsorted(x, x - 2 * alpha), index + 1
    leaving = (index + 1).clamp(max=n - 1), torch.searchsorted(x, x + 2 * alpha, right=True)
    low, high = (torch.cat(pair, dim=-1) for pair in zip(entering, leaving, strict=True))
    high = torch.maximum(high, low + 1)
    count = weight.gather(-1, high) - weight.gather(-1, low)
    # A window of points that do not count is none: with a mean of 0 it costs what no point at all costs.
    mean = (first.gather(-1, high) - first.gather(-1, low)) / torch.where(count > 0, count, torch.inf)
    squares = second.gather(-1, high) - second.gather(-1, low) - count * mean * mean
    best = (squares + alpha**2 * (weight[..., -1:] - count)).argmin(-1, keepdim=True)
    return mean.gather(-1, best) + x.mean(-1, keepdim=True)


def _starts(x: Tensor, alpha: Tensor, penalty: Penalty, c: Tensor | None) -> list[Tensor]:
    """Where to start from, each (..., d): the mean, the median, and for penalties that are not convex, a good point."""
    mean = _mean(x, c)
    if penalty.convex:
        return [mean]
    if x.shape[-1] == 1:
        return [_best_window(x.squeeze(-1), alpha, c), mean, x.median(-2).values]
    candidates = x[..., :: -(-x.shape[-2] // CANDIDATES), :]
    values = penalty.value((candidates.unsqueeze(-2) - x.unsqueeze(-3)).square().sum(-1), alpha.unsqueeze(-1))
    values = (values if c is None else c.unsqueeze(-2) * values).sum(-1)
    best = values.argmin(-1)[..., None, None].expand(*x.shape[:-2], 1, x.shape[-1])
    return [candidates.gather(-2, best).squeeze(-2), mean, x.median(-2).values]


def _minimize(x: Tensor, alpha: Tensor, c: Tensor | None, kind: str) -> Tensor:
    """The best stationary point, (..., d), of points (..., n, d)."""
    penalty = PENALTIES[kind]
    if kind == "quadratic" or x.numel() == 0:
        return _mean(x, c)
    if x.shape[-1] == 1 and penalty.convex:
        return _root(x.squeeze(-1), alpha, penalty, c)
    if x.shape[-1] == 1 and kind == "truncated":
        return _best_window(x.squeeze(-1), alpha, c)
    found = [_descend(x, start, alpha, penalty, c) for start in _starts(x, alpha, penalty, c)]
    y, least = found[0]
    for other, value in found[1:]:
        better = value < least
        y, least = torch.where(better.unsqueeze(-1), other, y), torch.where(better, value, least)
    return y


# --------------------------------------------------------------------------------------------------- its derivative


class Pool(BatchedFunction):
    """x (*batch, n, d), alpha (*batch), c (*batch, n) or None, kind -> y (*batch, d)."""

    @staticmethod
    def forward(x: Tensor, alpha: Tensor, c: Tensor | None, kind: str) -> Tensor:  # type: ignore[override]
        finite = x.isfinite().all(-1).all(-1) & (alpha > 0)
        if c is not None:
            finite = finite & (c >= 0).all(-1) & (c.sum(-1) > 0) & c.isfinite().all(-1)
            c = torch.where(finite.unsqueeze(-1), c, 1.0)
        safe = torch.where(finite[..., None, None], x, 0.0)
        y = _minimize(safe, torch.where(finite, alpha, 1.0).unsqueeze(-1), c, kind)
        return torch.where(finite.unsqueeze(-1), y, torch.nan)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        remember(ctx, inputs, output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, alpha, *counts, y = ctx.saved_tensors
        penalty, c = PENALTIES[ctx.options[-1]], counts[0] if counts else None
        r = y.unsqueeze(-2) - x
        t = (r * r).sum(-1)
        w, bend = _weights(penalty, t, alpha.unsqueeze(-1), c)
        u = _solve(_hessian(r, w, bend), grad).unsqueeze(-2)
        along = (u * r).sum(-1)
        grad_alpha = grad_c = None
        if ctx.needs_input_grad[1]:
            slope = penalty.slope(t, alpha.unsqueeze(-1))
            grad_alpha = -((slope if c is None else c * slope) * along).sum(-1)
        if c is not None and ctx.needs_input_grad[2]:
            grad_c = -penalty.weights(t, alpha.unsqueeze(-1))[0] * along
        return w.unsqueeze(-1) * u + (bend * along).unsqueeze(-1) * r, grad_alpha, grad_c, None

    @staticmethod
    def jvp(  # type: ignore[override]
        ctx: Any, dx: Tensor | None, dalpha: Tensor | None, dc: Tensor | None, _: None
    ) -> Tensor:
        x, alpha, *counts, y = tangent_context(ctx)
        penalty, c = PENALTIES[ctx.options[-1]], counts[0] if counts else None
        r = y.unsqueeze(-2) - x
        t = (r * r).sum(-1)
        w, bend = _weights(penalty, t, alpha.unsqueeze(-1), c)
        change = torch.zeros_like(y)
        if dx is not None:
            along = (r * dx).sum(-1)
            change = (w.unsqueeze(-1) * dx + (bend * along).unsqueeze(-1) * r).sum(-2)
        if dalpha is not None:
            slope = penalty.slope(t, alpha.unsqueeze(-1))
            slope = (slope if c is None else c * slope).unsqueeze(-1)
            change = change - (slope * r).sum(-2) * dalpha.unsqueeze(-1)
        if dc is not None:
            change = change - ((dc * penalty.weights(t, alpha.unsqueeze(-1))[0]).unsqueeze(-1) * r).sum(-2)
        return _solve(_hessian(r, w, bend), change)


class ScalarPool(BatchedFunction):
    """x (*batch, n), alpha (*batch), kind -> y (*batch): `Pool` with d = 1."""

    @staticmethod
    def forward(x: Tensor, alpha: Tensor, kind: str) -> Tensor:  # type: ignore[override]
        if kind in OPTIONS and _kernels.usable(x, alpha):
            x, alpha = _kernels.packed(x), _kernels.packed(alpha)
            y = torch.empty_like(alpha)
            _kernels.run(_kernels.POOL, (x, alpha, y), alpha.numel(), x.shape[-1], option=OPTIONS[kind])
            return y
        return Pool.forward(x.unsqueeze(-1), alpha, None, kind).squeeze(-1)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        remember(ctx, inputs, output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, alpha, y = ctx.saved_tensors
        kind = ctx.options[0]
        if kind in OPTIONS and _kernels.usable_once(x, grad):
            tensors = [_kernels.packed(tensor) for tensor in (x, alpha, y, grad)]
            grads = torch.empty_like(tensors[0]), torch.empty_like(tensors[1])
            _kernels.run(_kernels.POOL_ADJOINT, (*tensors, *grads), alpha.numel(), x.shape[-1], option=OPTIONS[kind])
            return *grads, None
        r, H, slope = _scalar_parts(x, alpha, y, kind)
        u = _divided(grad, H.sum(-1)).unsqueeze(-1)
        return u * H, -(u * slope * r).sum(-1) if ctx.needs_input_grad[1] else None, None

    @staticmethod
    def jvp(ctx: Any, dx: Tensor | None, dalpha: Tensor | None, _: None) -> Tensor:  # type: ignore[override]
        x, alpha, y = tangent_context(ctx)
        r, H, slope = _scalar_parts(x, alpha, y, ctx.options[0])
        change = torch.zeros_like(y) if dx is None else (H * dx).sum(-1)
        change = change if dalpha is None else change - (slope * r).sum(-1) * dalpha
        return _divided(change, H.sum(-1))


def _scalar_parts(x: Tensor, alpha: Tensor, y: Tensor, kind: str) -> tuple[Tensor, Tensor, Tensor]:
    """r, H_i and dw_i / dalpha, each (..., n)."""
    r, alpha = y.unsqueeze(-1) - x, alpha.unsqueeze(-1)
    t = r * r
    w, bend = PENALTIES[kind].weights(t, alpha)
    return r, w + bend * t, PENALTIES[kind].slope(t, alpha)


def _hessian(r: Tensor, w: Tensor, bend: Tensor) -> Tensor:
    """sum_i w_i I + bend_i r_i r_i', (..., d, d)."""
    eye = torch.eye(r.shape[-1], dtype=r.dtype, device=r.device)
    return w.sum(-1)[..., None, None] * eye + (bend.unsqueeze(-1) * r).mT @ r


def _divided(right: Tensor, H: Tensor) -> Tensor:
    """right / H, 0 where H is 0."""
    zero = H.detach() == 0
    return torch.where(zero, 0.0, right / torch.where(zero, 1.0, H))


def _solve(H: Tensor, right: Tensor) -> Tensor:
    """H^-1 right, 0 where H is singular to rounding."""
    if H.shape[-1] == 1:
        return _divided(right, H.squeeze(-1))
    eye = torch.eye(H.shape[-1], dtype=H.dtype, device=H.device)
    size = H.detach().abs().amax((-1, -2))
    # |det H| <= size^d; a determinant at rounding's level beside that is none.
    share = torch.linalg.det(H.detach()).abs() / size ** H.shape[-1]
    singular = ~(share > 16 * torch.finfo(H.dtype).eps)
    safe = torch.where(singular[..., None, None], eye, H)
    return torch.where(singular.unsqueeze(-1), 0.0, torch.linalg.solve(safe, right.unsqueeze(-1)).squeeze(-1))


def robust_pool(x: Value, alpha: Value = 1.0, weight: Value | None = None, *, kind: str = "pseudo-huber") -> Tensor:
    """The robust mean over the last dimension.

    Args:
        x: (*batch, n); images (b, c, h, w) as `x.flatten(-2)`.
        alpha: scale, (*batch) or a number, positive; NaN comes out where an element of a tensor is not.
        weight: c, how often each point counts, (*batch, n), not negative, not all zero; NaN comes out where it is. None
            for once.
        kind: "quadratic", "pseudo-huber", "huber", "welsch" or "truncated".

    Returns:
        y, (*batch), differentiable in x, alpha and weight, any number of times.

    Raises:
        ArgumentError: a shape is wrong, the number is not positive, or the kind is not known.

    Examples:
        >>> import torch, convexlayers as cl
        >>> cl.zoo.robust_pool(torch.tensor([1.0, 2.0, 3.0, 90.0]), 2.0, kind="truncated").item()
        2.0
    """
    scale = positive("alpha", alpha)
    if weight is None:
        x, alpha = batched(("x", x, 1), ("alpha", scale, 0))
        return ScalarPool.call(x, alpha, _known(kind))
    x, alpha, weight = batched(("x", x, 1), ("alpha", scale, 0), ("weight", weight, 1))
    expect("weight", weight, x.shape[-1:], ": x is (*batch, n)")
    return Pool.call(x.unsqueeze(-1), alpha, weight, _known(kind)).squeeze(-1)


def robust_vector_pool(
    x: Value, alpha: Value = 1.0, weight: Value | None = None, *, kind: str = "pseudo-huber"
) -> Tensor:
    """The robust mean of vectors, by their Euclidean distances.

    Args:
        x: (*batch, n, d).
        alpha, weight, kind: as in `robust_pool`. Of kinds that are not convex the best of three descents comes out.

    Returns:
        y, (*batch, d), differentiable in x, alpha and weight, any number of times.

    Raises:
        ArgumentError: as in `robust_pool`.
    """
    scale = positive("alpha", alpha)
    if weight is None:
        x, alpha = batched(("x", x, 2), ("alpha", scale, 0), names=("n", "d"))
        return Pool.call(x, alpha, None, _known(kind))
    x, alpha, weight = batched(("x", x, 2), ("alpha", scale, 0), ("weight", weight, 1))
    expect("weight", weight, x.shape[-2:-1], ": x is (*batch, n, d)")
    return Pool.call(x, alpha, weight, _known(kind))


def _known(kind: str) -> str:
    if kind not in PENALTIES:
        raise ArgumentError(f"kind is {kind!r}, expected one of {', '.join(map(repr, PENALTIES))}.")
    return kind


class RobustPool(torch.nn.Module):
    """`robust_pool` over the last `dims` dimensions, with a scale that may be learned.

    Args:
        kind: as in `robust_pool`.
        alpha: the scale to start with.
        dims: how many dimensions are pooled, 2 for images.
        learned: whether alpha is a parameter; its logarithm is, so that it stays positive.
    """

    def __init__(self, kind: str = "pseudo-huber", alpha: float = 1.0, *, dims: int = 2, learned: bool = False) -> None:
        super().__init__()
        positive("alpha", alpha)
        self.kind, self.dims = _known(kind), dims
        log_alpha = torch.tensor(float(alpha)).log()
        if learned:
            self.log_alpha = torch.nn.Parameter(log_alpha)
        else:
            self.register_buffer("log_alpha", log_alpha)

    def forward(self, x: Tensor) -> Tensor:
        """x (*batch, *pooled) -> (*batch)."""
        return robust_pool(x.flatten(-self.dims), self.log_alpha.exp().to(x.dtype), kind=self.kind)

    def extra_repr(self) -> str:
        """For print(layer)."""
        return f"kind={self.kind!r}, alpha={float(self.log_alpha.detach().exp()):.4g}"
