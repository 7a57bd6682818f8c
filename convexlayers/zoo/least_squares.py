"""Weighted and regularized least squares, with every datum differentiable.

    minimize  1/2 sum_i w_i (a_i'x + c - b_i)^2 + 1/2 ridge |x|^2        (c only with bias=True)

Normal equations N x = A'Wb with N = A'WA + R, R = ridge I (0 for the bias, a column of ones), by Cholesky, and one
step of refinement with the residual of the data. Where N is singular, the solution of minimum norm, by the
pseudo-inverse.

Derivative: with r = b - Ax, N dx = dA'W r + A'dW r + A'W (db - dA x) - dR x. For a cotangent g and N u = g,

    grad_b = W A u,   grad_w = r o A u,   grad_A = W (r u' - A u x'),   grad_R = -u o x.
"""

from typing import Any

import torch
from torch import Tensor

from convexlayers.batching import Value
from convexlayers.zoo import _kernels
from convexlayers.zoo._batched import BatchedFunction, batched, expect, positive, remember, tangent_context, vector_of

# (A (*batch, m, n), b (*batch, m), w (*batch, m), ridge (*batch))
Data = tuple[Tensor, Tensor, Tensor, Tensor]


def _shrunk(x: Tensor, ridge: Tensor, bias: bool) -> Tensor:
    """R x."""
    out = ridge.unsqueeze(-1) * x
    return torch.cat([out[..., :-1], torch.zeros_like(out[..., :1])], dim=-1) if bias else out


def _normal(data: Data, bias: bool) -> Tensor:
    A, _, w, ridge = data
    return (A * w.unsqueeze(-1)).mT @ A + torch.diag_embed(_shrunk(torch.ones_like(A[..., 0, :]), ridge, bias))


def _inverse(N: Tensor) -> tuple[Tensor, bool]:
    """The Cholesky factor; or the pseudo-inverse, and True, where an element is singular to rounding."""
    factor, info = torch.linalg.cholesky_ex(N)
    pivots = factor.detach().diagonal(dim1=-2, dim2=-1).square()
    small = pivots.amin(-1) <= N.shape[-1] * torch.finfo(N.dtype).eps * pivots.amax(-1)
    singular = ((info > 0) | small) & N.detach().isfinite().all(-1).all(-1)
    if torch._C._are_functorch_transforms_active() or not bool(singular.any()):
        return factor, False
    return torch.linalg.pinv(torch.where(N.isfinite(), N, 0.0), hermitian=True), True


def _apply(inverse: tuple[Tensor, bool], right: Tensor) -> Tensor:
    factor, dense = inverse
    right = right.unsqueeze(-1)
    return (factor @ right if dense else torch.cholesky_solve(right, factor)).squeeze(-1)


def _times(M: Tensor, v: Tensor) -> Tensor:
    return (M @ v.unsqueeze(-1)).squeeze(-1)


def _fit(data: Data, bias: bool) -> tuple[Tensor, Tensor]:
    """x, and NaN in place of the kernel's factor."""
    A, b, w, ridge = data
    inverse = _inverse(_normal(data, bias))
    x = _apply(inverse, _times(A.mT, w * b))
    x = x + _apply(inverse, _times(A.mT, w * (b - _times(A, x))) - _shrunk(x, ridge, bias))
    return x, torch.full_like(inverse[0], torch.nan)


def _pulled_back(data: Data, x: Tensor, u: Tensor, bias: bool) -> tuple[Tensor, ...]:
    """Cotangents of the data, from u."""
    A, b, w, _ = data
    r, Au = b - _times(A, x), _times(A, u)
    grad_A = (w * r).unsqueeze(-1) * u.unsqueeze(-2) - (w * Au).unsqueeze(-1) * x.unsqueeze(-2)
    product = -u * x
    return grad_A, w * Au, r * Au, (product[..., :-1] if bias else product).sum(-1)


def _packed(data: Data) -> Data:
    A, b, w, ridge = data
    return _kernels.packed(A), _kernels.packed(b), _kernels.packed(w), _kernels.packed(ridge)


def _fit_rows(data: Data, bias: bool) -> tuple[Tensor, Tensor]:
    """`_fit` by the kernel; elements that are singular, by themselves, by the pseudo-inverse."""
    A, b, w, ridge = data = _packed(data)
    m, n = A.shape[-2:]
    x, factor = A.new_empty((*ridge.shape, n)), A.new_empty((*ridge.shape, n, n))
    tensors = (*data, x, factor)
    if _kernels.run(_kernels.LEAST_SQUARES, tensors, ridge.numel(), n, m=m, option=int(bias)):
        left = factor[..., 0, 0].isnan()
        x[left] = _fit((A[left], b[left], w[left], ridge[left]), bias)[0]
    return x, factor


def _pull_back_rows(data: Data, x: Tensor, factor: Tensor, grad: Tensor, bias: bool) -> tuple[Tensor, ...]:
    """`_pulled_back` by the kernel, apart from elements that are singular."""
    A, b, w, ridge = data = _packed(data)
    x, factor, grad = _kernels.packed(x), _kernels.packed(factor), _kernels.packed(grad)
    grads = tuple(torch.empty_like(part) for part in data)
    m, n = A.shape[-2:]
    tensors = (*data, x, factor, grad, *grads)
    if _kernels.run(_kernels.LEAST_SQUARES_ADJOINT, tensors, ridge.numel(), n, m=m, option=int(bias)):
        left = factor[..., 0, 0].isnan()
        part = (A[left], b[left], w[left], ridge[left])
        u = _apply(_inverse(_normal(part, bias)), grad[left])
        for whole, found in zip(grads, _pulled_back(part, x[left], u, bias), strict=True):
            whole[left] = found
    return grads


class LeastSquares(BatchedFunction):
    """A (*batch, m, n), b, w (*batch, m), ridge (*batch), bias -> x (*batch, n), the kernel's factor (*batch, n, n)."""

    auxiliary = 1

    @staticmethod
    def forward(  # type: ignore[override]
        A: Tensor, b: Tensor, w: Tensor, ridge: Tensor, bias: bool
    ) -> tuple[Tensor, Tensor]:
        small = A.shape[-1] <= _kernels.LARGEST_ORDER and _kernels.usable(A, b, w, ridge)
        return (_fit_rows if small else _fit)((A, b, w, ridge), bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        remember(ctx, inputs, output, LeastSquares.auxiliary)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, _: Any) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        if grad is None:
            return (None,) * 5
        A, b, w, ridge, x, factor = ctx.saved_tensors
        data, bias = (A, b, w, ridge), ctx.options[0]
        if _kernels.usable_once(x, grad) and x.shape[-1] <= _kernels.LARGEST_ORDER:
            return *_pull_back_rows(data, x, factor, grad, bias), None
        u = _apply(_inverse(_normal(data, bias)), grad)
        return *_pulled_back(data, x, u, bias), None

    @staticmethod
    def jvp(  # type: ignore[override]
        ctx: Any, dA: Tensor | None, db: Tensor | None, dw: Tensor | None, dridge: Tensor | None, _: None
    ) -> tuple[Tensor, None]:
        A, b, w, ridge, x = tangent_context(ctx)[:5]
        data, bias = (A, b, w, ridge), ctx.options[0]
        r = b - _times(A, x)
        right, change = torch.zeros_like(x), torch.zeros_like(b)
        if dA is not None:
            right, change = _times(dA.mT, w * r), -w * _times(dA, x)
        change = change if db is None else change + w * db
        change = change if dw is None else change + dw * r
        right = right if dridge is None else right - _shrunk(x, dridge, bias)
        return _apply(_inverse(_normal(data, bias)), right + _times(A.mT, change)), None


def least_squares(
    A: Value, b: Value, weight: Value = 1.0, ridge: Value = 0.0, *, bias: bool = False
) -> Tensor | tuple[Tensor, Tensor]:
    """Weighted least squares with ridge regularization.

    Args:
        A: features, (*batch, m, n). b: targets, (*batch, m).
        weight: (*batch, m) or a number, not negative. ridge: (*batch) or a number, not negative.
        bias: whether there is a bias, which is not regularized.

    Returns:
        x, (*batch, n), and with bias also c, (*batch); differentiable in all four, any number of times. Of several
        solutions that of minimum norm.

    Raises:
        ArgumentError: a shape is wrong, or a number is negative.
    """
    if bias:
        (A,) = batched(("A", A, 2), names=("m", "n"))
        A = torch.cat([A, torch.ones_like(A[..., :1])], dim=-1)
    b = b if isinstance(b, Tensor) else torch.as_tensor(b)
    weight = vector_of(positive("weight", weight, zero=True), b)
    ridge = positive("ridge", ridge, zero=True)
    A, b, w, ridge = batched(("A", A, 2), ("b", b, 1), ("weight", weight, 1), ("ridge", ridge, 0), names=("m", "n"))
    expect("b", b, A.shape[-2:-1], f": A is (*batch, {A.shape[-2]}, n)")
    expect("weight", w, b.shape[-1:])
    x = LeastSquares.call(A, b, w, ridge, bias)[0]
    return (x[..., :-1], x[..., -1]) if bias else x
